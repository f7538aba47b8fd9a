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
from msgspec.structs import replace

from sidecar.errors import LinkRefused
from sidecar.model import Ping
from sidecar.teleport.client import Credentials, open_client
from sidecar.teleport.pb import teleport_pb2 as pb
from sidecar.teleport.x509 import read_certificate
from tests.proxy import Proxy
from tests.teleport_peer import CLUSTER, NAME, PATIENCE, authority, connect, credentials, other_authority, serve

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
        async with connect(peer) as client:
            assert await client.ping() == Ping(CLUSTER, "")


async def test_hostname_mode_checks_the_dialled_address() -> None:
    with serve(NAME) as peer:
        assert "does not bear the expected name" in await _refusal(peer.addr, credentials(), server_name=None)
    with serve("127.0.0.1") as peer:
        async with connect(peer, server_name=None) as client:
            assert await client.ping() == Ping(CLUSTER, "")


async def test_server_of_another_authority() -> None:
    with serve(ca=other_authority()) as peer:
        assert "not signed by an authority in our CA file" in await _refusal(peer.addr, credentials())


async def test_expired_server() -> None:
    with serve(not_before=_PAST, not_after=_PAST.replace(year=2021)) as peer:
        assert "the certificate of the Auth Service has expired" in await _refusal(peer.addr, credentials())


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param({"ca": other_authority()}, id="foreign"),
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


async def test_a_server_of_a_leaf_cluster_is_not_ours() -> None:
    """The CA file holds the CAs of trusted leaf clusters, too: each connection is judged, not only the preflight's."""
    leaf = trustme.CA(organization_name="leaf.example.com")
    with serve(ca=leaf) as peer:
        shown = credentials()
        both = replace(shown, authorities=shown.authorities + leaf.cert_pem.bytes())
        assert "not signed by an authority in our CA file" in await _refusal(peer.addr, both)
        assert peer.calls == []


async def test_pins_narrow_the_authorities_further() -> None:
    shown, stranger = credentials(), other_authority()
    both = shown.authorities + stranger.cert_pem.bytes()
    pin = f"sha256:{read_certificate(shown.authorities).spki_sha256}"
    with serve() as peer:
        async with open_client(peer.addr, replace(shown, authorities=both, ca_pins=("sha256:00", pin))) as client:
            await client.ping()
    with serve(ca=stranger) as peer:
        async with open_client(peer.addr, replace(shown, authorities=both)) as client:
            await client.ping()
        pinned = replace(shown, authorities=both, ca_pins=(pin,))
        assert "not signed by an authority in our CA file" in await _refusal(peer.addr, pinned)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"authorities": b"-----BEGIN NONSENSE-----"}, id="none"),
        pytest.param({"authorities": trustme.CA().cert_pem.bytes()}, id="another cluster's"),
        pytest.param({"authorities": credentials().certificate}, id="no CA"),
        pytest.param({"ca_pins": ("sha256:00",)}, id="not pinned"),
        pytest.param({"certificate": b""}, id="no certificate"),
    ],
)
async def test_without_a_ca_of_our_own_nobody_is_called(changes: dict[str, Any]) -> None:
    """Grpcio would take the system's authorities."""
    with pytest.raises(LinkRefused) as caught:
        async with open_client("127.0.0.1:1", replace(credentials(), **changes)):
            pass
    assert caught.value.reason == "credentials"


async def test_a_server_that_says_it_is_of_another_cluster() -> None:
    other = pb.PingResponse(ClusterName=b"other.example.com").SerializeToString()
    with serve() as peer:
        peer.unary["Ping"] = lambda _request, _context: other
        async with connect(peer) as client:
            for call in (client.ping, client.meet, client.list_plugin_data):
                with pytest.raises(LinkRefused, match=r"cluster other\.example\.com, we are of example\.com") as caught:
                    await call()
                assert caught.value.reason == "tls"
        assert {method for method, _ in peer.calls} == {"Ping"}


async def test_a_server_is_met_again_on_each_new_connection() -> None:
    with serve() as peer:
        async with trio.open_nursery() as nursery:
            network = Proxy(lambda: peer.addr)
            addr = await nursery.start(network.serve)
            async with open_client(addr, credentials()) as client:
                for count in (1, 2):
                    for _ in range(3):
                        await client.meet()
                    assert [method for method, _ in peer.calls] == ["Ping"] * count
                    network.cut()
                    with trio.fail_after(PATIENCE):
                        while await client._channel.is_connected():  # noqa: ASYNC110 - grpcio's core tells nobody
                            await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("broken", ["certificate", "key"])
async def test_damaged_or_mismatched_files(broken: str) -> None:
    good, other = credentials(), credentials(ca=authority())
    parts = {name: getattr(good, name) for name in ("certificate", "key", "authorities")}
    parts[broken] = getattr(other, broken)
    with serve() as peer:
        assert "cannot be used" in await _refusal(peer.addr, Credentials(**parts))


async def test_port_without_tls() -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with _serving(http) as addr:
        assert "does not speak TLS" in await _refusal(addr, credentials())
