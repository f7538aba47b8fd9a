"""Listening to people in Mattermost: the websocket's hints, the sweep behind it, and direct messages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NoReturn

import trio

from sidecar.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from sidecar.intake.direct import Direct
    from sidecar.intake.sweep import Sweeper
    from sidecar.mattermost.frames import Hint
    from sidecar.mattermost.inbox import Events
    from sidecar.reconcile.heard import Heard
    from sidecar.reconcile.people import People
    from sidecar.reconcile.strangers import Strangers
    from sidecar.times import Times

log = logging.getLogger(__name__)


class HintConsumer:
    """What `MattermostLink` listens with."""

    def __init__(
        self,
        open_events: Callable[[], AbstractAsyncContextManager[Events]],
        followed: Heard,
        people: People,
        strangers: Strangers,
        sweeper: Sweeper,
        direct: Direct,
        times: Times,
    ) -> None:
        self._open_events = open_events
        self._followed = followed
        self._people = people
        self._sweeper = sweeper
        self._direct = direct
        self._strangers = strangers
        self._times = times

    def connect(self) -> AbstractAsyncContextManager[Events]:
        """Open the websocket; entering waits for its greeting."""
        return self._open_events()

    async def prepare(self) -> None:
        """Know whether identities can be trusted before anything is heard; where that fails, whoever speaks waits."""
        try:
            await self._people.check_server()
        except LinkError as exc:
            log.debug("identity.unread", extra={"detail": str(exc)})

    def take(self, hint: Hint, bot_id: str) -> None:
        """Look where the hint points, later: the websocket is drained without waiting for anybody."""
        if hint.user_id == bot_id:
            # What we post and react to ourselves asks nothing of us.
            return
        root_id: str | None = getattr(hint, "root_id", None)
        linked = self._people.linked(hint.user_id)
        if root_id is None or root_id:
            card = root_id or hint.post_id
            if linked or (self._followed.is_card(card) and self._strangers.worth_a_look(hint.user_id)):
                self._followed.hear(card, hint.user_id)
        else:
            self._direct.hint(hint.channel_id, hint.post_id, stranger="" if linked else hint.user_id)

    async def sweep(self) -> NoReturn:
        """Find what the websocket missed, now and each minute."""
        await self._sweeper.run()

    async def check_identity(self) -> NoReturn:
        """Read again, now and then, what makes identities trustworthy."""
        while True:
            await trio.sleep(self._times.identity_every)
            await self.prepare()
