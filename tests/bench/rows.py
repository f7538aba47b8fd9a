"""The rows of the design's table of numbers: each plays one story in a fresh world, measured on the servers' side.

A time ends when the server has stored the post, half a round trip after the program sent it. Where a program loses
requests there is no time, and the row says how many it told.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

import httpx
import trio

from sidecar.errors import UnreadableAnswer
from sidecar.mattermost.codec import decode_posts
from sidecar.mattermost.transport import MAX_ANSWER_BYTES
from sidecar.simulator.mattermost.server import Answer
from tests.bench import acts, real
from tests.bench.child import ROOT, Child
from tests.bench.stage import Calls, Measure, Options, Stage, Turn, p50, staged, worst

# Who has posted nothing for so long has lost what is missing: the sidecar's own longest pause is shorter.
_STALL = 20.0


@dataclass(frozen=True)
class Row:
    """A story, and how long one turn of it may take: a benchmark never hangs.

    `distances`: it is played at each distance that the command line names. `official`: by the official plugin, too.
    `is_possible`: whether there is all that it needs; else it has no turn.
    """

    play: Callable[[Turn], AsyncIterator[Measure]]
    seconds: float
    distances: bool = False
    official: bool = True
    is_possible: Callable[[Options], bool] = lambda _options: True

    @property
    def name(self) -> str:
        return self.play.__name__

    def turns(self, options: Options) -> list[Turn]:
        if not self.is_possible(options):
            return []
        with_official = self.official and options.official is not None
        return [
            Turn(self.name, options, subject, rtt)
            for subject in (("sidecar", "official") if with_official else ("sidecar",))
            for rtt in (options.rtts_ms if self.distances else (0.0,))
        ]


async def start(turn: Turn) -> AsyncIterator[Measure]:
    """From exec to ready by phase, memory and CPU when idle, and the way out."""
    phases: dict[str, list[float]] = {}
    idle: dict[str, list[float]] = {}
    for again in range(3 if turn.quick else 7):
        async with staged(turn) as stage, stage.started() as program:
            # The official plugin does not say when it is ready; it is when it watches.
            watching = time.time() - program.began
            if turn.subject == "sidecar":
                await _phases(program, phases)
            else:
                phases.setdefault("exec to ready", []).append(watching)
            await _idle(program, idle, seconds=10.0 if again == 0 else 0.5)
    if turn.subject == "sidecar":
        await _bare(phases)
    asked = {"exec to ready": ("<= 0.5 s", 0.5), "idle memory": ("<= 64 MB", 64.0)}
    asked |= {"idle CPU": ("< 0.5 %", 0.5), "SIGTERM to exit": ("<= 1 s", 1.0)}
    units = {"idle memory": "MB", "peak memory": "MB", "idle CPU": "%", "threads": "", "descriptors": ""}
    for what, values in (phases | idle).items():
        target, limit = asked.get(what, ("", 0.0))
        value = p50(values)
        yield turn.measure(what, value, units.get(what, "s"), target=target, met=value <= limit)


async def announce(turn: Turn) -> AsyncIterator[Measure]:
    """A new request for two channels: how long, and how many calls."""
    times: list[float] = []
    async with staged(turn) as stage, stage.started(stage.channels(2)) as program:
        await acts.ask_and_wait(stage, 1, 2)
        await acts.quiet(stage)
        calls, cpu = Calls(stage.here), program.cpu_seconds()
        while len(times) < 30 and (seconds := await acts.ask_and_wait(stage, 1, 2)) is not None:
            times.append(seconds)
        await acts.quiet(stage)
        cost = program.cpu_seconds() - cpu
    count = max(1, len(times))
    rtt = turn.rtt_ms
    measure = partial(stage.measure, note="" if len(times) == 30 else f"{len(times)} of 30 told")
    target = "<= 1.5 REST + 2 gRPC round trips" if rtt >= 20 else ""
    middle = p50(times) * 1000
    yield measure("k = 2, p50", middle, "ms", target=target, met=middle <= 3.5 * rtt)
    yield measure("k = 2, worst of 30", worst(times) * 1000, "ms")
    yield measure(
        "REST calls a request, k = 2", calls.rest() / count, "REST", target="2", met=calls.rest() <= 2 * count
    )
    yield measure("gRPC calls a request", calls.grpc() / count, "gRPC", target="2", met=calls.grpc() <= 2 * count)
    yield measure("CPU a request, one at a time", cost / count * 1000, "ms")


async def broadcast(turn: Turn) -> AsyncIterator[Measure]:
    """A hundred direct messages for one request, by a program that has met nobody yet, and then once more."""
    async with staged(turn) as stage, stage.started(stage.people(100)):
        cold, told_cold = await acts.broadcast_once(stage)
        await acts.quiet(stage)
        calls = Calls(stage.here)
        warm, told = await acts.broadcast_once(stage)
    yield stage.measure("cold", cold, "s", note=_of(told_cold, 100))
    yield stage.measure("warm", warm, "s", target="<= 2 s", met=warm is not None and warm <= 2, note=_of(told, 100))
    yield stage.measure("REST calls, warm", calls.rest(), "REST", target="100", met=calls.rest() <= 100)


async def race(turn: Turn) -> AsyncIterator[Measure]:
    """The official plugin's TestRace: 16 requests, two recipients, two approvals each, all at once."""
    async with staged(turn) as stage, stage.started(stage.channels(2)):
        await acts.ask_and_wait(stage, 1, 2)
        await acts.quiet(stage)
        calls = Calls(stage.here)
        seconds, told = await acts.race_once(stage, 16)
    met = seconds is not None and seconds <= 2
    yield stage.measure("until all is told", seconds, "s", target="<= 2 s", met=met, note=_of(told, 16))
    yield stage.measure("REST calls", calls.rest(), "REST", target="<= 160, aim 128", met=calls.rest() <= 160)
    yield stage.measure("gRPC calls", calls.grpc(), "gRPC")


async def burst(turn: Turn) -> AsyncIterator[Measure]:
    """A thousand requests at once; the watch is dropped in the middle.

    It is the kindest drop: a lost connection, after which the official plugin watches again, and a queue as long as
    that of Teleport 16. Of "watcher closed" or of an overflow of the 64 that older ones queue, that plugin exits.
    """
    async with staged(turn, watch_buffer=1024) as stage:
        stage.away(1.0)
        async with stage.started() as program:
            await acts.ask_and_wait(stage, 1, 1)
            await acts.quiet(stage)
            calls, cpu = Calls(stage.here), program.cpu_seconds()
            (before, _), began = acts.told(stage), trio.current_time()
            await trio.to_thread.run_sync(stage.here.ask, 500)
            stage.here.auth.close_watchers("unavailable")
            await trio.to_thread.run_sync(stage.here.ask, 500)
            everything = await stage.until(lambda: stage.posts() >= before + 1000, 120, stall=_STALL)
            seconds = trio.current_time() - began
            await acts.quiet(stage)
            told, twice = acts.told(stage)
            cost, peak = program.cpu_seconds() - cpu, program.peak_mb()
    told -= before
    rate = told / seconds
    yield stage.measure("rate", rate if everything else None, "/s", target=">= 200 /s", met=rate >= 200)
    yield stage.measure("told", told, "of 1000", target="all", met=told == 1000)
    yield stage.measure("told twice", twice, "twice", target="0 twice", met=twice == 0)
    yield stage.measure("REST calls", calls.rest(), "REST", target="1000", met=calls.rest() <= 1000)
    yield stage.measure("gRPC calls", calls.grpc(), "gRPC")
    yield stage.measure("CPU a request", cost if everything else None, "ms")
    yield stage.measure("peak memory", peak, "MB")


async def downtime(turn: Turn) -> AsyncIterator[Measure]:
    """A thousand requests made while the program is down; Mattermost's own limiter sets the pace."""
    count, per_second, burst_size = (300, 50.0, 50) if turn.quick else (1000, 10.0, 100)
    ideal = (count - burst_size) / per_second
    async with staged(turn) as stage:
        stage.away(1.0)
        stage.here.ask(count)
        stage.here.chat.rate_limit(per_second, burst_size)
        began = trio.current_time()
        async with stage.started():
            everything = await stage.until(lambda: stage.posts() >= count, 2 * ideal + 20, stall=_STALL)
            seconds = trio.current_time() - began
            told, twice = acts.told(stage)
    yield stage.measure("told", told, f"of {count}", target="all", met=told == count)
    yield stage.measure("told twice", twice, "twice", target="0 twice", met=twice == 0)
    asked = f"<= {ideal * 1.1 + 5:.0f} s (the limiter alone: {ideal:.0f} s)"
    late = None if not everything else seconds
    yield stage.measure("from exec", late, "s", target=asked, met=seconds <= ideal * 1.1 + 5)


async def outage(turn: Turn) -> AsyncIterator[Measure]:
    """Mattermost answers 503, or 429, for a minute; 200 requests wait."""
    for how in ("503", "429"):
        async with staged(turn) as stage:
            stage.away(1.0)
            # At the configured pace of the product, 20 posts a second.
            async with stage.started(mattermost__max_posts_per_second="20"):
                await acts.ask_and_wait(stage, 1, 1)
                before, _ = acts.told(stage)
                await _gone(stage, how, 10 if turn.quick else 60)
                began = trio.current_time()
                everything = await stage.until(partial(_posted, stage, before + 200), 45, stall=_STALL)
                seconds = trio.current_time() - began
                await acts.quiet(stage)
                told, twice = acts.told(stage)
        back = seconds if everything else None
        yield stage.measure(f"{how}: all told after its return", back, "s", target="<= 15 s", met=seconds <= 15)
        yield stage.measure(f"{how}: told", told - before, "of 200", target="all", met=told - before == 200)
        yield stage.measure(f"{how}: told twice", twice, "twice", target="0 twice", met=twice == 0)


async def kills(turn: Turn) -> AsyncIterator[Measure]:
    """SIGKILL at any instant of announcing and reviewing, with a short lease."""
    count = 20 if turn.quick else 200
    chance = random.Random(9)
    # From the event to the last save there are about six round trips, of the official plugin ten.
    window = 0.030 if turn.subject == "sidecar" else 0.050
    async with staged(turn) as stage:
        two = stage.channels(2)
        stage.away(4.0)
        for _ in range(count):
            async with stage.started(two, teleport__lease="1s") as program:
                (request_id,) = stage.here.ask()
                if chance.random() < 0.5:
                    stage.here.auth.review(request_id, "alice@example.com", "APPROVED", "ok")
                await trio.sleep(chance.uniform(0.0, window))
                program.kill()
        async with stage.started(two, teleport__lease="1s"):
            await stage.until(lambda: acts.whole(stage, count), 60, stall=_STALL)
            await acts.quiet(stage)
        lost, twice = acts.lost_and_twice(stage)
    yield stage.measure("lost", lost, f"of {count} lost", target="0 lost", met=lost == 0)
    yield stage.measure("messages twice", twice, "twice", target="0 twice", met=twice == 0)


async def takeover(turn: Turn) -> AsyncIterator[Measure]:
    """Two replicas; the one that works on a request is killed between its claim and its post."""
    lease = 3 if turn.quick else 30
    async with staged(turn) as stage, AsyncExitStack() as stack:
        first = await stack.enter_async_context(stage.started(teleport__lease=f"{lease}s"))
        hung = stage.here.chat.hang(method="POST", path="/api/v4/posts")
        (request_id,) = stage.here.ask()
        await stage.until(lambda: hung.hits > 0, 30)
        await stack.enter_async_context(stage.started(teleport__lease=f"{lease}s"))
        first.kill()
        began = trio.current_time()
        told = await stage.until(lambda: request_id in acts.cards(stage), 2 * lease)
        seconds = trio.current_time() - began
    yield stage.measure(
        "taken over after",
        seconds if told else None,
        "s",
        target=f"<= {lease + 10} s (lease {lease} s)",
        met=seconds <= lease + 10,
        note="" if told else f"not within {2 * lease} s",
    )


async def reaction(turn: Turn) -> AsyncIterator[Measure]:
    """From a reaction to the submitted review, mode `reviewer`."""
    async with staged(turn) as stage, stage.started(**_deciding(stage)):
        await acts.react_once(stage)
        await acts.quiet(stage)
        calls = Calls(stage.here)
        times = [await acts.react_once(stage) for _ in range(10)]
    target = "<= 2 REST + 2 gRPC round trips" if turn.rtt_ms >= 20 else ""
    middle = p50(times) * 1000
    yield stage.measure("p50", middle, "ms", target=target, met=middle <= 4 * turn.rtt_ms)
    yield stage.measure("worst of 10", worst(times) * 1000, "ms")
    yield stage.measure("REST calls a decision, with three posts", calls.rest() / 10, "REST")
    yield stage.measure("gRPC calls a decision", calls.grpc() / 10, "gRPC")


async def deaf(turn: Turn) -> AsyncIterator[Measure]:
    """A peer that hangs or hears nothing more is noticed; four sidecars, one for each way."""
    ways: dict[str, tuple[str, Callable[[Stage], None]]] = {
        "Auth Service hangs": ("teleport", lambda stage: stage.here.auth.faults.hang()),
        "Mattermost hangs": ("mattermost", _hang_rest),
        "websocket is deaf": ("mattermost", lambda stage: stage.here.chat.deafen()),
        "websocket's session ended": ("mattermost", lambda stage: stage.here.chat.deafen(how="session")),
    }
    found: dict[str, float | None] = dict.fromkeys(ways)

    async def one(name: str, link: str, strike: Callable[[Stage], None]) -> None:
        async with staged(turn) as stage:
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
        note = "" if seconds is not None else "not within 60 s"
        yield turn.measure(name, seconds, "s", target="<= 30 s", met=seconds is not None and seconds <= 30, note=note)


async def ended(turn: Turn) -> AsyncIterator[Measure]:
    """Memory after ten thousand requests that came and went."""
    rounds, each = (4, 250) if turn.quick else (20, 500)
    async with staged(turn) as stage, stage.started() as program:
        # One stays: from an empty list nothing is concluded.
        await acts.ask_and_wait(stage, 1, 1)
        await acts.come_and_go(stage, each)
        before = program.rss_mb()
        for _ in range(rounds):
            await acts.come_and_go(stage, each)
        after = program.rss_mb()
        threads, descriptors = program.status("Threads"), program.descriptors()
    yield stage.measure("memory before", before, "MB")
    what = f"memory after {rounds * each} requests"
    yield stage.measure(what, after, "MB", target="<= +5 MB", met=after - before <= 5)
    yield stage.measure("threads", threads)
    yield stage.measure("descriptors", descriptors)


async def many(turn: Turn) -> AsyncIterator[Measure]:
    """A start with many requests that were announced before; the loop's own endpoint is asked all the time."""
    for version, most, recipients in (("16.0.0", 10_000, 10), ("7.0.0-dev", 50_000, 1)):
        count = most // 10 if turn.quick else most
        async with staged(turn, version=version) as stage:
            channels = stage.channels(recipients)
            await trio.to_thread.run_sync(acts.plant, stage, channels, count)
            began = time.time()
            slowest: list[float] = []
            listen = f"127.0.0.1:{_free_port()}"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ask_again_and_again, f"http://{listen}/healthz", slowest)
                async with stage.started(channels, endpoints__listen=listen, limits__open_requests="60000") as program:
                    seconds = time.time() - began
                    memory = program.rss_mb()
                nursery.cancel_scope.cancel()
        what = f"{count} open, {recipients} recipients, Teleport {version.partition('.')[0]}"
        allowed = 2.0 + 0.2 * (recipients - 1)
        kib = (memory - _IDLE_MB) * 1024 / count
        yield stage.measure(f"{what}: start", seconds, "s", target="1 ms each", met=seconds <= count / 1000 + 1)
        yield stage.measure(f"{what}: a request", kib, "KiB", target=f"{allowed:g} KiB", met=kib <= allowed)
        worst_ask = worst(slowest)
        yield stage.measure(f"{what}: slowest /healthz", worst_ask, "s", target="0.5 s", met=worst_ask <= 0.5)


async def posts(turn: Turn) -> AsyncIterator[Measure]:
    """How long the worst pages of legal posts hold the loop: whatever is longer than 4 MiB is not taken in."""
    for what, props, message in (
        ("5.37, 790 names each", json.dumps({f"n{n}": [] for n in range(790)}), "a" * 12_000),
        ("11, 26,000 lists in one", "{" + '"a":[' + ",".join(["[]"] * 6_600) + "]}", "hi"),
        ("one that nests deep", '{"a":' + "[" * 900 + "]" * 900 + "}", "\N{CIRCLED IDEOGRAPH SECRET}" * 5_000),
    ):
        body = _page(props, message)
        times = []
        for _ in range(5):
            began = time.thread_time()
            with suppress(UnreadableAnswer):
                decode_posts(body)
            times.append(time.thread_time() - began)
        longest = worst(times) * 1000
        note = f"{len(body) / 2**20:.1f} MiB"
        yield turn.measure(what, longest, "ms", target="<= 50 ms", met=longest <= 50, note=note)


# A turn is given up after a good while more than it takes on two quiet cores.
ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row(start, 90),
        Row(announce, 90, distances=True),
        Row(broadcast, 120, distances=True),
        Row(race, 120, distances=True),
        Row(burst, 180),
        Row(downtime, 300),
        Row(outage, 360),
        Row(kills, 420),
        Row(takeover, 150),
        Row(reaction, 120, distances=True, official=False),
        Row(deaf, 120, official=False),
        Row(ended, 600, official=False),
        Row(many, 600, official=False),
        Row(posts, 60, official=False),
        Row(real.real, 900, official=False, is_possible=real.is_possible),
    )
}


# -- pieces --------------------------------------------------------------------------------------------------------


def _posted(stage: Stage, count: int) -> bool:
    return stage.posts() >= count


def _of(told: int, count: int) -> str:
    return "" if told >= count else f"{told} of {count} told"


async def _gone(stage: Stage, how: str, seconds: float) -> None:
    """Let Mattermost refuse everything for so long; 200 requests are made meanwhile, at an even pace."""
    busy = Answer(429, b"limit exceeded\n", (("Retry-After", "1"),))
    fault = stage.here.chat.fail(answer=busy, times=None) if how == "429" else None
    if fault is None:
        await stage.here.chat.down("503")
    for _ in range(200):
        stage.here.ask()
        await trio.sleep(seconds / 200)
    if fault is None:
        await stage.here.chat.up()
    else:
        fault.stop()


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
        "reviewers__alice": f'{{ id = "{here.alice.id}", user = "alice@example.com" }}',
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
    await program.stop()
    found.setdefault("SIGTERM to exit", []).append(trio.current_time() - began)


async def _bare(phases: dict[str, list[float]]) -> None:
    """Floors on this machine: an interpreter alone, and with the libraries that we cannot do without."""
    for name, code in (
        ("floor: interpreter", "pass"),
        ("floor: imports of libraries", "import trio, grpc, httpx, trio_websocket, msgspec, prometheus_client"),
        ("all our imports", "import sidecar.cli, sidecar.app"),
    ):
        for _ in range(5):
            began = trio.current_time()
            await trio.run_process([sys.executable, "-c", code], cwd=ROOT)
            phases.setdefault(name, []).append(trio.current_time() - began)


# What the program takes without any request.
_IDLE_MB = 58.0


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def _ask_again_and_again(url: str, took: list[float]) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        while True:
            began = trio.current_time()
            try:
                await client.get(url)
            except httpx.TransportError:
                pass  # not there yet, or not there any more
            else:
                took.append(trio.current_time() - began)
            await trio.sleep(0.02)


def _page(props: str, message: str) -> bytes:
    """A page of as many posts as fit into what is taken in."""
    said = json.dumps(message, ensure_ascii=False)
    one = f'"user_id":"u","channel_id":"c","create_at":1,"message":{said},"props":{props}'
    count = min(200, MAX_ANSWER_BYTES // (len(one.encode()) + 100))
    names = [f"p{n:025d}" for n in range(count)]
    posts = ",".join(f'"{name}":{{"id":"{name}",{one}}}' for name in names)
    return f'{{"order":{json.dumps(names)},"posts":{{{posts}}}}}'.encode()
