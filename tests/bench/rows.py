"""The rows of the design's table of numbers: each plays one story in a fresh world, measured on the servers' side.

A time ends when the server has stored the post, half a round trip after the program sent it.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import trio

from sidecar.simulator.mattermost import Answer
from tests.bench import acts
from tests.bench.child import Child
from tests.bench.stage import Calls, Measure, Options, Stage, p50, staged, worst

Row = Callable[[Options], AsyncIterator[Measure]]

# Nobody is told twice within this long after the last card.
_PATIENCE = 120.0


async def announce(options: Options) -> AsyncIterator[Measure]:
    """A new request for two channels: how long, and how many calls; then two direct messages beside them."""
    for subject in options.subjects:
        for rtt in options.rtts_ms:
            async with staged(options, subject) as stage:
                two = stage.channels(2)
                stage.away(rtt)
                async with stage.started(two) as program:
                    await acts.ask_and_wait(stage, 1, 2)
                    await acts.quiet(stage)
                    calls, cpu = Calls(stage.here), program.cpu_seconds()
                    times = [await acts.ask_and_wait(stage, 1, 2) for _ in range(30)]
                    await acts.quiet(stage)
                    cost = program.cpu_seconds() - cpu
            measure = partial(Measure, "announce", rtt_ms=rtt, subject=subject)
            limit = 3.5 * rtt / 1000
            target = f"<= 1.5 REST + 2 gRPC round trips = {limit * 1000:.0f} ms" if rtt >= 20 else ""
            middle = p50(times)
            yield measure("k = 2, p50", middle * 1000, "ms", target=target, met=middle <= limit if target else None)
            yield measure("k = 2, worst of 30", worst(times) * 1000, "ms")
            yield measure("REST calls a request, k = 2", calls.rest() / 30, "", target="2", met=calls.rest() <= 60)
            yield measure("gRPC calls a request", calls.grpc() / 30, "", target="2", met=calls.grpc() <= 60)
            yield measure("CPU a request, one at a time", cost / 30 * 1000, "ms")


async def broadcast(options: Options) -> AsyncIterator[Measure]:
    """A hundred direct messages for one request."""
    for subject in options.subjects:
        for rtt in options.rtts_ms:
            async with staged(options, subject) as stage:
                names = stage.people(100)
                stage.away(rtt)
                async with stage.started(names):
                    cold, told_cold = await acts.broadcast_once(stage)
                    await acts.quiet(stage)
                    calls = Calls(stage.here)
                    warm, told = await acts.broadcast_once(stage)
            measure = partial(Measure, "100 DMs", rtt_ms=rtt, subject=subject)
            yield measure("cold", cold, "s")
            yield measure("told, cold", told_cold, "of 100")
            yield measure("warm", warm, "s", target="<= 2 s", met=warm <= 2 and told == 100)
            yield measure("REST calls, warm", calls.rest(), "", target="100", met=calls.rest() <= 100)


async def race(options: Options) -> AsyncIterator[Measure]:
    """The official plugin's TestRace: 16 requests, two recipients, two approvals each, all at once."""
    for subject in options.subjects:
        for rtt in options.rtts_ms:
            async with staged(options, subject) as stage:
                two = stage.channels(2)
                stage.away(rtt)
                async with stage.started(two):
                    await acts.ask_and_wait(stage, 1, 2)
                    await acts.quiet(stage)
                    calls = Calls(stage.here)
                    seconds, ended = await acts.race_once(stage, 16)
            measure = partial(Measure, "16 x 2 x 2 race", rtt_ms=rtt, subject=subject)
            met = seconds <= 2 and ended
            yield measure("until all is told", seconds, "s", target="<= 2 s", met=met if rtt <= 20 else None)
            yield measure("REST calls", calls.rest(), "", target="<= 160, aim 128", met=calls.rest() <= 160)
            yield measure("gRPC calls", calls.grpc(), "")


async def burst(options: Options) -> AsyncIterator[Measure]:
    """A thousand requests at once; the watch is dropped in the middle."""
    for subject in options.subjects:
        async with staged(options, subject) as stage:
            stage.away(1.0)
            async with stage.started() as program:
                await acts.ask_and_wait(stage, 1, 1)
                await acts.quiet(stage)
                calls, cpu = Calls(stage.here), program.cpu_seconds()
                began, before = trio.current_time(), stage.posts()
                await trio.to_thread.run_sync(stage.here.ask, 500)
                stage.here.auth.close_watchers("closed")
                await trio.to_thread.run_sync(stage.here.ask, 500)
                everything = await stage.until(partial(_reached, stage, before + 1000), _PATIENCE)
                seconds = trio.current_time() - began
                await acts.quiet(stage)
                told, twice = acts.told(stage)
                cost, peak = program.cpu_seconds() - cpu, program.peak_mb()
        measure = partial(Measure, "1,000 at once", rtt_ms=1.0, subject=subject)
        rate = told / seconds
        yield measure("rate", rate, "/s", target=">= 200 /s", met=everything and rate >= 200)
        yield measure("told", told - 1, "of 1000", target="1000", met=told == 1001)
        yield measure("told twice", twice, "", target="0", met=twice == 0)
        yield measure("REST calls", calls.rest(), "", target="1000", met=calls.rest() <= 1000)
        yield measure("gRPC calls", calls.grpc(), "")
        yield measure("CPU a request", cost, "ms")
        yield measure("peak memory", peak, "MB")


async def downtime(options: Options) -> AsyncIterator[Measure]:
    """A thousand requests made while the program is down; Mattermost's own limiter sets the pace."""
    count, per_second, burst_size = (300, 50.0, 50) if options.quick else (1000, 10.0, 100)
    for subject in options.subjects:
        async with staged(options, subject) as stage:
            stage.away(1.0)
            stage.here.ask(count)
            stage.here.chat.rate_limit(per_second, burst_size)
            began = trio.current_time()
            async with stage.started():
                everything = await stage.until(lambda: stage.posts() >= count, 2 * count / per_second + 20)
                seconds = trio.current_time() - began
                told, twice = acts.told(stage)
        ideal = (count - burst_size) / per_second
        measure = partial(Measure, f"{count} made while down", rtt_ms=1.0, subject=subject)
        yield measure("told", told, f"of {count}", target=str(count), met=everything and told == count)
        yield measure("told twice", twice, "", target="0", met=twice == 0)
        yield measure(
            "from exec", seconds, "s", target=f"the limiter alone: {ideal:.0f} s", met=seconds <= ideal * 1.1 + 5
        )


async def outage(options: Options) -> AsyncIterator[Measure]:
    """Mattermost answers 503, or 429, for a minute; 200 requests wait."""
    for subject in options.subjects:
        for how in ("503", "429"):
            async with staged(options, subject) as stage:
                stage.away(1.0)
                # At the configured pace of the product, 20 posts a second.
                async with stage.started(mattermost__max_posts_per_second="20"):
                    await acts.ask_and_wait(stage, 1, 1)
                    fault = None
                    if how == "503":
                        await stage.here.chat.down("503")
                    else:
                        busy = Answer(429, b"limit exceeded\n", (("Retry-After", "1"),))
                        fault = stage.here.chat.fail(answer=busy, times=None)
                    stage.here.ask(200)
                    await trio.sleep(10 if options.quick else 60)
                    if fault is not None:
                        fault.stop()
                    else:
                        await stage.here.chat.up()
                    began = trio.current_time()
                    everything = await stage.until(lambda: stage.posts() >= 201, 30)
                    seconds = trio.current_time() - began
                    await acts.quiet(stage)
                    told, twice = acts.told(stage)
            measure = partial(Measure, f"{how} for a minute, 200 wait", rtt_ms=1.0, subject=subject)
            met = everything and seconds <= 15
            yield measure("all told after its return", seconds, "s", target="<= 15 s", met=met)
            yield measure("told", told - 1, "of 200", target="200", met=told == 201)
            yield measure("told twice", twice, "", target="0", met=twice == 0)


async def kills(options: Options) -> AsyncIterator[Measure]:
    """SIGKILL at any instant of announcing and reviewing, with a short lease."""
    count = 20 if options.quick else 200
    chance = random.Random(9)
    async with staged(options) as stage:
        two = stage.channels(2)
        stage.away(4.0)
        for _ in range(count):
            async with stage.started(two, teleport__lease="1s"):
                (request_id,) = stage.here.ask()
                if chance.random() < 0.5:
                    stage.here.auth.review(request_id, "alice@example.com", "APPROVED", "ok")
                # From the event to the last save there are about six round trips.
                await trio.sleep(chance.uniform(0.0, 0.030))
        async with stage.started(two, teleport__lease="1s"):
            whole = await stage.until(lambda: acts.whole(stage, count), 60)
            await acts.quiet(stage)
        lost, twice = acts.lost_and_twice(stage)
    yield Measure("SIGKILL at any instant", "lost", lost, f"of {count}", target="0", met=lost == 0 and whole)
    yield Measure("SIGKILL at any instant", "messages twice", twice, "", target="0", met=twice == 0)


async def takeover(options: Options) -> AsyncIterator[Measure]:
    """Two replicas; the one that works on a request is killed between its claim and its post."""
    lease = 3 if options.quick else 30
    async with staged(options) as stage:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(stage.started(teleport__lease=f"{lease}s"))
            hung = stage.here.chat.hang(method="POST", path="/api/v4/posts")
            (request_id,) = stage.here.ask()
            await stage.here.chat.wait_for(lambda: hung.hits > 0)
            await stack.enter_async_context(stage.started(teleport__lease=f"{lease}s"))
            first.process.kill()
            began = trio.current_time()
            told = await stage.until(lambda: request_id in stage.here.states(), 2 * lease + 20)
            seconds = trio.current_time() - began
        measure = partial(Measure, "two replicas, one killed")
    target = f"<= {lease + 10} s (lease {lease} s)"
    yield measure("taken over after", seconds, "s", target=target, met=told and seconds <= lease + 10)


async def reaction(options: Options) -> AsyncIterator[Measure]:
    """From a reaction to the submitted review, mode `reviewer`."""
    for rtt in options.rtts_ms:
        async with staged(options) as stage:
            settings = _deciding(stage)
            stage.away(rtt)
            async with stage.started(**settings):
                await acts.react_once(stage)
                await acts.quiet(stage)
                calls = Calls(stage.here)
                times = [await acts.react_once(stage) for _ in range(10)]
        limit = 4 * rtt / 1000
        target = f"<= 2 REST + 2 gRPC round trips = {limit * 1000:.0f} ms" if rtt >= 20 else ""
        middle = p50(times)
        measure = partial(Measure, "reaction to review", rtt_ms=rtt)
        yield measure("REST calls a decision, with three posts", calls.rest() / 10, "")
        yield measure("gRPC calls a decision", calls.grpc() / 10, "")
        yield measure("p50", middle * 1000, "ms", target=target, met=middle <= limit if target else None)
        yield measure("worst of 10", worst(times) * 1000, "ms")


async def deaf(options: Options) -> AsyncIterator[Measure]:
    """A peer that hangs or hears nothing more is noticed; four sidecars, one for each way."""
    ways: dict[str, tuple[str, Callable[[Stage], None]]] = {
        "Auth Service hangs": ("teleport", lambda stage: stage.here.auth.faults.hang()),
        "Mattermost hangs": ("mattermost", _hang_rest),
        "websocket is deaf": ("mattermost", lambda stage: stage.here.chat.deafen()),
        "websocket's session ended": ("mattermost", lambda stage: stage.here.chat.deafen(how="session")),
    }
    found: dict[str, float] = {}

    async def one(name: str, link: str, strike: Callable[[Stage], None]) -> None:
        async with staged(options) as stage:
            settings = _deciding(stage) if name.startswith("websocket") else {}
            async with stage.started(**settings) as program:
                strike(stage)
                began = trio.current_time()
                with trio.move_on_after(60):
                    await program.logged("link.lost", link=link)
                found[name] = trio.current_time() - began

    async with trio.open_nursery() as nursery:
        for name, (link, strike) in ways.items():
            nursery.start_soon(one, name, link, strike)
    for name, seconds in found.items():
        yield Measure("hung or deaf peer", name, seconds, "s", target="<= 30 s", met=seconds <= 30)


async def start(options: Options) -> AsyncIterator[Measure]:
    """From exec to ready by phase, memory and CPU when idle, and the way out."""
    for subject in options.subjects:
        phases: dict[str, list[float]] = {}
        idle: dict[str, list[float]] = {}
        for turn in range(3 if options.quick else 7):
            async with staged(options, subject) as stage, stage.started() as program:
                if subject == "sidecar":
                    await _phases(program, phases)
                else:
                    phases.setdefault("exec to ready", []).append(trio.current_time())
                await _idle(program, idle, seconds=10.0 if turn == 0 else 0.5)
        if subject == "official":
            phases.clear()
        await _bare(phases)
        measure = partial(Measure, "start and idle", subject=subject)
        asked = {"exec to ready": ("<= 0.5 s", 0.5), "idle memory": ("<= 64 MB", 64.0)}
        asked |= {"idle CPU": ("< 0.5 %", 0.5), "SIGTERM to exit": ("<= 1 s", 1.0)}
        units = {"idle memory": "MB", "peak memory": "MB", "idle CPU": "%", "threads": "", "descriptors": ""}
        for what, values in (phases | idle).items():
            target, limit = asked.get(what, ("", 0.0))
            value = p50(values)
            met = value <= limit if target else None
            yield measure(what, value, units.get(what, "s"), target=target, met=met)


async def ended(options: Options) -> AsyncIterator[Measure]:
    """Memory after ten thousand requests that came and went."""
    rounds, each = (4, 250) if options.quick else (20, 500)
    async with staged(options) as stage, stage.started() as program:
        # One stays: from an empty list nothing is concluded.
        await acts.ask_and_wait(stage, 1, 1)
        await acts.come_and_go(stage, each)
        before = program.rss_mb()
        curve = [before]
        for _ in range(rounds):
            await acts.come_and_go(stage, each)
            curve.append(program.rss_mb())
        threads, descriptors = program.status("Threads"), program.descriptors()
    grown = curve[-1] - before
    measure = partial(Measure, f"{rounds * each} requests come and go")
    yield measure("memory before", before, "MB")
    yield measure("memory afterwards", curve[-1], "MB", target="<= +5 MB", met=grown <= 5)
    yield measure("threads", threads, "")
    yield measure("descriptors", descriptors, "")


ROWS: dict[str, Row] = {
    row.__name__: row
    for row in (start, announce, broadcast, race, burst, downtime, outage, kills, takeover, reaction, deaf, ended)
}


# -- pieces --------------------------------------------------------------------------------------------------------


def _reached(stage: Stage, posts: int) -> bool:
    return stage.posts() >= posts


def _hang_rest(stage: Stage) -> None:
    stage.here.chat.hang(times=None)


def _deciding(stage: Stage) -> dict[str, str]:
    """Settings by which Alice decides with her own credentials."""
    here = stage.here
    identities = here.folder / "reviewers"
    identities.mkdir()
    files = here.auth.write_credentials(here.folder, "alice@example.com", name="alice@example.com")
    for path in (files.crt, files.key):
        path.rename(identities / path.name)
    return {
        "reviews__submit_as": "reviewer",
        "reviews__identities": str(identities),
        "reviewers__alice": "alice@example.com",
    }


async def _phases(program: Child, phases: dict[str, list[float]]) -> None:
    marks = {
        "exec to configuration read": await program.logged("config.read"),
        "exec to endpoints": await program.logged("endpoints.listening"),
        "exec to Mattermost ready": await program.logged("link.ready", link="mattermost"),
        "exec to Teleport ready": await program.logged("link.ready", link="teleport"),
    }
    marks["exec to ready"] = max(marks.values())
    for name, when in marks.items():
        phases.setdefault(name, []).append(when - program.began)


async def _idle(program: Child, found: dict[str, list[float]], *, seconds: float) -> None:
    await trio.sleep(1.0)
    cpu, began = program.cpu_seconds(), trio.current_time()
    await trio.sleep(seconds)
    if seconds > 1:
        share = (program.cpu_seconds() - cpu) / (trio.current_time() - began)
        found.setdefault("idle CPU", []).append(share * 100)
    found.setdefault("idle memory", []).append(program.rss_mb())
    found.setdefault("peak memory", []).append(program.peak_mb())
    found.setdefault("threads", []).append(program.status("Threads"))
    found.setdefault("descriptors", []).append(program.descriptors())
    began = trio.current_time()
    program.process.terminate()
    await program.process.wait()
    found.setdefault("SIGTERM to exit", []).append(trio.current_time() - began)


async def _bare(phases: dict[str, list[float]]) -> None:
    """Floors on this machine: an interpreter alone, and with the libraries that we cannot do without."""
    import sys

    for name, code in (
        ("floor: interpreter", "pass"),
        ("floor: imports of libraries", "import trio, grpc, httpx, trio_websocket, msgspec, prometheus_client"),
        ("all our imports", "import sidecar.cli, sidecar.app"),
    ):
        for _ in range(5):
            began = trio.current_time()
            await trio.run_process([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
            phases.setdefault(name, []).append(trio.current_time() - began)
