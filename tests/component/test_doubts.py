"""Writes whose answer was lost and that come true later, or that are on no record: found again, never repeated."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import grpc
import msgspec
import pytest

from sidecar.simulator.mattermost.server import Answer
from tests.deciding import ALICE, IVAN, card_of
from tests.world import QUICK, World, killed, running

POSTS = "/api/v4/posts"
DENIED = 'access denied to perform action "update" on "access_plugin_data"'
LATER = msgspec.structs.replace(QUICK, verify=3.0)

# Who is killed closes nothing; as a process it would not need to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what the killed leave behind here, where it is expected."""
    yield
    gc.collect()


def deny_the_next_save(here: World) -> None:
    here.auth.faults.fail("UpdatePluginData", grpc.StatusCode.PERMISSION_DENIED, DENIED, times=1)


@pytest.mark.parametrize("ends", ["denied", "removed"])
async def test_a_patch_that_is_carried_out_late_does_not_stay(ends: str, here: World) -> None:
    """P3, P4: the first patch gets no answer and is carried out after the one that followed it."""
    async with running(here.config(teleport__lease="2s"), times=LATER):
        request_id, other = here.ask(2)
        await here.told([request_id, other])
        await here.released(request_id)
        late = here.chat.late(2.0, when="before", method="PUT")
        here.auth.review(request_id, ALICE, "APPROVED", "fine")
        await here.chat.wait_for(lambda: late.hits == 1)
        if ends == "denied":
            here.auth.review(request_id, IVAN, "DENIED", "no")
        else:
            here.auth.delete_request(request_id)
        state = ends.upper()
        await here.told([request_id], state)
        card = card_of(here, request_id)
        await here.chat.wait_for(lambda: card.props["tm"]["state"] == "PENDING")
        await here.told([request_id], state)


async def test_a_save_that_is_refused_does_not_make_the_card_twice(here: World) -> None:
    """P2: our role loses the verb `update` between the claim and the last save, and has it again a while later."""
    async with running(here.config(), times=QUICK):
        await here.lines.heard("link.ready", link="mattermost")
        made = here.chat.late(0.5, when="after", method="POST", path=POSTS)
        (request_id,) = here.ask()
        await here.chat.wait_for(lambda: made.hits == 1)
        deny_the_next_save(here)
        await here.lines.heard("link.refused")
        here.chat.pending.forget()
        await here.released(request_id)
        assert len(here.cards()) == 1


async def test_a_save_that_is_refused_does_not_make_a_reply_twice(here: World) -> None:
    async with running(here.config(), times=QUICK):
        await here.lines.heard("link.ready", link="mattermost")
        (request_id,) = here.ask()
        await here.told([request_id])
        await here.released(request_id)
        card = card_of(here, request_id)
        made = here.chat.late(1.5, when="after", method="POST", path=POSTS)
        here.auth.review(request_id, ALICE, "APPROVED", "fine")
        await here.chat.wait_for(lambda: made.hits == 1)
        deny_the_next_save(here)
        await here.lines.heard("link.refused")
        here.chat.pending.forget()
        await here.recorded(lambda: '"rep":[1]' in here.auth.plugin_data(request_id)["tm"])
        assert len(here.replies(card)) == 1


async def test_a_channel_lost_while_in_doubt_does_not_repeat_replies(here: World) -> None:
    """P2: the look for a doubtful post is refused; what was done elsewhere is recorded all the same."""
    dba = here.chat.add_channel(here.team, "dba", members=(here.alice, here.ivan, here.bob, here.bot))
    config = here.config(mattermost__recipients='["ops/access-requests", "ops/dba"]', teleport__lease="2s")
    async with running(config, times=LATER):
        await here.lines.heard("link.ready", link="mattermost")
        here.chat.cut(when="after", method="POST", path=POSTS, where=lambda one: dba.id.encode() in one.body)
        (request_id,) = here.ask()
        await here.told([request_id])
        await here.told([request_id], channel=dba)
        await here.recorded(lambda: here.auth.plugin_data(request_id)["tm"].count('"s":"posted"') == 2)
        here.chat.leave(dba, here.bot)
        here.auth.review(request_id, ALICE, "APPROVED", "fine")
        # In the end nothing is in doubt, and the record is free.
        await here.recorded(lambda: '"rep":[1]' in here.auth.plugin_data(request_id)["tm"])
        await here.released(request_id)
        assert len(here.replies(card_of(here, request_id))) == 1


async def test_who_takes_over_repairs_what_came_late(here: World) -> None:
    """P2: a try that got no answer, one that did, and an end before anybody looked for the first one again."""
    config = here.config(teleport__lease="3s")
    late = here.chat.late(4.0, when="before", method="POST", path=POSTS)
    times = msgspec.structs.replace(QUICK, verify=10.0)
    async with killed(config, times=times):
        (request_id,) = here.ask()
        await here.told([request_id])
        await here.recorded(lambda: '"s":"posted"' in here.auth.plugin_data(request_id).get("tm", ""))
        here.chat.pending.forget()
    assert late.hits == 1
    async with running(config, times=times):
        await here.chat.wait_for(lambda: len(here.cards()) == 2)
        await here.released(request_id)
        await here.told([request_id])


async def test_who_fails_after_a_takeover_leaves_the_doubt(here: World) -> None:
    """P2: a reply that is on no record; who takes over cannot read the thread; a third one carries on."""
    config = here.config(teleport__lease="2s")
    async with killed(config, times=QUICK):
        await here.lines.heard("link.ready", link="mattermost")
        (request_id,) = here.ask()
        await here.told([request_id])
        await here.released(request_id)
        card = card_of(here, request_id)
        here.chat.hang(when="after", method="POST", path=POSTS)
        here.auth.review(request_id, ALICE, "APPROVED", "fine")
        await here.chat.wait_for(lambda: len(here.replies(card)) == 1)
    here.chat.pending.forget()
    broken = Answer(500, {"id": "app.post.get_post_thread.app_error", "status_code": 500})
    unread = here.chat.fail(answer=broken, method="GET", path="/api/v4/posts/*/thread", times=None)
    async with running(config, times=QUICK):
        await here.chat.wait_for(lambda: unread.hits >= 1)
    here.chat.clear_faults()
    async with running(config, times=QUICK):
        await here.recorded(lambda: '"rep":[1]' in here.auth.plugin_data(request_id)["tm"])
        await here.released(request_id)
    assert len(here.replies(card)) == 1
