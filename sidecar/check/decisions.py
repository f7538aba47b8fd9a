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

from sidecar.check.report import Step, failure, ok, sentence, side_by_side, warning
from sidecar.check.rights import rule, version_of
from sidecar.config import Config
from sidecar.errors import LinkError, RequestGone, ReviewRejected
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
_LOOK = "Look at the log of the Auth Service."


async def check_decisions(
    client: AuthClient, connector: Connector, config: Config, info: Ping, credentials: Credentials
) -> list[Finding]:
    """Check what `reviews.submit_as` needs of Teleport."""
    ours = read_certificate(credentials.certificate)
    findings = list(_edition(config, info))
    steps: list[Step] = []
    match config.reviews.submit_as:
        case "plugin":
            steps = [_step("teleport.rights.review", ours.user, partial(_may_review, client, ours.user, ours.roles))]
        case "state":
            steps = [_step("teleport.rights.state", ours.user, partial(_may_set_state, client, ours.user, ours.roles))]
        case "on_behalf" if version_of(info) >= _ON_BEHALF:
            steps = [
                _step("reviewer.rights", user, partial(_may_submit_for, client, user, ours.user, ours.roles))
                for user in _mapped(config)
            ]
        case "reviewer":
            folder = config.reviews.identities or Path()
            findings += _folder(config, folder)
            cas = config.teleport.identity or config.teleport.root_cas
            for user in _users(config, folder):
                found, theirs = _credential(user, folder, cas, info.cluster)
                findings += found
                if theirs is not None:
                    ask = partial(_may_review_as, connector, user, theirs, credentials)
                    steps.append(_step("reviewer.rights", user, ask))
    return findings + await side_by_side(steps, _SECONDS)


def _step(id: str, subject: str, ask: Callable[[], Awaitable[Finding]]) -> Step:
    async def run() -> list[Finding]:
        try:
            return [await ask()]
        except LinkError as exc:
            return [failure(f"{id}.{exc.reason}", subject, sentence(exc.detail), _LOOK)]

    message = f"Teleport did not answer within {_SECONDS:g} s whether reviews may be submitted."
    return Step(run, failure(f"{id}.timeout", subject, message, _LOOK))


def _edition(config: Config, info: Ping) -> Iterator[Finding]:
    mode, subject = config.reviews.submit_as, "reviews.submit_as"
    enabled = [
        name
        for name, on in (
            ("Ping says AdvancedAccessWorkflows (feature 7)", info.advanced_workflows),
            ("Ping names an enabled entitlement (field 35)", info.any_entitlement),
        )
        if on
    ]
    if mode == "state" and enabled:
        message = f'"state" is for the community edition alone; this Teleport has reviews: {" and ".join(enabled)}.'
        fix = 'Use submit_as = "reviewer" or "plugin": there Teleport itself counts the reviews.'
        yield failure("reviews.state.edition", subject, message, fix)
    elif mode == "state":
        yield ok("reviews.state.edition", subject, "This is the community edition, for which state is meant.")
    elif mode != "none" and not enabled:
        message = "This Teleport says that it has no access reviews: it seems to be the community edition."
        fix = 'There, "state" with a policy is the only way to decide from Mattermost.'
        yield warning("reviews.edition", subject, message, fix)
    if mode == "on_behalf" and version_of(info) < _ON_BEHALF:
        message = f'"on_behalf" needs Teleport 18.11 or newer; this is {info.server_version}.'
        yield failure("reviews.on_behalf.version", subject, message, 'Upgrade Teleport, or use "reviewer" or "plugin".')


def _mapped(config: Config) -> list[str]:
    return list(dict.fromkeys(reviewer.user for reviewer in config.reviewers.values()))


def _users(config: Config, folder: Path) -> list[str]:
    """Whose credentials are needed: everybody's in the map; without one, everybody's who has any."""
    if config.reviews.identity == "map":
        return _mapped(config)
    return sorted(path.stem for path in folder.glob("*.crt"))


def _folder(config: Config, folder: Path) -> Iterator[Finding]:
    if not folder.is_dir():
        fix = "Make it, and put <teleport user>.crt and .key into it for each reviewer."
        yield failure("reviews.identities", str(folder), "There is no such folder.", fix)
        return
    mapped = set(_mapped(config))
    unused = sorted(path.stem for path in folder.glob("*.crt") if path.stem not in mapped)
    if unused and config.reviews.identity == "map":
        message = f"It holds credentials of {', '.join(unused)}, whom [reviewers] does not name."
        fix = "Remove what is not needed: whoever holds these files can review."
        yield warning("reviews.identities.unused", str(folder), message, fix)


def _credential(user: str, folder: Path, cas: Path, cluster: str) -> tuple[list[Finding], Credentials | None]:
    crt, key = folder / f"{user}.crt", folder / f"{user}.key"
    sign = _sign(user, folder)
    try:
        found = read_reviewer(user, crt, key, cas, cluster)
    except ReviewRejected as refused:
        fix = f"chmod 600 {shlex.quote(str(key))}" if "mode" in refused.detail else sign
        return [failure("reviewer.credential.refused", user, sentence(refused.detail), fix)], None
    theirs, now = read_certificate(found.certificate), time.time()
    if ending(theirs, now):
        left = theirs.not_after - now
        when = f"{int(left // 86_400)} days" if left >= 2 * 86_400 else f"{int(left // 3600)} hours"
        message = f"The certificate expires in {when}."
        return [warning("reviewer.credential.expires_soon", user, message, sign)], found
    return [ok("reviewer.credential", user, f"{crt.name} and {key.name} are {user}'s and fit together.")], found


def _sign(user: str, folder: Path) -> str:
    out = shlex.quote(str(folder / user))
    return (
        "On the Auth Service host (a local user, best with the reviewer role alone): "
        f"tctl auth sign --format=tls --user={shlex.quote(user)} --ttl=8760h --out={out}"
    )


async def _may_review_as(connector: Connector, user: str, theirs: Credentials, main: Credentials) -> Finding:
    credentials = Credentials(theirs.certificate, theirs.key, main.authorities, ca_pins=main.ca_pins)
    async with connector.open(credentials) as client:
        try:
            await client.submit_review(str(uuid.uuid4()), user, DENIED, _REASON)
        except RequestGone:
            pass
        except ReviewRejected as refused:
            return _refused("reviewer.rights", user, refused, f"Give {user} a role with review_requests on Teleport.")
    return ok("reviewer.rights", user, f"Teleport accepts the credentials of {user} and would take a review.")


async def _may_review(client: AuthClient, user: str, roles: tuple[str, ...]) -> Finding:
    try:
        await client.submit_review(str(uuid.uuid4()), user, DENIED, _REASON)
    except RequestGone:
        pass
    except ReviewRejected as refused:
        fix = f"Add to allow of the role {roles[0] if roles else user}:\n  review_requests:\n    roles: [dbadmin]"
        return _refused("teleport.rights.review", user, refused, fix)
    return ok("teleport.rights.review", user, "We may submit reviews.")


async def _may_set_state(client: AuthClient, user: str, roles: tuple[str, ...]) -> Finding:
    try:
        await client.set_state(str(uuid.uuid4()), DENIED, _REASON, user)
    except RequestGone:
        pass
    except ReviewRejected as refused:
        lines = "  - resources: [access_request]\n    verbs: [list, read, update]"
        return _refused("teleport.rights.state", user, refused, rule(roles, lines))
    return ok("teleport.rights.state", user, "We may set the state of access requests.")


async def _may_submit_for(client: AuthClient, author: str, user: str, roles: tuple[str, ...]) -> Finding:
    try:
        await client.submit_review(str(uuid.uuid4()), author, DENIED, _REASON, on_behalf_by=user)
    except RequestGone:
        pass
    except ReviewRejected as refused:
        role = roles[0] if roles else user
        fix = f"Add to allow of the role {role}:\n  review_requests:\n    submit_for_users: [{author}]"
        return _refused("reviewer.rights", author, refused, fix)
    return ok("reviewer.rights", author, f"We may submit reviews for {author}.")


def _refused(id: str, subject: str, refused: ReviewRejected, fix: str) -> Finding:
    words = refused.detail.partition("; add to allow.rules")[0]
    if refused.reason == "mfa_required":
        fix = (
            "Sign the credentials by tctl auth sign on the Auth Service host itself, or use a Machine ID bot: both are "
            "exempt from the second factor for administrative actions."
        )
    return failure(f"{id}.{refused.reason}", subject, f"Teleport would refuse: {words}.", fix)
