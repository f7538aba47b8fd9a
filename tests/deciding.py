"""A world in which people decide: Alice and Ivan are linked to Teleport, Bob asks, Mallory is in the channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from sidecar.model import Threshold
from sidecar.simulator.mattermost.server import Channel, Post, User
from sidecar.times import Times
from tests.world import QUICK, World, running, world

APPROVE, DENY = "white_check_mark", "x"
ALICE, IVAN, BOB = "alice@example.com", "ivan@example.com", "bob@example.com"

# One sweep at each connect, none by the clock: what is found is found through its event.
LISTENING = msgspec.structs.replace(QUICK, sweep_every=3600.0, sweep_pace=0.0)
# No event is needed to find anything.
SWEEPING = msgspec.structs.replace(QUICK, sweep_every=0.05, sweep_pace=0.0)

POLICY = '{"*" = {reviewers = ["alice@example.com", "ivan@example.com"], approvals = 2, denials = 1}}'


def write_reviewers(here: World, *users: str) -> Path:
    """The folder with these reviewers' own credentials."""
    folder = here.folder / "reviewers"
    folder.mkdir(exist_ok=True)
    for user in users:
        files = here.auth.write_credentials(here.folder, user, name=user)
        for path in (files.crt, files.key):
            path.rename(folder / path.name)
    return folder


def user_id(username: str) -> str:
    """The id of an account that is yet to be made, for `linked`."""
    return username.ljust(26, "0")


def link(here: World, username: str, teleport_user: str) -> str:
    """A value of [reviewers]."""
    found = here.chat.user_by_name(username)
    return f'{{ id = "{found.id if found else user_id(username)}", user = "{teleport_user}" }}'


def linked(here: World, mode: str = "reviewer", **changes: str) -> dict[str, str]:
    """Settings by which Alice and Ivan may decide, and whom `reviewers__NAME` names, accounts of today or to come."""
    people = {"reviewers__alice": ALICE, "reviewers__ivan": IVAN}
    people |= {key: user for key, user in changes.items() if key.startswith("reviewers__")}
    settings = {"reviews__submit_as": mode}
    if mode == "reviewer":
        settings["reviews__identities"] = str(write_reviewers(here, ALICE, IVAN))
    links = {key: link(here, key.removeprefix("reviewers__"), user) for key, user in people.items()}
    return settings | changes | links


@asynccontextmanager
async def deciding(
    folder: Path,
    mode: str = "reviewer",
    *,
    times: Times = LISTENING,
    version: str = "7.0.0-dev",
    chat_version: str = "5.37.0",
    **changes: str,
) -> AsyncIterator[World]:
    """A running sidecar, and one open request of Bob's with its card."""
    async with (
        world(folder, version=version, chat_version=chat_version) as here,
        running(here.config(**linked(here, mode, **changes)), times=times),
    ):
        await listening(here)
        yield here


def let_the_plugin_decide(here: World) -> None:
    """One review by the sidecar's own user is enough."""
    here.auth.add_role("chat", review_roles=["dbadmin"])
    here.auth.add_user("access-plugin", ["access-plugin", "chat"])
    here.auth.add_role("devops", request_roles=["dbadmin"], thresholds=[Threshold(approve=1, deny=1)])


async def listening(here: World, sidecars: int = 1) -> None:
    """Return when sidecars watch Teleport and have been greeted by Mattermost."""
    await here.watched(sidecars)
    await here.chat.wait_for(lambda: len(here.chat.hub.sockets_of(here.bot.id)) >= sidecars)
    await here.lines.heard("link.ready", sidecars, link="mattermost")


async def ask(here: World, **request: Any) -> tuple[str, Post]:
    """Bob asks; the id and the card, once it stands and its record is free."""
    (request_id,) = here.ask(reason="fix it", **request)
    await here.told([request_id])
    await here.released(request_id)
    return request_id, card_of(here, request_id)


def card_of(here: World, request_id: str, channel: Channel | None = None) -> Post:
    (card,) = [card for card in here.cards(channel) if card.props["tm"]["id"] == request_id]
    return card


def mallory(here: World, name: str = "mallory", **more: Any) -> User:
    """A colleague whom nobody linked, in the team and in the channel."""
    user = here.chat.add_user(name, **more)
    here.chat.join_team(here.team, user)
    here.chat.join(here.channel, user)
    return user


def submitted(here: World) -> list[tuple[str, str]]:
    """Who was said to review what, refused ones too, in the order in which it reached Teleport."""
    return [(one.author, one.proposed_state) for _, one in here.auth.submissions]


async def refused(here: World, reason: str, user: User, count: int = 1) -> None:
    """Return when the log names so many refusals of this person's."""
    await here.lines.heard("decision.refused", count, reason=reason, user_id=user.id)


async def only_ivan_counts(here: World, card: Post) -> None:
    """Ivan denies, which is judged after all that stands already, and is the only one of whom Teleport hears."""
    here.chat.post(here.ivan, here.chat.channels[card.channel_id], "deny: no", root_id=card.id)
    await here.recorded(lambda: bool(here.auth.submissions))
    await here.lines.heard("decision.taken", user_id=here.ivan.id)
    assert submitted(here) == [(IVAN, "DENIED")]
    assert here.auth.request(card.props["tm"]["id"]).state == "DENIED"  # type: ignore[union-attr]


def tells(here: World, user: User) -> list[Post]:
    """What the bot told this person directly, oldest first."""
    channel = here.chat.open_direct(user, here.bot)
    return [post for post in here.chat.posts(channel) if post.user_id == here.bot.id]


async def says(here: World, user: User, message: str, **more: Any) -> str:
    """Somebody writes to the bot directly; what it answers."""
    channel = here.chat.open_direct(user, here.bot)
    before = len(tells(here, user))
    here.chat.post(user, channel, message, **more)
    await here.chat.wait_for(lambda: len(tells(here, user)) > before)
    return tells(here, user)[-1].message
