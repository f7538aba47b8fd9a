"""A work queue in the manner of Kubernetes' client-go: no key twice, looked at again if it came in meanwhile, timers.

Nothing in here knows what a key stands for. `rank` says in which lane a key waits and, within the lane, behind whom:
an earlier lane always goes first, and in one lane the parties take turns.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")

# Timers of no use any more that may wait beside those of use.
_SPARE_TIMERS = 1000


class WorkQueue(Generic[K]):
    """Keys that wait for a worker, one worker a key. `rank` gives (lane, party) of a key; lanes count from 0."""

    def __init__(self, rank: Callable[[K], tuple[int, str]], lanes: int = 3) -> None:
        self._rank = rank
        self._lanes: tuple[OrderedDict[str, deque[K]], ...] = tuple(OrderedDict() for _ in range(lanes))
        # key -> the lane in which it waits
        self._waiting: dict[K, int] = {}
        # key that is worked on -> whether it came in again meanwhile
        self._busy: dict[K, bool] = {}
        # key -> trio's time of its next look
        self._due: dict[K, float] = {}
        self._timers: list[tuple[float, int, K]] = []
        self._count = 0
        self._arrived = trio.Event()
        self._timer_set = trio.Event()

    def __len__(self) -> int:
        """How many keys wait for a worker."""
        return len(self._waiting)

    @property
    def quiet(self) -> bool:
        """Whether nothing waits and nothing is being worked on."""
        return not self._waiting and not self._busy

    def busy(self, key: K) -> bool:
        """Whether a worker has this key."""
        return key in self._busy

    def add(self, key: K) -> None:
        """Work on this key as soon as a worker is free; again afterwards where one has it now."""
        if key in self._busy:
            self._busy[key] = True
            return
        lane, party = self._rank(key)
        known = self._waiting.get(key)
        if known is not None and known <= lane:
            return
        # What waits in a later lane is left there, and passed over when its turn comes.
        self._waiting[key] = lane
        self._lanes[lane].setdefault(party, deque()).append(key)
        self._arrived.set()

    def add_at(self, key: K, when: float) -> None:
        """Work on this key at this time of trio's clock, or earlier where an earlier look is set."""
        if when >= self._due.get(key, math.inf):
            return
        if len(self._timers) > 2 * len(self._due) + _SPARE_TIMERS:
            # Those of keys that were dropped would stay until their time, which may be in a week.
            self._timers = [(due, number, one) for due, number, one in self._timers if self._due.get(one) == due]
            heapq.heapify(self._timers)
        self._due[key] = when
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, key))
        if self._timers[0][2] == key:
            self._timer_set.set()

    def put_off(self, key: K, when: float) -> None:
        """Work on this key at this time of trio's clock, not before, unless it comes in."""
        self._due.pop(key, None)
        self.add_at(key, when)

    async def get(self, lanes: int | None = None) -> K:
        """The next key, of the first `lanes` only where that is given; it is busy until `done`."""
        while True:
            for lane, parties in enumerate(self._lanes[:lanes]):
                if (key := self._next(lane, parties)) is not None:
                    del self._waiting[key]
                    self._busy[key] = False
                    return key
            if self._arrived.is_set():
                self._arrived = trio.Event()
            await self._arrived.wait()

    def done(self, key: K, again_at: float = math.inf) -> None:
        """The work on this key is over; what came in meanwhile is the next, and `again_at` (trio's clock) at last."""
        if self._busy.pop(key):
            self.add(key)
        if again_at < math.inf:
            self.add_at(key, again_at)

    def drop(self, key: K) -> None:
        """Forget when to look at this key again."""
        self._due.pop(key, None)
        self._waiting.pop(key, None)
        if key in self._busy:
            self._busy[key] = False

    async def run_timers(self) -> None:
        """Add keys when their time has come; runs until cancelled."""
        while True:
            self._timer_set = trio.Event()
            wait = self._timers[0][0] - trio.current_time() if self._timers else math.inf
            if wait > 0:
                with trio.move_on_after(wait):
                    await self._timer_set.wait()
                continue
            await trio.lowlevel.checkpoint()
            when, _, key = heapq.heappop(self._timers)
            if self._due.get(key) == when:
                del self._due[key]
                self.add(key)

    def _next(self, lane: int, parties: OrderedDict[str, deque[K]]) -> K | None:
        while parties:
            party, keys = next(iter(parties.items()))
            key = keys.popleft()
            if keys:
                parties.move_to_end(party)
            else:
                del parties[party]
            if self._waiting.get(key) == lane:
                return key
        return None
