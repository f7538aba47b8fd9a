"""What the websocket may have missed, found by reading: reactions on open cards, replies, direct messages.

Runs after each connect and then each minute, slowly, so that a decision is found whatever happened to its event. It
only says where to look; what stands there is read again by the worker.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

from sidecar.errors import PostRejected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sidecar.decisions.judge import Rules
    from sidecar.model import Post, Reaction
    from sidecar.reconcile.followed import Followed
    from sidecar.times import Times

log = logging.getLogger(__name__)

REACTIONS_AT_ONCE = 100
PAGE = 200
MAX_PAGES = 25
# Posts of one moment may become visible one after the other.
OVERLAP_MS = 10_000
# Teleport 16 and newer keep a request pending for 7 days at most; a day more for clocks.
LONGEST_PENDING_SECONDS = 8 * 86400
# Where nobody decides, only fresh questions are worth a look back.
QUESTION_SECONDS = 60


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
    """`take` takes a post of a direct channel that may be a command, and what was read around it.

    `known` returns once the cards are known.
    """

    def __init__(
        self,
        reading: Reading,
        followed: Followed,
        rules: Rules,
        take: Callable[[Post, list[Post]], Awaitable[None]],
        *,
        bot_id: Callable[[], str],
        known: Callable[[], Awaitable[None]],
        times: Times,
    ) -> None:
        self._reading = reading
        self._followed = followed
        self._rules = rules
        self._take = take
        self._bot_id = bot_id
        self._known = known
        self._times = times
        # card post -> what stood on it at the last look
        self._reactions: dict[str, int] = {}
        # channel -> up to when its posts were read; and the cards that were met on the way
        self._read_until: dict[str, int] = {}
        self._met: set[str] = set()

    async def run(self) -> NoReturn:
        """Sweep as soon as there is something to sweep, then again and again. Raises LinkError."""
        await self._known()
        while True:
            await self.sweep()
            await trio.sleep(self._times.sweep_every)

    async def sweep(self) -> None:
        """Look everywhere once."""
        cards = self._followed.open_cards()
        if "reaction" in self._rules.ways:
            await self._sweep_reactions(list(cards))
        # Where replies are read, and from when on where there was no look before; direct messages go back further.
        since: dict[str, float] = {}
        if "reply" in self._rules.ways:
            since = dict.fromkeys(cards.values(), math.inf)
        direct = await self._direct_channels() if "direct" in self._rules.ways else {}
        self._met &= cards.keys()
        self._read_until = {one: at for one, at in self._read_until.items() if one in since or one in direct}
        for channel_id, from_at in (since | direct).items():
            if channel_id in since or direct[channel_id] < math.inf:
                await self._read(channel_id, from_at, cards, take=channel_id in direct)

    async def _sweep_reactions(self, posts: list[str]) -> None:
        self._reactions = {post: known for post in posts if (known := self._reactions.get(post)) is not None}
        wanted = {*self._rules.approve, *self._rules.deny}
        bot_id = self._bot_id()
        for start in range(0, len(posts), REACTIONS_AT_ONCE):
            try:
                found = await self._reading.reactions(posts[start : start + REACTIONS_AT_ONCE])
            except PostRejected as exc:
                log.debug("sweep.rejected", extra={"status": exc.status})
                found = {}
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

    async def _direct_channels(self) -> dict[str, float]:
        """Direct channels, and since when posts in them matter: never where nothing was posted since the last look."""
        back = LONGEST_PENDING_SECONDS if self._rules.mode != "none" else QUESTION_SECONDS
        oldest = (time.time() - back) * 1000
        try:
            found = [channel for channel in await self._reading.my_channels() if channel.type == "D"]
        except PostRejected as exc:
            # Such as a bot that is in no channel yet.
            log.debug("sweep.rejected", extra={"status": exc.status})
            found = []
        await self._pace()
        return {
            channel.id: oldest if channel.last_post_at > self._read_until.get(channel.id, oldest) else math.inf
            for channel in found
        }

    async def _read(self, channel_id: str, from_at: float, cards: dict[str, str], *, take: bool) -> None:
        """Read what others posted since the last look, and as far back as the cards that are new to us."""
        until = self._read_until.get(channel_id, from_at + OVERLAP_MS) - OVERLAP_MS
        news = {card for card, channel in cards.items() if channel == channel_id} - self._met
        posts = await self._posts(channel_id, until, news if "reply" in self._rules.ways else set())
        bot_id = self._bot_id()
        roots = set()
        for post in reversed(posts):
            if post.user_id == bot_id:
                continue
            if post.root_id in cards and (post.create_at >= until or post.root_id in news):
                roots.add(post.root_id)
            elif take and not post.root_id and post.create_at >= until:
                await self._take(post, posts)
        for root_id in roots:
            self._followed.hear(root_id)
        self._met |= news
        self._read_until[channel_id] = max([self._read_until.get(channel_id, 0), *(post.create_at for post in posts)])

    async def _posts(self, channel_id: str, until: float, cards: set[str]) -> list[Post]:
        """The newest posts of a channel: back to `until`, and to every one of these cards."""
        found: list[Post] = []
        unmet = set(cards)
        for page in range(MAX_PAGES):
            await self._pace()
            try:
                posts = await self._reading.channel_posts(channel_id, page)
            except PostRejected as exc:
                log.debug("sweep.rejected", extra={"channel_id": channel_id, "status": exc.status})
                return found
            found += posts
            unmet -= {post.id for post in posts}
            if len(posts) < PAGE or (posts[-1].create_at < until and not unmet):
                return found
        # Too far back to read everything between: their threads are read one by one.
        for card in unmet:
            self._followed.hear(card)
        return found

    async def _pace(self) -> None:
        await trio.sleep(self._times.sweep_pace)
