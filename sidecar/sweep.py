"""What the websocket may have missed, found by reading: reactions on open cards, replies, direct messages.

Runs after each connect and then each minute, slowly, so that a decision is found whatever happened to its event. It
only says where to look; what stands there is read again by the worker.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

from sidecar.errors import PostRejected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sidecar.followed import Followed
    from sidecar.judge import Rules
    from sidecar.model import Post, Reaction
    from sidecar.times import Times

log = logging.getLogger(__name__)

REACTIONS_AT_ONCE = 100
PAGE = 200
MAX_PAGES = 25
# Teleport 16 and newer keep a request pending for 7 days at most; a day more for clocks.
LONGEST_PENDING_SECONDS = 8 * 86400


class DirectChannel(Protocol):
    """A direct channel of the bot, and when something was last posted there, in Mattermost's milliseconds."""

    @property
    def id(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def last_post_at(self) -> int: ...


class Reading(Protocol):
    """What is read of Mattermost."""

    async def reactions(self, post_ids: list[str]) -> dict[str, list[Reaction]]: ...

    async def channel_posts(self, channel_id: str, page: int = 0, per_page: int = PAGE) -> list[Post]: ...

    async def my_channels(self) -> Iterable[DirectChannel]: ...


class Sweeper:
    """`direct` takes a post of a direct channel that may be a command."""

    def __init__(
        self,
        reading: Reading,
        followed: Followed,
        rules: Rules,
        direct: Callable[[Post], Awaitable[None]],
        bot_id: Callable[[], str],
        times: Times,
    ) -> None:
        self._reading = reading
        self._followed = followed
        self._rules = rules
        self._direct = direct
        self._bot_id = bot_id
        self._times = times
        # card post -> what stood on it at the last look
        self._reactions: dict[str, int] = {}
        # channel -> up to when its posts were read
        self._read_until: dict[str, int] = {}

    async def run(self) -> NoReturn:
        """Sweep at once, then again and again. Raises LinkError."""
        while True:
            await self.sweep()
            await trio.sleep(self._times.sweep_every)

    async def sweep(self) -> None:
        """Look everywhere once."""
        cards = self._followed.open_cards()
        if "reaction" in self._rules.ways:
            await self._sweep_reactions(list(cards))
        if "reply" in self._rules.ways:
            for channel_id in dict.fromkeys(cards.values()):
                for post in await self._news(channel_id):
                    if post.root_id in cards:
                        self._followed.hear(post.root_id)
        if "direct" in self._rules.ways:
            await self._sweep_direct()

    async def _sweep_reactions(self, posts: list[str]) -> None:
        self._reactions = {post: known for post in posts if (known := self._reactions.get(post)) is not None}
        wanted = {*self._rules.approve, *self._rules.deny}
        bot_id = self._bot_id()
        for start in range(0, len(posts), REACTIONS_AT_ONCE):
            found = await self._reading.reactions(posts[start : start + REACTIONS_AT_ONCE])
            await self._pace()
            for post_id, reactions in found.items():
                relevant = frozenset(
                    (one.user_id, one.emoji_name, one.update_at)
                    for one in reactions
                    if one.emoji_name in wanted and one.user_id != bot_id and not one.delete_at
                )
                if relevant and self._reactions.get(post_id) != hash(relevant):
                    self._reactions[post_id] = hash(relevant)
                    self._followed.hear(post_id)

    async def _sweep_direct(self) -> None:
        """Direct channels with news since the last look; the first look goes back as far as requests may be open."""
        oldest = int((time.time() - LONGEST_PENDING_SECONDS) * 1000)
        for channel in await self._reading.my_channels():
            if channel.type != "D" or channel.last_post_at <= self._read_until.get(channel.id, oldest):
                continue
            for post in await self._news(channel.id):
                if not post.root_id:
                    await self._direct(post)
        await self._pace()

    async def _news(self, channel_id: str) -> list[Post]:
        """Posts of others since the last look, oldest first."""
        until = self._read_until.get(channel_id, 0)
        found: list[Post] = []
        newest = until
        bot_id = self._bot_id()
        for page in range(MAX_PAGES if until else 1):
            try:
                posts = await self._reading.channel_posts(channel_id, page)
            except PostRejected as exc:
                log.debug("sweep.rejected", extra={"channel_id": channel_id, "status": exc.status})
                break
            finally:
                await self._pace()
            newest = max([newest, *(post.create_at for post in posts)])
            # The same millisecond again: two posts may share it.
            found += [post for post in posts if post.create_at >= until and post.user_id != bot_id]
            if len(posts) < PAGE or posts[-1].create_at < until:
                break
        self._read_until[channel_id] = newest
        return found[::-1]

    async def _pace(self) -> None:
        await trio.sleep(self._times.sweep_pace)
