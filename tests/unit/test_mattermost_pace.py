"""The shared pause and the pace of posts, on trio's own clock."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from sidecar.errors import LinkLost
from sidecar.mattermost.pace import Lane, Pace, Pause


async def test_a_pause_holds_everybody_and_is_logged_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pause = Pause()
    ended: list[float] = []

    async def caller() -> None:
        await pause.wait()
        ended.append(trio.current_time() - begun)

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        pause.extend(2.0)
        pause.extend(1.0)
        for _ in range(10):
            nursery.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()
        pause.extend(5.0)
    assert ended == [5.0] * 10
    assert [record.getMessage() for record in caplog.records] == ["rest.paused"]
    assert not pause.on


async def test_a_pause_beyond_the_deadline_says_at_once_that_nothing_was_sent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pause = Pause()
    pause.extend(5.0)
    begun = trio.current_time()
    with trio.fail_after(4.0), pytest.raises(LinkLost) as caught:
        await pause.wait()
    assert (caught.value.reason, caught.value.ambiguous) == ("rate_limited", False)
    assert trio.current_time() == begun


async def test_posts_start_with_a_burst_of_one_second_and_then_keep_the_pace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pace = Pace(10.0)
    begun = trio.current_time()
    times = []
    for _ in range(30):
        await pace.take(Lane.ANNOUNCEMENT)
        times.append(trio.current_time() - begun)
    assert times[:10] == [0.0] * 10
    assert times[10:] == pytest.approx([0.1 * number for number in range(1, 21)])


async def test_a_slow_pace_lets_the_first_one_through(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(0.5)
    begun = trio.current_time()
    await pace.take(Lane.ANNOUNCEMENT)
    assert trio.current_time() == begun
    await pace.take(Lane.ANNOUNCEMENT)
    assert trio.current_time() == pytest.approx(begun + 2.0)


async def test_a_cancelled_or_refused_wait_costs_the_others_nothing(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(1.0)
    await pace.take(Lane.ANNOUNCEMENT)
    for _ in range(100):
        with trio.move_on_after(0.5), pytest.raises(LinkLost):
            await pace.take(Lane.ANNOUNCEMENT)
    with trio.CancelScope() as scope:
        scope.cancel()
        await pace.take(Lane.ANNOUNCEMENT)
    assert scope.cancelled_caught
    begun = trio.current_time()
    await pace.take(Lane.ANNOUNCEMENT)
    assert trio.current_time() - begun <= 1.0


async def test_an_answer_waits_for_no_announcement(autojump_clock: trio.testing.MockClock) -> None:
    """A thousand announcements wait; each answer gets the next token, and each change the next one after that."""
    pace = Pace(20.0)
    taken: list[tuple[Lane, float]] = []

    async def take(lane: Lane) -> None:
        asked = trio.current_time()
        await pace.take(lane)
        taken.append((lane, trio.current_time() - asked))

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(take, Lane.ANNOUNCEMENT)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            await trio.sleep(1.01)
            nursery.start_soon(take, Lane.CHANGE)
            nursery.start_soon(take, Lane.ANSWER)
    assert [lane for lane, _ in taken if lane is not Lane.ANNOUNCEMENT] == [Lane.ANSWER, Lane.CHANGE] * 10
    assert max(waited for lane, waited in taken if lane is not Lane.ANNOUNCEMENT) <= 0.1 + 1e-6
    assert len(taken) == 1020
