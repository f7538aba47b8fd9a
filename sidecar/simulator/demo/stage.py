"""The stage of the demo: the two servers with the people of the story, what can be seen there, what people do.

Rule: what does not come in time ends the story, with a sentence that says what was missing.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from sidecar.model import PENDING
from sidecar.simulator.demo.process import StoryWentWrongError
from sidecar.simulator.demo.screen import EMOJI, Screen
from sidecar.simulator.mattermost.server import Channel, MattermostServer, Post, User
from sidecar.simulator.teleport.auth import AuthServer

TEAM, CHANNEL, ROLE = "ops", "access-requests", "dbadmin"
ALICE, IVAN, BOB = "alice@example.com", "ivan@example.com", "bob@example.com"
APPROVE = "white_check_mark"


class Stage:
    """Both servers with the people of the story, the sidecar between them, and the screen."""

    def __init__(self, auth: AuthServer, chat: MattermostServer, screen: Screen, *, patience: float) -> None:
        """Let everybody in; `patience` is how many seconds the story waits for anything."""
        self.auth = auth
        self.chat = chat
        self.screen = screen
        self.patience = patience
        people = [chat.add_user(name.partition("@")[0], email=name) for name in (ALICE, IVAN, BOB)]
        self.people = people
        self.alice, self.ivan, self.bob = people
        # Bob reviews, too: other people's requests.
        auth.add_user(BOB, ["devops", "reviewer"])
        self.bot = chat.add_bot("teleport")
        everybody = (*people, self.bot)
        self.channel = chat.add_channel(chat.add_team(TEAM, members=everybody), CHANNEL, members=everybody)
        self.requests: list[str] = []
        # request id -> seconds from the request to its message
        self.announced: dict[str, float] = {}

    # What can be seen

    def cards(self, request_id: str, channel: Channel | None = None) -> list[Post]:
        """The cards of a request in a channel."""
        posts = self.chat.posts(channel or self.channel)
        return [
            post
            for post in posts
            if post.user_id == self.bot.id and not post.root_id and post.props.get("tm", {}).get("id") == request_id
        ]

    def shows(self, request_id: str, title: str, text: str) -> bool:
        """Whether the card of a request has `text` in a field."""
        return any(text in field(card, title) for card in self.cards(request_id))

    def replies(self, request_id: str) -> list[str]:
        """The thread of a card; people's words bear their names."""
        names = {one.id: f"**{one.username}** " for one in self.people}
        return [f"{names.get(post.user_id, '')}{post.message}" for post in self.chat.thread(self.only_card(request_id))]

    def says(self, request_id: str, text: str) -> bool:
        """Whether the thread of a card has a reply with `text` in it."""
        return any(text in reply for reply in self.replies(request_id))

    def bobs_card(self, request_id: str) -> Post | None:
        """The direct message that tells Bob of his request."""
        direct = [one for one in self.chat.channels.values() if one.type == "D" and self.bob.id in one.members]
        cards = [card for channel in direct for card in self.cards(request_id, channel)]
        return cards[0] if cards else None

    # What is waited for

    async def within(self, missing: str, work: Awaitable[object], *, longer: float = 0.0) -> None:
        """Wait for `work`; `missing` is the sentence for when it does not come."""
        seconds = self.patience + longer
        with trio.move_on_after(seconds) as scope:
            await work
        if scope.cancelled_caught:
            raise StoryWentWrongError(f"{missing} Waited {seconds:g} s.")

    async def until(self, missing: str, predicate: Callable[[], object], *, longer: float = 0.0) -> None:
        """Wait for something in Mattermost."""
        await self.within(missing, self.chat.wait_for(predicate), longer=longer)

    async def settled(self, request_id: str) -> None:
        """Wait until nobody works on a request: its record in Teleport is saved and released."""

        def released() -> bool:
            record = json.loads(self.auth.plugin_data(request_id).get("tm") or "{}")
            return bool(record.get("owner") == "")

        # the thread is left to itself when nobody waits any more
        waiting = partial(self.auth.wait_for, released, 2 * self.patience)
        missing = f"The sidecar's record of {request_id} was not saved in Teleport."
        await self.within(missing, trio.to_thread.run_sync(waiting, abandon_on_cancel=True))

    async def announced_once(self, request_id: str, asked_at: float) -> Post:
        """Wait for the card of a request; return it."""
        await self.until(
            f"No message for {request_id} came to ~{CHANNEL}.", lambda: self.shows(request_id, "State", PENDING)
        )
        self.announced[request_id] = trio.current_time() - asked_at
        await self.settled(request_id)
        return self.only_card(request_id)

    def only_card(self, request_id: str) -> Post:
        """The one card of a request in the channel."""
        cards = self.cards(request_id)
        if len(cards) != 1:
            raise StoryWentWrongError(f"There are {len(cards)} messages for {request_id} in ~{CHANNEL}, not one.")
        return cards[0]

    def check(self, seen: object, missing: str) -> None:
        """Hold the story to what the servers say."""
        if not seen:
            raise StoryWentWrongError(missing)

    # What people do

    async def ask(self, reason: str, *, expires_in: float | None = None) -> tuple[str, float]:
        """Bob asks for the role; returns the request's id, and when he asked."""
        await self.screen.command("bob", f'tsh request create --roles={ROLE} --reason="{reason}"')
        asked_at = trio.current_time()
        request_id = self.auth.create_request(BOB, [ROLE], reason=reason, expires_in=expires_in)
        self.requests.append(request_id)
        return request_id, asked_at

    async def react(self, person: User, request_id: str, emoji: str) -> None:
        """Somebody reacts to the card of a request."""
        await self.screen.gesture(person.username, f"reacts with {EMOJI[emoji]} to the card")
        self.chat.react(person, self.only_card(request_id), emoji)

    async def reply(self, person: User, request_id: str, text: str) -> None:
        """Somebody replies in the thread of a card."""
        await self.screen.gesture(person.username, f"replies in its thread: `{text}`")
        self.chat.post(person, self.channel, text, root_id=self.only_card(request_id).id)

    async def answered(self, request_id: str, text: str) -> None:
        """Wait for the sidecar's answer to a decision."""
        await self.until(f"Nobody was answered: {text}.", lambda: self.says(request_id, text))

    async def draw(self, card: Post, *fields: str, replies: int = 0) -> None:
        """Show a card as it stands in the channel, with the last of its replies."""
        thread = self.replies(card.props["tm"]["id"])
        await self.screen.post(
            f"~{CHANNEL}",
            "" if fields else card.message,
            card.props["attachments"][0],
            fields=fields,
            replies=thread[len(thread) - replies :],
        )


def field(post: Post, title: str) -> str:
    """The text of one field of a card, "" where it has none."""
    fields = post.props["attachments"][0]["fields"] or ()
    return next((str(one["value"]) for one in fields if one["title"] == title), "")
