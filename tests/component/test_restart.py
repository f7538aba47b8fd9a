"""Killed at any instant, or stopped for a while: nothing is lost, nothing is told twice, and messages become true."""

from __future__ import annotations

import random
import subprocess
from contextlib import ExitStack

import pytest

from sidecar.simulator.teleport.auth import AuthServer
from tests.world import QUICK, World, process, running

POSTS = "/api/v4/posts"


async def told_once(here: World, denied: list[str]) -> None:
    """Every one of these has one card that says DENIED, with each review and the end told once, and a free record."""
    await here.told(denied, "DENIED")
    for request_id in denied:
        await here.released(request_id)
    for card in here.cards():
        request_id = card.props["tm"]["id"]
        replies = here.replies(card)
        request = here.auth.request(request_id)
        assert request is not None
        assert sum(" is now DENIED." in reply for reply in replies) == 1
        # After a kill the reply to the deciding review may stand in its plain form, and the end beside it.
        assert len(replies) == len(set(replies))
        assert len(replies) - len(request.reviews) in (0, 1)
    assert len(here.cards()) == len(denied)


@pytest.mark.parametrize("stage", ["card stored", "card made", "reply stored", "patched"])
async def test_killed_before_it_could_record_what_it_did(stage: str, here: World) -> None:
    """What the dead process posted is found by its key; only what it did not do is done."""
    with process(here.settings(teleport__lease="1s")) as sidecar:
        if stage == "card stored":
            here.chat.hang(when="after", method="POST", path=POSTS)
        elif stage == "card made":
            here.auth.faults.delay("UpdatePluginData", 0)
            here.auth.faults.delay("UpdatePluginData", 60)
        (request_id,) = here.ask()
        await here.told([request_id])
        if stage == "card made":
            await here.recorded(lambda: here.auth.calls["UpdatePluginData"] == 2)
        elif stage != "card stored":
            await here.released(request_id)
            if stage == "reply stored":
                here.chat.hang(when="after", method="POST", path=POSTS)
            else:
                here.chat.hang(when="before", method="POST", path=POSTS)
            here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
            await here.chat.wait_for(lambda: here.chat.calls["POST", POSTS] == 2)
        sidecar.kill()
    here.auth.faults.clear()
    async with running(here.config(), times=QUICK):
        await here.released(request_id)
        if stage in ("card stored", "card made"):
            here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
        here.auth.review(request_id, "ivan@example.com", "DENIED", "no")
        await told_once(here, [request_id])


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        pytest.param(12, 1, marks=pytest.mark.patience(60)),
        pytest.param(200, 2, marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
    ],
)
async def test_killed_at_random_instants(kills: int, seed: int, here: World) -> None:
    """A stream of requests and reviews over a line of sidecars, each killed after some random number of calls.

    The next one is started before, so that some are killed beside a living one, and some while they start.
    """
    chance = random.Random(seed)
    ids: list[str] = []
    settings = here.settings(teleport__lease="1s")
    with ExitStack() as processes:
        line: list[subprocess.Popen[str]] = []
        for _ in range(kills):
            line.append(processes.enter_context(process(settings)))
            some = chance.randint(3, 12)
            # Each new request is a call at least, so that this number is sure to be reached.
            calls = here.chat.calls.total() + chance.randint(1, some)
            for request_id in chance.sample(ids, len(ids) // 3):
                if (request := here.auth.request(request_id)) and not request.reviews:
                    here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
            ids += here.ask(some)
            await here.chat.wait_for(lambda calls=calls: here.chat.calls.total() >= calls)  # type: ignore[misc]
            if len(line) > 1:
                line.pop(0).kill()
        for sidecar in line:
            sidecar.kill()
    print(f"{kills} kills, {len(ids)} requests, {len(here.cards())} cards before the last start")
    async with running(here.config(), times=QUICK):
        # A request that is resolved before anybody read it is told to nobody, so not before that.
        await here.chat.wait_for(lambda: here.states().keys() == set(ids))
        for request_id in ids:
            here.auth.review(request_id, "ivan@example.com", "DENIED", "no")
        await told_once(here, ids)


async def test_what_happened_while_it_was_stopped(here: World) -> None:
    """Reviewed, approved, denied, expired, removed: each card says so after the start, and each reply comes once."""
    async with running(here.config(), times=QUICK):
        reviewed, approved, denied, removed = here.ask(4)
        (expired,) = here.ask(expires_in=1.5)
        everyone = [reviewed, approved, denied, removed, expired]
        await here.told(everyone)
        for request_id in everyone:
            await here.released(request_id)
    for request_id in (reviewed, approved):
        here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
    here.auth.review(approved, "ivan@example.com", "APPROVED", "go")
    here.auth.set_state(denied, "DENIED", "never")
    here.auth.delete_request(removed)
    await here.recorded(lambda: here.auth.request(expired) is None)
    (new,) = here.ask()
    async with running(here.config(), times=QUICK):
        await here.told([reviewed, new])
        await here.told([approved], "APPROVED")
        await here.told([denied], "DENIED")
        await here.told([removed], "REMOVED")
        await here.told([expired], "EXPIRED")
        for request_id in (reviewed, approved, denied, new):
            await here.released(request_id)
        replies = {card.props["tm"]["id"]: here.replies(card) for card in here.cards()}
    assert {request_id: len(said) for request_id, said in replies.items()} == {
        reviewed: 1, approved: 2, denied: 1, removed: 1, expired: 1, new: 0,
    }  # fmt: skip
    assert "never" in replies[denied][0]


async def test_what_ends_while_it_runs(here: World) -> None:
    """Expired and removed requests are told from the watch's DELETE, which does not say which it was."""
    async with running(here.config(), times=QUICK) as sidecar:
        (removed,) = here.ask()
        (expired,) = here.ask(expires_in=1.5)
        await here.told([removed, expired])
        await here.released(removed)
        here.auth.delete_request(removed)
        await here.told([removed], "REMOVED")
        await here.told([expired], "EXPIRED")
        for request_id in (removed, expired):
            await here.recorded(lambda one=request_id: '"done":true' in here.auth.plugin_data(one)["tm"])  # type: ignore[misc]
        assert (await sidecar.metrics())["open_requests"] == 0


async def test_a_cold_start_ends_cards_that_teleport_has_forgotten(here: World) -> None:
    """Down for so long that the record is gone too: the newest posts of the channel tell what still says PENDING."""
    async with running(here.config(), times=QUICK):
        forgotten, lives = here.ask(2)
        await here.told([forgotten, lives])
        await here.released(forgotten)
    here.auth.delete_request(forgotten)
    here.auth._plugin_data._objects.pop(forgotten)
    (card,) = (card for card in here.cards() if card.props["tm"]["id"] == forgotten)
    foreign = here.chat.post(here.alice, here.channel, "looks like one", props=dict(card.props))
    async with running(here.config(), times=QUICK):
        await here.told([forgotten], "EXPIRED")
        await here.lines.heard("orphan.closed")
    await here.told([lives])
    assert len(here.lines.of("orphan.closed")) == 1
    assert foreign.edit_at == 0
    assert not here.lines.of("orphan.rejected")


async def test_a_cold_start_leaves_the_cards_of_another_cluster_alone(here: World) -> None:
    """Two sidecars, one bot, one channel: no request of one cluster is known to the other, yet it may be open."""
    with AuthServer.dual_authorization("other.example") as other:
        config = here.config_at(other)
        async with running(config, times=QUICK):
            theirs = other.create_request("bob@example.com", ["dbadmin"])
            await here.told([theirs])
        async with running(here.config(), times=QUICK):
            (ours,) = here.ask()
            await here.told([ours])
            await here.released(ours)
        assert here.states() == {theirs: ["PENDING"], ours: ["PENDING"]}
        other.delete_request(theirs)
        other._plugin_data._objects.pop(theirs)
        # The newest card is looked at first, which is ours.
        async with running(config, times=QUICK):
            await here.told([theirs], "EXPIRED")
        await here.told([ours])
