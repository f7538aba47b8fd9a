"""Each call against the simulated Mattermost, old and new, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from sidecar.errors import LinkLost, LinkRefused, PostRejected
from sidecar.mattermost import transport
from sidecar.mattermost.answers import PENDING_ID
from sidecar.mattermost.client import MattermostClient, open_client
from sidecar.model import Draft
from sidecar.simulator.mattermost.server import MattermostServer
from sidecar.simulator.mattermost.values import Channel, User

DRAFT = Draft("Access request 018f", {"color": "#ffbc1f", "fallback": "PENDING", "fields": []})
TM: dict[str, object] = {"v": 1, "k": "key", "id": "018f", "state": "PENDING"}


@pytest.fixture(params=["5.37.0", "11.0.0"])
async def server(request: pytest.FixtureRequest, nursery: trio.Nursery) -> MattermostServer:
    server = MattermostServer(request.param)
    await nursery.start(server.serve)
    return server


@pytest.fixture
def people(server: MattermostServer) -> tuple[User, User]:
    return server.add_bot("teleport"), server.add_user("alice")


@pytest.fixture
def channel(server: MattermostServer, people: tuple[User, User]) -> Channel:
    team = server.add_team("ops", members=people)
    return server.add_channel(team, "access-requests", private=True, members=people)


@asynccontextmanager
async def client_of(server: MattermostServer, user: User) -> AsyncIterator[MattermostClient]:
    async with open_client(server.url, lambda: user.token) as client:
        yield client


async def test_the_life_of_a_card(server: MattermostServer, people: tuple[User, User], channel: Channel) -> None:
    bot, alice = people
    async with client_of(server, bot) as client:
        card = await client.create_post(channel.id, DRAFT, key="key", tm=TM)
        assert (card.user_id, card.channel_id, card.key, card.request_id) == (bot.id, channel.id, "key", "018f")
        assert {"attachments", "tm", "from_bot"} <= card.props
        await client.patch_post(card.id, Draft("edited", {"text": "APPROVED"}), tm=TM | {"state": "APPROVED"})
        patched = await client.get_post(card.id)
        assert patched is not None
        assert (patched.message, patched.shown_state) == (DRAFT.message, "APPROVED")
        assert "from_bot" in patched.props
        reply = await client.create_post(channel.id, Draft("reviewed"), key="k2", tm=TM, root_id=card.id)
        [root] = [post for post in server.posts(channel) if post.id == card.id]
        answer = server.post(alice, channel, "approve", root_id=root.id)
        for post_id in (card.id, reply.id):
            found = [post.id for post in await client.thread(post_id)]
            assert found[0] == card.id
            assert sorted(found) == sorted([card.id, reply.id, answer.id])
        page = await client.channel_posts(channel.id)
        assert {post.id for post in page} == {card.id, reply.id, answer.id}
        assert [post.create_at for post in page] == sorted((post.create_at for post in page), reverse=True)
        assert await client.channel_posts(channel.id, 1, 2) == page[2:]
        await client.delete_post(card.id)
        assert await client.get_post(card.id) is None
        assert await client.thread(card.id) == []
        for again in (client.delete_post(card.id), client.patch_post(card.id, DRAFT, tm=TM)):
            with pytest.raises(PostRejected) as caught:
                await again
            assert caught.value.status == 403


async def test_reactions(server: MattermostServer, people: tuple[User, User], channel: Channel) -> None:
    bot, alice = people
    async with client_of(server, bot) as client:
        cards = [await client.create_post(channel.id, DRAFT, key=f"k{n}", tm=TM) for n in range(3)]
        assert await client.reactions([cards[0].id]) == {cards[0].id: []}
        await client.add_reaction(bot.id, cards[0].id, "white_check_mark")
        [post] = [post for post in server.posts(channel) if post.id == cards[1].id]
        server.react(alice, post, "x")
        [seeded] = (await client.reactions([cards[0].id]))[cards[0].id]
        assert (seeded.user_id, seeded.emoji_name, seeded.remote_id or "") == (bot.id, "white_check_mark", "")
        found = await client.reactions([card.id for card in cards])
        assert {post_id: [one.user_id for one in some] for post_id, some in found.items()} == {
            cards[0].id: [bot.id],
            cards[1].id: [alice.id],
            cards[2].id: [],
        }
        with pytest.raises(PostRejected):
            await client.add_reaction(alice.id, cards[0].id, "x")
        for _ in range(2):
            await client.remove_reaction(bot.id, cards[0].id, "white_check_mark")
        assert await client.reactions([cards[0].id]) == {cards[0].id: []}


async def test_people_and_places(server: MattermostServer, people: tuple[User, User], channel: Channel) -> None:
    bot, alice = people
    async with client_of(server, bot) as client:
        me = await client.me()
        assert (me.id, me.is_bot, me.email) == (bot.id, True, "teleport@localhost")
        for user in (
            await client.user(alice.id),
            await client.user_by_username("ALICE"),
            await client.user_by_email("alice@example.com"),
        ):
            assert user is not None
            assert (user.id, user.is_bot, user.delete_at) == (alice.id, False, 0)
        direct = await client.direct_channel(alice.id, bot.id)
        assert direct == await client.direct_channel(alice.id, bot.id)
        found = await client.channel(direct)
        assert found is not None
        assert (found.type, found.name) == ("D", "__".join(sorted([bot.id, alice.id])))
        assert {one.id for one in await client.my_channels()} >= {direct, channel.id}
        assert [team.name for team in await client.my_teams()] == ["ops"]
        named = await client.channel_by_name("ops", "access-requests")
        assert named is not None
        assert named.id == channel.id
        assert await client.member(channel.id)
        assert await client.member(channel.id, alice.id)
        assert not await client.member(channel.id, "x" * 26)
        assert (await client.config())["ShowEmailAddress"] == "true"


async def test_a_disabled_token_is_refused(server: MattermostServer, people: tuple[User, User]) -> None:
    bot, _ = people
    async with client_of(server, bot) as client:
        await client.me()
        server.disable_token(bot)
        with pytest.raises(LinkRefused):
            await client.me()


async def test_a_repeated_key_gives_the_first_post_and_a_busy_one_says_so(
    server: MattermostServer, people: tuple[User, User], channel: Channel
) -> None:
    bot, _ = people
    async with client_of(server, bot) as client:
        server.cut(method="POST", path="/api/v4/posts", when="after")
        with pytest.raises(LinkLost) as lost:
            await client.create_post(channel.id, DRAFT, key="key", tm=TM)
        assert lost.value.ambiguous
        again = await client.create_post(channel.id, DRAFT, key="key", tm=TM)
        assert [post.id for post in server.posts(channel)] == [again.id]
        server.processing = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.create_post(channel.id, DRAFT, key="other", tm=TM))
            await server.wait_for(lambda: server.calls["POST", "/api/v4/posts"] == 3)
            with pytest.raises(PostRejected) as busy:
                await client.create_post(channel.id, DRAFT, key="other", tm=TM)
        assert (busy.value.status, busy.value.error_id) == (500, PENDING_ID)
        assert len(server.posts(channel)) == 2


async def test_the_servers_own_rate_limit_is_waited_out(
    server: MattermostServer, people: tuple[User, User], channel: Channel
) -> None:
    bot, _ = people
    server.rate_limit(50, 5, vary_by_user=True)
    async with client_of(server, bot) as client, trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(lambda key: client.create_post(channel.id, DRAFT, key=key, tm=TM), f"k{number}")
    assert len(server.posts(channel)) == 12


async def test_a_bot_may_be_in_more_channels_than_are_taken_in_at_once(
    server: MattermostServer, people: tuple[User, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reviewer and requester is one more; 5.37 is asked team by team."""
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 10_000)
    bot, _ = people
    team = server.add_team("ops", members=people)
    for n in range(300):
        server.add_channel(team, f"channel-{n}", members=(bot,))
    async with client_of(server, bot) as client:
        found = await client.my_channels()
        assert len(found) >= 300
        assert len({one.name for one in found if one.type == "O"}) >= 300
