"""What the preflight says: every sentence about certificates and TLS, with its fix. Pure: values in, findings out.

The ids are stable: `teleport.<check>` when it is well, `teleport.<check>.<cause>` when it is not. The module is long
because it is the list of sentences.
"""

from __future__ import annotations

import ipaddress
import shlex
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from sidecar.errors import LinkError, LinkLost, LinkRefused
from sidecar.teleport.x509 import CertificateFacts

# The name every Auth Service answers to, and the one that Teleport's own clients ask for (api/constants, 7 to 18).
API_DOMAIN = "teleport.cluster.local"

_DAY = 86_400
# Teleport dates a certificate one minute back (lib/tlsca/ca.go), so a fresh one shows a server clock that is behind.
_FRESH_SECONDS = 600
# X509_V_ERR_…: the issuer is not among the authorities, or has another key than the one we know.
_UNKNOWN_AUTHORITY = frozenset({2, 7, 18, 19, 20, 21})
_PUT_THREE = "put the three files in place: tctl auth sign --format=tls"
_ONE = "the identity file"
_IN_ONE_FILE = (
    (_PUT_THREE, f"put {_ONE} in place: tctl auth sign --format=file"),
    ("Use the three files of one run.", "Use the file as it was written."),
    ("Use the files of one run.", "Use the file as it was written."),
    ("--out=auth", "--out=identity"),
    ("client_crt", _ONE),
    ("root_cas", _ONE),
)
_SET_CLOCKS = "Compare `date -u` on both hosts and let NTP set them."
_USE_AUTH_PORT = (
    "Set addr in [teleport] to the address of the Auth Service; its port is 3025 unless auth_service.listen_addr says "
    "otherwise."
)
_PROXY_PROTOCOL = (
    'Where auth_service.proxy_protocol is "on", Teleport closes every connection that does not come through a load '
    "balancer with the PROXY protocol. Else look at the log of the Auth Service."
)


_WITHOUT_IT = (
    "Let it pass TCP through (layer 4), or set addr in [teleport] to an address of the Proxy, or of the Auth Service, "
    "that is reached without it."
)
# Findings that say that a peer is away, not that it says no.
_AWAY = (
    *("teleport.connect", "teleport.resolve", "teleport.handshake.timeout", "teleport.handshake.closed"),
    *("teleport.client.timeout", "teleport.client.closed"),
)


class Finding(msgspec.Struct, frozen=True):
    """The result of one check; `fix` says what to do, "" when there is nothing to do."""

    id: str
    status: Literal["ok", "warning", "failure"]
    subject: str
    message: str
    fix: str = ""


class ProxyPing(msgspec.Struct, frozen=True):
    """What a Proxy says of itself."""

    cluster: str
    version: str
    tls_routing: bool
    public_addr: str
    # How long it took to ask.
    seconds: float


class Failed(Exception):
    """Carries the failure that ends a check up to its last line; no caller outside teleport/ ever sees it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def failure(id: str, subject: str, message: str, fix: str) -> Finding:
    """A finding that stops the sidecar from working."""
    return Finding(f"teleport.{id}", "failure", subject, message, fix)


def to_error(finding: Finding) -> LinkError:
    """The error that a failure is where a link, and not a person, meets it."""
    # Teleport's own sentences end without a full stop.
    detail = f"{finding.message.rstrip('.')}. {finding.fix}".rstrip()
    if finding.id.startswith(_AWAY):
        return LinkLost("teleport", "unreachable", detail)
    return LinkRefused("teleport", "tls", detail)


def sign_again(user: str = "", out: str = "auth") -> str:
    """The command that makes new credentials, as a sentence."""
    return (
        f"Sign new credentials on the Auth Service host and {_PUT_THREE} "
        f"--user={shlex.quote(shown(user or 'access-plugin'))} --ttl=8760h --out={shlex.quote(shown(out))}"
    )


def of_one_file(text: str) -> str:
    """A sentence about the three files, said of the identity file that is given instead of them."""
    for three, one in _IN_ONE_FILE:
        text = text.replace(three, one)
    return f"T{text[1:]}" if text.startswith(_ONE) else text


def judged_as_one_file(finding: Finding) -> Finding:
    """The same finding where the credentials come from an identity file."""
    subject = "identity" if finding.subject in ("client_crt", "client_key", "root_cas") else finding.subject
    return Finding(finding.id, finding.status, subject, of_one_file(finding.message), of_one_file(finding.fix))


def shown(*names: str) -> str:
    """Join names that somebody else chose: nothing unprintable, nothing endless, "none" for none."""
    clean = ("".join(char if char.isprintable() else "?" for char in name[:100]) for name in names[:20])
    return ", ".join(clean) + (", …" if len(names) > 20 else "") or "none"


def our_cluster(ours: CertificateFacts) -> str:
    """The cluster that issued a user certificate."""
    return ours.cluster or ours.issuer_organisation


def judge_certificate(ours: CertificateFacts, now: float) -> list[Finding]:
    """Say who we are, and what is wrong with the dates. `now` is Unix seconds."""
    who = f"We are {shown(ours.user)} with the roles {shown(*ours.roles)} on cluster {shown(our_cluster(ours))}"
    signed = f", signed by {shown(ours.impersonator)}" if ours.impersonator else ""
    message = f"{who}{signed}, from {_when(ours.not_before)} until {_when(ours.not_after)}."
    return [Finding("teleport.certificate", "ok", "client_crt", message), *_judge_dates(ours, now)]


def ending(ours: CertificateFacts, now: float) -> Literal["", "expires_soon", "expires_today"]:
    """Whether its end asks for somebody, by its own life: tbot renews one of an hour when 40 minutes are left."""
    left, life = ours.not_after - now, ours.not_after - ours.not_before
    if left <= min(_DAY, life / 10):
        return "expires_today"
    return "expires_soon" if left <= min(14 * _DAY, life / 3) else ""


def _judge_dates(ours: CertificateFacts, now: float) -> list[Finding]:
    left = ours.not_after - now
    if left <= 0:
        message = f"Our certificate expired on {_when(ours.not_after)}, {_span(-left)} ago."
        return [failure("certificate.expired", "client_crt", message, sign_again(ours.user))]
    if ours.not_before > now:
        message = (
            f"Our certificate is not valid before {_when(ours.not_before)}; the clock of this machine says "
            f"{_when(now)}, {_span(ours.not_before - now)} earlier."
        )
        return [failure("certificate.not_yet_valid", "client_crt", message, _SET_CLOCKS)]
    cause = ending(ours, now)
    if not cause:
        return []
    message = f"Our certificate expires on {_when(ours.not_after)}, in {_span(left)}; tbot would renew it by itself."
    fix = ("Do it now: " if cause == "expires_today" else "") + sign_again(ours.user)
    return [Finding(f"teleport.certificate.{cause}", "warning", "client_crt", message, fix)]


def is_own_root(authority: CertificateFacts, ours: CertificateFacts, ca_pins: tuple[str, ...] = ()) -> bool:
    """Whether it is a CA of our own cluster, and one of the pinned. A CA of Teleport bears the cluster as its O."""
    pinned = not ca_pins or f"sha256:{authority.spki_sha256}" in ca_pins
    return authority.is_ca and our_cluster(ours) in authority.roles and pinned


def judge_authorities(
    authorities: list[CertificateFacts], ours: CertificateFacts, ca_pins: tuple[str, ...] = ()
) -> Finding:
    """Whether root_cas knows the cluster of our certificate, by a CA that is pinned where any is."""
    clusters = sorted({cluster for authority in authorities for cluster in authority.roles})
    own = [authority for authority in authorities if is_own_root(authority, ours)]
    if any(is_own_root(authority, ours, ca_pins) for authority in own):
        message = f"root_cas holds {len(authorities)} certificate(s) of the cluster(s) {shown(*clusters)}."
        return Finding("teleport.authorities", "ok", "root_cas", message)
    if own:
        pins = shown(*(f"sha256:{authority.spki_sha256}" for authority in own))
        message = f"root_cas holds no CA with the pin of teleport.ca_pin; those of our cluster have {pins}."
        fix = f"Correct ca_pin by `tctl status` on the Auth Service host. Or: {sign_again(ours.user)}"
        return failure("authorities.not_pinned", "root_cas", message, fix)
    message = f"Our certificate is of cluster {shown(our_cluster(ours))}, but root_cas holds only {shown(*clusters)}."
    fix = f"Use the three files of one run. {sign_again(ours.user)}"
    return failure("authorities.other_cluster", "root_cas", message, fix)


def judge_server(addr: str, theirs: CertificateFacts, ours: CertificateFacts) -> Finding:
    """Whether a certificate that OpenSSL trusts is our Auth Service's: root_cas may hold other clusters too."""
    if theirs.issuer_organisation != our_cluster(ours):
        return _other_cluster(addr, theirs, ours)
    if not claims_to_be_auth(theirs):
        return _not_auth(addr, theirs)
    message = (
        f"The Auth Service shows a certificate issued by cluster {shown(theirs.issuer_organisation)} for "
        f"{shown(*theirs.dns_names, *theirs.ip_addresses)}, from {_when(theirs.not_before)} until "
        f"{_when(theirs.not_after)}."
    )
    return Finding("teleport.server", "ok", addr, message)


def claims_to_be_auth(theirs: CertificateFacts) -> bool:
    """Whether the certificate bears the name of every Auth Service."""
    return _matches_any(theirs.dns_names, API_DOMAIN)


def judge_names(theirs: CertificateFacts, host: str, port: int, verify: str) -> Finding:
    """Whether the certificate bears the host that we dial: only `verify = "hostname"` asks for that."""
    addr = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    problem, cause = _names_problem(theirs, host)
    if not problem:
        return Finding("teleport.names", "ok", addr, f"The certificate of the Auth Service is valid for {host}.")
    add = (
        "add the address to /etc/teleport.yaml on the Auth Service host and restart Teleport there:\n"
        f'auth_service:\n  public_addr:\n    - "{addr}"'
    )
    if verify == "hostname":
        avoid = "or check the cluster instead of the address, in the configuration of the sidecar:"
        return failure(f"names.{cause}", addr, problem, f'Either {add}\n{avoid}\n[teleport]\nverify = "cluster"')
    message = f'{problem}. The sidecar does not mind, because verify = "cluster" asks for {API_DOMAIN}.'
    fix = f'Nothing for the sidecar. For verify = "hostname", and for clients that check the address, {add}'
    return Finding(f"teleport.names.{cause}", "ok", addr, message, fix)


def _names_problem(theirs: CertificateFacts, host: str) -> tuple[str, str]:
    """Go's x509.HostnameError in its exact words, and our id for it; two empty texts when the host is a name of it."""
    try:
        wanted = str(ipaddress.ip_address(host))
    except ValueError:
        if _matches_any(theirs.dns_names, host):
            return "", ""
        if not theirs.dns_names:
            return f"x509: certificate is not valid for any names, but wanted to match {host}", "no_names"
        return f"x509: certificate is valid for {shown(*theirs.dns_names)}, not {host}", "other_names"
    if wanted in theirs.ip_addresses:
        return "", ""
    if not theirs.ip_addresses:
        return f"x509: cannot validate certificate for {host} because it doesn't contain any IP SANs", "no_ip_sans"
    return f"x509: certificate is valid for {shown(*theirs.ip_addresses)}, not {host}", "other_ip_sans"


def _matches_any(patterns: tuple[str, ...], host: str) -> bool:
    """Go's matchHostnames: `*` stands for the whole first label only."""
    wanted = host.lower().removesuffix(".").split(".")
    split = (pattern.lower().removesuffix(".").split(".") for pattern in patterns)
    return any(len(p) == len(wanted) and p[1:] == wanted[1:] and p[0] in ("*", wanted[0]) for p in split)


def judge_untrusted(
    addr: str,
    theirs: CertificateFacts,
    ours: CertificateFacts,
    *,
    is_proxy: bool,
    verdict: ssl.SSLCertVerificationError,
    now: float,
) -> Finding:
    """Name the cause when OpenSSL did not trust the certificate; nothing in `theirs` is proven."""
    if is_proxy:
        names = shown(*theirs.dns_names)
        message = f"{addr} is the Proxy of a Teleport cluster, with a certificate for {names}, not the Auth Service."
        return failure("server.proxy", addr, message, _USE_AUTH_PORT)
    if not claims_to_be_auth(theirs):
        return _not_auth(addr, theirs)
    if not theirs.not_before <= now <= theirs.not_after:
        return _server_out_of_date(addr, theirs, now)
    if theirs.issuer_organisation != our_cluster(ours):
        return _other_cluster(addr, theirs, ours)
    if verdict.verify_code not in _UNKNOWN_AUTHORITY:
        return untrusted(addr, verdict)
    message = (
        f"x509: certificate signed by unknown authority: the certificate at {addr} names our cluster, but root_cas "
        "does not hold the Host CA that signed it."
    )
    fix = f"The Host CA was rotated, or the cluster was built anew. {sign_again(ours.user)}"
    return failure("server.unknown_authority", addr, message, fix)


def untrusted(addr: str, verdict: ssl.SSLCertVerificationError) -> Finding:
    """All that is known when the certificate cannot be seen."""
    message = f"The certificate of {addr} is not trusted: {verdict.verify_message}."
    return failure("server.untrusted", addr, message, "Look at it: openssl s_client -connect " + addr)


def _server_out_of_date(addr: str, theirs: CertificateFacts, now: float) -> Finding:
    clock = f"the clock of this machine says {_when(now)}"
    if theirs.not_after < now:
        message = f"The certificate of the Auth Service expired on {_when(theirs.not_after)}; {clock}."
        return failure("server.expired", addr, message, f"{_SET_CLOCKS} If they agree, rotate the Host CA.")
    message = (
        f"The certificate of the Auth Service is not valid before {_when(theirs.not_before)}; {clock}. "
        "Our clock is behind, or the other one ahead."
    )
    return failure("server.not_yet_valid", addr, message, _SET_CLOCKS)


def _not_auth(addr: str, theirs: CertificateFacts) -> Finding:
    message = (
        f"{addr} is not a Teleport Auth Service: its certificate is for "
        f"{shown(*theirs.dns_names, *theirs.ip_addresses)}, without {API_DOMAIN}."
    )
    return failure("server.not_auth", addr, message, _USE_AUTH_PORT)


def _other_cluster(addr: str, theirs: CertificateFacts, ours: CertificateFacts) -> Finding:
    message = (
        f"The Auth Service at {addr} belongs to cluster {shown(theirs.issuer_organisation)}; our certificate is of "
        f"cluster {shown(our_cluster(ours))}."
    )
    fix = f"Set addr in [teleport] to the Auth Service of our cluster. Or: {sign_again(ours.user)}"
    return failure("server.other_cluster", addr, message, fix)


def judge_refusal(addr: str, alert: str, ours: CertificateFacts, now: float) -> Finding:
    """Name the cause of a TLS alert about our certificate. Go 1.19 says "bad certificate" for all, 1.26 more."""
    said = f'The Auth Service refused our certificate (TLS alert "{alert}")'
    if ours.not_after <= now:
        message = f"{said}: it expired on {_when(ours.not_after)}."
        return failure("client.expired", addr, message, sign_again(ours.user))
    if ours.not_before > now:
        message = (
            f"{said}: it is not valid before {_when(ours.not_before)}; the clock of this machine says {_when(now)}."
        )
        return failure("client.not_yet_valid", addr, message, _SET_CLOCKS)
    if alert == "certificate expired" or now - ours.not_before < _FRESH_SECONDS:
        message = (
            f"{said}, though it is valid from {_when(ours.not_before)} until {_when(ours.not_after)} and the clock of "
            f"this machine says {_when(now)}. The two clocks probably differ."
        )
        return failure("client.clock", addr, message, f"{_SET_CLOCKS} If they agree: {_lower(sign_again(ours.user))}")
    message = f"{said}: its dates and its cluster are right, so the User CA that signed it is no longer the cluster's."
    fix = f"The User CA was rotated, or the cluster was built anew. {sign_again(ours.user)}"
    return failure("client.unknown_authority", addr, message, fix)


def client_closed(addr: str) -> Finding:
    """The handshake was done, and then there was an end without an alert."""
    message = f"{addr} closed the connection right after the TLS handshake, without an alert."
    return failure("client.closed", addr, message, _PROXY_PROTOCOL)


def no_handshake(addr: str, heard: bytes, alert: str, reason: str) -> Finding:
    """Name the cause of a failed handshake from the peer's first bytes, its alert, and OpenSSL's reason."""
    if heard.startswith(b"HTTP/"):
        return failure("handshake.plain_http", addr, f"{addr} answers in plain HTTP, without TLS.", _USE_AUTH_PORT)
    if heard.startswith(b"SSH-"):
        message = f"{addr} is an SSH port, perhaps 3022 to 3024 of a Teleport node or Proxy."
        return failure("handshake.ssh", addr, message, _USE_AUTH_PORT)
    if heard and heard[0] not in range(0x14, 0x18):  # the four record types of TLS
        return failure("handshake.no_tls", addr, f"{addr} does not speak TLS.", _USE_AUTH_PORT)
    if heard[:1] + heard[6:7] == b"\x15\x78":  # the alert no_application_protocol, whose name OpenSSL 3.0 does not know
        return no_http2(addr)
    if alert:
        message = f'{addr} ended the TLS handshake with the alert "{alert}".'
        return failure("handshake.alert", addr, message, "Look at the log of the Auth Service.")
    if reason:
        message = f"The TLS handshake with {addr} failed: {reason}."
        return failure("handshake.failed", addr, message, "Look at the log of the Auth Service.")
    message = f"{addr} closed the connection during the TLS handshake."
    return failure("handshake.closed", addr, message, f"{_USE_AUTH_PORT} {_PROXY_PROTOCOL}")


def no_http2(addr: str) -> Finding:
    """An Auth Service always agrees to h2, and gRPC needs it."""
    message = f"{addr} speaks TLS, but not HTTP/2 (ALPN h2): it is no Auth Service, or something before it ends TLS."
    fix = f"{_USE_AUTH_PORT} A load balancer must pass TCP through."
    return failure("handshake.no_http2", addr, message, fix)


def way_taken(addr: str, tcp_seconds: float, tls_seconds: float, *, is_proxy: bool) -> Finding:
    """Which way the Auth Service was reached, and what each hop took."""
    way, peer = ("through the Proxy", "Proxy") if is_proxy else ("directly", "Auth Service")
    hops = f"TCP with the {peer} took {_ms(tcp_seconds)}, TLS with the Auth Service {_ms(tls_seconds)}"
    return Finding("teleport.way", "ok", addr, f"The Auth Service is reached {way}: {hops}.")


def judge_proxy(addr: str, proxy: ProxyPing, ours: CertificateFacts) -> Finding:
    """Whether a Proxy leads to our Auth Service. Raises Failed."""
    what = f"{addr} is the Proxy of cluster {shown(proxy.cluster)} (Teleport {shown(proxy.version)})"
    if proxy.cluster != our_cluster(ours):
        message = f"{what}; our certificate is of cluster {shown(our_cluster(ours))}."
        fix = f"Set addr in [teleport] to the Proxy or the Auth Service of our cluster. Or: {sign_again(ours.user)}"
        raise Failed(failure("proxy.other_cluster", addr, message, fix))
    if not proxy.tls_routing:
        message = (
            f"{what}, without TLS routing: it leads to the Auth Service through SSH alone, which is not spoken here."
        )
        fix = (
            f"{_USE_AUTH_PORT} Or switch TLS routing on (Teleport 8 and newer), in /etc/teleport.yaml there:"
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
        message = (
            f"{addr} is the Proxy of a Teleport cluster, but something before it ends TLS and strips ALPN, as a load "
            "balancer does: what was meant for the Auth Service did not get there."
        )
        return failure("proxy.terminated", addr, message, _WITHOUT_IT)
    if cause.startswith(("handshake", "client.closed", "client.timeout")):
        message = f"{finding.message} It is a Proxy that does not reach its Auth Service."
        return failure(cause, addr, message, "Is the Auth Service running? Look at the log of the Proxy Service.")
    return finding


def untrusted_proxy(addr: str, verdict: ssl.SSLCertVerificationError) -> Finding:
    """A Proxy is believed what it says of itself only where somebody vouches for its certificate."""
    message = (
        f"{addr} is the Proxy of a Teleport cluster, but its certificate is not trusted: {verdict.verify_message}."
    )
    fix = f"Set proxy_ca_file in [teleport] to the CA that signed it. Or: {_lower(_USE_AUTH_PORT)}"
    return failure("proxy.untrusted", addr, message, fix)


def unusable_proxy_ca(ca_file: Path | None, problem: str) -> Finding:
    """The file that is to vouch for the Proxy does not serve."""
    message = f"The certificate authority of the Proxy cannot be used: {problem}."
    fix = "Correct proxy_ca_file in [teleport]: a PEM file with the authority's certificate."
    return failure("proxy.ca_file", str(ca_file), message, fix)


def cluster_name_too_long(addr: str) -> Finding:
    """An ALPN name has at most 255 bytes, and Teleport writes the cluster's into it twice as long."""
    message = f"The name of our cluster is too long for the way through the Proxy at {addr}."
    return failure("proxy.cluster_name", addr, message, _USE_AUTH_PORT)


def out_of_descriptors(exc: OSError) -> Finding:
    """Nothing is wrong with the peer or the files."""
    message = f"This process can open nothing more: {exc.strerror}."
    return failure(
        "connect.resources", "client_key", message, "Raise its limit of open files (LimitNOFILE, ulimit -n)."
    )


def too_slow(step: Literal["resolve", "connect", "handshake", "client"], addr: str, seconds: float) -> Finding:
    """Name the step at which a peer went silent."""
    message, fix = {
        "resolve": (f"The name in {addr} was not resolved", "Look at the name servers of this machine."),
        "connect": (f"No connection to {addr}", "A firewall may drop the packets; is the address right?"),
        "handshake": (f"{addr} accepted the connection but did not answer the TLS handshake", _USE_AUTH_PORT),
        "client": (f"{addr} did not answer HTTP/2 after the TLS handshake", "Look at the log of the Auth Service."),
    }[step]
    return failure(f"{step}.timeout", addr, f"{message} within {seconds:g} s.", fix)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    for size, unit in ((_DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} seconds"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
