"""How it starts, waits, stops and exits; what it leaves behind; and how it logs."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from sidecar import app
from sidecar.times import USUAL
from tests.world import QUICK, World, process, running, world

POSTS = "/api/v4/posts"


async def ended(child: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the lines of the log; each must be one JSON object."""
    _, errors = await trio.to_thread.run_sync(child.communicate)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert all({"ts", "level", "event"} <= line.keys() for line in lines)
    assert not any("traceback" in line for line in lines)
    return child.returncode, lines


async def at_work(here: World) -> None:
    """Return when the sidecar has claimed a request and waits for Mattermost to take the card."""
    hung = here.chat.hang(when="before", method="POST", path=POSTS, times=None)
    here.ask()
    await here.chat.wait_for(lambda: hung.hits > 0)


async def said(child: subprocess.Popen[str], event: str) -> list[dict[str, Any]]:
    """The lines of a process up to the first one of an event."""
    assert child.stderr is not None
    lines: list[dict[str, Any]] = []
    while not lines or lines[-1]["event"] != event:
        text = await trio.to_thread.run_sync(child.stderr.readline)
        assert text, f"it ended without {event}"
        lines.append(json.loads(text))
    return lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_sidecar(number: int, here: World) -> None:
    """Exit code 0, and a log whose every line is one event."""
    with process(here.settings()) as child:
        here.ask()
        before = await said(child, "request.announced")
        child.send_signal(number)
        code, lines = await ended(child)
    lines = [*before, *lines]
    events = [line["event"] for line in lines]
    assert code == 0
    assert events[0] == "config.read"
    assert events[-2:] == ["process.stopping", "process.stopped"]
    assert lines[-1]["complete"]
    assert here.bot.token not in json.dumps(lines)


async def test_a_signal_lets_what_is_being_written_finish(here: World) -> None:
    """The card is made and recorded after the signal, and the record is nobody's."""
    with process(here.settings()) as child:
        late = here.chat.late(1.0, when="before", method="POST", path=POSTS)
        (request_id,) = here.ask()
        await here.chat.wait_for(lambda: late.hits)
        child.terminate()
        code, lines = await ended(child)
    assert (code, lines[-1]["complete"]) == (0, True)
    await here.told([request_id])
    assert '"owner":""' in here.auth.plugin_data(request_id)["tm"]
    assert here.cards()[0].id in here.auth.plugin_data(request_id)["tm"]


async def test_a_stop_while_mattermost_hangs(tmp_path: Path) -> None:
    """It waits for the writes as long as a container is given, not for ever; the next one looks what became of them."""
    assert USUAL.drain < 9
    async with world(tmp_path) as here:
        async with running(here.config(teleport__lease="3s"), times=msgspec.structs.replace(QUICK, drain=0.3)):
            await at_work(here)
        assert not (await here.lines.heard("process.stopped"))["complete"]
        here.chat.clear_faults()
        async with running(here.config(), times=QUICK):
            (request_id,) = (request.id for request in here.auth.requests())
            await here.told([request_id])
            await here.released(request_id)


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_second_signal_ends_it_at_once(second: int, code: int, here: World) -> None:
    """Whoever asks twice does not want to wait."""
    with process(here.settings()) as child:
        await at_work(here)
        child.terminate()
        assert child.stderr is not None
        # The first must have been taken, else the two are one.
        lines = [await trio.to_thread.run_sync(child.stderr.readline)]
        while "process.stopping" not in lines[-1]:
            lines.append(await trio.to_thread.run_sync(child.stderr.readline))
        child.send_signal(second)
        assert (await ended(child))[0] == code


async def test_started_while_teleport_is_away(here: World) -> None:
    """One line, then patience; as soon as it is there, all is told."""
    ids = here.ask(2)
    await trio.to_thread.run_sync(here.auth.stop)
    async with running(here.config(), times=QUICK) as sidecar:
        await here.lines.heard("link.lost", 4, level=0, link="teleport")
        assert not (await sidecar.readiness())["ready"]
        assert len(here.lines.of("link.lost")) == 1
        await trio.to_thread.run_sync(here.auth.start)
        await here.told(ids)
    assert here.lines.problems == ["link.lost"]


async def test_started_while_mattermost_is_away(here: World) -> None:
    """Nothing is claimed that cannot be posted."""
    await here.chat.down("refuse")
    ids = here.ask(2)
    async with running(here.config(), times=QUICK) as sidecar:
        await here.lines.heard("link.lost", 4, level=0, link="mattermost")
        assert not (await sidecar.readiness())["ready"]
        assert here.auth.calls["UpdatePluginData"] == 0
        await here.chat.up()
        await here.told(ids)
    assert here.lines.problems == ["link.lost"]


async def test_started_with_a_bad_token(here: World) -> None:
    """One error with the fix; the good token is picked up from the file."""
    here.token_file.write_text("x" * 26)
    ids = here.ask()
    async with running(here.config(), times=QUICK):
        refused = await here.lines.heard("link.refused", link="mattermost")
        assert "x" * 26 not in str(refused)
        here.token_file.write_text(here.bot.token)
        await here.told(ids)
    assert here.lines.problems == ["link.refused"]


@pytest.mark.parametrize("peer", ["teleport", "mattermost"])
async def test_fail_fast_exits_3_on_a_refusal(peer: str, here: World) -> None:
    """For those who want the official plugin's way: the fix is in the last error line."""
    if peer == "mattermost":
        here.token_file.write_text("x" * 26)
    else:
        here.auth.add_role("access-plugin", rules={})
    with process(here.settings(), "--fail-fast") as child:
        code, lines = await ended(child)
    assert code == 3
    refused = [line for line in lines if line["event"] == "link.refused"]
    assert [line["link"] for line in refused] == [peer]


async def test_fail_fast_waits_for_a_peer_that_is_away(here: World) -> None:
    """Being away is no refusal: a pod may start before the service that it needs."""
    await here.chat.down("refuse")
    await trio.to_thread.run_sync(here.auth.stop)
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        await nursery.start(partial(app.run, here.config(), fail_fast=True, stop=stop, times=QUICK))
        await here.lines.heard("link.lost", 3, level=0, link="teleport")
        await here.lines.heard("link.lost", 3, level=0, link="mattermost")
        await here.chat.up()
        await trio.to_thread.run_sync(here.auth.start)
        await here.lines.heard("link.ready", link="teleport")
        await here.lines.heard("link.ready", link="mattermost")
        stop.set()


async def test_nothing_is_left_when_it_has_returned(here: World) -> None:
    """No task, no thread, no socket; also when it was stopped in the middle of work."""
    before = set(threading.enumerate())
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with running(here.config(), times=QUICK):
        ids = here.ask(20)
        await here.told(ids[:1])
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith(("simulator-auth", "Trio thread")):
            await trio.to_thread.run_sync(partial(thread.join, 5))
            assert not thread.is_alive(), thread.name
    await here.recorded(lambda: here.auth.watchers == 0)
    await here.chat.wait_for(lambda: here.chat.connections == 0)
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living <= tasks
    gc.collect()


async def test_a_clock_that_is_ahead_costs_no_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our clock each request is over already, by Teleport's it is not: it is looked at now and then."""
    monkeypatch.setattr("sidecar.reconcile.followed.time", SimpleNamespace(time=lambda: time.time() + 600))
    async with world(tmp_path) as here, running(here.config()):
        ids = []
        before = 0
        for _ in range(20):
            (request_id,) = here.ask(expires_in=300)
            await here.told([request_id])
            await here.released(request_id)
            before = before or here.auth.calls.total()
            ids.append(request_id)
        # A claim and a save, and a Ping now and then.
        assert here.auth.calls.total() - before < 3 * len(ids)


async def test_a_stock_cluster_by_its_address_starts_without_a_warning(here: World) -> None:
    """Its certificate names no address, as it ever was: whoever reads warnings must not meet one at each start."""
    async with running(here.config(), times=QUICK):
        await here.lines.heard("link.ready", link="teleport")
        await here.lines.heard("link.ready", link="mattermost")
        assert not here.lines.of("preflight.warned")
        assert here.lines.problems == []
