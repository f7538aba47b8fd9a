"""Places where something may stand that no record tells: when they are read, and what becomes of the doubt. Pure."""

from __future__ import annotations

import math

import msgspec

from sidecar.decisions.actions import Place
from sidecar.decisions.record import Record
from sidecar.decisions.seen import Doubt, Memory, Plan, Unknown
from sidecar.decisions.view import TAKEOVER, View
from sidecar.errors import PostRejected


def taken(view: View, plan: Plan) -> Plan:
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
                left.append(Doubt(Place(slot.c), now, 2, card=True))
                left += [Doubt(Place(slot.c, slot.p), now, 2)] if slot.p else []
        left += [Doubt(Place(owed.c, owed.t), now, 2) for owed in record.owe]
    elif record is not None and not memory.mine:
        for slot in slots:
            if slot.c and (slot.d or slot.s == "waiting"):
                left.append(Doubt(Place(slot.c), math.inf, 0, card=slot.d))
            if slot.c and slot.d and slot.p:
                left.append(Doubt(Place(slot.c, slot.p), math.inf, 0))
    doubts += [doubt for doubt in left if doubt.place not in known]
    memory = memory.but(known=True, mine=True, foreign=None, doubts=tuple(dict.fromkeys(doubts)))
    return msgspec.structs.replace(plan, memory=memory, take=True, actions=())


def is_due(view: View, doubt: Doubt) -> bool:
    """Whether its place is to be read in this look."""
    return doubt.due <= view.now.mono or (view.ends and not doubt.stage)


def was_read(view: View, doubt: Doubt) -> bool:
    """Whether its place was read since then: a look may last until the next reading is due."""
    seen, place = view.seen, doubt.place
    return place in seen.posts and (doubt.due > view.now.mono or seen.read_at.get(place, math.inf) >= doubt.due)


def after_reading(view: View, record: Record) -> Memory:
    """The doubts after the places were read: each is looked at when it is due, and once more at the end.

    `record` holds what was found there.
    """
    memory, now = view.memory, view.now.mono
    doubts: list[Doubt] = []
    touched = set(memory.touched)
    cards = {slot.c for slot in record.posts if slot.p}
    for doubt in memory.doubts:
        posts = view.seen.posts.get(doubt.place)
        if posts is None or not (isinstance(posts, Unknown) or (is_due(view, doubt) and was_read(view, doubt))):
            doubts.append(doubt)
        elif isinstance(posts, Unknown):
            if not isinstance(posts.why, PostRejected):
                doubts.append(msgspec.structs.replace(doubt, due=max(doubt.due, now + view.context.times.failure_most)))
            elif not view.ends:
                # No longer ours to read, so not ours to repair until it is again.
                doubts.append(msgspec.structs.replace(doubt, stage=0, due=math.inf))
        else:
            if doubt.card and doubt.place.channel_id in cards:
                touched.add(doubt.place.channel_id)
            if doubt.stage:
                stage = doubt.stage - 1
                again = now + min(view.context.times.verify, view.context.lease_s * TAKEOVER) if stage else math.inf
                doubts.append(msgspec.structs.replace(doubt, stage=stage, due=again))
    return memory.but(
        doubts=tuple(doubts), touched=frozenset(touched), mentions=memory.mentions and not view.seen.posts
    )


def marked(record: Record, memory: Memory) -> Record:
    """The record with its slots marked where something is in doubt, for whoever comes next."""
    places = {doubt.place for doubt in memory.doubts}
    slots = record.posts
    marks = [bool(places & {Place(slot.c), Place(slot.c, slot.p)}) for slot in slots]
    if marks == [slot.d for slot in slots]:
        return record
    posts = tuple(msgspec.structs.replace(slot, d=mark) for slot, mark in zip(slots, marks, strict=True))
    return msgspec.structs.replace(record, posts=posts)


def doubted(memory: Memory, doubt: Doubt) -> Memory:
    """The memory with this doubt, unless the place is doubted already."""
    if any(one.place == doubt.place for one in memory.doubts):
        return memory
    return memory.but(doubts=(*memory.doubts, doubt))
