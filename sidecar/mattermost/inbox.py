"""What the websocket said and nobody has looked at yet: bounded, and each user's doing on a post at most once."""

from __future__ import annotations

from typing import Final

import trio

from sidecar.errors import LinkError, LinkLost
from sidecar.mattermost.frames import Hint

# Hints that wait for a slow consumer. More of them end the link, and the sweep after the next connect finds all.
_MAX_WAITING: Final = 4096


class Events:
    """The hints of one connected link, for one consumer; iteration ends by raising a LinkError.

    Hints that arrived before the link failed are still delivered. Of several of one user on one post only one waits.
    """

    def __init__(self) -> None:
        # By post and by who did it: the bot's own reaction must not take the place of a person's.
        self._waiting: dict[tuple[type[Hint], str, str], Hint] = {}
        self._news = trio.Event()
        self._failure: LinkError | None = None
        # On trio's clock: when the server last proved that it still knows us (hello, or a JSON ping's answer).
        self.proven_at = trio.current_time()

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Hint:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            if self._failure is not None:
                raise self._failure
            await self._news.wait()
        return self._waiting.pop(next(iter(self._waiting)))

    def put(self, hint: Hint) -> None:
        """Let a hint wait. Raises LinkLost(overflow) where too many do."""
        self._waiting[type(hint), hint.post_id, hint.user_id] = hint
        if len(self._waiting) > _MAX_WAITING:
            raise LinkLost("mattermost", "overflow", f"more than {_MAX_WAITING} events wait to be handled")
        self._wake()

    def fail(self, error: LinkError) -> None:
        """End the iteration with this error, after the hints that wait."""
        self._failure = error
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()
