"""The link to Teleport: a watch, a full list after each INIT, a ping; and the connection that workers use meanwhile."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import trio

from sidecar.errors import LinkError, LinkGarbled, LinkLost, LinkRefused
from sidecar.intake.keep import changed, one_error, pinging, signature
from sidecar.intake.listing import Listing
from sidecar.intake.store import Store
from sidecar.model import Put, RuleDelete, RulePut
from sidecar.times import Backoff

if TYPE_CHECKING:
    from sidecar.intake.dialer import Dialer
    from sidecar.intake.keep import LinkStatus
    from sidecar.intake.rules import MonitoringRules
    from sidecar.metrics import Metrics
    from sidecar.model import Ping
    from sidecar.reconcile.followed import Followed
    from sidecar.teleport.client import AuthClient
    from sidecar.teleport.credentials import Credentials
    from sidecar.teleport.streams import Event

log = logging.getLogger(__name__)

# Closing a connection waits for nobody; the limit only says so.
CLOSE_SECONDS = 5.0
# A watch that the server dropped is opened again on the same connection.
DROPPED = frozenset({"closed", "overflow"})


class _Connection(NamedTuple):
    """An open connection that has answered; `files` is the state of the credential files before it was made."""

    client: AuthClient
    credentials: Credentials
    info: Ping
    stack: AsyncExitStack
    files: list[object]


class TeleportLink:
    """Holds the connection that `dialer` opens; workers reach it by `store`."""

    def __init__(
        self,
        dialer: Dialer,
        followed: Followed,
        rules: MonitoringRules,
        status: LinkStatus,
        metrics: Metrics,
    ) -> None:
        self._dialer = dialer
        self._followed = followed
        self._rules = rules
        self._status = status
        self._times = status.times
        self._metrics = metrics
        self._listing = Listing(followed, status.times)
        self._intake = trio.CancelScope()
        self._quiet = False
        self.store = Store(status)
        # Set when the first list after the start is complete: a cold start has seen everything.
        self.listed = trio.Event()

    async def live(self) -> None:
        """Be connected, also across new credentials. Ends by raising a LinkError."""
        with one_error():
            async with trio.open_nursery() as nursery:
                connection = await self._begin()
                try:
                    while True:
                        newer = await self._serve(connection)
                        nursery.start_soon(self._close_later, connection, name="teleport.old")
                        connection = newer
                finally:
                    self.store.close()
                    with trio.move_on_after(CLOSE_SECONDS, shield=True):
                        await connection.stack.aclose()

    async def _begin(self) -> _Connection:
        """A connection with the credentials in the files; where those are refused, with the ones that worked last."""
        files = signature(self._dialer.files())
        if self._dialer.last_good.credentials is None or self._dialer.last_good.files == files:
            return await self._open(files)
        try:
            return await self._open_watching(files)
        except LinkRefused as exc:
            try:
                connection = await self._open_watching(files, self._dialer.last_good.credentials)
            except LinkRefused:
                raise exc from None
            self._dialer.last_good.tell_kept(files, exc)
            return connection

    async def _open(self, files: list[object], credentials: Credentials | None = None) -> _Connection:
        """A connection on which the server answers."""
        stack = AsyncExitStack()
        try:
            client, used = await stack.enter_async_context(self._dialer.connect(credentials))
            return _Connection(client, used, await client.ping(), stack, files)
        except BaseException:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await stack.aclose()
            raise

    async def _serve(self, connection: _Connection) -> _Connection:
        """Use one connection until newer credentials have proven to work; return the connection made with them."""
        if self.store.info is not None and self.store.info.cluster != connection.info.cluster:
            # What was followed is another cluster's.
            self._followed.clear()
            self._listing = Listing(self._followed, self._times)
        self._dialer.adopt(connection.credentials)
        self._dialer.last_good.take(connection.credentials, connection.files)
        self.store.open(connection.client, connection.info)
        self._intake = trio.CancelScope()
        if self._quiet:
            self._intake.cancel()
        newer: list[_Connection] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_in, connection.client, name="teleport.intake")
                newer.append(await self._rotated(connection.files))
                nursery.cancel_scope.cancel()
        except BaseException:
            # The end came while the old watch was being closed.
            for one in newer:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await one.stack.aclose()
            raise
        return newer[0]

    async def _take_in(self, client: AuthClient) -> NoReturn:
        with self._intake:
            await self._watch_again_and_again(client)
        # Asked to take nothing more in: the connection stays for those who still write.
        await trio.sleep_forever()

    async def _rotated(self, seen: list[object]) -> _Connection:
        """When a credential file changed: connect with the new ones first, and keep the old where they do not serve."""
        while True:
            seen = await changed(self._dialer.files, seen, self._times.file_poll)
            try:
                connection = await self._open_watching(seen)
            except LinkError as exc:
                self._dialer.last_good.tell_kept(seen, exc)
                if not isinstance(exc, LinkRefused):
                    # Nothing was said against these files: try them again.
                    with trio.move_on_after(self._times.refused_retry):
                        await changed(self._dialer.files, seen, self._times.file_poll)
                    seen = []
            else:
                log.info("credentials.replaced")
                return connection

    async def _open_watching(self, files: list[object], credentials: Credentials | None = None) -> _Connection:
        """A connection on which a watch was granted, too."""
        connection = await self._open(files, credentials)
        try:
            async with self._initialised(connection.client):
                pass
        except BaseException:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await connection.stack.aclose()
            raise
        return connection

    async def _close_later(self, connection: _Connection) -> None:
        """Calls under way on the old connection may end in good order."""
        try:
            await trio.sleep(self._times.call)
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await connection.stack.aclose()

    def quiesce(self) -> None:
        """Take nothing more in; the connection stays for workers."""
        self._quiet = True
        self._intake.cancel()

    # -- the watch ---------------------------------------------------------------------------------------------------

    async def _watch_again_and_again(self, client: AuthClient) -> NoReturn:
        backoff = Backoff(0.05, 1.0)
        while True:
            try:
                await self._watch(client)
            except LinkLost as exc:
                if exc.reason not in DROPPED:
                    raise
                self._status.failed(exc)
                if self._status.healthy_spell:
                    backoff.reset()
                await trio.sleep(backoff.take())

    async def _watch(self, client: AuthClient) -> None:
        with one_error():
            async with self._initialised(client) as events, trio.open_nursery() as nursery:
                # Who is told of what is news must be known before the first news is looked at.
                self._rules.begin()
                await self._rules.load(client)
                nursery.start_soon(self._list_again_and_again, client, name="teleport.list")
                nursery.start_soon(
                    pinging,
                    client.ping,
                    self._times.ping_every,
                    self._times.ping_limit,
                    self._status,
                    name="teleport.ping",
                )
                async for event in events:
                    self._take(event)

    @asynccontextmanager
    async def _initialised(self, client: AuthClient) -> AsyncIterator[AsyncIterator[Event]]:
        watch = client.watch(rules=self._rules.wanted)
        with trio.move_on_after(self._times.init) as scope:
            events = await watch.__aenter__()
        if scope.cancelled_caught:
            raise LinkGarbled("teleport", "no_init", f"the watch did not begin within {self._times.init:g} s")
        try:
            yield events
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await watch.__aexit__(None, None, None)

    def _take(self, event: Event) -> None:
        if isinstance(event, RulePut | RuleDelete):
            self._metrics.events_total.labels("teleport", "rule").inc()
            self._rules.take(event)
            return
        kind = "put" if isinstance(event, Put) else "delete"
        self._listing.heard(event.request.id if isinstance(event, Put) else event.request_id)
        self._metrics.events_total.labels("teleport", kind).inc()
        self._metrics.last_event_timestamp_seconds.labels("teleport").set_to_current_time()
        self._followed.event(event)

    async def _list_again_and_again(self, client: AuthClient) -> NoReturn:
        first = True
        while True:
            await self._listing.take(client)
            if not self.store.writable:
                await self.store.ask_to_write()
            if self.store.writable:
                self._status.ready()
            self.listed.set()
            if not first:
                await self._listing.expect_events()
                if await self._rules.load(client):
                    raise LinkLost("teleport", "closed", "rules may be read now, and the watch was granted before that")
            first = False
            wait = self._times.list_every * random.uniform(0.8, 1.0)  # noqa: S311 - jitter, not a secret
            with trio.move_on_after(wait):
                await self._followed.room_again()
