"""Each key waits once and is worked on once, in lanes and turns, and wakes by timers. On a clock that jumps."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.reconcile.queue import _SPARE_TIMERS, WorkQueue


def rank(key: str) -> tuple[int, str]:
    """`1bob-a`: lane 1, of bob's; a key without a party is in lane 0."""
    return (int(key[0]), key[1:].partition("-")[0]) if key[0].isdigit() else (0, "")


@pytest.fixture
def queue() -> WorkQueue[str]:
    return WorkQueue(rank)


async def drain(queue: WorkQueue[str]) -> list[str]:
    taken = []
    while len(queue):
        taken.append(await queue.get())
        queue.done(taken[-1])
    return taken


@pytest.mark.parametrize(
    ("added", "taken"),
    [
        ("a a b a", "a b"),
        # An earlier lane goes first, whatever came first.
        ("2x-a 1x-b a", "a 1x-b 2x-a"),
        # In one lane the parties take turns, each in its own order.
        ("2bob-1 2bob-2 2bob-3 2eve-1 2eve-2", "2bob-1 2eve-1 2bob-2 2eve-2 2bob-3"),
    ],
)
async def test_the_order_of_keys(queue: WorkQueue[str], added: str, taken: str) -> None:
    for key in added.split():
        queue.add(key)
    assert await drain(queue) == taken.split()
    assert queue.quiet


async def test_a_key_never_has_two_workers(queue: WorkQueue[str]) -> None:
    """What comes while one works on it is the next look, and the only one."""
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert (len(queue), queue.busy("a"), queue.quiet) == (0, True, False)
    queue.done("a")
    assert await drain(queue) == ["a"]
    assert queue.quiet


async def test_a_key_that_has_become_urgent_changes_lanes_and_is_taken_once() -> None:
    urgent: set[str] = set()
    queue = WorkQueue[str](lambda key: (0 if key in urgent else 2, ""))
    for key in ("a", "b"):
        queue.add(key)
    urgent.add("b")
    queue.add("b")
    assert (len(queue), await drain(queue)) == (2, ["b", "a"])
    # And is not pushed back by what is less urgent.
    urgent.add("a")
    queue.add("a")
    urgent.clear()
    queue.add("c")
    queue.add("a")
    assert await drain(queue) == ["a", "c"]


async def test_a_worker_that_waits_is_woken(nursery: trio.Nursery, queue: WorkQueue[str]) -> None:
    found = []

    async def work() -> None:
        found.append(await queue.get())

    nursery.start_soon(work)
    await wait_all_tasks_blocked()
    queue.add("a")
    await wait_all_tasks_blocked()
    assert found == ["a"]


async def test_timers_wake_in_order_and_the_earliest_counts(
    autojump_clock: MockClock, nursery: trio.Nursery, queue: WorkQueue[str]
) -> None:
    nursery.start_soon(queue.run_timers)
    began = trio.current_time()
    for key, wait in (("a", 50), ("b", 20), ("a", 10), ("a", 30)):
        queue.add_at(key, began + wait)
    woken = []
    for _ in range(2):
        key = await queue.get()
        woken.append((key, round(trio.current_time() - began)))
        queue.done(key)
    assert woken == [("a", 10), ("b", 20)]
    with trio.move_on_after(1000) as scope:
        await queue.get()
    assert scope.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_a_look_says_when_the_next_one_is(
    autojump_clock: MockClock, nursery: trio.Nursery, queue: WorkQueue[str]
) -> None:
    """Whatever came in meanwhile is sooner; the time that was asked for stays."""
    nursery.start_soon(queue.run_timers)
    began = trio.current_time()
    queue.add("a")
    await queue.get()
    queue.add("a")
    queue.done("a", began + 5)
    times = []
    for _ in range(2):
        queue.done(await queue.get())
        times.append(trio.current_time() - began)
    assert times == [0, pytest.approx(5)]
    nursery.cancel_scope.cancel()


async def test_a_dropped_key_is_not_woken(
    autojump_clock: MockClock, nursery: trio.Nursery, queue: WorkQueue[str]
) -> None:
    """Neither by a timer, nor because it waited, nor because it came in while it was worked on."""
    nursery.start_soon(queue.run_timers)
    queue.add_at("timer", trio.current_time() + 5)
    for key in ("busy", "waiting"):
        queue.add(key)
    await queue.get()
    queue.add("busy")
    for key in ("timer", "waiting", "busy"):
        queue.drop(key)
    queue.done("busy")
    with trio.move_on_after(100) as scope:
        await queue.get()
    assert scope.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_what_is_over_leaves_no_timers_behind(queue: WorkQueue[str]) -> None:
    """Each would have waited for its expiry in a week; the one that is still followed is still woken."""
    queue.add_at("kept", 3600)
    for number in range(5 * _SPARE_TIMERS):
        queue.add_at(f"x{number}", 7 * 86400)
        queue.drop(f"x{number}")
    assert len(queue._timers) <= _SPARE_TIMERS + 10
    assert "kept" in [key for _, _, key in queue._timers]


@pytest.mark.parametrize("keys", [1, 3])
async def test_a_key_that_was_dropped_while_it_waited_may_come_again(queue: WorkQueue[str], keys: int) -> None:
    for number in range(keys):
        queue.add(f"{number}")
    queue.drop("0")
    queue.add("0")
    assert sorted(await drain(queue)) == [f"{number}" for number in range(keys)]


async def test_workers_that_are_kept_for_one_lane_take_nothing_of_the_others(nursery: trio.Nursery) -> None:
    queue = WorkQueue[str](lambda key: (int(key[0]), ""))
    taken: list[tuple[str, int | None]] = []

    async def work(lanes: int | None) -> None:
        while True:
            taken.append((await queue.get(lanes), lanes))

    nursery.start_soon(work, 1)
    await trio.testing.wait_all_tasks_blocked()
    for key in ("2a", "1a", "0a"):
        queue.add(key)
    await trio.testing.wait_all_tasks_blocked()
    assert taken == [("0a", 1)]
    nursery.start_soon(work, None)
    await trio.testing.wait_all_tasks_blocked()
    assert taken == [("0a", 1), ("1a", None), ("2a", None)]
    queue.add("0b")
    queue.add("2b")
    await trio.testing.wait_all_tasks_blocked()
    assert min(taken[3:])[0] == "0b"
    assert len(taken) == 5
