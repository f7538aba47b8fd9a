"""What comes next for one access request. Pure and total: THE table is `_QUESTIONS`, asked from top to bottom.

Each question is one small function of what was seen and what is remembered; the first that has an answer gives the
plan. Nothing outside of this room decides about posts, silence, delays, takeovers, ends, retries or when to look again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from sidecar.decisions.deliberate import deliberate, moved, strangers, unheard
from sidecar.decisions.doubts import after_reading, marked, taken
from sidecar.decisions.due import reminder_at, settled, wants_targets, with_recipients, work, worth_writing
from sidecar.decisions.judge import key_of
from sidecar.decisions.posts import Found, find, unfinished
from sidecar.decisions.record import Record, Unreadable
from sidecar.decisions.seen import (
    UNASKED,
    Context,
    Delete,
    Evidence,
    Facts,
    Look,
    Memory,
    Now,
    Place,
    Plan,
    Seen,
    Unknown,
)
from sidecar.decisions.view import GONE, TAKEOVER, View
from sidecar.errors import Conflict, LinkError, RequestGone
from sidecar.model import EXPIRED, PENDING, Post
from sidecar.text.card import says_nothing

__all__ = ["Facts", "Memory", "decide", "settled"]


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
    return Plan(memory=view.memory.but(silent=True), again_at=view.expiry_at, trouble=trouble, drop=view.gone)


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
    again = view.now.mono + max(view.record.exp + view.context.times.expiry_grace - view.teleport_time, 0.0)
    if view.facts.absent_since < math.inf:
        again = min(again, view.facts.absent_since + view.context.times.absent)
    return Plan(memory=view.memory, again_at=again)


def _does_it_count(view: View) -> Plan | None:
    """Dry runs are nobody's business."""
    return Plan(memory=view.memory, drop=True) if view.request is not None and view.request.dry_run else None


def _is_it_news(view: View) -> Plan | None:
    """Another process may have acted on more than we were told; in doubt the request is read by id."""
    request, record = view.request, view.record
    if view.another and view.seen.by_id:
        return None
    if view.another:
        # It may be an event of the former one that is late.
        return Plan(memory=view.memory, look=Look(request=True))
    if request is None or request.version >= view.facts.version:
        if request is None or record is None or view.gone or request.version >= record.version:
            return None
        if record.version.rank == GONE and view.seen.by_id:
            return None  # alive after all
    if not view.seen.by_id:
        return Plan(memory=view.memory, look=Look(request=True))
    return Plan(memory=view.memory, again_at=view.expiry_at)


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
    return None if owed else Plan(memory=view.memory.but(silent=True), again_at=view.expiry_at)


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
    left = foreign[1] + record.lease_s * TAKEOVER - view.now.boot
    if left <= 0:
        return None
    wait = min(left + 0.05, record.lease_s / 3)
    return Plan(memory=memory.but(foreign=foreign, text=None), again_at=view.now.mono + wait)


# -- what is to be done ----------------------------------------------------------------------------------------------


def _what_is_uncertain(view: View) -> Plan | None:
    """A place where something may stand that no record tells is read when it is due, and at the end."""
    wanted = frozenset(
        doubt.place
        for doubt in view.memory.doubts
        if doubt.place not in view.seen.posts and (doubt.due <= view.now.mono or (view.ends and not doubt.stage))
    )
    return Plan(memory=view.memory, look=Look(places=wanted)) if wanted and view.record is not None else None


def _what_do_people_say(view: View) -> Plan | None:
    """Decisions are judged and submitted before anything is posted."""
    if view.ends or view.record is None:
        return None
    seen = view.seen
    if view.request is not None and view.expired_by_clock:
        seen = seen.but(request=msgspec.structs.replace(view.request, state=EXPIRED))
    plan = deliberate(seen, view.memory, view.context, view.now)
    return taken(view, plan) if plan is not None and plan.take else plan


def _what_must_be_posted(view: View) -> Plan | None:
    """Cards, changes, answers: whatever is not yet as it should be."""
    if not view.context.bot_id:
        return _put_off(view, "", link=True)
    if wants_targets(view) and view.seen.targets is UNASKED:
        return Plan(memory=view.memory, look=Look(targets=True))
    if view.record is None and isinstance(view.seen.targets, Unknown):
        # Nothing is claimed for recipients that nobody knows.
        return _put_off(view, "", link=True)
    record, refused = with_recipients(view)
    found = _found(view, record)
    view = view._replace(memory=after_reading(view, found.record))
    second, words, kept = _second_cards(view, found)
    due = work(view, kept)
    if view.seen.held:
        due = due._replace(record=marked(due.record, due.memory))
    actions = (*second, *due.actions)
    plan = Plan(
        memory=due.memory,
        record=due.record,
        look=msgspec.structs.replace(due.look, words=words),
        actions=tuple(one for one in actions if one.identity not in view.seen.failed),
        refused=refused,
        found=found.kinds,
        unproven=due.unproven,
    )
    view = view._replace(memory=due.memory)
    if view.seen.held:
        if plan.over and _wants_requester(view, due.record):
            # After the posts, which do not wait for it.
            return msgspec.structs.replace(plan, look=Look(who=True))
        return plan if not plan.over else _rest(view, plan)
    # Whoever died may have left a write that is on no record, although the record looks finished.
    died = view.record is not None and view.record.owner not in ("", view.context.owner)
    if plan.actions or plan.look or died or view.another or worth_writing(view.record, due.record):
        return taken(view, plan)
    return _rest(view, plan)


def _second_cards(view: View, found: Found) -> tuple[tuple[Delete, ...], frozenset[Place], Record]:
    """The younger posts to be deleted, those of them that are to be read first, and the record with what is owed then.

    Who decided on one is asked to do so again on the one that stays: its thread and its reactions go with it.
    """
    record, seen = found.record, view.seen
    wants = view.pending and view.context.rules.mode != "none" and not view.ends
    roots = {post_id: place for post_id, place in found.younger if wants and not place.root_id}
    unread = frozenset(Place(place.channel_id, one) for one, place in roots.items() if one not in seen.words)
    for post_id, place in roots.items():
        words = seen.words.get(post_id, ())
        kept = next((slot.p for slot in record.posts if slot.c == place.channel_id and slot.k == "card"), "")
        if kept and not isinstance(words, Unknown):
            record = moved(record, post_id, words, kept)
    ready = {one for one in roots if not isinstance(seen.words.get(one, UNASKED), Unknown)}
    younger = (one for one in found.younger if one[0] not in roots or one[0] in ready)
    return tuple(Delete(post_id, place) for post_id, place in younger), unread, record


def _wants_requester(view: View, record: Record) -> bool:
    """Whether the requester's account should be on record: it may not decide, whatever it is called later."""
    decides = view.context.rules.mode != "none" and view.pending
    return decides and not record.who and view.seen.who is UNASKED and bool(view.context.requester)


def _found(view: View, record: Record) -> Found:
    read = {place: posts for place, posts in view.seen.posts.items() if not isinstance(posts, Unknown)}
    if not read:
        return Found(record)
    reviews = max(record.seen[1], len(view.request.reviews) if view.request is not None else 0)
    context = view.context
    most = context.reminders.most if context.reminders.after > 0 else 0
    adopting = view.memory.mentions
    return find(record, read, context, view.wanted, reviews=reviews, reminders=most, adopting=adopting)


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


# -- the end of a look -----------------------------------------------------------------------------------------------


def _rest(view: View, plan: Plan) -> Plan:
    """Nothing more can be done now: give the record up where nothing is in doubt, and choose when to look again."""
    record = plan.record
    assert record is not None  # noqa: S101 - whatever must be posted is on one
    memory, times = view.memory, view.context.times
    again = [view.expiry_at, *(doubt.due for doubt in memory.doubts)]
    if (reminder := reminder_at(view, record)) > view.now.mono:
        again.append(reminder)
    if view.another and view.record is not None and view.record.q != record.q:
        # The new seed is on record before anything is posted with it.
        again.append(view.now.mono + times.failure_first)
    if any(unfinished(slot, pending=view.pending) for slot in record.posts):
        if view.retry_failed:
            retry_at = view.now.mono + times.wait(memory.retries, link=False)
            memory = memory.but(retry_at=retry_at, retries=memory.retries + 1)
        again.append(memory.retry_at)
    else:
        memory = memory.but(retries=0)
    memory, unheard_of = _heard(view, memory.but(proven=_proven(view, record)), record)
    if view.seen.error is not None or unheard_of:
        link = unheard_of or isinstance(view.seen.error, LinkError | RequestGone)
        again.append(view.now.mono + times.wait(memory.failures, link=link))
        memory = memory.but(failures=memory.failures + 1)
    else:
        memory = memory.but(failures=0)
    ours = record.owner == view.context.owner and view.record is not None
    return msgspec.structs.replace(
        plan,
        memory=memory,
        save=view.seen.held or (ours and not memory.timed),
        again_at=min(again),
        drop=record.done and view.gone,
        strangers=strangers(view.seen, view.memory, record, view.context),
    )


def _proven(view: View, record: Record) -> str:
    """The rules under which every card stands, as far as this process wrote or read it itself; "" where it did not."""
    rules = view.context.rules_digest
    cards = (view.seen.cards.get(slot.p, UNASKED) for slot in record.posts if slot.p)

    def known(one: object) -> bool:
        if isinstance(one, Post):
            # A card of the version before must be read: what it says depends on its message.
            return one.mark.rules == rules and not says_nothing(one.message)
        return one is UNASKED and view.proven

    return rules if all(map(known, cards)) else ""


def _heard(view: View, memory: Memory, record: Record) -> tuple[Memory, bool]:
    """What there is still to listen to, and whether something was said that must be read again before long.

    That is what was read too long ago, or what could not be read. Direct messages that were taken back, or have their
    verdict where nobody counts votes, need no room any more.
    """
    evidence = view.seen.evidence
    if not isinstance(evidence, Evidence):
        return memory, False
    left = unheard(view.seen, record, view.context)
    stands = evidence.standing if view.context.rules.by_quorum else left
    kept = {key_of(one) for one in stands}
    again = bool(left) or evidence.error is not None
    direct = tuple(one for one in memory.direct if key_of(one) in kept or evidence.error is not None)
    return memory.but(listen=memory.listen and again, direct=direct), again


def _put_off(view: View, trouble: str, *, link: bool) -> Plan:
    """Look again later, less and less often; a failing link is no news, everything else is said once."""
    tries = view.memory.failures
    return Plan(
        memory=view.memory.but(failures=tries + 1),
        again_at=view.now.mono + view.context.times.wait(tries, link=link),
        trouble="" if link or tries else trouble,
    )
