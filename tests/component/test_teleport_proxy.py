"""The way through a Proxy: found out, judged like a direct one, lent to grpcio once, and gone when it is over."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from msgspec.structs import replace

from sidecar.errors import LinkError, LinkLost, LinkRefused
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.teleport.pki import ClusterPki, PrivateKey, general_name, write_files
from sidecar.simulator.teleport.proxy import Kind, ProxyServer
from sidecar.teleport.client import AuthClient, open_client
from sidecar.teleport.connect import Connector
from sidecar.teleport.credentials import Credentials, read_credentials
from sidecar.teleport.findings import Finding
from sidecar.teleport.identity import split_identity
from sidecar.teleport.pb import teleport_pb2 as pb
from sidecar.teleport.splice import splice
from tests.proxy import Proxy
from tests.teleport_peer import CLUSTER, PATIENCE, Context, client_threads, descriptors, serve, serve_openssl
from tests.teleport_peer import credentials as peer_credentials

USE_AUTH_PORT = (
    "Set addr in [teleport] to the address of the Auth Service; its port is 3025 unless auth_service.listen_addr says "
    "otherwise."
)


class Room:
    def __init__(self, auth: AuthServer, proxy: ProxyServer, nursery: trio.Nursery, folder: Path) -> None:
        files = auth.write_credentials(folder, "access-plugin")
        self.auth, self.proxy, self.nursery = auth, proxy, nursery
        self.credentials = read_credentials(files.crt, files.key, files.cas)
        self.ca_file = folder / "proxy-ca.pem"
        self.ca_file.write_bytes(proxy.ca_pem)
        self.connector = Connector(nursery, proxy.addr, proxy_ca_file=self.ca_file)

    async def look(self, credentials: Credentials | None = None) -> list[Finding]:
        """What the preflight finds about the way."""
        shown = credentials or self.credentials
        found = await self.connector.preflight(shown, verify="cluster", now=time.time(), step_seconds=2)
        return [one for one in found if one.id.split(".")[1] not in ("certificate", "key", "authorities")]

    @asynccontextmanager
    async def client(self, credentials: Credentials | None = None) -> AsyncIterator[AuthClient]:
        await self.look()
        async with self.connector.open(credentials or self.credentials) as client:
            yield client


@asynccontextmanager
async def room(folder: Path, **proxy: Any) -> AsyncIterator[Room]:
    with trio.fail_after(30), AuthServer.dual_authorization(version="18.0.0") as auth:
        async with trio.open_nursery() as nursery:
            server = ProxyServer(lambda: auth.addr, user_ca=auth.pki.user_ca.pem, **proxy)
            await nursery.start(server.serve)
            yield Room(auth, server, nursery, folder)
            nursery.cancel_scope.cancel()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Room]:
    async with room(tmp_path) as one:
        yield one


# Found out


async def test_a_proxy_is_found_out_and_passed_through(tmp_path: Path) -> None:
    """Each hop has its time. The second look asks the Proxy first."""
    async with room(tmp_path, public_addr="teleport.example.com:443") as here:
        assert (here.connector.way, here.connector.web_addr) == ("direct", "")
        for _ in range(2):
            proxy, way, handshake, server, client = await here.look()
            assert proxy.message.startswith(
                f"{here.proxy.addr} is the Proxy of cluster example.com (Teleport 18.0.0), with TLS routing: "
                "/webapi/ping took "
            )
            assert way.message.startswith("The Auth Service is reached through the Proxy: TCP with the Proxy took ")
            assert " ms, TLS with the Auth Service " in way.message
            assert [one.id for one in (proxy, way, handshake, server, client)] == [
                *("teleport.proxy", "teleport.way", "teleport.handshake", "teleport.server", "teleport.client")
            ]
            assert {one.status for one in (proxy, way, handshake, server, client)} == {"ok"}
        assert (here.connector.way, here.connector.web_addr) == ("proxy", "teleport.example.com:443")
        assert here.proxy.passed == 2


async def test_a_proxy_learns_nothing_but_the_question(here: Room) -> None:
    async with here.client() as client:
        await client.ping()
    question = f"GET /webapi/ping HTTP/1.0\r\nHost: {here.proxy.addr}\r\n\r\n".encode()
    assert set(here.proxy.requests) == {question}
    assert here.proxy.client_certificates == []
    assert here.connector.web_addr == here.proxy.addr


async def test_an_auth_service_is_reached_directly(here: Room) -> None:
    here.connector = Connector(here.nursery, here.auth.addr)
    way, *_ = await here.look()
    assert way.message.startswith("The Auth Service is reached directly: TCP with the Auth Service took ")
    assert here.connector.way == "direct"


async def test_a_proxy_that_became_an_auth_service_is_met_directly(here: Room) -> None:
    """And the other way round: the address is looked at anew each time."""
    there = {"addr": here.proxy.addr}
    async with forwarding(lambda: there["addr"]) as addr:
        here.connector = Connector(here.nursery, addr, proxy_ca_file=here.ca_file)
        for server, way in ((here.proxy, "proxy"), (here.auth, "direct"), (here.proxy, "proxy")):
            there["addr"] = server.addr
            assert (await here.look())[-1].id == "teleport.client"
            assert here.connector.way == way


@asynccontextmanager
async def forwarding(target: Callable[[], str]) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(Proxy(target).serve)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["load_balancer", "strips_alpn", "http1_only"])
async def test_something_before_the_proxy_ends_tls(tmp_path: Path, kind: Kind) -> None:
    async with room(tmp_path, kind=kind) as here:
        *_, last = await here.look()
        assert last == Finding(
            "teleport.proxy.terminated",
            "failure",
            here.proxy.addr,
            f"{here.proxy.addr} is the Proxy of a Teleport cluster, but something before it ends TLS and strips ALPN, "
            "as a load balancer does: what was meant for the Auth Service did not get there.",
            "Let it pass TCP through (layer 4), or set addr in [teleport] to an address of the Proxy, or of the Auth "
            "Service, that is reached without it.",
        )
        with pytest.raises(LinkRefused) as refused:
            async with here.connector.open(here.credentials):
                pass
        assert refused.value.reason == "tls"
        assert here.auth.calls == {}


async def test_a_proxy_without_tls_routing(tmp_path: Path) -> None:
    async with room(tmp_path, kind="no_routing", version="7.3.2") as here:
        assert await here.look() == [
            Finding(
                "teleport.proxy.no_tls_routing",
                "failure",
                here.proxy.addr,
                f"{here.proxy.addr} is the Proxy of cluster example.com (Teleport 7.3.2), without TLS routing: it "
                "leads to the Auth Service through SSH alone, which is not spoken here.",
                f"{USE_AUTH_PORT} Or switch TLS routing on (Teleport 8 and newer), in /etc/teleport.yaml there:\n"
                "auth_service:\n  proxy_listener_mode: multiplex",
            )
        ]


async def test_a_proxy_of_another_cluster(tmp_path: Path) -> None:
    async with room(tmp_path, cluster="other.example.com") as here:
        (finding,) = await here.look()
        assert finding.id == "teleport.proxy.other_cluster"
        assert finding.message == (
            f"{here.proxy.addr} is the Proxy of cluster other.example.com (Teleport 18.0.0); our certificate is of "
            "cluster example.com."
        )
        assert here.proxy.passed == 0


async def test_a_proxy_that_nobody_vouches_for(here: Room) -> None:
    here.connector = Connector(here.nursery, here.proxy.addr)
    (finding,) = await here.look()
    assert finding == Finding(
        "teleport.proxy.untrusted",
        "failure",
        here.proxy.addr,
        f"{here.proxy.addr} is the Proxy of a Teleport cluster, but its certificate is not trusted: unable to get "
        "local issuer certificate.",
        f"Set proxy_ca_file in [teleport] to the CA that signed it. Or: s{USE_AUTH_PORT[1:]}",
    )


@pytest.mark.parametrize("content", [None, b"", b"nonsense"], ids=["missing", "empty", "nonsense"])
async def test_a_ca_file_that_cannot_be_used(here: Room, content: bytes | None) -> None:
    here.ca_file.unlink()
    if content is not None:
        here.ca_file.write_bytes(content)
    (finding,) = await here.look()
    assert (finding.id, finding.subject) == ("teleport.proxy.ca_file", str(here.ca_file))
    assert finding.fix == "Correct proxy_ca_file in [teleport]: a PEM file with the authority's certificate."


async def test_a_lost_leg_is_named(here: Room) -> None:
    await here.look()
    here.proxy.auth_is_away = True
    *_, last = await here.look()
    assert last == Finding(
        "teleport.handshake.closed",
        "failure",
        here.proxy.addr,
        f"{here.proxy.addr} closed the connection during the TLS handshake. It is a Proxy that does not reach its "
        "Auth Service.",
        "Is the Auth Service running? Look at the log of the Proxy Service.",
    )
    with pytest.raises(LinkLost, match="does not reach its Auth Service") as lost:
        async with here.connector.open(here.credentials):
            pass
    assert lost.value.reason == "unreachable"
    here.proxy.stop()
    await trio.testing.wait_all_tasks_blocked(0.01)
    (last,) = await here.look()
    assert (last.id, last.message, last.fix) == (
        "teleport.connect.refused",
        f"Nothing is listening on {here.proxy.addr}. It is the address of a Proxy.",
        "Is the Proxy Service running, and is this its address?",
    )


async def test_what_was_a_proxy_is_another_web_site(here: Room) -> None:
    await here.look()
    here.proxy.is_other_site = True
    (finding,) = await here.look()
    assert finding.id == "teleport.server.not_auth"
    assert here.connector.way == "direct"


async def test_a_cluster_whose_name_is_too_long_for_the_way(tmp_path: Path) -> None:
    """A host name may be longer than what fits twice into 255 bytes."""
    cluster = ".".join(["cluster"] * 16)
    async with room(tmp_path, cluster=cluster) as here:
        shown = here.auth.pki.user_certificate("access-plugin", [], cluster=cluster)
        own = replace(here.credentials, certificate=shown.certificate, key=shown.key)
        *_, last = await here.look(own)
        assert last.id == "teleport.proxy.cluster_name"
        assert last.fix == USE_AUTH_PORT


async def test_a_server_that_wants_to_hear_us_first(tmp_path: Path) -> None:
    """Grpcio speaks then, and nothing is said before it in its name."""
    pki = ClusterPki(CLUSTER)
    issued = pki.user_certificate("access-plugin", [])
    files = write_files(tmp_path, pki.server_certificate(), pki.user_ca.pem, name="server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.crt, files.key)
    context.set_alpn_protocols(["h2"])
    heard: list[bytes] = []

    async def waits(raw: trio.SocketStream) -> None:
        async with trio.SSLStream(raw, context, server_side=True) as tls:
            heard.append(bytes(await tls.receive_some()))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, waits, 0, host="127.0.0.1"))
            proxy = ProxyServer(lambda: f"127.0.0.1:{listener.socket.getsockname()[1]}")
            await nursery.start(proxy.serve)
            shown = Credentials(issued.certificate, issued.key, pki.host_ca.pem)
            async with open_client(proxy.addr, shown, through=nursery) as client:
                with pytest.raises(LinkLost):
                    await client.ping()
            nursery.cancel_scope.cancel()
    assert heard[0].startswith(b"PRI * HTTP/2.0")
    assert b"/proto.AuthService" not in heard[0]


# Judged like a direct one


@pytest.mark.parametrize("whose", ["leaf", "unpinned", "not auth"])
async def test_another_server_behind_the_proxy_is_not_believed(here: Room, whose: str) -> None:
    """The Proxy, or whoever stands in its place, may pass us on to anybody."""
    await here.look()
    leaf = ClusterPki("leaf.example.com") if whose == "leaf" else here.auth.pki
    shown = here.credentials
    if whose == "leaf":
        shown = replace(shown, authorities=shown.authorities + leaf.host_ca.pem)
    elif whose == "unpinned":
        shown = replace(shown, ca_pins=("sha256:00",))
    here.auth.stop()
    here.auth.certificate = leaf.server_certificate()
    if whose == "not auth":
        here.auth.certificate = leaf.host_ca.issue(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "p")]), names=[general_name("proxy.internal")]
        )
    here.auth.start()
    with pytest.raises(LinkRefused) as refused:
        async with here.connector.open(shown):
            pass
    assert refused.value.reason == ("credentials" if whose == "unpinned" else "tls")
    assert here.auth.calls == {}


async def test_the_auth_service_does_not_take_us(here: Room) -> None:
    """In TLS 1.3 that comes after the handshake, and grpcio would only say that the connection was lost."""
    await here.look()
    stranger = ClusterPki(CLUSTER).user_certificate("access-plugin", [])
    shown = replace(here.credentials, certificate=stranger.certificate, key=stranger.key)
    *_, last = await here.look(shown)
    assert last.id.startswith("teleport.client.")
    with pytest.raises(LinkError) as refused:
        async with here.connector.open(shown):
            pass
    assert refused.value.detail.startswith(last.message)


KEYS: dict[str, Callable[[], PrivateKey]] = {
    "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("way", ["proxy", "direct"])
@pytest.mark.parametrize("key", KEYS)
async def test_identity_files_of_every_kind(tmp_path: Path, key: str, way: str) -> None:
    """Grpcio's own servers do not take Ed25519, Go's do."""
    pki = ClusterPki(CLUSTER)
    issued = pki.user_certificate("access-plugin", ["access-plugin"], key=KEYS[key]())
    ssh = b"ssh-ed25519-cert-v01@openssh.com AAAA\n", b"@cert-authority example.com ssh-rsa AAAA type=host\n"
    shown = split_identity(issued.key + ssh[0] + issued.certificate + ssh[1] + pki.host_ca.pem)
    with trio.fail_after(30):
        async with serve_openssl(pki, tmp_path) as peer, trio.open_nursery() as nursery:
            proxy = ProxyServer(lambda: peer.addr)
            await nursery.start(proxy.serve)
            (tmp_path / "ca").write_bytes(proxy.ca_pem)
            addr = proxy.addr if way == "proxy" else peer.addr
            connector = Connector(nursery, addr, proxy_ca_file=tmp_path / "ca")
            found = await connector.preflight(shown, verify="cluster", now=time.time())
            assert found[-1].id == "teleport.client"
            async with connector.open(shown) as client:
                assert (await client.ping()).cluster == CLUSTER
            assert connector.way == way
            nursery.cancel_scope.cancel()


# Lent to grpcio, once


async def test_calls_and_watches(here: Room) -> None:
    async with here.client() as client:
        await client.ping()
        async with client.watch() as events:
            request_id = here.auth.create_request("bob@example.com", ["dbadmin"])
            async for event in events:
                assert event.request.id == request_id  # type: ignore[union-attr]
                break
        assert await client.get_request(request_id) is not None
        assert list(await client.list_plugin_data()) == []
        assert not client.over


async def test_a_lost_connection_is_a_lost_link(here: Room) -> None:
    """Grpcio would open another one, to whoever answers there by then."""
    async with here.client() as client:
        await client.ping()
        passed = here.proxy.passed
        async with client.watch() as events:
            here.proxy.cut()
            with pytest.raises(LinkLost):
                await anext(aiter(events))
        for _ in range(3):
            with pytest.raises(LinkLost) as lost:
                await client.update_plugin_data("r1", {}, {})
            assert not lost.value.ambiguous
        assert client.over
        assert here.proxy.passed == passed


async def test_only_this_process_may_come_in(tmp_path: Path) -> None:
    script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + sys.argv[1]); print(s.recv(1))"
    async with trio.open_nursery() as nursery:
        ours, theirs = socket.socketpair()
        near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in (ours, theirs))
        with trio.fail_after(PATIENCE):
            async with far, splice(nursery, near, b"first") as one:
                name = one.target.removeprefix("unix-abstract:")
                stranger = await trio.run_process([sys.executable, "-c", script, name], capture_stdout=True)
                assert stranger.stdout == b"b''\n"
                local = trio.socket.socket(socket.AF_UNIX)
                await local.connect(f"\0{name}")
                async with trio.SocketStream(local) as stream:
                    assert await stream.receive_some() == b"first"
                    await stream.send_all(b"hello")
                    assert await far.receive_some() == b"hello"
                    again = trio.socket.socket(socket.AF_UNIX)
                    with again, pytest.raises(ConnectionRefusedError):
                        await again.connect(f"\0{name}")
                assert await far.receive_some() == b""
                assert one.over


async def test_who_does_not_read_holds_the_server_back(tmp_path: Path) -> None:
    sent = 0

    def endless(_request: bytes, context: Context) -> Iterator[bytes]:
        nonlocal sent
        yield pb.Event(Type=pb.INIT).SerializeToString()
        spec = pb.AccessRequestSpecV3(RequestReason=b"x" * 100_000)
        large = pb.AccessRequestV3(Metadata=pb.Metadata(Name=b"r1"), Spec=spec)
        while context.is_active():
            sent += 1
            yield pb.Event(Type=pb.PUT, AccessRequest=large).SerializeToString()

    with serve() as peer:
        peer.streams["WatchEvents"] = endless
        async with trio.open_nursery() as nursery:
            proxy = ProxyServer(lambda: peer.addr)
            await nursery.start(proxy.serve)
            async with (
                open_client(proxy.addr, peer_credentials(), through=nursery) as client,
                client.watch() as events,
            ):
                before = -1
                with trio.fail_after(PATIENCE):
                    while sent != before:
                        before = sent
                        await trio.sleep(0.3)
                # The window of the stream, and what the sockets on the way hold.
                assert sent < 1_000
                async for _ in events:
                    if sent > before + 100:
                        break
            nursery.cancel_scope.cancel()


# Gone when it is over


async def test_nothing_is_left(here: Room) -> None:
    """Ended, cut, refused or cancelled at any step, there are as many tasks, threads and descriptors as before."""

    async def use() -> None:
        async with here.client() as client, client.watch():
            await client.ping()

    async def cancelled_after(steps: int) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

    async def cut() -> None:
        async with here.client() as client:
            here.proxy.cut()
            with pytest.raises(LinkLost):
                await client.ping()

    async def settled() -> tuple[int, int, int]:
        with trio.move_on_after(PATIENCE):
            while here.proxy.connections or here.auth.watchers:  # noqa: ASYNC110 - threads tell nobody
                await trio.sleep(0.01)
        await trio.sleep(0.3)  # grpcio's core closes its sockets in threads of its own
        tasks = trio.lowlevel.current_statistics().tasks_living
        return tasks, len(client_threads()), descriptors()

    await use()
    before = await settled()
    for steps in range(0, 400, 20):
        await use()
        await cut()
        await cancelled_after(steps)
    assert await settled() <= before


async def test_out_of_descriptors_it_is_a_lost_link(here: Room) -> None:
    """At whichever step they run out, nothing but this connection is lost, and there is one later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    await here.look()
    async with here.connector.open(here.credentials) as client:
        await client.ping()
    for free in range(8):
        with ExitStack() as stack:
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            taken = take_all()
            for one in taken[:free]:
                os.close(one)
            for one in taken[free:]:
                stack.callback(os.close, one)
            with suppress(LinkLost):
                async with here.connector.open(here.credentials) as client:
                    await client.ping()
    async with here.connector.open(here.credentials) as client:
        await client.ping()


def take_all() -> list[int]:
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    return taken


async def test_it_may_be_closed_from_another_task(here: Room) -> None:
    """As the link closes the connection of before, whose calls may still end."""
    await here.look()
    stack = AsyncExitStack()
    client = await stack.enter_async_context(here.connector.open(here.credentials))
    await client.ping()
    here.nursery.start_soon(stack.aclose)
    while not client.over:  # noqa: ASYNC110 - only its own task is told
        await trio.sleep(0.01)
