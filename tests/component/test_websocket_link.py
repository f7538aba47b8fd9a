"""The websocket in a whole sidecar: whatever it says or fails to say, decisions are found and nothing falls over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.deciding import ALICE, APPROVE, LISTENING, ask, deciding, linked, listening, says, submitted
from tests.world import World, running

# A ping each moment finds a socket that went deaf.
PINGING = msgspec.structs.replace(LISTENING, socket_ping_every=0.05, socket_ping_limit=0.5, hello=0.3)


def sockets(here: World) -> list[object]:
    return list(here.chat.hub.sockets_of(here.bot.id))


def garbage(here: World) -> None:
    here.chat.send_raw("{not json")


def bytes_that_are_no_text(here: World) -> None:
    here.chat.send_raw(b"\x00\xff\xfe")


def an_event_out_of_order(here: World) -> None:
    here.chat.send_raw('{"event":"posted","data":{},"broadcast":{},"seq":9999}')


def a_post_that_is_none(here: World) -> None:
    here.chat.hub.publish("posted", {"post": "[]"}, to=here.channel.members, channel_id=here.channel.id)


def a_frame_beyond_all_measure(here: World) -> None:
    here.chat.send_raw('"' + "x" * (17 * 1024 * 1024) + '"')


def a_second_hello(here: World) -> None:
    here.chat.send_raw('{"event":"hello","data":{},"broadcast":{},"seq":0}')


def a_drop(here: World) -> None:
    here.chat.drop_sockets()


def a_deaf_hub(here: World) -> None:
    here.chat.deafen()


def a_session_that_is_no_more(here: World) -> None:
    here.chat.deafen(how="session")


@pytest.mark.parametrize(
    "fault",
    [
        garbage,
        bytes_that_are_no_text,
        an_event_out_of_order,
        a_frame_beyond_all_measure,
        a_second_hello,
        a_drop,
        a_deaf_hub,
        a_session_that_is_no_more,
    ],
)
async def test_after_every_fault_a_fresh_link_and_a_sweep(tmp_path: Path, fault: Callable[[World], None]) -> None:
    """The decision made meanwhile is found, once, though no event tells of it."""
    async with deciding(tmp_path, times=PINGING) as here:
        _, card = await ask(here)
        (old,) = sockets(here)
        fault(here)
        here.chat.hub.lose = 1
        here.chat.react(here.alice, card, APPROVE)
        here.chat.hub.lose = 0
        await here.lines.heard("decision.taken", user_id=here.alice.id)
        await here.chat.wait_for(lambda: old not in sockets(here) and sockets(here))
        assert submitted(here) == [(ALICE, "APPROVED")]


async def test_a_post_that_is_none_costs_that_event_alone(tmp_path: Path) -> None:
    async with deciding(tmp_path, times=PINGING) as here:
        _, card = await ask(here)
        (old,) = sockets(here)
        a_post_that_is_none(here)
        here.chat.react(here.alice, card, APPROVE)
        await here.lines.heard("decision.taken", user_id=here.alice.id)
        assert sockets(here) == [old]


async def test_events_told_twice_or_in_the_wrong_order_are_judged_once(tmp_path: Path) -> None:
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.chat.hub.duplicate = 3
        here.chat.react(here.alice, card, APPROVE)
        here.chat.hub.reorder = 1
        here.chat.react(here.bob, card, "tada")
        here.chat.react(here.bob, card, "eyes")
        await here.lines.heard("decision.taken")
        await here.released(request_id)
        assert len(here.lines.of("decision.taken")) == 1
        assert submitted(here) == [(ALICE, "APPROVED")]


async def test_a_bad_token_is_told_apart_from_a_silent_network(here: World) -> None:
    """Both look like a websocket without hello; only one of them is the operator's to mend."""
    here.chat.hello = False
    async with running(here.config(**linked(here)), times=PINGING):
        await here.lines.heard("link.lost", link="mattermost", reason="no_hello")
        here.chat.disable_token(here.bot)
        line = await here.lines.heard("link.refused", link="mattermost")
        assert "token" in line["detail"]
        here.chat.enable_token(here.bot)
        here.chat.hello = True
        here.token_file.write_text(here.bot.token + "\n")
        await here.lines.heard("link.ready", link="mattermost")


async def test_no_line_of_any_log_bears_the_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the server itself quotes it, and at DEBUG."""
    caplog.set_level("DEBUG")
    async with deciding(tmp_path, times=PINGING) as here:
        _, card = await ask(here)
        here.chat.deafen(how="session")
        here.chat.react(here.alice, card, APPROVE)
        await here.lines.heard("decision.taken")
        here.chat.disable_token(here.bot)
        here.chat.drop_sockets()
        await here.lines.heard("link.refused", link="mattermost")
    ours = [record for record in caplog.records if record.name.startswith("sidecar")]
    assert ours
    assert not [record for record in ours if here.bot.token in f"{record.getMessage()} {record.__dict__}"]


async def test_without_decisions_no_websocket_is_opened(here: World) -> None:
    """With nobody linked there is nothing to hear."""
    async with running(here.config(), times=PINGING):
        await here.watched()
        await here.lines.heard("link.ready", link="mattermost")
        await ask(here)
        assert not here.chat.hub.sockets


async def test_a_sidecar_that_decides_nothing_still_answers_the_linked(here: World) -> None:
    """`list` works, a decision is refused in one sentence, and reactions are not even read."""
    async with running(here.config(reviewers__alice=ALICE), times=LISTENING):
        await listening(here)
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        assert request_id[-8:] in await says(here, here.alice, "list")
        assert "are off" in await says(here, here.alice, f"approve {request_id}")
        assert not here.chat.calls["POST", "/api/v4/posts/ids/reactions"]
        assert not submitted(here)
