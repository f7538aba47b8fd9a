"""Whether work that needs Mattermost may begin, who is woken when it may, and what draining waits for."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sidecar.intake.keep import LinkStatus
from sidecar.metrics import Metrics
from sidecar.reconcile.gate import Gate


@pytest.fixture
def woken() -> list[str]:
    return []


@pytest.fixture
def gate(woken: list[str]) -> Gate:
    return Gate(woken.append, LinkStatus("mattermost", Metrics()).wrote)


def test_it_is_open_while_the_link_is_up(gate: Gate, woken: list[str]) -> None:
    """Who was parked is woken once, in the order of coming."""
    assert not gate.open
    for key in ("a", "b", "a"):
        gate.park(key)
    assert gate.parked == 2
    gate.admit()
    gate.admit()
    assert (gate.open, gate.parked, woken) == (True, 0, ["a", "b"])
    gate.close()
    assert not gate.open


async def test_a_suspicion_is_told_once(gate: Gate, nursery: trio.Nursery) -> None:
    gate.suspect()
    gate.suspect()
    await gate.suspected()
    with trio.move_on_after(0.01) as scope:
        await gate.suspected()
    assert scope.cancelled_caught


async def test_draining_ends_when_those_who_write_have_finished(gate: Gate, nursery: trio.Nursery) -> None:
    """Nobody begins any more, whatever the link does."""
    gate.admit()
    drained = trio.Event()

    async def drain() -> None:
        await gate.drained()
        drained.set()

    with gate.writing():
        with gate.writing():
            nursery.start_soon(drain)
            await wait_all_tasks_blocked()
        gate.admit()
        await wait_all_tasks_blocked()
        assert (gate.open, drained.is_set()) == (False, False)
    with trio.fail_after(1):
        await drained.wait()


async def test_nothing_to_drain(gate: Gate) -> None:
    with trio.fail_after(1):
        await gate.drained()
