"""The link to Mattermost: who we are there, whether it answers, and when to try again after a failed write."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

import trio

from sidecar.links import one_error, pinging

if TYPE_CHECKING:
    from sidecar.breaker import Breaker
    from sidecar.links import LinkStatus
    from sidecar.model import User


class Me(Protocol):
    """The one call that proves the way and the token."""

    async def me(self) -> User: ...


class MattermostLink:
    """Asks Mattermost who we are, again and again. `bot` is the last answer."""

    def __init__(self, client: Me, status: LinkStatus, breaker: Breaker) -> None:
        self._client = client
        self._status = status
        self._breaker = breaker
        self.bot: User | None = None
        # Set once the bot is known for the first time.
        self.known = trio.Event()

    @property
    def bot_id(self) -> str:
        """The bot's user id, "" before the first answer: no post is taken for ours by then."""
        return self.bot.id if self.bot is not None else ""

    async def live(self) -> None:
        """Be connected until an answer fails. Ends by raising a LinkError."""
        try:
            self.bot = await self._client.me()
            self.known.set()
            self._status.ready()
            self._breaker.trust()
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._probe, name="mattermost.probe")
                    times = self._status.times
                    await pinging(self._client.me, times.ask_every, times.ask_limit, self._status)
        finally:
            self._breaker.close()

    async def _probe(self) -> NoReturn:
        """After a failed write: as soon as a question is answered again, let one writer try."""
        while True:
            await self._breaker.failure_is_old()
            await self._client.me()
            self._status.answered()
            self._breaker.admit()
            await trio.sleep(self._status.times.probe)
