"""What is said of the way to the Auth Service: name, TCP, TLS, and the Proxy where there is one. Pure."""

from __future__ import annotations

import msgspec

from sidecar.teleport.findings import Failed, Finding, Ours, found, shown


class ProxyPing(msgspec.Struct, frozen=True):
    """What a Proxy says of itself."""

    cluster: str
    version: str
    tls_routing: bool
    public_addr: str
    # How long it took to ask.
    seconds: float


def no_handshake(addr: str, heard: bytes, alert: str, reason: str) -> Finding:
    """Name the cause of a failed handshake from the peer's first bytes, its alert, and OpenSSL's reason."""
    cause, why = "closed", ""
    if heard.startswith(b"HTTP/"):
        cause = "plain_http"
    elif heard.startswith(b"SSH-"):
        cause = "ssh"
    elif heard and heard[0] not in range(0x14, 0x18):  # the four record types of TLS
        cause = "no_tls"
    elif heard[:1] + heard[6:7] == b"\x15\x78":  # no_application_protocol, an alert that OpenSSL 3.0 cannot name
        cause = "no_http2"
    elif alert:
        cause, why = "alert", alert
    elif reason:
        cause, why = "failed", reason
    return found(f"handshake.{cause}", addr, why=why)


def way_taken(addr: str, tcp_seconds: float, tls_seconds: float, *, is_proxy: bool) -> Finding:
    """Which way the Auth Service was reached, and what each hop took."""
    way, peer = ("through the Proxy", "Proxy") if is_proxy else ("directly", "Auth Service")
    return found("way", addr, way=way, peer=peer, tcp=tcp_seconds * 1000, tls=tls_seconds * 1000)


def judge_proxy(addr: str, proxy: ProxyPing, ours: Ours) -> Finding:
    """Whether a Proxy leads to our Auth Service. Raises Failed."""
    what = {"cluster": shown(proxy.cluster), "version": shown(proxy.version)}
    if proxy.cluster != ours.cluster:
        again = ours.sign_again()
        raise Failed(found("proxy.other_cluster", addr, **what, ours=shown(ours.cluster), sign_again=again))
    if not proxy.tls_routing:
        raise Failed(found("proxy.no_tls_routing", addr, **what))
    return found("proxy", addr, **what, took=proxy.seconds * 1000)


def of_legs(finding: Finding, addr: str, *, behind: bool) -> Finding:
    """A failure on the way through a Proxy, said of the leg that it is about; `behind` the Proxy or before it."""
    cause = finding.id.removeprefix("teleport.")
    if cause.startswith(("connect", "resolve")) or not behind:
        message = f"{finding.message} It is the address of a Proxy."
        return Finding(finding.id, "failure", addr, message, "Is the Proxy Service running, and is this its address?")
    if cause in ("handshake.no_http2", "server.not_auth", "server.untrusted"):
        return found("proxy.terminated", addr)
    if cause.startswith(("handshake", "client.closed", "client.timeout")):
        message = f"{finding.message} It is a Proxy that does not reach its Auth Service."
        fix = "Is the Auth Service running? Look at the log of the Proxy Service."
        return Finding(finding.id, "failure", addr, message, fix)
    return finding
