"""A month of a large company in minutes: nothing grows with the number of requests that have come and gone."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.bench.child import Child, child, sidecar_command
from tests.world import QUICK, World, running, world

pytestmark = pytest.mark.soak

CURVE = os.environ.get("SIDECAR_SOAK_DATA")
REQUESTS = int(os.environ.get("SIDECAR_SOAK_REQUESTS", "50000"))
ROUND = 250
# Caches fill and the allocator finds its size; what comes after must be flat.
WARM_ROUNDS = 20
GROWTH_MB = 5.0
PEOPLE = ("alice@example.com", "ivan@example.com")


async def one_round(here: World, count: int) -> None:
    """Requests are made; a third is approved by two people, a third denied, a third left; then all are removed."""
    cards = len(here.channel.posts)
    ids = await trio.to_thread.run_sync(here.ask, count)
    await here.chat.wait_for(lambda: len(here.channel.posts) >= cards + count)
    for number, request_id in enumerate(ids):
        if number % 3 == 0:
            for author in PEOPLE:
                here.auth.review(request_id, author, "APPROVED", "ok")
        elif number % 3 == 1:
            here.auth.review(request_id, PEOPLE[0], "DENIED", "no")
    for request_id in ids:
        await here.recorded(partial(is_settled, here, request_id))
    for request_id in ids:
        here.auth.delete_request(request_id)
    for request_id in ids:
        await here.recorded(partial(is_done, here, request_id))


def is_settled(here: World, request_id: str) -> bool:
    """Whether the record is free and shows the request as it is."""
    record = json.loads(here.auth.plugin_data(request_id).get("tm") or '{"owner": "?", "seen": ["", 0]}')
    request = here.auth.request(request_id)
    return not record["owner"] and request is not None and record["seen"] == [request.state, len(request.reviews)]


def is_done(here: World, request_id: str) -> bool:
    return '"done":true' in here.auth.plugin_data(request_id).get("tm", "")


def sample(program: Child, requests: int) -> dict[str, float]:
    return {
        "requests": requests,
        "seconds": trio.current_time(),
        "rss_mb": round(program.rss_mb(), 1),
        "peak_mb": round(program.peak_mb(), 1),
        "threads": program.status("Threads"),
        "descriptors": program.descriptors(),
        "cpu_seconds": program.cpu_seconds(),
    }


def keep(curve: list[dict[str, float]]) -> None:
    if CURVE:
        Path(CURVE).write_text(json.dumps(curve))


async def test_heavy_traffic_leaves_nothing_behind(tmp_path: Path) -> None:
    """Memory, descriptors and threads of the process are flat. The curve goes to SIDECAR_SOAK_DATA where set."""
    curve: list[dict[str, float]] = []
    async with world(tmp_path) as here, child(sidecar_command(here.settings())) as program:
        await program.ready()
        # From an empty list nothing is concluded.
        here.ask()
        for number in range(REQUESTS // ROUND):
            await one_round(here, ROUND)
            curve.append(sample(program, (number + 1) * ROUND))
            print(curve[-1], flush=True)
            keep(curve)
        assert not [line for _, line in program.lines if line["event"] == "request.bug"]
    warm, last = curve[min(WARM_ROUNDS, len(curve) // 2)], curve[-1]
    assert last["rss_mb"] - warm["rss_mb"] <= GROWTH_MB
    assert last["threads"] <= warm["threads"] + 1
    assert last["descriptors"] <= warm["descriptors"] + 2


async def test_heavy_traffic_leaves_no_task_behind(tmp_path: Path) -> None:
    """The same in this loop, where tasks can be counted."""
    async with world(tmp_path) as here, running(here.config(), times=QUICK):
        await here.lines.heard("link.ready", link="teleport")
        here.ask()
        counts = []
        for _ in range(max(4, REQUESTS // ROUND // 10)):
            await one_round(here, ROUND)
            await trio.testing.wait_all_tasks_blocked()
            counts.append(trio.lowlevel.current_statistics().tasks_living)
        assert counts[-1] <= counts[0]
