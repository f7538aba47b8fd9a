"""What Teleport's answers say about its version, its clock, our rights and our records. Pure.

Rights cannot be asked for, only tried; Teleport 7 to 18 deny all of them in the same words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

import msgspec

from sidecar.check.report import count, found
from sidecar.config.checks import doubt
from sidecar.decisions.record import KEY, Record, decode
from sidecar.model import PENDING, AccessRequest, Ping, PluginData
from sidecar.teleport.findings import Finding, shown
from sidecar.teleport.x509 import CertificateFacts

_DENIED = re.compile(r'access denied to perform action "(\w+)" on "(\w+)"')
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


def role_of(roles: tuple[str, ...]) -> str:
    """Which role of ours has to allow more."""
    return f"the role {shown(roles[0])}" if len(roles) == 1 else f"one of our roles ({shown(*roles)})"


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
        yield found("teleport.user_deleted", user, user=user)


def _server(answers: Answers) -> Iterator[Finding]:
    info, addr = answers.info, answers.addr
    if info is None:
        return
    version, cluster = shown(info.server_version), shown(info.cluster)
    yield found("teleport.ping", addr, version=version, cluster=cluster)
    if info.cluster != answers.ours.cluster:
        yield found("teleport.ping.other_cluster", addr, cluster=cluster, ours=shown(answers.ours.cluster))
    major, _ = version_of(info)
    if major < _OLDEST:
        yield found(f"teleport.version.{'too_old' if major else 'unknown'}", addr, version=version)


def _clock(answers: Answers, now: float) -> Iterator[Finding]:
    """Teleport does not report its time: what it has dated shows a slow local clock, and nothing shows a fast one."""
    if answers.requests is None:
        return
    newest = max((request.created or 0.0 for request in answers.requests), default=0.0)
    if newest - now > _SKEW_SECONDS:
        yield found("teleport.clock+behind", answers.addr, seconds=int(newest - now))
    else:
        yield found("teleport.clock", answers.addr, requests=count(len(answers.requests), "access request"))


def _watch(answers: Answers) -> Iterator[Finding]:
    if answers.watched:
        yield found("teleport.rights.watch", answers.addr)
    elif detail := answers.denials.get("teleport.rights.watch"):
        role = role_of(answers.ours.roles)
        yield found("teleport.rights.watch+denied", answers.addr, words=_words(detail), role=role)


def _list(answers: Answers, now: float) -> Iterator[Finding]:
    """A missing `list` is no error in Teleport: it shows nothing, or what we may review. Plugin data shows it."""
    addr, role = answers.addr, role_of(answers.ours.roles)
    denied = answers.denials.get("teleport.rights.list") or answers.denials.get("teleport.plugin_data", "")
    match = _DENIED.search(denied)
    if match and match[1] == "list":
        # `list` on access_request would do for plugin data too, so it is missing there as well.
        yield found("teleport.rights.list+denied", addr, words=_words(denied), role=role)
        return
    if answers.requests is None:
        return
    still_open = sum(_is_open(data, now) for data in answers.records or ())
    if answers.requests:
        pending = sum(request.state == PENDING for request in answers.requests)
        yield found(
            "teleport.rights.list", addr, requests=count(len(answers.requests), "access request"), pending=pending
        )
    elif still_open:
        yield found("teleport.rights.list+hidden", addr, number=still_open, role=role)
    else:
        yield found("teleport.rights.list+none", addr)


def _is_open(data: PluginData, now: float) -> bool:
    record = decode(data.data.get(KEY, ""))
    return isinstance(record, Record) and not record.done and record.exp > now


def _records(answers: Answers, now: float) -> Iterator[Finding]:
    addr, role = answers.addr, role_of(answers.ours.roles)
    if detail := answers.denials.get("teleport.plugin_data"):
        yield found("teleport.rights.plugin_data.read+denied", addr, words=_words(detail), role=role)
    elif answers.records is not None:
        yield found(
            "teleport.rights.plugin_data.read",
            addr,
            records=count(len(answers.records), "record"),
            name=answers.plugin_name,
        )
    if detail := answers.denials.get("teleport.rights.plugin_data"):
        yield found("teleport.rights.plugin_data.update+denied", addr, words=_words(detail), role=role)
    elif answers.may_update:
        yield found("teleport.rights.plugin_data.update", addr)
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
    if theirs:
        name, minutes = answers.plugin_name, count(int(max(0.0, now - max(theirs)) // 60), "minute")
        yield found("teleport.official_plugin", name, name=name, number=len(theirs), minutes=minutes)


def _role_names(answers: Answers) -> Iterator[Finding]:
    """Names that match no role, but nearly one that people ask for. Our rights do not allow listing all roles."""
    asked = {role.lower(): role for request in answers.requests or () for role in request.roles}
    for name in answers.roles:
        if name in asked.values():
            continue
        near = difflib.get_close_matches(name.strip().lower(), asked, n=1, cutoff=0.8 if doubt(name) else 1.0)
        if near:
            yield found("role_to_recipients", f'"{name}"', name=name, near=shown(asked[near[0]]))


def _words(detail: str) -> str:
    """Teleport's own words out of ours."""
    match = _DENIED.search(detail)
    return match[0] if match else detail
