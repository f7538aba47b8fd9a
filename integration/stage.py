"""What a scenario plays on: an Auth Service, a Mattermost, people, and sidecars as processes of their own.

Rule: nothing here knows how the servers came to be. Every wait ends by the caller's deadline.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import trio

ROOT = Path(__file__).parent.parent


class Unavailable(Exception):
    """There are no such servers here; the text says why, in one line."""


class Credentials(NamedTuple):
    """The three files of `tctl auth sign --format=tls`."""

    crt: Path
    key: Path
    cas: Path


Settings = Mapping[str, object]


def direct_access(addr: str, files: Credentials) -> Settings:
    """The settings by which an Auth Service is reached directly."""
    return {
        "teleport.addr": addr,
        "teleport.client_crt": str(files.crt),
        "teleport.client_key": str(files.key),
        "teleport.root_cas": str(files.cas),
    }


class Channel(NamedTuple):
    """A channel; `recipient` is how the configuration names it."""

    id: str
    recipient: str


class Person(NamedTuple):
    """A human in Mattermost; the email is also the name of the Teleport user."""

    id: str
    username: str
    email: str
    token: str


class Review(NamedTuple):
    """A review as Teleport has it."""

    author: str
    proposed_state: str
    reason: str


class Card(NamedTuple):
    """A root post of the bot, with what the bot wrote in its thread, oldest first; without fields it is an answer."""

    id: str
    message: str
    fields: Mapping[str, str]
    replies: tuple[str, ...]

    @property
    def request_id(self) -> str:
        return self.message.rpartition(" ")[2]

    @property
    def state(self) -> str:
        """The last word of the field `State`: an emoji may stand before it."""
        return self.fields.get("State", "?").split()[-1]


class Cluster(Protocol):
    """An Auth Service. Bob may ask for one role, Alice and Ivan may review it: two approvals or one denial decide."""

    name: str
    requester: str
    reviewers: tuple[str, str]
    # A sidecar's settings: where Teleport is, and as whom it is met.
    access: Settings
    # Those of a sidecar that may read rules, and review: one approval of its own decides about the policed role.
    decider: str
    decider_access: Settings
    # A folder with each reviewer's own .crt and .key.
    identities: Path
    # Why requests cannot be reviewed here, why it has no access monitoring rules, why it cannot be restarted, and why
    # there is no Proxy on the way; "" where they can, it has, it can, and there is one.
    no_reviews: str
    no_rules: str
    no_restart: str
    no_proxy: str
    # Seconds in which a request surely becomes a card, and that are short to wait for.
    brief: float

    async def create_requests(
        self, count: int = 1, *, reason: bytes = b"", expires_in: float | None = None, policed: bool = False
    ) -> list[str]:
        """Ask as the requester, all at once, for the reviewers' role or for the policed one; the ids."""
        ...

    async def review(self, request_id: str, author: str, proposed_state: str, reason: str = "") -> None: ...

    async def approve(self, request_id: str, reason: str = "") -> None:
        """As `tctl requests approve`, past every threshold."""
        ...

    async def deny(self, request_id: str, reason: str = "") -> None: ...

    async def remove(self, *request_ids: str) -> None:
        """As `tctl requests rm`."""
        ...

    async def forget(self, *request_ids: str) -> None:
        """Remove those of the requests that are still there."""
        ...

    async def state(self, request_id: str) -> str:
        """The state as the Auth Service says it, "" when the request is gone."""
        ...

    async def reviews(self, request_id: str) -> list[Review]:
        """The reviews of a request that is there, oldest first."""
        ...

    async def add_rule(self, name: str, condition: str, plugin: str, recipient: str) -> None:
        """Add an access monitoring rule about access requests. Raises where the server does not take it."""
        ...

    async def remove_rule(self, name: str) -> None: ...

    async def renew(self) -> None:
        """Sign the sidecar's credentials anew, where they are."""
        ...

    def away(self) -> AbstractAsyncContextManager[None]:
        """Stop the Auth Service, and start it again at the end."""
        ...

    def proxy_away(self) -> AbstractAsyncContextManager[None]:
        """Stop the Proxy alone, and start it again at the end."""
        ...


class Chat(Protocol):
    """A Mattermost with a team, the bot, Alice, Ivan and Bob, and Mallory, whom Teleport does not know."""

    name: str
    url: str
    bot_token: str
    # Why it cannot be restarted; "" where it can.
    no_restart: str
    people: dict[str, Person]

    async def channel(self) -> Channel:
        """Make a private channel with the bot and all people in it."""
        ...

    async def direct(self, person: Person) -> Channel:
        """The direct channel of a person with the bot."""
        ...

    async def cards(self, channel: Channel) -> list[Card]: ...

    async def until(self, channel: Channel, true: Callable[[list[Card]], bool]) -> list[Card]:
        """Return the cards as soon as something holds for them."""
        ...

    async def mentions(self, channel: Channel, person: Person) -> int:
        """How many mentions wait unread for a person in a channel."""
        ...

    async def react(self, person: Person, card: Card, emoji: str) -> None: ...

    async def say(self, person: Person, channel: Channel, message: str, card: Card | None = None) -> str:
        """Post as a person, below a card where one is given; the post's id."""
        ...

    async def edit(self, person: Person, post_id: str, message: str) -> None: ...

    def away(self) -> AbstractAsyncContextManager[None]:
        """Stop Mattermost, and start it again at the end."""
        ...


class Sidecar:
    """A sidecar process and what it has logged."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._ended = False
        self._more = trio.Event()

    async def read(self) -> None:
        """Collect the log until the process is gone."""
        assert self.process.stderr is not None
        rest = b""
        async with self.process.stderr:
            async for chunk in self.process.stderr:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    print(line.decode())
                    self.lines.append(json.loads(line) if line.startswith(b"{") else {"event": line.decode()})
                self._more.set()
                self._more = trio.Event()
        self._ended = True
        self._more.set()

    async def logged(self, event: str, count: int = 1, **facts: object) -> dict[str, Any]:
        """Return the first, or a later, line of an event with these facts, waiting for it while the process lives."""
        while True:
            found = [line for line in self.lines if line["event"] == event and facts.items() <= line.items()]
            if len(found) >= count:
                return found[count - 1]
            assert not self._ended, f"the sidecar ended without {event}"
            await self._more.wait()

    async def ready(self) -> None:
        """Return once both links have worked."""
        await self.logged("link.ready", link="teleport")
        await self.logged("link.ready", link="mattermost")

    async def stop(self) -> int:
        """Ask it to stop, as an orchestrator does; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()


@dataclass
class Stage:
    """One scenario's servers, its own channel and plugin name, and where its sidecars find their files."""

    cluster: Cluster
    chat: Chat
    folder: Path
    channel: Channel
    plugin_name: str = field(default_factory=lambda: f"check-{secrets.token_hex(4)}")
    request_ids: list[str] = field(default_factory=list)

    async def ask(
        self, count: int = 1, *, reason: bytes = b"fix it", expires_in: float | None = None, policed: bool = False
    ) -> list[str]:
        """Bob asks; the ids."""
        found = await self.cluster.create_requests(count, reason=reason, expires_in=expires_in, policed=policed)
        self.request_ids += found
        return found

    async def until(self, true: Callable[[list[Card]], bool], channel: Channel | None = None) -> list[Card]:
        """Return the cards of this scenario's requests as soon as something holds for them."""

        def ours(cards: list[Card]) -> list[Card]:
            return [card for card in cards if card.request_id in self.request_ids]

        return ours(await self.chat.until(channel or self.channel, lambda cards: true(ours(cards))))

    async def shows(self, request_id: str, state: str) -> Card:
        """Return the one card of a request as soon as it shows a state and its thread tells of it."""

        def found(cards: list[Card]) -> list[Card]:
            return [card for card in cards if card.request_id == request_id]

        def told(cards: list[Card]) -> bool:
            return any(card.state == state and _told(card, state) for card in found(cards))

        (card,) = found(await self.until(told))
        return card

    async def show(self, states: Mapping[str, str]) -> Sequence[Card]:
        """Return all cards as soon as there is one for each request and it shows its state."""
        return await self.until(lambda cards: _states(cards) == {key: [state] for key, state in states.items()})

    @asynccontextmanager
    async def sidecar(
        self, more: Settings | None = None, *, ready: bool = True, **settings: object
    ) -> AsyncIterator[Sidecar]:
        """Run a sidecar, killed at the end if it still runs; `settings` with "__" for the dot, `more` with the dot."""
        number = len(list(self.folder.glob("*.toml")))
        file = self.folder / f"sidecar-{number}.toml"
        merged = self._settings() | dict(more or {})
        merged |= {key.replace("__", "."): value for key, value in settings.items()}
        # A TOML value of these types reads as JSON does.
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in merged.items()))
        command = [sys.executable, "-m", "sidecar", "run", "--config", str(file)]
        process = await trio.lowlevel.open_process(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"NO_PROXY": "127.0.0.1"},
        )
        sidecar = Sidecar(process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sidecar.read)
            try:
                if ready:
                    await sidecar.ready()
                yield sidecar
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()

    def _settings(self) -> dict[str, object]:
        token = self.folder / "token"
        token.write_text(self.chat.bot_token)
        return {
            **self.cluster.access,
            "teleport.plugin_name": self.plugin_name,
            "mattermost.url": self.chat.url,
            "mattermost.token_file": str(token),
            "mattermost.recipients": [self.channel.recipient],
            "mattermost.suggested_reviewers": "off",
            "mattermost.notify_requester": False,
            "mattermost.max_posts_per_second": 200,
            "endpoints.listen": "127.0.0.1:0",
            "log.format": "json",
        }


Scenario = Callable[[Stage], Awaitable[None]]


@asynccontextmanager
async def open_stage(cluster: Cluster, chat: Chat, folder: Path) -> AsyncIterator[Stage]:
    """A fresh channel on the servers; the requests of the scenario are removed at the end."""
    stage = Stage(cluster, chat, folder, await chat.channel())
    try:
        yield stage
    finally:
        with trio.move_on_after(30, shield=True):
            if stage.request_ids:
                await cluster.forget(*stage.request_ids)


def _states(cards: Sequence[Card]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for card in cards:
        found.setdefault(card.request_id, []).append(card.state)
    return found


def _told(card: Card, state: str) -> bool:
    return state == "PENDING" or any(f" is now {state}." in reply for reply in card.replies)
