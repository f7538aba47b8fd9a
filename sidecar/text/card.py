"""An access request to the posts that tell of it.

One rule: a draft is a function of the request and the options, never of the clock, so that a post changes only when
its content does. Every untrusted value goes through `sidecar.text.neutral`.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Literal

from sidecar.model import APPROVED, DENIED, EXPIRED, PENDING, PROMOTED, REMOVED, AccessRequest, Draft, Post
from sidecar.text.fields import (
    PLAIN_ID,
    Limits,
    TextOptions,
    field_values,
    small_print,
    state_name,
    state_text,
)
from sidecar.text.names import NAME, asks, count
from sidecar.text.neutral import code_span, go_json_runes, plain

__all__ = [
    "PROPS_RUNES",
    "TextOptions",
    "close_card",
    "content_hash",
    "go_json_runes",
    "is_of_cluster",
    "props_runes",
    "render_card",
    "says_nothing",
]

# Mattermost 5.37 refuses properties of more than 8,000 runes; its own additions count too.
PROPS_RUNES = 7600
# Kept free for `tm`, `from_bot` and what the server may add ("mentionHighlightDisabled" and the like).
_RESERVED_RUNES = 400
_COLOURS = {PENDING: "#ffbc1f", APPROVED: "#3db887", DENIED: "#d24b4e", PROMOTED: "#1c58d9"}
_GREY = "#8d8d8d"
# Side by side where both have something to say.
_PAIRS = (("State", "Reviews"), ("Expires", "Access until"))
_ASK_AGAIN = {DENIED, EXPIRED, REMOVED}
_FOR_REQUESTER = {
    PENDING: "Your access request waits for review.",
    APPROVED: "Your access request was approved.",
    DENIED: "Your access request was denied.",
    EXPIRED: "Your access request expired before it was decided.",
    PROMOTED: "Your access request was promoted: an access list now gives the access.",
    REMOVED: "Your access request was removed before it was decided.",
}
_NOBODY_ASKED = "Nobody was asked to review it, for this bot knows nobody to tell. Please ask your reviewers yourself."
_PLAIN_ROLE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,99}")


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
    whole: bool = False,
) -> Draft:
    """Render the card for reviewers, or the one for the requester; `state` overrides with EXPIRED or REMOVED.

    `whole` for a post whose message, which is never edited, does not say who asks for what.
    """
    shown = state_name(state or request.state)
    attachment: dict[str, object] = {}
    for limits in _LEVELS:
        attachment = _attachment(request, shown, kind, options, limits, whole=whole)
        if props_runes(attachment) <= PROPS_RUNES - _RESERVED_RUNES:
            break
    return Draft(f"{asks(request)}\n{_title(request.id)}", attachment)


def says_nothing(message: str) -> bool:
    """Whether this is the message of a card that a version before this one made: the id, and no more."""
    return message.startswith("Access request ")


def close_card(attachment: dict[str, object] | None, request_id: str, state: str) -> Draft:
    """Turn a card as Mattermost has it into one that says EXPIRED or REMOVED: the request itself is gone.

    The rest stands as it was rendered. What is not a card of ours (the official plugin's post, a damaged one) becomes
    the smallest card that tells the end.
    """
    old = attachment or {}
    message = _title(request_id)
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
    if old.get("footer"):
        closed["footer"] = str(old["footer"])
    return Draft(message, closed)


def is_of_cluster(post: Post, name: str) -> bool:
    """Whether a card says that it is of this cluster: by its mark, an older one by a field."""
    if post.mark.c or not name:
        return bool(name) and post.mark.c == name
    fields = _as_list((post.attachment or {}).get("fields"))
    shown = [field.get("value") for field in fields if isinstance(field, dict) and field.get("title") == "Cluster"]
    return shown[:1] == [code_span(name, NAME)]


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
    request: AccessRequest, state: str, kind: str, options: TextOptions, limits: Limits, *, whole: bool
) -> dict[str, object]:
    values = field_values(request, state, kind, options, limits, whole=whole)
    short = {title for pair in _PAIRS if all(map(values.__getitem__, pair)) for title in pair}
    fields = [{"title": title, "value": value, "short": title in short} for title, value in values.items() if value]
    attachment: dict[str, object] = {
        "fallback": _fallback(request, state, limits),
        "color": _COLOURS.get(state, _GREY),
        "fields": fields,
        "footer": small_print(request, options, limits),
    }
    if kind == "requester":
        attachment["pretext"] = _for_requester(request, state, options)
    return attachment


def _fallback(request: AccessRequest, state: str, limits: Limits) -> str:
    wanted = ", ".join(request.roles[:10]) or count(len(request.resources), "resource")
    more = f" and {len(request.roles) - 10} more" if len(request.roles) > 10 else ""
    roles = plain(wanted, 2 * limits.name) + more
    return f"{state}: {plain(request.user, NAME)} asks for {roles} ({plain(request.id, limits.name)})"


def _for_requester(request: AccessRequest, state: str, options: TextOptions) -> str:
    words = [_FOR_REQUESTER.get(state, "Your access request changed.")]
    if state == PENDING and options.unasked:
        words.append(_NOBODY_ASKED)
    elif state == APPROVED and PLAIN_ID.fullmatch(request.id):
        words.append(f"Use it with `tsh login --request-id={request.id}`.")
    elif state in _ASK_AGAIN and request.roles and all(map(_PLAIN_ROLE.fullmatch, request.roles[:10])):
        roles = ",".join(request.roles[:10])
        words.append(f'To ask again: `tsh request create --roles={roles} --reason="…"`.')
    elif state in _ASK_AGAIN:
        words.append("To ask again, make a new request in Teleport.")
    return " ".join(words)


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _title(request_id: str) -> str:
    return f"Access request {re.sub('[^0-9A-Za-z-]', '?', request_id[:64])}"
