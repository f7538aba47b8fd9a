"""Two sidecars at once: every message once, and one carries on when the other dies."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import trio

from tests.deciding import LISTENING, linked, listening, says, tells
from tests.patience import patient
from tests.world import QUICK, World, process, running, world


async def test_two_sidecars_tell_everything_once(tmp_path: Path) -> None:
    """Both see every event; the record decides who writes."""
    async with world(tmp_path, watch_buffer=1000) as here:
        config = here.config(teleport__lease="1s")
        async with running(config, times=QUICK), running(config, times=QUICK):
            await here.watched(2)
            ids = here.ask(50)
            await here.told(ids)
            for request_id in ids:
                here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
            for request_id in ids:
                here.auth.review(request_id, "ivan@example.com", "APPROVED", "go")
            await here.told(ids, "APPROVED")
            for request_id in ids:
                await here.released(request_id)
        assert [len(here.replies(card)) for card in here.cards()] == [2] * len(ids)
        assert not set(here.lines.problems) - {"link.lost"}


async def test_the_other_one_takes_over_from_a_killed_holder(here: World) -> None:
    """It waits for the lease of the dead one, and no longer than ten seconds more."""
    with process(here.settings(teleport__lease="2s")) as first:
        await here.watched()
        hung = here.chat.hang(when="before", method="POST", path="/api/v4/posts", times=None)
        ids = here.ask(3)
        await here.chat.wait_for(lambda: hung.hits >= 3)
        # A slow machine repeats the first before it claims the last.
        await here.recorded(lambda: all("tm" in here.auth.plugin_data(request_id) for request_id in ids))
        owners = {json.loads(here.auth.plugin_data(request_id)["tm"])["owner"] for request_id in ids}
        assert len(owners) == 1
        async with running(here.config(teleport__lease="2s"), times=QUICK):
            await here.watched(2)
            await here.lines.heard("link.ready", link="mattermost")
            began = trio.current_time()
            first.kill()
            hung.stop()
            with patient(12) as waiting:
                await here.told(ids)
            print(f"took over {trio.current_time() - began:.1f} s after the kill, with a lease of 2 s")
            assert not waiting.cancelled_caught
            for request_id in ids:
                await here.released(request_id)


async def test_a_holder_that_was_frozen_writes_no_more(here: World) -> None:
    """Stopped for longer than its lease and continued: it finds that another took over, and posts nothing."""
    with process(here.settings(teleport__lease="1s")) as first:
        await here.watched()
        here.chat.hang(when="after", method="POST", path="/api/v4/posts")
        (request_id,) = here.ask()
        await here.told([request_id])
        first.send_signal(signal.SIGSTOP)
        async with running(here.config(teleport__lease="1s"), times=QUICK):
            await here.watched(2)
            here.auth.review(request_id, "alice@example.com", "DENIED", "no")
            await here.told([request_id], "DENIED")
            await here.released(request_id)
            posts = here.chat.calls["POST", "/api/v4/posts"]
            reads = here.auth.calls["GetPluginData"]
            first.send_signal(signal.SIGCONT)
            await here.recorded(lambda: here.auth.calls["GetPluginData"] > reads)
            first.terminate()
            assert await trio.to_thread.run_sync(first.wait) == 0
    await here.told([request_id], "DENIED")
    assert here.chat.calls["POST", "/api/v4/posts"] == posts
    assert len(here.replies(here.cards()[0])) == 1


async def test_a_question_gets_one_answer(here: World) -> None:
    """Both hear it and answer with the same key: Mattermost makes one post of it."""
    config = here.config(**linked(here))
    async with running(config, times=LISTENING), running(config, times=LISTENING):
        await listening(here, 2)
        here.chat.processing = 0.1
        for number in (1, 2, 3):
            made = here.chat.calls["POST", "/api/v4/posts"]
            assert "No open request" in await says(here, here.alice, "list")
            await here.chat.wait_for(
                lambda made=made: here.chat.calls["POST", "/api/v4/posts"] >= made + 1  # type: ignore[misc]
            )
            assert len(tells(here, here.alice)) == number
    assert len(tells(here, here.alice)) == 3
