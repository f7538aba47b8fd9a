"""Places where something may stand that no record tells: when they are read, and what becomes of the doubt. Pure."""

from __future__ import annotations

import math

import msgspec

from sidecar.decisions.seen import Doubt, Memory, Place, Plan, Unknown
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
                left.append(Doubt(Place(slot.c), now, 2, card=bool(slot.p)))
                left += [Doubt(Place(slot.c, slot.p), now, 2)] if slot.p else []
        left += [Doubt(Place(owed.c, owed.t), now, 2) for owed in record.owe]
    elif record is not None and not memory.mine:
        left = [Doubt(Place(slot.c), math.inf, 0) for slot in slots if slot.s == "waiting" and slot.c]
    doubts += [doubt for doubt in left if doubt.place not in known]
    memory = memory.but(known=True, mine=True, foreign=None, doubts=tuple(dict.fromkeys(doubts)))
    return msgspec.structs.replace(plan, memory=memory, take=True, actions=())


def after_reading(view: View) -> Memory:
    """The doubts after the places were read: each is looked at when it is due, and once more at the end."""
    memory, now = view.memory, view.now.mono
    doubts: list[Doubt] = []
    touched = set(memory.touched)
    for doubt in memory.doubts:
        posts = view.seen.posts.get(doubt.place)
        ripe = doubt.due <= now or (view.ends and not doubt.stage)
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
                again = now + min(view.context.times.verify, view.context.lease_s * TAKEOVER) if stage else math.inf
                doubts.append(msgspec.structs.replace(doubt, stage=stage, due=again))
    return memory.but(
        doubts=tuple(doubts), touched=frozenset(touched), mentions=memory.mentions and not view.seen.posts
    )


def doubted(memory: Memory, doubt: Doubt) -> Memory:
    """The memory with this doubt, unless the place is doubted already."""
    if any(one.place == doubt.place for one in memory.doubts):
        return memory
    return memory.but(doubts=(*memory.doubts, doubt))
