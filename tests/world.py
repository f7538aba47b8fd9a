"""A world for whole-sidecar tests: both simulators, the people of the story, and sidecars that run in it.

Alice and Ivan review, Bob asks. The Auth Service is real gRPC over real mTLS in threads of its own; Mattermost is a
real HTTP server in the test's trio loop. A sidecar runs in the loop (`running`) or as a process of its own (`process`).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx
import trio

from sidecar import app
from sidecar.config import Config, load
from sidecar.simulator.mattermost.server import MattermostServer, Post
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.times import USUAL, Times

ROOT = Path(__file__).parent.parent

# A sidecar that lives faster: it comes back to everything within a second. The limits of answers stay, so that a busy
# machine is not taken for a deaf peer.
QUICK = Times(
    ping_every=0.2,
    list_at_most_every=0.05,
    list_lag=0.0,
    ask_every=0.2,
    probe=0.05,
    file_poll=0.05,
    expiry_grace=0.2,
    unknown_recipient=0.1,
    retry_first=0.2,
    retry_most=0.5,
    failure_first=0.05,
    failure_most=0.3,
    verify=0.5,
)


class Lines(logging.Handler):
    """What sidecars in this loop say, to be awaited. Lines at DEBUG are only counted where `level` asks for them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._lines: list[logging.LogRecord] = []
        self._waiting = trio.lowlevel.ParkingLot()

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record)
        self._waiting.unpark_all()

    def of(self, event: str, *, level: int = logging.INFO, **facts: object) -> list[dict[str, Any]]:
        """The lines with this event and these facts, as one dictionary each."""
        found = [line.__dict__ for line in self._lines if line.getMessage() == event and line.levelno >= level]
        return [line for line in found if all(line.get(key) == value for key, value in facts.items())]

    @property
    def problems(self) -> list[str]:
        """The events at WARNING and above, in order, without what the start says of the configuration."""
        events = [line.getMessage() for line in self._lines if line.levelno >= logging.WARNING]
        return [event for event in events if not event.startswith(("preflight.", "certificate."))]

    async def heard(self, event: str, count: int = 1, *, level: int = logging.INFO, **facts: object) -> dict[str, Any]:
        """Wait for so many lines of this event; the last of them."""
        while len(found := self.of(event, level=level, **facts)) < count:
            await self._waiting.park()
        return found[count - 1]

    def __enter__(self) -> Self:
        self._logger = logging.getLogger("sidecar")
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


class World:
    """The servers, the people, and where the configuration of a sidecar goes."""

    def __init__(self, auth: AuthServer, chat: MattermostServer, folder: Path, lines: Lines) -> None:
        self.lines = lines
        self.auth = auth
        self.chat = chat
        self.folder = folder
        self.alice = chat.add_user("alice", email="alice@example.com")
        self.ivan = chat.add_user("ivan", email="ivan@example.com")
        self.bob = chat.add_user("bob", email="bob@example.com")
        self.bot = chat.add_bot("teleport")
        people = (self.alice, self.ivan, self.bob, self.bot)
        self.team = chat.add_team("ops", members=people)
        self.channel = chat.add_channel(self.team, "access-requests", members=people)
        self.credentials = auth.write_credentials(folder, "access-plugin")
        self.token_file = folder / "token"
        self.token_file.write_text(self.bot.token)

    def settings(self, **changes: str) -> dict[str, str]:
        """The flags of a sidecar; keys with "__" for the dot, as in the environment."""
        settings = {
            "teleport.addr": self.auth.addr,
            "teleport.client_crt": str(self.credentials.crt),
            "teleport.client_key": str(self.credentials.key),
            "teleport.root_cas": str(self.credentials.cas),
            "mattermost.url": self.chat.url,
            "mattermost.token_file": str(self.token_file),
            "mattermost.recipients": '["ops/access-requests"]',
            "mattermost.notify_requester": "false",
            "mattermost.max_posts_per_second": "1000",
            "endpoints.listen": "127.0.0.1:0",
        }
        return settings | {key.replace("__", "."): value for key, value in changes.items()}

    def config(self, **changes: str) -> Config:
        return load(None, {}, self.settings(**changes))

    def config_at(self, auth: AuthServer, **changes: str) -> Config:
        """The same with the Auth Service of another cluster."""
        folder = self.folder / auth.cluster
        folder.mkdir()
        there = auth.write_credentials(folder, "access-plugin")
        return self.config(
            teleport__addr=auth.addr,
            teleport__client_crt=str(there.crt),
            teleport__client_key=str(there.key),
            teleport__root_cas=str(there.cas),
            **changes,
        )

    def cards(self, channel: Any = None) -> list[Post]:
        """The root posts of the bot in a channel, oldest first."""
        posts = self.chat.posts(channel or self.channel)
        return [post for post in posts if post.user_id == self.bot.id and not post.root_id and not post.delete_at]

    def replies(self, card: Post) -> list[str]:
        """The messages in a card's thread, oldest first."""
        return [post.message for post in self.chat.thread(card) if post.id != card.id]

    def states(self, channel: Any = None) -> dict[str, list[str]]:
        """Request id -> the first word after the emoji of each card's `State`."""
        found: dict[str, list[str]] = {}
        for card in self.cards(channel):
            found.setdefault(card.props["tm"]["id"], []).append(field(card, "State").split()[-1])
        return found

    async def shows(self, state: str, count: int = 1) -> None:
        """Return when `count` cards in the channel show `state`."""
        await self.chat.wait_for(lambda: sum(states.count(state) for states in self.states().values()) >= count)

    def ask(self, count: int = 1, **more: Any) -> list[str]:
        """Bob asks for dbadmin so many times; the ids."""
        return [self.auth.create_request("bob@example.com", ["dbadmin"], **more) for _ in range(count)]

    async def told(self, ids: Iterable[str], state: str = "PENDING", channel: Any = None) -> None:
        """Return when each of these requests has a card that shows `state`; more than one fails."""
        wanted = set(ids)

        def all_told() -> bool:
            states = self.states(channel)
            assert all(len(shown) == 1 for shown in states.values()), "a request has two cards"
            return all(states.get(request_id) == [state] for request_id in wanted)

        await self.chat.wait_for(all_told)

    async def recorded(self, predicate: Callable[[], bool]) -> None:
        """Return when the Auth Service satisfies `predicate`."""
        # The test's own deadline abandons the thread long before an hour is over.
        await trio.to_thread.run_sync(partial(self.auth.wait_for, predicate, 3600.0), abandon_on_cancel=True)

    async def watched(self, watchers: int = 1) -> None:
        """Return when so many sidecars watch."""
        await self.recorded(lambda: self.auth.watchers >= watchers)

    async def released(self, request_id: str) -> dict[str, str]:
        """Return the plugin data of a request once nobody holds its record."""
        await self.recorded(lambda: '"owner":""' in self.auth.plugin_data(request_id).get("tm", ""))
        return self.auth.plugin_data(request_id)


def field(card: Post, title: str) -> str:
    """The text of one field of a card, "" where it has none."""
    fields = card.props["attachments"][0]["fields"]
    return next((str(one["value"]) for one in fields if one["title"] == title), "")


@asynccontextmanager
async def world(
    folder: Path, *, version: str = "7.0.0-dev", chat_version: str = "5.37.0", **auth: Any
) -> AsyncIterator[World]:
    """Both servers, running."""
    server = AuthServer.dual_authorization(version=version, **auth)
    async with trio.open_nursery() as nursery:
        chat = MattermostServer(chat_version)
        await nursery.start(chat.serve)
        with server, Lines() as lines:
            yield World(server, chat, folder, lines)
        nursery.cancel_scope.cancel()


class Running:
    """A sidecar in the test's loop."""

    def __init__(self, address: str, stop: trio.Event) -> None:
        self.url = f"http://{address}"
        self.stop = stop

    async def readiness(self) -> dict[str, Any]:
        async with httpx.AsyncClient() as client:
            body: dict[str, Any] = (await client.get(f"{self.url}/readyz")).json()
            return body

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with labels, without our prefix."""
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"{self.url}/metrics")).text
        lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
        return {name.removeprefix("teleport_mattermost_"): float(value) for name, _, value in lines}


@asynccontextmanager
async def running(config: Config, *, times: Times = USUAL) -> AsyncIterator[Running]:
    """A sidecar in this loop, from its first endpoint until it has drained."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(app.run, config, stop=stop, times=times))
        try:
            yield Running(address, stop)
        finally:
            stop.set()


class Reloading(Running):
    """A sidecar in the test's loop whose configuration may change."""

    def __init__(self, config: Config, lines: Lines) -> None:
        super().__init__("", trio.Event())
        self.config = config
        self._lines = lines

    async def reload(self, config: Config | None = None) -> None:
        """Let SIGHUP take this configuration, or the same again; return when it counts."""
        self.config = config or self.config
        count = len(self._lines.of("config.reloaded"))
        os.kill(os.getpid(), signal.SIGHUP)
        await self._lines.heard("config.reloaded", count + 1)


@asynccontextmanager
async def reloading(here: World, config: Config, *, times: Times = QUICK) -> AsyncIterator[Reloading]:
    """A sidecar in this loop that can be reloaded."""
    sidecar = Reloading(config, here.lines)
    async with trio.open_nursery() as nursery:
        run = partial(app.run, config, stop=sidecar.stop, times=times, reload=lambda: sidecar.config)
        sidecar.url = f"http://{await nursery.start(run)}"
        try:
            yield sidecar
        finally:
            sidecar.stop.set()


@asynccontextmanager
async def killed(config: Config, *, times: Times) -> AsyncIterator[None]:
    """A sidecar in this loop that is killed at the end, in the middle of whatever it does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(app.run, config, times=times))
        yield
        nursery.cancel_scope.cancel()


@contextmanager
def process(
    settings: dict[str, str], *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A sidecar as a process of its own; killed at the end if it still runs."""
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    child = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "run", *flags, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        if child.stderr is not None:
            child.stderr.close()
