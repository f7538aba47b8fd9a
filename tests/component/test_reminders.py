"""Reminders, whole: given once whatever restarts or is there twice, by no clock that jumps, to those they concern."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sidecar.simulator.mattermost.server import Post
from tests.deciding import DENY, LISTENING, ask, linked, listening
from tests.world import World, running, world

REACTIONS = "/api/v4/posts/ids/reactions"
SOON = {"reminders__after": "1s", "reminders__every": "1h", "reminders__most": "3"}


def reminders(here: World, card: Post) -> list[str]:
    return [one for one in here.replies(card) if "still waits for review" in one]


async def over(here: World, request_id: str, card: Post) -> list[str]:
    """The reminders in the thread once the request is decided and at rest."""
    here.chat.react(here.ivan, card, DENY)
    await here.told([request_id], "DENIED")
    await here.released(request_id)
    return reminders(here, card)


async def test_a_reminder_is_given_once_over_restarts(tmp_path: Path) -> None:
    """The second one by a process that never saw the first. Alice has reviewed, so only Ivan is mentioned."""
    async with world(tmp_path) as here:
        settings = linked(here) | SOON | {"reminders__every": "2s", "reminders__most": "2"}
        async with running(here.config(**settings), times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            here.auth.review(request_id, "alice@example.com", "APPROVED")
            await here.chat.wait_for(lambda: len(reminders(here, card)) == 1)
            await here.released(request_id)
        for _ in range(2):
            async with running(here.config(**settings), times=LISTENING):
                await here.chat.wait_for(lambda: len(reminders(here, card)) == 2)
                await here.released(request_id)
        async with running(here.config(**settings), times=LISTENING):
            first, second = await over(here, request_id, card)
        assert first == second
        assert first.startswith(
            "@ivan bob@example.com's request for dbadmin still waits for review (1 of 2). It expires"
        )


async def test_two_replicas_remind_once(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        config = here.config(**linked(here), **SOON)
        async with running(config, times=LISTENING), running(config, times=LISTENING):
            await listening(here, 2)
            request_id, card = await ask(here)
            await here.chat.wait_for(lambda: len(reminders(here, card)) == 1)
            assert len(await over(here, request_id, card)) == 1


async def test_whoever_is_on_it_puts_the_reminder_off(tmp_path: Path) -> None:
    """A standing emoji of a linked reviewer; what a stranger puts on a card says nothing."""
    async with world(tmp_path) as here, running(here.config(**linked(here), **SOON), times=LISTENING):
        await listening(here)
        (looked_at, card), (other, other_card) = await ask(here), await ask(here)
        here.chat.react(here.alice, card, "eyes")
        here.chat.react(here.bob, other_card, "eyes")
        reads = here.chat.calls["POST", REACTIONS]
        await here.chat.wait_for(
            lambda: here.chat.calls["POST", REACTIONS] >= reads + 2 and bool(reminders(here, other_card))
        )
        await here.released(other)
        assert await over(here, looked_at, card) == []


@pytest.mark.parametrize("ahead", [36_000, -36_000])
async def test_a_clock_that_jumps_brings_none_on(tmp_path: Path, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ten hours ahead nor back: the time that passed counts."""
    async with world(tmp_path) as here:
        soon = ahead < 0
        settings = linked(here) | SOON | ({} if soon else {"reminders__after": "1h"})
        async with running(here.config(**settings), times=LISTENING):
            await listening(here)
            request_id, card = await ask(here, expires_in=100_000.0)
            monkeypatch.setattr("sidecar.reconcile.visit.time", Clock(ahead))
            here.auth.review(request_id, "alice@example.com", "APPROVED")
            await here.chat.wait_for(lambda: any("approved" in one for one in here.replies(card)))
            await here.released(request_id)
            if soon:
                await here.chat.wait_for(lambda: len(reminders(here, card)) == 1)
            assert len(await over(here, request_id, card)) == int(soon)


class Clock:
    """The wall clock, so many seconds ahead."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self._ahead
