"""What people do in a row, and what is true of every message at its end."""

from __future__ import annotations

import re
import time
from functools import partial

import trio

from sidecar.decisions.record import KEY, Record, Slot, encode, new_seed
from sidecar.simulator.mattermost.server import Post
from tests.bench.stage import Calls, Stage
from tests.world import field

APPROVE = "white_check_mark"
REVIEWERS = ("alice@example.com", "ivan@example.com")
_REQUEST_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def ask_and_wait(stage: Stage, count: int, recipients: int) -> float | None:
    """Seconds until all are told; None when they are not."""
    before = stage.posts()
    began = trio.current_time()
    ids = stage.here.ask(count)
    told = await stage.until(lambda: stage.posts() >= before + count * recipients, 30, stall=10)
    seconds = trio.current_time() - began
    if told:
        await released(stage, ids)
    return seconds if told else None


async def broadcast_once(stage: Stage) -> tuple[float | None, int]:
    """Seconds until a hundred people are told, None when they are not; and how many are."""
    before = stage.posts()
    began = trio.current_time()
    ids = stage.here.ask()
    told = await stage.until(lambda: stage.posts() >= before + 100, 30, stall=10)
    seconds = trio.current_time() - began
    if told:
        await released(stage, ids)
    return seconds if told else None, stage.posts() - before


async def race_once(stage: Stage, count: int) -> tuple[float | None, int]:
    """Everybody approves as soon as both cards stand. Seconds until all of it is told, and of how many it is."""
    here = stage.here
    began = trio.current_time()
    ids = here.ask(count)

    async def approve(request_id: str) -> None:
        if await stage.until(lambda: len(cards(stage).get(request_id, ())) >= 2, 30):
            for author in REVIEWERS:
                here.auth.review(request_id, author, "APPROVED", "ok")

    def ended() -> int:
        found = cards(stage)
        return sum(shows_approved(stage, found.get(request_id, [])) for request_id in ids)

    async with trio.open_nursery() as nursery:
        for request_id in ids:
            nursery.start_soon(approve, request_id)
    everything = await stage.until(lambda: ended() == count, 20)
    seconds = trio.current_time() - began
    await quiet(stage)
    return seconds if everything else None, ended()


def shows_approved(stage: Stage, found: list[Post]) -> bool:
    """Whether both recipients see that the request is approved, and by whom: the same of either program.

    The official plugin's card is its text, with the state in the line `**Status**: ✅ APPROVED`.
    """

    def state(card: Post) -> str:
        return field(card, "State") if stage.subject == "sidecar" else card.message.partition("**Status**:")[2]

    def by_both(card: Post) -> bool:
        return all(any(author in reply.message for reply in card.replies) for author in REVIEWERS)

    return len(found) == 2 and all("APPROVED" in state(card) and by_both(card) for card in found)


def cards(stage: Stage) -> dict[str, list[Post]]:
    """The bot's root posts that stand, by the request of which they tell."""
    found: dict[str, list[Post]] = {}
    for post in stage.here.chat.all_posts.values():
        if post.user_id == stage.here.bot.id and not post.root_id and not post.delete_at:
            found.setdefault(request_of(post), []).append(post)
    return found


def request_of(post: Post) -> str:
    if "tm" in post.props:
        return str(post.props["tm"]["id"])
    named = _REQUEST_ID.search(post.message)
    return named.group() if named else ""


async def released(stage: Stage, ids: list[str]) -> None:
    """Wait until the sidecar has saved what it did for these; how the official plugin saves is its own business."""
    if stage.subject == "sidecar":
        for request_id in ids:
            await stage.here.released(request_id)


async def react_once(stage: Stage) -> float:
    here = stage.here
    before = stage.posts()
    (request_id,) = here.ask()
    await here.chat.wait_for(lambda: stage.posts() > before)
    await here.released(request_id)
    card = here.cards()[-1]
    submitted = len(here.auth.submissions)
    began = trio.current_time()
    here.chat.react(here.alice, card, APPROVE)
    await here.recorded(lambda: len(here.auth.submissions) > submitted)
    seconds = trio.current_time() - began
    await here.chat.wait_for(lambda: len(here.replies(card)) >= 1)
    await here.released(request_id)
    return seconds


async def come_and_go(stage: Stage, count: int) -> None:
    here = stage.here
    before = stage.posts()
    ids = await trio.to_thread.run_sync(here.ask, count)
    await here.chat.wait_for(lambda: stage.posts() >= before + count)
    await released(stage, ids)
    for request_id in ids:
        here.auth.delete_request(request_id)
    for request_id in ids:
        await here.recorded(partial(is_done, stage, request_id))


def plant(stage: Stage, channels: list[str], count: int) -> None:
    """Open requests that were announced long ago: their records, without the time that it takes to post."""
    here = stage.here
    ids = {f"ops/{one.name}": one.id for one in here.chat.channels.values()}
    for request_id in here.ask(count, expires_in=3000):
        request = here.auth.request(request_id)
        assert request is not None
        post = request_id.replace("-", "")[:25]
        slots = tuple(
            Slot(r=name, c=ids[name], p=f"{post}{n % 10}", s="posted", h="h" * 16, shown=("PENDING", 0), since=1)
            for n, name in enumerate(channels)
        )
        record = Record(new_seed(), "", int(time.time()), int(request.expires or 0), ("PENDING", 0), slots)
        here.auth.write_plugin_data(request_id, {KEY: encode(record)})


def is_done(stage: Stage, request_id: str) -> bool:
    """Whether the record says that the request is over and told."""
    return '"done":true' in stage.here.auth.plugin_data(request_id).get("tm", "")


# -- what is true at the end ---------------------------------------------------------------------------------------


async def quiet(stage: Stage) -> None:
    """Wait until half a second has passed without a call that counts; not for ever, for some never stop asking."""
    with trio.move_on_after(20):
        while True:
            calls = Calls(stage.here)
            await trio.sleep(0.5)
            if not calls.new():
                return


def told(stage: Stage) -> tuple[int, int]:
    """How many requests have a card, and how many have two in one channel."""
    found = cards(stage).values()
    return len(found), sum(len({card.channel_id for card in some}) < len(some) for some in found)


def whole(stage: Stage, count: int) -> bool:
    lost, _ = lost_and_twice(stage)
    return lost == 0 and len(stage.here.auth.requests()) == count


def lost_and_twice(stage: Stage) -> tuple[int, int]:
    """Requests without both cards and all replies; and cards or replies of one identity that are there twice."""
    lost = twice = 0
    everything = cards(stage)
    for request in stage.here.auth.requests():
        found = everything.get(request.id, [])
        channels = [card.channel_id for card in found]
        twice += len(channels) - len(set(channels))
        wanted = len(request.reviews)
        replies = [[one for one in card.replies if not one.delete_at] for card in found]
        twice += sum(max(0, len(one) - wanted) for one in replies)
        if len(set(channels)) < 2 or any(len(one) < wanted for one in replies):
            lost += 1
    return lost, twice
