"""Posts, read in pages: whatever stands among them costs itself alone.

A page that is too large, or holds a post that nests too deep, is read again in smaller ones, down to the one post that
makes it so. Of that post the server's own fields are known, no more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

import trio

from sidecar.errors import PostRejected, UnreadableAnswer
from sidecar.mattermost import codec
from sidecar.mattermost.decoder import Items
from sidecar.mattermost.pace import Lane
from sidecar.model import Post

log = logging.getLogger(__name__)

T = TypeVar("T")

# Mattermost clamps pages to 200 by itself.
PAGE: Final = 200
_MAX_PAGES: Final = 25
# Each may be 4 MiB long.
_READS_AT_ONCE: Final = 2
_MAX_TOLD: Final = 1000
# How Go begins a list of posts.
_POST_LIST: Final = re.compile(rb'\{"order":\["([a-z0-9]{26})"')


class Rest(Protocol):
    """What carries the calls; `client.open_client` makes one."""

    @property
    def clock_offset(self) -> float: ...

    async def call(
        self,
        method: str,
        path: str,
        decode: Callable[[bytes], T],
        *,
        body: object = None,
        write: bool = False,
        paced: Lane | None = None,
        guard: Callable[[], None] = ...,
        items: Callable[[], Items[Any]] | None = None,
    ) -> T:
        """Make one call and decode its answer."""


async def if_found(answer: Awaitable[T], *, missing: tuple[int, ...] = (404,)) -> T | None:
    """Wait for an answer; None where Mattermost says that there is nothing."""
    try:
        return await answer
    except PostRejected as exc:
        if exc.status not in missing:
            raise
        return None


def part(text: str) -> str:
    """Quote a text so that it stays one segment of the path."""
    return quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")


class Pages:
    """Reads posts; `skipped` is called once for each that cannot be read."""

    def __init__(self, rest: Rest, skipped: Callable[[], object]) -> None:
        self._rest = rest
        self._skipped = skipped
        self._told: dict[str, None] = {}
        self._turns = trio.CapacityLimiter(_READS_AT_ONCE)

    async def post(self, post_id: str) -> Post | None:
        """Return a post; None where it is deleted or never was."""
        try:
            return await if_found(self._read(f"/posts/{part(post_id)}", codec.decode_post))
        except UnreadableAnswer as exc:
            return self._skip(exc)

    async def channel(self, channel_id: str, page: int, per_page: int) -> list[Post]:
        """Return one page of a channel, newest first."""
        # Without that, whole threads come along with each of their replies.
        path = f"/channels/{part(channel_id)}/posts?page={page}&per_page={per_page}&skipFetchThreads=true"
        try:
            return await self._read(path, codec.decode_posts)
        except UnreadableAnswer as exc:
            first = _POST_LIST.match(exc.head)
            if first is None:
                raise
            if per_page == 1:
                # It, or the root that comes along with a reply.
                post = await self.post(first[1].decode())
                return [] if post is None else [post]
        pieces = next(n for n in range(2, per_page + 1) if per_page % n == 0)
        found: dict[str, Post] = {}
        for piece in range(page * pieces, (page + 1) * pieces):
            # Somebody may post meanwhile, and what was read moves to the next piece.
            found |= {post.id: post for post in await self.channel(channel_id, piece, per_page // pieces)}
        return list(found.values())

    async def thread(self, post_id: str) -> list[Post]:
        """Return a root and its replies, in any order; [] where the root is gone.

        A thread comes as a whole (5.37 knows no pages of one): where it cannot be read, it is picked out of the pages
        of its channel. Raises UnreadableAnswer where those do not reach back to the root.
        """
        try:
            return await if_found(self._read(f"/posts/{part(post_id)}/thread", codec.decode_posts)) or []
        except UnreadableAnswer:
            root = await self.post(post_id)
            if root is None:
                return []
            found: dict[str, Post] = {}
            for page in range(_MAX_PAGES):
                posts = await self.channel(root.channel_id, page, PAGE)
                found |= {post.id: post for post in posts if post_id in {post.id, post.root_id}}
                if len(posts) < PAGE or posts[-1].create_at < root.create_at:
                    return list(reversed(found.values()))
            raise

    async def _read(self, path: str, decode: Callable[[bytes], T]) -> T:
        async with self._turns:
            return await self._rest.call("GET", path, decode)

    def _skip(self, exc: UnreadableAnswer) -> Post:
        """Return what is known of the post. Raises the error where it is none of Mattermost's."""
        post = codec.decode_head(exc.head)
        if post is None:
            raise exc
        if post.id not in self._told:
            self._told[post.id] = None
            if len(self._told) > _MAX_TOLD:
                del self._told[next(iter(self._told))]
            self._skipped()
            log.warning(
                "post.skipped",
                extra={"post_id": post.id, "channel_id": post.channel_id, "reason": exc.reason, "detail": exc.detail},
            )
        return post
