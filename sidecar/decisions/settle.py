"""What an action's result means for the record and the memory. Pure; called for each result as it comes in."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from sidecar.decisions import posts as due
from sidecar.decisions.actions import Action, Answer, Create, Delete, Patch, Place, Reply, Resolve, Submit
from sidecar.decisions.deliberate import given, judged
from sidecar.decisions.expressions import COUNTED, SUBMITTED
from sidecar.decisions.record import ADOPTED, MOST_ATTEMPTS, Record
from sidecar.decisions.seen import Context, Doubt, Memory, Outcome, Seen, Unknown
from sidecar.errors import PostRejected, ReviewRejected, SidecarError
from sidecar.model import PENDING, AccessRequest, Post


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an action.

    `post` is what Mattermost has now, `after` what Teleport has, `error` why it failed, and `ambiguous` that it may
    have been carried out all the same. `attempt` is the last one of a post, `gone` that the post was deleted, `skipped`
    that it was not tried, `rules` what a patched card says of the rules, and `at` when it was patched.
    """

    post: Post | None = None
    after: AccessRequest | None = None
    error: SidecarError | None = None
    ambiguous: bool = False
    attempt: int = 0
    gone: bool = False
    skipped: bool = False
    rules: str = ""
    at: int = 0


class State(NamedTuple):
    """What a look works with: what was seen, the record as it grows, the memory, and what is to be logged."""

    seen: Seen
    record: Record
    memory: Memory
    outcomes: tuple[Outcome, ...] = ()


def settle(
    state: State,
    action: Action,
    result: Result,
    now: float,
    verify: float,
    context: Context = Context(),  # noqa: B008 - a frozen value
) -> State:
    """Take one result in. `now` is trio's clock; after `verify` seconds a late write has landed, if ever."""
    if result.skipped:
        return state
    if isinstance(action, Submit | Resolve):
        return _decided(state, action, result, context)
    record, memory, seen = _with_attempt(state.record, action, result), state.memory, state.seen
    error = result.error
    if isinstance(error, PostRejected):
        record = _refused(record, action, error)
        if isinstance(action, Delete):
            memory = _doubt(memory, Doubt(action.place, now + verify))
        return State(seen.but(failed=seen.failed | {action.identity}), record, memory, state.outcomes)
    if error is not None:
        if result.ambiguous or isinstance(action, Delete):
            memory = _doubt(memory, Doubt(_place(record, action), now + verify, card=isinstance(action, Patch)))
        seen = seen.but(failed=seen.failed | {action.identity}, error=error)
        return State(seen, record, memory, state.outcomes)
    return _done(State(seen, record, memory, state.outcomes), action, result, now + verify)


def _done(state: State, action: Action, result: Result, late: float) -> State:
    seen, record, memory, outcomes = state
    if isinstance(action, Create | Reply | Answer):
        memory = _renewed(memory, _place(record, action), late)
    if isinstance(action, Create) and result.post is not None:
        doubtful = any(doubt.place == _place(record, action) for doubt in memory.doubts)
        # An earlier try may have made it, perhaps of an earlier version of the request.
        shown: dict[str, object] = {} if doubtful else {"h": action.digest, "shown": action.shown}
        record = due.with_slot(record, action.position, p=result.post.id, s="posted", **shown)
        seen = seen.but(cards={**seen.cards, result.post.id: result.post})
    elif isinstance(action, Patch):
        return _patched(state, action, result)
    elif isinstance(action, Reply) and action.reminds:
        rem = tuple(sorted({*record.posts[action.position].rem, action.number}))
        record = due.with_slot(record, action.position, rem=rem)
    elif isinstance(action, Reply):
        rep = due.replied(record.posts[action.position], action.number, action.ends).rep
        record = due.with_slot(record, action.position, rep=rep, s="posted")
    elif isinstance(action, Answer):
        record = _answered(record, action)
    elif isinstance(action, Delete):
        seen = _removed(seen, action.post_id)
    return State(seen, record, memory, outcomes)


def _removed(seen: Seen, post_id: str) -> Seen:
    return seen.but(
        posts={
            place: read if isinstance(read, Unknown) else tuple(post for post in read if post.id != post_id)
            for place, read in seen.posts.items()
        }
    )


def _patched(state: State, action: Patch, result: Result) -> State:
    seen, record, memory, outcomes = state
    slot = record.posts[action.position]
    if result.gone:
        record = due.with_slot(record, action.position, s="gone")
    else:
        # Where the rules are new, words count from when the card says so.
        since = max(action.since, result.at) if action.since > slot.since else slot.since
        record = due.with_slot(record, action.position, s="posted", h=action.digest, shown=action.shown, since=since)
        seen = _marked(seen, slot.p, result, action.since)
    return State(seen, record, memory.but(touched=memory.touched - {slot.c}), outcomes)


def _decided(state: State, action: Submit | Resolve, result: Result, context: Context) -> State:
    """A submission: its verdicts are on record from now on, unless nobody knows what became of it."""
    seen, record, memory, outcomes = state
    request = result.after or action.request
    verdicts = (action.verdict,) if isinstance(action, Submit) else action.verdicts
    if isinstance(result.error, ReviewRejected):
        told = [(one, result.error.reason, result.error.detail) for one in verdicts]
    elif result.error is not None:
        seen = seen.but(failed=seen.failed | {action.identity}, error=result.error)
        return State(seen, record, memory, outcomes)
    else:
        details = action.progress if isinstance(action, Resolve) else ("",)
        done = SUBMITTED if isinstance(action, Submit) else COUNTED
        told = [(one, done, detail) for one, detail in zip(verdicts, details, strict=True)]
    if result.error is not None and told[0][1] != "duplicate":
        # Nothing was submitted, so its author may still be linked as somebody else.
        gone = {(one.person.user_id, one.person.teleport_user) for one in verdicts}
        record = msgspec.structs.replace(record, heads=tuple(one for one in record.heads if one not in gone))
    memory = memory.but(given=(*memory.given, *given(record, told, request)))
    record = judged(record, told, request, context)
    if isinstance(action, Resolve) and result.error is None and request.state != PENDING:
        record = _told_the_end(record, {one.expression.root_id for one in verdicts}, due.end_number(request.state))
    outcomes = (*outcomes, *(Outcome(one, outcome, request.state) for one, outcome, _ in told))
    return State(seen.but(request=request), record, memory, outcomes)


def _told_the_end(record: Record, roots: set[str], end: int) -> Record:
    """Whoever decided is answered in these threads, and the answer tells the end."""
    for position, slot in enumerate(record.posts):
        if slot.p and slot.p in roots:
            record = due.with_slot(record, position, rep=due.replied(slot, end).rep)
    return record


def _refused(record: Record, action: Action, exc: PostRejected) -> Record:
    """Mattermost refused this recipient: for ever where the card is deleted."""
    if isinstance(action, Answer):
        return _answered(record, action)
    if not isinstance(action, Create | Patch | Reply):
        return record
    if "deleted" in exc.error_id:
        status = "archived"
    elif "root_id" in exc.error_id:
        status = "gone"
    else:
        status = "failed"
    return due.with_slot(record, action.position, s=status)


def _answered(record: Record, action: Answer) -> Record:
    return msgspec.structs.replace(record, owe=tuple(owed for owed in record.owe if owed.i != action.owed.i))


def _with_attempt(record: Record, action: Action, result: Result) -> Record:
    if not isinstance(action, Create | Reply):
        return record
    before = record.posts[action.position].a
    # An adopted post stays one, whatever is tried in its thread.
    if (before == ADOPTED and isinstance(action, Reply)) or result.attempt <= before:
        return record
    return due.with_slot(record, action.position, a=min(result.attempt, MOST_ATTEMPTS))


def _place(record: Record, action: Action) -> Place:
    if isinstance(action, Delete):
        return action.place
    if isinstance(action, Answer):
        return Place(action.owed.c, action.owed.t)
    assert isinstance(action, Create | Patch | Reply)  # noqa: S101 - submissions are settled elsewhere
    slot = record.posts[action.position]
    return Place(slot.c) if isinstance(action, Create) else Place(slot.c, slot.p)


def _marked(seen: Seen, post_id: str, result: Result, since: int) -> Seen:
    """The card bears our mark now: the answer is such a reading."""
    card = seen.cards.get(post_id)
    if not isinstance(card, Post) or not card.key:
        return seen
    mark = msgspec.structs.replace(card.mark, rules=result.rules, since=since)
    return seen.but(cards={**seen.cards, post_id: msgspec.structs.replace(card, mark=mark)})


def _renewed(memory: Memory, place: Place, late: float) -> Memory:
    """An earlier try may land beside the one that was answered: the place is read once more after that."""
    return memory.but(
        doubts=tuple(
            msgspec.structs.replace(one, due=max(one.due, late)) if one.place == place and one.due < math.inf else one
            for one in memory.doubts
        )
    )


def _doubt(memory: Memory, doubt: Doubt) -> Memory:
    """One doubt for each place; whatever was doubted about its card stays, and so does a look at a later time."""
    before = next((one for one in memory.doubts if one.place == doubt.place), doubt)
    stage = 2 if before.stage and before.due > doubt.due else doubt.stage
    others = (one for one in memory.doubts if one.place != doubt.place)
    return memory.but(doubts=(*others, Doubt(doubt.place, doubt.due, stage, card=doubt.card or before.card)))


def unsaved(memory: Memory, places: frozenset[Place], now: float, *, overtaken: bool) -> Memory:
    """What was written in these places since the last save is on no record: it is looked for at once, and at the end.

    Where somebody else has the record, their writes may have crossed with ours: it is looked for again when everything
    late has landed, and the cards are patched once more.
    """
    for place in places:
        memory = _doubt(memory, Doubt(place, now, 2 if overtaken else 1, card=overtaken))
    touched = memory.touched | {place.channel_id for place in places} if overtaken else memory.touched
    return memory.but(text=None, mine=memory.mine and not overtaken, touched=touched)
