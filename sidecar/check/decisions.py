"""Whether decisions from Mattermost can reach Teleport: the edition, the rights, and reviewers' own credentials.

A right is tried with a review of a request that nobody has: Teleport judges the right first and says NOT_FOUND after.
"""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

from msgspec.structs import replace

from sidecar.check.report import TELEPORT_LOG, Step, failure, found, ok, sentence, side_by_side
from sidecar.check.rights import role_of, version_of
from sidecar.config import Config
from sidecar.errors import ConfigError, LinkError, RequestGone, ReviewRejected
from sidecar.files import reviewer_certificates
from sidecar.model import DENIED, Ping
from sidecar.teleport.client import AuthClient
from sidecar.teleport.connect import Connector
from sidecar.teleport.credentials import Credentials
from sidecar.teleport.findings import Finding, ending
from sidecar.teleport.reviewers import read_reviewer
from sidecar.teleport.x509 import read_certificate

_SECONDS = 7.0
_ON_BEHALF = (18, 11)
_REASON = "sidecar check"


async def check_decisions(
    client: AuthClient, connector: Connector, config: Config, info: Ping, credentials: Credentials
) -> list[Finding]:
    """Check what `reviews.submit_as` needs of Teleport."""
    ours, nobody = read_certificate(credentials.certificate), str(uuid.uuid4())
    role = ours.roles[0] if ours.roles else ours.user
    findings = list(_edition(config, info))
    steps: list[Step] = []
    ask: Callable[[], Awaitable[object]]
    match config.reviews.submit_as:
        case "plugin":
            fix = f"Add to allow of the role {role}:\n  review_requests:\n    roles: [dbadmin]"
            ask = partial(client.submit_review, nobody, ours.user, DENIED, _REASON)
            steps = [_step("teleport.rights.review", ours.user, "We may submit reviews.", fix, ask)]
        case "state":
            fix = (
                f"Add to allow.rules of {role_of(ours.roles)}; sidecar configure --rbac prints all of it:\n"
                "  - resources: [access_request]\n    verbs: [list, read, update]"
            )
            ask = partial(client.set_state, nobody, DENIED, _REASON, ours.user)
            steps = [_step("teleport.rights.state", ours.user, "We may set the state of access requests.", fix, ask)]
        case "on_behalf" if version_of(info) >= _ON_BEHALF:
            for user in _mapped(config):
                fix = f"Add to allow of the role {role}:\n  review_requests:\n    submit_for_users: [{user}]"
                ask = partial(client.submit_review, nobody, user, DENIED, _REASON, on_behalf_by=ours.user)
                steps.append(_step("reviewer.rights", user, f"We may submit reviews for {user}.", fix, ask))
        case "reviewer":
            own, steps = _reviewers(config, connector, info.cluster, credentials)
            findings += own
    return findings + await side_by_side(steps, _SECONDS)


def _step(id: str, subject: str, granted: str, fix: str, ask: Callable[[], Awaitable[object]]) -> Step:
    """Try a right: `ask` names a request that nobody has."""

    async def run() -> list[Finding]:
        try:
            await ask()
        except RequestGone:
            pass
        except ReviewRejected as refused:
            return [_refused(id, subject, refused, fix)]
        except LinkError as exc:
            return [failure(f"{id}.{exc.reason}", subject, sentence(exc.detail), TELEPORT_LOG)]
        return [ok(id, subject, granted)]

    message = f"Teleport did not answer within {_SECONDS:g} s whether reviews may be submitted."
    return Step(run, failure(f"{id}.timeout", subject, message, TELEPORT_LOG))


def _edition(config: Config, info: Ping) -> Iterator[Finding]:
    mode, subject = config.reviews.submit_as, "reviews.submit_as"
    enabled = [
        name
        for name, on in (
            ("Ping says AdvancedAccessWorkflows (feature 7)", info.advanced_workflows),
            ("Ping names a paid entitlement (field 35)", info.paid_entitlement),
        )
        if on
    ]
    if mode == "state" and enabled:
        yield found("reviews.state.edition+enabled", subject, why=" and ".join(enabled))
    elif mode == "state":
        yield found("reviews.state.edition", subject)
    elif mode != "none" and not enabled:
        yield found("reviews.edition", subject)
    if mode == "on_behalf" and version_of(info) < _ON_BEHALF:
        yield found("reviews.on_behalf.version", subject, version=info.server_version)


def _mapped(config: Config) -> list[str]:
    return list(dict.fromkeys(reviewer.user for reviewer in config.reviewers.values()))


def _reviewers(
    config: Config, connector: Connector, cluster: str, credentials: Credentials
) -> tuple[list[Finding], list[Step]]:
    """Each reviewer's own credentials: of everybody in the map; without one, of everybody who has any."""
    users, folder = _mapped(config), config.reviews.identities or Path()
    try:
        held = list(reviewer_certificates(folder))
    except ConfigError:
        held = []  # which has been said
    findings: list[Finding] = []
    if config.reviews.identity == "email":
        users = held
    elif unused := [user for user in held if user not in users]:
        findings.append(found("reviews.identities.unused", str(folder), users=", ".join(unused)))
    steps: list[Step] = []
    for user in users:
        judged, theirs = _credential(user, folder, config.teleport.identity or config.teleport.root_cas, cluster)
        findings.append(judged)
        if theirs is not None:
            own = replace(credentials, certificate=theirs.certificate, key=theirs.key)
            granted = f"Teleport accepts the credentials of {user} and would take a review."
            fix = f"Give {user} a role with review_requests on Teleport."
            steps.append(_step("reviewer.rights", user, granted, fix, partial(_review_as, connector, user, own)))
    return findings, steps


def _credential(user: str, folder: Path, cas: Path, cluster: str) -> tuple[Finding, Credentials | None]:
    crt, key = folder / f"{user}.crt", folder / f"{user}.key"
    sign = _sign(user, folder)
    try:
        credentials = read_reviewer(user, crt, key, cas, cluster)
    except ReviewRejected as refused:
        fix = f"chmod 600 {shlex.quote(str(key))}" if "mode" in refused.detail else sign
        return failure("reviewer.credential.refused", user, sentence(refused.detail), fix), None
    theirs, now = read_certificate(credentials.certificate), time.time()
    if ending(theirs, now):
        left = theirs.not_after - now
        when = f"{int(left // 86_400)} days" if left >= 2 * 86_400 else f"{int(left // 3600)} hours"
        return found("reviewer.credential.expires_soon", user, time=when, sign=sign), credentials
    return found("reviewer.credential", user, crt=crt.name, key=key.name, user=user), credentials


def _sign(user: str, folder: Path) -> str:
    out = shlex.quote(str(folder / user))
    return (
        "On the Auth Service host (a local user, best with the reviewer role alone): "
        f"tctl auth sign --format=tls --user={shlex.quote(user)} --ttl=8760h --out={out}"
    )


async def _review_as(connector: Connector, user: str, credentials: Credentials) -> None:
    async with connector.open(credentials) as client:
        await client.submit_review(str(uuid.uuid4()), user, DENIED, _REASON)


def _refused(id: str, subject: str, refused: ReviewRejected, fix: str) -> Finding:
    words = refused.detail.partition("; add to allow.rules")[0]
    if refused.reason == "mfa_required":
        fix = (
            "Sign the credentials by tctl auth sign on the Auth Service host itself, or use a Machine ID bot: both are "
            "exempt from the second factor for administrative actions."
        )
    return failure(f"{id}.{refused.reason}", subject, f"Teleport would refuse: {words}.", fix)
