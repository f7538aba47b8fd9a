"""An embedded Mattermost for the demo, the tests and the benchmark: REST and websocket on one port, faults on demand.

It imitates a 5.37.0 as recorded on a running one, and v11 as read in its source.
"""

from __future__ import annotations

import ssl
from typing import Literal

import trio

from sidecar.simulator.mattermost.faults import Fault, Match, RateLimiter, proxy_answer
from sidecar.simulator.mattermost.frontend import Frontend
from sidecar.simulator.mattermost.http import Answer, Connection, Request
from sidecar.simulator.mattermost.hub import Deaf, Socket
from sidecar.simulator.mattermost.values import ApiError, Channel, Post, Reaction, Team, User
from sidecar.simulator.mattermost.ws import WebsocketTimes

__all__ = [
    "Answer",
    "ApiError",
    "Channel",
    "Fault",
    "Match",
    "MattermostServer",
    "Post",
    "Reaction",
    "Request",
    "Team",
    "User",
    "WebsocketTimes",
    "proxy_answer",
]


class MattermostServer(Frontend):
    """State, faults and the server; `version` is "5.37.0" or "11.0.0".

    In-process calls (`post`, `react`, `edit`, `deactivate`, ...) do exactly what their REST calls do and raise ApiError
    where those refuse. All of it must be called in the trio thread.
    """

    def __init__(
        self,
        version: str = "5.37.0",
        *,
        ssl_context: ssl.SSLContext | None = None,
        websocket_times: WebsocketTimes | None = None,
    ) -> None:
        super().__init__(version, websocket_times or WebsocketTimes())
        self.url = ""
        self.port = 0
        self._ssl = ssl_context
        self._listening = trio.CancelScope()
        self._clients: set[trio.CancelScope] = set()
        self._opened, self._closed, self._reopen = trio.Event(), trio.Event(), trio.Event()

    # serving

    async def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; reports the URL once it listens (`nursery.start`)."""
        self.port = port
        async with trio.open_nursery() as clients:
            while True:
                with trio.CancelScope() as self._listening:
                    listeners = await trio.open_tcp_listeners(self.port, host=host)
                    self.port = listeners[0].socket.getsockname()[1]
                    self._opened.set()
                    if not self.url:
                        self.url = f"{'https' if self._ssl else 'http'}://{host}:{self.port}"
                        task_status.started(self.url)
                    await trio.serve_listeners(self._client, listeners, handler_nursery=clients)
                self._closed.set()
                await self._reopen.wait()

    async def _client(self, stream: trio.abc.Stream) -> None:
        if self._ssl is not None:
            stream = trio.SSLStream(stream, self._ssl, server_side=True, https_compatible=True)
        with trio.CancelScope() as scope:
            self._clients.add(scope)
            try:
                await Connection(stream).run(self.handle, self.upgrade)
            finally:
                self._clients.discard(scope)
                await trio.aclose_forcefully(stream)

    @property
    def connections(self) -> int:
        """How many client connections are open, websockets included."""
        return len(self._clients)

    async def down(self, how: Literal["503", "refuse"] = "503") -> None:
        """Go away: a proxy's 503 for everything, or nothing listens and every connection is dropped. Sockets go too."""
        if how == "503":
            self._away = proxy_answer(503)
            self.drop_sockets()
            return
        self._opened, self._closed, self._reopen = trio.Event(), trio.Event(), trio.Event()
        self._listening.cancel()
        self.drop_connections()
        await self._closed.wait()

    async def up(self) -> None:
        """Be there again, on the same port, with everything that was stored."""
        self._away = None
        self._reopen.set()
        await self._opened.wait()

    async def restart(self) -> None:
        """As a restart: connections end without a close frame, the memory of pending ids is lost."""
        await self.down("refuse")
        self.pending.forget()
        await self.up()

    def drop_connections(self) -> None:
        """Close every connection now, in the middle of whatever it does."""
        for scope in list(self._clients):
            scope.cancel()

    # faults beyond single requests

    def rate_limit(self, per_second: float, burst: int, *, vary_by_user: bool = False) -> None:
        """Turn the limiter on (product defaults when enabled: 10, 100, by address), the websocket upgrade included."""
        self._limiter = RateLimiter(per_second, burst, vary_by_user=vary_by_user)

    def no_rate_limit(self) -> None:
        self._limiter = None

    def drop_sockets(self, user: User | None = None, *, close_code: int | None = None) -> None:
        """End websockets: by TCP EOF alone, as the real server does, or with a close frame."""
        for socket in self._sockets(user):
            socket.put(("eof", b"") if close_code is None else ("close", b"%d" % close_code))

    def deafen(self, user: User | None = None, *, how: Deaf = "hub") -> None:
        """Open sockets hear no more: "hub" answers nothing but pongs, "session" refuses a JSON ping with 401."""
        for socket in self._sockets(user):
            socket.deaf = how

    def send_raw(self, frame: str | bytes, user: User | None = None) -> None:
        """Send garbage, or something far too long, as a text frame (str) or a binary one (bytes)."""
        for socket in self._sockets(user):
            socket.put(("text", frame.encode()) if isinstance(frame, str) else ("binary", frame))

    def _sockets(self, user: User | None) -> list[Socket]:
        return self.hub.sockets_of(user.id) if user else list(self.hub.sockets)
