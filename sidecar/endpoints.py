"""/metrics, /healthz and /readyz, over h11 in the trio loop: what answers here is the loop itself.

Rule: nobody who connects can hold anything for long. One request a connection, a deadline on it, and at the limit
the oldest connection makes room.
"""

from __future__ import annotations

import hmac
import logging
import resource
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import h11
import msgspec
import trio

from sidecar.errors import ConfigError
from sidecar.files import read_token
from sidecar.once import Once

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0  # half of Prometheus's usual scrape timeout
LINGER_SECONDS = 1.0  # for a client that still sends while it is answered; a reset would eat the answer
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
# Most descriptors are for the links and the files; -1 is no limit.
MAX_CONNECTIONS = 64 if _DESCRIPTORS < 0 else max(2, min(64, _DESCRIPTORS // 8))
MAX_HEADER_BYTES = 8192

_TEXT = b"text/plain; charset=utf-8"
_EXPOSITION = b"text/plain; version=0.0.4; charset=utf-8"
_JSON = b"application/json"


class BearerToken:
    """The token that guards /metrics, from its file at each scrape. While the file cannot be read, nobody passes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._once = Once()

    def read(self) -> str:
        """Return the token. Raises ConfigError where the file holds none that can be read."""
        return read_token("endpoints.bearer_token_file", self._path)

    def now(self) -> str:
        """Return the token, or "" where there is none to read, which is said once until there is one again."""
        try:
            token = self.read()
        except ConfigError as exc:
            if self._once.news():
                log.warning("endpoints.locked", extra={"detail": f"{exc}; until then nobody reads /metrics"})
            return ""
        self._once.clear()
        return token


class Answer(NamedTuple):
    """One response."""

    status: int
    body: bytes
    content_type: bytes = _TEXT
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Pages(NamedTuple):
    """Where the answers come from. `bearer_token` guards /metrics; while it returns "", nobody passes."""

    metrics: Callable[[], bytes]
    ready: Callable[[], tuple[bool, Mapping[str, object]]]
    bearer_token: Callable[[], str] | None = None

    def answer(self, request: h11.Request) -> Answer:
        """Return the response to a request, whatever it asks."""
        if request.method not in {b"GET", b"HEAD"}:
            return Answer(405, b"only GET and HEAD\n", headers=((b"Allow", b"GET, HEAD"),))
        match request.target.partition(b"?")[0]:
            case b"/healthz":
                return Answer(200, b"ok\n")
            case b"/readyz":
                ready, body = self.ready()
                return Answer(200 if ready else 503, msgspec.json.encode(body) + b"\n", _JSON)
            case b"/metrics" if not self._may_scrape(request):
                return Answer(401, b"a bearer token is needed\n", headers=((b"WWW-Authenticate", b"Bearer"),))
            case b"/metrics":
                return Answer(200, self.metrics(), _EXPOSITION)
        return Answer(404, b"there is /metrics, /healthz and /readyz\n")

    def _may_scrape(self, request: h11.Request) -> bool:
        if self.bearer_token is None:
            return True
        scheme, _, shown = dict(request.headers).get(b"authorization", b"").partition(b" ")
        token = self.bearer_token().encode()
        return bool(token) and scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), token)


class _Connections:
    """The connections that are open now, oldest first."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._open: dict[trio.CancelScope, None] = {}

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Answer one request; a client that goes away is nobody's error."""
        if len(self._open) >= MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        with trio.move_on_after(REQUEST_SECONDS) as scope:
            self._open[scope] = None
            try:
                await self._converse(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                self._open.pop(scope, None)

    async def _converse(self, stream: trio.abc.Stream) -> None:
        # An incomplete request of the full size is too large: at most MAX_HEADER_BYTES are ever read of it.
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES - 1)
        try:
            request = await _receive(stream, connection)
            if request is None:
                return
            answer = self._pages.answer(request)
        except h11.RemoteProtocolError as exc:
            request, answer = None, Answer(exc.error_status_hint, b"this is not an HTTP request\n")
        await stream.send_all(_encode(connection, answer, body=request is None or request.method != b"HEAD"))
        with trio.move_on_after(LINGER_SECONDS):
            if isinstance(stream, trio.SocketStream):
                await stream.send_eof()
            async for _ in stream:
                pass


async def _receive(stream: trio.abc.Stream, connection: h11.Connection) -> h11.Request | None:
    """Return the request, None where the client left without one."""
    room = MAX_HEADER_BYTES
    while (event := connection.next_event()) is h11.NEED_DATA:
        data = bytes(await stream.receive_some(room))
        room -= len(data)
        connection.receive_data(data)
    return event if isinstance(event, h11.Request) else None


def _encode(connection: h11.Connection, answer: Answer, *, body: bool) -> bytes:
    headers = [
        (b"Content-Type", answer.content_type),
        (b"Content-Length", str(len(answer.body)).encode()),
        (b"Cache-Control", b"no-store"),
        (b"Connection", b"close"),
        *answer.headers,
    ]
    head = connection.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    return head + answer.body if body else head


async def serve(
    listen: tuple[str, int],
    pages: Pages,
    *,
    ssl_context: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `listen` is (host, port), an empty host every interface. Starts with "host:port" as bound.

    Raises ConfigError when the address cannot be bound.
    """
    host, port = listen
    try:
        listeners = await trio.open_tcp_listeners(port, host=host or None)
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        raise ConfigError([f"endpoints.listen: {host}:{port} cannot be bound: {why}"]) from exc
    bound_host, bound_port, *_ = listeners[0].socket.getsockname()
    task_status.started(f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}")
    handler = _Connections(pages).handle
    if ssl_context is None:
        await trio.serve_listeners(handler, listeners)
    else:
        secured = [trio.SSLListener(one, ssl_context, https_compatible=True) for one in listeners]
        await trio.serve_listeners(handler, secured)
