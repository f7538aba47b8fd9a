"""What Mattermost says of the followed requests, and where each of them can be seen there.

A hint says that somebody may have said something: what stands there is read by whoever looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.once import Bounded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.decisions.judge import Expression
    from sidecar.decisions.record import Record
    from sidecar.reconcile.entry import Entry
    from sidecar.reconcile.queue import WorkQueue

# Somebody may react to a card before its post id is known here; posts of no concern fill this too.
EARLY_HINTS = 1000
DIRECT_MESSAGES = 20


class Heard:
    """Adds to `queue` whatever somebody may have spoken about; `entries` are the followed requests by id."""

    def __init__(self, entries: Mapping[str, Entry], queue: WorkQueue[str]) -> None:
        self.queue = queue
        self._entries = entries
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

    def open_cards(self) -> dict[str, str]:
        """Card post -> channel, of all requests that are not resolved."""
        return {
            post: channel
            for entry in self._entries.values()
            if entry.version.rank <= 0
            for post, channel in entry.cards
        }

    def open_requests(self, *, decided: bool = False) -> dict[str, tuple[str, ...]]:
        """Request id -> the channels where it can be seen, of all requests that are announced and not resolved.

        With `decided` of those that are resolved, and followed still. The oldest comes first.
        """
        return {
            entry.id: (*dict.fromkeys(channel for _, channel in entry.cards), *([entry.own] if entry.own else []))
            for entry in self._entries.values()
            if (entry.cards or entry.own) and (entry.version.rank > 0) == decided
        }

    def cards_of(self, request_id: str) -> tuple[tuple[str, str], ...]:
        """The cards of a request, as (post, channel)."""
        entry = self._entries.get(request_id)
        return entry.cards if entry is not None else ()

    def show_cards(self, entry: Entry, record: Record) -> None:
        """Listen to the cards that stand in `record`, and to what was said on them before we knew of them."""
        cards = tuple((slot.p, slot.c) for slot in record.posts if slot.k == "card" and slot.p and slot.s == "posted")
        entry.own = next((slot.c for slot in record.posts if slot.k == "requester" and slot.p), "")
        if cards == entry.cards or self._entries.get(entry.id) is not entry:
            return
        self.hide_cards(entry)
        entry.cards = cards
        for post_id, _ in cards:
            self._cards[post_id] = entry.id
            if post_id in self._early:
                self.hear(post_id, self._early.pop(post_id))

    def hide_cards(self, entry: Entry) -> None:
        """Listen to the cards of this request no longer."""
        for post_id, _ in entry.cards:
            self._cards.pop(post_id, None)
