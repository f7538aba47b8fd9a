"""Who may write to Mattermost while it is away, comes back, and fails again. On a clock that jumps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from sidecar.reconcile.breaker import Breaker
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.errors import LinkError, LinkLost, RequestGone

AWAY = LinkLost("mattermost", "reset", "gone")
TELEPORT = LinkLost("teleport", "unavailable", "gone")


class Writers:
    """Tasks that want to write; each ends as `outcome` says when it is let go."""

    def __init__(self, breaker: Breaker, nursery: trio.Nursery) -> None:
        self._breaker = breaker
        self._nursery = nursery
        self.writing = 0
        self.done = 0
        self.go = trio.Event()

    def want(self, count: int, outcome: Callable[[], None] = lambda: None) -> None:
        for _ in range(count):
            self._nursery.start_soon(self._write, outcome)

    async def _write(self, outcome: Callable[[], None]) -> None:
        try:
            async with self._breaker.writing():
                self.writing += 1
                await self.go.wait()
                outcome()
        except (LinkError, RequestGone):
            pass
        self.done += 1


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


async def test_nobody_writes_before_the_link_is_up(nursery: trio.Nursery) -> None:
    breaker = Breaker()
    writers = Writers(breaker, nursery)
    writers.want(5)
    await wait_all_tasks_blocked()
    assert writers.writing == 0
    breaker.trust()
    await wait_all_tasks_blocked()
    assert writers.writing == 5
    writers.go.set()


async def test_one_writer_goes_first_and_its_success_lets_all_through(nursery: trio.Nursery) -> None:
    breaker = Breaker()
    writers = Writers(breaker, nursery)
    writers.want(5)
    breaker.admit()
    await wait_all_tasks_blocked()
    assert writers.writing == 1
    writers.go.set()
    await wait_all_tasks_blocked()
    assert writers.done == 5
    assert breaker.open


@pytest.mark.parametrize("error", [AWAY, TELEPORT, RequestGone("x")])
async def test_the_first_one_fails(nursery: trio.Nursery, error: Exception) -> None:
    """Mattermost's own failure closes it again; anything else proves nothing, and the next one may try."""
    breaker = Breaker()
    first, others = Writers(breaker, nursery), Writers(breaker, nursery)
    first.want(1, failing(error))
    breaker.admit()
    await wait_all_tasks_blocked()
    others.want(3)
    first.go.set()
    await wait_all_tasks_blocked()
    assert others.writing == (0 if error is AWAY else 1)
    assert not breaker.open
    others.go.set()
    breaker.trust()


async def test_a_failure_of_mattermost_closes_it_for_the_next(nursery: trio.Nursery) -> None:
    breaker = Breaker()
    breaker.trust()
    writers = Writers(breaker, nursery)
    writers.want(1, failing(AWAY))
    writers.go.set()
    await wait_all_tasks_blocked()
    assert not breaker.open
    writers.want(1)
    await wait_all_tasks_blocked()
    assert writers.writing == 1
    breaker.trust()


async def test_teleport_failing_a_writer_says_nothing_about_mattermost(nursery: trio.Nursery) -> None:
    breaker = Breaker()
    breaker.trust()
    writers = Writers(breaker, nursery)
    writers.want(1, failing(TELEPORT))
    writers.go.set()
    await wait_all_tasks_blocked()
    assert breaker.open


async def test_a_cancelled_first_one_gives_its_turn_away(nursery: trio.Nursery) -> None:
    breaker = Breaker()
    breaker.admit()
    with trio.CancelScope() as scope:
        async with breaker.writing():
            scope.cancel()
            await trio.sleep_forever()
    writers = Writers(breaker, nursery)
    writers.want(1)
    await wait_all_tasks_blocked()
    assert writers.writing == 1
    writers.go.set()


async def test_probing_waits_until_a_failure_is_old(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Never while writes pass, and not sooner than two seconds after the last failure."""
    breaker = Breaker()
    breaker.trust()
    with trio.move_on_after(100) as scope:
        await breaker.failure_is_old()
    assert scope.cancelled_caught
    breaker.close()
    began = trio.current_time()
    await breaker.failure_is_old()
    assert trio.current_time() - began == pytest.approx(2.0)


async def test_draining_ends_when_those_who_write_have_finished(nursery: trio.Nursery) -> None:
    breaker = Breaker()
    breaker.trust()
    writers, late = Writers(breaker, nursery), Writers(breaker, nursery)
    writers.want(3)
    await wait_all_tasks_blocked()
    drained = trio.Event()

    async def drain() -> None:
        await breaker.drained()
        drained.set()

    nursery.start_soon(drain)
    await wait_all_tasks_blocked()
    late.want(1)
    await wait_all_tasks_blocked()
    assert (late.writing, drained.is_set()) == (0, False)
    writers.go.set()
    await drained.wait()
    assert late.writing == 0
    nursery.cancel_scope.cancel()
