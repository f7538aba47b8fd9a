"""The demo's page as people use it: in Chromium, with the real sidecar behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.chromium import CHROMIUM, Tab, open_tab
from tests.theatre import Theatre, theatre

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium here (Debian: apt install chromium)")

CARD = "#posts article:last-child .card"
STATE = f"document.querySelector('{CARD} [data-field=State] dd')?.textContent"
REPLIES = "[...document.querySelectorAll('#posts article:last-child .reply')].map((one) => one.innerText)"
LOADED = "document.getElementById('posts').dataset.of === location.hash.slice(1)"
COLOUR = f"getComputedStyle(document.querySelector('{CARD}')).borderLeftColor"


@asynccontextmanager
async def looking(folder: Path, person: str) -> AsyncIterator[tuple[Theatre, Tab]]:
    """A browser in which somebody looks at the channel; in the end it has complained of nothing and stayed at home."""
    async with theatre(folder) as here, open_tab() as tab:
        await tab.open(f"{here.page}#{person}")
        await tab.until(LOADED)
        yield here, tab
        assert tab.complaints == []
        home = here.page.removeprefix("http")
        assert {url for url in tab.requested if not url.startswith((f"http{home}", f"ws{home}", "data:,"))} == set()


def ask(here: Theatre, reason: str = "fix it") -> None:
    here.stage.auth.create_request("bob@example.com", ["dbadmin"], reason=reason)


async def test_alice_and_ivan_approve_and_see_the_card_turn(tmp_path: Path) -> None:
    """A reaction by Alice, a reply by Ivan: each is answered, and the card turns green without a reload."""
    async with looking(tmp_path, "alice/channel") as (here, tab):
        ask(here)
        assert await tab.until(STATE) == "⏳ PENDING"
        assert await tab.run(COLOUR) == "rgb(255, 188, 31)"
        await tab.until(f"document.querySelectorAll('{CARD} + .reactions button').length === 2")
        await tab.click(f"{CARD} + .reactions [data-emoji=white_check_mark]")
        await tab.until(f"{REPLIES}.some((one) => one.includes('counts (1 of 2), as alice@example.com.'))")
        await tab.until(f"document.querySelector('{CARD} [data-field=Reviews]').textContent.includes('1 of 2')")
        assert await tab.run(STATE) == "⏳ PENDING"
        pressed = f"{CARD} + .reactions [data-emoji=white_check_mark][aria-pressed=true]"
        assert await tab.run(f"document.querySelector('{pressed}').textContent") == "✅ 1"

        await tab.click("#people a[href^='#ivan']")
        await tab.until(f"location.hash === '#ivan/channel' && {LOADED}")
        assert await tab.run(f"document.querySelector('{pressed}')") is None
        await tab.type("#posts article:last-child form.answer input", "approve because it was announced")
        assert await tab.until(f"{STATE}.includes('APPROVED') && {STATE}") == "✅ APPROVED"
        assert await tab.run(COLOUR) == "rgb(61, 184, 135)"
        await tab.until(f"{REPLIES}.some((one) => one.includes('The request is now APPROVED.'))")
        assert {author for author, *_ in await tab.run(f"{REPLIES}.map((one) => one.split('\\n'))")} == {
            "teleport",
            "ivan",
        }
    assert [review.author for _, review in here.stage.auth.submissions] == ["alice@example.com", "ivan@example.com"]


async def test_bob_asks_and_cannot_decide_himself(tmp_path: Path) -> None:
    """The page's own form makes the request; his reaction earns a refusal; his direct message bears a sign of news."""
    async with looking(tmp_path, "bob/channel") as (here, tab):
        await tab.type("#ask input[name=reason]", "the disk is full")
        await tab.until(f"{STATE} === '⏳ PENDING'")
        await tab.until(f"document.querySelectorAll('{CARD} + .reactions button').length === 2")
        await tab.click(f"{CARD} + .reactions [data-emoji=white_check_mark]")
        await tab.until(f"{REPLIES}.some((one) => one.includes('You cannot review your own request.'))")
        await tab.until("document.querySelector('#places a.news')")
        await tab.click("#places a.news")
        await tab.until(f"{STATE} === '⏳ PENDING' && location.hash === '#bob/direct'")
    assert here.stage.auth.submissions == []


async def test_ivan_decides_by_direct_message(tmp_path: Path) -> None:
    async with looking(tmp_path, "ivan/direct") as (here, tab):
        ask(here)
        await here.stage.chat.wait_for(lambda: here.stage.chat.posts(here.stage.channel)[-1:])
        await tab.type("#write input", "list")
        last = "(document.querySelector('#posts article:last-child')?.innerText ?? '')"
        line = await tab.until(f"({last}).includes('asks for dbadmin') && {last}")
        tail = next(word for word in line.split() if len(word) == 36)
        await tab.type("#write input", f"deny {tail} not today")
        await tab.until(f"({last}).includes('counts, as ivan@example.com.')")
    (submission,) = here.stage.auth.submissions
    assert (submission[1].proposed_state, submission[1].reason) == ("DENIED", "not today")


HOSTILE = (
    '<img src=x onerror="document.title=1"> <script>document.title=1</script>'
    " [here](javascript:alert(1)) :constructor: **bold** `<b>code</b>` ![x](https://evil.example/x.png)"
)


async def test_what_people_write_stays_text(tmp_path: Path) -> None:
    """Neither a message nor a reason becomes markup, runs, or loads anything."""
    async with looking(tmp_path, "alice/channel") as (here, tab):
        stage = here.stage
        ask(here, reason=HOSTILE)
        await tab.until(STATE)
        stage.chat.post(stage.bob, stage.channel, HOSTILE)
        said = "document.querySelector('#posts article:last-child .root > p')"
        await tab.until(f"{said}?.textContent.includes('constructor')")
        assert await tab.run(
            f"[{said}.querySelector('strong').textContent, {said}.querySelector('code').textContent]"
        ) == [
            "bold",
            "<b>code</b>",
        ]
        assert await tab.run("document.querySelectorAll('#posts :is(img, script, iframe, b)').length") == 0
        links = await tab.run("[...document.querySelectorAll('#posts a')].map((one) => one.protocol)")
        assert set(links) <= {"https:"}
        assert await tab.run("document.title") == "Access requests: the demo"


async def test_the_page_comes_back_after_a_lost_connection(tmp_path: Path) -> None:
    """What was posted meanwhile is there; a half-written reply is kept."""
    async with looking(tmp_path, "alice/channel") as (here, tab):
        ask(here)
        await tab.until(STATE)
        await tab.run("document.querySelector('form.answer input').value = 'approve beca'")
        here.stage.chat.drop_sockets(here.stage.alice)
        await tab.until("!document.getElementById('problem').hidden")
        here.stage.chat.post(here.stage.ivan, here.stage.channel, "while you were away")
        await tab.until("document.getElementById('posts').innerText.includes('while you were away')")
        assert await tab.run("document.querySelector('form.answer input').value") == "approve beca"
