"""The fields of a card: each a function of the request that gives its text, "" where there is nothing to say.

One rule: every untrusted value goes through `sidecar.text.neutral`; times are absolute, so a field changes only when
the request does.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from typing import Literal, assert_never

import msgspec

from sidecar.model import APPROVED, DENIED, EXPIRED, PENDING, PROMOTED, REMOVED, AccessRequest, Resource
from sidecar.text.command import short_id
from sidecar.text.names import NAME, REASON, ROLES, count, short_reason
from sidecar.text.neutral import code_span, fenced, plain

Way = Literal["reaction", "reply", "direct"]

# An id of another shape could smuggle something into a command that people copy.
PLAIN_ID = re.compile("[0-9A-Za-z-]{1,64}")
_WEB_URL = re.compile(r"https?://[0-9A-Za-z.:\[\]/_~%-]{1,300}")
_EMOJI = {PENDING: "⏳ ", APPROVED: "✅ ", DENIED: "❌ ", EXPIRED: "⌛ "}
_STATES = (PENDING, APPROVED, DENIED, EXPIRED, PROMOTED, REMOVED)
NARROWED = "narrowed in a way this sidecar cannot show"
_TELEPORT_ONLY = {
    "long_term": "A long-term request.",
    "unknown_kind": "A kind of request that this sidecar does not know.",
    "unreadable": f"A request {NARROWED}.",
}
_VERDICTS = {APPROVED: "approval", DENIED: "denial", PROMOTED: "promotion"}


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator and the Auth Service say about every message.

    `web_url` is the proxy's base URL ("" where there is none), `time_zone` an IANA name that the configuration has
    checked, `ways` the ways to decide in Mattermost (empty: none), an emoji a name without colons.
    """

    cluster: str = ""
    web_url: str = ""
    reviews_supported: bool = True
    time_zone: str | None = None
    ways: tuple[Way, ...] = ()
    approve_emoji: str = "white_check_mark"
    deny_emoji: str = "x"
    require_reason: Literal["none", "approve", "deny", "both"] = "none"
    # Whether Teleport takes reviews from people: `tsh request review` is refused on the edition without them.
    commands: bool = True
    # Whether ids are chosen by clients (servers before 16), so that an end of one is no name for it.
    whole_ids: bool = False
    # How many suggested reviewers of this request were too many to be told, and who decides about it by the policy.
    left_out: int = 0
    deciders: tuple[str, ...] = ()
    # Whether nobody is asked to review it: only the requester is told.
    unasked: bool = False


class Limits(msgspec.Struct, frozen=True):
    """How much of a request is shown: runes of each text, then the number of entries in each list."""

    reason: int
    resolution: int
    name: int
    reviews: int
    resources: int
    roles: int


def field_values(
    request: AccessRequest, state: str, kind: str, options: TextOptions, limits: Limits, *, whole: bool = False
) -> dict[str, str]:
    """Each field's text, in the order of a card; what changes comes first.

    Who asks for what, and why, stands in the message, and here where the message had no room for it, or with `whole`.
    """
    zone = zone_of(options.time_zone)
    starts = _moment(request.assume_start, zone)
    expires = deadline(request.expires, request.created, zone)
    until = deadline(request.access_until, request.created, zone)
    if until == expires:
        # Once it is granted, the end of the request is no news any more.
        until, expires = (until, "") if state == APPROVED else ("", expires)
    if starts:
        until = f"{until}, not before {starts}" if until else f"not before {starts}"
    cut = len(short_reason(request)) > REASON
    return {
        "Requester": code_span(request.user, NAME) if whole else "",
        "Roles": _listed(request.roles, limits.roles, limits.name) if whole or len(request.roles) > ROLES else "",
        "State": state_text(state) + (access_list(request, limits.name) if state == PROMOTED else ""),
        "Reviews": _reviews(request, state, limits),
        "Expires": expires,
        "Access until": until,
        "Resources": _resources(request.resources, options.cluster, limits),
        "Reason": fenced(request.reason, limits.reason) if whole or cut else "",
        "Resolution": fenced(request.resolve_reason, limits.resolution),
        "Decide": _decide(request, options) if state == PENDING and kind == "card" else "",
        "Kind": _kind(request.kind),
    }


def small_print(request: AccessRequest, options: TextOptions, limits: Limits) -> str:
    """Where and when it was made, and its whole id, as one line that no client takes for Markdown."""
    zone = zone_of(options.time_zone)
    created = _moment(request.created, zone)
    parts = (options.cluster, f"created {created}" if created else "", request.id)
    return " · ".join(plain(part, limits.name) for part in parts if part)


def state_name(state: str) -> str:
    return state if state in _STATES or re.fullmatch("STATE -?[0-9]{1,10}", state) else "STATE ?"


def state_text(state: str) -> str:
    return _EMOJI.get(state, "") + state


def access_list(request: AccessRequest, limit: int) -> str:
    name = code_span(request.promoted_title or request.promoted_name, limit)
    return f" to the access list {name}" if name else ""


def _listed(names: tuple[str, ...] | list[str], most: int, limit: int) -> str:
    shown = [code_span(name or "(empty)", limit) for name in names[:most]]
    if len(names) > most:
        shown.append(f"… {len(names) - most} more")
    return ", ".join(shown)


def _resources(resources: tuple[Resource, ...], own_cluster: str, limits: Limits) -> str:
    groups: dict[tuple[str, str], list[str]] = {}
    for resource in resources[: limits.resources]:
        groups.setdefault((resource.kind, resource.cluster), []).append(_resource(resource, limits))
    if not groups:
        return ""
    lines = [f"{count(len(resources), 'resource')}:"]
    if len(resources) > limits.resources:
        lines[0] = f"{len(resources)} resources, the first {limits.resources} of them:"
    for (kind, cluster), names in groups.items():
        where = f" in {code_span(cluster, limits.name)}" if cluster not in {"", own_cluster} else ""
        lines.append(f"{code_span(kind, limits.name)}{where}: {', '.join(names)}")
    return "\n".join(lines)


def _resource(resource: Resource, limits: Limits) -> str:
    path = f"{resource.name}/{resource.sub_resource}" if resource.sub_resource else resource.name
    name = code_span(path or "(empty)", limits.name)
    if resource.unreadable:
        return f"{name} ({NARROWED}: see Teleport)"
    if resource.constraint:
        return f"{name} (only the {resource.constraint} {_listed(resource.only, limits.resources, limits.name)})"
    return name


def _kind(kind: str) -> str:
    return {"": "", "SHORT_TERM": "short term", "LONG_TERM": "long term"}.get(kind, f"unknown: {kind}")


def _reviews(request: AccessRequest, state: str, limits: Limits) -> str:
    authors: dict[str, list[str]] = {word: [] for word in (*_VERDICTS.values(), "other review")}
    for review in request.reviews:
        authors[_VERDICTS.get(review.proposed_state, "other review")].append(review.author)
    needed = approvals_needed(request)
    # "0 of 2" is worth saying while it is open: it tells that one approval is not enough.
    open_count = needed > 1 and state == PENDING
    parts = []
    for word, names in authors.items():
        of_needed = word == "approval" and needed and (names or open_count)
        if not (names or of_needed):
            continue
        head = f"{len(names)} of {count(needed, word)}" if of_needed else count(len(names), word)
        parts.append(f"{head}: {_listed(names, limits.reviews, limits.name)}" if names else head)
    return "; ".join(parts)


def approvals_needed(request: AccessRequest) -> int:
    """How many approvals it takes, where one threshold without a filter decides; else 0."""
    match request.thresholds:
        case (threshold,) if not threshold.filter:
            return max(0, threshold.approve)
        case _:
            return 0


def zone_of(name: str | None) -> tzinfo | None:
    """The time zone of this name."""
    if not name:
        return None
    import zoneinfo  # noqa: PLC0415 - costs each start 9 ms, and few name a zone

    return zoneinfo.ZoneInfo(name)


def _moment(seconds: float | None, zone: tzinfo | None) -> str:
    if seconds is None:
        return ""
    try:
        utc = datetime.fromtimestamp(seconds, UTC)
        local = utc.astimezone(zone or UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    text = f"{_minute(utc)} UTC"
    if zone is None:
        return text
    other = _minute(local) if local.date() != utc.date() else _minute(local)[11:]
    return f"{text} ({other} {local.tzname()})"


def _minute(moment: datetime) -> str:
    return moment.isoformat(sep=" ")[:16]


def deadline(seconds: float | None, created: float | None, zone: tzinfo | None) -> str:
    """A moment, and how long after another one it is."""
    moment = _moment(seconds, zone)
    if not moment or seconds is None or created is None or not _moment(created, None):
        return moment
    length = _duration(seconds - created)
    return f"{moment}, {length}" if length else moment


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24)
    parts = [f"{number} {unit}" for number, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if number]
    return " ".join(parts) if seconds > 0 else ""


def _decide(request: AccessRequest, options: TextOptions) -> str:
    """Who may decide here and how, on one line."""
    if not PLAIN_ID.fullmatch(request.id):
        return ""
    link = _link(request.id, options)
    if request.teleport_only:
        return f"{_TELEPORT_ONLY[request.teleport_only]} {link or 'Review it on the web page of Teleport.'}"
    ways = list(filter(None, (_here(way, request.id, options) for way in options.ways)))
    who = f"{_listed(options.deciders, 5, 60)}: " if options.deciders else ""
    here = f"{who or 'Here: '}{'; or '.join(ways)}." if ways else ""
    more = f"Suggested reviewers were told directly, and {options.left_out} more were not." if options.left_out else ""
    # The commands are long, and whoever has another way needs none.
    typed = " or ".join(f"`tsh request review --{verb} {request.id}`" for verb in ("approve", "deny"))
    commands = typed if options.commands and not (link and ways) else ""
    return " ".join(filter(None, (f"{link}." if link else "", here, commands, more)))


def _here(way: Way, request_id: str, options: TextOptions) -> str:
    must = {
        "approve": options.require_reason in {"approve", "both"},
        "deny": options.require_reason in {"deny", "both"},
    }
    # Saying why is welcome with every denial.
    because = {"approve": must["approve"], "deny": True}
    match way:
        case "reaction":
            emoji = {"approve": options.approve_emoji, "deny": options.deny_emoji}
            # A reaction cannot carry a reason.
            able = [f":{emoji[verb]}:" for verb in emoji if not must[verb]]
            return f"react with {' or '.join(able)}" if able else ""
        case "reply":
            words = [f"`{verb} because …`" if because[verb] else f"`{verb}`" for verb in because]
            return f"reply {' or '.join(words)}"
        case "direct":
            short = request_id if options.whole_ids else short_id(request_id)
            return f"write me `approve {short}{' …' if must['approve'] else ''}` or `deny {short} …`"
        case _:
            assert_never(way)


def _link(request_id: str, options: TextOptions) -> str:
    if not options.reviews_supported or not _WEB_URL.fullmatch(options.web_url):
        return ""
    return f"[Review in Teleport]({options.web_url.rstrip('/')}/web/requests/{request_id})"
