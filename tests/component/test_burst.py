"""Many requests at once: all are told, none twice, also when the watch is dropped meanwhile."""

from __future__ import annotations

import trio

from tests.world import QUICK, World, running

MANY = 1000


async def told_at_once(here: World, ids: list[str], began: float) -> None:
    """Wait for the cards by their number first: reading all of them at each change would be the slowest part."""
    await here.chat.wait_for(lambda: len(here.channel.posts) >= len(ids))
    seconds = trio.current_time() - began
    print(f"{len(ids)} requests announced in {seconds:.2f} s, {len(ids) / seconds:.0f} a second")
    await here.told(ids)
    assert len(here.cards()) == len(ids)


async def test_a_thousand_requests_made_while_the_watch_is_dropped(here: World) -> None:
    """The list after the reconnect finds them all."""
    async with running(here.config(), times=QUICK):
        await here.lines.heard("link.ready", link="teleport")
        began = trio.current_time()
        here.auth.close_watchers("closed")
        await told_at_once(here, here.ask(MANY), began)


async def test_a_thousand_requests_overflow_the_watch(here: World) -> None:
    """A stock server drops a reader that is 64 events behind; what it was told and what it lists add up to all."""
    async with running(here.config(), times=QUICK):
        await here.lines.heard("link.ready", link="teleport")
        began = trio.current_time()
        ids = await trio.to_thread.run_sync(here.ask, MANY)
        await told_at_once(here, ids, began)


async def test_a_thousand_requests_made_while_the_sidecar_is_down(here: World) -> None:
    """They wait in Teleport, and the first list finds them."""
    ids = here.ask(MANY)
    began = trio.current_time()
    async with running(here.config(), times=QUICK):
        await told_at_once(here, ids, began)
