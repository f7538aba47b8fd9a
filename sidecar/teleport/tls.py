"""Our own TLS: the preflight, because grpcio hides every cause, and the way through a Proxy, which grpcio cannot speak.

A Proxy with TLS routing passes a connection on to an Auth Service where the first ALPN name asks for it: that server's
own TLS begins behind the Proxy. Each step has a limit, so that a silent port is named; the caller's is over all.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import trio

from sidecar.files import plain
from sidecar.teleport.certificates import claims_to_be_auth, judge_names, judge_refusal, judge_server, judge_untrusted
from sidecar.teleport.credentials import Credentials
from sidecar.teleport.findings import Failed, Finding, Ours, found, to_error
from sidecar.teleport.identity import load, new_context
from sidecar.teleport.peer import Peer, connect, open_socket, peer_at, step, through_proxy
from sidecar.teleport.way import ProxyPing, judge_proxy, no_handshake, of_legs, way_taken
from sidecar.teleport.x509 import CertificateFacts, read_certificate

# RFC 9113: the client's preface and an empty SETTINGS frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# What TLS 1.2, which judges the client's certificate within the handshake, may say of it.
_ABOUT_US = ("certificate", "unknown ca", "access denied", "decrypt error")

_DIAL_SECONDS = 5.0

TlsStream = trio.SSLStream[trio.StapledStream[trio.SocketStream, "_Heard"]]


class Way(msgspec.Struct, frozen=True):
    """How the Auth Service is reached: through the Proxy at the configured address, or directly where it is None."""

    proxy: ProxyPing | None = None

    @property
    def name(self) -> Literal["direct", "proxy"]:
        """As /readyz says it."""
        return "direct" if self.proxy is None else "proxy"


DIRECT = Way()


async def preflight(
    addr: str,
    credentials: Credentials,
    *,
    verify: str,
    now: float,
    step_seconds: float = 5.0,
    way: Way = DIRECT,
    proxy_ca_file: Path | None = None,
) -> tuple[list[Finding], Way]:
    """Check the credentials, then meet the Auth Service at `addr` ("host:port") and see whether it takes us.

    Return what was found and the way; `way` is the one of last time. Where the Auth Service itself does not answer, a
    Proxy is looked for. `verify` is "cluster" or "hostname", `now` Unix seconds. Never raises for what it finds; stops
    at the first step that cannot be passed. Takes at most about four times `step_seconds`, seven with a peer that is
    not trusted, fifteen with a Proxy.
    """
    findings: list[Finding] = []
    try:
        context, ours = load(credentials, now, findings)
        peer = peer_at(addr, verify, step_seconds)

        async def meet(peer: Peer, verify: str) -> None:
            await _meet(peer, context, ours, now, findings, verify=verify)

        proxy = None
        if way.proxy is not None:
            with _of_legs(addr):
                proxy = await _ask_proxy(peer, proxy_ca_file, or_nobody=True)
        if proxy is None:
            way = DIRECT
            proxy = await _unless_proxy(peer, proxy_ca_file, partial(meet, peer, verify))
        if proxy is not None:
            way = Way(proxy)
            findings.append(judge_proxy(addr, proxy, ours))
            with _of_legs(addr, behind=True):
                await meet(through_proxy(peer, ours.cluster), "")
    except Failed as failed:
        findings.append(failed.finding)
    return findings, way


async def _unless_proxy(peer: Peer, ca_file: Path | None, meet: Callable[[], Awaitable[None]]) -> ProxyPing | None:
    """Meet the Auth Service itself, or return what the Proxy in its place says."""
    try:
        await meet()
    except Failed as failed:
        proxy = None
        if failed.finding.id == "teleport.server.proxy":
            proxy = await _ask_proxy(peer, ca_file)
        elif failed.finding.id == "teleport.handshake.no_http2":
            # Perhaps a load balancer before one.
            with suppress(Failed):
                proxy = await _ask_proxy(peer, ca_file, or_nobody=True)
        if proxy is None:
            raise
        return proxy
    return None


async def dial_through_proxy(addr: str, credentials: Credentials, *, now: float) -> tuple[TlsStream, bytes]:
    """Connect to the Auth Service through the Proxy at `addr`; return the connection and the first bytes from it.

    Raises:
        LinkRefused: "tls": the peer is not our Auth Service, or does not take us.
        LinkLost: "unreachable": one of the two legs is down.

    """
    try:
        context, ours = load(credentials, now, [])
        peer = through_proxy(peer_at(addr, "cluster", _DIAL_SECONDS), ours.cluster)
        with _of_legs(addr, behind=True):
            raw = await open_socket(peer)
            try:
                tls, theirs = await _shake(peer, raw, context, ours, now)
                _fail(judge_server(addr, theirs, ours))
                finding, heard = await _first_word(peer, tls, ours, now, speak=False)
                _fail(finding)
            except BaseException:
                await trio.aclose_forcefully(raw)
                raise
    except Failed as failed:
        raise to_error(failed.finding) from failed
    return tls, heard


def _fail(finding: Finding) -> None:
    if finding.status == "failure":
        raise Failed(finding)


@contextmanager
def _of_legs(addr: str, *, behind: bool = False) -> Iterator[None]:
    """Name the leg that failed: the one to the Proxy, or the one `behind` it to the Auth Service."""
    try:
        yield
    except Failed as failed:
        raise Failed(of_legs(failed.finding, addr, behind=behind)) from failed


async def _meet(
    peer: Peer, context: ssl.SSLContext, ours: Ours, now: float, findings: list[Finding], *, verify: str
) -> None:
    """Have the Auth Service judged and see whether it takes us; `verify` is "" where no host is to be compared."""
    began = trio.current_time()
    async with connect(peer) as raw:
        connected = trio.current_time()
        tls, theirs = await _shake(peer, raw, context, ours, now)
        shaken = trio.current_time()
        findings += [
            way_taken(peer.addr, connected - began, shaken - connected, is_proxy=peer.is_proxy),
            found("handshake", peer.addr, version=tls.version()),
            judge_server(peer.addr, theirs, ours),
        ]
        if verify:
            findings.append(judge_names(theirs, peer.host, peer.port, verify))
        finding, _ = await _first_word(peer, tls, ours, now)
        _fail(finding)
        findings.append(finding)


class _Heard(trio.abc.ReceiveStream):
    """Keeps how the peer began: OpenSSL does not tell what it took for a wrong version number."""

    def __init__(self, inner: trio.SocketStream) -> None:
        self._inner = inner
        self.start = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._inner.receive_some(max_bytes)
        self.start = self.start or bytes(data)
        return data

    async def aclose(self) -> None:  # pragma: no cover - trio's interface asks for it; `connect` owns the socket
        await self._inner.aclose()


async def _shake(
    peer: Peer, raw: trio.SocketStream, context: ssl.SSLContext, ours: Ours, now: float
) -> tuple[TlsStream, CertificateFacts]:
    context.set_alpn_protocols([*peer.alpn])
    tls = _wrap(raw, context, peer.server_name)
    try:
        with step("handshake", peer):
            await tls.do_handshake()
    except trio.BrokenResourceError as exc:
        if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
            raise Failed(await _why_untrusted(peer, exc.__cause__, ours, now)) from exc
        alert = _alert(exc.__cause__)
        if any(word in alert for word in _ABOUT_US):
            raise Failed(judge_refusal(peer.addr, alert, ours, now)) from exc
        raise Failed(_no_handshake(peer, tls, exc)) from exc
    if tls.selected_alpn_protocol() != "h2":
        raise Failed(found("handshake.no_http2", peer.addr))
    return tls, _certificate_of(tls)


def _wrap(raw: trio.SocketStream, context: ssl.SSLContext, server_name: str) -> TlsStream:
    return trio.SSLStream(trio.StapledStream(raw, _Heard(raw)), context, server_hostname=server_name)


def _certificate_of(tls: TlsStream) -> CertificateFacts:
    return read_certificate(tls.getpeercert(binary_form=True) or b"")


async def _first_word(
    peer: Peer, tls: TlsStream, ours: Ours, now: float, *, speak: bool = True
) -> tuple[Finding, bytes]:
    """TLS 1.3 refuses a client certificate after the handshake: only what the server says next tells.

    We send nothing at first, because an alert that crosses with our bytes can be lost in a connection reset; and
    nothing at all unless we may `speak`.
    """
    accepted = found("client", peer.addr)
    data: bytes | bytearray = b""
    try:
        with trio.move_on_after(peer.seconds / 5) as patience:
            data = await tls.receive_some(1024)
        if patience.cancelled_caught:  # it may want to hear us first
            if not speak:
                return accepted, b""
            with step("client", peer):
                await tls.send_all(_PREFACE)
                data = await tls.receive_some(1024)
    except trio.BrokenResourceError as exc:
        alert = _alert(exc.__cause__)
        return judge_refusal(peer.addr, alert, ours, now) if alert else found("client.closed", peer.addr), b""
    return (accepted, bytes(data)) if data else (found("client.closed", peer.addr), b"")


async def _why_untrusted(peer: Peer, verdict: ssl.SSLCertVerificationError, ours: Ours, now: float) -> Finding:
    """Connect once more, trusting anybody and showing nothing of ours, to see who that is."""
    try:
        async with connect(peer) as raw:
            context = new_context(verify_mode=ssl.CERT_NONE)
            context.set_alpn_protocols([*peer.alpn] if peer.is_proxy else ["http/1.1"])
            tls = _wrap(raw, context, peer.server_name)
            with step("handshake", peer):
                await tls.do_handshake()
            theirs = _certificate_of(tls)
            is_proxy = not (peer.is_proxy or claims_to_be_auth(theirs)) and await _webapi_ping(peer, tls) is not None
    except (Failed, trio.BrokenResourceError, ValueError):
        return found("server.untrusted", peer.addr, why=verdict.verify_message)
    return judge_untrusted(peer.addr, theirs, ours, is_proxy=is_proxy, verdict=verdict, now=now)


async def _ask_proxy(peer: Peer, ca_file: Path | None, *, or_nobody: bool = False) -> ProxyPing | None:
    """Ask a Proxy that the system or `ca_file` vouches for what it is, showing nothing of ours; None where it is none.

    Raises Failed where nobody vouches for it, unless that may be because it is none: with `or_nobody`.
    """
    try:
        context = await trio.to_thread.run_sync(_web_context, ca_file)
    except OSError as exc:
        raise Failed(found("proxy.ca_file", str(ca_file), why=exc.strerror or exc)) from exc
    began = trio.current_time()
    async with connect(peer) as raw:
        tls = _wrap(raw, context, peer.host)
        try:
            with step("handshake", peer):
                await tls.do_handshake()
        except trio.BrokenResourceError as exc:
            if not isinstance(exc.__cause__, ssl.SSLCertVerificationError):
                raise Failed(_no_handshake(peer, tls, exc)) from exc
            if not or_nobody:
                raise Failed(found("proxy.untrusted", peer.addr, why=exc.__cause__.verify_message)) from exc
            return None
        if (said := await _webapi_ping(peer, tls)) is None:
            return None
        seconds = trio.current_time() - began
        settings = said.proxy
        return ProxyPing(
            said.cluster_name, said.server_version, settings.tls_routing_enabled, settings.ssh.public_addr, seconds
        )


def _web_context(ca_file: Path | None) -> ssl.SSLContext:
    # Reading all that the system trusts takes its time.
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(plain(ca_file))
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Ssh(msgspec.Struct, frozen=True):
    public_addr: str = ""


class _ProxySettings(msgspec.Struct, frozen=True):
    tls_routing_enabled: bool = False
    ssh: _Ssh = _Ssh()


class _WebapiPing(msgspec.Struct, frozen=True):
    server_version: str
    cluster_name: str = ""
    proxy: _ProxySettings = _ProxySettings()


async def _webapi_ping(peer: Peer, tls: TlsStream) -> _WebapiPing | None:
    """Ask for /webapi/ping, which every Teleport Proxy answers (lib/web/apiserver.go, 7 to 18)."""
    answer = b""
    with trio.move_on_after(peer.seconds), suppress(trio.BrokenResourceError):
        # 1.0: the answer is not cut into chunks.
        await tls.send_all(f"GET /webapi/ping HTTP/1.0\r\nHost: {peer.addr}\r\n\r\n".encode())
        while len(answer) < 65_536 and (data := await tls.receive_some(8192)):
            answer += data
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                return msgspec.json.decode(answer.partition(b"\r\n\r\n")[2], type=_WebapiPing)
    return None


def _no_handshake(peer: Peer, tls: TlsStream, exc: trio.BrokenResourceError) -> Finding:
    heard = tls.transport_stream.receive_stream.start
    return no_handshake(peer.addr, heard, _alert(exc.__cause__), _reason(exc.__cause__))


def _alert(cause: BaseException | None) -> str:
    """The TLS alert in an error of OpenSSL, named as in RFC 8446 but with blanks; "" when there is none."""
    _, found, name = str(getattr(cause, "reason", "")).partition("ALERT_")
    return name.lower().replace("_", " ") if found else ""


def _reason(cause: BaseException | None) -> str:
    """OpenSSL's reason, "" where the connection simply ended."""
    if isinstance(cause, ssl.SSLEOFError) or not isinstance(cause, ssl.SSLError):
        return ""
    return str(cause.reason or "unknown reason").lower().replace("_", " ")
