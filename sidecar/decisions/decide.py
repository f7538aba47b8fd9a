"""What comes next for one access request. Pure and total: THE table is `_QUESTIONS`, asked from top to bottom.

Each question is one small function of what was seen and what is remembered; the first that has an answer gives the
plan. Nothing outside of this room decides about posts, silence, delays, takeovers, ends, retries or when to look again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from sidecar.decisions.actions import Delete, Place
from sidecar.decisions.deliberate import deliberate, moved
from sidecar.decisions.doubts import after_reading, is_due, marked, taken, was_read
from sidecar.decisions.due import settled, work, worth_writing
from sidecar.decisions.posts import Found, find
from sidecar.decisions.recipients import wants_targets, with_recipients
from sidecar.decisions.record import Record, Unreadable
from sidecar.decisions.rest import put_off, rest
from sidecar.decisions.seen import UNASKED, Context, Facts, Look, Memory, Now, Plan, Seen, Unknown
from sidecar.decisions.view import GONE, TAKEOVER, View
from sidecar.errors import Conflict, LinkError
from sidecar.model import EXPIRED, PENDING

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
            return put_off(view, str(part.why), link=isinstance(part.why, LinkError | Conflict))
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
    wanted = frozenset(doubt.place for doubt in view.memory.doubts if is_due(view, doubt) and not was_read(view, doubt))
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
        return put_off(view, "", link=True)
    if wants_targets(view) and view.seen.targets is UNASKED:
        return Plan(memory=view.memory, look=Look(targets=True))
    if view.record is None and isinstance(view.seen.targets, Unknown):
        # Nothing is claimed for recipients that nobody knows.
        return put_off(view, "", link=True)
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
        return plan if not plan.over else rest(view, plan)
    # Whoever died may have left a write that is on no record, although the record looks finished.
    died = view.record is not None and view.record.owner not in ("", view.context.owner)
    if plan.actions or plan.look or died or view.another or worth_writing(view.record, due.record):
        return taken(view, plan)
    return rest(view, plan)


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
