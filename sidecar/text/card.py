"""An access request to the posts that tell of it.

One rule: a draft is a function of the request and the options, never of the clock, so that a post changes only when
its content does. Every untrusted value goes through `sidecar.text.neutral`.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal

from sidecar.model import APPROVED, DENIED, EXPIRED, PENDING, PROMOTED, REMOVED, AccessRequest, Draft
from sidecar.text.fields import (
    NAME,
    PLAIN_ID,
    Limits,
    TextOptions,
    access_list,
    count,
    field_values,
    state_name,
    state_text,
)
from sidecar.text.neutral import code_span, fenced, go_json_runes, plain

__all__ = [
    "PROPS_RUNES",
    "TextOptions",
    "close_card",
    "content_hash",
    "go_json_runes",
    "props_runes",
    "render_card",
    "render_end_reply",
    "render_gone_reply",
    "render_review_reply",
]

# Mattermost 5.37 refuses properties of more than 8,000 runes; its own additions count too.
PROPS_RUNES = 7600
# Kept free for `tm`, `from_bot` and what the server may add ("mentionHighlightDisabled" and the like).
_RESERVED_RUNES = 400
# With this a reply also fits the 4,000 characters of old Mattermost databases.
_REPLY_REASON = 3000

_COLOURS = {PENDING: "#ffbc1f", APPROVED: "#3db887", DENIED: "#d24b4e", PROMOTED: "#1c58d9"}
_GREY = "#8d8d8d"
_SHORT_FIELDS = {"Requester", "Kind", "Created", "Expires", "Access until", "State", "Cluster"}

_FOR_REQUESTER = {
    PENDING: "Your access request waits for review.",
    APPROVED: "Your access request was approved.",
    DENIED: "Your access request was denied.",
    EXPIRED: "Your access request expired before it was decided.",
    PROMOTED: "Your access request was promoted: an access list now gives the access.",
    REMOVED: "Your access request was removed before it was decided.",
}


# Tried in this order until the card fits. The last one fits whatever the request holds.
_LEVELS = (
    Limits(reason=2000, resolution=1000, name=NAME, reviews=20, resources=10, roles=40),
    Limits(reason=1000, resolution=500, name=NAME, reviews=20, resources=10, roles=40),
    Limits(reason=1000, resolution=500, name=100, reviews=10, resources=10, roles=20),
    Limits(reason=600, resolution=300, name=80, reviews=6, resources=5, roles=10),
    Limits(reason=400, resolution=200, name=60, reviews=3, resources=3, roles=5),
)


def render_card(
    request: AccessRequest,
    *,
    options: TextOptions,
    kind: Literal["card", "requester"] = "card",
    state: str | None = None,
) -> Draft:
    """Render the card for reviewers, or the one for the requester; `state` overrides with EXPIRED or REMOVED."""
    shown = state_name(state or request.state)
    attachment: dict[str, object] = {}
    for limits in _LEVELS:
        attachment = _attachment(request, shown, kind, options, limits)
        if props_runes(attachment) <= PROPS_RUNES - _RESERVED_RUNES:
            break
    return Draft(f"Access request {_bare_id(request.id)}", attachment)


def render_review_reply(request: AccessRequest, index: int) -> Draft:
    """Render the thread reply that tells of one review."""
    review = request.reviews[index]
    head = f"{code_span(review.author, NAME) or 'Somebody'} reviewed: {state_name(review.proposed_state)}"
    return Draft(_with_block(head, review.reason))


def render_end_reply(request: AccessRequest, state: str) -> Draft:
    """Render the thread reply that tells how the request ended."""
    head = f"Request is now {state_name(state)}"
    if state == PROMOTED:
        head += access_list(request, NAME)
    return Draft(_with_block(head, request.resolve_reason))


def render_gone_reply(state: str) -> Draft:
    """Render the thread reply for a request that Teleport no longer has."""
    return Draft(f"Request is now {state_name(state)}")


def close_card(attachment: dict[str, object] | None, request_id: str, state: str) -> Draft:
    """Turn a card as Mattermost has it into one that says EXPIRED or REMOVED: the request itself is gone.

    The rest stands as it was rendered. What is not a card of ours (the official plugin's post, a damaged one) becomes
    the smallest card that tells the end.
    """
    old = attachment or {}
    message = f"Access request {_bare_id(request_id)}"
    fields = [field for field in _as_list(old.get("fields")) if isinstance(field, dict)]
    if not any(field.get("title") == "State" for field in fields):
        fields = [{"title": "Request ID", "value": code_span(request_id, NAME), "short": False}]
        fields.insert(0, {"title": "State", "value": "", "short": True})
    ended = [
        {
            "title": str(field.get("title", "")),
            "value": state_text(state) if field.get("title") == "State" else str(field.get("value", "")),
            "short": bool(field.get("short")),
        }
        for field in fields
        if field.get("title") != "Decide"
    ]
    told = str(old.get("fallback", "")).partition(": ")[2] or message
    closed: dict[str, object] = {"fallback": f"{state}: {told}", "color": _COLOURS.get(state, _GREY), "fields": ended}
    if old.get("pretext"):
        closed["pretext"] = _FOR_REQUESTER.get(state, str(old["pretext"]))
    return Draft(message, closed)


def cluster_of(attachment: dict[str, object] | None) -> str:
    """Return what a card as Mattermost has it shows as its cluster, "" where it shows none."""
    for field in _as_list((attachment or {}).get("fields")):
        if isinstance(field, dict) and field.get("title") == "Cluster":
            return str(field.get("value", ""))
    return ""


def shown_cluster(name: str) -> str:
    """Return how a card shows this cluster name where it is not cut; "?" for no name, which no card shows."""
    return code_span(name, NAME) or "?"


def content_hash(draft: Draft) -> str:
    """Return 16 hex digits that differ when what a reader sees differs; stable between versions of Python."""
    document = json.dumps([draft.message, draft.attachment], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def props_runes(attachment: dict[str, object]) -> int:
    """Count the properties of a post with this attachment as Mattermost stores it: with every key of its own struct."""
    keys = (
        "fallback color pretext author_name author_link author_icon title title_link text image_url thumb_url footer"
        " footer_icon"
    )
    stored = {**dict.fromkeys(keys.split(), ""), "id": 0, "ts": None, "fields": None, **attachment}
    return go_json_runes({"attachments": [stored]})


def _attachment(
    request: AccessRequest, state: str, kind: str, options: TextOptions, limits: Limits
) -> dict[str, object]:
    fields = [
        {"title": title, "value": value, "short": title in _SHORT_FIELDS}
        for title, value in field_values(request, state, kind, options, limits).items()
        if value
    ]
    attachment: dict[str, object] = {
        "fallback": _fallback(request, state, limits),
        "color": _COLOURS.get(state, _GREY),
        "fields": fields,
    }
    if kind == "requester":
        attachment["pretext"] = _for_requester(request, state)
    return attachment


def _fallback(request: AccessRequest, state: str, limits: Limits) -> str:
    wanted = ", ".join(request.roles[:10]) or count(len(request.resources), "resource")
    more = f" and {len(request.roles) - 10} more" if len(request.roles) > 10 else ""
    roles = plain(wanted, 2 * limits.name) + more
    return f"{state}: {plain(request.user, NAME)} asks for {roles} ({plain(request.id, limits.name)})"


def _for_requester(request: AccessRequest, state: str) -> str:
    words = _FOR_REQUESTER.get(state, "Your access request changed.")
    if state == APPROVED and PLAIN_ID.fullmatch(request.id):
        words += f" Use it with `tsh login --request-id={request.id}`."
    return words


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _bare_id(request_id: str) -> str:
    return re.sub("[^0-9A-Za-z-]", "?", request_id[:64])


def _with_block(head: str, reason: str) -> str:
    block = fenced(reason, _REPLY_REASON)
    return f"{head}\n\n{block}" if block else head
