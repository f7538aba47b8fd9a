"""Alice and Ivan decide in Mattermost, and Teleport counts them as two people."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.world import World, field, running, world

APPROVE, DENY = "white_check_mark", "x"


@asynccontextmanager
async def deciding(folder: Path, **changes: str) -> AsyncIterator[World]:
    """A world in which Alice and Ivan may decide with their own credentials."""
    async with world(folder) as here:
        identities = folder / "reviewers"
        identities.mkdir()
        for user in ("alice@example.com", "ivan@example.com"):
            files = here.auth.write_credentials(folder, user, name=user)
            for path in (files.crt, files.key):
                path.rename(identities / path.name)
        settings = {
            "reviews__submit_as": "reviewer",
            "reviews__identities": str(identities),
            "reviewers__alice": "alice@example.com",
            "reviewers__ivan": "ivan@example.com",
        } | changes
        async with running(here.config(**settings)):
            await here.recorded(lambda: here.auth.watchers > 0)
            yield here


async def ask(here: World, **request: Any) -> str:
    """Bob asks; return the id once the card stands and its record is free."""
    request_id = here.auth.create_request("bob@example.com", ["dbadmin"], reason="fix it", **request)
    await here.chat.wait_for(lambda: request_id in here.states())
    await here.released(request_id)
    return request_id


async def test_two_reactions_by_two_people_approve(tmp_path: Path) -> None:
    """One of them alone does not."""
    with trio.fail_after(10):
        async with deciding(tmp_path) as here:
            request_id = await ask(here)
            (card,) = here.cards()
            here.chat.react(here.alice, card, APPROVE)
            await here.chat.wait_for(lambda: len(here.replies(card)) == 2)
            assert field(here.cards()[0], "State") == "⏳ PENDING"
            here.chat.react(here.ivan, card, APPROVE)
            await here.shows("APPROVED")
            await here.chat.wait_for(lambda: len(here.replies(card)) == 5)
            await here.released(request_id)
    assert [(one.author, one.proposed_state) for _, one in here.auth.submissions] == [
        ("alice@example.com", "APPROVED"),
        ("ivan@example.com", "APPROVED"),
    ]
