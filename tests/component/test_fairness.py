"""Who waits for whom: a person who decided for no announcement, and a requester for nobody who asks more."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from tests.deciding import APPROVE, LISTENING, ask, deciding
from tests.world import QUICK, running, world

# What still waits in the end is of no interest.
HASTY = msgspec.structs.replace(LISTENING, drain=0.1)


@pytest.mark.parametrize("way", ["reaction", "reply", "direct"])
async def test_a_decision_is_answered_within_two_seconds_whatever_is_announced(way: str, tmp_path: Path) -> None:
    """Twenty posts a second, and 800 more are due before: forty seconds of them."""
    async with deciding(
        tmp_path,
        times=HASTY,
        mattermost__max_posts_per_second="20",
        mattermost__recipients='["ops/access-requests", "@alice", "@ivan", "@bob"]',
    ) as here:
        request_id, card = await ask(here)
        here.ask(200)
        await here.chat.wait_for(lambda: len(here.channel.posts) >= 10)
        began = trio.current_time()
        own = here.chat.open_direct(here.alice, here.bot)
        if way == "reaction":
            here.chat.react(here.alice, card, APPROVE)
        elif way == "reply":
            here.chat.post(here.alice, here.channel, "approve", root_id=card.id)
        else:
            here.chat.post(here.alice, own, f"approve {request_id}")
        told = "Your approval"

        def answered() -> bool:
            posts = here.chat.posts(own) if way == "direct" else here.chat.thread(card)
            return any(told in post.message for post in posts if post.user_id == here.bot.id)

        await here.chat.wait_for(answered)
        assert trio.current_time() - began <= 2.0
        assert len(here.channel.posts) < 100


async def test_requesters_take_turns(tmp_path: Path) -> None:
    """Whoever asks once is told after a few of those of somebody who asks three hundred times."""
    async with world(tmp_path) as here:
        here.auth.add_user("carol@example.com", ["devops"])
        here.ask(300)
        (hers,) = [here.auth.create_request("carol@example.com", ["dbadmin"])]
        config = here.config(mattermost__max_posts_per_second="20")
        async with running(config, times=msgspec.structs.replace(QUICK, drain=0.1)):
            await here.chat.wait_for(lambda: hers in here.states())
            # As many as have a worker, and those that were posted at once.
            assert len(here.cards()) <= 100
