"""What must be true of every message once the faults are over: the model that schedules are held against."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sidecar.model import APPROVED, DENIED, EXPIRED, PENDING, REMOVED, AccessRequest
from sidecar.simulator.mattermost.server import Channel, Post
from tests.world import World, field

# What the card of a request that Teleport no longer has may show.
_OVER = {EXPIRED, REMOVED, APPROVED, DENIED}


def untrue(
    here: World, channels: list[Channel], gone: dict[str, AccessRequest], shut: frozenset[str] = frozenset()
) -> list[str]:
    """Sentences on what is not as it must be, none when all is well.

    `channels` are those where every request has its card. `gone` holds the requests that Teleport has no more, as they
    last were. In those that are `shut` nobody could be told for a while, and so not of what was decided meanwhile.
    """
    found: list[str] = []
    living = {request.id: request for request in here.auth.requests()}
    posts = _posts(here)
    found += _twice(posts)
    for request in [*living.values(), *gone.values()]:
        record = json.loads(here.auth.plugin_data(request.id).get("tm") or "{}")
        for channel in channels:
            cards = [
                one for one in posts if one.channel_id == channel.id and not one.root_id and _id(one) == request.id
            ]
            # Another request had that id before: its card is over.
            q = record.get("q")
            former = [one for one in cards if q and one.props["tm"].get("q", q) != q]
            cards = [one for one in cards if one not in former]
            found += [f"{request.id[-8:]}: the card of another one is open" for one in former if _state(one) == PENDING]
            begun = _begun(here, cards[0]) if cards else {}
            if not cards and channel.id in shut and request.state != PENDING:
                continue
            wrong = _card_is_wrong(request, record, cards, begun, is_gone=request.id not in living)
            found += [f"{request.id[-8:]} in {channel.name or 'direct'}: {sentence}" for sentence in wrong]
        if record and record["owner"]:
            found.append(f"{request.id[-8:]}: its record is still held")
        if record and request.id in gone and not record["done"]:
            found.append(f"{request.id[-8:]}: its record is not done")
    return found


def _posts(here: World) -> list[Post]:
    """All posts of the bot that people see."""
    posts = here.chat.all_posts.values()
    return [one for one in posts if one.user_id == here.bot.id and not one.delete_at and not one.original_id]


def _id(post: Post) -> str:
    return str(post.props.get("tm", {}).get("id", ""))


def _state(card: Post) -> str:
    return field(card, "State").split()[-1]


def _begun(here: World, card: Post) -> dict[str, Any]:
    """What a card told of itself when it was made: Mattermost keeps what was edited away."""
    versions = [one for one in here.chat.all_posts.values() if one.original_id == card.id]
    begun: dict[str, Any] = min([*versions, card], key=lambda one: one.update_at).props["tm"]
    return begun


def _twice(posts: list[Post]) -> Iterator[str]:
    """P2: one post for each identity. Attempts of one identity differ in their keys, so the words count too."""
    keys = Counter((one.channel_id, one.root_id, one.props.get("tm", {}).get("k")) for one in posts)
    cards = Counter(
        (one.channel_id, _id(one), one.props["tm"].get("q")) for one in posts if _id(one) and not one.root_id
    )
    words = Counter((one.root_id, one.message) for one in posts if one.root_id)
    for what, counted in (("a key", keys), ("a card", cards), ("a reply", words)):
        for identity, count in counted.items():
            if count > 1:
                yield f"{what} is there {count} times: {identity}"


def _card_is_wrong(
    request: AccessRequest, record: dict[str, object], cards: list[Post], begun: dict[str, Any], *, is_gone: bool
) -> Iterator[str]:
    if not cards:
        # Nobody needs to hear of what was over before it was first read; and what is gone cannot be announced.
        if not is_gone and (request.state == PENDING or record):
            yield f"it is {request.state}, and has no card"
        return
    card = cards[0]
    shown = _state(card)
    if is_gone:
        # Its last turn may have come while nobody could see it.
        if shown not in _OVER:
            yield f"it is gone, and its card shows {shown}"
        return
    if shown != request.state:
        yield f"it is {request.state}, and its card shows {shown}"
    if card.props["tm"]["n"] != len(request.reviews):
        yield f"it has {len(request.reviews)} reviews, and its card was written for {card.props['tm']['n']}"
    yield from _told_wrong(request, card, begun)


def _told_wrong(request: AccessRequest, card: Post, begun: dict[str, Any]) -> Iterator[str]:
    """Each review is told once, and so is the end, by the reply to the deciding review or by one of its own."""
    replies = [
        one.message.partition("\n")[0] for one in card.replies if not one.delete_at and one.user_id == card.user_id
    ]
    # A card that first appears resolved says itself what went before.
    first: dict[str, Any] = {"n": 0, "state": PENDING} if begun["state"] == PENDING else begun
    wanted = [f"{one.author} (approved|denied) |, as {one.author}[.]" for one in request.reviews[first["n"] :]]
    if request.state != first["state"]:
        wanted.append(f" is now {request.state}[. ]")
    for line in wanted:
        if (told := sum(bool(re.search(line, reply)) for reply in replies)) != 1:
            yield f"told {told} times: {line}"
