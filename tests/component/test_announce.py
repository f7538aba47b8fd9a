"""The main job, end to end: requests made on a real gRPC server become true messages on a real HTTP server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from tests.world import QUICK, field, running, world


async def test_a_request_is_announced_reviewed_and_closed(tmp_path: Path) -> None:
    """Bob asks, Alice and Ivan approve: one card that follows, two replies, two calls for the announcement."""
    async with world(tmp_path) as here, running(here.config()):
        await here.recorded(lambda: here.auth.watchers > 0)
        request_id = here.auth.create_request("bob@example.com", ["dbadmin"], reason="fix it")
        await here.shows("PENDING")
        await here.released(request_id)
        assert here.auth.calls["UpdatePluginData"] == 2
        assert here.auth.calls["GetPluginData"] == 1  # the cold start
        here.auth.review(request_id, "alice@example.com", "APPROVED", "ok by me")
        await here.chat.wait_for(lambda: "1 of 2" in field(here.cards()[0], "Reviews"))
        here.auth.review(request_id, "ivan@example.com", "APPROVED", "go ahead")
        await here.shows("APPROVED")
        await here.chat.wait_for(lambda: len(here.replies(here.cards()[0])) == 2)
        await here.released(request_id)
    (card,) = here.cards()
    assert card.message == f"`bob@example.com` asks for `dbadmin`: `fix it`\nAccess request {request_id}"
    about = "bob@example.com's request for dbadmin"
    assert here.replies(card) == [
        f"alice@example.com approved {about} (1 of 2).\n\n```\nok by me\n```",
        f"ivan@example.com approved {about} (2 of 2). The request is now APPROVED.\n\n```\ngo ahead\n```",
    ]


@pytest.mark.parametrize("behind", [0, 600])
async def test_a_delay_is_over_also_by_a_clock_that_is_behind(
    behind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Approved within the delay: nobody is told. Still open after it: announced, whatever our clock says."""
    monkeypatch.setattr("sidecar.reconcile.controller.time", Clock(behind))
    async with world(tmp_path) as here, running(here.config(announce__delay="1s"), times=QUICK):
        await here.watched()
        early, late = here.ask(2)
        started = trio.current_time()
        here.auth.review(early, "alice@example.com", "APPROVED", "fine")
        here.auth.review(early, "ivan@example.com", "APPROVED", "fine")
        await here.told([late])
        assert trio.current_time() - started > 0.9
        await here.released(late)
        assert early not in here.states()


class Clock:
    """The wall clock, so many seconds behind."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self, behind: int) -> None:
        self._behind = behind

    def time(self) -> float:
        return time.time() - self._behind
