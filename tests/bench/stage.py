"""What every row needs: both simulators in this process, the program under measurement in its own, and the counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
import trio

from tests.bench.child import Child, child, sidecar_command
from tests.world import World, world

Subject = Literal["sidecar", "official"]

# What runs by the clock, not by the request.
_BACKGROUND = {"Ping", "WatchEvents", "GET /api/v4/users/me", "GET /api/v4/websocket"}


class Measure(msgspec.Struct, frozen=True):
    """One number. `target` is the design's words, `met` whether it holds ("-": nothing is asked)."""

    row: str
    what: str
    value: float
    unit: str
    rtt_ms: float = 0.0
    subject: str = "sidecar"
    target: str = ""
    met: bool | None = None


class Options(msgspec.Struct, frozen=True):
    """What the command line asked for; `quick` shortens the rows that wait for long times."""

    rtts_ms: tuple[float, ...] = (1.0, 20.0, 50.0)
    quick: bool = False
    official: Path | None = None

    @property
    def subjects(self) -> tuple[Subject, ...]:
        return ("sidecar", "official") if self.official is not None else ("sidecar",)


class Calls:
    """Calls that the servers have counted since this was made."""

    def __init__(self, here: World) -> None:
        self._here = here
        self._before = self._all()

    def rest(self) -> int:
        return sum(count for name, count in self.new().items() if "/" in name)

    def grpc(self) -> int:
        return sum(count for name, count in self.new().items() if "/" not in name)

    def new(self) -> Counter[str]:
        return Counter({name: count for name, count in (self._all() - self._before).items() if name not in _BACKGROUND})

    def _all(self) -> Counter[str]:
        rest = {f"{method} {path}": count for (method, path), count in self._here.chat.calls.items()}
        return Counter(self._here.auth.calls) + Counter(rest)


class Stage:
    """A world whose peers are `rtt_ms` away, and how the program under measurement is started in it."""

    def __init__(self, here: World, options: Options, subject: Subject) -> None:
        self.here = here
        self.options = options
        self.subject: Subject = subject
        self._seen = self._ours = 0

    def away(self, rtt_ms: float) -> None:
        """Put both servers at this distance."""
        self.here.chat.latency = self.here.auth.faults.latency = rtt_ms / 1000

    @asynccontextmanager
    async def started(self, recipients: Sequence[str] | None = None, **changes: str) -> AsyncIterator[Child]:
        """The program, ready."""
        here = self.here
        names = recipients or ["ops/access-requests"]
        watchers = here.auth.watchers
        if self.subject == "official":
            command = official_command(here, self.options, names)
        else:
            listed = msgspec.json.encode(list(names)).decode()
            command = sidecar_command(here.settings(**{"mattermost__recipients": listed} | changes))
        async with child(command) as one:
            if self.subject == "sidecar":
                await one.ready()
            else:
                await here.watched(watchers + 1)
            yield one

    def channels(self, count: int) -> list[str]:
        """So many new channels; their recipient names."""
        here = self.here
        people = (here.alice, here.ivan, here.bob, here.bot)
        begun = len(here.chat.channels)
        return [f"ops/{here.chat.add_channel(here.team, f'c{begun + n}', members=people).name}" for n in range(count)]

    def people(self, count: int) -> list[str]:
        """So many new people; their e-mail addresses."""
        names = [f"reviewer{n}" for n in range(count)]
        for name in names:
            self.here.chat.add_user(name, email=f"{name}@example.com")
        return [f"{name}@example.com" for name in names]

    def posts(self) -> int:
        """How many posts the bot has made; only new ones are looked at, for this is asked at every change."""
        posts = self.here.chat.all_posts
        new = islice(posts.values(), self._seen, None)
        self._ours += sum(1 for post in new if post.user_id == self.here.bot.id)
        self._seen = len(posts)
        return self._ours

    async def until(self, predicate: Callable[[], bool], seconds: float) -> bool:
        """Wait for Mattermost to satisfy `predicate`; False when it did not in time."""
        with trio.move_on_after(seconds):
            await self.here.chat.wait_for(predicate)
            return True
        return False


@asynccontextmanager
async def staged(options: Options, subject: Subject = "sidecar") -> AsyncIterator[Stage]:
    """A fresh world for one row."""
    with TemporaryDirectory() as folder:
        async with world(Path(folder)) as here:
            yield Stage(here, options, subject)


def official_command(here: World, options: Options, recipients: Sequence[str]) -> list[str]:
    """The official plugin by its own configuration file; its keys are those of all its versions."""
    assert options.official is not None
    listed = msgspec.json.encode(list(recipients)).decode()
    files = here.credentials
    path = here.folder / "official.toml"
    path.write_text(
        f'[teleport]\naddr = "{here.auth.addr}"\nauth_server = "{here.auth.addr}"\nclient_crt = "{files.crt}"\n'
        f'client_key = "{files.key}"\nroot_cas = "{files.cas}"\n'
        f'[mattermost]\nurl = "{here.chat.url}"\ntoken = "{here.bot.token}"\nrecipients = {listed}\n'
        f'[role_to_recipients]\n"*" = {listed}\n[log]\noutput = "stderr"\nseverity = "INFO"\n'
    )
    return [str(options.official), "start", "--config", str(path)]


def p50(seconds: Sequence[float]) -> float:
    return median(seconds) if seconds else float("nan")


def worst(seconds: Sequence[float]) -> float:
    return max(seconds, default=float("nan"))
