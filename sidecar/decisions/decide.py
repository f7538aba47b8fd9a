"""What comes next for one access request. Pure and total: THE table is `_QUESTIONS`, asked from top to bottom.

Each question is one small function of what was seen and what is remembered; the first that has an answer gives the
plan. Nothing outside of this room decides about posts, silence, delays, takeovers, ends, retries or when to look again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from sidecar.decisions import posts as due
from sidecar.decisions.deliberate import deliberate, unheard
from sidecar.decisions.posts import settled
from sidecar.decisions.record import Record, Slot, Stored, Unreadable
from sidecar.decisions.seen import (
    UNASKED,
    Action,
    Answer,
    Context,
    Create,
    Delete,
    Doubt,
    Evidence,
    Facts,
    Look,
    Memory,
    Now,
    Patch,
    Place,
    Plan,
    Reply,
    Seen,
    Unknown,
)
from sidecar.errors import Conflict, LinkError, PostRejected, RequestGone
from sidecar.model import EXPIRED, PENDING, REMOVED, AccessRequest, Draft, Post, Version, state_rank
from sidecar.text import card as text
from sidecar.times import doubled

__all__ = ["Facts", "Memory", "decide", "settled"]

# A request that goes away this long before its expiry by our clock still counts as expired.
EXPIRY_SLACK_SECONDS = 10.0
# How many leases the same record must have been watched before its holder counts as dead: 35 s for one of 30.
TAKEOVER = 1 + 1 / 6
_GONE = state_rank(EXPIRED)


class View(NamedTuple):
    """Everything that a question may ask about."""

    seen: Seen
    facts: Facts
    memory: Memory
    context: Context
    now: Now

    @property
    def request(self) -> AccessRequest | None:
        """The request as far as it is known."""
        request = self.seen.request
        return request if isinstance(request, AccessRequest) else None

    @property
    def record(self) -> Record | None:
        """The record as far as it is known."""
        stored = self.seen.stored
        return stored.record if isinstance(stored, Stored) else None

    @property
    def pending(self) -> bool:
        """Whether it may still be decided."""
        return self.request is not None and self.request.state == PENDING and not self.gone

    @property
    def gone(self) -> bool:
        """Whether Teleport provably has the request no more."""
        return self.facts.gone or (self.seen.request is None and _proven_absent(self))

    @property
    def retry_failed(self) -> bool:
        """Whether recipients that failed are due again."""
        return not self.memory.retries or self.now.mono >= self.memory.retry_at

    def backoff(self, first: float, most: float, tries: int) -> float:
        """When to look again after so many tries."""
        return self.now.mono + doubled(first, most, tries)


def decide(seen: Seen, facts: Facts, memory: Memory, context: Context, now: Now) -> Plan:
    """The next step of a look. Applying it and deciding again comes to rest: a plan without look, take and actions."""
    view = View(seen, facts, memory, context, now)
    for question in _QUESTIONS:
        plan = question(view)
        if plan is not None:
            return plan
    raise AssertionError("the last question always has an answer")


# -- what is not known yet -------------------------------------------------------------------------------------------


def _what_is_it(view: View) -> Plan | None:
    """The request, unless an event brought it or proved that it is gone; and the record where there may be one."""
    seen, memory = view.seen, view.memory
    resolved = view.request is not None and view.request.state != PENDING
    look = Look(
        request=seen.request is UNASKED and not view.facts.gone,
        record=seen.stored is UNASKED and (memory.known or view.facts.gone or resolved or seen.request is None),
        evidence=_wants_evidence(view),
    )
    if look.evidence and not seen.by_id and not view.facts.gone:
        look = msgspec.structs.replace(look, request=True)
    return Plan(memory=memory, look=look) if look else None


def _wants_evidence(view: View) -> bool:
    """Decisions are read beside the request: a person waits for an answer."""
    return (
        view.memory.listen
        and view.context.rules.mode != "none"
        and view.seen.evidence is UNASKED
        and view.record is not None
        and not view.record.done
        and not view.gone
        and bool(view.context.bot_id)
    )


def _was_it_readable(view: View) -> Plan | None:
    """What could not be read is read again; nothing is concluded meanwhile."""
    for part in (view.seen.request, view.seen.stored):
        if isinstance(part, Unknown) and part.why is not None:
            return _put_off(view, str(part.why), link=isinstance(part.why, LinkError | Conflict))
    return None


def _may_it_be_written(view: View) -> Plan | None:
    """A record that a newer sidecar wrote, or that is damaged, is not ours to change."""
    if not isinstance(view.seen.stored, Unreadable):
        return None
    trouble = "" if view.memory.silent else view.seen.stored.why
    return Plan(memory=view.memory.but(silent=True), again_at=_expiry(view), trouble=trouble, drop=view.gone)


# -- is there anything to do -----------------------------------------------------------------------------------------


def _is_it_there(view: View) -> Plan | None:
    """A get by id found nothing. That alone is no proof: without the right to list it looks the same."""
    if view.gone:
        over = view.record is None or (view.record.done and not view.seen.held) or view.memory.silent
        return Plan(memory=view.memory, drop=True) if over else None
    if view.seen.request is not None:
        return None
    if view.memory.silent or view.record is None:
        return Plan(memory=view.memory, drop=True)
    again = view.now.mono + max(view.record.exp + view.context.times.expiry_grace - view.now.wall, 0.0)
    if view.facts.absent_since < math.inf:
        again = min(again, view.facts.absent_since + view.context.times.absent)
    return Plan(memory=view.memory, again_at=again)


def _proven_absent(view: View) -> bool:
    """Absent from a complete list and by id, or past its expiry and absent by id.

    In mode `plugin` the right to review narrows what our role is shown: there it must be missing for a while.
    """
    record, context = view.record, view.context
    if record is None:
        return False
    if view.now.wall >= record.exp + context.times.expiry_grace:
        return True
    absent_for = view.now.mono - view.facts.absent_since
    return absent_for >= (context.times.absent if context.rules.mode == "plugin" else 0.0)


def _does_it_count(view: View) -> Plan | None:
    """Dry runs are nobody's business."""
    return Plan(memory=view.memory, drop=True) if view.request is not None and view.request.dry_run else None


def _is_it_news(view: View) -> Plan | None:
    """Another process may have acted on more than we were told; in doubt the request is read by id."""
    request, record = view.request, view.record
    if request is None or request.version >= view.facts.version:
        if request is None or record is None or view.gone or request.version >= record.version:
            return None
        if record.version.rank == _GONE and view.seen.by_id:
            return None  # alive after all
    if not view.seen.by_id:
        return Plan(memory=view.memory, look=Look(request=True))
    return Plan(memory=view.memory, again_at=_expiry(view))


def _is_it_too_early(view: View) -> Plan | None:
    """A request that is approved at once wakes nobody."""
    request, delay = view.request, view.context.announce_delay
    if not delay or request is None or not view.pending or view.memory.known:
        return None
    # Whichever says that it is over: the wall clock may be behind Teleport's, and a restart knows only that one.
    known = view.now.mono - view.facts.pending_since
    wait = min((request.created or 0.0) + delay - view.now.wall, delay - known)
    return Plan(memory=view.memory, again_at=view.now.mono + wait) if wait > 0 else None


def _is_silence_right(view: View) -> Plan | None:
    """Nobody is told of a request that was resolved when it was first read; who read it PENDING owes it a card."""
    if view.record is not None or view.request is None or view.pending or view.context.announce_resolved:
        return None
    owed = not view.memory.silent and view.now.mono - view.facts.pending_since >= view.context.announce_delay
    return None if owed else Plan(memory=view.memory.but(silent=True), again_at=_expiry(view))


def _is_it_done(view: View) -> Plan | None:
    """An ended request is followed no longer, unless it is seen alive."""
    record = view.record
    if record is None or not record.done or (view.request is not None and view.seen.by_id and view.pending):
        return None
    if view.seen.held:
        return None  # it was closed in this look, and is still to be given up
    if view.request is not None and not view.seen.by_id:
        return Plan(memory=view.memory, look=Look(request=True))
    return Plan(memory=view.memory, drop=True)


def _is_it_ours(view: View) -> Plan | None:
    """Another holder may act on the record until it has been watched for longer than its lease."""
    record, memory = view.record, view.memory
    if view.seen.held or record is None or record.owner in ("", view.context.owner):
        return None
    foreign = memory.foreign
    if foreign is None or foreign[0] != record.n:
        foreign = (record.n, view.now.boot)
    left = foreign[1] + takeover_seconds(record) - view.now.boot
    if left <= 0:
        return None
    wait = min(left + 0.05, record.lease_s / 3)
    return Plan(memory=memory.but(foreign=foreign, text=None), again_at=view.now.mono + wait)


def takeover_seconds(record: Record) -> float:
    """How long the same record must have been watched before its holder counts as dead."""
    return record.lease_s * TAKEOVER


# -- what is to be done ----------------------------------------------------------------------------------------------


def _what_is_uncertain(view: View) -> Plan | None:
    """A place where something may stand that no record tells is read when it is due, and at the end."""
    wanted = frozenset(
        doubt.place
        for doubt in view.memory.doubts
        if doubt.place not in view.seen.posts and (doubt.due <= view.now.mono or (view.gone and not doubt.stage))
    )
    return Plan(memory=view.memory, look=Look(places=wanted)) if wanted and view.record is not None else None


def _what_do_people_say(view: View) -> Plan | None:
    """Decisions are judged and submitted before anything is posted."""
    if view.gone or view.record is None:
        return None
    seen = view.seen
    if view.request is not None and _expired_by_clock(view):
        seen = seen.but(request=msgspec.structs.replace(view.request, state=EXPIRED))
    plan = deliberate(seen, view.memory, view.context, view.now)
    return _taken(view, plan) if plan is not None and plan.take else plan


def _what_must_be_posted(view: View) -> Plan | None:
    """Cards, changes, answers: whatever is not yet as it should be."""
    if not view.context.bot_id:
        return _put_off(view, "", link=True)
    if _wants_targets(view) and view.seen.targets is UNASKED:
        return Plan(memory=view.memory, look=Look(targets=True))
    if view.record is None and isinstance(view.seen.targets, Unknown):
        # Nothing is claimed for recipients that nobody knows.
        return _put_off(view, "", link=True)
    record, refused = _with_recipients(view)
    memory = _after_reading(view)
    found = _found(view, record)
    view = view._replace(memory=memory)
    posts = _due(view, found.record)
    plan = Plan(
        memory=memory,
        record=posts.record,
        look=posts.look,
        actions=(*(Delete(post_id, place) for post_id, place in found.younger), *posts.actions),
        refused=refused,
        found=found.kinds,
    )
    plan = msgspec.structs.replace(
        plan, actions=tuple(one for one in plan.actions if one.identity not in view.seen.failed)
    )
    if view.seen.held:
        return plan if not plan.over else _rest(view, posts.record, refused)
    # Whoever died may have left a write that is on no record, although the record looks finished.
    died = view.record is not None and view.record.owner not in ("", view.context.owner)
    if plan.actions or plan.look or died or _worth_writing(view.record, posts.record):
        return _taken(view, plan)
    return _rest(view, posts.record, refused)


_QUESTIONS: tuple[Callable[[View], Plan | None], ...] = (
    _what_is_it,
    _was_it_readable,
    _may_it_be_written,
    _is_it_there,
    _does_it_count,
    _is_it_news,
    _is_it_too_early,
    _is_silence_right,
    _is_it_done,
    _is_it_ours,
    _what_is_uncertain,
    _what_do_people_say,
    _what_must_be_posted,
)


# -- recipients and posts --------------------------------------------------------------------------------------------


class _Posts(NamedTuple):
    """What is due: the record as it should be, what to do, and what must be read before more can be done."""

    record: Record
    actions: list[Action]
    look: Look


def _wants_targets(view: View) -> bool:
    if view.request is None or view.gone:
        return False
    record = view.record
    return view.pending or record is None or any(slot.s == "waiting" and not slot.c for slot in record.posts)


def _with_recipients(view: View) -> tuple[Record, int]:
    """The record with every recipient in it, and how many it has no room for.

    Recipients are added while the request is PENDING, or once to tell of a resolved one.
    """
    request, record, targets = view.request, view.record, view.seen.targets
    if record is None:
        record = _new_record(view)
    if view.gone or request is None:
        return record, 0
    chosen = targets if not isinstance(targets, Unknown) else ()
    if not (view.pending or view.record is None):
        owed = {(slot.r, slot.k) for slot in record.posts if slot.s == "waiting" and not slot.c}
        chosen = tuple(target for target in chosen if (target.name, target.kind) in owed)
    elif view.context.keep_recipients and record.posts:
        kept = {(slot.r, slot.k) for slot in record.posts}
        chosen = tuple(target for target in chosen if (target.name, target.kind) in kept)
    # A card that first appears resolved says it all: no replies for what went before.
    record, refused = due.merge(record, chosen, rep=() if view.pending else due.numbers(request))
    seen = (request.state, len(request.reviews))
    left = record.left if isinstance(targets, Unknown) else view.seen.left_out
    return msgspec.structs.replace(
        record, left=left, seen=seen, exp=int(request.expires or record.exp), done=False
    ), refused


def _new_record(view: View) -> Record:
    request, context = view.request, view.context
    at = int(view.now.wall)
    return Record(
        seed=context.seed,
        owner=context.owner,
        at=at,
        exp=int((request.expires if request is not None else None) or at),
        lease_s=context.lease_s,
        seen=(request.state, len(request.reviews)) if request is not None else (PENDING, 0),
        posts=(),
    )


def _found(view: View, record: Record) -> due.Found:
    read = {place: posts for place, posts in view.seen.posts.items() if not isinstance(posts, Unknown)}
    if not read:
        return due.Found(record)
    return due.find(
        record,
        read,
        view.context.bot_id,
        reviews=max(record.seen[1], len(view.request.reviews) if view.request is not None else 0),
        adopting=view.context.request_id if view.memory.mentions else "",
    )


def _due(view: View, record: Record) -> _Posts:
    """Each slot's next steps."""
    end = _ending(view, record) if view.gone else ""
    if end:
        record = msgspec.structs.replace(record, seen=(end, record.seen[1]))
    open_slots = _to_end(view, record, end) if end else tuple(range(len(record.posts)))
    cards: dict[str, tuple[Draft, str]] = {}
    actions: list[Action] = []
    places: set[Place] = set()
    unproven: set[str] = set()
    for position in open_slots:
        slot = record.posts[position]
        if not due.is_due(slot, pending=view.pending, retry_failed=view.retry_failed):
            continue
        if not slot.p and not _may_write(view, Place(slot.c), places):
            continue
        if end:
            record = _end_slot(view, record, position, end, actions, unproven)
            continue
        if slot.k not in cards:
            draft = _card(view, slot.k, record.left)
            cards[slot.k] = (draft, text.content_hash(draft))
        record = _bring(view, record, position, cards[slot.k], actions, unproven)
        if slot.p:
            _reply(view, record, position, actions, places)
    for owed in record.owe:
        if _may_write(view, Place(owed.c, owed.t), places):
            actions.append(Answer(owed))
    if end and not (actions or places or unproven or view.memory.doubts or _to_end(view, record, end)):
        record = msgspec.structs.replace(record, done=True, owe=())
    return _Posts(record, actions, Look(places=frozenset(places), cards=frozenset(unproven)))


def _to_end(view: View, record: Record, end: str) -> tuple[int, ...]:
    """The slots that do not say yet how it ended, or may show something else after all."""
    touched = (n for n, slot in enumerate(record.posts) if slot.p and slot.c in view.memory.touched)
    return tuple(sorted({*due.still_open(record, end), *touched}))


def _may_write(view: View, place: Place, wanted: set[Place]) -> bool:
    """Whether nothing of ours can stand there unseen; else it is noted as wanted, or could not be read."""
    if not any(doubt.place == place for doubt in view.memory.doubts):
        return True
    if place not in view.seen.posts:
        wanted.add(place)
        return False
    return not isinstance(view.seen.posts[place], Unknown)


def _bring(
    view: View,
    record: Record,
    position: int,
    card: tuple[Draft, str],
    actions: list[Action],
    unproven: set[str],
) -> Record:
    """Make the card, or bring it to what is to be shown."""
    slot, request = record.posts[position], view.request
    draft, digest = card
    if not slot.p:
        actions.append(Create(position, draft, digest, _shows(view, record)))
        return record
    if request is None:
        return record
    changed = (slot.h != digest or not slot.shown[0]) and _shown_version(slot, record) <= request.version
    if not changed and slot.c not in view.memory.touched:
        return record
    patch = Patch(position, draft, digest, _shows(view, record), message=not slot.h)
    return _patch(view, record, position, patch, actions, unproven)


def _shows(view: View, record: Record) -> tuple[str, int]:
    return (EXPIRED, record.seen[1]) if _expired_by_clock(view) else record.seen


def _patch(
    view: View, record: Record, position: int, patch: Patch, actions: list[Action], unproven: set[str]
) -> Record:
    """Patch a card that was read, and is one; one that is gone is never made again."""
    slot = record.posts[position]
    card = view.seen.cards.get(slot.p, UNASKED)
    if card is UNASKED:
        unproven.add(slot.p)
    elif isinstance(card, Post):
        actions.append(patch)
    elif card is None:
        return due.with_slot(record, position, s="gone")
    elif isinstance(card.why, PostRejected):
        return due.with_slot(record, position, s="failed")
    return record


def _reply(view: View, record: Record, position: int, actions: list[Action], places: set[Place]) -> None:
    slot, request = record.posts[position], view.request
    if request is None or slot.s == "gone":
        return
    for number in due.numbers(request):
        if number not in slot.rep and _may_write(view, Place(slot.c, slot.p), places):
            actions.append(Reply(position, number, due.render_reply(request, number)))


def _end_slot(view: View, record: Record, position: int, end: str, actions: list[Action], unproven: set[str]) -> Record:
    """Close a card from what it shows itself: Teleport has nothing more to say."""
    slot = record.posts[position]
    if not slot.p:
        return due.with_slot(record, position, s="gone")
    card = view.seen.cards.get(slot.p, UNASKED)
    attachment = card.attachment if isinstance(card, Post) else None
    draft = text.close_card(attachment, view.context.request_id, end)
    patch = Patch(position, draft, text.content_hash(draft), (end, record.seen[1]), message=not slot.h)
    record = _patch(view, record, position, patch, actions, unproven)
    number = due.end_number(end)
    if isinstance(card, Post) and number not in slot.rep and _may_write(view, Place(slot.c, slot.p), set()):
        actions.append(Reply(position, number, text.render_gone_reply(end)))
    return record


def _ending(view: View, record: Record) -> str:
    """The state in which a request that is gone ended."""
    if record.seen[0] != PENDING:
        return record.seen[0]
    # Nobody removes a request at the very moment of its expiry, whoever's clock is behind.
    return EXPIRED if view.now.wall + max(view.now.offset, 0.0) >= record.exp - EXPIRY_SLACK_SECONDS else REMOVED


def _card(view: View, kind: str, left_out: int) -> Draft:
    assert view.request is not None  # noqa: S101 - only what is gone has no request, and its cards are closed
    state = EXPIRED if _expired_by_clock(view) else None
    options = msgspec.structs.replace(view.context.options, left_out=left_out)
    return text.render_card(view.request, options=options, kind="card" if kind == "card" else "requester", state=state)


def _expired_by_clock(view: View) -> bool:
    """Newer servers go on listing a request for a while after its expiry; it is shown as EXPIRED, not seen as such."""
    request = view.request
    return (
        request is not None
        and request.state == PENDING
        and request.expires is not None
        and view.now.wall + min(view.now.offset, 0.0) >= request.expires + view.context.times.expired
    )


def _shown_version(slot: Slot, record: Record) -> Version:
    """What a card shows; an end that was taken back, or only said by the clock, is no version."""
    return record.version if slot.version.rank == _GONE and record.version.rank < _GONE else slot.version


def _worth_writing(old: Record | None, new: Record) -> bool:
    if old is None:
        return True
    return (old.posts, old.owe, old.dec, old.done) != (new.posts, new.owe, new.dec, new.done)


# -- doubts ----------------------------------------------------------------------------------------------------------


def _taken(view: View, plan: Plan) -> Plan:
    """Take the record; what its last holder may have left unrecorded becomes a doubt.

    Reading goes on beside that, acting waits for it.
    """
    memory, record, now = plan.memory, view.record, view.now.mono
    slots = plan.record.posts if plan.record is not None else ()
    doubts = list(memory.doubts)
    known = {doubt.place for doubt in doubts}
    left: list[Doubt] = []
    if record is not None and record.owner not in ("", view.context.owner):
        for slot in slots:
            if slot.c and slot.s != "gone":
                left.append(Doubt(Place(slot.c), now, 2, card=bool(slot.p)))
                left += [Doubt(Place(slot.c, slot.p), now, 2)] if slot.p else []
        left += [Doubt(Place(owed.c, owed.t), now, 2) for owed in record.owe]
    elif record is not None and not memory.mine:
        left = [Doubt(Place(slot.c), math.inf, 0) for slot in slots if slot.s == "waiting" and slot.c]
    doubts += [doubt for doubt in left if doubt.place not in known]
    memory = memory.but(known=True, mine=True, foreign=None, doubts=tuple(dict.fromkeys(doubts)))
    return msgspec.structs.replace(plan, memory=memory, take=True, actions=())


def _after_reading(view: View) -> Memory:
    """The doubts after the places were read: each is looked at when it is due, and once more at the end."""
    memory, now = view.memory, view.now.mono
    doubts: list[Doubt] = []
    touched = set(memory.touched)
    for doubt in memory.doubts:
        posts = view.seen.posts.get(doubt.place)
        ripe = doubt.due <= now or (view.gone and not doubt.stage)
        if posts is None or (not ripe and not isinstance(posts, Unknown)):
            doubts.append(doubt)
        elif isinstance(posts, Unknown):
            if not isinstance(posts.why, PostRejected):
                doubts.append(msgspec.structs.replace(doubt, due=max(doubt.due, now + view.context.times.failure_most)))
            # Else it is no longer ours to read, so not ours to repair.
        else:
            if doubt.card:
                touched.add(doubt.place.channel_id)
            if doubt.stage:
                stage = doubt.stage - 1
                again = now + view.context.lease_s * TAKEOVER if stage else math.inf
                doubts.append(msgspec.structs.replace(doubt, stage=stage, due=again))
    return memory.but(
        doubts=tuple(doubts), touched=frozenset(touched), mentions=memory.mentions and not view.seen.posts
    )


# -- the end of a look -----------------------------------------------------------------------------------------------


def _rest(view: View, record: Record, refused: int) -> Plan:
    """Nothing more can be done now: give the record up where nothing is in doubt, and choose when to look again."""
    memory, now, times = view.memory, view.now.mono, view.context.times
    again = [_expiry(view), *(doubt.due for doubt in memory.doubts)]
    if any(due.unfinished(slot, pending=view.pending) for slot in record.posts):
        if view.retry_failed:
            retry_at = view.backoff(times.retry_first, times.retry_most, memory.retries)
            memory = memory.but(retry_at=retry_at, retries=min(memory.retries + 1, 10))
        again.append(memory.retry_at)
    else:
        memory = memory.but(retries=0)
    # What was read too long ago, or not all of it.
    unheard_of = unheard(view.seen, record)
    if view.seen.error is not None or unheard_of:
        link = bool(unheard_of) or isinstance(view.seen.error, LinkError | RequestGone)
        first, most = (times.failure_first, times.failure_most) if link else (times.retry_first, times.retry_most)
        again.append(view.backoff(first, most, memory.failures))
        memory = memory.but(failures=min(memory.failures + 1, 20))
    else:
        memory = memory.but(failures=0)
    if memory.listen and isinstance(view.seen.evidence, Evidence) and not unheard_of:
        memory = memory.but(listen=False)
    ours = record.owner == view.context.owner and view.record is not None
    return Plan(
        memory=memory,
        record=record,
        save=view.seen.held or (ours and not memory.timed),
        again_at=min(again),
        drop=record.done and view.gone,
        refused=refused,
    )


def _put_off(view: View, trouble: str, *, link: bool) -> Plan:
    """Look again later, less and less often; a failing link is no news, everything else is said once."""
    times, tries = view.context.times, view.memory.failures
    first, most = (times.failure_first, times.failure_most) if link else (times.retry_first, times.retry_most)
    return Plan(
        memory=view.memory.but(failures=min(tries + 1, 20)),
        again_at=view.backoff(first, most, tries),
        trouble="" if link or tries else trouble,
    )


def _expiry(view: View) -> float:
    """When (trio's clock) the request should be over; later where by our clock it is over already."""
    expires, times = None, view.context.times
    if view.request is not None:
        expires = view.request.expires
    elif view.record is not None:
        expires = float(view.record.exp)
    if expires is None or view.gone:
        return math.inf
    moments = [times.expiry_grace] if not view.pending else [times.expired, times.expiry_grace]
    left = [left for grace in moments if (left := expires + grace - view.now.wall) > 0]
    return view.now.mono + min(left, default=times.expiry_grace)
