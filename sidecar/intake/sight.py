"""Which requests a person can see: those with a card in a channel that they are in, or in their direct channel."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from sidecar.errors import PostRejected
from sidecar.text.command import match_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.model import Post

K = TypeVar("K")
V = TypeVar("V")

# What is remembered of channels, memberships, posts and people: bounded, since all of it can be made by anybody.
REMEMBERED = 1000
MEMBER_SECONDS = 60.0


class ChannelFacts(Protocol):
    """What tells a direct channel."""

    @property
    def type(self) -> str: ...

    @property
    def name(self) -> str: ...


class Channels(Protocol):
    """The calls that this needs."""

    async def channel(self, channel_id: str) -> ChannelFacts | None: ...

    async def member(self, channel_id: str, user_id: str = "me") -> bool: ...


class Sight:
    """Reads channels and memberships, and remembers them for a while."""

    def __init__(self, channels: Channels, bot_id: Callable[[], str]) -> None:
        self._channels = channels
        self._bot_id = bot_id
        self._pairs: OrderedDict[str, str] = OrderedDict()
        self._members: OrderedDict[tuple[str, str], tuple[float, bool]] = OrderedDict()

    def may_be_direct(self, channel_id: str) -> bool:
        """Whether this channel is direct, as far as it is known."""
        return self._pairs.get(channel_id) != ""

    async def pair(self, channel_id: str) -> str:
        """The name of a direct channel, "" for every other kind; neither ever changes."""
        if channel_id not in self._pairs:
            try:
                channel = await self._channels.channel(channel_id)
            except PostRejected:
                channel = None
            if channel is None:
                return ""
            remember(self._pairs, channel_id, channel.name if channel.type == "D" else "")
        return self._pairs[channel_id]

    async def is_between_us(self, post: Post) -> bool:
        """A direct channel's name is its two user ids: the author must be the other one."""
        return await self.pair(post.channel_id) == "__".join(sorted((self._bot_id(), post.user_id)))

    async def sees(self, post: Post, channels: tuple[str, ...]) -> bool:
        """Whether the author has a card in one of these channels before them: here, or where they are a member."""
        if post.channel_id in channels:
            return True
        for channel_id in channels:
            # Other people's direct channels are not asked for members.
            if not await self.pair(channel_id) and await self._is_member(channel_id, post.user_id):
                return True
        return False

    async def visible(self, post: Post, token: str, requests: Mapping[str, tuple[str, ...]]) -> list[str]:
        """The requests that this id could mean, of those that the author can see: of others nothing must be told."""
        meant = [one for one in requests if match_id(token, (one,)) == one]
        return [one for one in meant if await self.sees(post, requests[one])]

    async def _is_member(self, channel_id: str, user_id: str) -> bool:
        until, known = self._members.get((channel_id, user_id), (-math.inf, False))
        if trio.current_time() >= until:
            try:
                known = await self._channels.member(channel_id, user_id)
            except PostRejected:
                known = False
            remember(self._members, (channel_id, user_id), (trio.current_time() + MEMBER_SECONDS, known))
        return known


def remember(remembered: OrderedDict[K, V], key: K, value: V) -> None:
    """Keep the newest of what is remembered."""
    remembered[key] = value
    remembered.move_to_end(key)
    if len(remembered) > REMEMBERED:
        remembered.popitem(last=False)
