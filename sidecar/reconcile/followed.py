"""The access requests that are followed, and what is known of each.

Every field of an entry has one writer: *facts* come from Teleport, *hints* from Mattermost, the *memory* is the
worker's. Nothing in here waits for a peer; whatever anybody says ends in "look at request X".
"""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import TYPE_CHECKING

import trio

from sidecar.decisions.decide import Facts, Memory, settled
from sidecar.decisions.record import KEY, Record, decode
from sidecar.decisions.reminders import Reminders, due_in
from sidecar.decisions.routing import Routes, RuleBook, route
from sidecar.model import PENDING, Put, Version
from sidecar.reconcile.lease import boottime
from sidecar.reconcile.queue import WorkQueue
from sidecar.times import USUAL, Times

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.decisions.judge import Expression
    from sidecar.model import AccessRequest, Delete, PluginData

log = logging.getLogger(__name__)

# Requests kept whole while they wait for a worker; beyond that, and for long texts, they are read again by id.
KEEP_WAITING = 1000
KEEP_REASON_LENGTH = 4096
# Longer records are read again instead of being kept: a followed request costs at most 2 KB.
KEEP_RECORD_LENGTH = 1200
# Somebody may react to a card before its post id is known here; posts of no concern fill this too.
EARLY_HINTS = 1000
DIRECT_MESSAGES = 20
# People who are looked up beside what they said, so that a decision waits for one read less.
MOST_SPEAKERS = 4

DECISIONS, CHANGES, ANNOUNCEMENTS = range(3)

_FRESH = Memory()


class Entry:
    """A followed request between two looks; small, because there may be 50,000."""

    __slots__ = (
        "absent_since", "cards", "digest", "direct", "expires", "gone", "hinted", "id", "mark", "memory", "offered",
        "own", "party", "pending_since", "request", "retry", "since", "speakers", "version",
    )  # fmt: skip

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        # -- facts: what Teleport said
        # The last version that came with an event or a list, where it is kept until a worker takes it.
        self.request: AccessRequest | None = None
        # The highest version seen, and a hash of all that was seen in it.
        self.version = Version(-1, 0)
        self.digest = 0
        self.party = ""
        # Unix seconds.
        self.expires = math.inf
        # trio's time when it was first read, if it was PENDING then.
        self.pending_since = math.inf
        # A DELETE event proves that it is gone; absence from a list (since when) must be confirmed by id.
        self.gone = False
        self.absent_since = math.inf
        # The number of the last full list that held it, and since when it is followed, by CLOCK_BOOTTIME.
        self.mark = 0
        self.since = boottime()
        # The text of its record as a listing showed it.
        self.offered: str | None = None
        # -- hints: somebody may have said something, these people it seems; and direct messages that name it
        self.hinted = False
        self.speakers: tuple[str, ...] = ()
        self.direct: tuple[Expression, ...] = ()
        # A recipient of it is back: what failed is due now.
        self.retry = False
        # -- its worker's: what it remembers; and where the request can be seen, as (post, channel) of each card
        self.memory = _FRESH
        self.cards: tuple[tuple[str, str], ...] = ()
        self.own = ""

    @property
    def facts(self) -> Facts:
        """What Teleport said, but for the request itself."""
        return Facts(self.gone, self.absent_since, self.pending_since, self.version)

    def take_request(self) -> AccessRequest | None:
        """What the last event brought; None where nothing waits, or what is known is newer: then it is read by id.

        A read by id may overtake the events. The newest of them is no news then, and the one before must not count.
        """
        request, self.request = self.request, None
        return request if request is not None and request.version >= self.version else None

    def take_hints(self) -> tuple[bool, tuple[str, ...], tuple[Expression, ...]]:
        """Whether somebody spoke since the last look, who it seems, and what was said in direct messages."""
        hints = self.hinted, self.speakers, self.direct
        self.hinted, self.speakers, self.direct = False, (), ()
        return hints


class Followed:
    """All followed requests, bounded by `open_requests`. The queue also takes other keys, which go first."""

    def __init__(
        self,
        routes: Routes,
        book: Callable[[], RuleBook] = RuleBook,
        *,
        open_requests: int = 50_000,
        queue: int = 10_000,
        times: Times = USUAL,
        reminders: Reminders = Reminders(),  # noqa: B008 - a frozen value
    ) -> None:
        self._reminders = reminders
        self.queue = WorkQueue[str](self._rank)
        self._times = times
        self.routes = routes
        self._book = book
        self._most = open_requests
        self._keep = min(queue, KEEP_WAITING)
        self._entries: dict[str, Entry] = {}
        self._overflowed = False
        self._room = trio.Event()
        self._mark = 0
        # Where decisions are heard: card post -> request; and posts that somebody reacted to before we knew them.
        self._cards: dict[str, str] = {}
        self._early: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def get(self, request_id: str) -> Entry | None:
        """The entry of a followed request."""
        return self._entries.get(request_id)

    async def room_again(self) -> None:
        """Return when there is room again for what could not be followed, so that a full list is due."""
        await self._room.wait()
        self._room = trio.Event()

    def _rank(self, key: str) -> tuple[int, str]:
        entry = self._entries.get(key)
        if entry is None or entry.hinted:
            return DECISIONS, ""
        return (CHANGES, "") if entry.memory.known else (ANNOUNCEMENTS, entry.party)

    # -- facts: what Teleport says -----------------------------------------------------------------------------------

    def event(self, event: Put | Delete) -> None:
        """Take one event of the watch."""
        if isinstance(event, Put):
            self.look(event.request)
        elif (entry := self._follow(event.request_id)) is not None:
            entry.gone = True
            self.queue.add(entry.id)

    def look(self, request: AccessRequest) -> bool:
        """Take one version of a request; an older one than known is ignored. True for a newer version."""
        if request.dry_run or (entry := self._follow(request.id)) is None:
            return False
        entry.mark = self._mark
        entry.absent_since = math.inf
        digest = hash(request)
        if digest == entry.digest or request.version < entry.version:
            return False
        newer = request.version > entry.version
        self.learn(entry, request)
        if self._settled(entry, request):
            self.queue.add_at(entry.id, self.expiry_look(request.expires))
            return False
        entry.request = request if len(self.queue) < self._keep and len(request.reason) < KEEP_REASON_LENGTH else None
        self.queue.add(entry.id)
        return newer

    def learn(self, entry: Entry, request: AccessRequest) -> None:
        """Note that Teleport has this version, which is not older than the one known; also one that was read by id."""
        if entry.version.rank < 0 and request.state == PENDING:
            # Not younger than it says, and not older than now by a clock that is behind Teleport's.
            age = time.time() - request.created if request.created is not None else 0.0
            entry.pending_since = trio.current_time() - max(age, 0.0)
        entry.version, entry.digest = request.version, hash(request)
        entry.absent_since = math.inf
        entry.party = sys.intern(request.user)
        entry.expires = math.inf if request.expires is None else request.expires

    def know(self, data: PluginData) -> None:
        """Take one entry from a listing of plugin data; its request shows up in the list of requests, or is over.

        A request that we are silent about may have a record after all: another replica read it while it was PENDING,
        claimed it since, and may have died.
        """
        text = data.data.get(KEY)
        followed = self._entries.get(data.request_id)
        if text is None or (followed is not None and (followed.memory.known or not followed.memory.silent)):
            return
        record = decode(text)
        if not isinstance(record, Record) or record.done or (entry := self._follow(data.request_id)) is None:
            return
        entry.offered = text
        entry.expires = record.exp
        # Not marked: a list that is under way tells whether the request still exists, and it is no news to the list.
        entry.mark, entry.since = 0, -math.inf
        self.show_cards(entry, record)
        if followed is not None:
            self.queue.add(entry.id)
            return
        self.queue.add_at(entry.id, trio.current_time() + max(self.expiry_check(record.exp), 0.0))

    def begin_list(self) -> None:
        """A full list starts: what it holds is marked by `look`."""
        self._mark += 1

    def end_list(self, listed: int) -> bool:
        """A full list of `listed` requests is complete: those that it did not hold are looked for by id.

        Nothing is concluded from an empty list; False where requests before their expiry should have been in it. Those
        of the last moments need not be, because a list may lag behind the watch.
        """
        missing = [entry for entry in self._entries.values() if entry.mark != self._mark and not entry.gone]
        if not listed:
            heard = boottime() - self._times.list_lag
            return all(entry.expires <= time.time() or entry.since > heard for entry in missing)
        for entry in missing:
            entry.absent_since = min(entry.absent_since, trio.current_time())
            self.queue.add(entry.id)
        return True

    # -- hints: what Mattermost says ---------------------------------------------------------------------------------

    def hear(self, post_id: str, user_id: str = "") -> None:
        """Something was said on this post, it seems by this user: if it is a card, look at what stands there."""
        entry = self._entries.get(self._cards.get(post_id, ""))
        if entry is not None:
            if user_id and user_id not in entry.speakers:
                entry.speakers = (*entry.speakers[-MOST_SPEAKERS + 1 :], user_id)
            self._hint(entry)
            return
        if len(self._early) >= EARLY_HINTS:
            del self._early[next(iter(self._early))]
        self._early[post_id] = user_id

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
        self._hint(entry)
        return True

    def retry(self, request_id: str) -> None:
        """A recipient of this request that failed is back."""
        entry = self._entries.get(request_id)
        if entry is not None:
            entry.retry = True
            self.queue.add(request_id)

    def _hint(self, entry: Entry) -> None:
        entry.hinted = True
        self.queue.add(entry.id)

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

        With `decided` of those that are resolved, and followed still.

        The oldest comes first.
        """
        return {
            entry.id: (*dict.fromkeys(channel for _, channel in entry.cards), *([entry.own] if entry.own else []))
            for entry in self._entries.values()
            if (entry.cards or entry.own) and (entry.version.rank > 0) == decided
        }

    # -- the worker's ------------------------------------------------------------------------------------------------

    def show_cards(self, entry: Entry, record: Record) -> None:
        """Listen to the cards that stand in `record`, and to what was said on them before we knew of them."""
        cards = tuple((slot.p, slot.c) for slot in record.posts if slot.k == "card" and slot.p and slot.s == "posted")
        entry.own = next((slot.c for slot in record.posts if slot.k == "requester" and slot.p), "")
        if cards == entry.cards or entry.id not in self._entries:
            return
        self._hide_cards(entry)
        entry.cards = cards
        for post_id, _ in cards:
            self._cards[post_id] = entry.id
            if post_id in self._early:
                self.hear(post_id, self._early.pop(post_id))

    def keep(self, entry: Entry, memory: Memory) -> None:
        """What the worker remembers until its next look; a long record is read again instead of being kept."""
        if memory.text is not None and len(memory.text) > KEEP_RECORD_LENGTH:
            memory = memory.but(text=None)
        entry.memory = memory

    def drop(self, entry: Entry) -> None:
        """Follow it no longer."""
        self._entries.pop(entry.id, None)
        self.queue.drop(entry.id)
        self._hide_cards(entry)
        if self._overflowed and len(self._entries) < 0.9 * self._most:
            self._overflowed = False
            self._room.set()

    def expiry_check(self, expires: float | None) -> float:
        """Seconds from now until a request with this expiry should be over; never where Teleport set none."""
        return math.inf if expires is None else expires + self._times.expiry_grace - time.time()

    def expiry_look(self, expires: float | None) -> float:
        """When (trio's clock) to look at a request that was just seen and should be over by then.

        Later where by our clock it is over already.
        """
        left = self.expiry_check(expires)
        return trio.current_time() + (left if left > 0 else self._times.expiry_grace)

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _hide_cards(self, entry: Entry) -> None:
        for post_id, _ in entry.cards:
            self._cards.pop(post_id, None)

    def _follow(self, request_id: str) -> Entry | None:
        entry = self._entries.get(request_id)
        if entry is None:
            if len(self._entries) >= self._most:
                if not self._overflowed:
                    log.error("requests.too_many", extra={"open_requests": self._most})
                self._overflowed = True
                return None
            entry = self._entries[request_id] = Entry(request_id)
            entry.mark = self._mark
        return entry

    def _settled(self, entry: Entry, request: AccessRequest) -> bool:
        text = entry.offered or entry.memory.text
        if text is None or self.queue.busy(entry.id):
            return False
        record = decode(text)
        if not isinstance(record, Record):
            return False
        names: frozenset[str] = frozenset()
        if not (self._book().used and record.posts):
            names = frozenset(named.name for named in route(request, self.routes))
        if not settled(request, record, names):
            return False
        wait = due_in(record, trio.current_time() - entry.pending_since, self._reminders)
        self.queue.add_at(entry.id, trio.current_time() + max(wait, 0.0))
        return True
