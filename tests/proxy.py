"""A network that fails: a TCP proxy in the test's loop that cuts, delays, stalls, half-closes and corrupts.

It knows nothing of what it carries. Over TLS a corrupted byte ends the connection, as on a real network; over plain
HTTP nothing could tell it from what was meant.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import trio

Direction = Literal["up", "down"]


class _Connection:
    """One client and its server; `up` flows from the client."""

    def __init__(self, proxy: Proxy, client: trio.SocketStream, server: trio.SocketStream) -> None:
        self._proxy = proxy
        self._ends = {"up": (client, server), "down": (server, client)}
        self._pumps = {"up": trio.CancelScope(), "down": trio.CancelScope()}
        self._all = trio.CancelScope()

    async def run(self) -> None:
        with self._all:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, "up")
                nursery.start_soon(self._pump, "down")

    def cut(self) -> None:
        """Reset both sides: the peers are told by RST, not by an orderly end."""
        for one in self._ends["up"]:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._all.cancel()

    def half_close(self, direction: Direction) -> None:
        """End one direction by a FIN; the other stays open."""
        self._pumps[direction].cancel()

    async def _pump(self, direction: Direction) -> None:
        source, sink = self._ends[direction]
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            with self._pumps[direction]:
                while data := await source.receive_some(65536):
                    await sink.send_all(await self._proxy.carry(bytes(data), direction))
            await sink.send_eof()
            return
        self._all.cancel()


class Proxy:
    """Listens on `address` and carries bytes to `target()`, which is asked for each connection ("host:port")."""

    def __init__(self, target: Callable[[], str], seed: int = 0) -> None:
        self.address = ""
        # Seconds that each chunk takes on its way.
        self.delay = 0.0
        # New connections are closed at once.
        self.refusing = False
        self._target = target
        self._chance = random.Random(seed)
        self._flowing = trio.Event()
        self._flowing.set()
        self._to_corrupt = {"up": 0, "down": 0}
        self._connections: set[_Connection] = set()

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry until cancelled; starts with the address."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started(self.address)
        await trio.serve_listeners(self._accept, listeners)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def cut(self) -> None:
        """Break every connection now."""
        for one in list(self._connections):
            one.cut()

    def half_close(self, direction: Direction) -> None:
        """End one direction of every connection."""
        for one in list(self._connections):
            one.half_close(direction)

    def stall(self) -> None:
        """Carry nothing more; nobody is told."""
        if self._flowing.is_set():
            self._flowing = trio.Event()

    def flow(self) -> None:
        """Carry again, what was held back first."""
        self._flowing.set()

    def corrupt(self, direction: Direction, chunks: int = 1) -> None:
        """Change one byte in each of the next chunks."""
        self._to_corrupt[direction] = chunks

    def heal(self) -> None:
        """Be a good network again; connections stay as they are."""
        self.delay, self.refusing = 0.0, False
        self._to_corrupt = {"up": 0, "down": 0}
        self.flow()

    async def carry(self, data: bytes, direction: Direction) -> bytes:
        """What arrives of a chunk, when it arrives."""
        await self._flowing.wait()
        if self.delay:
            await trio.sleep(self.delay)
        if self._to_corrupt[direction]:
            self._to_corrupt[direction] -= 1
            place = self._chance.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        return data

    async def _accept(self, client: trio.SocketStream) -> None:
        if self.refusing:
            await client.aclose()
            return
        host, _, port = self._target().rpartition(":")
        try:
            server = await trio.open_tcp_stream(host, int(port))
        except OSError:
            await client.aclose()
            return
        async with client, server:
            one = _Connection(self, client, server)
            self._connections.add(one)
            try:
                await one.run()
            finally:
                self._connections.discard(one)
