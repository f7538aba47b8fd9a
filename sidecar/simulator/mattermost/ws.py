"""One websocket from the upgrade to its end: authentication, actions, pings.

Facts: mattermost 5.37 api4/websocket.go, app/web_conn.go, app/websocket_router.go and the recordings of a running
5.37.0. Not imitated: resuming by `connection_id`; every connect is fresh, as after a restart of the server.
"""

from __future__ import annotations

from contextlib import suppress

import h11
import msgspec
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.utilities import RemoteProtocolError

from sidecar.simulator.mattermost.board import Board
from sidecar.simulator.mattermost.hub import Item, Socket
from sidecar.simulator.mattermost.values import Json, Token

MAX_FRAME = 8192  # a larger one from the client is answered with 1009
NOT_AUTHENTICATED = "api.web_socket_router.not_authenticated.app_error"


class WebsocketTimes(msgspec.Struct):
    """Seconds: until an unauthenticated socket is closed; between server pings; without a pong until the close."""

    auth: float = 5.0
    ping: float = 60.0
    pong: float = 100.0


class SocketSession:
    """Serves one client's websocket."""

    def __init__(self, board: Board, stream: trio.abc.Stream, times: WebsocketTimes, *, hello: bool) -> None:
        self.board = board
        self.stream = stream
        self.times = times
        self.hello = hello
        self.ws = WSConnection(ConnectionType.SERVER)
        self.socket = Socket(trio.current_time())
        self._text: list[str] = []
        self._writing = trio.Lock()
        self._scope = trio.CancelScope()

    async def run(self, head: h11.Request, trailing: bytes, token: Token | None) -> None:
        """Answer 101 and serve until either side ends it."""
        target = head.target.decode("latin-1")
        self.ws.initiate_upgrade_connection(list(head.headers), target)
        list(self.ws.events())
        await self.stream.send_all(self.ws.send(AcceptConnection()))
        self.ws.receive_data(trailing)
        with self._scope:
            try:
                async with trio.open_nursery() as nursery:
                    self.board.hub.sockets.append(self.socket)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
                    if token is not None:
                        self._register(token)
                    with suppress(trio.BrokenResourceError, RemoteProtocolError):
                        await self._read()
                    nursery.cancel_scope.cancel()
            finally:
                self._unregister()

    def _unregister(self) -> None:
        self.board.hub.sockets.remove(self.socket)
        self.board.changed()

    def _register(self, token: Token) -> None:
        first = not self.board.hub.sockets_of(token.user_id)
        self.socket.token = token
        self.board.changed()
        if not self.hello:
            return
        due = self._due()
        broadcast = {"omit_users": None, "user_id": token.user_id, "channel_id": "", "team_id": ""}
        data = {"connection_id": self.socket.id, "server_version": self.board.version_id} | self.board.hello_extra
        event = {"event": "hello", "data": data, "broadcast": broadcast | self.board.hub.extra, "seq": 0}
        self.socket.text(event, due)
        self.socket.seq = 1
        if first:
            status = {"status": "online", "user_id": token.user_id}
            self.board.hub.publish("status_change", status, user_id=token.user_id)

    def _due(self) -> float:
        latency = self.board.hub.latency
        return trio.current_time() + latency if latency else 0.0

    async def _watch(self) -> None:
        """Close who does not authenticate in time, then ping; a session that ended within the time is closed too."""
        await trio.sleep(self.times.auth)
        if self.socket.token is None or self.socket.deaf == "session":
            self._scope.cancel()
        while True:
            await trio.sleep(self.times.ping)
            self.socket.put(("ping", b""))

    async def _write(self) -> None:
        async for due, item in self.socket.queue:
            if due > trio.current_time():
                await trio.sleep_until(due)
            if item[0] == "eof":
                break
            await self._send(self._frame(item))
        else:  # too far behind: the rest was flushed, the close frame is empty
            await self._send(CloseConnection(code=None))  # type: ignore[arg-type]
        self._scope.cancel()

    def _frame(self, item: Item) -> Event:
        kind, data = item
        match kind:
            case "text":
                return TextMessage(data=data.decode())
            case "binary":
                return BytesMessage(data=data)
            case "pong":
                return Pong(payload=data)
            case "ping":
                return Ping(payload=data)
            case _:
                return CloseConnection(code=int(data or b"1000"))

    async def _send(self, event: Event) -> None:
        """Write one frame, unless the closing handshake has come too far for it."""
        async with self._writing:
            closing = self.ws.state is ConnectionState.REMOTE_CLOSING and isinstance(event, CloseConnection)
            if not closing and self.ws.state is not ConnectionState.OPEN:
                return
            try:
                await self.stream.send_all(self.ws.send(event))
            except trio.BrokenResourceError:
                self._scope.cancel()

    async def _read(self) -> None:
        while True:
            for event in self.ws.events():
                if not await self._handle(event):
                    return
            data = b""
            with trio.move_on_at(self.socket.last_pong + self.times.pong):
                data = bytes(await self.stream.receive_some(65536))
            if not data:
                return
            self.ws.receive_data(data)

    async def _handle(self, event: Event) -> bool:
        """Act on one frame; False ends the socket, without a close frame unless one was sent."""
        match event:
            case Pong():
                self.socket.last_pong = trio.current_time()
                self.board.changed()
            case Ping():
                self.socket.put(("pong", bytes(event.payload)))
            case CloseConnection():
                await self._send(event.response())
                return False
            case TextMessage() | BytesMessage():
                return await self._message(event)
        return True

    async def _message(self, event: TextMessage | BytesMessage) -> bool:
        text = event.data if isinstance(event.data, str) else bytes(event.data).decode(errors="replace")
        self._text.append(text)
        if sum(map(len, self._text)) > MAX_FRAME:
            await self._send(CloseConnection(code=1009))
            return False
        if not event.message_finished:
            return True
        whole = "".join(self._text)
        self._text.clear()
        try:
            message = msgspec.json.decode(whole)
        except msgspec.DecodeError:
            return False
        return self._action(message if isinstance(message, dict) else {})

    def _action(self, message: Json) -> bool:
        action, seq = message.get("action", ""), message.get("seq", 0)
        if action == "authentication_challenge" and self.socket.token is None:
            return self._challenge(message)
        if self.socket.token is not None and self.socket.deaf != "hub" and action != "authentication_challenge":
            self.socket.text(self._reply(action, seq, message), self._due())
        return True

    def _challenge(self, message: Json) -> bool:
        token = self.board.session((message.get("data") or {}).get("token", ""))
        if token is None:
            return False
        self._register(token)
        self.socket.text({"status": "OK", "seq_reply": message.get("seq", 0)}, self._due())
        return True

    def _reply(self, action: str, seq: int, message: Json) -> Json:
        error = self._refusal(action, seq)
        if error is not None:
            return {"status": "FAIL", "seq_reply": seq, "error": error}
        match action:
            case "ping":
                now = self.board.now()
                pong = {"node_id": "", "server_time": now, "text": "pong", "version": self.board.version}
                return {"status": "OK", "seq_reply": seq, "data": pong}
            case "get_statuses":
                online = {socket.user_id: "online" for socket in self.board.hub.sockets if socket.user_id}
                return {"status": "OK", "seq_reply": seq, "data": online}
            case _:
                self.board.typing(self.socket.user_id, message.get("data") or {})
                return {"status": "OK", "seq_reply": seq}

    def _refusal(self, action: str, seq: int) -> Json | None:
        error_id, text, status = "", "", 400
        token = self.socket.token
        if not action:
            error_id, text = "api.web_socket_router.no_action.app_error", "No websocket action."
        elif seq <= 0:
            error_id, text = "api.web_socket_router.bad_seq.app_error", "Invalid sequence for WebSocket message."
        elif self.socket.deaf == "session":
            text, status = "WebSocket connection is not authenticated. Please log in and try again.", 401
            error_id = NOT_AUTHENTICATED
        elif token is not None and not token.active:  # the real one shows the token in clear, too
            error_id, text, status = (
                "api.context.invalid_token.error",
                f"Invalid session token={token.value}, err=",
                401,
            )
        elif action not in ("ping", "get_statuses", "user_typing"):
            error_id, text, status = "api.web_socket_router.bad_action.app_error", "Unknown WebSocket action.", 500
        if not error_id:
            return None
        return {"id": error_id, "message": text, "detailed_error": "", "status_code": status}
