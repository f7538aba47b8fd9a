"""What every row needs: both simulators in this process, the program under measurement in its own, and the counters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import msgspec
import trio

from tests.bench.child import Child, ProgramEnded, child, sidecar_command
from tests.world import World, world

Subject = Literal["sidecar", "official"]

# What runs by the clock, not by the request.
_BACKGROUND = {"Ping", "WatchEvents", "GET /api/v4/users/me", "GET /api/v4/websocket"}


class Measure(msgspec.Struct, frozen=True):
    """One number of a row; None where it was not reached, and then `note` says what was.

    `target` is the design's words, `met` whether the sidecar holds it (None: nothing is asked).
    """

    row: str
    what: str
    value: float | None
    unit: str = ""
    rtt_ms: float = 0.0
    subject: str = "sidecar"
    target: str = ""
    met: bool | None = None
    note: str = ""


class Options(msgspec.Struct, frozen=True):
    """What the command line asked for; `quick` shortens the rows that wait for long times."""

    rtts_ms: tuple[float, ...] = (1.0, 20.0, 50.0)
    quick: bool = False
    official: Path | None = None


class Turn(msgspec.Struct, frozen=True):
    """A row is played once for each program and each distance; `rtt_ms` is 0 where the row sets its own, or none."""

    row: str
    options: Options
    subject: Subject = "sidecar"
    rtt_ms: float = 0.0

    @property
    def quick(self) -> bool:
        return self.options.quick

    def measure(
        self, what: str, value: float | None, unit: str = "", *, target: str = "", met: bool = True, note: str = ""
    ) -> Measure:
        """A measure of this turn; one that was not reached misses its target. The targets are the sidecar's alone."""
        reached = None if value is None or math.isnan(value) else value
        judged = met and reached is not None if target and self.subject == "sidecar" else None
        return Measure(self.row, what, reached, unit, self.rtt_ms, self.subject, target, judged, note)


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
    """A world whose peers are as far away as the turn says, and how the program under measurement is started in it."""

    def __init__(self, here: World, turn: Turn) -> None:
        self.here = here
        self.options = turn.options
        self.subject = turn.subject
        self._turn = turn
        self._programs: list[Child] = []
        self._seen = self._ours = 0
        self.away(turn.rtt_ms)

    def measure(
        self, what: str, value: float | None, unit: str = "", *, target: str = "", met: bool = True, note: str = ""
    ) -> Measure:
        """A measure of the turn that also says when a program ended by itself."""
        notes = "; ".join(filter(None, (note, self.fate)))
        return self._turn.measure(what, value, unit, target=target, met=met, note=notes)

    @property
    def fate(self) -> str:
        """How a program ended by itself; "" when none did."""
        return next((one.fate for one in self._programs if one.fate), "")

    def away(self, rtt_ms: float) -> None:
        """Put both servers at this distance."""
        self.here.chat.latency = self.here.auth.faults.latency = rtt_ms / 1000

    @asynccontextmanager
    async def started(self, recipients: Sequence[str] | None = None, **changes: str) -> AsyncIterator[Child]:
        """The program, ready."""
        here = self.here
        names = recipients or ["ops/access-requests"]
        alive = sum(one.process.returncode is None for one in self._programs)
        if self.subject == "official":
            # It says nothing when it is ready; its watch does, once those of the dead are gone.
            await here.recorded(lambda: here.auth.watchers <= alive)
            files = (str(here.credentials.crt), str(here.credentials.key), str(here.credentials.cas))
            chat = (here.chat.url, here.bot.token)
            command = official_command(self.options, here.folder, here.auth.addr, files, chat, names)
        else:
            listed = msgspec.json.encode(list(names)).decode()
            command = sidecar_command(here.settings(**{"mattermost__recipients": listed} | changes))
        async with child(command, here.chat.changed) as one:
            self._programs.append(one)
            try:
                if self.subject == "sidecar":
                    await one.ready()
                else:
                    await here.watched(alive + 1)
                yield one
            except Exception as exc:
                # Whatever was waited for then, this is why it did not come.
                if one.fate:
                    raise ProgramEnded(one.fate) from exc
                raise

    def channels(self, count: int) -> list[str]:
        """So many new channels; their recipient names."""
        here = self.here
        people = (here.alice, here.ivan, here.bob, here.bot)
        begun = len(here.chat.channels)
        return [f"ops/{here.chat.add_channel(here.team, f'c{begun + n}', members=people).name}" for n in range(count)]

    def people(self, count: int) -> list[str]:
        """So many new people; their email addresses."""
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

    async def until(self, predicate: Callable[[], bool], seconds: float, *, stall: float = math.inf) -> bool:
        """Wait for Mattermost to satisfy `predicate`; False when it did not in time.

        It is given up before, once a program has ended by itself or nothing was posted for `stall` seconds: one that
        loses requests would make every row wait for its whole deadline.
        """
        with trio.move_on_after(seconds):
            while not predicate() and not self.fate:
                with trio.move_on_after(stall) as still:
                    await self.here.chat.wait_for(self._news(predicate))
                if still.cancelled_caught:
                    break
        return predicate()

    def _news(self, predicate: Callable[[], bool]) -> Callable[[], bool]:
        posts = self.posts()
        return lambda: self.posts() != posts or predicate() or bool(self.fate)


@asynccontextmanager
async def staged(turn: Turn, **auth: Any) -> AsyncIterator[Stage]:
    """A fresh world for one turn; `auth` goes to its Auth Service. The official plugin of 18 needs one of 18."""
    with TemporaryDirectory() as folder:
        async with world(Path(folder), version="18.0.0", **auth) as here:
            yield Stage(here, turn)


def official_command(
    options: Options,
    folder: Path,
    addr: str,
    files: tuple[str, ...],
    mattermost: tuple[str, str],
    recipients: Sequence[str],
) -> list[str]:
    """The official plugin by its own configuration file; its keys are those of all its versions.

    `files` are certificate, key and CAs, `mattermost` address and token.
    """
    assert options.official is not None
    listed = msgspec.json.encode(list(recipients)).decode()
    crt, key, cas = files
    url, token = mattermost
    path = folder / "official.toml"
    path.write_text(
        f'[teleport]\naddr = "{addr}"\nauth_server = "{addr}"\nclient_crt = "{crt}"\n'
        f'client_key = "{key}"\nroot_cas = "{cas}"\n'
        f'[mattermost]\nurl = "{url}"\ntoken = "{token}"\nrecipients = {listed}\n'
        f'[role_to_recipients]\n"*" = {listed}\n[log]\noutput = "stderr"\nseverity = "INFO"\n'
    )
    return [str(options.official), "start", "--config", str(path)]


def p50(seconds: Sequence[float]) -> float:
    return median(seconds) if seconds else float("nan")


def worst(seconds: Sequence[float]) -> float:
    return max(seconds, default=float("nan"))
