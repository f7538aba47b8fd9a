"""The row `real`: this sidecar and the official plugin, one after the other, on the same real servers.

What is measured ends when a member of the channel is told of it, by the websocket of Mattermost, as a person's client.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import trio
from trio_websocket import ConnectionClosed, open_websocket_url

from integration import binaries
from integration.mattermost import RealChat
from integration.stage import Channel
from integration.teleport import RealCluster
from tests.bench.child import Child, child, sidecar_command
from tests.bench.stage import Measure, Options, Subject, Turn, official_command

_ROUNDS = 5
_EACH = 10
# Else a watch on this backend is late by up to a second, whoever watches; in nanoseconds.
_STORAGE = {"type": "sqlite", "poll_stream_period": 10_000_000}

WHATS = CARD, CHANGED, CPU = "request to card, p50", "review to changed card, p50", "CPU a request, with its review"


def is_possible(options: Options) -> bool:
    """Whether the environment names both servers, and the command line the other program."""
    named = {"TELEPORT_BIN", "MATTERMOST_HOME", "MATTERMOST_DSN"} <= os.environ.keys()
    return named and options.official is not None


async def real(turn: Turn) -> AsyncIterator[Measure]:
    """A request to its card, and a denial to the card that shows it: medians of alternating runs, requester told."""
    found: dict[Subject, list[dict[str, float]]] = {"official": [], "sidecar": []}
    rounds, each = (2, 5) if turn.quick else (_ROUNDS, _EACH)
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        cluster, chat = await trio.to_thread.run_sync(_servers, stack, folder)
        stack.enter_context(cluster.connected())
        for _ in range(rounds):
            for subject, runs in found.items():
                runs.append(await _run(subject, cluster, chat, folder, turn.options, each))
    where = f"{cluster.name}, {chat.name}"
    middles = {
        (subject, what): median(run[what] for run in runs) for subject, runs in found.items() for what in runs[0]
    }
    asked = {CARD: ("<= 1.0 of the official plugin's", 1.0), CHANGED: ("<= 0.8 of the official plugin's", 0.8)}
    for (subject, what), value in middles.items():
        spread = [run[what] for run in found[subject]]
        note = f"{where}; {min(spread):.1f} to {max(spread):.1f} in {rounds} runs"
        target, limit = asked.get(what, ("", 0.0))
        met = value <= limit * middles["official", what]
        yield Measure(
            turn.row,
            what,
            value,
            "ms",
            subject=subject,
            target=target,
            met=met if target and subject == "sidecar" else None,
            note=note,
        )


def _servers(stack: ExitStack, folder: Path) -> tuple[RealCluster, RealChat]:
    tag = secrets.token_hex(3)
    emails = {name: f"{name}-{tag}@example.com" for name in ("bob", "alice", "ivan", "mallory")}
    auth = binaries.AuthService(folder, _STORAGE)
    stack.callback(auth.stop)
    mattermost = binaries.Mattermost(folder)
    stack.callback(mattermost.stop)
    return RealCluster(auth, folder, emails), RealChat(mattermost, emails)


async def _run(
    subject: Subject, cluster: RealCluster, chat: RealChat, folder: Path, options: Options, each: int
) -> dict[str, float]:
    """A fresh process in a fresh channel; the first two requests only warm it up."""
    channel = await chat.channel()
    cards: list[float] = []
    changes: list[float] = []
    async with _watching(chat, channel) as seen, _program(subject, cluster, chat, channel, folder, options) as program:
        cpu = 0.0
        for number in range(each + 2):
            if number == 2:
                await trio.sleep(1.0)
                cpu = program.cpu_seconds()
                cards.clear()
                changes.clear()
            began = trio.current_time()
            (request_id,) = await cluster.create_requests(reason=b"fix it")
            cards.append(await seen.heard("posted", request_id, "") - began)
            await trio.sleep(0.5)
            began = trio.current_time()
            await _deny(cluster, request_id)
            changes.append(await seen.heard("post_edited", request_id, "DENIED") - began)
            await trio.sleep(0.5)
        cost = (program.cpu_seconds() - cpu) / each
    return {CARD: median(cards) * 1000, CHANGED: median(changes) * 1000, CPU: cost * 1000}


async def _deny(cluster: RealCluster, request_id: str) -> None:
    """By a review; the community edition has none, so there as an administrator, which changes the card alike."""
    if cluster.no_reviews:
        await cluster.resolve(request_id, "DENIED", "not today")
    else:
        await cluster.review(request_id, cluster.reviewers[0], "DENIED", "not today")


@asynccontextmanager
async def _program(
    subject: Subject, cluster: RealCluster, chat: RealChat, channel: Channel, folder: Path, options: Options
) -> AsyncIterator[Child]:
    token = folder / "token"
    token.write_text(chat.bot_token)
    access = {key: str(value) for key, value in cluster.access.items()}
    if subject == "official":
        files = tuple(access[f"teleport.{name}"] for name in ("client_crt", "client_key", "root_cas"))
        command = official_command(
            options, folder, access["teleport.addr"], files, (chat.url, chat.bot_token), [channel.recipient]
        )
    else:
        command = sidecar_command(
            access
            | {
                "teleport.plugin_name": f"bench-{secrets.token_hex(4)}",
                "mattermost.url": chat.url,
                "mattermost.token_file": str(token),
                "mattermost.recipients": json.dumps([channel.recipient]),
                "mattermost.suggested_reviewers": "off",
                "endpoints.listen": "127.0.0.1:0",
            }
        )
    async with child(command) as program:
        if subject == "sidecar":
            await program.ready()
        else:
            # It does not say when it watches.
            await trio.sleep(3.0)
        yield program


class _Seen:
    """What a member of the channel was told, and when."""

    def __init__(self) -> None:
        self._news: list[tuple[str, str, float]] = []
        self._more = trio.Event()

    def add(self, kind: str, post: str) -> None:
        self._news.append((kind, post, trio.current_time()))
        self._more.set()
        self._more = trio.Event()

    async def heard(self, kind: str, *words: str) -> float:
        """When the first root post with these words was told of, waiting for it."""
        with trio.fail_after(30):
            while True:
                for one, post, when in self._news:
                    if one == kind and all(word in post for word in words):
                        return when
                await self._more.wait()


@asynccontextmanager
async def _watching(chat: RealChat, channel: Channel) -> AsyncIterator[_Seen]:
    """Listen as Alice does."""
    seen = _Seen()
    url = chat.url.replace("http", "ws", 1) + "/api/v4/websocket"
    headers = [(b"Authorization", f"Bearer {chat.people['alice'].token}".encode())]
    async with open_websocket_url(url, extra_headers=headers) as socket, trio.open_nursery() as nursery:

        async def listen() -> None:
            try:
                while True:
                    _take(json.loads(await socket.get_message()), channel, seen.add)
            except ConnectionClosed:
                return

        nursery.start_soon(listen)
        yield seen
        nursery.cancel_scope.cancel()


def _take(event: dict[str, Any], channel: Channel, add: Callable[[str, str], None]) -> None:
    if event.get("event") in ("posted", "post_edited"):
        post = json.loads(event["data"]["post"])
        if post["channel_id"] == channel.id and not post["root_id"]:
            add(event["event"], json.dumps([post["message"], post["props"]]))
