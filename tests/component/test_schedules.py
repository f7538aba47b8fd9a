"""Random schedules of faults; whatever happens, in the end every message is there once and tells the truth.

A failure prints its seed and steps. `SIDECAR_SEEDS=17 make test ARGS=tests/component/test_schedules.py` plays it again,
`SIDECAR_SEEDS=1000-1999` a range of others.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trustme

from tests.schedule import SKEWED, SkewedTime, draw, perform, script
from tests.world import Lines

AT_ONCE = 5

# Who is killed in the middle of connecting closes nothing; as a process it would not need to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def batches(text: str) -> list[range]:
    """Read "17" or "0-199", in parts that are played at once."""
    first, _, last = text.partition("-")
    numbers = range(int(first), int(last or first) + 1)
    return [numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE)]


@pytest.fixture(autouse=True)
def own_clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each schedule clocks of its own."""
    for room in SKEWED:
        monkeypatch.setattr(importlib.import_module(f"sidecar.{room}"), "time", SkewedTime)
    yield
    gc.collect()  # here, where what the killed leave behind is expected


async def play(seeds: range, folder: Path, authority: trustme.CA) -> list[str]:
    """Play all these schedules at once; what went wrong, with seeds and steps."""
    failures: list[str] = []

    async def one(seed: int, lines: Lines) -> None:
        plot = draw(seed)
        place = folder / str(seed)
        place.mkdir()
        with trio.move_on_after(90) as scope:
            failures.extend(f"{script(plot)}\n  => {wrong}" for wrong in await perform(plot, place, authority, lines))
        if scope.cancelled_caught:
            failures.append(f"{script(plot)}\n  => it did not end")

    with Lines() as lines:
        async with trio.open_nursery() as nursery:
            for seed in seeds:
                nursery.start_soon(one, seed, lines)
        failures += [f"seeds {seeds}: {bug}" for bug in lines.of("request.bug")]
    return failures


@pytest.mark.parametrize("seeds", batches(os.environ.get("SIDECAR_SEEDS", "0-199")), ids=str)
async def test_everything_becomes_true(seeds: range, tmp_path: Path, ca: trustme.CA) -> None:
    """P1 to P4 after cuts, stalls, corruption, lost answers, restarts, kills, replicas and clocks that jump."""
    failures = await play(seeds, tmp_path, ca)
    assert not failures, "\n\n".join(failures)


@pytest.mark.soak
@pytest.mark.parametrize("seeds", batches(os.environ.get("SIDECAR_SEEDS", "1000-5999")), ids=str)
async def test_everything_becomes_true_for_long(seeds: range, tmp_path: Path, ca: trustme.CA) -> None:
    """The same for thousands of seeds."""
    failures = await play(seeds, tmp_path, ca)
    assert not failures, "\n\n".join(failures)
