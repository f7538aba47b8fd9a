"""The way of a request: admitted, perhaps struck by a fault, carried out, answered.

Facts: mattermost 5.37 web/handlers.go, app/authentication.go, api4/websocket.go.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import h11
import trio
from wsproto.utilities import RemoteProtocolError

from sidecar.simulator.mattermost.api import OPEN, ROUTES, Api
from sidecar.simulator.mattermost.board import Board
from sidecar.simulator.mattermost.faults import Fault, Faults, RateLimiter, When
from sidecar.simulator.mattermost.http import Answer, HangUp, Headers, Request, Silence
from sidecar.simulator.mattermost.router import Router
from sidecar.simulator.mattermost.values import ApiError, Token, go_json, new_id
from sidecar.simulator.mattermost.ws import SocketSession, WebsocketTimes

WEBSOCKET = "/api/v4/websocket"
PAGE = "<!doctype html><html><head><title>Mattermost</title></head><body></body></html>"
MAX_BODY_V11 = 300_512
TEXT = (("Content-Type", "text/plain; charset=utf-8"),)
LIMITED = Answer(429, b"limit exceeded\n", TEXT)
NO_ANSWER = Answer(101)
NO_ROUTE = "api.context.404.app_error"
EXPIRED = "api.context.session_expired.app_error"
_COOKIE = (("Set-Cookie", "MMAUTHTOKEN=; Path=/; Max-Age=0; HttpOnly"),)


class Frontend(Board, Faults):
    """Takes requests and upgrades from connections. `hello = False` leaves new sockets without their hello."""

    def __init__(self, version: str, times: WebsocketTimes) -> None:
        Board.__init__(self, version)
        Faults.__init__(self)
        self.calls: Counter[tuple[str, str]] = Counter()  # (method, route template)
        self.requests: deque[tuple[str, str, str]] = deque(maxlen=10_000)  # (method, path, user name)
        self.times = times
        self.hello = True
        self._fixed: Headers = (("Vary", "Accept-Encoding"), ("X-Version-Id", self.version_id))
        self._date_cache = (0, "")
        self._api = Api(self)
        self._router = Router([*ROUTES, ("GET", WEBSOCKET, None)])
        self._limiter: RateLimiter | None = None
        self._away: Answer | None = None

    @property
    def latency(self) -> float:
        """Seconds of round trip for each request; an event frame takes half of it."""
        return self.hub.latency * 2

    @latency.setter
    def latency(self, seconds: float) -> None:
        self.hub.latency = seconds / 2

    @property
    def processing(self) -> float:
        """Seconds that storing a post takes; a second request with its pending id meanwhile gets the 500."""
        return self._api.processing

    @processing.setter
    def processing(self, seconds: float) -> None:
        self._api.processing = seconds

    async def handle(self, request: Request) -> Answer:
        handler = self._admit(request)
        half = self.latency / 2
        if half:
            await trio.sleep(half)
        answer = await self._struck(request, lambda: self._answer(request, handler))
        if half:
            await trio.sleep(half)
        self.changed()
        return answer

    def _admit(self, request: Request) -> Any:  # noqa: ANN401 - a handler of the route table
        """Count the request, find its handler and its user."""
        handler = self._router.find(request)
        token = self._token(request)
        request.user = self.users[token.user_id] if token else None
        self.calls[request.method, request.template] += 1
        self.requests.append((request.method, request.path, request.user.username if request.user else ""))
        self.changed()
        return handler

    def _token(self, request: Request) -> Token | None:
        """The session; a cookie beats the header and then needs the sign of a browser script (CSRF)."""
        for pair in request.headers.get("cookie", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == "MMAUTHTOKEN" and value:
                scripted = request.method == "GET" or request.headers.get("x-requested-with") == "XMLHttpRequest"
                return self.session(value) if scripted else None
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        return self.session(value.strip()) if scheme.lower() in ("bearer", "token") else None

    async def _struck(self, request: Request, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Carry the request out, unless the server is away, the limiter is full, or a fault strikes."""
        if self._away is not None:
            return self._away
        extra: Headers = ()
        if self._limiter is not None:
            key = request.user.id if request.user and self._limiter.vary_by_user else ""
            passes, extra = self._limiter.take(key, trio.current_time())
            if not passes:
                return LIMITED.plus(extra)
        fault = self.fault_for(request)
        if fault is None:
            answer = await work()
        elif fault.answer is not None:
            answer = fault.answer
        else:
            await self._strike(fault, "before")
            answer = await work()
            await self._strike(fault, "after")
        return answer.plus(extra) if extra else answer

    async def _strike(self, fault: Fault, when: When) -> None:
        if fault.when != when:
            return
        if fault.kind == "cut":
            raise HangUp
        if fault.kind == "hang":
            raise Silence
        await trio.sleep(fault.seconds)

    async def _answer(self, request: Request, handler: Any) -> Answer:  # noqa: ANN401
        if handler is None:
            return not_found(request)
        request_id = new_id()
        try:
            answer = self._call(request, handler)
            if not isinstance(answer, Answer):
                answer = await answer
        except ApiError as exc:
            if exc.id == NO_ROUTE:
                return not_found(request)
            answer = error_answer(exc, request_id)
        expires: Headers = (("Expires", "0"),) if request.method == "GET" else ()
        return answer.plus((("Date", self._date()), ("X-Request-Id", request_id), *expires, *self._fixed))

    def _call(self, request: Request, handler: Any) -> Answer | Awaitable[Answer]:  # noqa: ANN401
        if request.user is None and handler not in OPEN:
            foreign = "authorization" not in request.headers and self.session(request.query.get("access_token", ""))
            raise ApiError(401, "api.context.token_provided.app_error" if foreign else EXPIRED)
        if self.v11 and len(request.body) > MAX_BODY_V11:
            raise ApiError(413, "api.context.request_body_too_large.app_error")
        result: Answer | Awaitable[Answer] = handler(self._api, request, request.user)
        return result

    def _date(self) -> str:
        now = int(self.now() / 1000)
        if self._date_cache[0] != now:
            self._date_cache = (now, formatdate(now, usegmt=True))
        return self._date_cache[1]

    async def upgrade(self, request: Request, head: h11.Request, stream: trio.abc.Stream, rest: bytes) -> Answer | None:
        """Serve a websocket, or say why not. The upgrade itself asks for no valid token."""
        self._admit(request)
        if request.template != WEBSOCKET:
            return not_found(request)
        if self.latency:
            await trio.sleep(self.latency)
        refusal = await self._struck(request, self._no_answer)
        if refusal.status != NO_ANSWER.status:
            return refusal
        origin = request.headers.get("origin", "")
        if origin and origin.partition("://")[2] != request.headers.get("host", ""):
            return Answer(403, b"Forbidden\n", TEXT)
        try:
            await SocketSession(self, stream, self.times, hello=self.hello).run(head, rest, self._token(request))
        except RemoteProtocolError:
            return Answer(400, b"Bad Request\n", TEXT)
        return None

    async def _no_answer(self) -> Answer:
        await trio.lowlevel.checkpoint()
        return NO_ANSWER


def error_answer(error: ApiError, request_id: str) -> Answer:
    body = {"id": error.id, "message": error.message, "detailed_error": "", "request_id": request_id}
    answer = Answer(error.status, body | {"status_code": error.status})
    return answer.plus(_COOKIE) if error.id == EXPIRED else answer


def not_found(request: Request) -> Answer:
    """An unknown route or a wrong method below /api; elsewhere the web application answers 200 with its page."""
    if not request.path.startswith("/api/"):
        return Answer(200, PAGE)
    detail = f"There doesn't appear to be an api call for the url='{request.path}'."
    body = {
        "id": NO_ROUTE,
        "message": "Sorry, we could not find the page.",
        "detailed_error": detail,
        "status_code": 404,
    }
    return Answer(404, go_json(body), TEXT)
