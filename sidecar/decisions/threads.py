"""What is due in the threads of an access request's cards: a reply for each review or end, and reminders. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from sidecar.decisions import posts, reminders
from sidecar.decisions.actions import Reply
from sidecar.decisions.answers import mention, render_given
from sidecar.decisions.record import Record, Slot
from sidecar.decisions.reminders import Nudge
from sidecar.decisions.seen import UNASKED, Memory, Unknown
from sidecar.decisions.view import View
from sidecar.errors import PostRejected
from sidecar.model import AccessRequest, Draft
from sidecar.text import replies


def reviews_due(view: View, position: int, slot: Slot, request: AccessRequest) -> tuple[Slot, tuple[Reply, ...]]:
    """One reply for each review, of which the deciding one tells the end; one for an end that no review brought.

    The sidecar's own review has none: those for whom it counted were answered.
    """
    context = view.context
    own = posts.number_by(request, context.own_user) if context.rules.by_quorum and context.own_user else 0
    if own:
        slot = posts.replied(slot, own)
    wanted = [number for number in posts.numbers(request) if number not in slot.rep]
    end, last = posts.end_number(request.state), posts.deciding(request)
    joined = end if end in wanted and last in wanted else 0
    due = []
    for number in wanted:
        if number > 0 or not joined:
            ends = joined if number == last else 0
            due.append(Reply(position, number, _reply_to(view.memory, slot, request, number, ending=bool(ends)), ends))
    return slot, tuple(due)


def _reply_to(memory: Memory, slot: Slot, request: AccessRequest, number: int, *, ending: bool) -> Draft:
    if number < 0:
        return replies.render_end_reply(request, request.state)
    author = request.reviews[number - 1].author
    for given in memory.given:
        if (given.author, given.root_id) == (author, slot.p):
            return render_given(request, number - 1, given, ending=ending)
    return replies.render_review_reply(request, number - 1, ending=ending)


class Reminding(NamedTuple):
    """The record and the memory afterwards, the reminders to give, and what must be read before that."""

    record: Record
    memory: Memory
    replies: tuple[Reply, ...] = ()
    nudge: bool = False
    request: bool = False


def reminders_due(view: View, memory: Memory, record: Record) -> Reminding:
    """A reminder is given on what was read just before: that it still waits, and that nobody is on it."""
    request, rules, nudge = view.request, view.context.reminders, view.seen.nudge
    idle = Reminding(record, memory)
    if request is None or reminder_at(view, record) > view.now.mono:
        return idle
    if nudge is UNASKED or not view.seen.by_id:
        return idle._replace(nudge=nudge is UNASKED, request=not view.seen.by_id)
    if isinstance(nudge, Unknown) and not isinstance(nudge.why, PostRejected):
        return idle
    # A card that nobody may read says nothing.
    nudge = Nudge() if isinstance(nudge, Unknown) else nudge
    if nudge.looking:
        return idle._replace(memory=memory.but(quiet_until=view.now.mono + rules.every))
    number = reminders.number_due(view.age, rules)
    due = []
    for position, slot in enumerate(record.posts):
        if not reminders.is_reminded(slot) or max(slot.rem, default=0) >= number:
            continue
        names = reminders.called(slot, record, request, nudge)
        if names is None:
            record = posts.with_slot(record, position, rem=(*slot.rem, number))
        else:
            draft = replies.render_reminder(request, filter(mention, names), view.context.options)
            due.append(Reply(position, number, draft, reminds=True))
    return Reminding(record, memory, tuple(due))


def reminder_at(view: View, record: Record) -> float:
    """When (trio's clock) the next reminder of this request is due."""
    if not view.pending or view.ends or view.expired_by_clock:
        return math.inf
    wait = reminders.due_in(record, view.age, view.context.reminders)
    return max(view.now.mono + wait, view.memory.quiet_until)
