"""How fast we may ask: the pause that a 429 imposes on everybody, and the pace of posts.

Both wait on trio's clock, and both refuse at once what could not start before the caller's own deadline: the caller
then knows that nothing was sent, which a deadline that strikes by itself would not tell.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from enum import IntEnum

import trio

from sidecar.errors import LinkLost

log = logging.getLogger(__name__)


class Lane(IntEnum):
    """Who goes first: whoever decided waits for a word, and what is shown should be true before there is more of it."""

    ANSWER, CHANGE, ANNOUNCEMENT = range(3)


def _too_late() -> LinkLost:
    return LinkLost("mattermost", "rate_limited", "Mattermost's rate limit outlasts the deadline; nothing was sent")


class Pause:
    """One pause for all callers: Mattermost's limiter counts by address, so one 429 speaks for everybody."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def on(self) -> bool:
        """Whether nothing may be sent now."""
        return trio.current_time() < self._until

    def extend(self, seconds: float) -> None:
        """Send nothing for so long."""
        if not self.on:
            log.info("rest.paused", extra={"link": "mattermost", "pause_seconds": seconds})
        self._until = max(self._until, trio.current_time() + seconds)

    async def wait(self) -> None:
        """Wait for the end. Raises LinkLost(rate_limited) where the caller's deadline comes first."""
        while self.on:
            await trio.lowlevel.checkpoint_if_cancelled()
            if trio.current_effective_deadline() < self._until:
                raise _too_late()
            await trio.sleep_until(self._until)


class Pace:
    """A token bucket that holds one second's worth. Where several wait, an earlier lane goes first."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._burst = max(1.0, per_second) * self._interval
        # When the bucket is full again (the "theoretical arrival time" of GCRA).
        self._full_at = 0.0
        self._lanes: tuple[OrderedDict[_Turn, None], ...] = tuple(OrderedDict() for _ in Lane)

    async def take(self, lane: Lane) -> None:
        """Wait for one token. Raises LinkLost(rate_limited) where the caller's deadline comes first."""
        await trio.lowlevel.checkpoint_if_cancelled()
        ahead = sum(len(waiting) for waiting in self._lanes[: lane + 1])
        if self._next() + ahead * self._interval > trio.current_effective_deadline():
            raise _too_late()
        turn = _Turn()
        self._lanes[lane][turn] = None
        try:
            while (first := self._first()) is not turn or self._next() > trio.current_time():
                if first is turn:
                    await trio.sleep_until(self._next())
                else:
                    turn.come = trio.Event()
                    await turn.come.wait()
            self._full_at = max(self._full_at, trio.current_time()) + self._interval
        finally:
            del self._lanes[lane][turn]
            if (first := self._first()) is not None:
                first.come.set()

    def _next(self) -> float:
        """When there is a token."""
        return max(self._full_at, trio.current_time()) + self._interval - self._burst

    def _first(self) -> _Turn | None:
        return next((turn for waiting in self._lanes for turn in waiting), None)


class _Turn:
    """One who waits; `come` is set when nobody is before it any more."""

    def __init__(self) -> None:
        self.come = trio.Event()
