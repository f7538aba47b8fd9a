"""The access requests that are followed: what is known of each, which wait for a worker, and when to look again.

Nothing in here waits for a peer. Everything that Teleport says ends in "look at request X": the queue holds each
request at most once, and a request never has two workers.
"""

from __future__ import annotations

import heapq
import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING

import trio

from sidecar.decisions import plan as planning
from sidecar.decisions.record import KEY, Record, decode
from sidecar.decisions.routing import Routes, RuleBook, route
from sidecar.model import PENDING, Put, Version
from sidecar.reconcile.lease import boottime
from sidecar.times import USUAL, Times

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.decisions.judge import Expression
    from sidecar.model import AccessRequest, Delete, PluginData
    from sidecar.reconcile.apply import Doubts
    from sidecar.reconcile.observe import Answer

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
# Timers of no use any more that may wait beside those of use.
SPARE_TIMERS = 1000


class Entry:
    """A followed request between two looks; small, because there may be 50,000."""

    __slots__ = (
        "absent", "answers", "busy", "cards", "digest", "direct", "dirty", "doubts", "expires", "failures", "foreign",
        "gone", "heard", "hinted", "id", "known", "mark", "own", "pending_since", "queued", "request", "retries",
        "retry_at", "silent", "since", "speakers", "text", "touched", "troubles", "version", "wake",
    )  # fmt: skip

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        self.request: AccessRequest | None = None
        # The highest version seen, and a hash of all that was seen in it.
        self.version = Version(-1, 0)
        self.digest = 0
        # Unix seconds.
        self.expires = math.inf
        # trio's time when it was first read, if it was PENDING then.
        self.pending_since = math.inf
        # Whether Teleport has a record of ours, and its exact text where that is worth keeping.
        self.known = False
        self.text: str | None = None
        self.doubts: Doubts | None = None
        # Another holder's (n, boot time when first seen).
        self.foreign: tuple[int, float] | None = None
        # Channels where another holder's writes crossed with ours.
        self.touched: frozenset[str] = frozenset()
        # Times of trio's clock: the next look, and when recipients that failed are due again.
        self.wake = math.inf
        self.retry_at = math.inf
        self.retries = 0
        self.failures = 0
        # Looks in a row that did all they could and could not read the rest.
        self.troubles = 0
        # The number of the last full list that held it, and since when it is followed, by CLOCK_BOOTTIME.
        self.mark = 0
        self.since = boottime()
        self.queued = self.busy = self.dirty = False
        # A DELETE event proves that it is gone; absence from a list must be confirmed by id.
        self.gone = self.absent = False
        # Resolved before anybody announced it: nobody is told.
        self.silent = False
        # The cards on which decisions are heard, as (post, channel), and the channel where the requester is told;
        # whether all that was said is judged, and who is said to have spoken since; whether something was said during
        # the look that is under way; the direct messages that name the request; and the answers that nobody could be
        # given yet.
        self.cards: tuple[tuple[str, str], ...] = ()
        self.own = ""
        self.heard = True
        self.speakers: tuple[str, ...] = ()
        self.hinted = False
        self.direct: tuple[Expression, ...] = ()
        self.answers: tuple[Answer, ...] = ()

    def take_request(self) -> AccessRequest | None:
        """What the last event brought; None where nothing waits, or what is known is newer: then it is read by id.

        A read by id may overtake the events. The newest of them is no news then, and the one before must not count.
        """
        request, self.request = self.request, None
        return request if request is not None and request.version >= self.version else None

    def remember(self, text: str) -> None:
        """Keep the record text that Teleport has, where it is small enough."""
        self.known = True
        self.text = text if len(text) <= KEEP_RECORD_LENGTH else None

    def forget_text(self) -> None:
        """The record must be read again."""
        self.text = None


class Followed:
    """All followed requests, bounded by `open_requests`; those that wait for a worker are bounded by `queue`."""

    def __init__(
        self,
        routes: Routes,
        book: Callable[[], RuleBook] = RuleBook,
        *,
        open_requests: int = 50_000,
        queue: int = 10_000,
        times: Times = USUAL,
    ) -> None:
        self._times = times
        self._routes = routes
        self._book = book
        self._most = open_requests
        self._queue = queue
        self._entries: dict[str, Entry] = {}
        self._ready: deque[Entry] = deque()
        self._ready_event = trio.Event()
        self._timers: list[tuple[float, str]] = []
        self._timer_event = trio.Event()
        self._overflowed = False
        self._room = trio.Event()
        self._mark = 0
        # Where decisions are heard: card post -> request; and posts that somebody reacted to before we knew them.
        self._cards: dict[str, str] = {}
        self._early: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def backlog(self) -> int:
        """Requests that wait for a worker."""
        return len(self._ready)

    @property
    def quiet(self) -> bool:
        """Whether nothing waits and nothing is being worked on."""
        return not self._ready and not any(entry.busy for entry in self._entries.values())

    async def room_again(self) -> None:
        """Return when there is room again for what could not be followed, so that a full list is due."""
        await self._room.wait()
        self._room = trio.Event()

    # -- what Teleport says ------------------------------------------------------------------------------------------

    def event(self, event: Put | Delete) -> None:
        """Take one event of the watch."""
        if isinstance(event, Put):
            self.look(event.request)
            return
        entry = self._follow(event.request_id)
        if entry is not None:
            entry.gone = True
            self.enqueue(entry)

    def look(self, request: AccessRequest) -> bool:
        """Take one version of a request; an older one than known is ignored. True for a newer version."""
        if request.dry_run or (entry := self._follow(request.id)) is None:
            return False
        entry.mark = self._mark
        entry.absent = False
        digest = hash(request)
        if digest == entry.digest or request.version < entry.version:
            return False
        newer = request.version > entry.version
        if entry.version.rank < 0 and request.state == PENDING:
            # Not younger than it says, and not older than now by a clock that is behind Teleport's.
            age = time.time() - request.created if request.created is not None else 0.0
            entry.pending_since = trio.current_time() - max(age, 0.0)
        entry.version, entry.digest = request.version, digest
        entry.expires = math.inf if request.expires is None else request.expires
        if self._settled(entry, request):
            self.wake_at_expiry(entry, request.expires)
            return False
        keep = len(self._ready) < KEEP_WAITING and len(request.reason) < KEEP_REASON_LENGTH
        entry.request = request if keep else None
        self.enqueue(entry)
        return newer

    def know(self, data: PluginData) -> None:
        """Take one entry from a listing of plugin data; its request shows up in the list of requests, or is over.

        A request that we are silent about may have a record after all: another replica read it while it was PENDING,
        claimed it since, and may have died.
        """
        text = data.data.get(KEY)
        followed = self._entries.get(data.request_id)
        if text is None or (followed is not None and (followed.known or not followed.silent)):
            return
        record = decode(text)
        if not isinstance(record, Record) or record.done or (entry := self._follow(data.request_id)) is None:
            return
        entry.silent = False
        entry.remember(text)
        entry.expires = record.exp
        # Not marked: a list that is under way tells whether the request still exists, and it is no news to the list.
        entry.mark, entry.since = 0, -math.inf
        self.show_cards(entry, record)
        if record.owner:
            entry.foreign = (record.n, boottime())
        if followed is not None:
            self.enqueue(entry)
            return
        self.wake_in(entry, max(self.expiry_check(record.exp), 0.0))

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
            entry.absent = True
            self.enqueue(entry)
        return True

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    # -- what Mattermost says ----------------------------------------------------------------------------------------

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
        if expression not in entry.direct:
            if len(entry.direct) >= DIRECT_MESSAGES:
                return False
            entry.direct = (*entry.direct, expression)
        self._hint(entry)
        return True

    def _hint(self, entry: Entry) -> None:
        """Listen again. A look that is under way is not called off for it: people could keep it from ever ending."""
        entry.heard = False
        if entry.busy:
            entry.hinted = True
        else:
            self.enqueue(entry)

    def open_cards(self) -> dict[str, str]:
        """Card post -> channel, of all requests that are not resolved."""
        return {
            post: channel
            for entry in self._entries.values()
            if entry.version.rank <= 0
            for post, channel in entry.cards
        }

    def open_requests(self) -> dict[str, tuple[str, ...]]:
        """Request id -> the channels where it can be seen, of all requests that are announced and not resolved.

        The oldest comes first.
        """
        return {
            entry.id: (*dict.fromkeys(channel for _, channel in entry.cards), *([entry.own] if entry.own else []))
            for entry in self._entries.values()
            if (entry.cards or entry.own) and entry.version.rank <= 0
        }

    def _hide_cards(self, entry: Entry) -> None:
        for post_id, _ in entry.cards:
            self._cards.pop(post_id, None)

    # -- what workers say --------------------------------------------------------------------------------------------

    async def next(self) -> Entry:
        """The next request to look at, marked busy; `release` it afterwards."""
        while not self._ready:
            self._ready_event = trio.Event()
            await self._ready_event.wait()
        entry = self._ready.popleft()
        entry.queued = False
        entry.busy = True
        return entry

    def release(self, entry: Entry) -> None:
        """The look is over; what came in meanwhile is the next one."""
        entry.busy = False
        again, entry.dirty, entry.hinted = entry.dirty or entry.hinted, False, False
        if again and entry.id in self._entries:
            self.enqueue(entry)

    def enqueue(self, entry: Entry) -> None:
        """Look at this request as soon as a worker is free."""
        if entry.busy:
            entry.dirty = True
        elif not entry.queued:
            if len(self._ready) >= self._queue and entry.request is not None:
                entry.request = None
            entry.queued = True
            self._ready.append(entry)
            self._ready_event.set()

    def wake_in(self, entry: Entry, seconds: float) -> None:
        """Look again after this time, or earlier if an earlier look is set."""
        when = trio.current_time() + max(seconds, 0.0)
        if when < entry.wake:
            if len(self._timers) > 2 * len(self._entries) + SPARE_TIMERS:
                # Those of requests that are over would stay until they expire, which may be in a week.
                self._timers = [(one.wake, one.id) for one in self._entries.values() if one.wake < math.inf]
                heapq.heapify(self._timers)
            entry.wake = when
            heapq.heappush(self._timers, (when, entry.id))
            if self._timers[0][0] == when:
                self._timer_event.set()

    def drop(self, entry: Entry) -> None:
        """Follow it no longer."""
        self._entries.pop(entry.id, None)
        self._hide_cards(entry)
        if self._overflowed and len(self._entries) < 0.9 * self._most:
            self._overflowed = False
            self._room.set()

    def expiry_check(self, expires: float | None) -> float:
        """Seconds from now until a request with this expiry should be over; never where Teleport set none."""
        return math.inf if expires is None else expires + self._times.expiry_grace - time.time()

    def wake_at_expiry(self, entry: Entry, expires: float | None) -> None:
        """Look again when a request that was just seen should be over; later where by our clock it is already."""
        left = self.expiry_check(expires)
        self.wake_in(entry, left if left > 0 else self._times.expiry_grace)

    async def run_timers(self) -> None:
        """Wake requests when their time has come; runs until cancelled."""
        while True:
            self._timer_event = trio.Event()
            wait = self._timers[0][0] - trio.current_time() if self._timers else math.inf
            if wait > 0:
                with trio.move_on_after(wait):
                    await self._timer_event.wait()
                continue
            await trio.lowlevel.checkpoint()
            when, request_id = heapq.heappop(self._timers)
            entry = self._entries.get(request_id)
            if entry is not None and entry.wake == when:
                entry.wake = math.inf
                self.enqueue(entry)

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
        if entry.text is None or entry.busy:
            return False
        record = decode(entry.text)
        if not isinstance(record, Record):
            return False
        names: frozenset[str] = frozenset()
        if not (self._book().used and record.posts):
            names = frozenset(named.name for named in route(request, self._routes))
        return planning.settled(request, record, names)
