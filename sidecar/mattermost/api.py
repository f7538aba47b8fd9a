"""The calls of Mattermost's REST API (v4) that the sidecar makes, and what their refusals mean.

Every call can raise LinkLost, LinkRefused or LinkGarbled, and PostRejected where Mattermost says no; a docstring names
only what differs. A garbled answer to a write does not say whether it was carried out: treat it as ambiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar.errors import UnreadableAnswer
from sidecar.mattermost import codec
from sidecar.mattermost.directory import Directory
from sidecar.mattermost.pace import Lane
from sidecar.mattermost.pages import PAGE, Pages, Rest, if_found, part
from sidecar.model import Draft, Post, Reaction, User

# Post ids in one call for reactions; each is a query of the server's.
_REACTIONS_AT_ONCE: Final = 100
_MAX_UNREADABLE: Final = 10_000


def _props(draft: Draft, tm: dict[str, object]) -> dict[str, object]:
    return {"attachments": [] if draft.attachment is None else [draft.attachment], "tm": tm}


class MattermostClient(Directory):
    """Mattermost as the bot sees it; `skipped()` is called for each post that cannot be read, once."""

    def __init__(self, rest: Rest, skipped: Callable[[], object] = lambda: None) -> None:
        self._skipped = skipped
        super().__init__(rest)
        # The last answer of `me`.
        self.bot: User | None = None
        # Posts whose reactions could not be read, the one last tried at the end.
        self._unreadable: dict[str, None] = {}

    def use(self, rest: Rest) -> None:
        """Make all calls by `rest` from now on."""
        super().use(rest)
        self._pages = Pages(rest, self._skipped)

    @property
    def clock_offset(self) -> float:
        """Mattermost's clock minus ours in seconds, to half a second, by the Date of the last answer."""
        return self._rest.clock_offset

    async def me(self) -> User:
        """Return the bot itself; the proof that the link works and the token counts."""
        self.bot = await self._rest.call("GET", "/users/me", codec.decode_user)
        return self.bot

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
        announces: bool = False,
        guard: Callable[[], None] = lambda: None,
    ) -> Post:
        """Create a post and return what Mattermost answered, which the caller must check to be his.

        One that `announces` lets all other posts and patches go before it.

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
        lane = Lane.ANNOUNCEMENT if announces else Lane.ANSWER
        return await self._rest.call("POST", path, codec.decode_post, body=body, write=True, paced=lane, guard=guard)

    async def patch_post(
        self,
        post_id: str,
        draft: Draft,
        *,
        tm: dict[str, object],
        message: bool = False,
        guard: Callable[[], None] = lambda: None,
    ) -> int:
        """Replace the attachment of a post, and its message only where asked; when, by Mattermost's clock.

        403 also means: no such post any more.

        A patch replaces all props, `from_bot` with them, so it is sent along. Edits of the message may be limited in
        time (400 with `time_limit` in the error id), those of the attachment never are.
        """
        body: dict[str, object] = {"props": {**_props(draft, tm), "from_bot": "true"}}
        if message:
            body["message"] = draft.message
        path = f"/posts/{part(post_id)}/patch"
        return await self._rest.call(
            "PUT", path, codec.decode_change, body=body, write=True, paced=Lane.CHANGE, guard=guard
        )

    async def delete_post(self, post_id: str, *, guard: Callable[[], None] = lambda: None) -> None:
        """Delete a post; one that is gone already is a 403."""
        await self._rest.call("DELETE", f"/posts/{part(post_id)}", codec.decode_done, write=True, guard=guard)

    async def get_post(self, post_id: str) -> Post | None:
        """Return a post; None where it is deleted or never was."""
        return await self._pages.post(post_id)

    async def channel_posts(self, channel_id: str, page: int = 0, per_page: int = PAGE) -> list[Post]:
        """Return one page of a channel, newest first; `page` counts from 0."""
        return await self._pages.channel(channel_id, page, per_page)

    async def thread(self, post_id: str) -> list[Post]:
        """Return a root and all its replies, oldest first; [] where the root is gone."""
        return sorted(await self._pages.thread(post_id), key=lambda post: (post.root_id != "", post.create_at))

    async def reactions(self, post_ids: list[str]) -> dict[str, list[Reaction]]:
        """Return the reactions on many posts; a post that the bot cannot read is left out.

        Of many that could not be read one is tried again in each call, and with it the rest. A deleted post may still
        have its reactions (5.37).
        """
        apart = [one for one in self._unreadable if one in set(post_ids)] if len(post_ids) > 1 else []
        found: dict[str, list[Reaction]] = {}
        if apart:
            found = await self._some_reactions(apart[:1])
            apart = [] if found else apart
        wanted = [one for one in post_ids if one not in found and one not in apart]
        for start in range(0, len(wanted), _REACTIONS_AT_ONCE):
            found |= await self._some_reactions(wanted[start : start + _REACTIONS_AT_ONCE])
        return found

    async def reactions_at_once(self, post_ids: list[str]) -> dict[str, list[Reaction]]:
        """Return the reactions on up to 100 posts in one call; a post without any may be left out.

        v11 refuses the whole call for one post that the bot cannot read, 5.37 leaves that one out. Raises PostRejected,
        LinkError.
        """
        return await self._rest.call("POST", "/posts/ids/reactions", codec.decode_reactions, body=post_ids)

    async def _some_reactions(self, post_ids: list[str]) -> dict[str, list[Reaction]]:
        try:
            found = await if_found(self.reactions_at_once(post_ids), missing=(403, 404))
        except UnreadableAnswer:
            found = None
        if found is not None:
            for one in post_ids:
                self._unreadable.pop(one, None)
            return {post_id: found.get(post_id, []) for post_id in post_ids}
        if len(post_ids) == 1:
            self._unreadable.pop(post_ids[0], None)
            self._unreadable[post_ids[0]] = None
            if len(self._unreadable) > _MAX_UNREADABLE:
                del self._unreadable[next(iter(self._unreadable))]
            return {}
        # v11 refuses the whole call for one unreadable post: halve until it stands alone.
        half = len(post_ids) // 2
        return await self._some_reactions(post_ids[:half]) | await self._some_reactions(post_ids[half:])

    async def add_reaction(self, user_id: str, post_id: str, emoji: str) -> None:
        """React as the bot, whose id `user_id` must be; a repeated one changes nothing."""
        body = {"user_id": user_id, "post_id": post_id, "emoji_name": emoji}
        await self._rest.call("POST", "/reactions", codec.decode_done, body=body, write=True)

    async def remove_reaction(self, user_id: str, post_id: str, emoji: str) -> None:
        """Take a reaction of the bot's back; one that does not stand changes nothing."""
        path = f"/users/{part(user_id)}/posts/{part(post_id)}/reactions/{part(emoji)}"
        await self._rest.call("DELETE", path, codec.decode_done, write=True)
