"""The link to Teleport: a watch, a full list after each INIT, and a ping; and the store that workers use meanwhile."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeAlias

import trio

from sidecar.decisions.record import KEY
from sidecar.errors import Conflict, LinkError, LinkGarbled, LinkLost, LinkRefused, RequestGone
from sidecar.intake.keep import changed, one_error, pinging, signature
from sidecar.model import Put, RuleDelete, RulePut
from sidecar.times import Backoff

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sidecar.intake.keep import LinkStatus
    from sidecar.intake.rules import MonitoringRules, Traits
    from sidecar.metrics import Metrics
    from sidecar.model import AccessRequest, Delete, MonitoringRule, Ping, PluginData
    from sidecar.reconcile.followed import Followed

log = logging.getLogger(__name__)

# Closing a connection waits for nobody; the limit only says so.
CLOSE_SECONDS = 5.0
# No request has this id.
NOBODY = "00000000-0000-0000-0000-000000000000"
# How a call fails whose connection is gone.
UNREACHABLE = frozenset({"unavailable", "away"})
# A watch that the server dropped is opened again on the same connection.
DROPPED = frozenset({"closed", "overflow"})


Event: TypeAlias = "Put | Delete | RulePut | RuleDelete"


class Auth(Protocol):
    """The calls of an Auth Service that the link and the workers make."""

    async def ping(self) -> Ping: ...

    async def get_request(self, request_id: str) -> AccessRequest | None: ...

    def list_requests(self) -> AbstractAsyncContextManager[AsyncIterator[AccessRequest]]: ...

    async def read_plugin_data(self, request_id: str) -> dict[str, str]: ...

    async def list_plugin_data(self) -> Iterator[PluginData]: ...

    async def update_plugin_data(self, request_id: str, put: dict[str, str], expect: dict[str, str]) -> None: ...

    async def submit_review(
        self, request_id: str, author: str, proposed_state: str, reason: str, *, on_behalf_by: str = ""
    ) -> AccessRequest: ...

    async def set_state(self, request_id: str, state: str, reason: str, delegator: str) -> None: ...

    def watch(self, *, rules: bool = False) -> AbstractAsyncContextManager[AsyncIterator[Event]]: ...

    @property
    def watches_rules(self) -> bool: ...

    async def list_rules(self, token: str = "") -> tuple[list[MonitoringRule], str]: ...

    async def user_traits(self, user: str) -> Traits: ...


class Proven:
    """The credentials that worked last, and the state that their files had by then; outlives the link."""

    def __init__(self) -> None:
        self.credentials: object = None
        self.files: list[object] = []
        self._told: tuple[list[object], str] | None = None

    def take(self, credentials: object, files: list[object]) -> None:
        """A connection with these works; where they are those of before, the files still wait to be mended."""
        if credentials is not self.credentials:
            self.credentials, self.files, self._told = credentials, files, None

    def tell_kept(self, files: list[object], exc: LinkError) -> None:
        """Say why the files are not used, once for each state of them."""
        news = (files, exc.reason)
        if self._told != news:
            self._told = news
            log.warning("credentials.kept", extra={"reason": exc.reason, "detail": exc.detail})


class _Connection(NamedTuple):
    """An open connection that has answered; `files` is the state of the credential files before it was made."""

    client: Auth
    credentials: object
    info: Ping
    stack: AsyncExitStack
    files: list[object]


class TeleportLink:
    """Holds the connection; also the store for workers, whose calls fail with LinkLost while there is none.

    `connect` opens one connection with the given credentials, None for those in the files, and says with which.
    `info` is the last Ping's answer.
    """

    def __init__(
        self,
        connect: Callable[[Any], AbstractAsyncContextManager[tuple[Auth, Any]]],
        adopt: Callable[[Any], None],
        files: Callable[[], Iterable[Path]],
        proven: Proven,
        followed: Followed,
        rules: MonitoringRules,
        status: LinkStatus,
        metrics: Metrics,
    ) -> None:
        self._connect = connect
        self._adopt = adopt
        self._files = files
        self._proven = proven
        self._followed = followed
        self._rules = rules
        self._status = status
        self._times = status.times
        self._metrics = metrics
        self._client: Auth | None = None
        self._connected = trio.Event()
        self._intake = trio.CancelScope()
        self._quiet = False
        self._listed_at = -math.inf
        self._records_at = -math.inf
        self._empty_reported = False
        self._unheard: set[str] = set()
        # Whether our role may write records, as far as the last write told.
        self._writable = True
        self.info: Ping | None = None
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
                    self._client = None
                    self._connected = trio.Event()
                    with trio.move_on_after(CLOSE_SECONDS, shield=True):
                        await connection.stack.aclose()

    async def _begin(self) -> _Connection:
        """A connection with the credentials in the files; where those are refused, with the ones that worked last."""
        files = signature(self._files())
        if self._proven.credentials is None or self._proven.files == files:
            return await self._open(files)
        try:
            return await self._open_watching(files)
        except LinkRefused as exc:
            try:
                connection = await self._open_watching(files, self._proven.credentials)
            except LinkRefused:
                raise exc from None
            self._proven.tell_kept(files, exc)
            return connection

    async def _open(self, files: list[object], credentials: object = None) -> _Connection:
        """A connection on which the server answers."""
        stack = AsyncExitStack()
        try:
            client, credentials = await stack.enter_async_context(self._connect(credentials))
            return _Connection(client, credentials, await client.ping(), stack, files)
        except BaseException:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await stack.aclose()
            raise

    async def _serve(self, connection: _Connection) -> _Connection:
        """Use one connection until newer credentials have proven to work; return the connection made with them."""
        self.info = connection.info
        self._adopt(connection.credentials)
        self._proven.take(connection.credentials, connection.files)
        self._client = connection.client
        self._writable = True
        self._connected.set()
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

    async def _take_in(self, client: Auth) -> NoReturn:
        with self._intake:
            await self._watch_again_and_again(client)
        # Asked to take nothing more in: the connection stays for those who still write.
        await trio.sleep_forever()

    async def _rotated(self, seen: list[object]) -> _Connection:
        """When a credential file changed: connect with the new ones first, and keep the old where they do not serve."""
        while True:
            seen = await changed(self._files, seen, self._times.file_poll)
            try:
                connection = await self._open_watching(seen)
            except LinkError as exc:
                self._proven.tell_kept(seen, exc)
                if not isinstance(exc, LinkRefused):
                    # Nothing was said against these files: try them again.
                    with trio.move_on_after(self._times.refused_retry):
                        await changed(self._files, seen, self._times.file_poll)
                    seen = []
            else:
                log.info("credentials.replaced")
                return connection

    async def _open_watching(self, files: list[object], credentials: object = None) -> _Connection:
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

    # -- the store ---------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Return when there is a connection to try; never at once after a failure on it."""
        await trio.sleep(0.1)
        await self._connected.wait()

    async def get_request(self, request_id: str) -> AccessRequest | None:
        return await self._current().get_request(request_id)

    async def read_plugin_data(self, request_id: str) -> dict[str, str]:
        return await self._current().read_plugin_data(request_id)

    async def update_plugin_data(self, request_id: str, put: dict[str, str], expect: dict[str, str]) -> None:
        client = self._current()
        try:
            with self._status.writing():
                await client.update_plugin_data(request_id, put, expect)
        except LinkRefused as exc:
            # The watch works all the same, but without a record nothing can be told once.
            self._writable = False
            self._status.failed(exc)
            raise
        if not self._writable:
            self._writable = True
            if self._status.state == "refused":
                self._status.ready()

    async def submit_review(
        self, request_id: str, author: str, proposed_state: str, reason: str, *, on_behalf_by: str = ""
    ) -> AccessRequest:
        client = self._current()
        with self._status.writing():
            return await client.submit_review(request_id, author, proposed_state, reason, on_behalf_by=on_behalf_by)

    async def set_state(self, request_id: str, state: str, reason: str, delegator: str) -> None:
        client = self._current()
        with self._status.writing():
            await client.set_state(request_id, state, reason, delegator)

    def _current(self) -> Auth:
        if self._client is None:
            raise LinkLost("teleport", "away", "there is no connection to the Auth Service")
        return self._client

    # -- the watch ---------------------------------------------------------------------------------------------------

    async def _watch_again_and_again(self, client: Auth) -> NoReturn:
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

    async def _watch(self, client: Auth) -> None:
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
    async def _initialised(self, client: Auth) -> AsyncIterator[AsyncIterator[Event]]:
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
        self._unheard.discard(event.request.id if isinstance(event, Put) else event.request_id)
        self._metrics.events_total.labels("teleport", kind).inc()
        self._metrics.last_event_timestamp_seconds.labels("teleport").set_to_current_time()
        self._followed.event(event)

    # -- the list ----------------------------------------------------------------------------------------------------

    async def _list_again_and_again(self, client: Auth) -> NoReturn:
        first = True
        while True:
            await trio.sleep_until(max(self._listed_at + self._times.list_at_most_every, trio.current_time()))
            await self._list(client)
            if not self._writable:
                await self._ask_to_write(client)
            if self._writable:
                self._status.ready()
            self.listed.set()
            if not first:
                await self._expect_events()
                if await self._rules.load(client):
                    raise LinkLost("teleport", "closed", "rules may be read now, and the watch was granted before that")
            first = False
            wait = self._times.list_every * random.uniform(0.8, 1.0)  # noqa: S311 - jitter, not a secret
            with trio.move_on_after(wait):
                await self._followed.room_again()

    async def _list(self, client: Auth) -> None:
        """Look at every request that Teleport has; what is news is noted as unheard until the watch tells it too."""
        self._listed_at = trio.current_time()
        self._followed.begin_list()
        if self._listed_at - self._records_at >= self._times.records_every:
            await self._know_records(client)
        count = 0
        self._unheard = set()
        async with client.list_requests() as requests:
            async for request in requests:
                count += 1
                if self._followed.look(request):
                    self._unheard.add(request.id)
        if not self._followed.end_list(count):
            self._report_empty()

    async def _ask_to_write(self, client: Auth) -> None:
        """A write that changes nothing, and is refused for as long as our role may not write."""
        try:
            await client.update_plugin_data(NOBODY, {KEY: "-"}, {KEY: "-"})
        except LinkRefused:
            return
        except (Conflict, RequestGone):
            pass
        self._writable = True

    async def _know_records(self, client: Auth) -> None:
        try:
            for data in await client.list_plugin_data():
                self._followed.know(data)
        except LinkError as exc:
            if exc.reason in UNREACHABLE:
                raise
            # Requests that ended while nobody watched stay open in Mattermost; everything else works.
            log.warning("records.refused", extra={"detail": exc.detail})
        self._records_at = trio.current_time()

    def _report_empty(self) -> None:
        """Once: the server hides requests from a role without the verb `list` instead of saying so."""
        if not self._empty_reported:
            self._empty_reported = True
            log.warning(
                "list.empty",
                extra={"detail": 'Teleport lists no access request although some are open: does our role have the '
                       'verb "list" on "access_request"?'},
            )  # fmt: skip

    async def _expect_events(self) -> None:
        """What a list has shown as new, the watch must deliver too; one that does not has stopped silently."""
        await trio.sleep(self._times.silent)
        if missed := {request_id for request_id in self._unheard if request_id in self._followed}:
            raise LinkLost("teleport", "silent", f"the watch delivered nothing of {len(missed)} changed requests")
