"""What is due for one access request: each slot's next steps, and what must be read before they can be taken. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from sidecar.decisions import posts, threads
from sidecar.decisions.actions import Action, Answer, Create, Patch, Place, Reply
from sidecar.decisions.doubts import doubted
from sidecar.decisions.proof import asked, is_card
from sidecar.decisions.quorum import deciders
from sidecar.decisions.recipients import new_record
from sidecar.decisions.record import ADOPTED, Record, Slot
from sidecar.decisions.seen import UNASKED, Doubt, Look, Memory, Unknown
from sidecar.decisions.view import GONE, View
from sidecar.errors import PostRejected
from sidecar.model import EXPIRED, PENDING, REMOVED, AccessRequest, Draft, Post, Version
from sidecar.text import card as text
from sidecar.text import replies

# A request that goes away this long before its expiry by our clock still counts as expired.
EXPIRY_SLACK_SECONDS = 10.0


class Work(NamedTuple):
    """The record as it should be, what to do, what must be read first, the memory, and cards that are none."""

    record: Record
    actions: tuple[Action, ...]
    look: Look
    memory: Memory
    unproven: int


def work(view: View, record: Record) -> Work:
    """Each slot's next steps."""
    return _Builder(view, record).build()


class _Builder:
    def __init__(self, view: View, record: Record) -> None:
        self._view = view
        self._memory = view.memory
        self._end = ending(view, record) if view.ends else ""
        self._record = msgspec.structs.replace(record, seen=(self._end, record.seen[1])) if self._end else record
        self._cards: dict[str, tuple[Draft, str]] = {}
        self._actions: list[Action] = []
        self._places: set[Place] = set()
        self._unread: set[str] = set()
        self._unproven = 0
        self._nudge = False
        self._ask = False

    def build(self) -> Work:
        for position in self._to_end() if self._end else range(len(self._record.posts)):
            self._slot(position)
        if not self._end:
            self._remind()
        self._actions += [Answer(owed) for owed in self._record.owe if self._may_write(Place(owed.c, owed.t))]
        busy = self._actions or self._places or self._unread or self._memory.doubts
        if self._end and not busy and not self._to_end():
            self._finish()
        look = Look(places=frozenset(self._places), cards=frozenset(self._unread), request=self._ask, nudge=self._nudge)
        memory = self._memory.but(
            told=tuple(hash(slot.p) for slot in self._record.posts if slot.p and self._seen(slot))
        )
        return Work(self._record, tuple(self._actions), look, memory, self._unproven)

    def _seen(self, slot: Slot) -> bool:
        card = self._view.seen.cards.get(slot.p)
        known = hash(slot.p) in self._memory.told
        return (
            is_card(card, slot, self._record, self._view.context, self._view.wanted)
            if isinstance(card, Post)
            else known
        )

    def _finish(self) -> None:
        if self._view.another and not self._view.seen.held:
            # Whoever held it may have left something to repair.
            return
        if self._view.another:
            # What is over now was another request under the same id; this one begins anew, and so does what counts.
            n, since = self._record.n, self._view.chat_ms
            self._record = msgspec.structs.replace(new_record(self._view), n=n, since=since)
            self._memory = self._memory.but(direct=())
        else:
            self._record = msgspec.structs.replace(self._record, done=True, owe=())

    def _slot(self, position: int) -> None:
        slot, view = self._record.posts[position], self._view
        if slot.p and slot.s != "gone" and not self._proven(position):
            return
        if not posts.is_due(slot, pending=view.pending, retry_failed=view.retry_failed):
            return
        if not slot.p and not self._may_write(Place(slot.c)):
            return
        if self._end:
            self._close(position)
        else:
            self._bring(position)

    def _remind(self) -> None:
        due = threads.reminders_due(self._view, self._memory, self._record)
        self._record, self._memory, self._nudge, self._ask = due.record, due.memory, due.nudge, due.request
        for one in due.replies:
            slot = self._record.posts[one.position]
            if self._may_write(Place(slot.c, slot.p)):
                self._actions.append(one)

    def _proven(self, position: int) -> bool:
        """Whether the post that the record names was seen to be this card; if it is none, that is looked for, or made.

        Where the request is over, nobody needs to be told; a card is read before it is written to.
        """
        slot, view = self._record.posts[position], self._view
        card = view.seen.cards.get(slot.p, UNASKED)
        if isinstance(card, Post) and is_card(card, slot, self._record, view.context, view.wanted):
            return True
        if not isinstance(card, Post) and (self._end or hash(slot.p) in self._memory.told):
            return True
        if isinstance(card, Unknown):
            if card is UNASKED and slot.s in ("posted", "waiting"):
                self._unread.add(slot.p)
            elif isinstance(card.why, PostRejected):
                self._put(position, s="failed")
            return slot.s not in ("posted", "waiting")
        self._unproven += 1
        self._put(position, p="", a=max(slot.a, 0), s="waiting", h="", shown=("", 0))
        self._memory = doubted(self._memory, Doubt(Place(slot.c), math.inf, 0))
        self._may_write(Place(slot.c))
        return False

    def _put(self, position: int, **changes: object) -> None:
        self._record = posts.with_slot(self._record, position, **changes)

    def _may_write(self, place: Place) -> bool:
        """Whether nothing of ours can stand there unseen; else it is noted as wanted, or could not be read."""
        if not any(doubt.place == place for doubt in self._memory.doubts):
            return True
        if place not in self._view.seen.posts:
            self._places.add(place)
            return False
        posts = self._view.seen.posts[place]
        # What may not be read may not be written either, which Mattermost says itself.
        return not isinstance(posts, Unknown) or isinstance(posts.why, PostRejected)

    def _bring(self, position: int) -> None:
        """Make the card, or bring it and its thread to what is to be shown."""
        slot, request = self._record.posts[position], self._view.request
        if request is None:
            return
        draft, digest = self._card(request, slot.k)
        if not slot.p:
            self._actions.append(Create(position, draft, digest, self._shows()))
            return
        if self._outdated(slot, request, digest):
            self._patch(position, draft, digest, self._shows())
            for place in (Place(slot.c), Place(slot.c, slot.p)):
                self._may_write(place)
        if self._record.posts[position].s != "gone":
            self._reply(position, request)
            slot = self._record.posts[position]
            if slot.s == "failed" and slot.h == digest and set(posts.numbers(request)) <= set(slot.rep):
                # What was refused was carried out at last, or is wanted no more.
                self._put(position, s="posted")

    def _reply(self, position: int, request: AccessRequest) -> None:
        slot, due = threads.reviews_due(self._view, position, self._record.posts[position], request)
        self._put(position, rep=slot.rep)
        self._actions += [one for one in due if self._may_write(Place(slot.c, slot.p))]

    def _outdated(self, slot: Slot, request: AccessRequest, digest: str) -> bool:
        """Whether the card shows something else than it should, or may do so."""
        changed = (slot.h != digest or not slot.shown[0]) and _shown_version(slot, self._record) <= request.version
        return changed or slot.c in self._memory.touched or self._other_rules(slot)

    def _other_rules(self, slot: Slot) -> bool:
        """Whether the card was read, and was marked under other rules than those by which people decide on it now."""
        card = self._view.seen.cards.get(slot.p)
        context = self._view.context
        return (
            isinstance(card, Post)
            and self._view.pending
            and slot.k == "card"
            and slot.a != ADOPTED
            and card.mark.rules != context.rules_digest
        )

    def _patch(self, position: int, draft: Draft, digest: str, shown: tuple[str, int]) -> bool:
        """Patch a card that was read, and is one; one that is gone is never made again. Whether it is there.

        Where nobody else held the record since, the answer to our own last write is such a reading.
        """
        slot = self._record.posts[position]
        card = self._view.seen.cards.get(slot.p, UNASKED)
        if card is UNASKED and not self._end and self._view.proven:
            adopts = slot.a == ADOPTED and not slot.h
            self._actions.append(Patch(position, draft, digest, shown, slot.since, message=adopts))
            return True
        if card is UNASKED:
            self._unread.add(slot.p)
        elif isinstance(card, Post):
            request = self._view.request
            if slot.a != ADOPTED and request is not None and not self._end and text.says_nothing(card.message):
                draft = self._draft(request, slot.k, whole=True)
            since = max(slot.since, card.mark.since)
            if card.mark.rules != self._view.context.rules_digest:
                since = self._view.chat_ms
            self._actions.append(Patch(position, draft, digest, shown, since, message=slot.a == ADOPTED and not slot.h))
            return True
        elif card is None:
            self._put(position, s="gone")
        elif isinstance(card.why, PostRejected):
            self._put(position, s="failed")
        return False

    def _close(self, position: int) -> None:
        """Close a card from what it shows itself: Teleport has nothing more to say."""
        slot, end = self._record.posts[position], self._end
        if not slot.p:
            # One whose answer was lost may still appear.
            if not any(doubt.place == Place(slot.c) and doubt.stage for doubt in self._memory.doubts):
                self._put(position, s="gone")
            return
        card = self._view.seen.cards.get(slot.p, UNASKED)
        attachment = card.attachment if isinstance(card, Post) else None
        draft = text.close_card(attachment, self._view.context.request_id, end)
        there = self._patch(position, draft, text.content_hash(draft), (end, self._record.seen[1]))
        number = posts.end_number(end)
        if there and number not in slot.rep and self._may_write(Place(slot.c, slot.p)):
            self._actions.append(Reply(position, number, replies.render_gone_reply(attachment, end)))

    def _to_end(self) -> tuple[int, ...]:
        """The slots that do not say yet how it ended, or may show something else after all."""
        slots = self._record.posts
        touched = (n for n, slot in enumerate(slots) if slot.p and slot.c in self._memory.touched)
        return tuple(sorted({*posts.still_open(self._record, self._end), *touched}))

    def _card(self, request: AccessRequest, kind: str) -> tuple[Draft, str]:
        if kind not in self._cards:
            draft = self._draft(request, kind)
            self._cards[kind] = (draft, text.content_hash(draft))
        return self._cards[kind]

    def _draft(self, request: AccessRequest, kind: str, *, whole: bool = False) -> Draft:
        context = self._view.context
        options = msgspec.structs.replace(
            context.options,
            left_out=self._record.left,
            deciders=deciders(request, context.rules),
            unasked=not any(slot.k == "card" and (slot.c or slot.s == "waiting") for slot in self._record.posts),
        )
        return text.render_card(
            request,
            options=options,
            kind="card" if kind == "card" else "requester",
            state=EXPIRED if self._view.expired_by_clock else None,
            whole=whole,
        )

    def _shows(self) -> tuple[str, int]:
        return (EXPIRED, self._record.seen[1]) if self._view.expired_by_clock else self._record.seen


def ending(view: View, record: Record) -> str:
    """The state in which a request that is gone ended."""
    if record.seen[0] != PENDING:
        return record.seen[0]
    # Nobody removes a request at the very moment of its expiry, whoever's clock is behind; and an id that is used again
    # was free.
    over = max(view.clocks) >= record.exp - EXPIRY_SLACK_SECONDS
    return EXPIRED if over or view.another else REMOVED


def _shown_version(slot: Slot, record: Record) -> Version:
    """What a card shows; an end that was taken back, or only said by the clock, is no version."""
    return record.version if slot.version.rank == GONE and record.version.rank < GONE else slot.version


def worth_writing(old: Record | None, new: Record) -> bool:
    """Whether anything changed that whoever comes next must know."""
    if old is None:
        return True
    return any(getattr(old, key) != getattr(new, key) for key in ("posts", "owe", "dec", "who", "rules", "done"))


def settled(request: AccessRequest, record: Record, names: frozenset[str]) -> bool:
    """Whether nothing can be due, judged without looking anything up: then nobody needs to look.

    A resolved request is always looked at: its reasons may have been corrected without a new version.
    """
    return (
        request.state == PENDING
        and not record.owner
        and not record.done
        and not record.owe
        and request.version == record.version
        and record.q in ("", asked(request))
        and not any(posts.unfinished(slot, pending=True) for slot in record.posts)
        and all(
            slot.s != "posted" or (slot.version == record.version and set(posts.numbers(request)) <= set(slot.rep))
            for slot in record.posts
        )
        and names <= {slot.r for slot in record.posts}
    )
