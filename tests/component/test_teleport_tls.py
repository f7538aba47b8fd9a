"""What fails in the handshake is told apart, over real TLS."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
import trustme

from sidecar.errors import LinkRefused
from sidecar.model import Ping
from sidecar.teleport.client import Credentials, open_client
from tests.teleport_peer import NAME, authority, connect, credentials, serve

_PAST = datetime(2020, 1, 1, tzinfo=UTC)


async def _refusal(addr: str, shown: Credentials, **options: Any) -> str:
    async with open_client(addr, shown, **options) as client:
        with pytest.raises(LinkRefused) as caught:
            await client.ping()
    assert caught.value.reason == "tls"
    return caught.value.detail


async def test_stock_certificate_without_localhost_is_accepted() -> None:
    """A stock Auth Service bears teleport.cluster.local and no address; that is what we expect of it."""
    with serve(NAME) as peer:
        peer.unary["Ping"] = lambda _request, _context: b""
        async with connect(peer) as client:
            assert await client.ping() == Ping("", "")


async def test_hostname_mode_checks_the_dialled_address() -> None:
    with serve(NAME) as peer:
        assert "does not bear the expected name" in await _refusal(peer.addr, credentials(), server_name=None)
    with serve("127.0.0.1") as peer:
        peer.unary["Ping"] = lambda _request, _context: b""
        async with connect(peer, server_name=None) as client:
            assert await client.ping() == Ping("", "")


async def test_server_of_another_authority() -> None:
    with serve(ca=trustme.CA()) as peer:
        assert "not signed by an authority in our CA file" in await _refusal(peer.addr, credentials())


async def test_expired_server() -> None:
    with serve(not_before=_PAST, not_after=_PAST.replace(year=2021)) as peer:
        assert "the certificate of the Auth Service has expired" in await _refusal(peer.addr, credentials())


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param({"ca": trustme.CA()}, id="foreign"),
        pytest.param({"not_before": _PAST, "not_after": _PAST.replace(year=2021)}, id="expired"),
    ],
)
async def test_client_certificate_that_the_server_does_not_accept(shown: dict[str, Any]) -> None:
    """In TLS 1.3 it is refused after the handshake, by an alert that grpcio hides and its own server never sends."""
    async with _serving(_refusing) as addr:
        assert "does not accept our client certificate" in await _refusal(addr, credentials(**shown))


async def _refusing(stream: trio.SocketStream) -> None:
    """Shake hands as Go does: the alert is sent, and the connection closed once the client has read it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert(NAME).configure_cert(context)
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    arrived, answer = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(arrived, answer, server_side=True)
    async for data in stream:
        arrived.write(data)
        with contextlib.suppress(ssl.SSLError):
            server.do_handshake()
        await stream.send_all(answer.read())


@asynccontextmanager
async def _serving(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("broken", ["certificate", "key", "authorities"])
async def test_damaged_or_mismatched_files(broken: str) -> None:
    good, other = credentials(), credentials(ca=authority())
    parts = {name: getattr(good, name) for name in ("certificate", "key", "authorities")}
    parts[broken] = b"-----BEGIN NONSENSE-----" if broken == "authorities" else getattr(other, broken)
    with serve() as peer:
        assert "cannot be used" in await _refusal(peer.addr, Credentials(**parts))


async def test_port_without_tls() -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with _serving(http) as addr:
        assert "does not speak TLS" in await _refusal(addr, credentials())
