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
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trustme

from sidecar import app
from tests.patience import Strain, patient
from tests.schedule import SKEWED, Process, SkewedTime, draw, perform, script
from tests.world import Lines

AT_ONCE = 5
# The leases of one second leave a call a third of that. On two free cores the loop of five schedules is never as late,
# and less than half of the time somebody waits.
LATE, BUSY = 0.33, 0.6

# Who is killed in the middle of connecting closes nothing; as a process it would not need to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


def batches(text: str) -> list[range]:
    """Read "17" or "0-49", in parts that are played at once."""
    first, _, last = text.partition("-")
    numbers = range(int(first), int(last or first) + 1)
    return [numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE)]


@pytest.fixture(autouse=True)
def own_clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each schedule clocks of its own."""
    for room in SKEWED:
        monkeypatch.setattr(importlib.import_module(f"sidecar.{room}"), "time", SkewedTime)
    monkeypatch.setattr(app, "_Process", Process)
    yield
    gc.collect()  # here, where what the killed leave behind is expected


async def play(seeds: range, folder: Path, authority: trustme.CA) -> None:
    """Play all these schedules at once; fail with seeds and steps of what went wrong."""
    failures: list[str] = []

    async def one(seed: int, lines: Lines) -> None:
        plot = draw(seed)
        place = folder / str(seed)
        place.mkdir()
        with patient(90) as scope:
            failures.extend(f"{script(plot)}\n  => {wrong}" for wrong in await perform(plot, place, authority, lines))
        if scope.cancelled_caught:
            failures.append(f"{script(plot)}\n  => it did not end")

    strain = Strain()
    async with trio.open_nursery() as measuring:
        measuring.start_soon(strain.measure)
        with Lines() as lines:
            async with trio.open_nursery() as nursery:
                for seed in seeds:
                    nursery.start_soon(one, seed, lines)
            bugs = [f"seeds {seeds}: {bug}" for bug in lines.of("request.bug")]
        measuring.cancel_scope.cancel()
    verdict(failures, bugs, strain)


def verdict(failures: list[str], bugs: list[str], strain: Strain) -> None:
    """What was lost is held against the sidecar only where it could have met its deadlines."""
    assert not bugs, "\n\n".join(bugs)
    told = "\n\n".join(failures)
    if failures and strain.late > LATE and strain.share > BUSY:
        pytest.skip(f"starved, {strain.late:.2f} s late: {told}")
    assert not failures, told


@pytest.mark.parametrize(
    ("late", "busy", "bugs", "outcome"),
    [
        (1.0, True, 0, pytest.skip.Exception),
        (1.0, False, 0, AssertionError),
        (0.1, True, 0, AssertionError),
        (1.0, True, 1, AssertionError),
    ],
)
def test_only_a_starved_machine_excuses_what_was_lost(
    late: float,
    busy: bool,  # noqa: FBT001
    bugs: int,
    outcome: type[BaseException],
) -> None:
    """Both signs are needed: a loop that only the sidecar itself holds up is late too. A bug has no excuse."""
    strain = SimpleNamespace(late=late, share=0.9 if busy else 0.1)
    with pytest.raises(outcome):
        verdict(["lost"], ["bug"] * bugs, cast("Strain", strain))


@pytest.mark.patience(100)
@pytest.mark.parametrize("seeds", batches(os.environ.get("SIDECAR_SEEDS", "0-49")), ids=str)
async def test_everything_becomes_true(seeds: range, tmp_path: Path, ca: trustme.CA) -> None:
    """P1 to P4 after cuts, stalls, corruption, lost answers, restarts, kills, replicas and clocks that jump."""
    await play(seeds, tmp_path, ca)


@pytest.mark.soak
@pytest.mark.parametrize("seeds", batches(os.environ.get("SIDECAR_SEEDS", "50-5999")), ids=str)
async def test_everything_becomes_true_for_long(seeds: range, tmp_path: Path, ca: trustme.CA) -> None:
    """The same for thousands of seeds."""
    await play(seeds, tmp_path, ca)
