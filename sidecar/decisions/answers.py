"""What a person is told about their decision. Pure: an outcome to a sentence, never with anybody else's words in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sidecar.model import APPROVED, PENDING, Draft
from sidecar.text.command import DIRECT_GRAMMAR, THREAD_GRAMMAR, short_id
from sidecar.text.neutral import code_span

if TYPE_CHECKING:
    from sidecar.decisions.judge import Person, Verdict
    from sidecar.model import AccessRequest

# Nobody is told: these are no persons, or nobody acted now.
SILENT = frozenset({"bot", "forged", "remote", "unknown", "deactivated"})

# A name that can only mean one person when it is mentioned (mattermost-server model/user.go; `here` is nobody's).
_USERNAME = re.compile(r"(?!(?:all|channel|here)$)[a-z][a-z0-9._-]{0,63}")

_NOT_LINKED = "You are not linked to a Teleport user here, so this changes nothing. Ask the operator of this bot."
_SENTENCES = {
    "unmapped": _NOT_LINKED,
    "guest": _NOT_LINKED,
    "address_moved": _NOT_LINKED,
    "identity_unsafe": "Decisions are off: this Mattermost server cannot vouch for email addresses.",
    "own_request": "Nobody decides about their own request.",
    "long_term": "A long-term request is reviewed on Teleport's web page only.",
    "unknown_kind": "This bot does not know this kind of request. Please decide on Teleport's web page.",
    "unreadable": "This request is narrowed in a way this bot cannot show. Please decide on Teleport's web page.",
    "conflict": "You both approved and denied, so neither counts. Take both back, then decide again.",
    "requester_unknown": (
        "It is not known which Mattermost account asks for this, so nobody can decide it here. "
        "Please decide in Teleport."
    ),
    "unheard": "I did not hear this when you wrote it, so it does not count. Please say it again.",
    "stale": "This is from before decisions here worked as they do now, so it does not count. Please give it again.",
    "edited": "An edited message decides nothing. Write a new one.",
    "shared_channel": (
        "Another Mattermost server has a part in this channel, so nothing said here decides. Please write to me "
        "directly, or decide in Teleport."
    ),
    "another_name": "A review of this request was given from this account already, as another Teleport user.",
    "unfiltered": (
        "Teleport asks for several reviews of this request by anybody, and mine must not be one of them. "
        "Please decide in Teleport."
    ),
    "opposite": "I have submitted the opposite, and Teleport takes one review of mine. Please decide in Teleport.",
    "not_reviewer": "The policy for these roles does not name you as a reviewer.",
    "mfa_required": "Teleport asks for your security key for this. Please decide on its web page.",
    "unsafe_state": (
        "Teleport counts reviews itself on this cluster, so this bot may not set the state. Please decide in Teleport."
    ),
}


def render_answer(verdict: Verdict, outcome: str, request: AccessRequest, detail: str = "") -> Draft | None:
    """The answer to one decision; None where nobody is told.

    `detail` is Teleport's own sentence, or how far the quorum is.
    """
    if outcome in SILENT or (verdict.person.problem and verdict.expression.way == "direct"):
        # Strangers are answered where they write, in one fixed sentence.
        return None
    news = _good_news(verdict, outcome, request, detail) or _bad_news(verdict, outcome, request, detail)
    return Draft(_address(verdict, request) + news)


def render_moved(person: Person) -> Draft:
    """What somebody is told who decided on a second card of the same request, which is deleted."""
    named = f"@{person.username} " if _is_one(person.username) else ""
    return Draft(
        f"{named}You decided below a second message about this request, which is gone. Please say it again here."
    )


def _is_one(name: str) -> bool:
    return bool(_USERNAME.fullmatch(name)) and name[-1].isalnum()


def _good_news(verdict: Verdict, outcome: str, request: AccessRequest, detail: str) -> str:
    done = "approval" if verdict.expression.verb == "approve" else "denial"
    name = code_span(verdict.person.teleport_user, 160)
    match outcome:
        case "submitted":
            return f"Done: Teleport has your {done} as {name}. {_where(request)}"
        case "counted":
            return f"Noted: your {done} as {name} counts. {_where(request, detail)}"
        case "on_record":
            return f"Your {done} as {name} is on record in Teleport. {_where(request)}"
    return ""


def _bad_news(verdict: Verdict, outcome: str, request: AccessRequest, detail: str) -> str:
    match outcome:
        case "duplicate":
            name = code_span(verdict.person.teleport_user, 160)
            return f"You have already reviewed this request as {name}; Teleport takes one review a person."
        case "resolved":
            state = "resolved" if request.state == PENDING else code_span(request.state, 20)
            return f"This request is already {state}."
        case "reason_required":
            return f"A reason is required. {_grammar(verdict)}"
        case "malformed":
            return _grammar(verdict)
    return _SENTENCES.get(outcome) or f"This did not count: {code_span(detail, 300) or code_span(outcome, 40)}"


def _grammar(verdict: Verdict) -> str:
    return DIRECT_GRAMMAR if verdict.expression.way == "direct" else THREAD_GRAMMAR


def _address(verdict: Verdict, request: AccessRequest) -> str:
    """In a thread others read along, and only who is named is notified; a direct message speaks of many requests."""
    name = verdict.person.username
    if verdict.expression.way == "direct":
        return f"{code_span(short_id(request.id), 60)} "
    named = f"@{name} " if _is_one(name) else ""
    match verdict.expression.way, verdict.expression.verb:
        case "reaction", "approve":
            return f"{named}Your approving reaction: "
        case "reaction", _:
            return f"{named}Your denying reaction: "
    return named


def _where(request: AccessRequest, counted: str = "") -> str:
    if request.state != PENDING:
        return f"The request is now {code_span(request.state, 20)}."
    if counted:
        return f"So far: {code_span(counted, 300)}."
    match request.thresholds:
        case (threshold,) if not threshold.filter and threshold.approve > 1:
            count = sum(review.proposed_state == APPROVED for review in request.reviews)
            return f"{count} of {threshold.approve} approvals so far."
    return "The request is still pending."
