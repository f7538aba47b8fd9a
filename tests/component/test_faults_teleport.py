"""Every way in which the link to Teleport fails: back to a watch and a list, nothing lost, and /readyz honest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import grpc
import msgspec
import pytest
import trio

from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST
from tests.world import QUICK, Running, World, running, world

IMPATIENT = msgspec.structs.replace(QUICK, init=0.3, ping_limit=0.3, list_every=0.3, silent=0.2)


async def teleport_is(sidecar: Running, state: str) -> bool:
    body = await sidecar.readiness()
    assert body["ready"] is (body["links"]["teleport"]["state"] == body["links"]["mattermost"]["state"] == "ready")
    return bool(body["links"]["teleport"]["state"] == state)


async def both_ready(here: World, times: int = 1) -> None:
    await here.lines.heard("link.ready", times, link="teleport")
    await here.lines.heard("link.ready", link="mattermost")


@pytest.mark.parametrize("how", ["closed", "overflow", "ok", "unavailable"])
@pytest.mark.parametrize("version", ["7.0.0-dev", "16.0.0-dev"])
async def test_a_watch_that_ends_comes_back_and_lists(
    how: Literal["closed", "overflow", "ok", "unavailable"], version: str, tmp_path: Path
) -> None:
    """What was made, changed and removed between two watches is told all the same."""
    async with world(tmp_path, version=version) as here, running(here.config(), times=QUICK) as sidecar:
        await both_ready(here)
        assert await teleport_is(sidecar, "ready")
        denied, removed, waits = here.ask(3)
        await here.told([denied, removed, waits])
        await here.released(removed)
        # In one go, without a chance for the sidecar to be told of any of it.
        here.auth.close_watchers(how)
        here.auth.set_state(denied, "DENIED")
        here.auth.delete_request(removed)
        (new,) = here.ask()
        await here.told([denied], "DENIED")
        await here.told([new, waits])
        await here.told([removed], "REMOVED")
        await here.lines.heard("link.lost", link="teleport")
        await here.lines.heard("link.ready", 2, link="teleport")
        assert await teleport_is(sidecar, "ready")


async def test_a_watch_without_init_is_given_up(here: World) -> None:
    """An Auth Service that accepts the watch and never begins it is no working link."""
    here.auth.faults.hang("WatchEvents")
    async with running(here.config(), times=IMPATIENT) as sidecar:
        await here.lines.heard("link.lost", link="teleport", reason="no_init")
        assert await teleport_is(sidecar, "lost")
        ids = here.ask()
        here.auth.faults.release()
        await here.told(ids)
        await both_ready(here)
        assert await teleport_is(sidecar, "ready")


async def test_a_watch_that_silently_stopped_is_found_by_the_next_list(here: World) -> None:
    """It still looks open; but what the list shows as new never comes over it."""
    async with running(here.config(), times=IMPATIENT):
        await both_ready(here)
        here.auth.stall_watchers()
        ids = here.ask()
        await here.told(ids)
        await here.lines.heard("link.lost", link="teleport", reason="silent")
        await both_ready(here, 2)
        (later,) = here.ask()
        await here.told([*ids, later])


async def test_a_working_watch_is_not_taken_for_a_silent_one(here: World) -> None:
    """Lists and events that cross are no reason to reconnect."""
    async with running(here.config(), times=IMPATIENT):
        await both_ready(here)
        for _ in range(5):
            lists = here.auth.calls["GetAccessRequests"]
            await here.told(here.ask(3))
            await here.recorded(lambda before=lists: here.auth.calls["GetAccessRequests"] > before)  # type: ignore[misc]
        assert not here.lines.of("link.lost")


async def test_an_auth_service_that_restarts(here: World) -> None:
    """Requests made by others while it is away for us are found when it is back; said once, not ready meanwhile."""
    async with running(here.config(), times=QUICK) as sidecar:
        await both_ready(here)
        first = here.ask()
        await here.told(first)
        await here.released(first[0])
        await trio.to_thread.run_sync(here.auth.stop)
        await here.lines.heard("link.lost", link="teleport")
        assert await teleport_is(sidecar, "lost")
        here.auth.set_state(first[0], "APPROVED")
        later = here.ask(3)
        await trio.to_thread.run_sync(here.auth.start)
        await here.told(later)
        await here.told(first, "APPROVED")
        await both_ready(here, 2)
        assert await teleport_is(sidecar, "ready")


async def test_a_hung_auth_service_is_found_by_ping(here: World) -> None:
    """The connection stays open and nothing comes over it: only a question with a deadline finds out."""
    async with running(here.config(), times=IMPATIENT) as sidecar:
        await both_ready(here)
        here.auth.faults.hang()
        lost = await here.lines.heard("link.lost", link="teleport")
        assert lost["reason"] == "deaf"
        assert await teleport_is(sidecar, "lost")
        ids = here.ask()
        here.auth.faults.release()
        await here.told(ids)
        await both_ready(here, 2)


async def test_a_peer_that_has_not_answered_for_long_is_not_ready_whatever_it_said_last(here: World) -> None:
    """Between two pings readiness ages: `stale` is shorter here than the interval of the pings."""
    times = msgspec.structs.replace(QUICK, ping_every=60.0, ask_every=60.0, stale=0.0)
    async with running(here.config(), times=times) as sidecar:
        await both_ready(here)
        body = await sidecar.readiness()
        assert not body["ready"]
        assert {link["state"] for link in body["links"].values()} == {"lost"}


async def test_a_refused_watch_is_one_error_with_the_fix_and_not_hammered(here: World) -> None:
    """PERMISSION_DENIED is no outage: said once as an error, and tried again when the credentials change."""
    here.auth.add_role("access-plugin", rules={PLUGIN_DATA: ("read", "update")})
    async with running(here.config(), times=QUICK) as sidecar:
        refused = await here.lines.heard("link.refused", link="teleport")
        assert refused["levelno"] == logging.ERROR
        assert "verbs: [list, read]" in refused["detail"]
        assert await teleport_is(sidecar, "refused")
        watches = here.auth.calls["WatchEvents"]
        here.auth.add_role("access-plugin", rules={REQUEST: ("list", "read"), PLUGIN_DATA: ("update",)})
        ids = here.ask()
        assert here.auth.calls["WatchEvents"] == watches == 1
        here.auth.write_credentials(here.folder, "access-plugin")
        await here.told(ids)
        assert len(here.lines.of("link.refused")) == 1


@pytest.mark.parametrize("method", ["UpdatePluginData", "GetPluginData", "GetAccessRequests", "Ping"])
async def test_any_call_may_fail_or_lose_its_answer(method: str, tmp_path: Path) -> None:
    """UNAVAILABLE, a deadline, a lost answer, contention: every call of the main job is made good."""
    async with world(tmp_path) as here:
        here.auth.faults.fail(method, grpc.StatusCode.UNAVAILABLE, "transport is closing")
        here.auth.faults.lose_answer(method)
        if method == "UpdatePluginData":
            here.auth.faults.fail(
                method, grpc.StatusCode.FAILED_PRECONDITION, "too many concurrent writes to plugin data x"
            )
            here.auth.faults.lose_answer(method)
        async with running(here.config(), times=QUICK):
            ids = here.ask(2)
            await here.told(ids)
            for request_id in ids:
                here.auth.review(request_id, "alice@example.com", "DENIED", "no")
            await here.told(ids, "DENIED")
            for request_id in ids:
                await here.released(request_id)
    assert [len(here.replies(card)) for card in here.cards()] == [1, 1]


async def test_records_that_cannot_be_listed_do_not_stop_the_rest(tmp_path: Path) -> None:
    """P1: more plugin data than fits into one message, or a server that takes too long for it."""
    with trio.fail_after(8):
        async with world(tmp_path) as here:
            (request_id,) = here.ask()
            words = "CLIENT: Received message larger than max (300000000 vs. 268435456)"
            here.auth.faults.fail("GetPluginData", grpc.StatusCode.RESOURCE_EXHAUSTED, words, times=100_000)
            async with running(here.config(), times=QUICK) as sidecar:
                await here.told([request_id])
                await both_ready(here)
                assert await teleport_is(sidecar, "ready")
                assert here.lines.problems == ["records.refused"]


async def test_a_refusal_that_is_over_is_forgotten(tmp_path: Path) -> None:
    """P7: our role may write again, but there is nothing to write."""
    with trio.fail_after(8):
        async with world(tmp_path) as here, running(here.config(), times=IMPATIENT) as sidecar:
            await both_ready(here)
            words = 'access denied to perform action "update" on "access_plugin_data"'
            here.auth.faults.fail("UpdatePluginData", grpc.StatusCode.PERMISSION_DENIED, words, times=1000)
            (request_id,) = here.ask()
            await here.lines.heard("link.refused")
            assert not await teleport_is(sidecar, "ready")
            here.auth.delete_request(request_id)
            here.auth.faults.clear()
            await both_ready(here, 2)
            assert await teleport_is(sidecar, "ready")


async def test_a_store_that_takes_no_record_is_no_working_link(here: World) -> None:
    """The watch is well and pings are answered; but nobody is told of anything."""
    async with running(here.config(), times=QUICK) as sidecar:
        await both_ready(here)
        here.auth.faults.fail("UpdatePluginData", grpc.StatusCode.UNKNOWN, "database or disk is full", times=10**6)
        ids = here.ask(8)
        await here.lines.heard("request.stuck", 8)
        body = await sidecar.readiness()
        assert body["ready"] is False
        assert body["links"]["teleport"]["detail"] == "writes fail"
        metrics = await sidecar.metrics()
        assert metrics['link_up{link="teleport"}'] == 0
        assert metrics["requests_stuck"] == 8
        here.auth.faults.clear()
        await here.told(ids)
        for one in ids:
            await here.released(one)
        assert (await sidecar.metrics())["requests_stuck"] == 0
