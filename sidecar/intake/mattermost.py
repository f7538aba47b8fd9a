"""The link to Mattermost: who we are there, whether it answers, and what its websocket says happened."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import trio

from sidecar.errors import LinkError, LinkGarbled, LinkRefused, PostRejected
from sidecar.intake.keep import one_error, pinging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.intake.hints import HintConsumer
    from sidecar.intake.keep import LinkStatus
    from sidecar.mattermost.client import MattermostClient
    from sidecar.mattermost.frames import Hint
    from sidecar.mattermost.inbox import Events
    from sidecar.metrics import Metrics
    from sidecar.model import User
    from sidecar.reconcile.gate import Gate


class MattermostLink:
    """Asks Mattermost who we are, again and again, and holds the websocket where there is a `consumer` for its hints.

    `bot` is the last answer.
    """

    def __init__(
        self,
        client: MattermostClient,
        status: LinkStatus,
        gate: Gate,
        metrics: Metrics,
        consumer: Callable[[], HintConsumer | None],
        another: Callable[[], None],
    ) -> None:
        """`another` is called when the token is that of another bot than before."""
        self._client = client
        self._another = another
        self._status = status
        self._gate = gate
        self._metrics = metrics
        self._consumer = consumer
        self.bot: User | None = None
        # Set once the bot is known for the first time.
        self.known = trio.Event()

    @property
    def bot_id(self) -> str:
        """The bot's user id, "" before the first answer: no post is taken for ours by then."""
        return self.bot.id if self.bot is not None else ""

    async def live(self) -> None:
        """Be connected until something fails. Ends by raising a LinkError.

        A websocket that breaks does not keep workers from writing: only the question who we are decides about that.
        """
        with self._rest():
            bot = await self._who()
        if self.bot is not None and bot.id != self.bot.id:
            self._another()
        self.bot = bot
        self.known.set()
        self._gate.admit()
        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._probe, name="mattermost.probe")
                await self._stay()

    async def _who(self) -> User:
        """Ask who we are; what stands before Mattermost may refuse even that, and ends no more than the link."""
        try:
            return await self._client.me()
        except PostRejected as exc:
            detail = f"the question who we are was answered with {exc.status}: is a proxy or filter in the way?"
            raise LinkRefused("mattermost", "rejected", detail) from exc

    async def _stay(self) -> None:
        times = self._status.times
        consumer = self._consumer()
        if consumer is None:
            self._status.ready()
            with self._rest():
                await pinging(self._who, times.ask_every, times.ask_limit, self._status)
        await self._hold_socket(consumer)

    async def _hold_socket(self, consumer: HintConsumer) -> None:
        await consumer.prepare()
        hello = trio.CancelScope(deadline=trio.current_time() + self._status.times.hello)
        with hello:
            async with consumer.connect() as events:
                hello.deadline = math.inf
                await self._listen(consumer, events)
        if hello.cancelled_caught:
            # What a token that is not accepted looks like, too: only a question tells.
            await self._who()
            raise LinkGarbled("mattermost", "no_hello", "the websocket was opened, but Mattermost did not greet")

    async def _listen(self, consumer: HintConsumer, events: Events) -> None:
        """Hints at once, a sweep for what was missed, and the websocket's own proof of life."""
        self._status.ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consumer.sweep, name="mattermost.sweep")
            nursery.start_soon(consumer.check_identity, name="mattermost.identity")
            nursery.start_soon(self._prove, events, name="mattermost.proof")
            async for hint in events:
                self._metrics.events_total.labels("mattermost", _kind(hint)).inc()
                self._metrics.last_event_timestamp_seconds.labels("mattermost").set_to_current_time()
                consumer.take(hint, self.bot_id)

    @contextmanager
    def _rest(self) -> Iterator[None]:
        try:
            yield
        except LinkError:
            self._gate.close()
            raise

    async def _prove(self, events: Events) -> NoReturn:
        """Pass the websocket's proofs of life on."""
        proven = 0.0
        while True:
            if events.proven_at != proven:
                proven = events.proven_at
                self._status.answered()
            await trio.sleep(1.0)

    async def _probe(self) -> NoReturn:
        """After a failed write: ask at once whether the link is still up, and not again for a while."""
        while True:
            await self._gate.suspected()
            with self._rest():
                await self._who()
            if self._consumer() is None:
                self._status.answered()
            await trio.sleep(self._status.times.probe)


def _kind(hint: Hint) -> str:
    return "posted" if hasattr(hint, "root_id") else "reaction"
