"""Which of the decisions that stand in Mattermost are carried to Teleport now, and what people are told. Pure.

Refusals are written down at once; what counts is submitted one at a time, each on evidence that was read just before.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from sidecar.decisions import judge as judging
from sidecar.decisions import posts
from sidecar.decisions.answers import render_answer
from sidecar.decisions.judge import ACCEPTED, COUNTED, STATES, Expression, Verdict
from sidecar.decisions.proof import counts_since, is_card
from sidecar.decisions.record import Owed, Record, Stored
from sidecar.decisions.seen import Context, Evidence, Given, Look, Memory, Now, Outcome, Plan, Resolve, Seen, Submit
from sidecar.model import APPROVED, AccessRequest, Post

# Refusals that one person hears once for a request: more often would only be noise in the thread.
_ONCE = frozenset({"unmapped", "guest", "address_moved", "identity_unsafe", "edited", "not_reviewer", "stale"})
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
        slot.p: counts_since(seen.cards.get(slot.p, evidence.cards.get(slot.p)), slot, record, context)
        for slot in record.posts
        if slot.p
    }
    created = ((request.created or 0.0) - CREATED_SLACK_SECONDS) * 1000
    found = []
    for one in evidence.standing:
        from_when = 0 if one.way == "direct" else since.get(one.root_id)
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
    if not seen.held:
        return Plan(memory=memory, take=True, record=record)
    stands = standing(seen, record, context)
    asker = _asker(seen, record, evidence, context)
    verdicts = judging.judge(fresh, stands, evidence.people, request, context.rules, asker)
    refused = [one for one in verdicts if one.outcome != ACCEPTED]
    if refused:
        told = [(one, one.outcome, "") for one in refused]
        memory = memory.but(given=(*memory.given, *given(record, told, request)))
        record = judged(record, told, request, context)
        outcomes = tuple(Outcome(one, one.outcome, request.state) for one in refused)
        return Plan(memory=memory, record=record, outcomes=outcomes, again=True)
    readable = [one for one in verdicts if one.expression.verb == "deny" or not evidence.unread]
    if not readable:
        return None
    # Setting the state goes past Teleport's own count, so nothing of that is read before the record is ours.
    early = context.rules.mode == "state" and evidence.at < seen.held_since
    if early or now.mono - evidence.at >= context.times.evidence:
        return Plan(memory=memory, look=Look(request=True, evidence=True)) if seen.readings < MOST_READINGS else None
    if context.rules.by_quorum:
        return _count(seen, memory, context, record, request, evidence, tuple(readable))
    return Plan(memory=memory, record=record, actions=(Submit(readable[0], request, evidence.at),))


def _asker(seen: Seen, record: Record, evidence: Evidence, context: Context) -> frozenset[str] | None:
    """The accounts that may be the requester's, by every witness; None where nobody can tell whose request it is."""
    marks = {
        card.mark.who
        for slot in record.posts
        if isinstance(card := seen.cards.get(slot.p), Post) and is_card(card, slot, record, context)
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
    votes = judging.votes(standing(seen, record, context), record.dec, verdicts, evidence.people, context.rules)
    state = judging.tally(request, votes, context.rules)
    details = tuple(judging.progress(request, votes, context.rules, one.expression.verb) for one in verdicts)
    if state and not (state == APPROVED and evidence.unread):
        agreed = tuple(sorted(user for user, verb in votes.items() if STATES[verb] == state))
        action = Resolve(
            verdicts,
            request,
            state,
            _reason(agreed, standing(seen, record, context), evidence),
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
            yield Owed(f"{one.user_id}:{one.verb}:{one.source}:{one.at}", one.channel_id, draft.message, one.root_id)


def _reason(agreed: tuple[str, ...], stands: list[Expression], evidence: Evidence) -> str:
    """The names first: they are what must not be cut away."""
    said = [
        one.reason
        for one in stands
        if one.reason
        and not one.flaw
        and (person := evidence.people.get(one.user_id)) is not None
        and person.teleport_user in agreed
    ]
    text = f"Decided in Mattermost by {', '.join(agreed)}" + (f": {'; '.join(said)}" if said else "")
    return text.encode()[:_REASON_BYTES].decode(errors="ignore")
