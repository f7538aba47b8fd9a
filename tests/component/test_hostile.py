"""Bad input from people, peers and operators: the right message or one clear line, and the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST
from sidecar.teleport.pb import teleport_pb2 as pb
from tests.world import QUICK, World, field, running, world

REASONS = {
    "invalid UTF-8": b"\xff\xfe broken \xc3\x28",
    "100 kB": "long " * 20_000,
    "mentions": "@all @channel @here @alice please",
    "code fences": "```\n@all\n~~~\n````\nout of it? @alice",
    "NUL and control": "a\x00b\x07c\x1b[2Jd\u0085e",
    "right to left": "\u202eevil\u2066 \u200fname\u2069",
    "markdown": "[click](https://evil.example.com) ![x](https://evil.example.com/x.png) # **now** | a | b |",
    "entities": "&#64;all &commat;channel <b>bold</b>",
    "lines": "\r\n\u2028\u2029\n\n\n",
    "emoji": "\U0001f600" * 5000,
}


async def told_beside(here: World, request_id: str) -> None:
    """The strange one is told, followed and ended, and so is an ordinary one."""
    (ordinary,) = here.ask()
    await here.told([request_id, ordinary])
    for one in (request_id, ordinary):
        here.auth.set_state(one, "DENIED")
    await here.told([request_id, ordinary], "DENIED")
    for one in (request_id, ordinary):
        await here.released(one)
    assert here.lines.problems == []
    for post in here.chat.posts(here.channel):
        assert not here.chat.mentions(post)


@pytest.mark.parametrize("reason", REASONS)
async def test_a_strange_reason(reason: str, here: World) -> None:
    """Free text is shown, bounded, and never parsed by anybody."""
    async with running(here.config(), times=QUICK):
        (request_id,) = here.ask(reason=REASONS[reason])
        await told_beside(here, request_id)


@pytest.mark.parametrize("reason", ["mentions", "code fences", "NUL and control", "100 kB"])
async def test_a_strange_reason_of_a_review(reason: str, here: World) -> None:
    """Thread replies bear free text too."""
    text: Any = REASONS[reason]
    async with running(here.config(), times=QUICK):
        (request_id,) = here.ask()
        await here.told([request_id])
        here.auth.review(request_id, "alice@example.com", "DENIED", text)
        await here.told([request_id], "DENIED")
        await here.released(request_id)
        assert len(here.replies(here.cards()[0])) == 1
        assert not any(here.chat.mentions(post) for post in here.chat.posts(here.channel))


@pytest.mark.parametrize(
    "changes",
    [
        {"roles": ("**bold**", "[x](https://evil.example.com)", "@all", "a\nb", "")},
        {"user": "**@all** [x](https://evil.example.com)"},
        {"user": ""},
        {"roles": ()},
        {"roles": tuple(f"role-{number}" for number in range(500))},
        {"created": None, "expires": None, "session_ttl": None},
        {"created": 9e11, "access_until": 9e11},
        {"resources": ()},
        {"thresholds": (), "role_thresholds": ()},
        {"suggested_reviewers": ("@all", "x" * 300, "nobody@example.com", "", "a/b", "alice@example.com")},
    ],
    ids=lambda changes: ",".join(f"{key}={str(value)[:20]}" for key, value in changes.items()),
)
async def test_a_strange_request(changes: dict[str, Any], here: World) -> None:
    """Whatever a request holds, it has a card and the others have theirs."""
    (strange,) = here.ask()
    here.auth.rewrite(strange, **changes)
    async with running(here.config(), times=QUICK):
        (request_id, ordinary) = here.ask(2)
        await here.told([request_id])
        if not changes.keys() & {"user", "created"}:  # else it is another request
            here.auth.rewrite(request_id, **changes)
        await here.told([request_id, ordinary, strange])
        here.auth.rewrite(strange, state="DENIED")
        await here.told([strange], "DENIED")
        await here.released(strange)
        assert not any(here.chat.mentions(post) for post in here.chat.posts(here.channel))
        assert "request.bug" not in here.lines.problems


async def test_a_state_that_this_version_does_not_know(here: World) -> None:
    """Told as the number that it is, and no decision is invited."""
    async with running(here.config(), times=QUICK):
        (request_id,) = here.ask()
        await here.told([request_id])
        here.auth.rewrite(request_id, state="STATE 9")
        await here.chat.wait_for(lambda: field(here.cards()[0], "State").endswith("STATE 9"))
        assert field(here.cards()[0], "Decide") == ""
        await here.released(request_id)
        here.auth.delete_request(request_id)
        await here.recorded(lambda: '"done":true' in here.auth.plugin_data(request_id)["tm"])
        assert not here.lines.problems


@pytest.mark.parametrize(
    ("event", "garbled"),
    [
        (pb.Event(Type=9).SerializeToString(), False),  # type: ignore[arg-type]
        (pb.Event(Type=pb.PUT).SerializeToString(), False),
        (pb.Event(Type=pb.DELETE).SerializeToString(), False),
        (b"", False),
        (b"\x08\x01\x4a\xff\x01cut", True),
        (b"\xff" * 40, True),
    ],
)
async def test_a_strange_event(event: bytes, garbled: bool, here: World) -> None:  # noqa: FBT001 - a table
    """Unknown events are skipped; bytes that are no message end the watch, which is opened anew."""
    async with running(here.config(), times=QUICK):
        await here.lines.heard("link.ready", link="teleport")
        here.auth.inject(event)
        ids = here.ask(2)
        await here.told(ids)
        if garbled:
            await here.lines.heard("link.ready", 2, link="teleport")
        assert set(here.lines.problems) == ({"link.lost"} if garbled else set())


async def test_three_hundred_recipients(here: World) -> None:
    """All are told, and the record holds them."""
    people = (here.alice, here.bot)
    channels = [here.chat.add_channel(here.team, f"channel-{n}", members=people) for n in range(300)]
    names = json.dumps([channel.id for channel in channels])
    config = here.config(mattermost__recipients=names, mattermost__max_connections="20")
    async with running(config, times=QUICK):
        (request_id,) = here.ask()
        began = trio.current_time()
        await here.chat.wait_for(lambda: all(channel.posts for channel in channels))
        print(f"300 recipients told in {trio.current_time() - began:.2f} s")
        data = await here.released(request_id)
        assert len(json.loads(data["tm"])["posts"]) == 300
        assert len(data["tm"]) <= 64 * 1024
    assert not here.lines.problems


async def test_a_channel_that_is_archived_at_run_time(here: World) -> None:
    """One line; the other recipient and the other requests go on."""
    names = '["ops/access-requests", "ops/second"]'
    second = here.chat.add_channel(here.team, "second", members=[here.alice, here.bot])
    async with running(here.config(mattermost__recipients=names), times=QUICK):
        (request_id,) = here.ask()
        await here.told([request_id], channel=second)
        await here.released(request_id)
        here.chat.archive(second)
        here.auth.review(request_id, "alice@example.com", "APPROVED")
        here.auth.review(request_id, "ivan@example.com", "DENIED")
        await here.told([request_id], "DENIED")
        data = await here.released(request_id)
        assert [slot["s"] for slot in json.loads(data["tm"])["posts"]] == ["posted", "archived"]
        assert here.lines.problems == ["recipient.rejected"]


@pytest.mark.parametrize("how", ["seen in the list", "tried again", "restarted"])
async def test_a_channel_that_was_archived_and_is_restored(how: str, tmp_path: Path) -> None:
    """What was decided, made or removed meanwhile is true soon, though nobody listens and whatever the state."""
    times = msgspec.structs.replace(QUICK, recipients_every=3600.0 if how == "tried again" else 0.2)
    if how == "seen in the list":
        times = msgspec.structs.replace(times, retry_first=3600.0, retry_most=3600.0)
    async with world(tmp_path) as here:
        async with running(here.config(), times=times):
            decided, removed, pending = here.ask(3)
            await here.told([decided, removed, pending])
            for one in (decided, removed, pending):
                await here.released(one)
            here.chat.archive(here.channel)
            here.auth.review(decided, "alice@example.com", "APPROVED", "fine")
            here.auth.review(decided, "ivan@example.com", "DENIED", "no")
            here.auth.delete_request(removed)
            (made,) = here.ask()
            for one in (decided, made, removed):
                await here.recorded(lambda one=one: status(here, one) in {"archived", "failed"})  # type: ignore[misc]
            if how != "restarted":
                if how == "seen in the list":
                    await here.lines.heard("recipient.failed", reason="archived")
                here.chat.unarchive(here.channel)
                await restored(here, decided, removed, [pending, made])
        if how == "restarted":
            said = len(here.lines.of("recipient.failed"))
            async with running(here.config(), times=times):
                await here.lines.heard("recipient.failed", said + 1, reason="archived")
                here.chat.unarchive(here.channel)
                await restored(here, decided, removed, [pending, made])


def status(here: World, request_id: str) -> str:
    data = here.auth.plugin_data(request_id).get("tm")
    return str(json.loads(data)["posts"][0].get("s", "waiting")) if data else ""


async def restored(here: World, decided: str, removed: str, pending: list[str]) -> None:
    """All cards are true, each once, and nothing is left to do."""
    await here.told([decided], "DENIED")
    await here.told([removed], "REMOVED")
    await here.told(pending)
    card = next(card for card in here.cards() if card.props["tm"]["id"] == decided)
    await here.chat.wait_for(lambda: len(here.replies(card)) == 2)
    for one in (decided, removed, *pending):
        await here.recorded(lambda one=one: status(here, one) == "posted")  # type: ignore[misc]


async def test_plugin_data_that_others_filled(here: World) -> None:
    """Another plugin took the room: nothing is posted that could not be recorded, said once, and the rest goes on."""
    (full,) = here.ask()
    here.auth.write_plugin_data(full, {"x": "y" * 999_900}, plugin="other")
    async with running(here.config(), times=QUICK):
        stuck = await here.lines.heard("request.stuck", request_id=full)
        assert "size" in stuck["detail"]
        (ordinary,) = here.ask()
        await here.told([ordinary])
        here.auth.write_plugin_data(full, {"x": ""}, plugin="other")
        await here.told([full])
    assert here.lines.problems == ["request.stuck"]


async def test_a_role_that_may_not_write_plugin_data(here: World) -> None:
    """Without a record nothing can be posted once, so nothing is posted; the rule to add is named."""
    here.auth.add_role("access-plugin", rules={REQUEST: ("list", "read")})
    async with running(here.config(), times=msgspec.structs.replace(QUICK, list_every=0.1)) as sidecar:
        ids = here.ask(2)
        refused = await here.lines.heard("link.refused", link="teleport")
        assert "verbs: [list, read, update]" in refused["detail"]
        lists = here.auth.calls["GetAccessRequests"]
        await here.recorded(lambda: here.auth.calls["GetAccessRequests"] >= lists + 3)
        assert not (await sidecar.readiness())["ready"]
        assert here.cards() == []
        here.auth.add_role("access-plugin", rules={REQUEST: ("list", "read"), PLUGIN_DATA: ("update",)})
        await here.told(ids)
        assert (await sidecar.readiness())["ready"]
        assert here.lines.problems == ["link.refused"]
