"""Who is to be told of one access request, and the record of one that nobody has announced. Pure."""

from __future__ import annotations

import msgspec

from sidecar.decisions import posts
from sidecar.decisions.proof import asked
from sidecar.decisions.record import Record
from sidecar.decisions.seen import Unknown
from sidecar.decisions.view import View
from sidecar.model import PENDING

# Clocks that differ by more than a century tell nothing.
_MOST_OFFSET = 4e9


def wants_targets(view: View) -> bool:
    """Whether recipients may have to be added."""
    if view.request is None or view.ends:
        return False
    record = view.record
    return view.pending or record is None or any(slot.s == "waiting" and not slot.c for slot in record.posts)


def with_recipients(view: View) -> tuple[Record, int]:
    """The record with every recipient in it, and how many it has no room for.

    Recipients are added while the request is PENDING, or once to tell of a resolved one.
    """
    request, record, targets = view.request, view.record, view.seen.targets
    if record is None:
        record = new_record(view)
    if view.ends or request is None:
        return record, 0
    chosen = targets if not isinstance(targets, Unknown) else ()
    if not (view.pending or view.record is None):
        owed = {(slot.r, slot.k) for slot in record.posts if slot.s == "waiting" and not slot.c}
        chosen = tuple(target for target in chosen if (target.name, target.kind) in owed)
    elif view.context.keep_recipients and record.posts:
        kept = {(slot.r, slot.k) for slot in record.posts}
        chosen = tuple(target for target in chosen if (target.name, target.kind) in kept)
    # A card that first appears resolved says it all: no replies for what went before.
    record, refused = posts.merge(record, chosen, rep=() if view.pending else posts.numbers(request))
    seen = (request.state, len(request.reviews))
    exp = int(request.expires or record.exp)
    who = view.seen.who if isinstance(view.seen.who, str) else ""
    left = record.left if isinstance(targets, Unknown) else view.seen.left_out
    record = msgspec.structs.replace(record, who=record.who or who, left=left)
    if record.rules != view.context.rules_digest:
        record = msgspec.structs.replace(record, rules=view.context.rules_digest, since=view.chat_ms)
    return msgspec.structs.replace(record, seen=seen, exp=exp, q=asked(request), done=False), refused


def new_record(view: View) -> Record:
    """The record of a request that nobody has announced."""
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
        q=asked(request) if request is not None else "",
        off=round(min(max(view.now.offset, -_MOST_OFFSET), _MOST_OFFSET)),
        rules=context.rules_digest,
    )
