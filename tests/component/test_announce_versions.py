"""The basic story with every version of the two peers, and what it costs in calls."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import trio

from tests.world import QUICK, World, field, running, world

BACKGROUND = {("GET", "/api/v4/users/me"), ("GET", "/api/v4/websocket")}


@pytest.mark.parametrize("version", ["7.0.0-dev", "12.4.1", "16.0.0-dev", "18.11.0"])
@pytest.mark.parametrize("chat_version", ["5.37.0", "11.0.0"])
async def test_the_story_with_every_version(version: str, chat_version: str, tmp_path: Path) -> None:
    """Asked, reviewed, approved; denied; removed; expired: the same with all."""
    async with (
        world(tmp_path, version=version, chat_version=chat_version) as here,
        running(here.config(), times=msgspec.structs.replace(QUICK, expired=0.2)),
    ):
        here.auth.expired_seconds = min(here.auth.expired_seconds, 0.5)
        approved, denied, removed = here.ask(3, reason="fix it")
        (expires,) = here.ask(expires_in=1.5)
        await here.told([approved, denied, removed, expires])
        here.auth.review(approved, "alice@example.com", "APPROVED", "ok by me")
        (card,) = (card for card in here.cards() if card.props["tm"]["id"] == approved)
        await here.chat.wait_for(lambda: "1 of 2" in field(card, "Reviews"))
        here.auth.review(approved, "ivan@example.com", "APPROVED", "go ahead")
        here.auth.review(denied, "ivan@example.com", "DENIED", "no")
        here.auth.delete_request(removed)
        await here.told([approved], "APPROVED")
        await here.told([denied], "DENIED")
        await here.told([removed], "REMOVED")
        await here.told([expires], "EXPIRED")
        # 18 goes on to list it; its thread tells once it does not.
        await here.recorded(lambda: '"done":true' in here.auth.plugin_data(expires)["tm"])
        for request_id in (approved, denied, removed, expires):
            await here.released(request_id)
        said = {card.props["tm"]["id"]: len(here.replies(card)) for card in here.cards()}
        assert said == {approved: 2, denied: 1, removed: 1, expires: 1}
        assert here.lines.problems == []


async def started(here: World, channels: int) -> None:
    """Return when the cold start has read its page of each channel; what follows is asked for by requests."""
    await here.lines.heard("link.ready", link="teleport")
    await here.chat.wait_for(lambda: here.chat.calls["GET", "/api/v4/channels/{channel_id}/posts"] == channels)


def rest_calls(here: World) -> Counter[tuple[str, str]]:
    return Counter({call: count for call, count in here.chat.calls.items() if call not in BACKGROUND})


@pytest.mark.parametrize("recipients", [1, 2, 10])
async def test_a_new_request_costs_one_call_for_each_recipient_and_two_to_teleport(
    recipients: int, here: World
) -> None:
    """After warm-up. Counted by the servers."""
    members = (here.alice, here.bot)
    channels = [here.chat.add_channel(here.team, f"channel-{n}", members=members) for n in range(recipients)]
    names = json.dumps([f"ops/{channel.name}" for channel in channels])
    async with running(here.config(mattermost__recipients=names)):
        await started(here, recipients)
        chat, auth = rest_calls(here), here.auth.calls.copy()
        for _ in ("warm-up", "counted"):
            chat, auth = rest_calls(here), here.auth.calls.copy()
            (request_id,) = here.ask()
            for channel in channels:
                await here.told([request_id], channel=channel)
            await here.released(request_id)
        assert rest_calls(here) - chat == {("POST", "/api/v4/posts"): recipients}
        assert here.auth.calls - auth == {"UpdatePluginData": 2}


async def test_sixteen_requests_with_two_approvals_each(here: World) -> None:
    """The official plugin's race: reviews arrive while cards are made. It makes 256 calls; here at most 160 writes."""
    names = '["ops/access-requests", "alice@example.com"]'
    async with running(here.config(mattermost__recipients=names)):
        # Reviews come quicker than the answers to posts.
        here.chat.latency = 0.05
        await started(here, 2)
        await here.told(here.ask())
        direct = here.chat.open_direct(here.bot, here.alice)
        await here.chat.wait_for(lambda: here.cards(direct))
        calls, began = rest_calls(here), trio.current_time()
        ids = here.ask(16)
        for request_id in ids:
            await here.chat.wait_for(lambda one=request_id: one in here.states())  # type: ignore[misc]
            for reviewer in ("alice@example.com", "ivan@example.com"):
                here.auth.review(request_id, reviewer, "APPROVED", "fine")
        await here.told(ids, "APPROVED")
        await here.told(ids, "APPROVED", channel=direct)
        for request_id in ids:
            await here.released(request_id)
        made = sum(count for (method, _), count in (rest_calls(here) - calls).items() if method != "GET")
        print(f"16 requests, 2 recipients, 2 approvals: {made} writes in {trio.current_time() - began:.2f} s")
        assert made <= 160
