"""Whether it makes sense to write to Mattermost now, shared by all workers.

While Mattermost is away nothing is claimed and nothing is posted; as soon as it answers again one worker goes first,
and its success lets the others through.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from sidecar.errors import LinkError
from sidecar.times import USUAL, Times

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Breaker:
    """Open (writes pass), or closed until `probe` succeeded and then one writer did. Starts closed."""

    def __init__(self, times: Times = USUAL) -> None:
        self._times = times
        self._open = False
        self._probe_allowed = False
        self._draining = False
        self._writers = 0
        # How many wait for their turn.
        self.waiting = 0
        self._changed = trio.Event()
        self._last_failure = -math.inf

    @property
    def open(self) -> bool:
        """Whether writes pass freely."""
        return self._open

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Wait for a turn, then write. LinkError from the body closes the breaker, its success opens it."""
        first = await self._turn()
        self._writers += 1
        try:
            yield
        except LinkError as exc:
            if exc.link == "mattermost":
                self.close()
            elif first:
                self.admit()
            raise
        except BaseException:
            if first:
                self.admit()
            raise
        else:
            if first:
                self._set(is_open=True)
        finally:
            self._writers -= 1
            self._notify()

    async def drained(self) -> None:
        """Let nobody begin to write any more; return when those who write have finished."""
        self._draining = True
        while self._writers:
            await self._changed.wait()

    def trust(self) -> None:
        """The link to Mattermost is newly up: let everybody write."""
        self._set(is_open=True)

    def admit(self) -> None:
        """Mattermost answered a question: let one writer try."""
        if not self._open:
            self._probe_allowed = True
            self._notify()

    def close(self) -> None:
        """Mattermost failed a write, or its link is lost."""
        self._last_failure = trio.current_time()
        self._set(is_open=False)

    async def failure_is_old(self) -> None:
        """Return when the breaker is closed and its last failure long enough ago to ask again."""
        while self._open or self._probe_allowed:
            await self._changed.wait()
        await trio.sleep_until(max(self._last_failure + self._times.probe, trio.current_time()))

    async def _turn(self) -> bool:
        while not self._open or self._draining:
            if self._probe_allowed and not self._draining:
                self._probe_allowed = False
                return True
            self.waiting += 1
            try:
                await self._changed.wait()
            finally:
                self.waiting -= 1
        await trio.lowlevel.checkpoint()
        return False

    def _set(self, *, is_open: bool) -> None:
        self._open = is_open
        self._probe_allowed = False
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
