"""A connection of ours, lent to grpcio: bytes carried between it and a socket that only this process can open.

grpcio can neither choose ALPN names nor be given a socket. It may connect once: a lost connection is a lost link.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from sidecar.errors import LinkLost

_CHUNK = 65_536
# Closing waits for nobody; the limit only says so.
_CLOSE_SECONDS = 5.0


class Splice:
    """One connection. `target` is what grpcio dials; `over` is true once either end is gone."""

    def __init__(self, name: str) -> None:
        self.target = f"unix-abstract:{name}"
        self.over = False
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self, listener: trio.socket.SocketType, tls: trio.abc.Stream, heard: bytes) -> None:
        """Carry bytes until either end is gone; `heard` came first."""
        try:
            # Out of descriptors, it is lost like any other.
            with self._scope, listener, suppress(OSError):
                # Lost already where nobody comes: no call was made.
                async with trio.SocketStream(await _accept_own(listener)) as local:
                    # From here on nobody can connect, grpcio itself not again.
                    listener.close()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_carry, tls, local, heard, nursery.cancel_scope)
                        nursery.start_soon(_carry, local, tls, b"", nursery.cancel_scope)
        finally:
            self.over = True
            self._ended.set()
            await trio.aclose_forcefully(tls)

    async def aclose(self) -> None:
        """End it, from any task."""
        self._scope.cancel()
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._ended.wait()


@asynccontextmanager
async def splice(nursery: trio.Nursery, tls: trio.abc.Stream, heard: bytes) -> AsyncIterator[Splice]:
    """Lend a connection until the block ends. The nursery owns the task, so that the block may end in any other."""
    name = secrets.token_hex(16)
    try:
        # Where everything is being ended, the nursery may be closed already.
        await trio.lowlevel.checkpoint()
        listener = _listen(name)
    except OSError as exc:
        await trio.aclose_forcefully(tls)
        raise LinkLost("teleport", "unreachable", f"no socket for grpcio: {exc.strerror}") from exc
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    one = Splice(name)
    nursery.start_soon(one.run, listener, tls, heard, name="teleport.splice")
    try:
        yield one
    finally:
        await one.aclose()


def _listen(name: str) -> trio.socket.SocketType:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Abstract: it needs no writable folder, and nothing is left of it.
    listener.bind(f"\0{name}")
    listener.listen()
    return trio.socket.from_stdlib_socket(listener)


async def _accept_own(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """Wait for the connection from this process; everybody in its network may see the name."""
    while True:
        local, _ = await listener.accept()
        pid, _uid, _gid = struct.unpack("3i", local.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if pid == os.getpid():
            return local
        local.close()


async def _carry(source: trio.abc.Stream, sink: trio.abc.Stream, first: bytes, both: trio.CancelScope) -> None:
    """What is not taken is not read, so each end holds the other back."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        data: bytes | bytearray = first or await source.receive_some(_CHUNK)
        while data:
            await sink.send_all(data)
            data = await source.receive_some(_CHUNK)
    both.cancel()
