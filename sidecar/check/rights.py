"""What Teleport's answers say about its version, its clock, our rights and our records. Pure.

Rights cannot be asked for, only tried; Teleport 7 to 18 deny all of them in the same words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

import msgspec

from sidecar.check.report import count, failure, ok, warning
from sidecar.config.checks import doubt
from sidecar.decisions.record import KEY, Record, decode
from sidecar.model import PENDING, AccessRequest, Ping, PluginData
from sidecar.teleport.findings import Finding, shown
from sidecar.teleport.x509 import CertificateFacts

_DENIED = re.compile(r'access denied to perform action "(\w+)" on "(\w+)"')
_REQUESTS = "  - resources: [access_request]\n    verbs: [list, read]"
_PLUGIN_DATA = "  - resources: [access_plugin_data]\n    verbs: [list, read, update]"
_DAY = 86_400.0
_SKEW_SECONDS = 60.0
_OLDEST = 7


class Answers(msgspec.Struct):
    """What the Auth Service answered; None and False where it did not. `denials`: check -> Teleport's words."""

    addr: str
    ours: CertificateFacts
    plugin_name: str
    # The names in role_to_recipients.
    roles: tuple[str, ...] = ()
    info: Ping | None = None
    watched: bool = False
    requests: list[AccessRequest] | None = None
    records: list[PluginData] | None = None
    may_update: bool = False
    user_deleted: bool = False
    denials: dict[str, str] = {}


def is_denial(detail: str) -> bool:
    """Whether the words name a right that our role lacks."""
    return _DENIED.search(detail) is not None


def version_of(info: Ping) -> tuple[int, int]:
    """Major and minor version; (0, 0) where there is none to read."""
    found = re.match(r"v?(\d+)\.(\d+)", info.server_version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def rule(roles: tuple[str, ...], lines: str) -> str:
    """The fix: what a role of ours has to allow."""
    which = f"the role {shown(roles[0])}" if len(roles) == 1 else f"one of our roles ({shown(*roles)})"
    return f"Add to allow.rules of {which}; sidecar configure --rbac prints all of it:\n{lines}"


def judge(answers: Answers, now: float) -> list[Finding]:
    """Every finding about `answers`; `now` is Unix seconds."""
    return [
        *_user(answers),
        *_server(answers),
        *_clock(answers, now),
        *_watch(answers),
        *_list(answers, now),
        *_records(answers, now),
        *_role_names(answers),
    ]


def _user(answers: Answers) -> Iterator[Finding]:
    """A deleted user fails every call alike."""
    if answers.user_deleted:
        user = shown(answers.ours.user)
        message = f"Teleport no longer has our user {user}: every call with these credentials fails."
        fix = "Create the user again (sidecar configure --rbac prints it), or sign credentials for one that exists."
        yield failure("teleport.user_deleted", user, message, fix)


def _server(answers: Answers) -> Iterator[Finding]:
    info, addr = answers.info, answers.addr
    if info is None:
        return
    version, cluster = shown(info.server_version), shown(info.cluster)
    yield ok("teleport.ping", addr, f"Teleport {version} of cluster {cluster} answers.")
    if info.cluster != answers.ours.cluster:
        message = f"Ping says cluster {cluster}, but our certificate is of cluster {shown(answers.ours.cluster)}."
        fix = "Set addr in [teleport] to the Auth Service of our cluster, or sign new credentials there."
        yield failure("teleport.ping.other_cluster", addr, message, fix)
    major, _ = version_of(info)
    if not major:
        yield warning("teleport.version.unknown", addr, f"{version} is not a version that the sidecar can read.")
    elif major < _OLDEST:
        message = f"Teleport {version} is older than 7, the oldest that the sidecar knows."
        yield failure("teleport.version.too_old", addr, message, "Upgrade Teleport.")


def _clock(answers: Answers, now: float) -> Iterator[Finding]:
    """Teleport does not report its time: what it has dated shows a slow local clock, and nothing shows a fast one."""
    if answers.requests is None:
        return
    newest = max((request.created or 0.0 for request in answers.requests), default=0.0)
    if newest - now > _SKEW_SECONDS:
        message = (
            f"Our clock is at least {int(newest - now)} s behind Teleport's: the newest access request was made that "
            "far in the future."
        )
        fix = "Compare `date -u` on both hosts and let NTP set them."
        yield warning("teleport.clock", answers.addr, message, fix)
        return
    requests = count(len(answers.requests), "access request")
    message = (
        f"Our clock is not behind Teleport's, judged by our certificate and {requests}. Teleport does not report its "
        "time, so a fast local clock cannot be detected."
    )
    yield ok("teleport.clock", answers.addr, message)


def _watch(answers: Answers) -> Iterator[Finding]:
    roles = answers.ours.roles
    if answers.watched:
        yield ok("teleport.rights.watch", answers.addr, "We may watch access requests.")
    elif detail := answers.denials.get("teleport.rights.watch"):
        message = f"We may not watch access requests: {_words(detail)}."
        yield failure("teleport.rights.watch", answers.addr, message, rule(roles, _REQUESTS))


def _list(answers: Answers, now: float) -> Iterator[Finding]:
    """A missing `list` is no error in Teleport: it shows nothing, or what we may review. Plugin data shows it."""
    id, addr, roles = "teleport.rights.list", answers.addr, answers.ours.roles
    denied = answers.denials.get(id) or answers.denials.get("teleport.plugin_data", "")
    found = _DENIED.search(denied)
    if found and found[1] == "list":
        # `list` on access_request would do for plugin data too, so it is missing there as well.
        message = (
            f"We may not list access requests, and Teleport hides them without an error: {_words(denied)}, which "
            "list on access_request would allow."
        )
        yield failure(id, addr, message, rule(roles, _REQUESTS))
        return
    if answers.requests is None:
        return
    still_open = [data.request_id for data in answers.records or () if _is_open(data, now)]
    if answers.requests:
        pending = sum(request.state == PENDING for request in answers.requests)
        yield ok(
            id, addr, f"Teleport lists {count(len(answers.requests), 'access request')}, {pending} of them pending."
        )
    elif still_open:
        message = (
            f"Teleport lists no access request, but {len(still_open)} of those that the sidecar announced should be "
            "there: without the verb list Teleport hides them without an error."
        )
        yield failure(id, addr, message, rule(roles, _REQUESTS))
    else:
        message = "Teleport lists no access request now. Without the verb list it would say the same."
        yield ok(id, addr, message)


def _is_open(data: PluginData, now: float) -> bool:
    record = decode(data.data.get(KEY, ""))
    return isinstance(record, Record) and not record.done and record.exp > now


def _records(answers: Answers, now: float) -> Iterator[Finding]:
    name, addr, roles = answers.plugin_name, answers.addr, answers.ours.roles
    if detail := answers.denials.get("teleport.plugin_data"):
        message = f"We may not read plugin data: {_words(detail)}."
        yield failure("teleport.rights.plugin_data.read", addr, message, rule(roles, _PLUGIN_DATA))
    elif answers.records is not None:
        message = f"We may read plugin data. {count(len(answers.records), 'record')} under the plugin name {name}."
        yield ok("teleport.rights.plugin_data.read", addr, message)
    if detail := answers.denials.get("teleport.rights.plugin_data"):
        message = f"We may not save plugin data, where the sidecar remembers what it posted: {_words(detail)}."
        yield failure("teleport.rights.plugin_data.update", addr, message, rule(roles, _PLUGIN_DATA))
    elif answers.may_update:
        yield ok("teleport.rights.plugin_data.update", addr, "We may save plugin data.")
    yield from _official_plugin(answers, now)


def _official_plugin(answers: Answers, now: float) -> Iterator[Finding]:
    made = {request.id: request.created or 0.0 for request in answers.requests or ()}
    theirs = [
        made[data.request_id]
        for data in answers.records or ()
        if KEY not in data.data
        and ("messages" in data.data or "user" in data.data)
        and made.get(data.request_id, 0.0) > now - _DAY
    ]
    if not theirs:
        return
    name = answers.plugin_name
    message = (
        f"The official plugin has announced {len(theirs)} of today's access requests under the plugin name {name}, "
        f"the last of them made {count(int(max(0.0, now - max(theirs)) // 60), 'minute')} ago."
    )
    fix = (
        "Never run both under one plugin name: stop the official plugin (systemctl stop teleport-mattermost), or set "
        "plugin_name in [teleport]. If it is stopped already, all is well: the sidecar takes its requests over."
    )
    yield warning("teleport.official_plugin", name, message, fix)


def _role_names(answers: Answers) -> Iterator[Finding]:
    """Names that match no role, but nearly one that people ask for. Our rights do not allow listing all roles."""
    asked = {role.lower(): role for request in answers.requests or () for role in request.roles}
    for name in answers.roles:
        if name in asked.values():
            continue
        near = difflib.get_close_matches(name.strip().lower(), asked, n=1, cutoff=0.8 if doubt(name) else 1.0)
        if near:
            message = (
                f'No request asks for "{name}", but for {shown(asked[near[0]])}; names of roles must match exactly.'
            )
            fix = f'Write it in role_to_recipients as "{shown(asked[near[0]])}".'
            yield warning("role_to_recipients", f'"{name}"', message, fix)


def _words(detail: str) -> str:
    """Teleport's own words out of ours."""
    found = _DENIED.search(detail)
    return found[0] if found else detail
