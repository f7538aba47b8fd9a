"""The one way to Mattermost's REST API: httpx's transport on trio, bounded, paced, and with every failure named.

The transport is used bare: above it httpx keeps cookies (Mattermost would take a cookie for a browser and refuse our
posts), follows redirects and logs URLs with e-mail addresses in them.
"""

from __future__ import annotations

import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn, TypeVar

import httpx
import msgspec
import trio

from sidecar.errors import ConfigError, LinkGarbled, LinkLost, LinkRefused, SidecarError
from sidecar.mattermost import answers, dial
from sidecar.mattermost.api import MattermostClient
from sidecar.mattermost.auth import USER_AGENT, Token
from sidecar.mattermost.codec import decode_error_id
from sidecar.mattermost.pace import Pace, Pause

__all__ = ["MattermostClient", "open_client"]

T = TypeVar("T")
Observe = Callable[[str, str, float], None]

# Below the 60 s after which Mattermost and most proxies drop an idle connection.
_IDLE_SECONDS: Final = 45.0
_CONNECT_SECONDS: Final = 5.0
# A page of 200 posts of the largest kind; more is no answer of Mattermost.
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
# One 401 is no proof: upstream answers it also when its database fails. Nothing was carried out, so ask again.
_RECHECK_SECONDS: Final = (0.2, 1.0)
# What Mattermost answers without asking who we are: it proves no token.
_FOR_ANYBODY: Final = "/config/"


class _Body(httpx.AsyncByteStream):
    """A request's body. httpx makes a generator of it, which a cancelled request leaves behind unfinished."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._content:
            raise StopAsyncIteration
        content, self._content = self._content, b""
        return content


class _Answer(msgspec.Struct):
    status: int
    body: bytes
    location: str
    retry_after: float


class _Call(msgspec.Struct):
    method: str
    path: str
    content: bytes | None
    write: bool
    rechecks: Iterator[float]
    token: str = ""


class _Limits(msgspec.Struct):
    connections: int
    posts_per_second: float
    request_seconds: float


def _plain(raw: bytes, encoding: str) -> bytes:
    if encoding.lower() == "gzip" and len(raw) <= _MAX_BODY_BYTES:
        # 16 + 15: a gzip header, the largest window. One byte more than allowed is enough to know.
        unzip = zlib.decompressobj(31)
        try:
            raw = unzip.decompress(raw, _MAX_BODY_BYTES + 1)
        except zlib.error as exc:
            raise LinkGarbled("mattermost", "body", "the body of an answer cannot be decompressed") from exc
    if len(raw) > _MAX_BODY_BYTES:
        raise LinkGarbled("mattermost", "body", f"an answer is longer than {_MAX_BODY_BYTES} bytes")
    return raw


def _ignore(_method: str, _outcome: str, _seconds: float) -> None:
    """Observe nothing."""


class _Rest:
    """Sends calls and judges answers; see `open_client` for the parameters."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        address: dial.Address,
        token: Token,
        observe: Observe,
        limits: _Limits,
        user_agent: str,
    ) -> None:
        self._transport = transport
        self._address = address
        self._api = f"{address.origin}{address.path}/api/v4"
        self._token = token
        self._observe = observe
        self._request_seconds = limits.request_seconds
        self._limiter = trio.CapacityLimiter(limits.connections)
        self._posts = Pace(limits.posts_per_second)
        self._pause = Pause()
        self._user_agent = user_agent
        self.clock_offset = 0.0

    async def call(
        self,
        method: str,
        path: str,
        decode: Callable[[bytes], T],
        *,
        body: object = None,
        write: bool = False,
        paced: bool = False,
        guard: Callable[[], None] = lambda: None,
    ) -> T:
        """Make one call; waits for pauses, pace and a free connection under the caller's deadline.

        `path` is below /api/v4 and quoted. `guard` is called when all waiting is over and may raise to send nothing.
        Raises PostRejected, or LinkLost, LinkRefused, LinkGarbled.
        """
        call = _Call(method, path, None if body is None else msgspec.json.encode(body), write, iter(_RECHECK_SECONDS))
        while True:
            await self._pause.wait()
            if paced:
                await self._posts.take()
            async with self._limiter:
                if self._pause.on:
                    continue
                guard()
                answer, value = await self._attempt(call, decode)
            if value is not None:
                if not path.startswith(_FOR_ANYBODY):
                    self._token.accepted(call.token)
                return value[0]
            if answer.status == 429:
                self._pause.extend(answer.retry_after)
            elif answer.status == 401 and (seconds := self._doubt(call)) is not None:
                await trio.sleep(seconds)
            else:
                raise self._refusal(answer, write=write)

    def _refusal(self, answer: _Answer, *, write: bool) -> SidecarError:
        if answers.wants_tls(answer.status, answer.body):
            detail = f"the port of {self._address.origin} speaks TLS: write mattermost.url with https://"
            return LinkLost("mattermost", "https", detail)
        return answers.refusal(answer.status, decode_error_id(answer.body), answer.location, write=write)

    def _doubt(self, call: _Call) -> float | None:
        """Return how long to wait before a call is made again that a 401 answered; None where that is believed."""
        seconds = next(call.rechecks, None)
        if seconds is None and self._token.refused(call.token):
            call.rechecks = iter(_RECHECK_SECONDS)
            return 0.0
        return seconds

    async def _attempt(self, call: _Call, decode: Callable[[bytes], T]) -> tuple[_Answer, tuple[T] | None]:
        begun = trio.current_time()
        outcome = "lost"
        try:
            answer = await self._exchange(call)
            outcome = answers.outcome(answer.status)
            return answer, (decode(answer.body),) if answers.is_ok(answer.status) else None
        except LinkGarbled:
            outcome = "garbled"
            raise
        except LinkRefused:
            outcome = "refused"
            raise
        finally:
            self._observe(call.method, outcome, trio.current_time() - begun)

    async def _exchange(self, call: _Call) -> _Answer:
        sent = False

        async def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal sent
            if event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
                sent = True

        call.token = self._token()
        request = httpx.Request(
            call.method,
            self._api + call.path,
            headers={
                "Authorization": f"Bearer {call.token}",
                "User-Agent": self._user_agent,
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                **({} if call.content is None else {"Content-Type": "application/json"}),
            },
            content=call.content,
            extensions={"timeout": {"connect": _CONNECT_SECONDS}, "trace": trace},
        )
        request.stream = _Body(call.content or b"")
        with trio.move_on_after(self._request_seconds):
            try:
                return await self._read(request)
            except httpx.TransportError as exc:
                self._raise_lost(exc, sent=sent, write=call.write)
        detail = f"no answer within {self._request_seconds:g} s"
        raise LinkLost("mattermost", "timeout", detail, ambiguous=sent and call.write)

    async def _read(self, request: httpx.Request) -> _Answer:
        response = await self._transport.handle_async_request(request)
        raw = bytearray()
        try:
            # Left by cancellation alone: httpx does not close the generators of a loop that is broken off.
            with trio.CancelScope() as reading:
                async for chunk in response.aiter_raw():
                    raw += chunk
                    if len(raw) > _MAX_BODY_BYTES:
                        reading.cancel()
        finally:
            await response.aclose()
        body = _plain(bytes(raw), response.headers.get("Content-Encoding", ""))
        now = time.time()
        if (theirs := answers.server_time(response.headers.get("Date", ""))) is not None:
            # The header's seconds are cut off: half of one is the best guess.
            self.clock_offset = theirs + 0.5 - now
        pause = answers.retry_after(response.headers.get_list("Retry-After"), now)
        return _Answer(response.status_code, body, response.headers.get("Location", ""), pause)

    def _raise_lost(self, exc: httpx.TransportError, *, sent: bool, write: bool) -> NoReturn:
        if isinstance(exc, httpx.ProxyError):
            raise LinkLost("mattermost", "proxy", f"the proxy answered {str(exc)[:3]} to CONNECT") from exc
        if not sent:
            raise dial.unreachable(exc, self._address) from exc
        detail = f"the connection broke before the answer ({type(exc).__name__})"
        raise LinkLost("mattermost", "reset", detail, ambiguous=write) from exc


@asynccontextmanager
async def open_client(
    url: str,
    token: Callable[[], str],
    *,
    ssl_context: ssl.SSLContext | None = None,
    max_connections: int = 8,
    max_posts_per_second: float = 20.0,
    request_seconds: float = 10.0,
    observe: Observe | None = None,
    user_agent: str = USER_AGENT,
) -> AsyncIterator[MattermostClient]:
    """Open a client; nothing is sent yet.

    `token` is called for each request, so a rotated one counts at once; a `Token` also goes on with the one of before
    where the new one does not serve. `request_seconds` bounds one exchange from connecting to the last byte.
    `observe(method, outcome, seconds)` is called for each exchange with an HTTP verb and one of ok, refused, rejected,
    rate_limited, server_error, lost, garbled. `max_posts_per_second` paces the creation and patching of posts. Raises
    ConfigError for a URL or an environment proxy that cannot be used.
    """
    address = dial.parse_url(url)
    proxy = dial.proxy_for(address)
    context = ssl_context or dial.client_context(address)
    try:
        via = None if proxy is None else httpx.Proxy(proxy, ssl_context=context if proxy.startswith("https:") else None)
    except (ValueError, httpx.InvalidURL):
        raise ConfigError(["the proxy that the environment names is no URL"]) from None
    # No limit on the pool: httpcore 1.0.9 loses slots of a limited one to cancelled requests. Our limiter bounds it.
    pool = httpx.Limits(max_connections=None, max_keepalive_connections=max_connections, keepalive_expiry=_IDLE_SECONDS)
    limits = _Limits(max_connections, max_posts_per_second, request_seconds)
    async with httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=pool, proxy=via) as transport:
        if not isinstance(token, Token):
            token = Token(token)
        yield MattermostClient(_Rest(transport, address, token, observe or _ignore, limits, user_agent))
