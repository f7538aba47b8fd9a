"""Replies in the thread of a card: what somebody decided, how a request ended, and that it still waits.

One rule: a notification shows a reply alone, so each names what it is about.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sidecar.model import APPROVED, DENIED, PENDING, PROMOTED, Draft
from sidecar.text.fields import access_list, approvals_needed, deadline, state_name, zone_of
from sidecar.text.names import NAME, ROLES, about, bare
from sidecar.text.neutral import fenced

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.model import AccessRequest
    from sidecar.text.fields import TextOptions

# With this a reply also fits the 4,000 characters of old Mattermost databases.
_REASON = 3000
_DID = {APPROVED: "approved", DENIED: "denied", PROMOTED: "promoted"}
_MENTIONED = 10
_FALLBACK = re.compile(r"[^:]*: (?P<user>.*?) asks for (?P<roles>.*?)(?: and (?P<more>[0-9]{1,9}) more)? \([^()]*\)")


def counted(request: AccessRequest, index: int) -> str:
    """Which of how many approvals this review is, where the card's `Reviews` says so; else ""."""
    needed = approvals_needed(request)
    if not needed or request.reviews[index].proposed_state != APPROVED:
        return ""
    return f" ({sum(one.proposed_state == APPROVED for one in request.reviews[: index + 1])} of {needed})"


def end(request: AccessRequest, state: str) -> str:
    """The sentence that tells of an end, within a reply."""
    return f"The request is now {_ended(request, state)}."


def told_end(message: str) -> str:
    """The state of which a reply that was found tells besides its review; PENDING for none."""
    found = re.search(r"\. The request is now ([A-Z]+)", message.partition("\n")[0])
    return found[1] if found else PENDING


def render_review_reply(request: AccessRequest, index: int, *, ending: bool) -> Draft:
    """One review that was given elsewhere; `ending`: it is the one that decided."""
    review = request.reviews[index]
    author, state = bare(review.author) if review.author else "Somebody", state_name(review.proposed_state)
    did = f"{author} {_DID.get(state, 'reviewed')} {about(request)}"
    said = f"{did}: {state}." if state not in _DID else f"{did}{counted(request, index)}."
    return Draft(_with_block(f"{said} {end(request, request.state)}" if ending else said, review.reason))


def render_end_reply(request: AccessRequest, state: str) -> Draft:
    """An end that no review brought."""
    return Draft(_with_block(f"{about(request)} is now {_ended(request, state)}.", request.resolve_reason))


def render_gone_reply(attachment: dict[str, object] | None, state: str) -> Draft:
    """The end of a request that Teleport has no more; what it was about stands in the card."""
    found = _FALLBACK.fullmatch(str((attachment or {}).get("fallback", "")))
    if found is None:
        return Draft(f"The request is now {state_name(state)}.")
    roles = found["roles"].split(", ")
    more = int(found["more"] or 0) + max(0, len(roles) - ROLES)
    named = ", ".join(map(_role, roles[:ROLES])) + (f" and {more} more" if more else "")
    return Draft(f"{bare(found['user'])}'s request for {named} is now {state_name(state)}.")


def _role(name: str) -> str:
    return name if re.fullmatch("[0-9]+ resources?", name) else bare(name)


def render_reminder(request: AccessRequest, names: Iterable[str], options: TextOptions) -> Draft:
    """A reminder to these Mattermost users, of whom nobody has reviewed yet."""
    called = "".join(f"@{name} " for name in list(names)[:_MENTIONED])
    needed, given = approvals_needed(request), sum(one.proposed_state == APPROVED for one in request.reviews)
    missing = f" ({given} of {needed})" if needed > 1 else ""
    expires = deadline(request.expires, None, zone_of(options.time_zone))
    until = f" It expires at {expires}." if expires else ""
    return Draft(f"{called}{about(request)} still waits for review{missing}.{until}")


def _ended(request: AccessRequest, state: str) -> str:
    return state_name(state) + (access_list(request, NAME) if state == PROMOTED else "")


def _with_block(head: str, reason: str) -> str:
    block = fenced(reason, _REASON)
    return f"{head}\n\n{block}" if block else head
