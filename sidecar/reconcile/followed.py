"""The access requests that are followed, and what Teleport says of each.

Nothing in here waits for a peer; whatever Teleport or Mattermost says ends in "look at request X".
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from typing import TYPE_CHECKING

import trio

from sidecar.config.sections import LimitsConfig, RemindersConfig
from sidecar.decisions.due import settled
from sidecar.decisions.record import KEY, Record, decode
from sidecar.decisions.reminders import due_in
from sidecar.decisions.routing import Routes, RuleBook, route
from sidecar.model import Put
from sidecar.reconcile.entry import Entry
from sidecar.reconcile.heard import Heard
from sidecar.reconcile.lease import boottime
from sidecar.reconcile.queue import WorkQueue
from sidecar.times import USUAL, Times

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.model import AccessRequest, Delete, PluginData

log = logging.getLogger(__name__)

# Requests kept whole while they wait for a worker; beyond that, and for long texts, they are read again by id.
KEEP_WAITING = 1000
KEEP_REASON_LENGTH = 4096
# Between two reads of cards that were posted before the start: there may be 500,000, and nobody waits for them.
CARD_SECONDS = 0.02
SOON = 10
LIST_SECONDS = 30.0
SWEEP_SECONDS = 300.0

DECISIONS, CHANGES, ANNOUNCEMENTS = range(3)

_USUAL_LIMITS = LimitsConfig()
_NO_REMINDERS = RemindersConfig()


class Followed:
    """All followed requests, bounded by `open_requests`. The queue also takes other keys, which go first.

    `heard` takes what Mattermost says of them.
    """

    def __init__(
        self,
        routes: Routes,
        limits: LimitsConfig = _USUAL_LIMITS,
        book: Callable[[], RuleBook] = RuleBook,
        times: Times = USUAL,
        reminders: RemindersConfig = _NO_REMINDERS,
    ) -> None:
        self.queue = WorkQueue[str](self._rank)
        self._times = times
        self._book = book
        self.configure(routes, limits, reminders)
        self._entries: dict[str, Entry] = {}
        self.heard = Heard(self._entries, self.queue, times)
        self._parties: Counter[str] = Counter()
        self._overflowed = False
        self._room = trio.Event()
        self._mark = 0
        # When this machine was booted at the latest, by Teleport's clock (Unix seconds).
        self.booted = -math.inf
        self._looked_at = -math.inf

    def configure(self, routes: Routes, limits: LimitsConfig, reminders: RemindersConfig) -> None:
        """Go on by another configuration."""
        self.routes, self._limits, self._reminders = routes, limits, reminders

    def look_again(self, *, cards: bool) -> None:
        """Another configuration counts: look at every request; where `cards`, at what its cards bear, one by one.

        Nobody may be at work on one.
        """
        for entry in self._entries.values():
            if cards and entry.cards:
                entry.memory = entry.memory.but(told=())
                self._looked_at = max(self._looked_at, trio.current_time()) + len(entry.cards) // 2 * CARD_SECONDS
                self.queue.add_at(entry.id, self._looked_at)
            else:
                self.queue.add(entry.id)

    def clear(self) -> None:
        """Forget every request: what is known of it is another cluster's, or stands under another name."""
        for entry in list(self._entries.values()):
            self.drop(entry)

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
        known = entry.memory.known or entry.offered is not None
        return (CHANGES, "") if known else (ANNOUNCEMENTS, entry.party)

    def event(self, event: Put | Delete) -> None:
        """Take one event of the watch."""
        if isinstance(event, Put):
            self.look(event.request)
        elif (entry := self._follow(event.request_id)) is not None:
            entry.gone = True
            self.queue.add(entry.id)

    def look(self, request: AccessRequest) -> bool:
        """Take one version of a request; an older one than known is ignored. True for a newer version."""
        if request.dry_run or (entry := self._follow(request.id, request.user)) is None:
            return False
        entry.mark = self._mark
        entry.absent_since = math.inf
        digest = hash(request)
        if digest == entry.digest or entry.outdates(request):
            return False
        newer = request.version > entry.version or (request.created or 0.0) > entry.created
        if request.created is not None:
            self.booted = max(self.booted, request.created - boottime())
        self._count(entry, request.user)
        entry.learn(request)
        record = self._settled(entry, request)
        if record is not None:
            # Never now, although by our clock it may be over already.
            left = entry.over_in(grace := self._times.expiry_grace)
            expiry_look = trio.current_time() + (left if left > 0 else grace)
            reminder = trio.current_time() + due_in(record, trio.current_time() - entry.pending_since, self._reminders)
            look = self._turn(entry, record)
            if look == math.inf:
                entry.rest()
            self.queue.add_at(entry.id, min(expiry_look, look, reminder))
            return False
        keeps = len(self.queue) < min(self._limits.queue, KEEP_WAITING) and len(request.reason) < KEEP_REASON_LENGTH
        entry.request = request if keeps else None
        self.queue.add(entry.id)
        return newer

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
        self.heard.show_cards(entry, record)
        if followed is not None:
            self.queue.add(entry.id)
            return
        self.queue.add_at(entry.id, trio.current_time() + max(entry.over_in(self._times.expiry_grace), 0.0))

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

    def drop(self, entry: Entry) -> None:
        """Follow it no longer."""
        if self._entries.pop(entry.id, None) is not None:
            self._count(entry, None)
        self.queue.drop(entry.id)
        self.heard.hide_cards(entry)
        if self._overflowed and len(self._entries) < 0.9 * self._limits.open_requests:
            self._overflowed = False
            self._room.set()

    def _follow(self, request_id: str, party: str = "") -> Entry | None:
        entry = self._entries.get(request_id)
        if entry is None:
            if len(self._entries) >= (most := self._limits.open_requests):
                if not self._overflowed:
                    log.error("requests.too_many", extra={"open_requests": most})
                self._overflowed = True
                if not self._makes_room(party):
                    return None
            entry = self._entries[request_id] = Entry(request_id)
            entry.mark = self._mark
            self._parties[entry.party] += 1
        return entry

    def _count(self, entry: Entry, party: str | None) -> None:
        """Note whose this is now; None: it is followed no longer."""
        self._parties[entry.party] -= 1
        if not self._parties[entry.party]:
            del self._parties[entry.party]
        if party is not None:
            self._parties[party] += 1

    def _makes_room(self, party: str) -> bool:
        """Leave out the newest request that nobody was told of, of whoever has most: a list brings it again."""
        greedy = max(self._parties, key=self._parties.__getitem__)
        if self._parties[greedy] <= self._parties[party] + 1:
            return False
        for entry in reversed(self._entries.values()):
            untold = not entry.memory.known and entry.offered is None and not entry.cards
            if entry.party == greedy and untold and not self.queue.busy(entry.id):
                self.drop(entry)
                return True
        return False

    def _turn(self, entry: Entry, record: Record) -> float:
        """When the cards that only a record tells of are looked at, one request after the other."""
        cards = entry.unseen(record)
        if not cards:
            return math.inf
        now = trio.current_time()
        self._looked_at = max(self._looked_at, now) + cards * CARD_SECONDS
        if self._looked_at <= now + SOON * CARD_SECONDS:
            return self._looked_at
        # Where there are many, the list goes first, and a sweep, if there is one, sees them in pages.
        return self._looked_at + (SWEEP_SECONDS if self.heard.swept else LIST_SECONDS)

    def _settled(self, entry: Entry, request: AccessRequest) -> Record | None:
        """The record, where nothing can be due but a look at its cards."""
        text = entry.offered or entry.memory.text
        if not text or self.queue.busy(entry.id):
            return None
        record = decode(text)
        if not isinstance(record, Record):
            return None
        names: frozenset[str] = frozenset()
        if not (self._book().used and record.posts):
            names = frozenset(named.name for named in route(request, self.routes))
        return record if settled(request, record, names) else None
