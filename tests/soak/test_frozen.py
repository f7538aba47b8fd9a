"""Replicas as processes that are frozen, killed and stopped at random: 0 lost, 0 twice at rest.

`SIDECAR_SEEDS=0-9` plays these. `SIDECAR_OTHER=…` names the source of another version, which one of two replicas runs:
`git archive <commit> sidecar | tar x -C …`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from sidecar.simulator.faults import Refusal
from tests.deciding import ALICE, IVAN
from tests.patience import patient
from tests.truth import untrue
from tests.world import ROOT, World, world

OTHER = os.environ.get("SIDECAR_OTHER")
AT_ONCE = 3
STEPS = 14
DEEDS = ("ask", "ask", "review", "review", "review", "deny", "freeze", "freeze", "freeze", "kill", "stop")


class Replica:
    """One process after another, of one source."""

    def __init__(self, source: Path, settings: dict[str, str], log: Path) -> None:
        flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        self._command = [sys.executable, "-m", "sidecar", "run", *flags]
        self._source = source
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.child = subprocess.Popen(self._command, cwd=self._source, stderr=log)

    def end(self, number: signal.Signals) -> None:
        self.child.send_signal(number)
        if number != signal.SIGKILL:
            self.child.send_signal(signal.SIGCONT)
        self.child.wait()


@contextmanager
def replicas(sources: list[Path], settings: dict[str, str], folder: Path) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        found = []
        for number, source in enumerate(sources):
            one = Replica(source, settings, folder / f"{number}.log")
            stack.callback(lambda one=one: one.end(signal.SIGKILL))  # type: ignore[misc]
            found.append(one)
        yield found


async def freeze(one: Replica, seconds: float) -> None:
    child = one.child
    child.send_signal(signal.SIGSTOP)
    await trio.sleep(seconds)
    if child.poll() is None:
        child.send_signal(signal.SIGCONT)


async def play(seed: int, here: World, group: list[Replica]) -> None:
    chance = random.Random(seed)
    asked = here.ask(1 + chance.randrange(3))
    async with trio.open_nursery() as nursery:
        for _ in range(STEPS):
            await trio.sleep(chance.choice((0.0, 0.1, 0.4)) * chance.uniform(0.5, 1.5))
            deed, one, which = chance.choice(DEEDS), chance.choice(group), chance.choice(asked)
            with suppress(Refusal):
                if deed == "ask":
                    asked += here.ask(1 + chance.randrange(2))
                elif deed == "review":
                    here.auth.review(which, chance.choice((ALICE, IVAN)), "APPROVED", "fine")
                elif deed == "deny":
                    here.auth.set_state(which, "DENIED", "no")
                elif deed == "freeze":
                    # Longer than a lease of one second.
                    nursery.start_soon(freeze, one, chance.uniform(1.5, 4.0))
                else:
                    number = signal.SIGKILL if deed == "kill" else signal.SIGTERM
                    await trio.to_thread.run_sync(one.end, number)
                    one.start()


async def perform(seed: int, sources: list[Path], folder: Path) -> list[str]:
    """What was untrue in the end."""
    async with world(folder) as here:
        names = ["ops/access-requests"]
        channels = [here.channel]
        for number in range(4):
            people = (here.alice, here.ivan, here.bob, here.bot)
            channels.append(here.chat.add_channel(here.team, f"c{number}", members=people))
            names.append(f"ops/c{number}")
        settings = here.settings(
            teleport__lease="1s", mattermost__recipients=str(names).replace("'", '"'),
            mattermost__max_posts_per_second="20",
        )  # fmt: skip
        with replicas(sources, settings, folder) as group:
            await here.watched(len(group))
            await play(seed, here, group)
            here.ask()
            with patient(120):
                while wrong := untrue(here, channels, {}):  # noqa: ASYNC110 - two servers change, and processes
                    await trio.sleep(0.1)
            return wrong


def seeds() -> list[range]:
    first, _, last = os.environ.get("SIDECAR_SEEDS", "0-19").partition("-")
    numbers = range(int(first), int(last or first) + 1)
    return [numbers[start : start + AT_ONCE] for start in range(0, len(numbers), AT_ONCE)]


async def play_all(numbers: range, sources: list[Path], folder: Path) -> None:
    failures: list[str] = []

    async def one(seed: int) -> None:
        place = folder / str(seed)
        place.mkdir()
        failures.extend(f"seed {seed}: {wrong}" for wrong in await perform(seed, sources, place))

    async with trio.open_nursery() as nursery:
        for seed in numbers:
            nursery.start_soon(one, seed)
    assert not failures, "\n".join(failures)


@pytest.mark.soak
@pytest.mark.parametrize("numbers", seeds(), ids=str)
async def test_three_replicas_that_freeze_at_random(numbers: range, tmp_path: Path) -> None:
    await play_all(numbers, [ROOT] * 3, tmp_path)


@pytest.mark.soak
@pytest.mark.skipif(OTHER is None, reason="SIDECAR_OTHER names the source of another version")
@pytest.mark.parametrize("numbers", seeds(), ids=str)
async def test_two_replicas_of_two_versions(numbers: range, tmp_path: Path) -> None:
    await play_all(numbers, [ROOT, Path(OTHER or "")], tmp_path)
