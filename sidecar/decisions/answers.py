"""What a person is told about their decision. Pure: an outcome to a sentence, never with anybody else's words in it.

Each names what it is about, for a notification shows it alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sidecar.model import PENDING, Draft
from sidecar.text.command import direct_grammar, short_id, thread_grammar
from sidecar.text.fields import TextOptions
from sidecar.text.names import about, bare
from sidecar.text.neutral import code_span
from sidecar.text.replies import counted, end

if TYPE_CHECKING:
    from sidecar.decisions.judge import Person, Verdict
    from sidecar.decisions.seen import Given
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


def render_answer(
    verdict: Verdict,
    outcome: str,
    request: AccessRequest,
    detail: str = "",
    options: TextOptions = TextOptions(),  # noqa: B008 - a frozen value
) -> Draft | None:
    """The answer to one decision; None where nobody is told.

    `detail` is Teleport's own sentence, or how far the quorum is.
    """
    one, person = verdict.expression, verdict.person
    if outcome in SILENT or (person.problem and one.way == "direct"):
        # Strangers are answered where they write, in one fixed sentence.
        return None
    called = f"{code_span(short_id(request.id), 60)} " if one.way == "direct" else mention(person.username)
    what = f"{_NOUNS.get(one.verb, 'message')} of {about(request)}" if one.verb in _NOUNS else ""
    if outcome in ("submitted", "counted"):
        count = f" ({detail})" if detail else _count_of(request, person.teleport_user)
        return Draft(f"{called}Your {what} counts{count}, as {bare(person.teleport_user)}.{_ended(request)}")
    if outcome == "on_record":
        name = bare(person.teleport_user)
        return Draft(f"{called}Your {what} is on record in Teleport, as {name}.{_ended(request)}")
    if person.problem:
        # Nothing of the request is repeated to who may not know it, nor read for them.
        what = _NOUNS.get(one.verb, "message")
    head = f"Your {what}" if what else f"About {about(request)}"
    return Draft(f"{called}{head}: {_bad_news(verdict, outcome, request, detail, options)}")


def render_moved(person: Person) -> Draft:
    """What somebody is told who decided on a second card of the same request, which is deleted."""
    return Draft(
        f"{mention(person.username)}You decided below a second message about this request, which is gone. "
        "Please say it again here."
    )


def render_given(request: AccessRequest, index: int, given: Given, *, ending: bool) -> Draft:
    """The reply to a review that was given in this very thread."""
    what = f"{_NOUNS[given.verb]} of {about(request)}"
    told = f" {end(request, request.state)}" if ending else ""
    count = counted(request, index)
    return Draft(f"{mention(given.username)}Your {what} counts{count}, as {bare(given.author)}.{told}")


def mention(username: str) -> str:
    """In a thread others read along, and only who is named is notified."""
    return f"@{username} " if _USERNAME.fullmatch(username) and username[-1].isalnum() else ""


_NOUNS = {"approve": "approval", "deny": "denial"}


def _count_of(request: AccessRequest, author: str) -> str:
    index = next((n for n, review in enumerate(request.reviews) if review.author == author), None)
    return counted(request, index) if index is not None else ""


def _ended(request: AccessRequest) -> str:
    return "" if request.state == PENDING else f" {end(request, request.state)}"


def _bad_news(verdict: Verdict, outcome: str, request: AccessRequest, detail: str, options: TextOptions) -> str:
    over = request.state != PENDING
    match outcome:
        case "duplicate":
            name = bare(verdict.person.teleport_user)
            return f"You have already reviewed this request as {name}; Teleport takes one review a person."
        case "resolved":
            return f"This request is already {code_span(request.state, 20) if over else 'resolved'}."
        case "reason_required":
            return f"A reason is required. {_grammar(verdict, request, options)}"
        case "hint" if over:
            return f"That decides nothing, and this request is already {code_span(request.state, 20)}."
        case "hint":
            return f"That decides nothing. {_grammar(verdict, request, options)}"
        case "malformed":
            return _grammar(verdict, request, options)
    return _SENTENCES.get(outcome) or f"This did not count: {code_span(detail, 300) or code_span(outcome, 40)}"


def _grammar(verdict: Verdict, request: AccessRequest, options: TextOptions) -> str:
    if verdict.expression.way == "direct":
        return direct_grammar(request.id, whole=options.whole_ids)
    return thread_grammar(options.approve_emoji, options.deny_emoji, options.ways)
