"""The server's memory of `pending_post_id`s (mattermost 5.37 and v11: app/post.go, deduplicateCreatePost)."""

from __future__ import annotations

from collections import OrderedDict

import trio

from sidecar.simulator.mattermost.values import ApiError, Post

SECONDS = 30.0
SIZE = 25_000


class PendingPosts:
    """30 s, one node, lost at a restart, and one namespace for everybody."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[float, Post | None]] = OrderedDict()

    def claim(self, key: str) -> Post | None:
        """The post that this key made before; None: the key is the caller's now.

        Raises:
            ApiError: 500, the first request with this key is still under way.

        """
        if not key:
            return None
        until, post = self._entries.get(key, (0.0, None))
        if until <= trio.current_time():
            self.settle(key, None)
            self._set(key, None)
            return None
        if post is None:
            raise ApiError(500, "api.post.deduplicate_create_post.pending", "Rejected post since another is pending.")
        if post.delete_at:
            raise ApiError(500, "api.post.deduplicate_create_post.failed_to_get", "Failed to get the original post.")
        return post

    def settle(self, key: str, post: Post | None) -> None:
        """The post was stored, or (None) refused: then the key is free again."""
        if post is None:
            self._entries.pop(key, None)
        elif key:
            self._set(key, post)

    def _set(self, key: str, post: Post | None) -> None:
        self._entries[key] = (trio.current_time() + SECONDS, post)
        self._entries.move_to_end(key)
        if len(self._entries) > SIZE:
            self._entries.popitem(last=False)

    def forget(self) -> None:
        """As a restart does."""
        self._entries.clear()
