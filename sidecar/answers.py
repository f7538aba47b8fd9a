"""What a person is told about their decision. Pure: an outcome to a sentence, never with anybody else's words in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.command import DIRECT_GRAMMAR, THREAD_GRAMMAR
from sidecar.model import APPROVED, Draft
from sidecar.neutral import code_span

if TYPE_CHECKING:
    from sidecar.judge import Verdict
    from sidecar.model import AccessRequest

# Nobody is told: these are no persons, or nobody acted now.
SILENT = frozenset({"bot", "forged", "remote", "unknown", "deactivated"})

_NOT_LINKED = "You are not linked to a Teleport user here, so this changes nothing. Ask the operator of this bot."
_SENTENCES = {
    "unmapped": _NOT_LINKED,
    "guest": _NOT_LINKED,
    "renamed": _NOT_LINKED,
    "address_moved": _NOT_LINKED,
    "identity_unsafe": "Decisions are off: this Mattermost server cannot vouch for e-mail addresses.",
    "own_request": "Nobody decides about their own request.",
    "long_term": "A long-term request is reviewed on Teleport's web page only.",
    "conflict": "You both approved and denied, so neither counts. Take both back, then decide again.",
    "edited": "An edited message decides nothing. Write a new one.",
    "not_reviewer": "The policy for these roles does not name you as a reviewer.",
    "mfa_required": "Teleport asks for your security key for this. Please decide on its web page.",
    "unsafe_state": (
        "Teleport counts reviews itself on this cluster, so this bot may not set the state. Please decide in Teleport."
    ),
}


def render_answer(verdict: Verdict, outcome: str, request: AccessRequest, detail: str = "") -> Draft | None:
    """The answer to one decision; None where nobody is told. `detail` is Teleport's own sentence."""
    if outcome in SILENT:
        return None
    return Draft(
        _address(verdict) + (_good_news(verdict, outcome, request) or _bad_news(verdict, outcome, request, detail))
    )


def _good_news(verdict: Verdict, outcome: str, request: AccessRequest) -> str:
    done = "approval" if verdict.expression.verb == "approve" else "denial"
    name = code_span(verdict.person.teleport_user, 160)
    match outcome:
        case "submitted":
            return f"Done: Teleport has your {done} as {name}. {_where(request)}"
        case "counted":
            return f"Noted: your {done} as {name} counts. {_where(request)}"
        case "on_record":
            return f"Your {done} as {name} is on record in Teleport. {_where(request)}"
    return ""


def _bad_news(verdict: Verdict, outcome: str, request: AccessRequest, detail: str) -> str:
    match outcome:
        case "duplicate":
            name = code_span(verdict.person.teleport_user, 160)
            return f"You have already reviewed this request as {name}; Teleport takes one review a person."
        case "resolved":
            return f"This request is already {code_span(request.state, 20)}."
        case "reason_required":
            return f"A reason is required. {THREAD_GRAMMAR}"
        case "malformed":
            return DIRECT_GRAMMAR if verdict.expression.way == "direct" else THREAD_GRAMMAR
    return _SENTENCES.get(outcome) or f"This did not count: {code_span(detail, 300) or code_span(outcome, 40)}"


def _address(verdict: Verdict) -> str:
    """In a thread others read along; who is meant shows by what they did."""
    match verdict.expression.way, verdict.expression.verb:
        case "reaction", "approve":
            return "Your approving reaction: "
        case "reaction", _:
            return "Your denying reaction: "
    return ""


def _where(request: AccessRequest) -> str:
    if request.state != "PENDING":
        return f"The request is now {code_span(request.state, 20)}."
    match request.thresholds:
        case (threshold,) if not threshold.filter and threshold.approve > 1:
            count = sum(review.proposed_state == APPROVED for review in request.reviews)
            return f"{count} of {threshold.approve} approvals so far."
    return "The request is still pending."
