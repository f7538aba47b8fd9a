"""The preflight: try the credentials and the Auth Service with Python's own TLS, because grpcio hides every cause.

Each step has a limit of its own, so that a silent port is named; the caller's deadline is over all of them.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Literal

import msgspec
import trio

from sidecar.teleport import findings as say
from sidecar.teleport.credentials import Credentials
from sidecar.teleport.findings import API_DOMAIN, Failed, Finding, failure
from sidecar.teleport.identity import load, new_context
from sidecar.teleport.x509 import CertificateFacts, read_certificate

_DEFAULT_PORT = 3025
# RFC 9113: the client's preface and an empty SETTINGS frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# What TLS 1.2, which judges the client's certificate within the handshake, may say of it.
_ABOUT_US = ("certificate", "unknown ca", "access denied", "decrypt error")

_Stream = trio.SSLStream[trio.StapledStream[trio.SocketStream, "_Heard"]]


class _Peer(msgspec.Struct, frozen=True):
    """Where to connect, the name to ask for, and the seconds each step may take."""

    addr: str
    host: str
    port: int
    server_name: str
    seconds: float


async def preflight(
    addr: str,
    credentials: Credentials,
    *,
    verify: str,
    now: float,
    step_seconds: float = 5.0,
) -> list[Finding]:
    """Check the credentials, then meet the Auth Service at `addr` ("host:port") and see whether it takes us.

    `verify` is "cluster" or "hostname", `now` Unix seconds. Never raises for what it finds; stops at the first step
    that cannot be passed. Takes at most about four times `step_seconds`, seven with a peer that is not trusted.
    """
    findings: list[Finding] = []
    try:
        context, ours = load(credentials, now, findings)
        host, port = _split(addr)
        peer = _Peer(addr, host, port, API_DOMAIN if verify == "cluster" else host, step_seconds)
        async with _connect(peer) as raw:
            tls, theirs = await _shake(peer, raw, context, ours, now)
            findings += _introduce(peer, tls, theirs, ours, verify)
            findings.append(await _first_word(peer, tls, ours, now))
    except Failed as failed:
        findings.append(failed.finding)
    return [say.judged_as_one_file(finding) for finding in findings] if credentials.one_file else findings


def _split(addr: str) -> tuple[str, int]:
    host, colon, port = addr.rpartition(":")
    if not colon or addr.endswith("]"):
        host, port = addr, str(_DEFAULT_PORT)
    if not host or "/" in addr or not port.isdecimal() or not 0 < int(port) < 65536:
        fix = 'Write host:port, for example addr = "localhost:3025".'
        raise Failed(failure("address.invalid", addr, f"{addr!r} is not an address.", fix))
    return host.removeprefix("[").removesuffix("]"), int(port)


@contextmanager
def _step(name: Literal["resolve", "connect", "handshake", "client"], peer: _Peer) -> Iterator[None]:
    try:
        with trio.fail_after(peer.seconds):
            yield
    except trio.TooSlowError as exc:
        raise Failed(say.too_slow(name, peer.addr, peer.seconds)) from exc


@asynccontextmanager
async def _connect(peer: _Peer) -> AsyncIterator[trio.SocketStream]:
    try:
        with _step("resolve", peer):
            await trio.socket.getaddrinfo(peer.host, peer.port)
    except OSError as exc:
        message = f"The name {peer.host} does not resolve: {exc.strerror}."
        fix = "Correct addr in [teleport], or the name servers of this machine."
        raise Failed(failure("resolve.unknown_name", peer.addr, message, fix)) from exc
    try:
        with _step("connect", peer):
            raw = await trio.open_tcp_stream(peer.host, peer.port)
    except OSError as exc:
        raise Failed(_not_connected(peer, exc)) from exc
    async with raw:
        yield raw


def _not_connected(peer: _Peer, exc: OSError) -> Finding:
    # trio tries every address of the name and groups the reasons.
    reasons = exc.__cause__.exceptions if isinstance(exc.__cause__, ExceptionGroup) else (exc,)
    numbers = {getattr(reason, "errno", None) or 0 for reason in reasons}
    if numbers == {errno.ECONNREFUSED}:
        fix = "Is the Auth Service running, and is this its port (3025 unless auth_service.listen_addr says otherwise)?"
        return failure("connect.refused", peer.addr, f"Nothing is listening on {peer.addr}.", fix)
    message = f"No connection to {peer.addr}: {', '.join(sorted(map(os.strerror, numbers)))}."
    return failure("connect.unreachable", peer.addr, message, "Look at the routes and firewalls between the two hosts.")


class _Heard(trio.abc.ReceiveStream):
    """Keeps how the peer began: OpenSSL does not tell what it took for a wrong version number."""

    def __init__(self, inner: trio.SocketStream) -> None:
        self._inner = inner
        self.start = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._inner.receive_some(max_bytes)
        self.start = self.start or bytes(data)
        return data

    async def aclose(self) -> None:  # pragma: no cover - trio's interface asks for it; `_connect` owns the socket
        await self._inner.aclose()


async def _shake(
    peer: _Peer, raw: trio.SocketStream, context: ssl.SSLContext, ours: CertificateFacts, now: float
) -> tuple[_Stream, CertificateFacts]:
    tls = _wrap(peer, raw, context)
    try:
        with _step("handshake", peer):
            await tls.do_handshake()
    except trio.BrokenResourceError as exc:
        if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
            raise Failed(await _why_untrusted(peer, exc.__cause__, ours, now)) from exc
        alert = _alert(exc.__cause__)
        if any(word in alert for word in _ABOUT_US):
            raise Failed(say.judge_refusal(peer.addr, alert, ours, now)) from exc
        heard = tls.transport_stream.receive_stream.start
        raise Failed(say.no_handshake(peer.addr, heard, alert, _reason(exc.__cause__))) from exc
    if tls.selected_alpn_protocol() != "h2":
        raise Failed(say.no_http2(peer.addr))
    return tls, _certificate_of(tls)


def _wrap(peer: _Peer, raw: trio.SocketStream, context: ssl.SSLContext) -> _Stream:
    return trio.SSLStream(trio.StapledStream(raw, _Heard(raw)), context, server_hostname=peer.server_name)


def _certificate_of(tls: _Stream) -> CertificateFacts:
    return read_certificate(tls.getpeercert(binary_form=True) or b"")


def _introduce(
    peer: _Peer, tls: _Stream, theirs: CertificateFacts, ours: CertificateFacts, verify: str
) -> list[Finding]:
    return [
        Finding("teleport.handshake", "ok", peer.addr, f"{peer.addr} speaks {tls.version()} and HTTP/2."),
        say.judge_server(peer.addr, theirs, ours),
        say.judge_names(theirs, peer.host, peer.port, verify),
    ]


async def _first_word(peer: _Peer, tls: _Stream, ours: CertificateFacts, now: float) -> Finding:
    """TLS 1.3 refuses a client certificate after the handshake: only what the server says next tells.

    We send nothing at first, because an alert that crosses with our bytes can be lost in a connection reset.
    """
    data: bytes | bytearray = b""
    try:
        with trio.move_on_after(peer.seconds / 5) as patience:
            data = await tls.receive_some(1024)
        if patience.cancelled_caught:  # it may want to hear us first
            with _step("client", peer):
                await tls.send_all(_PREFACE)
                data = await tls.receive_some(1024)
    except trio.BrokenResourceError as exc:
        alert = _alert(exc.__cause__)
        return say.judge_refusal(peer.addr, alert, ours, now) if alert else say.client_closed(peer.addr)
    if not data:
        return say.client_closed(peer.addr)
    return Finding("teleport.client", "ok", peer.addr, "The Auth Service accepted our certificate.")


async def _why_untrusted(
    peer: _Peer, verdict: ssl.SSLCertVerificationError, ours: CertificateFacts, now: float
) -> Finding:
    """Connect once more, trusting anybody and showing nothing of ours, to see who that is."""
    try:
        async with _connect(peer) as raw:
            tls = _wrap(peer, raw, new_context(verify_mode=ssl.CERT_NONE, alpn="http/1.1"))
            with _step("handshake", peer):
                await tls.do_handshake()
            theirs = _certificate_of(tls)
            is_proxy = not say.claims_to_be_auth(theirs) and await _is_proxy(peer, tls)
    except (Failed, trio.BrokenResourceError, ValueError):
        return say.untrusted(peer.addr, verdict)
    return say.judge_untrusted(peer.addr, theirs, ours, is_proxy=is_proxy, verdict=verdict, now=now)


async def _is_proxy(peer: _Peer, tls: _Stream) -> bool:
    """Whether the peer answers /webapi/ping as every Teleport Proxy does (lib/web/apiserver.go, 7 to 18)."""
    answer = b""
    with trio.move_on_after(peer.seconds):
        try:
            await tls.send_all(f"GET /webapi/ping HTTP/1.1\r\nHost: {peer.addr}\r\nConnection: close\r\n\r\n".encode())
            while b'"server_version"' not in answer and len(answer) < 65_536 and (data := await tls.receive_some(8192)):
                answer += data
        except trio.BrokenResourceError:
            return False
    return b'"server_version"' in answer


def _alert(cause: BaseException | None) -> str:
    """The TLS alert in an error of OpenSSL, named as in RFC 8446 but with blanks; "" when there is none."""
    _, found, name = str(getattr(cause, "reason", "")).partition("ALERT_")
    return name.lower().replace("_", " ") if found else ""


def _reason(cause: BaseException | None) -> str:
    """OpenSSL's reason, "" where the connection simply ended."""
    if isinstance(cause, ssl.SSLEOFError) or not isinstance(cause, ssl.SSLError):
        return ""
    return str(cause.reason or "unknown reason").lower().replace("_", " ")
