"""Recipient names against the simulated Mattermost, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from sidecar.errors import LinkLost, RecipientError
from sidecar.mattermost.client import MattermostClient, open_client
from sidecar.mattermost.recipients import Recipients
from sidecar.model import Destination
from sidecar.simulator.mattermost.faults import Fault
from sidecar.simulator.mattermost.server import Answer, MattermostServer
from sidecar.simulator.mattermost.values import Channel, Team, User
from tests.mattermost_peer import always, answer, app_error, http_peer


class World(msgspec.Struct):
    server: MattermostServer
    client: MattermostClient
    recipients: Recipients
    bot: User
    alice: User
    ops: Team
    requests: Channel

    async def refused(self, name: str) -> RecipientError:
        with pytest.raises(RecipientError) as caught:
            await self.recipients.resolve(name)
        return caught.value


@asynccontextmanager
async def world(version: str = "11.0.0") -> AsyncIterator[World]:
    server = MattermostServer(version)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        bot, alice = server.add_bot("teleport"), server.add_user("alice")
        ops = server.add_team("ops", display_name="Operations", members=[bot, alice])
        channel = server.add_channel(ops, "access-requests", private=True, members=[bot, alice])
        async with open_client(server.url, lambda: bot.token) as client:
            yield World(server, client, Recipients(client), bot, alice, ops, channel)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def w() -> AsyncIterator[World]:
    async with world() as one:
        yield one


@pytest.mark.parametrize("version", ["5.37.0", "11.0.0"])
async def test_every_way_to_write_a_recipient(version: str) -> None:
    async with world(version) as w:
        channel = Destination(w.requests.id, "channel")
        direct = w.server.open_direct(w.bot, w.alice)
        alice = Destination(direct.id, "direct", w.alice.id)
        named = {
            "ops/access-requests": channel,
            " Ops/Access-Requests ": channel,
            "~access-requests": channel,
            w.requests.id: channel,
            "@alice": alice,
            "@Alice": alice,
            "alice@example.com": alice,
            "ALICE@Example.com": alice,
            direct.id: alice,
        }
        for name, destination in named.items():
            assert await w.recipients.resolve(name) == destination, name


@pytest.mark.parametrize("version", ["5.37.0", "11.0.0"])
async def test_what_cannot_be_reached_says_why(version: str) -> None:
    async with world(version) as w:
        other = w.server.add_team("other")
        w.server.add_channel(other, "town-square")
        w.server.add_channel(w.ops, "public")
        w.server.add_channel(w.ops, "secret", private=True)
        old = w.server.add_channel(w.ops, "old", members=[w.bot])
        w.server.archive(old)
        gone = w.server.add_user("gone")
        w.server.deactivate(gone)
        between_others = w.server.open_direct(w.alice, w.server.add_user("bob"))
        reasons = {
            "ops/nope": "not_found",
            "ops/secret": "not_found",
            "nope/x": "not_found",
            "other/town-square": "not_member",
            "ops/public": "not_member",
            old.id: "archived",
            "~nope": "not_found",
            "@nobody": "not_found",
            "nobody@example.com": "not_found",
            "@gone": "deactivated",
            "gone@example.com": "deactivated",
            "@teleport": "invalid",
            "x" * 26: "not_found",
            between_others.id: "not_member",
        }
        for name, reason in reasons.items():
            error = await w.refused(name)
            assert (name, error.reason) == (name, reason)
            assert name in error.detail


@pytest.mark.parametrize(
    "name",
    ["", "ops", "@", "@..", "@a/b", "@a b", "a@", "a@b@c", "/", "ops/", "/x", "ops/../x", "a/b/c", "?", "~", "\0"],
)
async def test_what_is_no_name_is_refused_without_a_look_up_by_it(name: str) -> None:
    async with world() as w:
        error = await w.refused(name)
        assert error.reason in {"invalid", "not_found"}
        paths = {path for _, path, _ in w.server.requests}
    assert paths <= {"/api/v4/users/me/teams", "/api/v4/users/me/channels"}


@pytest.mark.parametrize(
    ("link", "name"),
    [
        ("https://chat.example.com/ops/channels/requests", "ops/requests"),
        ("https://chat.example.com/sub/path/ops/channels/requests/", "ops/requests"),
        ("chat.example.com/ops/channels/requests", "ops/requests"),
        ("ops/channels/requests", "ops/requests"),
        ("https://chat.example.com/ops/messages/@alice", "@alice"),
    ],
)
async def test_a_link_gets_the_name_to_write(w: World, link: str, name: str) -> None:
    error = await w.refused(link)
    assert (error.reason, error.detail) == ("invalid", f"{link}: this is a link; write {name}")


async def test_an_archived_channel_is_told_from_a_missing_one() -> None:
    archived = answer(200, {"id": "c1", "name": "old", "delete_at": 1795333316126})
    async with http_peer(always(archived)) as peer, open_client(peer.url, lambda: "token") as client:
        with pytest.raises(RecipientError) as caught:
            await Recipients(client).resolve("ops/old")
    assert caught.value.reason == "archived"
    assert peer.seen[0].target == "/api/v4/teams/name/ops/channels/name/old?include_deleted=true"


async def test_a_name_in_two_teams_is_ambiguous() -> None:
    async with world() as w:
        dev = w.server.add_team("dev", members=[w.bot])
        w.server.add_channel(dev, "access-requests", members=[w.bot])
        error = await w.refused("~access-requests")
    assert error.reason == "ambiguous"
    assert "dev/access-requests, ops/access-requests" in error.detail


@pytest.mark.parametrize("name", ["ops/Access Requests", "Operations/Access Requests", "~Access Requests", "ops/acc"])
async def test_a_display_name_gets_the_url_name_as_a_suggestion(name: str) -> None:
    async with world() as w:
        channel = w.server.add_channel(w.ops, "acc-req-2", display_name="Access Requests", members=[w.bot])
        assert channel.name == "acc-req-2"
        error = await w.refused(name)
    assert ("ops/acc-req-2" in error.detail) is ("Access" in name)


async def test_what_mattermost_refuses_for_reasons_of_its_own_is_remembered_as_such() -> None:
    for status, reason in ((400, "invalid"), (403, "forbidden")):
        refuse = always(app_error(status, "x.y"))
        async with http_peer(refuse) as peer, open_client(peer.url, lambda: "token") as client:
            recipients = Recipients(client)
            for _ in range(2):
                with pytest.raises(RecipientError) as caught:
                    await recipients.resolve("@alice")
                assert caught.value.reason == reason
                assert f"{status} x.y" in caught.value.detail
        assert len(peer.seen) == 1


async def test_without_a_channel_of_that_name_the_suggestion_is_a_guess() -> None:
    async with world() as w:
        error = await w.refused("ops/Town Square")
    assert "ops/town-square" in error.detail


async def test_hidden_addresses_are_forbidden_and_the_fix_is_named(w: World) -> None:
    w.server.configure(ShowEmailAddress="false")
    error = await w.refused("alice@example.com")
    assert error.reason == "forbidden"
    assert "@username" in error.detail
    assert (await w.recipients.resolve("@alice")).user_id == w.alice.id


async def test_restricted_direct_messages_are_forbidden() -> None:
    async with world() as w:
        w.server.configure(RestrictDirectMessage="team")
        w.server.add_user("stranger")
        error = await w.refused("@stranger")
    assert error.reason == "forbidden"
    assert "RestrictDirectMessage" in error.detail


async def test_a_hundred_who_ask_for_one_name_make_one_look_up(w: World) -> None:
    w.server.latency = 0.01
    found: list[Destination] = []

    async def ask() -> None:
        found.append(await w.recipients.resolve("ops/access-requests"))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert found == [Destination(w.requests.id, "channel")] * 100
    assert sum(w.server.calls.values()) == 2
    await w.recipients.resolve("ops/access-requests")
    assert sum(w.server.calls.values()) == 2


async def test_a_failing_link_fails_all_who_wait_at_once_and_is_not_remembered(w: World) -> None:
    fault = w.server.fail(path="/api/v4/teams/name/*", times=None)
    errors: list[LinkLost] = []

    async def ask() -> None:
        with pytest.raises(LinkLost) as caught:
            await w.recipients.resolve("ops/access-requests")
        errors.append(caught.value)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
    assert fault.hits == 1
    assert len({id(error) for error in errors}) == 50
    assert {error.reason for error in errors} == {"server_error"}
    fault.stop()
    assert (await w.recipients.resolve("ops/access-requests")).channel_id == w.requests.id


async def test_a_cancelled_look_up_is_taken_over_by_one_who_waits(w: World) -> None:
    hang = w.server.hang(path="/api/v4/teams/name/*")
    found: list[Destination] = []

    async def ask() -> None:
        found.append(await w.recipients.resolve("ops/access-requests"))

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(ask)
                await w.server.wait_for(lambda: hang.hits == 1)
                for _ in range(10):
                    nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                first.cancel()
    assert len(found) == 10


async def test_answers_are_remembered_for_minutes_and_refusals_for_seconds(
    w: World,
    mock_clock: trio.testing.MockClock,
) -> None:
    await w.recipients.resolve("ops/access-requests")
    assert (await w.refused("ops/new")).reason == "not_found"
    new = w.server.add_channel(w.ops, "new", members=[w.bot])
    w.server.leave(w.requests, w.bot)
    mock_clock.jump(29)
    assert (await w.refused("ops/new")).reason == "not_found"
    mock_clock.jump(2)
    assert (await w.recipients.resolve("ops/new")).channel_id == new.id
    assert (await w.recipients.resolve("ops/access-requests")).channel_id == w.requests.id
    mock_clock.jump(600)
    assert (await w.refused("ops/access-requests")).reason == "not_found"


async def test_what_was_forgotten_is_asked_again(w: World) -> None:
    await w.recipients.resolve("ops/access-requests")
    w.server.leave(w.requests, w.bot)
    w.recipients.forget(" OPS/access-requests")
    assert (await w.refused("ops/access-requests")).reason == "not_found"
    w.server.join(w.requests, w.bot)
    w.recipients.clear()
    assert (await w.recipients.resolve("ops/access-requests")).channel_id == w.requests.id


async def test_a_flood_of_names_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.mattermost.recipients._MAX_NAMES", 5)
    async with world() as w:
        for number in range(20):
            await w.refused(f"nobody{number}")
        await w.recipients.resolve("@alice")
        assert len(w.recipients._found) == 5
        before = sum(w.server.calls.values())
        await w.recipients.resolve("@alice")
        assert sum(w.server.calls.values()) == before


# many at once


async def resolve_all(w: World, names: list[str]) -> dict[str, Destination | Exception]:
    found: dict[str, Destination | Exception] = {}

    async def ask(name: str) -> None:
        try:
            found[name] = await w.recipients.resolve(name)
        except (LinkLost, RecipientError) as exc:
            found[name] = exc

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ask, name)
    return found


USERNAMES, DIRECT = ("POST", "/api/v4/users/usernames"), ("POST", "/api/v4/channels/direct")


@pytest.mark.parametrize("version", ["5.37.0", "11.0.0"])
async def test_a_hundred_people_are_asked_for_at_once_and_known_channels_are_not_opened(version: str) -> None:
    async with world(version) as w:
        people = [w.server.add_user(f"user{number}") for number in range(100)]
        for person in people[:90]:
            w.server.open_direct(w.bot, person)
        await w.client.me()  # as the link does before anything else
        names = [f"@{person.username}" for person in people[:50]] + [f"user:{person.id}" for person in people[50:]]
        found = await resolve_all(w, [*names, "@nobody", "user:" + "x" * 26])
        for name, person in zip(names, people, strict=True):
            assert found[name] == Destination(w.server.open_direct(w.bot, person).id, "direct", person.id)
        assert {str(found[name]).partition(": ")[2] for name in ("@nobody", "user:" + "x" * 26)} == {
            "there is no such user"
        }
        assert (w.server.calls[USERNAMES], w.server.calls["POST", "/api/v4/users/ids"]) == (1, 1)
        assert w.server.calls[DIRECT] == 10
        assert sum(w.server.calls.values()) < 30


async def test_a_bulk_look_up_that_fails_is_repeated_one_by_one(w: World) -> None:
    people = [w.server.add_user(f"user{number}") for number in range(10)]
    w.server.fail(path=USERNAMES[1], method="POST", times=None)
    w.server.fail(path="/api/v4/users/me/channels", times=None)
    found = await resolve_all(w, [f"@{person.username}" for person in people])
    assert {one.user_id for one in found.values() if isinstance(one, Destination)} == {one.id for one in people}
    assert w.server.calls[DIRECT] == 10


async def test_a_bulk_look_up_that_is_late_is_repeated_one_by_one(w: World, mock_clock: trio.testing.MockClock) -> None:
    w.server.add_user("carol")
    hang = w.server.hang(path=USERNAMES[1], method="POST", times=None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jump_once, mock_clock, w, hang, 2.1)
        found = await resolve_all(w, ["@alice", "@carol"])
    assert all(isinstance(one, Destination) for one in found.values()), found


async def jump_once(clock: trio.testing.MockClock, w: World, fault: Fault, seconds: float) -> None:
    await w.server.wait_for(lambda: fault.hits)
    clock.jump(seconds)


async def test_a_name_whose_look_up_hangs_costs_itself_alone(w: World, mock_clock: trio.testing.MockClock) -> None:
    carol = w.server.add_user("carol")
    hang = w.server.hang(
        path=DIRECT[1], method="POST", times=None, where=lambda request: carol.id.encode() in request.body
    )
    early: list[Destination] = []

    async def ask() -> None:
        early.append(await w.recipients.resolve("@alice"))
        await jump_once(mock_clock, w, hang, 5.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        found = await resolve_all(w, ["@carol", "ops/access-requests"])
    assert early[0].user_id == w.alice.id
    assert isinstance(found["ops/access-requests"], Destination)
    error = found["@carol"]
    assert isinstance(error, LinkLost)
    assert (error.reason, "@carol" in error.detail) == ("timeout", True)


async def test_who_asks_for_all_and_is_cancelled_leaves_the_others_to_ask_themselves(w: World) -> None:
    hang = w.server.hang(path=USERNAMES[1], method="POST")
    w.server.add_user("carol")
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as first:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(w.recipients.resolve, "@alice")
                await trio.lowlevel.checkpoint()
                nursery.start_soon(w.recipients.resolve, "@carol")
                nursery.start_soon(w.recipients.resolve, "@alice")
                await w.server.wait_for(lambda: hang.hits == 1)
                first.cancel()
    assert first.cancelled_caught
    before = sum(w.server.calls.values())
    found = await resolve_all(w, ["@carol", "@alice"])
    assert all(isinstance(one, Destination) for one in found.values())
    assert sum(w.server.calls.values()) == before


@pytest.mark.parametrize("version", ["5.37.0", "11.0.0"])
async def test_one_look_at_all_finds_who_cannot_be_reached_any_more(version: str) -> None:
    """It costs the same for all of them, and only what changed is looked up by itself."""
    async with world(version) as w:
        people = [w.server.add_user(f"user{n}") for n in range(3)]
        old = w.server.add_team("old", members=[w.bot])
        rooms = [w.server.add_channel(team, name, members=[w.bot]) for team in (w.ops, old) for name in ("a", "b")]
        names = [*(f"@{one.username}" for one in people), "ops/a", "ops/b", "old/a", "ops/Access-Requests"]
        for name in names:
            await w.recipients.resolve(name)
        await w.recipients.refresh(names)
        w.server.deactivate(people[1])
        w.server.archive(rooms[0])
        w.server.leave(rooms[1], w.bot)
        w.server.archive_team(old)
        before = len(w.server.requests)
        await w.recipients.refresh(names)
        assert len(w.server.requests) - before <= 6
        before = len(w.server.requests)
        for name in ("@user0", "@user2", "ops/access-requests"):
            await w.recipients.resolve(name)
        assert len(w.server.requests) == before
        reasons = {name: (await w.refused(name)).reason for name in ("@user1", "ops/a", "ops/b", "old/a")}
        assert reasons == {"@user1": "deactivated", "ops/a": "archived", "ops/b": "not_member", "old/a": "archived"}
        assert "team" in (await w.refused("old/a")).detail
        w.server.unarchive_team(old)
        w.recipients.forget("old/a")
        assert (await w.recipients.resolve("old/a")).channel_id == rooms[2].id


async def test_a_bot_that_is_nowhere_any_more_is_no_failure_of_the_look_at_all(w: World) -> None:
    await w.recipients.resolve("ops/access-requests")
    nowhere = Answer(404, {"id": "app.channel.get_channels.not_found.app_error"})
    w.server.fail(answer=nowhere, path="/api/v4/users/me/channels", times=None)
    await w.recipients.refresh(["ops/access-requests"])
    w.server.leave(w.requests, w.bot)
    await w.refused("ops/access-requests")
