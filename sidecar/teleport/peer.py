"""Where a connection of the preflight goes, and its first steps: the address, its name, and the socket."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import msgspec
import trio

from sidecar.teleport.findings import API_DOMAIN, Failed, Finding, found

_DEFAULT_PORT = 3025


class Peer(msgspec.Struct, frozen=True):
    """Where to connect, the name to ask for, the ALPN names to offer, and the seconds each step may take."""

    addr: str
    host: str
    port: int
    server_name: str
    seconds: float
    alpn: tuple[str, ...] = ("h2",)

    @property
    def is_proxy(self) -> bool:
        return len(self.alpn) > 1


def peer_at(addr: str, verify: str, seconds: float) -> Peer:
    host, port = _split(addr)
    return Peer(addr, host, port, API_DOMAIN if verify == "cluster" else host, seconds)


def through_proxy(peer: Peer, cluster: str) -> Peer:
    """The Auth Service behind a Proxy. There is only its own name to ask for; the host is the Proxy's."""
    route = f"teleport-auth@{cluster.encode().hex()}.{API_DOMAIN}"
    if len(route) > 255:
        raise Failed(found("proxy.cluster_name", peer.addr))
    return msgspec.structs.replace(peer, server_name=API_DOMAIN, alpn=(route, "h2"))


def _split(addr: str) -> tuple[str, int]:
    host, colon, port = addr.rpartition(":")
    if not colon or addr.endswith("]"):
        host, port = addr, str(_DEFAULT_PORT)
    if not host or "/" in addr or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Failed(found("address.invalid", addr))
    return host.removeprefix("[").removesuffix("]"), int(port)


@contextmanager
def step(name: Literal["resolve", "connect", "handshake", "client"], peer: Peer) -> Iterator[None]:
    try:
        with trio.fail_after(peer.seconds):
            yield
    except trio.TooSlowError as exc:
        raise Failed(found(f"{name}.timeout", peer.addr, seconds=peer.seconds)) from exc


@asynccontextmanager
async def connect(peer: Peer) -> AsyncIterator[trio.SocketStream]:
    async with await open_socket(peer) as raw:
        yield raw


async def open_socket(peer: Peer) -> trio.SocketStream:
    try:
        with step("resolve", peer):
            await trio.socket.getaddrinfo(peer.host, peer.port)
    except OSError as exc:
        raise Failed(found("resolve.unknown_name", peer.addr, host=peer.host, why=exc.strerror)) from exc
    try:
        with step("connect", peer):
            return await trio.open_tcp_stream(peer.host, peer.port)
    except OSError as exc:
        raise Failed(_not_connected(peer, exc)) from exc


def _not_connected(peer: Peer, exc: OSError) -> Finding:
    # trio tries every address of the name and groups the reasons.
    reasons = exc.__cause__.exceptions if isinstance(exc.__cause__, ExceptionGroup) else (exc,)
    numbers = {getattr(reason, "errno", None) or 0 for reason in reasons}
    cause = "refused" if numbers == {errno.ECONNREFUSED} else "unreachable"
    return found(f"connect.{cause}", peer.addr, why=", ".join(sorted(map(os.strerror, numbers))))
