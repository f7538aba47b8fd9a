"""Posts that cannot be read: each costs itself alone, whatever it is asked for among."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
import trio.testing

from sidecar.errors import LinkGarbled, UnreadableAnswer
from sidecar.mattermost.client import Away, MattermostClient, open_client
from sidecar.mattermost.pages import PAGE
from sidecar.model import Draft
from sidecar.simulator.mattermost.server import MattermostServer
from sidecar.simulator.mattermost.values import Channel, Post, User
from tests.mattermost_peer import Seen, always, answer, http_peer

DEEP = {"a": msgspec.Raw(b"[" * 3500 + b"]" * 3500)}
POSTS = ("GET", "/api/v4/channels/{channel_id}/posts")


class World(msgspec.Struct):
    server: MattermostServer
    client: MattermostClient
    bot: User
    alice: User
    mallory: User
    channel: Channel
    skipped: list[None]

    def talk(self, count: int, root_id: str = "") -> list[Post]:
        return [self.server.post(self.alice, self.channel, f"{number}", root_id=root_id) for number in range(count)]


@pytest.fixture(params=["5.37.0", "11.0.0"])
async def w(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[World]:
    server = MattermostServer(request.param)
    url = await nursery.start(server.serve)
    bot, alice, mallory = server.add_bot("teleport"), server.add_user("alice"), server.add_user("mallory")
    team = server.add_team("ops", members=(bot, alice, mallory))
    channel = server.add_channel(team, "access-requests", members=(bot, alice, mallory))
    skipped: list[None] = []
    async with open_client(
        url, lambda: bot.token, client=MattermostClient(Away(), lambda: skipped.append(None))
    ) as client:
        yield World(server, client, bot, alice, mallory, channel, skipped)


async def test_a_post_that_nests_too_deep_is_skipped_alone_counted_and_told_once(
    w: World, caplog: pytest.LogCaptureFixture
) -> None:
    before = w.talk(130)
    evil = w.server.post(w.mallory, w.channel, "approve", props=DEEP)
    after = w.talk(60)
    with trio.fail_after(10):
        await w.client.channel_posts(w.channel.id)
        found = await w.client.channel_posts(w.channel.id)
    assert [post.id for post in found] == [post.id for post in reversed([*before, evil, *after])]
    (skipped,) = [post for post in found if post.skipped]
    assert (skipped.id, skipped.user_id, skipped.channel_id) == (evil.id, w.mallory.id, w.channel.id)
    assert (skipped.create_at, skipped.message) == (evil.create_at, "")
    assert w.server.calls[POSTS] == 2 * 17
    assert len(w.skipped) == 1
    (line,) = [record for record in caplog.records if record.getMessage() == "post.skipped"]
    assert (line.levelno, line.__dict__["post_id"], line.__dict__["reason"]) == (logging.WARNING, evil.id, "too_deep")
    post = await w.client.get_post(evil.id)
    assert post == skipped


async def test_a_page_of_large_posts_is_read_in_smaller_ones(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.mattermost.transport.MAX_ANSWER_BYTES", 200_000)
    large = [w.server.post(w.mallory, w.channel, f"{number}", props={"a": "x" * 7000}) for number in range(50)]
    found = await w.client.channel_posts(w.channel.id, per_page=PAGE)
    assert [post.id for post in found] == [post.id for post in reversed(large)]
    assert not w.skipped
    monkeypatch.setattr("sidecar.mattermost.transport.MAX_ANSWER_BYTES", 6000)
    w.talk(9)
    last, *others = reversed(await w.client.channel_posts(w.channel.id, per_page=10))
    assert (last.skipped, last.id, last.user_id) == (True, large[-1].id, w.mallory.id)
    assert [post.message for post in others] == [f"{number}" for number in range(9)]
    assert len(w.skipped) == 1


async def test_a_thread_that_cannot_be_read_as_a_whole_is_picked_out_of_its_channel(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = await w.client.create_post(w.channel.id, Draft("card"), key="k", tm={"v": 1})
    w.talk(3)
    w.server.post(w.mallory, w.channel, "approve", props=DEEP, root_id=card.id)
    (reply,) = w.talk(1, card.id)
    found = await w.client.thread(card.id)
    assert [post.id for post in found if not post.skipped] == [card.id, reply.id]
    assert [(post.user_id, post.root_id) for post in found if post.skipped] == [(w.mallory.id, card.id)]
    # Longer than what is taken in at once, and than a page.
    monkeypatch.setattr("sidecar.mattermost.transport.MAX_ANSWER_BYTES", 200_000)
    replies = w.talk(PAGE, card.id)
    w.talk(10)
    found = await w.client.thread(card.id)
    assert [post.id for post in found if not post.skipped] == [card.id, reply.id, *(post.id for post in replies)]
    # Too far back.
    monkeypatch.setattr("sidecar.mattermost.pages._MAX_PAGES", 1)
    with pytest.raises(UnreadableAnswer):
        await w.client.thread(card.id)


async def test_two_pages_are_read_at_once_and_other_calls_beside_them() -> None:
    running: list[str] = []
    most: list[str] = []

    async def slow(seen: Seen) -> bytes:
        nonlocal most
        running.append(seen.target)
        most = max(most, list(running), key=len)
        await trio.testing.wait_all_tasks_blocked(0.01)
        running.remove(seen.target)
        return answer(200, {"order": [], "posts": {}, "id": "x"})

    async with (
        http_peer(slow) as peer,
        open_client(peer.url, lambda: "token") as client,
        trio.open_nursery() as nursery,
    ):
        for number in range(6):
            nursery.start_soon(client.channel_posts, f"c{number}")
            nursery.start_soon(client.thread, f"p{number}")
        nursery.start_soon(client.me)
    assert len(peer.seen) == 13
    assert len(most) == 3


async def test_what_is_no_list_of_posts_is_not_asked_for_again_and_again() -> None:
    for body in (b"<html>" + b"x" * 5_000_000, b"[" * 5000 + b"]" * 5000, b"<html>"):
        async with http_peer(always(answer(200, body))) as peer, open_client(peer.url, lambda: "token") as client:
            with pytest.raises(LinkGarbled):
                await client.channel_posts("c1")
        assert len(peer.seen) == 1


async def test_of_reactions_that_cannot_be_read_one_is_asked_for_again(w: World) -> None:
    other = w.server.add_channel(w.server.add_team("t", members=[w.bot]), "other", members=[w.bot])
    good = [(await w.client.create_post(w.channel.id, Draft("c"), key=f"a{n}", tm={})).id for n in range(6)]
    bad = [(await w.client.create_post(other.id, Draft("c"), key=f"b{n}", tm={})).id for n in range(6)]
    w.server.leave(other, w.bot)
    calls = ("POST", "/api/v4/posts/ids/reactions")
    for most in (23, 2, 2):
        w.server.calls.clear()
        assert set(await w.client.reactions([*good, *bad])) == set(good)
        assert w.server.calls[calls] <= most
    w.server.join(other, w.bot)
    assert set(await w.client.reactions([*good, *bad])) == {*good, *bad}
    w.server.calls.clear()
    assert set(await w.client.reactions([*good, *bad])) == {*good, *bad}
    assert w.server.calls[calls] == 1
