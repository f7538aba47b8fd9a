"""What people do in a row, and what is true of every message at its end."""

from __future__ import annotations

from functools import partial

import trio

from sidecar.simulator.mattermost import Post
from tests.bench.stage import Calls, Stage
from tests.world import field

APPROVE = "white_check_mark"


async def ask_and_wait(stage: Stage, count: int, recipients: int) -> float:
    before = stage.posts()
    began = trio.current_time()
    ids = stage.here.ask(count)
    await stage.until(lambda: stage.posts() >= before + count * recipients, 30)
    seconds = trio.current_time() - began
    if stage.subject == "sidecar":
        for request_id in ids:
            await stage.here.released(request_id)
    return seconds


async def broadcast_once(stage: Stage) -> tuple[float, int]:
    before = stage.posts()
    began = trio.current_time()
    (request_id,) = stage.here.ask()
    await stage.until(lambda: stage.posts() >= before + 100, 20)
    seconds = trio.current_time() - began
    if stage.subject == "sidecar":
        await stage.here.released(request_id)
    return seconds, stage.posts() - before


async def race_once(stage: Stage, count: int) -> tuple[float, bool]:
    """Everybody approves as soon as both cards stand; it ends with two approvals and one end in each thread."""
    here = stage.here
    began = trio.current_time()
    ids = here.ask(count)

    async def approve(request_id: str) -> None:
        await stage.until(lambda: len(cards(stage, request_id)) >= 2, 30)
        for author in ("alice@example.com", "ivan@example.com"):
            here.auth.review(request_id, author, "APPROVED", "ok")

    async with trio.open_nursery() as nursery:
        for request_id in ids:
            nursery.start_soon(approve, request_id)
    ended = await stage.until(lambda: all(shows_approved(stage, request_id) for request_id in ids), 30)
    seconds = trio.current_time() - began
    await quiet(stage)
    return seconds, ended


def shows_approved(stage: Stage, request_id: str) -> bool:
    """The official plugin writes no reply for the end; its attachment is one text."""
    found = cards(stage, request_id)
    if stage.subject == "official":
        return len(found) == 2 and all("APPROVED" in str(card.props) and len(card.replies) >= 2 for card in found)
    return len(found) == 2 and all("APPROVED" in field(card, "State") and len(card.replies) >= 3 for card in found)


def cards(stage: Stage, request_id: str) -> list[Post]:
    posts = stage.here.chat.all_posts.values()
    ours = [post for post in posts if post.user_id == stage.here.bot.id and not post.root_id and not post.delete_at]
    return [post for post in ours if request_id in post.message or request_id in str(post.props)]


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
    await here.chat.wait_for(lambda: len(here.replies(card)) >= 2)
    await here.released(request_id)
    return seconds


async def come_and_go(stage: Stage, count: int) -> None:
    here = stage.here
    before = stage.posts()
    ids = await trio.to_thread.run_sync(here.ask, count)
    await here.chat.wait_for(lambda: stage.posts() >= before + count)
    for request_id in ids:
        await here.released(request_id)
    for request_id in ids:
        here.auth.delete_request(request_id)
    for request_id in ids:
        await here.recorded(partial(is_done, stage, request_id))


def is_done(stage: Stage, request_id: str) -> bool:
    """Whether the record says that the request is over and told."""
    return '"done":true' in stage.here.auth.plugin_data(request_id).get("tm", "")


# -- what is true at the end ---------------------------------------------------------------------------------------


async def quiet(stage: Stage) -> None:
    """Wait until half a second has passed without a call that counts."""
    while True:
        calls = Calls(stage.here)
        await trio.sleep(0.5)
        if not calls.new():
            return


def told(stage: Stage) -> tuple[int, int]:
    """How many requests have a card, and how many have two in one channel."""
    found: dict[tuple[str, str], int] = {}
    for post in stage.here.chat.all_posts.values():
        if post.user_id == stage.here.bot.id and not post.root_id and not post.delete_at and not post.original_id:
            key = (post.channel_id, request_of(stage, post))
            found[key] = found.get(key, 0) + 1
    return len({request_id for _, request_id in found}), sum(1 for count in found.values() if count > 1)


def request_of(stage: Stage, post: Post) -> str:
    if stage.subject == "sidecar":
        return str(post.props["tm"]["id"])
    text = f"{post.message} {post.props}"
    return next((one.id for one in stage.here.auth.requests() if one.id in text), "")


def whole(stage: Stage, count: int) -> bool:
    lost, _ = lost_and_twice(stage)
    return lost == 0 and len(stage.here.auth.requests()) == count


def lost_and_twice(stage: Stage) -> tuple[int, int]:
    """Requests without both cards and all replies; and cards or replies of one identity that are there twice."""
    lost = twice = 0
    for request in stage.here.auth.requests():
        found = cards(stage, request.id)
        channels = [card.channel_id for card in found]
        twice += len(channels) - len(set(channels))
        wanted = len(request.reviews)
        replies = [[one for one in card.replies if not one.delete_at] for card in found]
        twice += sum(max(0, len(one) - wanted) for one in replies)
        if len(set(channels)) < 2 or any(len(one) < wanted for one in replies):
            lost += 1
    return lost, twice
