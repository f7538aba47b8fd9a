"""Seeded schedules: what people do and what goes wrong, drawn in advance, played on a world, judged by `tests.truth`.

Everything random is drawn from the seed before the first step, so that a seed always plays the same steps. When they
meet what the sidecar does is up to the operating system.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args

import grpc
import msgspec
import trio
import trustme

from sidecar import app
from sidecar.config import Config
from sidecar.model import AccessRequest
from sidecar.simulator.faults import Refusal
from sidecar.simulator.mattermost.server import Answer, ApiError, Channel, MattermostServer, proxy_answer
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.teleport.watch import Ending
from tests.deciding import ALICE, APPROVE, BOB, IVAN, linked
from tests.patience import patient
from tests.proxy import Proxy
from tests.truth import untrue
from tests.world import QUICK, Lines, World

# Nothing waits for longer than a lease of one second does.
TIMES = msgspec.structs.replace(
    QUICK,
    init=1.0,
    ping_limit=0.7,
    list_every=1.0,
    silent=0.5,
    records_every=1.0,
    sweep_every=0.5,
    sweep_pace=0.0,
    hello=1.0,
    socket_ping_every=0.3,
    socket_ping_limit=0.7,
    refused_retry=0.3,
    verify=1.0,
    expired=0.3,
    recipients_every=0.5,
    call=1.0,
    drain=1.0,
)
# How long faults last at most, and how long everything may take to become true afterwards.
FAULT_SECONDS = 0.5
# A write that comes when nobody waits for it any more.
VERY_LATE_SECONDS = 4.0
# How long a Teleport of today answers with what has expired; 90 s in life.
EXPIRED_SECONDS = 0.8
PATIENCE_SECONDS = 45.0


class Skew:
    """How far one sidecar's clocks are off; they are moved by steps of a schedule."""

    def __init__(self, wall: float) -> None:
        self.wall, self.boot = wall, 0.0


_skew: ContextVar[Skew] = ContextVar("skew")


class SkewedTime:
    """Stands where a room of the sidecar has the module `time`; each schedule has its own clocks."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME
    perf_counter = staticmethod(time.perf_counter)
    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def time() -> float:
        return time.time() + _skew.get().wall

    @staticmethod
    def clock_gettime(clock: int) -> float:
        return time.clock_gettime(clock) + _skew.get().boot


# The rooms that decide by a clock.
SKEWED = (
    "reconcile.controller", "reconcile.entry", "reconcile.followed", "reconcile.lease", "reconcile.observe",
    "reconcile.visit",
    "intake.keep", "intake.sweep", "intake.direct", "mattermost.client",
)  # fmt: skip


_processes: ContextVar[list[Process]] = ContextVar("processes")


class Process(app._Process):
    """One that can be asked to reload: a signal would reach everybody in this process."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        _processes.get().append(self)


class Remembering(AuthServer):
    """An Auth Service that keeps in `gone` how each request last was."""

    gone: dict[str, AccessRequest]

    def remove(self, request_id: str) -> None:
        self.gone[request_id] = self._requests[request_id].request
        super().remove(request_id)


class Step(msgspec.Struct, frozen=True):
    """After `pause` seconds do `name`; `numbers` are its random choices, each below one."""

    pause: float
    name: str
    numbers: tuple[float, ...]

    def __str__(self) -> str:
        return f"+{self.pause * 1000:.0f} ms {self.name}({', '.join(f'{one:.3f}' for one in self.numbers)})"


class Plot(msgspec.Struct, frozen=True):
    """All that a seed decides."""

    seed: int
    version: str
    chat_version: str
    decides: bool
    # Writes may come very late: then nothing goes away, and everything changes once more at the end.
    very_late: bool
    # Seconds by which the clocks of sidecars, one after another, and Mattermost's are off.
    clocks: tuple[float, ...]
    chat_clock: float
    steps: tuple[Step, ...]


def draw(seed: int, length: int = 14) -> Plot:
    """The schedule of a seed."""
    chance = random.Random(seed)
    very_late = chance.random() < 0.2
    left_out = ("delete",) if very_late else ("chat_is_very_late",)
    names = [name for name, weight in WEIGHTS.items() if name not in left_out for _ in range(weight)]
    steps = [Step(chance.uniform(0.0, 0.1), "ask", (chance.random(), chance.random(), chance.random()))]
    while len(steps) < length:
        pause = chance.choice((0.0, 0.0, 0.005, 0.02, 0.1)) * chance.uniform(0.5, 1.5)
        steps.append(Step(pause, chance.choice(names), (chance.random(), chance.random(), chance.random())))
    return Plot(
        seed,
        chance.choice(("7.0.0-dev", "16.0.0-dev", "18.0.0")),
        chance.choice(("5.37.0", "11.0.0")),
        chance.random() < 0.5,
        very_late,
        tuple(chance.choice((0.0, 0.0, chance.uniform(-900, 900))) for _ in range(3)),
        # An expression that is older than its request by Mattermost's clock counts not.
        chance.choice((0.0, chance.uniform(-30, 500))),
        tuple(steps),
    )


class Player:
    """Plays one plot. `sidecars` are the cancel scopes of those that run."""

    def __init__(self, plot: Plot, here: World, ways: tuple[Proxy, Proxy], nursery: trio.Nursery) -> None:
        self.plot = plot
        self.here = here
        # Requests that Teleport has no more, as they last were.
        self.gone: dict[str, AccessRequest] = {}
        assert isinstance(here.auth, Remembering)
        here.auth.gone = self.gone
        self.to_auth, self.to_chat = ways
        self.asked: list[str] = []
        self._nursery = nursery
        self._sidecars: list[tuple[trio.CancelScope, trio.Event]] = []
        self._none_left = trio.Event()
        self._auth_busy = trio.Lock()
        here.chat.clock_offset = plot.chat_clock
        here.auth.expired_seconds = min(here.auth.expired_seconds, EXPIRED_SECONDS)
        self._skews: list[Skew] = []
        self._processes: list[Process] = []
        self._archived: list[Channel] = []
        self._shut: set[str] = set()
        second = here.chat.add_channel(here.team, "dba", members=(here.alice, here.ivan, here.bob, here.bot))
        self.channels = [here.channel, second, here.chat.open_direct(here.bot, here.bob)]
        self.config, self._next = self._configure(24), self._configure(12)

    def _configure(self, connections: int) -> Config:
        here = self.here
        settings = linked(here) if self.plot.decides else {}
        return here.config(
            **settings
            | {
                "teleport__addr": self.to_auth.address,
                "teleport__lease": "1s",
                "mattermost__url": f"https://{self.to_chat.address}",
                "mattermost__ca_file": str(here.folder / "mattermost-ca.pem"),
                "mattermost__recipients": '["ops/access-requests", "ops/dba"]',
                "mattermost__notify_requester": "true",
                "mattermost__max_connections": str(connections),
                "requesters__bob": BOB,
            }
        )

    async def play(self) -> None:
        """All steps, one after another; faults that last go on meanwhile."""
        self.start()
        for step in self.plot.steps:
            await trio.sleep(step.pause)
            await STEPS[step.name](self, *step.numbers)

    async def become_true(self) -> list[str]:
        """End all faults, and wait until nothing is untrue any more; what still is, otherwise."""
        self.to_auth.heal()
        self.to_chat.heal()
        self.here.chat.clear_faults()
        self._restore()
        async with self._auth_busy:
            self._widen()
            self.here.auth.faults.clear()
            self.here.auth.thaw_list_cache()
        if not self._sidecars:
            self.start()
        # From an empty list nothing is concluded.
        self.asked += self.here.ask()
        if self.plot.very_late:
            await self._last_word()
        with patient(PATIENCE_SECONDS):
            await self._become_true()
            if self.untrue():
                # The stop came in the middle of an announcement that was owed: the next one carries on.
                self.start()
                await self._become_true()
        return self.untrue()

    async def _last_word(self) -> None:
        """What came too late is found by the next change."""
        await trio.sleep(VERY_LATE_SECONDS)
        for request in self.here.auth.requests():
            self.here.auth.set_state(request.id, "DENIED", "that is that")

    async def _become_true(self) -> None:
        # Two servers change, one of them in threads of its own.
        while self.untrue():  # noqa: ASYNC110
            await trio.sleep(0.05)
        # Nothing that was under way may spoil it afterwards.
        await self.stop_all()

    def untrue(self) -> list[str]:
        found = untrue(self.here, self.channels, self.gone, frozenset(self._shut))
        return [*found, *self._unheard(), *self._still_to_come()]

    def _unheard(self) -> Iterator[str]:
        """Alice's reaction on the card of an open request is a review."""
        if not self.plot.decides:
            return
        open_ids = {request.id: request for request in self.here.auth.requests() if request.state == "PENDING"}
        for card in self.here.cards():
            request = open_ids.get(card.props["tm"]["id"])
            reacted = (self.here.alice.id, APPROVE) in card.reactions
            if request and reacted and ALICE not in {one.author for one in request.reviews}:
                yield f"{request.id[-8:]}: Alice's reaction is no review"

    def _still_to_come(self) -> Iterator[str]:
        """What expires soon shall do so while somebody watches."""
        for request in self.here.auth.requests():
            if request.expires is not None and request.expires < time.time() + 60:
                yield f"{request.id[-8:]}: it is about to expire"

    # -- sidecars ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if not self._sidecars:
            self._none_left = trio.Event()
        scope, stop = trio.CancelScope(), trio.Event()
        self._sidecars.append((scope, stop))
        self._nursery.start_soon(self._run, scope, stop)

    async def _run(self, scope: trio.CancelScope, stop: trio.Event) -> None:
        skew = Skew(self.plot.clocks[len(self._skews) % len(self.plot.clocks)])
        self._skews.append(skew)
        _skew.set(skew)
        _processes.set(self._processes)
        with scope:
            await app.run(self.config, stop=stop, reload=lambda: self.config, times=TIMES)
        self._sidecars.remove((scope, stop))
        if not self._sidecars:
            self._none_left.set()

    def _some(self, number: float) -> tuple[trio.CancelScope, trio.Event] | None:
        return self._sidecars[int(number * len(self._sidecars))] if self._sidecars else None

    async def stop_all(self) -> None:
        for _, stop in self._sidecars:
            stop.set()
        await self._none_left.wait()

    async def kill(self, which: float, *_: float) -> None:
        """Nothing more is carried out, nothing is saved: as far as anybody outside can see, a SIGKILL."""
        if one := self._some(which):
            one[0].cancel()
            self.start()

    async def stop(self, which: float, *_: float) -> None:
        if one := self._some(which):
            one[1].set()
            self.start()

    async def second(self, *_: float) -> None:
        if len(self._sidecars) < 3:
            self.start()

    # -- people ------------------------------------------------------------------------------------------------------

    def _request(self, number: float) -> str:
        return self.asked[int(number * len(self.asked))]

    async def ask(self, count: float, short: float, *_: float) -> None:
        expires_in = 0.3 + short if short < 0.15 and not self.plot.very_late else None
        self.asked += self.here.ask(1 + int(count * 3), reason="fix it", expires_in=expires_in)

    async def review(self, which: float, author: float, state: float) -> None:
        with suppress(Refusal):
            user = ALICE if author < 0.5 else IVAN
            self.here.auth.review(self._request(which), user, "APPROVED" if state < 0.7 else "DENIED", "why not")

    async def resolve(self, which: float, state: float, *_: float) -> None:
        with suppress(Refusal):
            self.here.auth.set_state(self._request(which), "APPROVED" if state < 0.5 else "DENIED", "by hand")

    async def delete(self, which: float, *_: float) -> None:
        with suppress(Refusal):
            self.here.auth.delete_request(self._request(which))

    async def react(self, which: float, *_: float) -> None:
        if cards := self.here.cards():
            with suppress(ApiError):
                self.here.chat.react(self.here.alice, cards[int(which * len(cards))], APPROVE)

    # -- the network -------------------------------------------------------------------------------------------------

    def _way(self, number: float) -> Proxy:
        return self.to_auth if number < 0.5 else self.to_chat

    def _later(self, number: float, end: Callable[[], None]) -> None:
        async def wait() -> None:
            await trio.sleep(number * FAULT_SECONDS)
            end()

        self._nursery.start_soon(wait)

    async def cut(self, way: float, *_: float) -> None:
        self._way(way).cut()

    async def refuse(self, way: float, seconds: float, *_: float) -> None:
        one = self._way(way)
        one.refusing = True
        one.cut()
        self._later(seconds, one.heal)

    async def delay(self, way: float, seconds: float, much: float) -> None:
        one = self._way(way)
        one.delay = much * 0.1
        self._later(seconds, one.heal)

    async def stall(self, way: float, seconds: float, *_: float) -> None:
        one = self._way(way)
        one.stall()
        self._later(seconds, one.flow)

    async def half_close(self, way: float, direction: float, *_: float) -> None:
        self._way(way).half_close("up" if direction < 0.5 else "down")

    async def corrupt(self, way: float, direction: float, chunks: float) -> None:
        self._way(way).corrupt("up" if direction < 0.5 else "down", 1 + int(chunks * 3))

    async def pauses(self, seconds: float, boot: float, *_: float) -> None:
        """Everybody stands still for longer than a lease, or for a moment; the boot clock may stop meanwhile, too."""
        for way in (self.to_auth, self.to_chat):
            way.stall()
            self._later(seconds * 4, way.flow)
        if boot < 0.5:
            self._later(seconds * 4, lambda: self._move(boot=-seconds * 4 * FAULT_SECONDS))

    # -- Mattermost --------------------------------------------------------------------------------------------------

    def _match(self, number: float, times: float) -> dict[str, Any]:
        match: dict[str, Any] = {"times": 1 + int(times * 4)}
        if number < 0.7:
            match |= {"method": "POST", "path": "/api/v4/posts"}
        elif number < 0.9:
            match |= {"method": "PUT"}
        return match

    async def chat_answers(self, match: float, times: float, what: float) -> None:
        answers = (
            Answer(429, b"limit exceeded\n", (("Retry-After", "1"),)),
            Answer(500, {"id": "app.post.save.app_error", "message": "database or disk is full", "status_code": 500}),
            proxy_answer(503),
            proxy_answer(502),
            Answer(200, "<html>a portal</html>"),
            Answer(201, b""),
        )
        self.here.chat.fail(answer=answers[int(what * len(answers))], **self._match(match, times))

    async def chat_cuts(self, match: float, times: float, when: float) -> None:
        self.here.chat.cut(when="before" if when < 0.3 else "after", **self._match(match, times))

    async def chat_hangs(self, match: float, times: float, when: float) -> None:
        self.here.chat.hang(when="before" if when < 0.3 else "after", **self._match(match, times))

    async def chat_is_late(self, match: float, seconds: float, when: float) -> None:
        when_: Literal["before", "after"] = "before" if when < 0.5 else "after"
        self.here.chat.late(seconds * FAULT_SECONDS, when=when_, **self._match(match, 0.3))

    async def chat_is_very_late(self, match: float, *_: float) -> None:
        """By then Mattermost has forgotten the key, too."""
        self.here.chat.late(VERY_LATE_SECONDS - 1, when="before", **self._match(match, 0.3))
        await trio.sleep(0.5)
        self.here.chat.pending.forget()

    async def chat_archives(self, which: float, seconds: float, how: float) -> None:
        """A channel is archived, or the bot is thrown out; both are taken back."""
        channel = self.channels[int(which * 2)]
        if how < 0.6:
            self.here.chat.archive(channel)
        else:
            self.here.chat.leave(channel, self.here.bot)
        self._archived.append(channel)
        self._shut.add(channel.id)
        self._later(seconds * 3, self._restore)

    def _restore(self) -> None:
        while self._archived:
            channel = self._archived.pop()
            self.here.chat.unarchive(channel)
            self.here.chat.join(channel, self.here.bot)

    async def chat_drops_sockets(self, how: float, *_: float) -> None:
        if how < 0.5:
            self.here.chat.drop_sockets()
        else:
            self.here.chat.deafen()

    async def chat_restarts(self, *_: float) -> None:
        await self.here.chat.restart()

    async def chat_is_away(self, seconds: float, *_: float) -> None:
        await self.here.chat.down("503")
        await trio.sleep(seconds * FAULT_SECONDS)
        await self.here.chat.up()

    # -- the Auth Service --------------------------------------------------------------------------------------------

    async def auth_restarts(self, *_: float) -> None:
        async def restart() -> None:
            async with self._auth_busy:
                await trio.to_thread.run_sync(self.here.auth.restart)

        self._nursery.start_soon(restart)

    async def auth_drops_watchers(self, how: float, *_: float) -> None:
        endings = get_args(Ending)
        self.here.auth.close_watchers(endings[int(how * len(endings))])

    async def auth_stalls_watchers(self, *_: float) -> None:
        self.here.auth.stall_watchers()

    async def auth_fails(self, method: float, what: float, times: float) -> None:
        refusals = (
            (grpc.StatusCode.UNAVAILABLE, "transport is closing"),
            (grpc.StatusCode.UNKNOWN, "database or disk is full"),
            (grpc.StatusCode.DEADLINE_EXCEEDED, "context deadline exceeded"),
        )
        code, details = refusals[int(what * len(refusals))]
        self.here.auth.faults.fail(METHODS[int(method * len(METHODS))], code, details, times=1 + int(times * 4))

    async def auth_storms(self, times: float, *_: float) -> None:
        self.here.auth.faults.fail(
            "UpdatePluginData",
            grpc.StatusCode.FAILED_PRECONDITION,
            "too many concurrent writes to plugin data x",
            times=1 + int(times * 8),
        )

    async def auth_loses_answers(self, method: float, times: float, *_: float) -> None:
        self.here.auth.faults.lose_answer(METHODS[int(method * len(METHODS))], times=1 + int(times * 2))

    async def auth_hangs(self, seconds: float, *_: float) -> None:
        self.here.auth.faults.hang()
        self._later(seconds, self.here.auth.faults.release)

    async def auth_lists_old(self, seconds: float, *_: float) -> None:
        self.here.auth.freeze_list_cache()
        self._later(seconds, self.here.auth.thaw_list_cache)

    async def auth_narrows(self, seconds: float, *_: float) -> None:
        """Our role loses the verb `list`, which empties lists and answers by id."""
        self.here.auth.add_role("access-plugin", rules=RIGHTS | {"access_request": ("read",)})
        self._later(seconds * 2, self._widen)

    def _widen(self) -> None:
        self.here.auth.add_role("access-plugin", rules=RIGHTS)

    # -- clocks ------------------------------------------------------------------------------------------------------

    def _move(self, *, wall: float = 0.0, boot: float = 0.0) -> None:
        for skew in self._skews:
            skew.wall += wall
            skew.boot += boot

    async def clock_jumps(self, how: float, *_: float) -> None:
        self._move(wall=(how - 0.5) * 20_000)

    async def sleeps(self, seconds: float, *_: float) -> None:
        """The machine was suspended: the boot clock went on, the monotonic one did not."""
        self._move(boot=seconds * 5)

    async def reloads(self, *_: float) -> None:
        """As by SIGHUP, which reaches all that run; it opens Mattermost anew."""
        self.config, self._next = self._next, self.config
        for process in self._processes:
            process._read_again()


RIGHTS = {"access_request": ("list", "read"), "access_plugin_data": ("list", "read", "update")}
METHODS = ("UpdatePluginData", "UpdatePluginData", "GetPluginData", "GetAccessRequests", "GetAccessRequestsV2", "Ping")

# How often each step comes up.
WEIGHTS = {
    "ask": 6, "review": 8, "resolve": 2, "delete": 2, "react": 4,
    "kill": 5, "stop": 2, "second": 2,
    "cut": 3, "refuse": 2, "delay": 2, "stall": 2, "half_close": 2, "corrupt": 2,
    "chat_answers": 4, "chat_cuts": 4, "chat_hangs": 2, "chat_is_late": 3, "chat_drops_sockets": 1,
    "chat_restarts": 1, "chat_is_away": 1,
    "auth_restarts": 1, "auth_drops_watchers": 2, "auth_stalls_watchers": 1, "auth_fails": 3, "auth_storms": 2,
    "auth_loses_answers": 3, "auth_hangs": 1, "auth_lists_old": 1,
    "pauses": 2, "chat_is_very_late": 6, "chat_archives": 3, "auth_narrows": 2, "reloads": 3,
    "clock_jumps": 1, "sleeps": 1,
}  # fmt: skip
STEPS: dict[str, Callable[..., Awaitable[None]]] = {name: getattr(Player, name) for name in WEIGHTS}


@asynccontextmanager
async def theatre(plot: Plot, folder: Path, authority: trustme.CA, lines: Lines) -> AsyncIterator[Player]:
    """Both servers behind their proxies; nothing runs yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(folder / "mattermost-ca.pem")
    auth = Remembering.dual_authorization(version=plot.version)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        chat = MattermostServer(plot.chat_version, ssl_context=context)
        await nursery.start(chat.serve)
        stack.enter_context(auth)
        ways = (Proxy(lambda: auth.addr, plot.seed), Proxy(lambda: f"127.0.0.1:{chat.port}", plot.seed))
        for way in ways:
            await nursery.start(way.serve)
        yield Player(plot, World(auth, chat, folder, lines), ways, nursery)
        nursery.cancel_scope.cancel()


async def perform(plot: Plot, folder: Path, authority: trustme.CA, lines: Lines) -> list[str]:
    """Play a plot to its end; sentences on what did not become true."""
    async with theatre(plot, folder, authority, lines) as player:
        await player.play()
        return await player.become_true()


def script(plot: Plot) -> str:
    """The plot in words, for whoever must understand a failure."""
    head = f"seed {plot.seed}: Teleport {plot.version}, Mattermost {plot.chat_version}, decisions {plot.decides}"
    return "\n  ".join([head, *map(str, plot.steps)])
