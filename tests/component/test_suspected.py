"""What was suspected to break "once and true": each suspicion is a deed on a told request, judged by `tests.truth`."""

from __future__ import annotations

import gc
import json
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import trio

from sidecar.simulator.mattermost.server import Answer
from sidecar.simulator.teleport.profile import Profile
from tests.deciding import ALICE, IVAN, card_of
from tests.truth import untrue
from tests.world import QUICK, World, killed, process, running, world

POSTS = "/api/v4/posts"
TIMES = msgspec.structs.replace(QUICK, list_every=0.3, silent=0.1, recipients_every=0.3, evidence=0.5)
FORBIDDEN = Answer(403, {"id": "api.context.permissions.app_error", "message": "no", "status_code": 403})

# Who is killed closes nothing; as a process it would not need to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what the killed leave behind here, where it is expected."""
    yield
    gc.collect()


async def true_at_last(here: World) -> None:
    """Return when nothing is untrue any more; every request is known to the Auth Service."""

    def all_true() -> bool:
        return not untrue(here, [here.channel], {})

    try:
        await here.chat.wait_for(all_true)
    except trio.Cancelled:
        print(untrue(here, [here.channel], {}), here.states())
        raise


async def twice(here: World, request_id: str) -> None:
    """A second copy of the card, as a write that comes late makes it."""
    card = card_of(here, request_id)
    here.chat.post(here.bot, here.channel, card.message, props=json.loads(json.dumps(card.props)))
    text = here.auth.plugin_data(request_id)["tm"]
    record = json.loads(text)
    record["posts"][0]["d"] = True
    doubted = json.dumps(record, sort_keys=True, separators=(",", ":"))
    here.auth.write_plugin_data(request_id, {"tm": doubted}, {"tm": text})


# -- the deeds: the first half before the sidecar sees it, the change that shows it comes afterwards ----------------


async def deletes_are_refused(here: World, request_id: str) -> None:
    await twice(here, request_id)
    refused = here.chat.fail(answer=FORBIDDEN, method="DELETE", times=2)
    here.auth.review(request_id, ALICE, "APPROVED", "fine")
    await here.chat.wait_for(lambda: refused.hits >= 1)
    here.auth.review(request_id, IVAN, "DENIED", "no")


async def an_answer_to_delete_is_lost(here: World, request_id: str) -> None:
    await twice(here, request_id)
    here.chat.cut(when="after", method="DELETE")
    here.auth.review(request_id, IVAN, "DENIED", "no")


async def a_delete_is_not_carried_out(here: World, request_id: str) -> None:
    await twice(here, request_id)
    here.chat.cut(when="before", method="DELETE")
    here.auth.review(request_id, IVAN, "DENIED", "no")


async def an_answer_to_patch_is_lost(here: World, request_id: str) -> None:
    here.chat.cut(when="after", method="PUT")
    here.auth.review(request_id, ALICE, "APPROVED", "fine")
    here.auth.review(request_id, IVAN, "APPROVED", "go")


async def a_patch_is_not_carried_out(here: World, request_id: str) -> None:
    here.chat.cut(when="before", method="PUT")
    here.auth.review(request_id, ALICE, "APPROVED", "fine")


async def the_record_is_deleted(here: World, request_id: str) -> None:
    here.auth.write_plugin_data(request_id, {"tm": ""})
    here.auth.review(request_id, ALICE, "APPROVED", "fine")


async def an_older_record_is_restored(here: World, request_id: str) -> None:
    older = (await here.released(request_id))["tm"]
    here.auth.review(request_id, ALICE, "APPROVED", "fine")
    await here.recorded(lambda: '"rep":[1]' in here.auth.plugin_data(request_id)["tm"])
    newer = (await here.released(request_id))["tm"]
    here.auth.write_plugin_data(request_id, {"tm": older}, {"tm": newer})
    here.auth.review(request_id, IVAN, "APPROVED", "go")


async def another_plugin_writes_beside_it(here: World, request_id: str) -> None:
    here.auth.write_plugin_data(request_id, {"messages": "c/p", "user": "eve", "reviews_count": "7", "x": "y"})
    here.auth.review(request_id, ALICE, "APPROVED", "fine")


async def the_id_is_used_again(here: World, request_id: str) -> None:
    here.auth.review(request_id, IVAN, "DENIED", "no")
    await here.told([request_id], "DENIED")
    again(here, request_id)


async def the_id_is_used_again_unseen(here: World, request_id: str) -> None:
    here.auth.review(request_id, IVAN, "DENIED", "no")
    await here.told([request_id], "DENIED")
    here.auth.stall_watchers()
    again(here, request_id)


def again(here: World, request_id: str) -> None:
    """Bob asks once more under that id."""
    here.auth.delete_request(request_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Profile, "new_id", lambda _: request_id)
        here.ask(reason="once more")


async def an_administrator_edits_the_card(here: World, request_id: str) -> None:
    admin = here.chat.add_user("root", roles="system_user system_admin")
    card = card_of(here, request_id)
    here.chat.edit(admin, card, "all is well")
    here.auth.review(request_id, ALICE, "APPROVED", "fine")


async def lists_lag_behind(here: World, request_id: str) -> None:
    here.auth.freeze_list_cache()
    here.auth.review(request_id, ALICE, "APPROVED", "fine")
    (new,) = here.ask()
    await here.told([new])
    lists = here.auth.calls["GetAccessRequestsV2"]
    await here.recorded(lambda: here.auth.calls["GetAccessRequestsV2"] >= lists + 4)
    here.auth.review(new, IVAN, "DENIED", "no")
    await here.told([new], "DENIED")
    here.auth.thaw_list_cache()


DEEDS: tuple[Callable[[World, str], Awaitable[None]], ...] = (
    deletes_are_refused,
    an_answer_to_delete_is_lost,
    a_delete_is_not_carried_out,
    an_answer_to_patch_is_lost,
    a_patch_is_not_carried_out,
    the_record_is_deleted,
    an_older_record_is_restored,
    another_plugin_writes_beside_it,
    the_id_is_used_again,
    the_id_is_used_again_unseen,
    an_administrator_edits_the_card,
    lists_lag_behind,
)


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
async def test_it_comes_true_all_the_same(deed: Callable[[World, str], Awaitable[None]], tmp_path: Path) -> None:
    async with world(tmp_path, version="16.0.0-dev") as here:
        async with running(here.config(), times=TIMES):
            request_id, _ = here.ask(2)
            await here.told([request_id])
            await here.released(request_id)
            await deed(here, request_id)
            await true_at_last(here)
        assert not here.lines.of("request.bug")


async def test_late_replies_after_a_takeover_are_one(tmp_path: Path) -> None:
    """A holder dies with a reply under way, which lands after who took over has made its own."""
    async with world(tmp_path) as here:
        config = here.config(teleport__lease="2s")
        async with killed(config, times=TIMES):
            (request_id,) = here.ask()
            await here.told([request_id])
            await here.released(request_id)
            late = here.chat.late(5.0, when="before", method="POST", path=POSTS)
            here.auth.review(request_id, ALICE, "APPROVED", "fine")
            await here.chat.wait_for(lambda: late.hits == 1)
        async with running(config, times=TIMES):
            await here.chat.wait_for(lambda: len(here.replies(card_of(here, request_id))) == 1)
            here.chat.pending.forget()
            await here.chat.wait_for(lambda: len(here.replies(card_of(here, request_id))) == 2)
            here.auth.review(request_id, IVAN, "APPROVED", "go")
            await true_at_last(here)


async def test_a_machine_that_sleeps_with_a_post_under_way_finds_it(tmp_path: Path) -> None:
    """The boot clock goes on, so the lease is over; the post was made, and its answer never read."""
    async with world(tmp_path) as here:
        with process(here.settings(teleport__lease="1s")) as sidecar:
            await here.watched()
            made = here.chat.late(1.0, when="after", method="POST", path=POSTS)
            here.ask()
            await here.chat.wait_for(lambda: made.hits == 1 and len(here.cards()) == 1)
            sidecar.send_signal(signal.SIGSTOP)
            here.chat.pending.forget()
            await trio.sleep(2.0)  # for longer than the lease
            sidecar.send_signal(signal.SIGCONT)
            await true_at_last(here)
