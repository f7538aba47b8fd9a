"""Which of the decisions that stand in Mattermost are carried to Teleport now, and what people are told. Pure.

Refusals are written down at once; what counts is submitted one at a time, each on evidence that was read just before.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sidecar.decisions import judge as judging
from sidecar.decisions import posts
from sidecar.decisions.answers import render_answer, render_moved
from sidecar.decisions.judge import ACCEPTED, COUNTED, STATES, Expression, Person, Verdict
from sidecar.decisions.proof import counts_since, is_card
from sidecar.decisions.record import Owed, Record, Stored
from sidecar.decisions.seen import Context, Evidence, Given, Look, Memory, Now, Outcome, Plan, Resolve, Seen, Submit
from sidecar.model import APPROVED, AccessRequest, Post

# Refusals that one person hears once for a request: more often would only be noise in the thread.
_ONCE = frozenset({"guest", "edited", "not_reviewer", "stale", "shared_channel", "another_name", "unfiltered"})
# The ledger's word for who was told that their words went with a second card.
MOVED = "moved"
# Outcomes of which a review in Teleport tells.
_REVIEWED = frozenset({"submitted", "on_record"})
_REASON_BYTES = 4096
# How often evidence is read again in one look because it has become too old; then it is put off.
MOST_READINGS = 3
CREATED_SLACK_SECONDS = 60.0


def unheard(seen: Seen, record: Record, context: Context) -> list[Expression]:
    """What was said and has no verdict yet."""
    evidence = seen.evidence
    if not isinstance(evidence, Evidence):
        return []
    fresh = judging.unjudged(standing(seen, record, context), record.dec)
    return judging.with_room(fresh, evidence.people, record.dec)


def standing(seen: Seen, record: Record, context: Context) -> list[Expression]:
    """What stands on cards that are proven, or was heard in direct messages; words from before they counted are stale.

    Nothing on a card is older than the card, nor than the request by more than a minute of clocks that disagree.
    """
    evidence, request = seen.evidence, seen.request
    if not isinstance(evidence, Evidence) or not isinstance(request, AccessRequest):
        return []
    since = {
        slot.p: counts_since(seen.cards.get(slot.p, evidence.cards.get(slot.p)), slot, record, context, request)
        for slot in record.posts
        if slot.p
    }
    if "direct" in context.rules.ways and record.rules == context.rules_digest:
        since[""] = record.since
    created = ((request.created or 0.0) - CREATED_SLACK_SECONDS) * 1000
    found = []
    for one in evidence.standing:
        from_when = since.get("" if one.way == "direct" else one.root_id)
        if one.flaw == "forged" or from_when is None or one.at < created:
            continue
        if one.flaw == judging.HINT and one.at < from_when:
            continue
        stale = one.at < from_when and not one.flaw
        found.append(msgspec.structs.replace(one, flaw="stale") if stale else one)
    return found


def deliberate(seen: Seen, memory: Memory, context: Context, now: Now) -> Plan | None:
    """Judge what is new, or submit the next review; None where nothing is to be decided in this look."""
    request, evidence = seen.request, seen.evidence
    if not (isinstance(request, AccessRequest) and isinstance(seen.stored, Stored) and isinstance(evidence, Evidence)):
        return None
    record = seen.stored.record
    fresh = [one for one in unheard(seen, record, context) if _identity(one) not in seen.failed]
    if not fresh:
        return None
    stands = standing(seen, record, context)
    asker = _asker(seen, record, request, evidence, context)
    verdicts = judging.judge(fresh, stands, evidence.people, request, context.rules, asker, record.dec, record.heads)
    noted = record if context.rules.by_quorum else _noted(record, verdicts)
    if not seen.held:
        return Plan(memory=memory, take=True, record=noted)
    refused = [one for one in verdicts if one.outcome != ACCEPTED]
    if refused:
        told = [(one, one.outcome, "") for one in refused]
        memory = memory.but(given=(*memory.given, *given(record, told, request)))
        record = judged(record, told, request, context)
        outcomes = tuple(Outcome(one, one.outcome, request.state) for one in refused)
        return Plan(memory=memory, record=record, outcomes=outcomes, again=True)
    readable = tuple(one for one in verdicts if one.expression.verb == "deny" or not evidence.unread)
    if not readable:
        return None
    if noted != record:
        # It was not yet to be accepted when the record was taken.
        return Plan(memory=memory, take=True, record=noted)
    return _submit(seen, memory, context, now, record, readable)


def _submit(
    seen: Seen, memory: Memory, context: Context, now: Now, record: Record, verdicts: tuple[Verdict, ...]
) -> Plan | None:
    """The next review, on evidence that was read just before."""
    request, evidence = seen.request, seen.evidence
    assert isinstance(request, AccessRequest)  # noqa: S101 - whoever judges has both
    assert isinstance(evidence, Evidence)  # noqa: S101
    # Setting the state goes past Teleport's own count, so nothing of that is read before the record is ours.
    early = context.rules.mode == "state" and evidence.at < seen.held_since
    if early or now.mono - evidence.at >= context.times.evidence:
        return Plan(memory=memory, look=Look(request=True, evidence=True)) if seen.readings < MOST_READINGS else None
    if context.rules.by_quorum:
        return _count(seen, memory, context, record, request, evidence, verdicts)
    return Plan(memory=memory, record=record, actions=(Submit(verdicts[0], request, evidence.at),))


def _noted(record: Record, verdicts: list[Verdict]) -> Record:
    """The record with the Teleport user as whom each account is about to review: whoever dies meanwhile leaves that."""
    accepted = ((one.person.user_id, one.person.teleport_user) for one in verdicts if one.outcome == ACCEPTED)
    return msgspec.structs.replace(record, heads=tuple(dict.fromkeys((*record.heads, *accepted))))


def moved(record: Record, post_id: str, words: tuple[tuple[Expression, Person], ...], kept: str) -> Record:
    """The record with what is owed to those who decided on a second card, which goes; `kept` is the one that stays."""
    told = {(entry[0], entry[2]) for entry in record.dec if entry[1] == MOVED}
    carried = {entry[:4] for entry in record.dec if entry[4] in (judging.SUBMITTED, "on_record")}
    for one, person in words:
        if (one.user_id, post_id) in told or judging.key_of(one) in carried:
            continue
        told.add((one.user_id, post_id))
        row = (one.user_id, MOVED, post_id, one.at, MOVED)
        owed = Owed(f"{one.user_id}:{MOVED}:{post_id}", one.channel_id, render_moved(person).message, kept)
        record = msgspec.structs.replace(record, dec=(*record.dec, row), owe=(*record.owe, owed))
    return record


def strangers(seen: Seen, memory: Memory, record: Record, context: Context) -> tuple[Expression, ...]:
    """What people without a link say right now: they are answered, and leave nothing."""
    people = seen.evidence.people if isinstance(seen.evidence, Evidence) else {}
    found = {
        one.user_id: one
        for one in standing(seen, record, context)
        if one.way != "direct" and one.flaw != judging.HINT and one.user_id in memory.speakers
        if (person := people.get(one.user_id)) is not None and not person.teleport_user
    }
    return tuple(found.values())


def _asker(
    seen: Seen, record: Record, request: AccessRequest, evidence: Evidence, context: Context
) -> frozenset[str] | None:
    """The accounts that may be the requester's, by every witness; None where nobody can tell whose request it is."""
    marks = {
        card.mark.who
        for slot in record.posts
        if isinstance(card := seen.cards.get(slot.p), Post) and is_card(card, slot, record, context, request)
    }
    accounts = frozenset({record.who, evidence.who or "", *marks} - {""})
    if not accounts and (evidence.who is None or context.rules.by_quorum):
        return None
    return accounts


def _identity(one: Expression) -> tuple[object, ...]:
    return ("submit", one.user_id, one.verb, one.source, one.at)


def _count(
    seen: Seen,
    memory: Memory,
    context: Context,
    record: Record,
    request: AccessRequest,
    evidence: Evidence,
    verdicts: tuple[Verdict, ...],
) -> Plan | None:
    """The policy's count: one submission once it is met, until then each vote is noted."""
    stands = standing(seen, record, context)
    votes = judging.votes(stands, record.dec, verdicts, evidence.people, context.rules, request)
    state = judging.tally(request, votes, context.rules)
    details = tuple(judging.progress(request, votes, context.rules, one.expression.verb) for one in verdicts)
    if state and not (state == APPROVED and evidence.unread):
        agreed = tuple(sorted(user for user, verb in votes.items() if STATES[verb] == state))
        counted = judging.counted(record.dec, verdicts)
        heads = frozenset(user.casefold() for user in agreed)
        said = [
            one.reason
            for one in stands
            if one.reason and judging.key_of(one) in counted and STATES[one.verb] == state
            if (person := evidence.people.get(one.user_id)) is not None and person.names & heads
        ]
        action = Resolve(
            verdicts,
            request,
            state,
            _reason(agreed, said),
            agreed,
            details,
            evidence.at,
        )
        return Plan(memory=memory, record=record, actions=(action,)) if action.identity not in seen.failed else None
    told = [(one, COUNTED, detail) for one, detail in zip(verdicts, details, strict=True)]
    record = judged(record, told, request, context)
    outcomes = tuple(Outcome(one, COUNTED, request.state) for one in verdicts)
    return Plan(memory=memory, record=record, outcomes=outcomes, again=True)


def judged(
    record: Record, outcomes: list[tuple[Verdict, str, str]], request: AccessRequest, context: Context
) -> Record:
    """The record with these verdicts in its ledger, and the answers that are owed for them."""
    ledger = {entry[:3]: entry for entry in record.dec}
    for verdict, outcome, _ in outcomes:
        entry = judging.entry_for(verdict, outcome)
        ledger[entry[:3]] = entry
    owe = {owed.i: owed for owed in (*record.owe, *_answers(record, outcomes, request, context))}
    return msgspec.structs.replace(record, dec=tuple(ledger.values()), owe=tuple(owe.values()))


def answer_id(one: Expression) -> str:
    """The identity of the answer to this."""
    return f"{one.user_id}:{one.verb}:{one.source}:{one.at}"


def given(record: Record, outcomes: list[tuple[Verdict, str, str]], request: AccessRequest) -> Iterator[Given]:
    """The reviews among these that their authors gave on a card whose thread does not tell of them yet."""
    for verdict, outcome, _ in outcomes:
        one, person = verdict.expression, verdict.person
        slot = next((slot for slot in record.posts if slot.p and slot.p == one.root_id), None)
        number = posts.number_by(request, person.teleport_user)
        if outcome in _REVIEWED and one.way != "direct" and slot is not None and number and number not in slot.rep:
            yield Given(person.teleport_user, one.verb, person.username, one.root_id)


def _answers(
    record: Record, outcomes: list[tuple[Verdict, str, str]], request: AccessRequest, context: Context
) -> Iterator[Owed]:
    told = {(entry[0], entry[4]) for entry in record.dec}
    for verdict, outcome, detail in outcomes:
        one = verdict.expression
        if outcome in _ONCE and (one.user_id, outcome) in told:
            continue
        told.add((one.user_id, outcome))
        if any(given(record, [(verdict, outcome, detail)], request)):
            # The reply that tells of the review is the answer.
            continue
        draft = render_answer(verdict, outcome, request, detail, context.options)
        if draft is not None:
            # One that counted and was lost again is answered a second time.
            again = ":again" if (*judging.key_of(one), COUNTED) in record.dec else ""
            yield Owed(answer_id(one) + again, one.channel_id, draft.message, one.root_id)


def _reason(agreed: tuple[str, ...], said: list[str]) -> str:
    """The names first: they are what must not be cut away."""
    text = f"Decided in Mattermost by {', '.join(agreed)}" + (f": {'; '.join(said)}" if said else "")
    return text.encode()[:_REASON_BYTES].decode(errors="ignore")
