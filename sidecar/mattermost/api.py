"""The calls of Mattermost's REST API (v4) that the sidecar makes, and what their refusals mean.

Every call can raise LinkLost, LinkRefused or LinkGarbled, and PostRejected where Mattermost says no; a docstring names
only what differs. A garbled answer to a write does not say whether it was carried out: treat it as ambiguous.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

from sidecar.errors import LinkLost, PostRejected
from sidecar.mattermost import codec
from sidecar.mattermost.codec import Channel, Team
from sidecar.model import Draft, Post, Reaction, User

T = TypeVar("T")

# Mattermost clamps pages to 200 by itself.
PAGE: Final = 200
# Post ids in one call for reactions; each is a query of the server's.
_REACTIONS_AT_ONCE: Final = 100


class Rest(Protocol):
    """What carries the calls; `client.open_client` makes one."""

    clock_offset: float

    async def call(
        self,
        method: str,
        path: str,
        decode: Callable[[bytes], T],
        *,
        body: object = None,
        write: bool = False,
        paced: bool = False,
        guard: Callable[[], None] = ...,
    ) -> T:
        """Make one call and decode its answer."""


async def _if_found(answer: Awaitable[T], *, missing: tuple[int, ...] = (404,)) -> T | None:
    try:
        return await answer
    except PostRejected as exc:
        if exc.status not in missing:
            raise
        return None


def _part(text: str) -> str:
    """Quote a text so that it stays one segment of the path."""
    return quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")


def _props(draft: Draft, tm: dict[str, object]) -> dict[str, object]:
    return {"attachments": [] if draft.attachment is None else [draft.attachment], "tm": tm}


class MattermostClient:
    """Mattermost as the bot sees it."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        self._has_my_channels = True

    @property
    def clock_offset(self) -> float:
        """Mattermost's clock minus ours in seconds, to half a second, by the Date of the last answer."""
        return self._rest.clock_offset

    async def me(self) -> User:
        """Return the bot itself; the proof that the link works and the token counts."""
        return await self._rest.call("GET", "/users/me", codec.decode_user)

    async def config(self) -> dict[str, str]:
        """Return the client configuration: settings by name, all values are strings ("true", "any")."""
        return await self._rest.call("GET", "/config/client?format=old", codec.decode_config)

    async def create_post(
        self,
        channel_id: str,
        draft: Draft,
        *,
        key: str,
        tm: dict[str, object],
        root_id: str = "",
        guard: Callable[[], None] = lambda: None,
    ) -> Post:
        """Create a post and return what Mattermost answered, which the caller must check to be his.

        For 30 s and on one node Mattermost answers a repeated `key` with the first post, whoever made it. While the
        first is still being stored it raises PostRejected with `answers.PENDING_ID`: repeat with the same key.
        `guard` is called directly before each try to send, as in all writes, and may raise to send nothing.
        """
        body = {
            "channel_id": channel_id,
            "message": draft.message,
            "root_id": root_id,
            "pending_post_id": key,
            "props": _props(draft, tm),
        }
        path = "/posts?set_online=false"
        return await self._rest.call("POST", path, codec.decode_post, body=body, write=True, paced=True, guard=guard)

    async def patch_post(
        self,
        post_id: str,
        draft: Draft,
        *,
        tm: dict[str, object],
        message: bool = False,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        """Replace the attachment of a post, and its message only where asked. 403 also means: no such post any more.

        A patch replaces all props, `from_bot` with them, so it is sent along. Edits of the message may be limited in
        time (400 with `time_limit` in the error id), those of the attachment never are.
        """
        body: dict[str, object] = {"props": {**_props(draft, tm), "from_bot": "true"}}
        if message:
            body["message"] = draft.message
        path = f"/posts/{_part(post_id)}/patch"
        await self._rest.call("PUT", path, codec.decode_done, body=body, write=True, paced=True, guard=guard)

    async def delete_post(self, post_id: str, *, guard: Callable[[], None] = lambda: None) -> None:
        """Delete a post; one that is gone already is a 403."""
        await self._rest.call("DELETE", f"/posts/{_part(post_id)}", codec.decode_done, write=True, guard=guard)

    async def get_post(self, post_id: str) -> Post | None:
        """Return a post; None where it is deleted or never was."""
        return await _if_found(self._rest.call("GET", f"/posts/{_part(post_id)}", codec.decode_post))

    async def channel_posts(self, channel_id: str, page: int = 0, per_page: int = PAGE) -> list[Post]:
        """Return one page of a channel, newest first; `page` counts from 0."""
        path = f"/channels/{_part(channel_id)}/posts?page={page}&per_page={per_page}"
        return await self._rest.call("GET", path, codec.decode_posts)

    async def thread(self, post_id: str) -> list[Post]:
        """Return a root and all its replies, oldest first; [] where the root is gone."""
        path = f"/posts/{_part(post_id)}/thread"
        posts = await _if_found(self._rest.call("GET", path, codec.decode_posts))
        return sorted(posts or (), key=lambda post: (post.root_id != "", post.create_at))

    async def reactions(self, post_ids: list[str]) -> dict[str, list[Reaction]]:
        """Return the reactions on many posts; a post that the bot cannot read is left out.

        A deleted post may still have its reactions (5.37).
        """
        found: dict[str, list[Reaction]] = {}
        for start in range(0, len(post_ids), _REACTIONS_AT_ONCE):
            found |= await self._some_reactions(post_ids[start : start + _REACTIONS_AT_ONCE])
        return found

    async def _some_reactions(self, post_ids: list[str]) -> dict[str, list[Reaction]]:
        answer = self._rest.call("POST", "/posts/ids/reactions", codec.decode_reaction_map, body=post_ids)
        found = await _if_found(answer, missing=(403, 404))
        if found is not None:
            return {post_id: found.get(post_id, []) for post_id in post_ids}
        if len(post_ids) == 1:
            return {}
        # v11 refuses the whole call for one unreadable post: halve until it stands alone.
        half = len(post_ids) // 2
        return await self._some_reactions(post_ids[:half]) | await self._some_reactions(post_ids[half:])

    async def post_reactions(self, post_id: str) -> list[Reaction]:
        """Return the reactions that stand on one post."""
        return await self._rest.call("GET", f"/posts/{_part(post_id)}/reactions", codec.decode_reactions)

    async def add_reaction(self, user_id: str, post_id: str, emoji: str) -> None:
        """React as the bot, whose id `user_id` must be; a repeated one changes nothing."""
        body = {"user_id": user_id, "post_id": post_id, "emoji_name": emoji}
        await self._rest.call("POST", "/reactions", codec.decode_done, body=body, write=True)

    async def user(self, user_id: str) -> User | None:
        """Return a user by id, deactivated ones too; None for an unknown one."""
        return await _if_found(self._rest.call("GET", f"/users/{_part(user_id)}", codec.decode_user))

    async def user_by_username(self, username: str) -> User | None:
        """Return a user by name; names are lower case and may change hands."""
        path = f"/users/username/{_part(username.lower())}"
        return await _if_found(self._rest.call("GET", path, codec.decode_user))

    async def user_by_email(self, email: str) -> User | None:
        """Return a user by address; 403 for every address where PrivacySettings.ShowEmailAddress is off."""
        return await _if_found(self._rest.call("GET", f"/users/email/{_part(email)}", codec.decode_user))

    async def team_by_name(self, name: str) -> Team | None:
        """Return a team; 403 where it exists and the bot is not on it."""
        return await _if_found(self._rest.call("GET", f"/teams/name/{_part(name)}", codec.decode_team))

    async def channel_by_name(self, team: str, name: str) -> Channel | None:
        """Return a channel by URL names, archived ones too; None also for a private one that the bot is not in."""
        path = f"/teams/name/{_part(team)}/channels/name/{_part(name)}?include_deleted=true"
        return await _if_found(self._rest.call("GET", path, codec.decode_channel))

    async def channel(self, channel_id: str) -> Channel | None:
        """Return a channel by id; None for an unknown one, 403 where the bot is not in it."""
        return await _if_found(self._rest.call("GET", f"/channels/{_part(channel_id)}", codec.decode_channel))

    async def member(self, channel_id: str, user_id: str = "me") -> bool:
        """Whether a user is in a channel; False also where the bot may not know."""
        path = f"/channels/{_part(channel_id)}/members/{_part(user_id)}"
        return await _if_found(self._rest.call("GET", path, codec.decode_member), missing=(403, 404)) is not None

    async def direct_channel(self, user_id: str, bot_id: str) -> str:
        """Return the id of the direct channel of two users, made where there is none yet."""
        body = [bot_id, user_id]
        return (await self._rest.call("POST", "/channels/direct", codec.decode_channel, body=body, write=True)).id

    async def my_teams(self) -> list[Team]:
        """Return the teams that the bot is on."""
        return await self._rest.call("GET", "/users/me/teams", codec.decode_teams)

    async def my_channels(self) -> list[Channel]:
        """Return all channels that the bot is in, direct ones too."""
        if self._has_my_channels:
            try:
                return await self._rest.call("GET", "/users/me/channels", codec.decode_channels)
            except LinkLost as exc:
                if exc.reason != "unknown_route":
                    raise
                self._has_my_channels = False  # 5.x, where each team has to be asked
        found: dict[str, Channel] = {}
        for team in await self.my_teams():
            path = f"/users/me/teams/{_part(team.id)}/channels"
            found |= {one.id: one for one in await self._rest.call("GET", path, codec.decode_channels)}
        return list(found.values())
