"""The preflight against real ports: each way to fail has a sentence of its own, and the operator reads it whole."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sidecar.simulator.teleport.pki import API_DOMAIN, Authority, ClusterPki, Issued, write_files
from sidecar.teleport.credentials import Credentials
from sidecar.teleport.findings import Finding
from sidecar.teleport.tls import preflight
from tests.golden import Golden

# OpenSSL judges by the real clock, our sentences by this one; the dates below suit both for decades.
NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
NOW = NOON.timestamp()
SINCE, UNTIL = dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2090, 1, 1, tzinfo=dt.UTC)
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"

cluster = ClusterPki("example.com")
other = ClusterPki("other.example.com")

Handler = Callable[[trio.SocketStream], Awaitable[None]]


def ours(ca: Authority = cluster.user_ca, *, since: dt.datetime = SINCE, until: dt.datetime = UNTIL) -> Issued:
    return cluster.user_certificate("access-plugin", ["auditor"], authority=ca, not_before=since, not_after=until)


def credentials(issued: Issued | None = None, authorities: bytes = cluster.host_ca.pem) -> Credentials:
    issued = issued or ours()
    return Credentials(issued.certificate, issued.key, authorities)


def server_certificate(*public_addr: str, pki: ClusterPki = cluster) -> Issued:
    return pki.server_certificate(public_addr=public_addr, not_before=SINCE, not_after=UNTIL)


def bare_certificate(authority: Authority, *names: x509.GeneralName) -> Issued:
    """A server certificate without teleport.cluster.local."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bare")])
    return authority.issue(subject, names=names, not_before=SINCE, not_after=UNTIL)


def context(folder: Path, issued: Issued | None = None, *, trust: Authority = cluster.user_ca) -> ssl.SSLContext:
    """As an Auth Service: h2, and a client certificate is verified if given."""
    files = write_files(folder, issued or server_certificate("127.0.0.1"), trust.pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.crt, files.key)
    server.load_verify_locations(files.cas)
    server.verify_mode = ssl.CERT_OPTIONAL
    server.set_alpn_protocols(["h2", "http/1.1"])
    return server


class Tls:
    """The server's side of TLS. trio's own keeps back the alert of a failed handshake, and the alert is the point."""

    def __init__(self, stream: trio.SocketStream, server: ssl.SSLContext) -> None:
        self.stream = stream
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = server.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def shake(self) -> bool:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                self.incoming.write(await self.stream.receive_some())
            except ssl.SSLError:
                await self.flush()
                return False
            else:
                await self.flush()
                return True

    async def send(self, data: bytes) -> None:
        self.tls.write(data)
        await self.flush()

    async def receive(self) -> bytes:
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                data = await self.stream.receive_some()
                if not data:
                    return b""
                self.incoming.write(data)

    async def flush(self) -> None:
        if self.outgoing.pending:
            await self.stream.send_all(self.outgoing.read())


async def drain(stream: trio.SocketStream) -> None:
    """Wait until the client is gone, so that nothing of ours is lost in a reset."""
    async for _ in stream:
        pass


async def auth_service(server: ssl.SSLContext, stream: trio.SocketStream) -> None:
    """Speak first, as grpc-go does: its SETTINGS come without waiting for ours."""
    tls = Tls(stream, server)
    if await tls.shake():
        await tls.send(SETTINGS)
    await drain(stream)


def says(answer: bytes) -> Handler:
    """A port without TLS that answers this to whatever comes first."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.send_eof()
        await drain(stream)

    return handler


@asynccontextmanager
async def serve(handler: Handler) -> AsyncIterator[str]:
    async def polite(stream: trio.SocketStream) -> None:
        # The client may leave at any moment, which is its right.
        try:
            await handler(stream)
        except (trio.BrokenResourceError, ssl.SSLError):
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        addr = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, polite, [listener])  # noqa: ASYNC113 - the port is open before; who connects waits for it
        yield addr
        nursery.cancel_scope.cancel()


async def findings(
    addr: str, shown: Credentials | None = None, *, verify: str = "cluster", now: float = NOW, step_seconds: float = 10
) -> list[Finding]:
    """What the preflight says beyond the three findings about the credentials themselves."""
    found, _ = await preflight(addr, shown or credentials(), verify=verify, now=now, step_seconds=step_seconds)
    # The times in the way's sentence are nobody's to foresee.
    known = ("certificate", "key", "authorities", "way")
    return [finding for finding in found if finding.id.split(".")[1] not in known]


async def meet(
    handler: Handler, shown: Credentials | None = None, *, now: float = NOW, step_seconds: float = 10
) -> Finding:
    """The last finding about a port."""
    async with serve(handler) as addr:
        return (await findings(addr, shown, now=now, step_seconds=step_seconds))[-1]


# It works


async def test_everything_is_well(tmp_path: Path, golden: Golden) -> None:
    async with serve(partial(auth_service, context(tmp_path))) as addr:
        golden(await findings(addr))


async def test_a_server_that_wants_to_hear_us_first(tmp_path: Path, golden: Golden) -> None:
    """The preface is sent only after a silence, and it is a correct one."""
    server = context(tmp_path)
    heard = []

    async def handler(stream: trio.SocketStream) -> None:
        tls = Tls(stream, server)
        await tls.shake()
        heard.append(await tls.receive())
        await tls.send(SETTINGS)
        await drain(stream)

    golden(await meet(handler, step_seconds=2))
    assert heard == [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS]


@pytest.mark.parametrize("rsa_keys", [False, True], ids=["p256", "rsa"])
async def test_tls_1_2(tmp_path: Path, rsa_keys: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Old servers, and the keys of old and of new clusters."""
    pki = ClusterPki("example.com", rsa_keys=rsa_keys)
    server = context(tmp_path, server_certificate(pki=pki), trust=pki.user_ca)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serve(partial(auth_service, server)) as addr:
        handshake, *_, client = await findings(addr, credentials(ours(pki.user_ca), pki.host_ca.pem))
    assert handshake.message == f"{addr} speaks TLSv1.2 and HTTP/2."
    assert client.status == "ok"


@pytest.mark.parametrize(("verify", "asked"), [("cluster", API_DOMAIN), ("hostname", "localhost")])
async def test_the_name_we_ask_for(tmp_path: Path, verify: str, asked: str) -> None:
    """Teleport chooses the CAs that it trusts by this name, so it must be the one that the link will send."""
    server, seen = context(tmp_path, server_certificate("localhost")), []
    server.sni_callback = lambda _tls, name, _context: seen.append(name)
    async with serve(partial(auth_service, server)) as addr:
        found = await findings(addr.replace("127.0.0.1", "localhost"), verify=verify)
    assert seen == [asked]
    assert {finding.status for finding in found} == {"ok"}


@pytest.mark.parametrize("foreign", [False, True])
async def test_a_real_grpc_server(tmp_path: Path, foreign: bool) -> None:  # noqa: FBT001 - a parameter of the table
    with grpc_server() as addr:
        issued = ours(other.user_ca) if foreign else ours()
        assert (await findings(addr, credentials(issued)))[-1].status == ("failure" if foreign else "ok")


@contextmanager
def grpc_server() -> Iterator[str]:
    issued = server_certificate()
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        pair = (issued.key, issued.certificate)
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair], cluster.user_ca.pem, require_client_auth=True)
        )
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


# The names in the certificate: a word where we do not need them, a failure where we do


@pytest.mark.parametrize("verify", ["cluster", "hostname"])
@pytest.mark.parametrize(
    ("public_addr", "host"),
    [
        pytest.param((), "127.0.0.1", id="no IP"),
        pytest.param(("auth.example.test", "10.9.8.7"), "127.0.0.1", id="other IP"),
        pytest.param((), "localhost", id="other name"),
    ],
)
async def test_host_is_not_in_the_certificate(
    tmp_path: Path, verify: str, public_addr: tuple[str, ...], host: str, golden: Golden
) -> None:
    async with serve(partial(auth_service, context(tmp_path, server_certificate(*public_addr)))) as served:
        addr = served.replace("127.0.0.1", host)
        *_, names, client = await findings(addr, verify=verify)
    golden(names)
    assert client.status == "ok"


async def test_host_when_there_are_no_names(tmp_path: Path) -> None:
    nameless = bare_certificate(cluster.host_ca, x509.IPAddress(ipaddress.ip_address("10.9.8.7")))
    async with serve(partial(auth_service, context(tmp_path, nameless))) as addr:
        *_, names, _client = await findings(addr.replace("127.0.0.1", "localhost"), verify="hostname")
    assert names.id == "teleport.names.no_names"
    assert names.message == "x509: certificate is not valid for any names, but wanted to match localhost"


# The server is not the one that we trust


async def test_host_ca_that_we_do_not_know(tmp_path: Path, golden: Golden) -> None:
    """The cluster was built anew, or its Host CA was rotated: the same name, another key."""
    golden(
        await meet(
            partial(auth_service, context(tmp_path)), credentials(authorities=ClusterPki("example.com").host_ca.pem)
        )
    )


async def test_untrusted_server_of_another_cluster(tmp_path: Path, golden: Golden) -> None:
    golden(await meet(partial(auth_service, context(tmp_path, server_certificate(pki=other)))))


async def test_trusted_server_of_another_cluster(tmp_path: Path) -> None:
    """root_cas also holds the Host CAs of leaf clusters, which vouch for nobody here."""
    server = context(tmp_path, server_certificate(pki=other), trust=other.user_ca)
    both = credentials(authorities=cluster.host_ca.pem + other.host_ca.pem)
    async with serve(partial(auth_service, server)) as addr:
        (judged,) = await findings(addr, both)
    assert judged.id == "teleport.server.other_cluster"


@pytest.mark.parametrize("trusted", [False, True])
async def test_server_that_is_no_auth_service(tmp_path: Path, trusted: bool, golden: Golden) -> None:  # noqa: FBT001 - of the table
    issued = bare_certificate(cluster.host_ca if trusted else other.host_ca, x509.DNSName("www.example.com"))
    server = context(tmp_path, issued)

    async def handler(stream: trio.SocketStream) -> None:
        tls = Tls(stream, server)
        if await tls.shake():
            await tls.send(b"HTTP/1.1 404 Not Found\r\n\r\n")
            with pytest.raises(ssl.SSLWantReadError):
                tls.tls.unwrap()
            await tls.flush()
        await drain(stream)

    async with serve(handler) as addr:
        found = {finding.id: finding for finding in await findings(addr)}
    golden(found["teleport.server.not_auth"])


async def test_proxy_port_instead_of_auth_port(tmp_path: Path, golden: Golden) -> None:
    """A Proxy agrees to h2 and has a certificate of its own; /webapi/ping gives it away, in pieces if need be."""
    server = context(tmp_path, bare_certificate(other.host_ca, x509.DNSName("proxy.example.com")))

    async def proxy(stream: trio.SocketStream) -> None:
        tls = Tls(stream, server)
        if await tls.shake() and (await tls.receive()).startswith(b"GET /webapi/ping HTTP/1.0\r\nHost: 127.0.0.1:"):
            await tls.send(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + b'{"auth":{},"server_ver')
            await tls.send(b'sion":"7.3.2"}')
        await drain(stream)

    golden(await meet(proxy))


async def test_server_that_drops_our_question(tmp_path: Path) -> None:
    """No answer to /webapi/ping is an answer."""
    server = context(tmp_path, bare_certificate(other.host_ca, x509.DNSName("www.example.com")))

    async def handler(stream: trio.SocketStream) -> None:
        if await Tls(stream, server).shake():
            await stream.receive_some()

    finding = await meet(handler)
    assert finding.id == "teleport.server.not_auth"


async def test_expired_server_certificate(tmp_path: Path, golden: Golden) -> None:
    issued = cluster.server_certificate(not_before=SINCE, not_after=SINCE.replace(year=2021))
    golden(await meet(partial(auth_service, context(tmp_path, issued))))


async def test_server_certificate_from_the_future(tmp_path: Path, golden: Golden) -> None:
    """Our clock is behind: nothing else makes a new cluster's certificate "not yet valid"."""
    issued = cluster.server_certificate(not_before=UNTIL, not_after=UNTIL.replace(year=2091))
    golden(await meet(partial(auth_service, context(tmp_path, issued))))


def _for_clients_only() -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(cluster.host_ca.name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(SINCE)
        .not_valid_after(UNTIL)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(API_DOMAIN)]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(cluster.host_ca.key, hashes.SHA256())
    )
    layout, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, layout, encryption),
    )


async def test_any_other_reason_for_distrust(tmp_path: Path) -> None:
    """What has no sentence of its own is told in OpenSSL's words."""
    finding = await meet(partial(auth_service, context(tmp_path, _for_clients_only())))
    message = finding.message.replace("unsuitable certificate purpose", "unsupported certificate purpose")
    assert (finding.id, message, finding.fix) == (
        "teleport.server.untrusted",
        f"The certificate of {finding.subject} is not trusted: unsupported certificate purpose.",
        f"Look at it: openssl s_client -connect {finding.subject}",
    )


async def test_untrusted_server_that_does_not_let_us_look_again(tmp_path: Path) -> None:
    server = context(tmp_path, server_certificate(pki=other))
    visits: list[trio.SocketStream] = []

    async def handler(stream: trio.SocketStream) -> None:
        visits.append(stream)
        if len(visits) == 1:
            await Tls(stream, server).shake()

    finding = await meet(handler)
    assert finding.id == "teleport.server.untrusted"
    assert (
        finding.message
        == f"The certificate of {finding.subject} is not trusted: unable to get local issuer certificate."
    )


# The server refuses our certificate, after the handshake in TLS 1.3 and within it in TLS 1.2

VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


async def refusal(folder: Path, version: ssl.TLSVersion, issued: Issued, now: float = NOW) -> Finding:
    server = context(folder)
    server.maximum_version = version
    return await meet(partial(auth_service, server), credentials(issued), now=now)


async def test_certificate_of_another_cluster(tmp_path: Path) -> None:
    """Our files do not fit together, and the server is not ours."""
    foreign = other.user_certificate("access-plugin", [], not_before=SINCE, not_after=UNTIL)
    async with serve(partial(auth_service, context(tmp_path))) as addr:
        found, _ = await preflight(addr, credentials(foreign), verify="cluster", now=NOW)
    assert [finding.id for finding in found if finding.status == "failure"] == [
        "teleport.authorities.other_cluster",
        "teleport.server.other_cluster",
    ]


@VERSIONS
async def test_our_certificate_expired(tmp_path: Path, version: ssl.TLSVersion, golden: Golden) -> None:
    golden(await refusal(tmp_path, version, ours(until=SINCE.replace(year=2021))))


@VERSIONS
async def test_our_certificate_is_not_yet_valid(tmp_path: Path, version: ssl.TLSVersion, golden: Golden) -> None:
    golden(await refusal(tmp_path, version, ours(since=UNTIL, until=UNTIL.replace(year=2091))))


@VERSIONS
async def test_user_ca_that_the_server_does_not_know(tmp_path: Path, version: ssl.TLSVersion, golden: Golden) -> None:
    golden(await refusal(tmp_path, version, ours(ClusterPki("example.com").user_ca)))


async def test_the_clocks_differ(tmp_path: Path, golden: Golden) -> None:
    """The server says "expired" of a certificate that is valid by our clock."""
    june = dt.datetime(2020, 6, 1, tzinfo=dt.UTC).timestamp()
    golden(await refusal(tmp_path, ssl.TLSVersion.TLSv1_3, ours(until=SINCE.replace(year=2021)), june))


async def test_a_fresh_certificate_that_a_slow_clock_refuses(tmp_path: Path) -> None:
    """Teleport dates a certificate one minute back, and older servers say "bad certificate" for everything."""
    fresh = ours(since=UNTIL, until=UNTIL.replace(year=2091))
    finding = await refusal(tmp_path, ssl.TLSVersion.TLSv1_3, fresh, UNTIL.timestamp() + 60)
    assert finding.id == "teleport.client.clock"
    assert 'TLS alert "bad certificate"' in finding.message


async def test_server_closes_after_the_handshake(tmp_path: Path, golden: Golden) -> None:
    server = context(tmp_path)

    async def handler(stream: trio.SocketStream) -> None:
        await Tls(stream, server).shake()
        await stream.send_eof()
        await drain(stream)

    golden(await meet(handler))


async def test_server_says_goodbye_after_the_handshake(tmp_path: Path) -> None:
    """The same with TLS's own way to close."""
    server = context(tmp_path)

    async def handler(stream: trio.SocketStream) -> None:
        tls = Tls(stream, server)
        await tls.shake()
        with pytest.raises(ssl.SSLWantReadError):
            tls.tls.unwrap()
        await tls.flush()
        await drain(stream)

    finding = await meet(handler)
    assert finding.id == "teleport.client.closed"


async def test_server_is_silent_after_the_handshake(tmp_path: Path, golden: Golden) -> None:
    server = context(tmp_path)

    async def handler(stream: trio.SocketStream) -> None:
        await Tls(stream, server).shake()
        await drain(stream)

    golden(await meet(handler, step_seconds=1))


# There is no handshake


async def test_plain_http_port(golden: Golden) -> None:
    golden(await meet(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")))


async def test_ssh_port(golden: Golden) -> None:
    golden(await meet(says(b"SSH-2.0-Teleport\r\n")))


async def test_port_without_tls(golden: Golden) -> None:
    golden(await meet(says(b"hello\r\n")))


async def test_port_that_closes(golden: Golden) -> None:
    golden(await meet(says(b"")))


async def test_port_that_resets() -> None:
    """A connection that is torn down reads like one that is closed."""

    async def handler(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        await stream.aclose()

    finding = await meet(handler)
    assert finding.id == "teleport.handshake.closed"


async def test_silent_port(golden: Golden) -> None:
    golden(await meet(drain, step_seconds=0.5))


@pytest.mark.parametrize("alert", ["without", "with"])
async def test_server_without_http2(tmp_path: Path, alert: str, golden: Golden) -> None:
    """OpenSSL's servers go on without ALPN, Go's say no_application_protocol (120)."""
    server = context(tmp_path)
    server.set_alpn_protocols(["http/1.1"])
    golden(await meet(partial(auth_service, server) if alert == "without" else says(b"\x15\x03\x03\x00\x02\x02\x78")))


async def test_any_other_alert(golden: Golden) -> None:
    golden(await meet(says(b"\x15\x03\x03\x00\x02\x02\x50")))


async def test_garbled_tls() -> None:
    """A record of TLS with nonsense in it: OpenSSL's own reason, which differs between its versions."""
    finding = await meet(says(b"\x16\x03\x03\x00\x04\xff\x00\x00\x00"))
    assert finding.message == f"The TLS handshake with {finding.subject} failed: unexpected message."
    assert (finding.id, finding.fix) == ("teleport.handshake.failed", "Look at the log of the Auth Service.")


# There is no connection


@pytest.mark.parametrize(
    "addr", ["", ":3025", "localhost:", "localhost:0", "localhost:65536", "https://localhost:3025"]
)
async def test_invalid_address(addr: str, golden: Golden) -> None:
    golden(await findings(addr))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_nothing_is_listening(host: str, golden: Golden) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        addr = f"{host}:{bound.getsockname()[1]}"
        golden(await findings(addr))


async def test_unreachable_host(golden: Golden) -> None:
    """TCP to the broadcast address fails on every machine, connected or not."""
    addr = "255.255.255.255:3025"
    golden(await findings(addr))


async def test_host_that_drops_packets(golden: Golden) -> None:
    """Linux drops the handshake of TCP while the accept queue is full, as a firewall would."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        host, port = full.getsockname()
        with socket.create_connection((host, port)):
            found = await findings(f"{host}:{port}", step_seconds=0.5)
    golden(found)


class Resolver(trio.abc.HostnameResolver):
    """Name servers that know nothing (and say so, or nothing at all)."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent

    async def getaddrinfo(self, *_args: object, **_keywords: object) -> list[object]:  # type: ignore[override]
        if self.silent:
            await trio.sleep_forever()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *_args: object) -> tuple[str, str]:
        raise AssertionError("addresses are not turned into names")


async def test_name_that_does_not_resolve(golden: Golden) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(silent=False))
    golden(await findings("auth.example.test:3025"))


async def test_name_servers_that_do_not_answer(golden: Golden) -> None:
    """Without a port in the address, the port is Teleport's own."""
    trio.socket.set_custom_hostname_resolver(Resolver(silent=True))
    golden(await findings("auth.example.test", step_seconds=0.2))


async def test_bad_credentials_end_it_before_the_network() -> None:
    unusable = Credentials(ours().certificate, ours().key, cluster.host_ca.pem)
    found, _ = await preflight("auth.example.test:3025", unusable, verify="cluster", now=NOW)
    assert [finding.id for finding in found] == ["teleport.certificate", "teleport.key.mismatch"]


async def test_the_caller_s_deadline_is_over_all() -> None:
    """A step's own limit never swallows the caller's."""
    async with serve(drain) as addr:
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.2):
            await preflight(addr, credentials(), verify="cluster", now=NOW, step_seconds=60)
