"""The table of things that people type, on the page for reviewers: each gets what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.config import load
from sidecar.simulator.mattermost.server import Post
from tests.deciding import DENY, LISTENING, ask, deciding, linked, listening, says, submitted, tells
from tests.tree import ROOT
from tests.world import World, running, world

ROW = re.compile(
    r"^\| (a reaction|the thread|a message to the bot) \| (?:`([^`]+)`|(\S+)) \| ([^|]+) \|$", re.MULTILINE
)
TABLE = [
    (where, typed or sign, gets)
    for where, typed, sign, gets in ROW.findall((ROOT / "compose/REVIEWERS.md").read_text())
]
EMOJI = {"✅": "white_check_mark", "❌": "x", "👍": "+1", "👀": "eyes"}
GETS = {
    "how to decide": r"That decides nothing\. |with exactly|Write exactly",
    "the help": r"^I understand these lines",
    "the list": r"^- `[0-9a-f]{8}` `bob@example\.com` asks for `dbadmin`: `fix it`"
    r" \(waiting for \d min, 0 of 2 approvals, \[card\]\(http",
    "the card": r"^As it is now; this copy does not change",
    "no such request": r"^There is no open request with this id that you can see\.",
    "approves": r"Your approval of bob@example\.com's request for dbadmin counts \(1 of 2\), as alice@example\.com\.$",
    "denies": r"Your denial of bob@example\.com's request for dbadmin counts, as alice@example\.com\."
    r" The request is now DENIED\.$",
}


def test_there_are_forty_of_them() -> None:
    assert len(TABLE) >= 40
    assert {gets for *_, gets in TABLE} == {*GETS, "nothing"}


def told(here: World, card: Post) -> list[str]:
    """What the bot said to people in the thread."""
    return [one for one in here.replies(card) if one.startswith("@")]


async def play(here: World, where: str, typed: str, gets: str) -> list[str]:
    """What Alice is told by the time that a word of Ivan's, or a question of hers, has its answer, too."""
    request_id, card = await ask(here)
    typed = typed.replace("ID", request_id[-8:])
    before = len(tells(here, here.alice))
    if where == "a message to the bot":
        here.chat.post(here.alice, here.chat.open_direct(here.alice, here.bot), typed)
        if gets != "nothing":
            await here.chat.wait_for(lambda: len(tells(here, here.alice)) > before)
        asked = await says(here, here.alice, "list")
        await here.released(request_id)
        return [one.message for one in tells(here, here.alice)[before:] if one.message != asked] or [asked] * (
            gets == "the list"
        )
    if where == "the thread":
        here.chat.post(here.alice, here.channel, typed, root_id=card.id)
    else:
        here.chat.react(here.alice, card, EMOJI[typed])
    if gets != "nothing":
        await here.chat.wait_for(lambda: bool(told(here, card)))
    here.chat.react(here.ivan, card, DENY)
    await here.told([request_id], "DENIED")
    await here.released(request_id)
    return [one for one in told(here, card) if one.startswith("@alice")]


@pytest.mark.parametrize("first", range(0, len(TABLE), 7))
async def test_everything_that_people_type_gets_what_the_page_says(tmp_path: Path, first: int) -> None:
    rows = TABLE[first : first + 7]
    async with deciding(tmp_path, version="16.0.0-dev") as here:
        for where, typed, gets in rows:
            if (where, typed) == ("a message to the bot", "yes") and (where, "lgtm", "the help") not in rows:
                # It was said within the hour that words without an id decide nothing.
                await says(here, here.alice, "ok")
            got = await play(here, where, typed, gets)
            if gets == "nothing":
                assert got == [], typed
            else:
                assert len(got) == 1, (typed, got)
                assert re.search(GETS[gets], got[0].partition("\n")[0]), (typed, got)
        decided = [state for user, state in submitted(here) if user == "alice@example.com"]
        wanted = {"approves": "APPROVED", "denies": "DENIED"}
        assert decided == [wanted[gets] for *_, gets in rows if gets in wanted]


async def test_a_hint_is_given_once_for_each_person_and_request(tmp_path: Path) -> None:
    """Also after a restart: it is a row of the ledger."""
    async with world(tmp_path) as here:
        config = here.config(**linked(here))
        async with running(config, times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            here.chat.post(here.alice, here.channel, "lgtm", root_id=card.id)
            await here.chat.wait_for(lambda: len(told(here, card)) == 1)
            here.chat.post(here.alice, here.channel, "approved", root_id=card.id)
            here.chat.post(here.ivan, here.channel, "yes", root_id=card.id)
            await here.chat.wait_for(lambda: len(told(here, card)) == 2)
            await here.released(request_id)
        async with running(config, times=LISTENING):
            here.chat.post(here.alice, here.channel, "I approve", root_id=card.id)
            here.chat.react(here.ivan, card, DENY)
            await here.told([request_id], "DENIED")
            record = await here.released(request_id)
        assert [reply.split()[0] for reply in told(here, card)] == ["@alice", "@ivan", "@ivan"]
        assert record["tm"].count('"?","*",') == 2


async def test_a_stranger_gets_no_hint(tmp_path: Path) -> None:
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.chat.post(here.bob, here.channel, "approved", root_id=card.id)
        here.chat.react(here.ivan, card, DENY)
        await here.told([request_id], "DENIED")
        await here.released(request_id)
        assert [reply.split()[0] for reply in told(here, card)] == ["@ivan"]


async def test_a_decided_request_says_what_became_of_it(tmp_path: Path) -> None:
    async with deciding(tmp_path) as here:
        request_id, _ = await ask(here)
        here.auth.set_state(request_id, "APPROVED", "emergency")
        await here.told([request_id], "APPROVED")
        await here.released(request_id)
        assert "This request is already `APPROVED`." in await says(here, here.alice, f"approve {request_id}")
        assert not submitted(here)


async def test_words_given_while_teleport_is_away_are_answered_when_it_is_back(tmp_path: Path) -> None:
    async with deciding(tmp_path) as here:
        request_id, _ = await ask(here)
        before = len(tells(here, here.alice))
        here.auth.stop()
        await here.lines.heard("link.lost", link="teleport")
        direct = here.chat.open_direct(here.alice, here.bot)
        here.chat.post(here.alice, direct, f"approve {request_id}")
        here.chat.post(here.alice, direct, "list")
        here.auth.start()
        await here.chat.wait_for(lambda: len(tells(here, here.alice)) == before + 2)
        listed, counted = sorted(post.message for post in tells(here, here.alice)[before:])
        assert listed.startswith("- `")
        assert "counts (1 of 2)" in counted


async def test_the_requester_and_the_log_hear_that_nobody_was_asked(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        settings = here.settings(
            mattermost__suggested_reviewers="off", mattermost__notify_requester="true", **linked(here)
        )
        del settings["mattermost.recipients"]
        settings["role_to_recipients.other"] = '["ops/access-requests"]'
        async with running(load(None, {}, settings), times=LISTENING):
            await listening(here)
            here.ask()
            await here.lines.heard("request.unasked")
            await here.chat.wait_for(lambda: bool(tells(here, here.bob)))
        (card,) = tells(here, here.bob)
        assert "Nobody was asked to review it" in card.props["attachments"][0]["pretext"]
