"""What Alice and Ivan decide in Mattermost, and how Teleport counts it.

Each says when nothing more is to come, and then counts: one review and one answer for each decision.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from integration.stage import Card, Channel, Review, Scenario, Stage

APPROVE = "white_check_mark"
DONE = " counts"


async def two_reactions_approve(stage: Stage) -> None:
    """One alone leaves the request open; two people are two reviews."""
    alice, _ = stage.cluster.reviewers
    async with stage.sidecar(_as_reviewers(stage)):
        (request_id,) = await stage.ask()
        card = await stage.shows(request_id, "PENDING")
        await stage.chat.react(stage.chat.people["alice"], card, APPROVE)
        await _answered(stage, request_id, 1)
        (card,) = await stage.until(lambda cards: "1 of 2" in cards[0].fields["Reviews"])
        assert card.state == "PENDING"
        assert await stage.cluster.reviews(request_id) == [Review(alice, "APPROVED", "")]
        await stage.chat.react(stage.chat.people["ivan"], card, APPROVE)
        await _all_is_told(stage, request_id)
    await _counted_twice(stage, request_id)


async def a_reply_denies(stage: Stage) -> None:
    """With the reason that was given for it, on Teleport and on the card."""
    alice, _ = stage.cluster.reviewers
    async with stage.sidecar(_as_reviewers(stage)):
        (request_id,) = await stage.ask()
        card = await stage.shows(request_id, "PENDING")
        await stage.chat.say(stage.chat.people["alice"], stage.channel, "Deny because it can wait, and we sleep", card)
        await stage.shows(request_id, "DENIED")
        card = await _answered(stage, request_id, 1)
    assert "it can wait, and we sleep" in card.fields["Resolution"]
    assert await stage.cluster.reviews(request_id) == [Review(alice, "DENIED", "it can wait, and we sleep")]


async def a_direct_message_approves(stage: Stage) -> None:
    """By the whole id, answered where it was written."""
    alice, ivan = stage.cluster.reviewers
    person = stage.chat.people["alice"]
    async with stage.sidecar(_as_reviewers(stage)):
        (request_id,) = await stage.ask()
        card = await stage.shows(request_id, "PENDING")
        await stage.chat.react(stage.chat.people["ivan"], card, APPROVE)
        # The card is in the record by now: before that, its id is not known to direct messages.
        await _answered(stage, request_id, 1)
        direct = await stage.chat.direct(person)
        await stage.chat.say(person, direct, f"approve {request_id} go ahead")
        await _told(stage, direct, lambda text: request_id[-8:] in text and DONE in text)
        card = await stage.shows(request_id, "APPROVED")
        assert (_said(card, DONE), _said(card, f"{alice} approved ")) == (1, 1)
    assert await stage.cluster.reviews(request_id) == [
        Review(ivan, "APPROVED", ""),
        Review(alice, "APPROVED", "go ahead"),
    ]


async def refused(stage: Stage) -> None:
    """The requester's own reaction, a stranger's, and words that were edited: Teleport hears of none of them."""
    _, ivan = stage.cluster.reviewers
    people = stage.chat.people
    bob = _linked(stage, "bob", stage.cluster.requester)
    async with stage.sidecar(_as_reviewers(stage) | bob) as sidecar:
        (request_id,) = await stage.ask()
        card = await stage.shows(request_id, "PENDING")
        post_id = await stage.chat.say(people["alice"], stage.channel, "let me look", card)
        await stage.chat.react(people["bob"], card, APPROVE)
        await stage.chat.react(people["mallory"], card, APPROVE)
        for name, reason in {"bob": "own_request", "mallory": "unmapped"}.items():
            await sidecar.logged("decision.refused", reason=reason, user_id=people[name].id, request_id=request_id)
        # Read as talk by now.
        await stage.chat.edit(people["alice"], post_id, "approve")
        await sidecar.logged("decision.refused", reason="edited", user_id=people["alice"].id, request_id=request_id)
        # Judged after all that stands already.
        await stage.chat.say(people["ivan"], stage.channel, "deny: no", card)
        await stage.shows(request_id, "DENIED")
    assert await stage.cluster.reviews(request_id) == [Review(ivan, "DENIED", "no")]


async def decided_while_it_was_down(stage: Stage) -> None:
    """No event tells of it: the next sidecar finds it by reading."""
    settings = _as_reviewers(stage)
    async with stage.sidecar(settings) as first:
        (request_id,) = await stage.ask()
        card = await stage.shows(request_id, "PENDING")
        assert await first.stop() == 0
    await _both_approve(stage, card)
    async with stage.sidecar(settings):
        await _all_is_told(stage, request_id)
    await _counted_twice(stage, request_id)


async def decided_while_it_could_not_hear(stage: Stage) -> None:
    """Mattermost was restarted, and its websocket not opened again: the sweep after the next hello finds it."""
    async with stage.sidecar(_as_reviewers(stage)) as sidecar:
        (request_id,) = await stage.ask()
        card = await stage.shows(request_id, "PENDING")
        sidecar.process.send_signal(signal.SIGSTOP)
        async with stage.chat.away():
            pass
        await _both_approve(stage, card)
        sidecar.process.send_signal(signal.SIGCONT)
        await _all_is_told(stage, request_id)
    await _counted_twice(stage, request_id)


async def two_sidecars_decide_once(stage: Stage) -> None:
    """Both hear everything; each decision is submitted once and answered once."""
    settings = _as_reviewers(stage)
    async with (
        stage.sidecar(settings, teleport__lease="3s") as first,
        stage.sidecar(settings, teleport__lease="3s") as second,
    ):
        ids = await stage.ask(3)
        for card in await stage.show(dict.fromkeys(ids, "PENDING")):
            await _both_approve(stage, card)
        for request_id in ids:
            await _all_is_told(stage, request_id)
        # What either has begun is ended.
        assert [await first.stop(), await second.stop()] == [0, 0]
    for request_id in ids:
        await _counted_twice(stage, request_id)


async def a_policy_of_two(stage: Stage) -> None:
    """The sidecar counts heads, and its own one review decides: its reason names the people."""
    alice, ivan = stage.cluster.reviewers
    async with stage.sidecar(_by_policy(stage)):
        (request_id,) = await stage.ask(policed=True)
        card = await stage.shows(request_id, "PENDING")
        await stage.chat.react(stage.chat.people["alice"], card, APPROVE)
        await _answered(stage, request_id, 1, " counts (1 of 2), as ")
        assert await stage.cluster.reviews(request_id) == []
        await stage.chat.say(stage.chat.people["ivan"], stage.channel, "approve because it is urgent", card)
        await stage.shows(request_id, "APPROVED")
        await _answered(stage, request_id, 1, " counts (2 of 2), as ")
    (review,) = await stage.cluster.reviews(request_id)
    assert (review.author, review.proposed_state) == (stage.cluster.decider, "APPROVED")
    assert review.reason == f"Decided in Mattermost by {alice}, {ivan}: it is urgent"


DECISIONS: tuple[Scenario, ...] = (
    two_reactions_approve,
    a_reply_denies,
    a_direct_message_approves,
    refused,
    decided_while_it_was_down,
    decided_while_it_could_not_hear,
    two_sidecars_decide_once,
    a_policy_of_two,
)


def _linked(stage: Stage, name: str, teleport_user: str) -> dict[str, object]:
    person = stage.chat.people[name]
    key = f"reviewers.{person.username}"
    return {f"{key}.id": person.id, f"{key}.user": teleport_user}


def _both_linked(stage: Stage) -> dict[str, object]:
    alice, ivan = stage.cluster.reviewers
    return _linked(stage, "alice", alice) | _linked(stage, "ivan", ivan)


def _as_reviewers(stage: Stage) -> dict[str, object]:
    """Reviews are submitted with each reviewer's own credentials."""
    identities = str(stage.cluster.identities)
    return {"reviews.submit_as": "reviewer", "reviews.identities": identities} | _both_linked(stage)


def _by_policy(stage: Stage) -> dict[str, object]:
    """One review by the sidecar's own user, once both agree."""
    policy = 'reviews.policy."*".'
    return _both_linked(stage) | {
        "reviews.submit_as": "plugin",
        f"{policy}reviewers": stage.cluster.reviewers,
        f"{policy}approvals": 2,
        f"{policy}denials": 1,
        **stage.cluster.decider_access,
    }


async def _both_approve(stage: Stage, card: Card) -> None:
    """Alice reacts, Ivan replies."""
    await stage.chat.react(stage.chat.people["alice"], card, APPROVE)
    await stage.chat.say(stage.chat.people["ivan"], stage.channel, "approve", card)


async def _answered(stage: Stage, request_id: str, count: int, words: str = DONE) -> Card:
    """Return the card of a request once so many answers with these words stand below it."""

    def found(cards: list[Card]) -> list[Card]:
        return [card for card in cards if card.request_id == request_id and _said(card, words) >= count]

    (card,) = found(await stage.until(lambda cards: bool(found(cards))))
    return card


async def _told(stage: Stage, direct: Channel, true: Callable[[str], bool]) -> None:
    """Return once the bot has said something in a direct channel."""
    await stage.chat.until(direct, lambda cards: any(not card.fields and true(card.message) for card in cards))


async def _all_is_told(stage: Stage, request_id: str) -> None:
    """Return once an approval by two is: a reply for each review, of which the last tells the end."""
    await stage.shows(request_id, "APPROVED")
    await stage.until(lambda cards: any(card.request_id == request_id and len(card.replies) >= 2 for card in cards))


async def _counted_twice(stage: Stage, request_id: str) -> None:
    """A review of each of the two, told to them in one reply, and nothing twice."""
    assert sorted(await stage.cluster.reviews(request_id)) == sorted(
        Review(author, "APPROVED", "") for author in stage.cluster.reviewers
    )
    (card,) = [card for card in await stage.chat.cards(stage.channel) if card.request_id == request_id]
    assert (_said(card, DONE), len(card.replies)) == (2, 2)
    assert sum("The request is now APPROVED." in reply for reply in card.replies) == 1


def _said(card: Card, words: str) -> int:
    return sum(words in reply for reply in card.replies)
