"""What must be done so that every message of one access request tells the truth. Pure: no clock, no I/O, no log.

Everything that decides about posts is in this room; the rooms that act only carry out what stands in a `Plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sidecar.decisions.record import MAX_BYTES, Kind, Record, Slot, SlotStatus, size
from sidecar.model import EXPIRED, PENDING, REMOVED, AccessRequest, Draft, Version, state_rank
from sidecar.text import card as text

if TYPE_CHECKING:
    from sidecar.text.card import TextOptions

# A request that goes away this long before its expiry by our clock still counts as expired.
EXPIRY_SLACK_SECONDS = 2.0
# The rank that the end "gone" has; its thread reply is recorded as the negative of it.
_GONE = state_rank(EXPIRED)


class Target(msgspec.Struct, frozen=True):
    """A recipient after resolution; `channel_id` is "" while it cannot be reached.

    `owed`: only because Mattermost did not say, so that it is told even if the request is over by then.
    """

    name: str
    kind: Kind
    channel_id: str
    owed: bool = False


class Reply(msgspec.Struct, frozen=True):
    """A thread reply. `number` > 0 is the n-th review, below 0 the end in that rank: it stands in `Slot.rep`."""

    number: int
    draft: Draft


class Work(msgspec.Struct, frozen=True):
    """What one recipient's messages need: a card to post or patch (None: none), then the replies in order."""

    position: int
    create: bool
    card: Draft | None
    card_hash: str
    replies: tuple[Reply, ...]


class Plan(msgspec.Struct, frozen=True):
    """The record as it should be saved before acting, and the work by recipient.

    `stale` means that the request shown is older than what was acted on: read it by id before believing it. `refused`
    counts recipients that the record has no room for.
    """

    record: Record
    work: tuple[Work, ...] = ()
    stale: bool = False
    refused: int = 0


class Closing(msgspec.Struct, frozen=True):
    """How to end a request that Teleport no longer has: which cards do not say `state` yet."""

    state: str
    positions: tuple[int, ...] = ()


def plan(
    request: AccessRequest,
    record: Record,
    targets: tuple[Target, ...],
    options: TextOptions,
    *,
    retry_failed: bool = True,
    announce: bool = False,
    touched: frozenset[str] = frozenset(),
) -> Plan:
    """Bring the messages of `record` to what `request` says.

    Recipients are added while the request is PENDING, or once when `announce` says to tell of a resolved one.

    `touched` names channels that may show anything (a write of ours crossed with another holder's): they are patched
    even where the record says that nothing changed.
    """
    if request.version < record.version:
        return Plan(record=record, stale=True)
    pending = request.state == PENDING
    if not (pending or announce):
        owed = {(slot.r, slot.k) for slot in record.posts if slot.s == "waiting" and not slot.c}
        targets = tuple(target for target in targets if (target.name, target.kind) in owed)
    # A card that first appears resolved says it all: no replies for what went before.
    slots, refused = _merge(record, targets, replied=() if pending else _numbers(request))
    record = msgspec.structs.replace(
        record,
        posts=slots,
        seen=(request.state, len(request.reviews)),
        exp=int(request.expires or record.exp),
    )
    drafts: dict[str, tuple[Draft, str]] = {}
    work = []
    for position, slot in enumerate(slots):
        if not _due(slot, pending=pending, retry_failed=retry_failed):
            continue
        if slot.k not in drafts:
            card = text.render_card(request, options=options, kind=slot.k)
            drafts[slot.k] = (card, text.content_hash(card))
        item = _work(position, slot, request, drafts[slot.k], touched=slot.c in touched)
        if item is not None:
            work.append(item)
    return Plan(record=record, work=tuple(work), refused=refused)


def unfinished(slot: Slot, *, pending: bool) -> bool:
    """Whether this recipient's messages must be tried again although nothing new happens."""
    return slot.s == "waiting" or (slot.s == "failed" and (pending or bool(slot.p)))


def settled(request: AccessRequest, record: Record, names: frozenset[str]) -> bool:
    """Whether nothing can be due, judged without looking anything up: then nobody needs to look."""
    pending = request.state == PENDING
    return (
        not record.owner
        and request.version == record.version
        and not any(unfinished(slot, pending=pending) for slot in record.posts)
        and all(
            slot.s != "posted" or (slot.version == record.version and set(_numbers(request)) <= set(slot.rep))
            for slot in record.posts
        )
        and (not pending or names <= {slot.r for slot in record.posts})
    )


def closing(record: Record, now: float) -> Closing:
    """The end of a request whose absence is proven. `now` is Unix seconds."""
    state = record.seen[0]
    if state == PENDING:
        state = EXPIRED if now >= record.exp - EXPIRY_SLACK_SECONDS else REMOVED
    open_cards = [
        position
        for position, slot in enumerate(record.posts)
        if (slot.p and slot.s in ("posted", "failed") and slot.shown[0] != state) or (slot.s == "waiting" and slot.c)
    ]
    return Closing(state=state, positions=tuple(open_cards))


def closed(record: Record) -> Record:
    """The record of a request that is gone; done unless a card could not be told yet."""
    return msgspec.structs.replace(record, done=not closing(record, 0.0).positions)


def replied(slot: Slot, number: int) -> Slot:
    """The slot with one more reply on record."""
    return msgspec.structs.replace(slot, rep=tuple(sorted({*slot.rep, number})))


def end_number(state: str) -> int:
    """The number of the end reply for a state."""
    return -state_rank(state)


def _due(slot: Slot, *, pending: bool, retry_failed: bool) -> bool:
    if slot.s in ("gone", "archived") or not slot.c:
        return False
    # A recipient that was never reached is not told of a request that is over; a card that exists must become true.
    return slot.s != "failed" or (retry_failed and (pending or bool(slot.p)))


def _work(position: int, slot: Slot, request: AccessRequest, card: tuple[Draft, str], *, touched: bool) -> Work | None:
    draft, digest = card
    shown = Version(state_rank(request.state), len(request.reviews))
    changed = (slot.h != digest or not slot.shown[0]) and slot.version <= shown
    replies = tuple(_replies(slot, request))
    if slot.p and not changed and not touched and not replies:
        return None
    needs_card = not slot.p or changed or touched
    return Work(
        position=position,
        create=not slot.p,
        card=draft if needs_card else None,
        card_hash=digest,
        replies=replies,
    )


def _numbers(request: AccessRequest) -> tuple[int, ...]:
    """The numbers of all replies that this version of the request has."""
    end = () if request.state == PENDING else (end_number(request.state),)
    return (*range(1, len(request.reviews) + 1), *end)


def _replies(slot: Slot, request: AccessRequest) -> list[Reply]:
    return [Reply(number, _reply(request, number)) for number in _numbers(request) if number not in slot.rep]


def _reply(request: AccessRequest, number: int) -> Draft:
    if number > 0:
        return text.render_review_reply(request, number - 1)
    return text.render_end_reply(request, request.state)


def _merge(record: Record, targets: tuple[Target, ...], *, replied: tuple[int, ...]) -> tuple[tuple[Slot, ...], int]:
    """The slots with every target in them; two names of one channel are one recipient."""
    slots = list(record.posts)
    room = MAX_BYTES - size(record)
    refused = 0
    for target in targets:
        channels = {slot.c for slot in slots if slot.c}
        known = next((i for i, slot in enumerate(slots) if slot.r == target.name and slot.k == target.kind), None)
        if known is None:
            if target.channel_id in channels:
                continue
            slot = _slot(target, replied)
            room -= size(slot)
            if room < 0:
                refused += 1
            else:
                slots.append(slot)
        elif not slots[known].c:
            if target.channel_id in channels:
                del slots[known]
            else:
                rep = replied if target.channel_id else ()
                slots[known] = msgspec.structs.replace(slots[known], c=target.channel_id, s=_status(target), rep=rep)
    return tuple(slots), refused


def _slot(target: Target, replied: tuple[int, ...]) -> Slot:
    return Slot(r=target.name, k=target.kind, c=target.channel_id, s=_status(target), rep=replied)


def _status(target: Target) -> SlotStatus:
    return "waiting" if target.channel_id or target.owed else "failed"
