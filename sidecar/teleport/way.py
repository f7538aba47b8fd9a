"""What is said of the way to the Auth Service: name, TCP, TLS, and the Proxy where there is one. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from sidecar.teleport.findings import Failed, Finding, Ours, failure, lower, shown

USE_AUTH_PORT: Final = (
    "Set addr in [teleport] to the address of the Auth Service; its port is 3025 unless auth_service.listen_addr says "
    "otherwise."
)
_PROXY_PROTOCOL = (
    'Where auth_service.proxy_protocol is "on", Teleport closes every connection that does not come through a load '
    "balancer with the PROXY protocol. Else look at the log of the Auth Service."
)
_LOG = "Look at the log of the Auth Service."
_A_PROXY = "{addr} is the Proxy of a Teleport cluster"
_TERMINATED = (
    f"{_A_PROXY}, but something before it ends TLS and strips ALPN, as a load balancer does: what was meant for the "
    "Auth Service did not get there."
)
_WITHOUT_IT = (
    "Let it pass TCP through (layer 4), or set addr in [teleport] to an address of the Proxy, or of the Auth Service, "
    "that is reached without it."
)
_NO_HTTP2 = "{addr} speaks TLS, but not HTTP/2 (ALPN h2): it is no Auth Service, or something before it ends TLS."
_NO_HANDSHAKE = "{addr} accepted the connection but did not answer the TLS handshake within {seconds:g} s."
_REFUSED = "Is the Auth Service running, and is this its port (3025 unless auth_service.listen_addr says otherwise)?"
_CA_FILE = "Correct proxy_ca_file in [teleport]: a PEM file with the authority's certificate."
_TOO_LONG = "The name of our cluster is too long for the way through the Proxy at {addr}."
_NAMES = "Correct addr in [teleport], or the name servers of this machine."

# What failed -> the message and the fix.
_FAILURES = {
    "address.invalid": ("{addr!r} is not an address.", 'Write host:port, for example addr = "localhost:3025".'),
    "resolve.unknown_name": ("The name {host} does not resolve: {why}.", _NAMES),
    "resolve.timeout": (
        "The name in {addr} was not resolved within {seconds:g} s.",
        "Look at the name servers of this machine.",
    ),
    "connect.refused": ("Nothing is listening on {addr}.", _REFUSED),
    "connect.unreachable": (
        "No connection to {addr}: {why}.",
        "Look at the routes and firewalls between the two hosts.",
    ),
    "connect.timeout": (
        "No connection to {addr} within {seconds:g} s.",
        "A firewall may drop the packets; is the address right?",
    ),
    "handshake.timeout": (_NO_HANDSHAKE, USE_AUTH_PORT),
    "handshake.plain_http": ("{addr} answers in plain HTTP, without TLS.", USE_AUTH_PORT),
    "handshake.ssh": ("{addr} is an SSH port, perhaps 3022 to 3024 of a Teleport node or Proxy.", USE_AUTH_PORT),
    "handshake.no_tls": ("{addr} does not speak TLS.", USE_AUTH_PORT),
    # An Auth Service always agrees to h2, and gRPC needs it.
    "handshake.no_http2": (_NO_HTTP2, f"{USE_AUTH_PORT} A load balancer must pass TCP through."),
    "handshake.alert": ('{addr} ended the TLS handshake with the alert "{why}".', _LOG),
    "handshake.failed": ("The TLS handshake with {addr} failed: {why}.", _LOG),
    "handshake.closed": (
        "{addr} closed the connection during the TLS handshake.",
        f"{USE_AUTH_PORT} {_PROXY_PROTOCOL}",
    ),
    "client.timeout": ("{addr} did not answer HTTP/2 after the TLS handshake within {seconds:g} s.", _LOG),
    "client.closed": ("{addr} closed the connection right after the TLS handshake, without an alert.", _PROXY_PROTOCOL),
    # All that is known when the certificate cannot be seen.
    "server.untrusted": (
        "The certificate of {addr} is not trusted: {why}.",
        "Look at it: openssl s_client -connect {addr}",
    ),
    "server.proxy": (f"{_A_PROXY}, with a certificate for {{names}}, not the Auth Service.", USE_AUTH_PORT),
    "proxy.terminated": (_TERMINATED, _WITHOUT_IT),
    # A Proxy is believed what it says of itself only where somebody vouches for its certificate.
    "proxy.untrusted": (
        f"{_A_PROXY}, but its certificate is not trusted: {{why}}.",
        f"Set proxy_ca_file in [teleport] to the CA that signed it. Or: {lower(USE_AUTH_PORT)}",
    ),
    "proxy.ca_file": ("The certificate authority of the Proxy cannot be used: {why}.", _CA_FILE),
    # An ALPN name has at most 255 bytes, and Teleport writes the cluster's into it twice as long.
    "proxy.cluster_name": (_TOO_LONG, USE_AUTH_PORT),
}


class ProxyPing(msgspec.Struct, frozen=True):
    """What a Proxy says of itself."""

    cluster: str
    version: str
    tls_routing: bool
    public_addr: str
    # How long it took to ask.
    seconds: float


def failed(id: str, addr: str, **facts: object) -> Finding:
    """Say what failed there, by the table; the facts are what its sentence asks for."""
    message, fix = _FAILURES[id]
    return failure(id, addr, message.format(addr=addr, **facts), fix.format(addr=addr))


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
    return failed(f"handshake.{cause}", addr, why=why)


def way_taken(addr: str, tcp_seconds: float, tls_seconds: float, *, is_proxy: bool) -> Finding:
    """Which way the Auth Service was reached, and what each hop took."""
    way, peer = ("through the Proxy", "Proxy") if is_proxy else ("directly", "Auth Service")
    hops = f"TCP with the {peer} took {_ms(tcp_seconds)}, TLS with the Auth Service {_ms(tls_seconds)}"
    return Finding("teleport.way", "ok", addr, f"The Auth Service is reached {way}: {hops}.")


def judge_proxy(addr: str, proxy: ProxyPing, ours: Ours) -> Finding:
    """Whether a Proxy leads to our Auth Service. Raises Failed."""
    what = f"{addr} is the Proxy of cluster {shown(proxy.cluster)} (Teleport {shown(proxy.version)})"
    if proxy.cluster != ours.cluster:
        message = f"{what}; our certificate is of cluster {shown(ours.cluster)}."
        fix = f"Set addr in [teleport] to the Proxy or the Auth Service of our cluster. Or: {ours.sign_again()}"
        raise Failed(failure("proxy.other_cluster", addr, message, fix))
    if not proxy.tls_routing:
        message = (
            f"{what}, without TLS routing: it leads to the Auth Service through SSH alone, which is not spoken here."
        )
        fix = (
            f"{USE_AUTH_PORT} Or switch TLS routing on (Teleport 8 and newer), in /etc/teleport.yaml there:"
            "\nauth_service:\n  proxy_listener_mode: multiplex"
        )
        raise Failed(failure("proxy.no_tls_routing", addr, message, fix))
    return Finding("teleport.proxy", "ok", addr, f"{what}, with TLS routing: /webapi/ping took {_ms(proxy.seconds)}.")


def of_legs(finding: Finding, addr: str, *, behind: bool) -> Finding:
    """A failure on the way through a Proxy, said of the leg that it is about; `behind` the Proxy or before it."""
    cause = finding.id.removeprefix("teleport.")
    if cause.startswith(("connect", "resolve")) or not behind:
        message = f"{finding.message} It is the address of a Proxy."
        return failure(cause, addr, message, "Is the Proxy Service running, and is this its address?")
    if cause in ("handshake.no_http2", "server.not_auth", "server.untrusted"):
        return failed("proxy.terminated", addr)
    if cause.startswith(("handshake", "client.closed", "client.timeout")):
        message = f"{finding.message} It is a Proxy that does not reach its Auth Service."
        return failure(cause, addr, message, "Is the Auth Service running? Look at the log of the Proxy Service.")
    return finding


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
