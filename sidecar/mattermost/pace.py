"""How fast we may ask: the pause that a 429 imposes on everybody, and the pace of posts.

Both wait on trio's clock, and both refuse at once what could not start before the caller's own deadline: the caller
then knows that nothing was sent, which a deadline that strikes by itself would not tell.
"""

from __future__ import annotations

import logging

import trio

from sidecar.errors import LinkLost

log = logging.getLogger(__name__)


async def _sleep_until(when: float) -> None:
    await trio.lowlevel.checkpoint_if_cancelled()
    if trio.current_effective_deadline() < when:
        raise LinkLost("mattermost", "rate_limited", "Mattermost's rate limit outlasts the deadline; nothing was sent")
    await trio.sleep_until(when)


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
            await _sleep_until(self._until)


class Pace:
    """A token bucket that holds one second's worth: first come, first served."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1.0 / per_second
        self._burst = max(1.0, per_second) * self._interval
        # When the bucket is full again (the "theoretical arrival time" of GCRA).
        self._full_at = 0.0

    async def take(self) -> None:
        """Wait for one token. Raises LinkLost(rate_limited) where the caller's deadline comes first."""
        now = trio.current_time()
        self._full_at = max(self._full_at, now) + self._interval
        ready = self._full_at - self._burst
        if ready <= now:
            return
        try:
            await _sleep_until(ready)
        except BaseException:
            self._full_at -= self._interval
            raise
