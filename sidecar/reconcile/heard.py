"""What Mattermost says of the followed requests, and where each of them can be seen there.

A hint says that somebody may have said something: what stands there is read by whoever looks.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec
import trio

from sidecar.config.sections import RemindersConfig
from sidecar.decisions.proof import is_card
from sidecar.decisions.record import Record, decode
from sidecar.decisions.reminders import due_in
from sidecar.once import Bounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidecar.decisions.expressions import Expression
    from sidecar.decisions.seen import Context
    from sidecar.model import Post
    from sidecar.reconcile.entry import Entry
    from sidecar.reconcile.queue import WorkQueue
    from sidecar.times import Times

# Somebody may react to a card before its post id is known here; posts of no concern fill this too.
EARLY_HINTS = 1000
DIRECT_MESSAGES = 20


class Heard:
    """Adds to `queue` whatever somebody may have spoken about; `entries` are the followed requests by id."""

    def __init__(self, entries: Mapping[str, Entry], queue: WorkQueue[str], times: Times) -> None:
        self.queue = queue
        self._entries = entries
        self._times = times
        # Whether somebody reads the channels with cards, and shows what stands there to `see`.
        self.swept = False
        self.reminders = RemindersConfig()
        # Card post -> request; and posts that somebody reacted to before we knew them.
        self._cards: dict[str, str] = {}
        self._early: Bounded[str, str] = Bounded(EARLY_HINTS)

    def is_card(self, post_id: str) -> bool:
        """Whether this post is a card of a followed request."""
        return post_id in self._cards

    def hear(self, post_id: str, user_id: str = "") -> None:
        """Something was said on this post, it seems by this user: if it is a card, look at what stands there."""
        entry = self._entries.get(self._cards.get(post_id, ""))
        if entry is None:
            self._early[post_id] = user_id
            return
        entry.hear(user_id)
        self.queue.add(entry.id)

    def tell(self, request_id: str, expression: Expression) -> bool:
        """Somebody decided about this request in a direct message; False where too many wait to be judged."""
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        waiting = (*entry.memory.direct, *entry.direct)
        if expression not in waiting:
            if len(waiting) >= DIRECT_MESSAGES:
                return False
            entry.direct = (*entry.direct, expression)
        entry.hear("")
        self.queue.add(request_id)
        return True

    def retry(self, request_id: str) -> None:
        """A recipient of this request that failed is back."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.retry = True
            self.queue.add(request_id)

    def see(self, posts: Iterable[Post], context: Context) -> None:
        """Take what was read of a channel: a record whose cards are all among it needs no look at them."""
        for post in posts:
            entry = self._entries.get(self._cards.get(post.id, ""))
            if entry is None or not entry.offered or self.queue.busy(entry.id):
                continue
            record = decode(entry.offered)
            ours = msgspec.structs.replace(context, request_id=entry.id)
            if not isinstance(record, Record):
                continue
            for slot in record.posts:
                if slot.p == post.id and is_card(post, slot, record, ours, None):
                    entry.keep(entry.memory.but(told=(*entry.memory.told, hash(post.id))))
            if entry.unseen(record) == 0:
                now = trio.current_time()
                reminder = due_in(record, now - entry.pending_since, self.reminders)
                entry.rest()
                over = entry.over_in(self._times.expiry_grace)
                self.queue.put_off(entry.id, now + max(min(over, reminder), 0.0))

    def open_cards(self) -> dict[str, str]:
        """Card post -> channel, of all requests that are not resolved."""
        return {
            post: channel
            for entry in self._entries.values()
            if entry.version.rank <= 0
            for post, channel in zip(entry.cards[::2], entry.cards[1::2], strict=True)
        }

    def open_requests(self, *, decided: bool = False) -> dict[str, tuple[str, ...]]:
        """Request id -> the channels where it can be seen, of all requests that are announced and not resolved.

        With `decided` of those that are resolved, and followed still. The oldest comes first.
        """
        return {
            entry.id: channels
            for entry in self._entries.values()
            if (entry.version.rank > 0) == decided and (channels := entry.channels)
        }

    def cards_of(self, request_id: str) -> tuple[tuple[str, str], ...]:
        """The cards of a request, as (post, channel)."""
        entry = self._entries.get(request_id)
        return tuple(zip(entry.cards[::2], entry.cards[1::2], strict=True)) if entry is not None else ()

    def show_cards(self, entry: Entry, record: Record) -> None:
        """Listen to the cards that stand in `record`, and to what was said on them before we knew of them."""
        stand = [slot for slot in record.posts if slot.k == "card" and slot.p and slot.s == "posted"]
        cards = tuple(text for slot in stand for text in (slot.p, sys.intern(slot.c)))
        entry.own = next((sys.intern(slot.c) for slot in record.posts if slot.k == "requester" and slot.p), "")
        if cards == entry.cards or self._entries.get(entry.id) is not entry:
            return
        self.hide_cards(entry)
        entry.cards = cards
        for post_id in cards[::2]:
            self._cards[post_id] = entry.id
            if post_id in self._early:
                self.hear(post_id, self._early.pop(post_id))

    def hide_cards(self, entry: Entry) -> None:
        """Listen to the cards of this request no longer."""
        for post_id in entry.cards[::2]:
            self._cards.pop(post_id, None)
