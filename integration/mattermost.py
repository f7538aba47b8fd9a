"""The stage on a real Mattermost: everything over its REST API, with an administrator's token."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx
import trio

from integration.stage import Card, Channel, Person

PASSWORD = "Passw0rd!Passw0rd!"
_LOOK_EVERY_SECONDS = 0.2


class ChatHost(Protocol):
    """Where a Mattermost runs; its settings allow bots."""

    url: str
    admin_token: str
    # Why it is not ours to restart; "" where it is.
    no_restart: str

    def stop(self) -> None: ...

    def start(self) -> None:
        """Start it on the same address; return when it answers."""
        ...


class Rest:
    """One account's REST calls; connections are not kept, so that none is left when the server goes."""

    def __init__(self, url: str, token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(
            base_url=f"{url}/api/v4",
            headers=headers | {"Connection": "close"},
            timeout=20,
            trust_env=False,
        )

    def __call__(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - any JSON
        return self.answer(method, path, body).json()

    def answer(self, method: str, path: str, body: object = None) -> httpx.Response:
        answer = self._client.request(method, path, json=body)
        if answer.is_error:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer

    def close(self) -> None:
        self._client.close()


def log_in(url: str, username: str) -> str:
    """Return a session token of one of our people."""
    rest = Rest(url)
    try:
        return rest.answer("POST", "/users/login", {"login_id": username, "password": PASSWORD}).headers["Token"]
    finally:
        rest.close()


class RealChat:
    """A team, a bot and the people, made for this run."""

    def __init__(self, host: ChatHost, emails: Mapping[str, str]) -> None:
        """`emails`: name of each person -> email, which is the Teleport user."""
        self._host = host
        self._tag = secrets.token_hex(3)
        self.url, self.no_restart = host.url, host.no_restart
        self._admin = Rest(host.url, host.admin_token)
        version = self._admin.answer("GET", "/system/ping").headers["X-Version-Id"]
        self.name = f"Mattermost {'.'.join(version.split('.')[:3])}"
        team = {"name": f"check-{self._tag}", "display_name": f"Check {self._tag}", "type": "O"}
        self._team = self._admin("POST", "/teams", team)
        bot = {"username": f"check-bot-{self._tag}", "display_name": "Check", "description": "for a check"}
        self._bot_id = self._admin("POST", "/bots", bot)["user_id"]
        self.bot_token = self._admin("POST", f"/users/{self._bot_id}/tokens", {"description": "check"})["token"]
        self._bot = Rest(host.url, self.bot_token)
        self.people = {name: self._make_person(name, email) for name, email in emails.items()}
        for user_id in self._everybody:
            self._admin("POST", f"/teams/{self._team['id']}/members", {"team_id": self._team["id"], "user_id": user_id})

    def close(self) -> None:
        """Turn what was made off; only a database forgets."""
        for user_id in self._everybody:
            self._admin("DELETE", f"/users/{user_id}")
        self._admin("DELETE", f"/teams/{self._team['id']}")
        self._admin.close()
        self._bot.close()

    async def channel(self) -> Channel:
        return await trio.to_thread.run_sync(self._make_channel)

    async def direct(self, person: Person) -> Channel:
        made = await trio.to_thread.run_sync(self._bot, "POST", "/channels/direct", [self._bot_id, person.id])
        return Channel(made["id"], "")

    async def cards(self, channel: Channel) -> list[Card]:
        return await trio.to_thread.run_sync(self._cards, channel)

    async def until(self, channel: Channel, true: Callable[[list[Card]], bool]) -> list[Card]:
        while True:
            cards = await self.cards(channel)
            if true(cards):
                return cards
            await trio.sleep(_LOOK_EVERY_SECONDS)

    async def mentions(self, channel: Channel, person: Person) -> int:
        path = f"/channels/{channel.id}/members/{person.id}"
        found = await trio.to_thread.run_sync(self._admin, "GET", path)
        return int(found["mention_count"])

    async def react(self, person: Person, card: Card, emoji: str) -> None:
        body = {"user_id": person.id, "post_id": card.id, "emoji_name": emoji}
        await trio.to_thread.run_sync(self._as, person, "POST", "/reactions", body)

    async def say(self, person: Person, channel: Channel, message: str, card: Card | None = None) -> str:
        body = {"channel_id": channel.id, "root_id": card.id if card else "", "message": message}
        while True:
            try:
                made = await trio.to_thread.run_sync(self._as, person, "POST", "/posts", body)
            except AssertionError as exc:
                # Two first replies in a thread at once: the server stores one of them.
                if "app.post.save.app_error" not in str(exc):
                    raise
            else:
                return str(made["id"])

    async def edit(self, person: Person, post_id: str, message: str) -> None:
        await trio.to_thread.run_sync(self._as, person, "PUT", f"/posts/{post_id}/patch", {"message": message})

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        await trio.to_thread.run_sync(self._host.stop)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._host.start)

    @property
    def _everybody(self) -> list[str]:
        return [self._bot_id, *(person.id for person in self.people.values())]

    def _as(self, person: Person, method: str, path: str, body: object) -> Any:  # noqa: ANN401 - any JSON
        rest = Rest(self.url, person.token)
        try:
            return rest(method, path, body)
        finally:
            rest.close()

    def _make_person(self, name: str, email: str) -> Person:
        username = f"{name}-{self._tag}"
        body = {"username": username, "email": email, "password": PASSWORD}
        made = self._admin("POST", "/users", body)
        return Person(made["id"], username, email, log_in(self.url, username))

    def _make_channel(self) -> Channel:
        name = f"requests-{secrets.token_hex(4)}"
        body = {"team_id": self._team["id"], "name": name, "display_name": name, "type": "P"}
        made = self._admin("POST", "/channels", body)
        for user_id in self._everybody:
            self._admin("POST", f"/channels/{made['id']}/members", {"user_id": user_id})
        return Channel(made["id"], f"{self._team['name']}/{name}")

    def _cards(self, channel: Channel) -> list[Card]:
        posts = [post for post in self._posts(channel) if post["user_id"] == self._bot_id and not post["type"]]
        replies: dict[str, list[str]] = {}
        for post in posts:
            replies.setdefault(post["root_id"], []).append(post["message"])
        return [_card(post, replies.get(post["id"], [])) for post in posts if not post["root_id"]]

    def _posts(self, channel: Channel) -> list[dict[str, Any]]:
        """All posts of a channel, oldest first; a page may repeat posts of the one before while others come in."""
        found: dict[str, dict[str, Any]] = {}
        page = 0
        while True:
            answer = self._bot("GET", f"/channels/{channel.id}/posts?page={page}&per_page=200")
            found |= answer["posts"]
            if len(answer["order"]) < 200:
                return sorted(found.values(), key=lambda post: (post["create_at"], post["id"]))
            page += 1


def _card(post: dict[str, Any], replies: list[str]) -> Card:
    attachments = post["props"].get("attachments") or [{"fields": []}]
    fields = {one["title"]: str(one["value"]) for one in attachments[0]["fields"]}
    return Card(post["id"], post["message"], fields, tuple(replies))
