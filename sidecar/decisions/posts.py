"""Which posts an access request should have, which of them are on record, and which were found. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import msgspec

from sidecar.decisions.actions import Place
from sidecar.decisions.proof import is_card, is_ours, keys
from sidecar.decisions.record import ADOPTED, MAX_BYTES, Owed, Record, Slot, SlotStatus, size
from sidecar.decisions.seen import Context, Target
from sidecar.model import DENIED, EXPIRED, PENDING, PROMOTED, AccessRequest, Post, state_rank
from sidecar.text import replies

# What is tried again: an archived channel may be restored, only a deleted post is final.
FAILED = ("failed", "archived")


class Found(NamedTuple):
    """What reading the places told: the record with what was found on it, and the younger ones of each identity."""

    record: Record
    younger: tuple[tuple[str, Place], ...] = ()
    kinds: tuple[str, ...] = ()


def numbers(request: AccessRequest) -> tuple[int, ...]:
    """The numbers of all replies that this version of the request has: n for the n-th review, -rank for the end."""
    end = () if request.state == PENDING else (end_number(request.state),)
    return (*range(1, len(request.reviews) + 1), *end)


def end_number(state: str) -> int:
    """The number of the end reply for a state."""
    return -state_rank(state)


def deciding(request: AccessRequest) -> int:
    """The number of the review that brought the end, 0 where none did, as far as can be told."""
    if request.state == PENDING or not request.reviews:
        return 0
    last = request.reviews[-1]
    brought = last.proposed_state == request.state and request.resolve_reason in ("", last.reason)
    return len(request.reviews) if brought else 0


def number_by(request: AccessRequest, author: str) -> int:
    """The number of this author's review, 0 where there is none."""
    return next((n for n, review in enumerate(request.reviews, 1) if review.author == author), 0)


def unfinished(slot: Slot, *, pending: bool) -> bool:
    """Whether this recipient's messages must be tried again although nothing new happens."""
    return slot.s == "waiting" or (slot.s in FAILED and (pending or bool(slot.p)))


def is_due(slot: Slot, *, pending: bool, retry_failed: bool) -> bool:
    """Whether anything may be written for this recipient now."""
    if slot.s == "gone" or not slot.c:
        return False
    # A recipient that was never reached is not told of a request that is over; a card that exists must become true.
    return slot.s not in FAILED or (retry_failed and (pending or bool(slot.p)))


def replied(slot: Slot, *numbers: int) -> Slot:
    """The slot with these replies on record, too."""
    return msgspec.structs.replace(slot, rep=tuple(sorted({*slot.rep, *numbers} - {0})))


def with_slot(record: Record, position: int, **changes: object) -> Record:
    """The record with one slot changed."""
    posts = list(record.posts)
    posts[position] = msgspec.structs.replace(posts[position], **changes)
    return msgspec.structs.replace(record, posts=tuple(posts))


# -- recipients ------------------------------------------------------------------------------------------------------


def merge(record: Record, targets: tuple[Target, ...], *, rep: tuple[int, ...]) -> tuple[Record, int]:
    """The record with every target in it, and how many it has no room for; two names of one channel are one recipient.

    `rep` are the replies that a card which is made now need not have.
    """
    slots = list(record.posts)
    room = MAX_BYTES - size(record) if targets else 0
    refused = 0
    for target in targets:
        channels = {slot.c for slot in slots if slot.c}
        known = next((i for i, slot in enumerate(slots) if slot.r == target.name and slot.k == target.kind), None)
        if known is None:
            if target.channel_id in channels:
                continue
            slot = Slot(r=target.name, k=target.kind, c=target.channel_id, s=_status(target), rep=rep)
            room -= size(slot)
            if room < 0:
                refused += 1
            else:
                slots.append(slot)
        elif not slots[known].c or _is_elsewhere(slots[known], target):
            if target.channel_id in channels:
                del slots[known]
            else:
                slots[known] = msgspec.structs.replace(
                    slots[known], c=target.channel_id, s=_status(target), rep=rep if target.channel_id else ()
                )
    return msgspec.structs.replace(record, posts=tuple(slots)), refused


def _is_elsewhere(slot: Slot, target: Target) -> bool:
    """Whether a record sends a card that was not posted yet where its recipient is not: anybody may have written it."""
    return not slot.p and slot.s != "gone" and target.channel_id not in ("", slot.c)


def _status(target: Target) -> SlotStatus:
    return "waiting" if target.channel_id or target.owed else "failed"


# -- identities ------------------------------------------------------------------------------------------------------


def find(
    record: Record,
    read: dict[Place, tuple[Post, ...]],
    context: Context,
    request: AccessRequest | None,
    *,
    reviews: int,
    reminders: int = 0,
    adopting: bool = False,
) -> Found:
    """Put on record what stands in the places that were read; finding two keeps the older.

    `adopting` a request that the official plugin began to announce: a post of our bot that names it is the card.
    """
    bot_id = context.bot_id
    younger: list[tuple[str, Place]] = []
    kinds: list[str] = []
    for position in range(len(record.posts)):
        slot = record.posts[position]
        posts = read.get(Place(slot.c))
        if posts is not None and slot.c and slot.s != "gone":
            ours = _cards(posts, slot, max(slot.a, 0), record, context, request)
            if not ours and adopting:
                # What the official plugin posted through our bot for the same request.
                older = _cards(posts, slot, ADOPTED, record, context, request)
                ours = [one for one in older if context.request_id in one.message]
            younger += [(post.id, Place(slot.c)) for post in ours[1:]]
            if ours and ours[0].id != slot.p:
                # The younger one, which was on record, goes and its thread with it; or none was on record.
                kinds.append(slot.k)
                a = max(slot.a, 0) if ours[0].key else ADOPTED
                record = with_slot(record, position, a=a, p=ours[0].id, s="posted", h="", shown=("", 0), rep=slot.rep
                                   if not slot.p else ())  # fmt: skip
        slot = record.posts[position]
        # The channel shows threads, too: that of a card which is found there was read with it.
        posts = read.get(Place(slot.c, slot.p), read.get(Place(slot.c))) if slot.p else None
        thread = [post for post in posts or () if post.root_id == slot.p]
        for kind, number in _replies(reviews, reminders) if thread else ():
            ours = _ours(thread, bot_id, slot.c, keys(record, kind, slot.c, abs(number), slot.a))
            younger += [(post.id, Place(slot.c, slot.p)) for post in ours[1:]]
            if ours and kind == "reminder":
                slot = record.posts[position]
                kinds += [kind] if number not in slot.rem else []
                record = with_slot(record, position, rem=tuple(sorted({*slot.rem, number})))
            elif ours and number not in record.posts[position].rep:
                kinds.append(kind)
                # The reply to the deciding review tells the end, unless somebody else made it in its plain form.
                end = state_rank(replies.told_end(ours[0].message)) if number > 0 else 0
                record = with_slot(record, position, rep=replied(record.posts[position], number, -max(end, 0)).rep)
    given = [owed for owed in record.owe if _given(owed, record, read, bot_id)]
    kinds += ["answer"] * len(given)
    record = msgspec.structs.replace(record, owe=tuple(owed for owed in record.owe if owed not in given))
    # The keys of answers that were given before are known no more.
    younger += _doubles(read, bot_id, context.request_id)
    where = dict(reversed(younger))
    return Found(record, tuple(where.items()), tuple(kinds))


def _replies(reviews: int, reminders: int) -> Iterator[tuple[str, int]]:
    yield from (("review", number) for number in range(1, reviews + 1))
    yield from (("reminder", number) for number in range(1, reminders + 1))
    yield from (("end", end_number(state)) for state in (PROMOTED, DENIED, EXPIRED))


def _ours(posts: Iterable[Post], bot_id: str, channel_id: str, wanted: frozenset[str]) -> list[Post]:
    """The posts of our bot with one of these keys, oldest first."""
    return _oldest_first(post for post in posts if is_ours(post, wanted, channel_id, bot_id))


def _cards(
    posts: Iterable[Post], slot: Slot, attempt: int, record: Record, context: Context, request: AccessRequest | None
) -> list[Post]:
    """What may be this slot's card, oldest first."""
    return _oldest_first(
        post
        for post in posts
        if is_card(post, msgspec.structs.replace(slot, p=post.id, a=attempt), record, context, request)
    )


def _oldest_first(posts: Iterable[Post]) -> list[Post]:
    return sorted({post.id: post for post in posts}.values(), key=lambda post: (post.create_at, post.id))


def _given(owed: Owed, record: Record, read: dict[Place, tuple[Post, ...]], bot_id: str) -> bool:
    posts = read.get(Place(owed.c, owed.t), ())
    return bool(_ours(posts, bot_id, owed.c, keys(record, "answer", owed.c, owed.i, 0)))


def _doubles(read: dict[Place, tuple[Post, ...]], bot_id: str, request_id: str) -> Iterator[tuple[str, Place]]:
    """The younger ones of our posts for this request with one key, in each thread: one goes with its root."""
    named: dict[tuple[Place, str, str], list[Post]] = {}
    for post in chain.from_iterable(read.values()):
        if post.key and post.request_id == request_id:
            named.setdefault((Place(post.channel_id, post.root_id), post.key, post.mark.q), []).append(post)
    for (place, key, _), same in named.items():
        yield from ((post.id, place) for post in _ours(same, bot_id, place.channel_id, frozenset((key,)))[1:])


# -- the ends --------------------------------------------------------------------------------------------------------


def still_open(record: Record, state: str) -> tuple[int, ...]:
    """The positions whose messages do not say yet that a request that is gone ended in `state`.

    A card may have said so by the clock alone; its thread tells once it is so.
    """
    return tuple(
        position
        for position, slot in enumerate(record.posts)
        if (slot.p and slot.s != "gone" and (slot.shown[0] != state or _owes_end(slot, state)))
        or (slot.s == "waiting" and slot.c)
    )


def _owes_end(slot: Slot, state: str) -> bool:
    return state == EXPIRED and end_number(state) not in slot.rep
