"""HTTP/1.1 by hand: h11 on a trio stream, keep-alive, and the way out to a websocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

import h11
import msgspec
import trio

from sidecar.simulator.mattermost.values import Json, User, go_json

REASONS = {status.value: status.phrase for status in HTTPStatus}
Headers = tuple[tuple[str, str], ...]
MAX_BODY = 50 << 20  # 5.37 bounds a body by MaxFileSize


class Request:
    """One request. `template` is the route it matched ("" for none), `args` what stood in the template's braces."""

    __slots__ = ("args", "body", "headers", "method", "path", "query", "template", "user")

    def __init__(self, head: h11.Request) -> None:
        path, _, query = head.target.decode("latin-1").partition("?")
        self.method = head.method.decode()
        self.path = path
        self.query: dict[str, str] = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
        self.headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        self.body = b""
        self.template = ""
        self.args: tuple[str, ...] = ()
        self.user: User | None = None

    def json(self) -> Any:  # noqa: ANN401 - JSON is anything
        """The decoded body; None where it is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return None

    def object(self) -> Json:
        body = self.json()
        return body if isinstance(body, dict) else {}

    def segments(self) -> list[str]:
        parts = self.path.strip("/").split("/")
        return [unquote(part) for part in parts] if "%" in self.path else parts


class Answer:
    """An HTTP answer; a `body` of str or bytes as it is (HTML unless `headers` say otherwise), others as JSON."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: object = b"", headers: Headers = ()) -> None:
        text = isinstance(body, str | bytes)
        if not any(name.lower() == "content-type" for name, _ in headers):
            headers = (("Content-Type", "text/html" if text else "application/json"), *headers)
        self.status = status
        self.headers = headers
        if isinstance(body, str):
            body = body.encode()
        self.body: bytes = body if isinstance(body, bytes) else go_json(body)

    def plus(self, headers: Headers) -> Answer:
        """The same answer with more headers."""
        return Answer(self.status, self.body, self.headers + headers)


class HangUp(Exception):
    """Raised by a handler to answer nothing: the connection is closed at once."""


class Silence(Exception):
    """Raised by a handler to answer nothing and wait until the client goes away."""


Handler = Callable[[Request], Awaitable[Answer]]
Upgrade = Callable[[Request, h11.Request, trio.abc.Stream, bytes], Awaitable[Answer | None]]


class Connection:
    """One client connection: reads requests, writes answers, hands over at an upgrade.

    h11 reads, with a fresh state for each request; answers are written by hand, which doubles the speed.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._rest = b""

    async def run(self, handle: Handler, upgrade: Upgrade) -> None:
        """Serve until the client is done; a client that breaks off or talks nonsense is simply dropped."""
        try:
            while await self._one(handle, upgrade):
                pass
        except (trio.BrokenResourceError, h11.RemoteProtocolError, HangUp):
            return
        except Silence:
            with suppress(trio.BrokenResourceError):
                while await self.stream.receive_some(65536):
                    pass

    async def _one(self, handle: Handler, upgrade: Upgrade) -> bool:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=64 << 10)
        if self._rest:
            http.receive_data(self._rest)
        head = await self._event(http)
        if not isinstance(head, h11.Request):
            return False
        request = Request(head)
        body = bytearray()
        while isinstance(event := await self._event(http), h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                return False
        request.body = bytes(body)
        self._rest = http.trailing_data[0]
        if request.headers.get("upgrade", "").lower() == "websocket":
            answer = await upgrade(request, head, self.stream, self._rest)
            if answer is not None:
                await self._send(answer, request)
            return False
        await self._send(await handle(request), request)
        return head.http_version == b"1.1" and request.headers.get("connection", "").lower() != "close"

    async def _event(self, http: h11.Connection) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        while (event := http.next_event()) is h11.NEED_DATA:
            if http.they_are_waiting_for_100_continue:
                await self.stream.send_all(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            http.receive_data(bytes(await self.stream.receive_some(65536)))
        return event

    async def _send(self, answer: Answer, request: Request) -> None:
        lines = [f"HTTP/1.1 {answer.status} {REASONS.get(answer.status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        head = "\r\n".join((*lines, f"Content-Length: {len(answer.body)}", "", "")).encode("latin-1")
        await self.stream.send_all(head if request.method == "HEAD" else head + answer.body)
