"""The story of the demo, act by act: Bob asks, Alice and Ivan decide in Mattermost, everybody is told.

Rule: an act tells only what it has seen to be so on the two servers themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import trio

from sidecar.model import APPROVED, DENIED, EXPIRED, PENDING
from sidecar.simulator.demo.process import Sidecar
from sidecar.simulator.demo.stage import ALICE, APPROVE, CHANNEL, IVAN, Stage, field

# Long enough to read the card before it ends.
_SHORT_LIFE_SECONDS = 5.0
# What people decided in the course of the story: whose credentials, whose review, which way.
_REVIEWS = [(ALICE, ALICE, APPROVED), (IVAN, IVAN, APPROVED), (IVAN, IVAN, DENIED)]


class Act(NamedTuple):
    """A part of the story. `play` raises StoryWentWrongError."""

    title: str
    play: Callable[[Stage, Sidecar], Awaitable[None]]


async def start(stage: Stage, sidecar: Sidecar) -> None:
    """Start the sidecar and wait until both its links work."""
    began = trio.current_time()
    await sidecar.start()

    def linked(link: str, events: Collection[dict[str, Any]]) -> bool:
        return any(one.get("event") == "link.ready" and one.get("link") == link for one in events)

    for link in ("teleport", "mattermost"):
        missing = f"The sidecar did not become ready: its link to {link.capitalize()} is missing."
        await stage.within(missing, sidecar.logged(partial(linked, link)))
    took = trio.current_time() - began
    status, _ = await sidecar.get("/readyz")
    stage.check(status == 200, f"/readyz answered {status} although both links are ready.")
    stage.screen.done(f"the sidecar is ready after {took:.1f} s: process {sidecar.pid}, endpoints {sidecar.address}")


async def _open(stage: Stage, sidecar: Sidecar) -> None:
    screen = stage.screen
    screen.done(f"an Auth Service listens on {stage.auth.addr} (gRPC, mutual TLS)")
    screen.done(f"a Mattermost listens on {stage.chat.url} (REST and websocket)")
    await screen.say("Both are stand-ins inside this demo. The sidecar between them is the real one.")
    await start(stage, sidecar)
    await screen.say("Two reviewers must agree on dbadmin: dual authorization. They decide where they read.")


async def _bob_asks(stage: Stage, sidecar: Sidecar) -> None:  # noqa: ARG001 - every act has both
    request_id, asked_at = await stage.ask("fix the replication lag on db-7")
    card = await stage.announced_once(request_id, asked_at)
    for reviewer in (stage.alice, stage.ivan):
        stage.check(stage.chat.can_read(reviewer, stage.channel), f"{reviewer.username} cannot read ~{CHANNEL}.")
    stage.screen.done(
        f"{1000 * stage.announced[request_id]:.0f} ms later **alice** and **ivan** both see it in ~{CHANNEL}:"
    )
    await stage.draw(card)


async def _both_approve(stage: Stage, sidecar: Sidecar) -> None:  # noqa: ARG001
    request_id = stage.requests[0]
    await stage.react(stage.bob, request_id, APPROVE)
    await stage.answered(request_id, "You cannot review your own request.")
    stage.check(not _reviews(stage), "Bob's decision about his own request reached Teleport.")
    stage.screen.done("that changes nothing, and he is told so in the thread")
    await stage.draw(stage.only_card(request_id), "State", "Reviews", replies=1)

    await stage.react(stage.alice, request_id, APPROVE)
    await stage.answered(request_id, f"counts (1 of 2), as {ALICE}.")
    await stage.until(
        f"The card of {request_id} does not tell of Alice's approval.",
        lambda: stage.shows(request_id, "Reviews", "1 of 2"),
    )
    stage.check(_state(stage, request_id) == PENDING, "One approval of two was enough for Teleport.")
    stage.screen.done("Teleport has her review, under her own name: one of two, still pending")
    await stage.draw(stage.only_card(request_id), "State", "Reviews", replies=1)

    await stage.reply(stage.ivan, request_id, "approve because the change is announced")
    await stage.answered(request_id, f"counts (2 of 2), as {IVAN}.")
    await _ended(stage, request_id, APPROVED)
    stage.screen.done("two of two: Teleport grants the role, the card turns green")
    await stage.draw(stage.only_card(request_id), replies=2)
    await _bob_is_told(stage, request_id, APPROVED)


async def _killed_and_denied(stage: Stage, sidecar: Sidecar) -> None:
    await sidecar.kill()
    await stage.screen.say("The sidecar is killed (SIGKILL). Bob asks again while nobody is there to tell.")
    request_id, _ = await stage.ask("just curious")
    await start(stage, sidecar)
    back_at = trio.current_time()
    await stage.announced_once(request_id, back_at)
    del stage.announced[request_id]
    stage.only_card(stage.requests[0])
    stage.screen.done("the request is announced after all, and the earlier one is not announced twice")

    await stage.reply(stage.ivan, request_id, "deny because curiosity is no reason")
    await stage.answered(request_id, f"counts, as {IVAN}.")
    await _ended(stage, request_id, DENIED)
    stage.screen.done("one denial decides: the card turns red")
    await stage.draw(stage.only_card(request_id), "State", "Reviews", "Resolution", replies=1)


async def _expires(stage: Stage, sidecar: Sidecar) -> None:  # noqa: ARG001
    await stage.screen.say(f"This request lives for {_SHORT_LIFE_SECONDS:.0f} seconds, and everybody is at lunch.")
    request_id, asked_at = await stage.ask("anybody there?", expires_in=_SHORT_LIFE_SECONDS)
    card = await stage.announced_once(request_id, asked_at)
    await stage.draw(card, "State")
    await _ended(stage, request_id, EXPIRED)
    stage.check(stage.auth.request(request_id) is None, f"Teleport still has {request_id}.")
    stage.screen.done("nobody came: the card turns grey, and nobody is left wondering")
    await stage.draw(stage.only_card(request_id), "State", replies=1)


async def _the_end(stage: Stage, sidecar: Sidecar) -> None:
    for request_id, state in zip(stage.requests, (APPROVED, DENIED, EXPIRED), strict=True):
        await stage.settled(request_id)
        card = stage.only_card(request_id)
        stage.check(state in field(card, "State"), f"The card of {request_id} does not say {state} at the end.")
    status, page = await sidecar.get("/metrics")
    up = page.count('teleport_mattermost_link_up{link="teleport"} 1') == 1
    stage.check(status == 200 and up, "The metrics do not say that the link to Teleport is up.")
    stage.check(_reviews(stage) == _REVIEWS, f"Teleport has other reviews than were given: {_reviews(stage)}.")
    times = [f"{1000 * one:.0f} ms" for one in stage.announced.values()]
    rest, grpc = stage.chat.calls, stage.auth.calls
    posted = rest["POST", "/api/v4/posts"]
    stage.screen.facts(
        [
            ("access requests", "3, with one card each: approved, denied, expired"),
            ("decided in Mattermost", "3 reviews, each with its reviewer's own credentials; 1 refused: Bob's"),
            ("from request to message", f"{times[0]} the first time, then {', '.join(times[1:])}"),
            ("calls to Mattermost", f"{sum(rest.values())} REST, of them {posted} posts, {_edits(stage)} edits"),
            ("calls to Teleport", f"{sum(grpc.values())} gRPC, of them {grpc['UpdatePluginData']} to save records"),
            ("lost, or posted twice", "none"),
        ]
    )


ACTS = (
    Act("Two servers, and the sidecar between them", _open),
    Act("Bob asks for dbadmin", _bob_asks),
    Act("Alice and Ivan approve, each in Mattermost", _both_approve),
    Act("A second request, while the sidecar is down", _killed_and_denied),
    Act("A third request, which nobody reviews", _expires),
    Act("What happened, in numbers", _the_end),
)


async def _ended(stage: Stage, request_id: str, state: str) -> None:
    await stage.until(
        f"The card of {request_id} does not say {state}.",
        lambda: stage.shows(request_id, "State", state) and stage.says(request_id, f" is now {state}."),
        longer=_SHORT_LIFE_SECONDS,
    )
    if state != EXPIRED:
        stage.check(_state(stage, request_id) == state, f"Teleport does not say {state} for {request_id}.")
    await stage.settled(request_id)


async def _bob_is_told(stage: Stage, request_id: str, state: str) -> None:
    def told() -> bool:
        card = stage.bobs_card(request_id)
        return card is not None and state in field(card, "State")

    await stage.until(f"Bob was not told that {request_id} is {state}.", told)
    card = stage.bobs_card(request_id)
    assert card is not None
    attachment = {key: card.props["attachments"][0][key] for key in ("color", "pretext")}
    stage.screen.done("**bob** is told in a direct message:")
    await stage.screen.post("@teleport → @bob", "", attachment)


def _state(stage: Stage, request_id: str) -> str:
    request = stage.auth.request(request_id)
    return request.state if request else ""


def _reviews(stage: Stage) -> list[tuple[str, str, str]]:
    return [(caller, review.author, review.proposed_state) for caller, review in stage.auth.submissions]


def _edits(stage: Stage) -> int:
    return sum(count for (method, _), count in stage.chat.calls.items() if method in {"PUT", "PATCH"})
