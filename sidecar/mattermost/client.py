"""The one way to Mattermost's REST API: bounded, paced, and with every failure named.

The transport is used bare: a client of httpx keeps cookies (Mattermost would take a cookie for a browser and refuse our
posts), follows redirects and logs URLs with email addresses in them.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, TypeVar, cast
from urllib.parse import quote

import httpx
import msgspec
import trio

from sidecar.errors import LinkGarbled, LinkLost, LinkRefused, SidecarError
from sidecar.mattermost import answers, dial
from sidecar.mattermost.api import MattermostClient
from sidecar.mattermost.auth import USER_AGENT, Token
from sidecar.mattermost.codec import decode_error_id
from sidecar.mattermost.decoder import Items
from sidecar.mattermost.pace import Lane, Pace, Pause
from sidecar.mattermost.transport import Progress, Transport

__all__ = ["MattermostClient", "open_client"]

T = TypeVar("T")
Observe = Callable[[str, str, float], None]

# One 401 is no proof: upstream answers it also when its database fails. Nothing was carried out, so ask again.
_RECHECK_SECONDS: Final = (0.2, 1.0)
# What Mattermost answers without asking who we are: it proves no token.
_FOR_ANYBODY: Final = "/config/"


class _Paused(Exception):
    """A 429 to somebody else's call came before this one was sent."""


class _Call(Progress, kw_only=True):
    method: str
    path: str
    content: bytes | None
    write: bool
    guard: Callable[[], None]
    pause: Pause
    rechecks: Iterator[float]
    begin: Callable[[], Items[Any]] | None = None
    token: str = ""

    def ready(self) -> None:
        # What is not sent is not observed.
        begun, self.begun = self.begun, None
        if self.pause.on:
            raise _Paused
        self.guard()
        self.begun = begun


def _ignore(*_: object) -> None:
    """Observe nothing."""


class _Rest:
    """Sends calls and judges answers; see `open_client` for the parameters."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        address: dial.Address,
        token: Token,
        observe: Observe,
        posts_per_second: float,
    ) -> None:
        self._transport = transport
        self._address = address
        self._origin = httpx.URL(address.origin)
        self._api = f"{quote(address.path, safe='/%')}/api/v4"
        self._token = token
        self._observe = observe
        self._posts = Pace(posts_per_second)
        self._pause = Pause()
        # When this machine was booted by Mattermost's clock: ours may be set at any time.
        self._booted: float | None = None

    @property
    def clock_offset(self) -> float:
        return 0.0 if self._booted is None else self._booted + _boottime() - time.time()

    async def call(
        self,
        method: str,
        path: str,
        decode: Callable[[bytes], T],
        *,
        body: object = None,
        write: bool = False,
        paced: Lane | None = None,
        guard: Callable[[], None] = lambda: None,
        items: Callable[[], Items[Any]] | None = None,
    ) -> T:
        """Make one call; waits for pauses, pace and a free connection under the caller's deadline.

        An answer that `items` takes in may be long, and is what `decode` is left out for. `path` is below /api/v4 and
        quoted. `guard` is called when all waiting is over and may raise to send nothing.
        Raises PostRejected, or LinkLost, LinkRefused, LinkGarbled.
        """
        content = None if body is None else msgspec.json.encode(body)
        call = _Call(
            method=method,
            path=path,
            content=content,
            write=write,
            guard=guard,
            pause=self._pause,
            rechecks=iter(_RECHECK_SECONDS),
            begin=items,
        )
        while True:
            await self._pause.wait()
            if paced is not None:
                await self._posts.take(paced)
            try:
                answer, value = await self._attempt(call, decode)
            except _Paused:
                continue
            if value is not None:
                if not path.startswith(_FOR_ANYBODY):
                    self._token.accepted(call.token)
                return value[0]
            if answer.status_code == 429:
                self._pause.extend(answers.retry_after(answer.headers.get_list("Retry-After"), time.time()))
            elif answer.status_code == 401 and (seconds := self._doubt(call)) is not None:
                await trio.sleep(seconds)
            else:
                raise self._refusal(answer, write=write)

    def _refusal(self, answer: httpx.Response, *, write: bool) -> SidecarError:
        if answers.wants_tls(answer.status_code, answer.content):
            detail = f"the port of {self._address.origin} speaks TLS: write mattermost.url with https://"
            return LinkLost("mattermost", "https", detail)
        location = answer.headers.get("Location", "")
        return answers.refusal(answer.status_code, decode_error_id(answer.content), location, write=write)

    def _doubt(self, call: _Call) -> float | None:
        """Return how long to wait before a call is made again that a 401 answered; None where that is believed."""
        seconds = next(call.rechecks, None)
        if seconds is None and self._token.refused(call.token):
            call.rechecks = iter(_RECHECK_SECONDS)
            return 0.0
        return seconds

    async def _attempt(self, call: _Call, decode: Callable[[bytes], T]) -> tuple[httpx.Response, tuple[T] | None]:
        outcome = "lost"
        call.restart()
        try:
            answer = await self._exchange(call)
            outcome = answers.outcome(answer.status_code)
            if not answers.is_ok(answer.status_code):
                return answer, None
            return answer, (decode(answer.content) if call.items is None else cast("T", call.items.end()),)
        except LinkGarbled:
            outcome = "garbled"
            raise
        except LinkRefused:
            outcome = "refused"
            raise
        finally:
            if call.begun is not None:
                self._observe(call.method, outcome, trio.current_time() - call.begun)

    async def _exchange(self, call: _Call) -> httpx.Response:
        call.token = self._token()
        call.items = call.begin() if call.begin is not None else None
        request = httpx.Request(
            call.method,
            self._origin,
            headers={
                "Authorization": f"Bearer {call.token}",
                "User-Agent": USER_AGENT,
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                **({} if call.content is None else {"Content-Type": "application/json"}),
            },
            content=call.content,
            # A URL that is new each time would be taken apart each time.
            extensions={"progress": call, "target": (self._api + call.path).encode()},
        )
        try:
            answer = await self._transport.handle_async_request(request)
        except httpx.TimeoutException as exc:
            raise LinkLost("mattermost", "timeout", str(exc), ambiguous=call.sent and call.write) from exc
        except httpx.TransportError as exc:
            raise LinkLost("mattermost", "reset", str(exc), ambiguous=call.sent and call.write) from exc
        if (theirs := answers.server_time(answer.headers.get("Date", ""))) is not None:
            # The header's seconds are cut off: half of one is the best guess.
            self._booted = theirs + 0.5 - _boottime()
        return answer


class Away:
    """Stands for the way to Mattermost where there is none: every call fails."""

    clock_offset = 0.0

    async def call(self, *_: object, **__: object) -> NoReturn:
        """Raises LinkLost."""
        raise LinkLost("mattermost", "away", "there is no connection to Mattermost")


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@asynccontextmanager
async def open_client(
    url: str,
    token: Callable[[], str],
    *,
    client: MattermostClient | None = None,
    ssl_context: ssl.SSLContext | None = None,
    max_connections: int = 24,
    max_posts_per_second: float = 20.0,
    request_seconds: float = 10.0,
    observe: Observe = _ignore,
) -> AsyncIterator[MattermostClient]:
    """Open a client, or let `client` work this way meanwhile; nothing is sent yet.

    `token` is called for each request, so a rotated one counts at once; a `Token` also goes on with the one of before
    where the new one does not serve. `request_seconds` bounds one exchange from connecting to the last byte.
    `observe(method, outcome, seconds)` is called for each exchange with an HTTP verb and one of ok, refused, rejected,
    rate_limited, server_error, lost, garbled. `max_posts_per_second` paces the creation and patching of posts. Raises
    ConfigError for a URL, or a proxy of the environment, that cannot be used.
    """
    address = dial.parse_url(url)
    context = ssl_context or dial.client_context(address)
    if not isinstance(token, Token):
        token = Token(token)
    async with Transport(address, context, max_connections, request_seconds) as transport:
        rest = _Rest(transport, address, token, observe, max_posts_per_second)
        client = client or MattermostClient(rest)
        client.use(rest)
        try:
            yield client
        finally:
            client.use(Away())
