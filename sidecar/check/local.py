"""What can be checked without any network: files, and whether the configuration can do what it says."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from sidecar.check.report import count, failure, ok, warning
from sidecar.config import Config, MattermostConfig, ReviewsConfig
from sidecar.config.sections import EndpointsConfig
from sidecar.decisions.routing import is_email
from sidecar.errors import ConfigError, LinkRefused
from sidecar.files import load_pair, read_token, reviewer_certificates, trusting
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
        *_endpoint_files(config.endpoints),
        *_identities(config.reviews),
        *_policies(config),
    ]


def _notice(text: str) -> Finding:
    subject, _, message = text.partition(": ")
    return warning("config.notice", subject, message)


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
        message = f"Every user of this machine can read the bot's token (mode {mode:04o})."
        yield warning("mattermost.token.world_readable", str(path), message, f"chmod 600 {path}")
    else:
        yield ok("mattermost.token.file", str(path), "The token file is there.")


def _authority(path: Path | None) -> Iterator[Finding]:
    try:
        trusting("mattermost.ca_file", path)
    except ConfigError as exc:
        yield _broken(
            "mattermost.ca_file", exc, "Correct mattermost.ca_file: a PEM file with the authority's certificate."
        )


def _endpoint_files(endpoints: EndpointsConfig) -> Iterator[Finding]:
    if endpoints.bearer_token_file is not None:
        try:
            read_token("endpoints.bearer_token_file", endpoints.bearer_token_file)
        except ConfigError as exc:
            yield _broken("endpoints.file", exc, "Put the token into this file, for the user that runs the sidecar.")
    if endpoints.tls_crt is not None:
        try:
            load_pair(
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
                "endpoints.tls_crt",
                endpoints.tls_crt,
                endpoints.tls_key,
            )
        except ConfigError as exc:
            yield _broken("endpoints.file", exc, "Put a certificate and its own key, both PEM, in place.")
        else:
            yield ok("endpoints.file", str(endpoints.tls_crt), "The endpoints can show this certificate.")


def _identities(reviews: ReviewsConfig) -> Iterator[Finding]:
    if reviews.submit_as == "reviewer" and reviews.identities is not None:
        try:
            reviewer_certificates(reviews.identities)
        except ConfigError as exc:
            yield _broken("reviews.identities", exc, "Put <teleport user>.crt and .key there for each reviewer.")


def _broken(id: str, exc: ConfigError, fix: str) -> Finding:
    setting, _, message = str(exc).partition(": ")
    return failure(id, setting, f"{message}.", fix)


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
            who = "not an email address, so no Mattermost user can be recognised as them"
        else:
            missing = [user for user in policy.reviewers if user not in known]
            who = "not in [reviewers], so no Mattermost user can be recognised as them"
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
