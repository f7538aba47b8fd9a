"""How long a test waits: deadlines that count what the machine managed to do, not seconds alone.

A second in which other work had the cores, or in which the loop did not come to its timers, is no sign of a hang.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

SECONDS = 30.0
_TICK = 0.25
_GLANCE = 0.02
# However busy the machine is, a tick counts a little, so that what hangs ends within four times the seconds.
_LEAST = _TICK / 4
_PRESSURE = Path("/proc/pressure/cpu")


def stalled() -> float:
    """For how many seconds in all some process has waited for a core; 0 where the kernel does not say."""
    try:
        some = _PRESSURE.read_text().partition("\n")[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6


@contextmanager
def patient(seconds: float = SECONDS) -> Iterator[trio.CancelScope]:
    """Cancel what is inside once the machine has had so many seconds for it."""
    counting = trio.CancelScope()
    with trio.CancelScope() as scope:
        trio.lowlevel.spawn_system_task(_count, seconds, scope, counting, name="patience")
        try:
            yield scope
        finally:
            counting.cancel()


async def _count(seconds: float, scope: trio.CancelScope, counting: trio.CancelScope) -> None:
    with counting:
        while seconds > 0:
            before = stalled()
            await trio.sleep(_TICK)  # one that took longer counts no more
            waited = max(0.0, stalled() - before)  # nothing can be read where descriptors have run out
            seconds -= max(_LEAST, _TICK - waited)
        scope.cancel()


class Strain:
    """How late the loop came to a timer at worst, and in which part of the time somebody waited for a core."""

    def __init__(self) -> None:
        self.late = 0.0
        self._began, self._stalled = trio.current_time(), stalled()

    @property
    def share(self) -> float:
        return (stalled() - self._stalled) / (trio.current_time() - self._began)

    async def measure(self) -> None:
        """Runs until cancelled."""
        while True:
            due = trio.current_time() + _GLANCE
            await trio.sleep_until(due)
            self.late = max(self.late, trio.current_time() - due)


def within_patience(test: Callable[..., Awaitable[None]], seconds: float = SECONDS) -> Callable[..., Awaitable[None]]:
    """Give an async test its deadline, and say where it was when that came."""

    @functools.wraps(test)
    async def run(**fixtures: Any) -> None:
        with patient(seconds) as scope:
            try:
                await test(**fixtures)
            except BaseException as exc:
                if scope.cancel_called:
                    traceback.print_exception(exc)
                raise
        if scope.cancelled_caught:
            raise trio.TooSlowError(f"The test did not end within {seconds:g} s of a machine that was free for it.")

    return run
