"""What can be checked without any network: files, and whether the configuration can do what it says."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.request import getproxies

from sidecar.check.report import count, failure, ok, warning
from sidecar.config import Config, MattermostConfig
from sidecar.decisions.routing import is_email
from sidecar.errors import LinkRefused
from sidecar.teleport.findings import Finding
from sidecar.teleport.identity import check_files, check_identity

_NEW_TOKEN = "In Mattermost, Integrations > Bot Accounts, create a token of the bot and write it into this file alone."  # noqa: S105

_UNREADABLE = (
    "Correct mattermost.token_file, or give the file to the user that runs the sidecar, for example with chown."
)


def check_local(config: Config) -> list[Finding]:
    """Every finding that needs no peer."""
    teleport = config.teleport
    if teleport.identity is not None:
        files = check_identity(teleport.identity)
    else:
        files = check_files(teleport.client_crt, teleport.client_key, teleport.root_cas)
    return [
        *(_notice(text) for text in config.notices),
        *files,
        *_token(config.mattermost),
        *_authority(config.mattermost.ca_file),
        *_endpoint_files(config),
        *_proxies(),
        *_policies(config),
    ]


def _notice(text: str) -> Finding:
    subject, _, message = text.partition(": ")
    fix = ""
    if "without an id" in message:
        fix = "sidecar check --pin prints the table with the ids."
    elif subject == "endpoints.listen":
        fix = "Give bearer_token_file, and tls_crt with tls_key; or listen on 127.0.0.1 alone."
    return warning("config.notice", subject, message, fix)


def _proxies() -> Iterator[Finding]:
    """Networks in NO_PROXY mean something to Go and curl, and nothing to Python."""
    proxies = getproxies()
    networks = [part.strip() for part in proxies.pop("no", "").split(",") if "/" in part]
    if proxies and networks:
        message = (
            f"{', '.join(networks)}: networks are not understood here, so their hosts are reached through the proxy."
        )
        yield warning("environment.no_proxy", "NO_PROXY", message, "Name Mattermost's host or its domain in NO_PROXY.")


def _token(mattermost: MattermostConfig) -> Iterator[Finding]:
    path = mattermost.token_file
    try:
        mattermost.read_token()
    except LinkRefused as refused:
        subject, _, message = refused.detail.partition(": ")
        fix = _UNREADABLE if isinstance(refused.__cause__, OSError) else _NEW_TOKEN
        yield failure("mattermost.token.file", subject, f"{message}.", fix)
        return
    if path is None:
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & stat.S_IRWXO:
        message = f"Every user of this machine can reach the bot's token (mode {mode:04o})."
        yield warning("mattermost.token.world_readable", str(path), message, f"chmod 600 {path}")
    else:
        yield ok("mattermost.token.file", str(path), "The token file is there.")


def load_authority(path: Path | None) -> ssl.SSLContext | None:
    """A context that trusts `path` beside what the system trusts. Raises OSError (ssl.SSLError is one)."""
    if path is None:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(path)
    return context


def _authority(path: Path | None) -> Iterator[Finding]:
    try:
        load_authority(path)
    except OSError as exc:
        message = f"The certificate authority of Mattermost cannot be used: {exc.strerror or exc}."
        fix = "Correct mattermost.ca_file: a PEM file with the authority's certificate."
        yield failure("mattermost.ca_file", str(path), message, fix)


def _endpoint_files(config: Config) -> Iterator[Finding]:
    endpoints = config.endpoints
    readable = True
    for name in ("tls_crt", "tls_key", "bearer_token_file"):
        path: Path | None = getattr(endpoints, name)
        try:
            content = path.read_bytes() if path is not None else b""
        except OSError as exc:
            readable = False
            fix = f"Correct endpoints.{name}, or give the file to the user that runs the sidecar."
            yield failure("endpoints.file", str(path), f"The file cannot be read: {exc.strerror}.", fix)
        else:
            if path is not None and not content.strip():
                readable = False
                yield failure("endpoints.file", str(path), "The file is empty.", f"Correct endpoints.{name}.")
    if readable and endpoints.tls_crt is not None and endpoints.tls_key is not None:
        yield _endpoint_pair(endpoints.tls_crt, endpoints.tls_key)


def _endpoint_pair(crt: Path, key: Path) -> Finding:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(crt, key)
    except (OSError, ssl.SSLError) as exc:
        message = f"It cannot be used with {key}: {exc.strerror or exc}."
        return failure("endpoints.file", str(crt), message, "Put a certificate and its own key, both PEM, in place.")
    return ok("endpoints.file", str(crt), "The endpoints can show this certificate.")


def _policies(config: Config) -> Iterator[Finding]:
    """Whether each role's policy can ever be met by the people who are known."""
    reviews = config.reviews
    if reviews.submit_as not in {"plugin", "state"}:
        return
    known = {reviewer.user for reviewer in config.reviewers.values()}
    for role, policy in reviews.policy.items():
        subject = f"reviews.policy.{role}"
        if reviews.identity == "email":
            missing = [user for user in policy.reviewers if not is_email(user)]
            who = "no email address, so no Mattermost user is taken for them"
        else:
            missing = [user for user in policy.reviewers if user not in known]
            who = "not in [reviewers], so no Mattermost user is taken for them"
        heard = len(set(policy.reviewers)) - len(set(missing))
        if heard < policy.approvals:
            message = (
                f"It needs {count(policy.approvals, 'approval')}, but only {heard} of its reviewers can be recognised."
            )
            yield failure("reviews.policy.unreachable", subject, message, f"{', '.join(missing)}: {who}.")
        elif missing:
            yield warning("reviews.policy.unknown_reviewer", subject, f"{', '.join(missing)}: {who}.")
        else:
            approvals, denials = count(policy.approvals, "approval"), count(policy.denials, "denial")
            yield ok("reviews.policy", subject, f"It takes {approvals} or {denials} of {heard} who are known.")
    uncovered = [role for role in config.role_to_recipients if role != "*" and role not in reviews.policy]
    if uncovered and "*" not in reviews.policy:
        message = f"Requests for {', '.join(uncovered)} are announced, but no policy says who approves them."
        fix = 'Add a table reviews.policy for each of them, or one for "*".'
        yield warning("reviews.policy.missing", "reviews.policy", message, fix)
