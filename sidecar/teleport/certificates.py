"""What is said of the certificate that a server shows, and of the alert with which it refuses ours. Pure."""

from __future__ import annotations

import ipaddress
import ssl

from sidecar.teleport.findings import API_DOMAIN, Finding, Ours, found, lower, shown, when
from sidecar.teleport.x509 import CertificateFacts

# Teleport dates a certificate one minute back (lib/tlsca/ca.go), so a fresh one shows a server clock that is behind.
_FRESH_SECONDS = 600
# X509_V_ERR_…: the issuer is not among the authorities, or has another key than the one we know.
_UNKNOWN_AUTHORITY = frozenset({2, 7, 18, 19, 20, 21})


def judge_server(addr: str, theirs: CertificateFacts, ours: Ours) -> Finding:
    """Whether a certificate that OpenSSL trusts is our Auth Service's: root_cas may hold other clusters too."""
    if theirs.issuer_organisation != ours.cluster:
        return _other_cluster(addr, theirs, ours)
    if not claims_to_be_auth(theirs):
        return _not_auth(addr, theirs)
    cluster, names = shown(theirs.issuer_organisation), shown(*theirs.dns_names, *theirs.ip_addresses)
    since, until = when(theirs.not_before), when(theirs.not_after)
    return found("server", addr, cluster=cluster, names=names, since=since, until=until)


def claims_to_be_auth(theirs: CertificateFacts) -> bool:
    """Whether the certificate bears the name of every Auth Service."""
    return _matches_any(theirs.dns_names, API_DOMAIN)


def judge_names(theirs: CertificateFacts, host: str, port: int, verify: str) -> Finding:
    """Whether the certificate bears the host that we dial: only `verify = "hostname"` asks for that."""
    addr = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    problem, cause = _names_problem(theirs, host)
    if not problem:
        return found("names", addr, host=host)
    add = (
        "add the address to /etc/teleport.yaml on the Auth Service host and restart Teleport there:\n"
        f'auth_service:\n  public_addr:\n    - "{addr}"'
    )
    if verify == "hostname":
        avoid = "or check the cluster instead of the address, in the configuration of the sidecar:"
        fix = f'Either {add}\n{avoid}\n[teleport]\nverify = "cluster"'
        return Finding(f"teleport.names.{cause}", "failure", addr, problem, fix)
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
    ours: Ours,
    *,
    is_proxy: bool,
    verdict: ssl.SSLCertVerificationError,
    now: float,
) -> Finding:
    """Name the cause when OpenSSL did not trust the certificate; nothing in `theirs` is proven."""
    if is_proxy:
        return found("server.proxy", addr, names=shown(*theirs.dns_names))
    if not claims_to_be_auth(theirs):
        return _not_auth(addr, theirs)
    if not theirs.not_before <= now <= theirs.not_after:
        return _server_out_of_date(addr, theirs, now)
    if theirs.issuer_organisation != ours.cluster:
        return _other_cluster(addr, theirs, ours)
    if verdict.verify_code not in _UNKNOWN_AUTHORITY:
        return found("server.untrusted", addr, why=verdict.verify_message)
    return found("server.unknown_authority", addr, cas=ours.files.cas, sign_again=ours.sign_again())


def _server_out_of_date(addr: str, theirs: CertificateFacts, now: float) -> Finding:
    if theirs.not_after < now:
        return found("server.expired", addr, until=when(theirs.not_after), now=when(now))
    return found("server.not_yet_valid", addr, since=when(theirs.not_before), now=when(now))


def _not_auth(addr: str, theirs: CertificateFacts) -> Finding:
    return found("server.not_auth", addr, names=shown(*theirs.dns_names, *theirs.ip_addresses))


def _other_cluster(addr: str, theirs: CertificateFacts, ours: Ours) -> Finding:
    clusters = {"theirs": shown(theirs.issuer_organisation), "ours": shown(ours.cluster)}
    return found("server.other_cluster", addr, **clusters, sign_again=ours.sign_again())


def judge_refusal(addr: str, alert: str, ours: Ours, now: float) -> Finding:
    """Name the cause of a TLS alert about our certificate. Go 1.19 says "bad certificate" for all, 1.26 more."""
    facts = {"alert": alert, "since": when(ours.not_before), "until": when(ours.not_after), "now": when(now)}
    again = ours.sign_again()
    if ours.not_after <= now:
        return found("client.expired", addr, **facts, sign_again=again)
    if ours.not_before > now:
        return found("client.not_yet_valid", addr, **facts)
    if alert == "certificate expired" or now - ours.not_before < _FRESH_SECONDS:
        return found("client.clock", addr, **facts, sign_again=lower(again))
    return found("client.unknown_authority", addr, **facts, sign_again=again)
