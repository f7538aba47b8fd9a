"""The websocket hub: who hears an event, how it is numbered, and what may go wrong with it on its way.

Facts: mattermost 5.37 app/web_conn.go and app/web_hub.go, and the recordings of a running 5.37.0.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Literal

import trio

from sidecar.simulator.mattermost.values import Json, Token, go_json, new_id

QUEUE = 256  # sendQueueSize

# What a socket's queue holds: a text frame, a binary one, the payload of a pong, or an order to the writer.
Item = tuple[Literal["text", "binary", "ping", "pong", "close", "eof"], bytes]
Deaf = Literal["", "hub", "session"]


class Socket:
    """One websocket. `deaf` is "" while it hears; "session" answers a JSON ping with FAIL 401, "hub" not at all."""

    def __init__(self, now: float) -> None:
        self.id = new_id()
        self.token: Token | None = None
        self.deaf: Deaf = ""
        self.seq = 0
        self.last_pong = now
        self.held: bytes | None = None
        self._send, self.queue = trio.open_memory_channel[tuple[float, Item]](QUEUE)

    @property
    def user_id(self) -> str:
        return self.token.user_id if self.token else ""

    def put(self, item: Item, due: float = 0.0) -> None:
        """Queue a frame; a client 256 frames behind gets the rest, then an empty close frame (5.37)."""
        try:
            self._send.send_nowait((due, item))
        except trio.WouldBlock:
            self._send.close()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # it is going away already

    def text(self, value: object, due: float = 0.0) -> None:
        self.put(("text", go_json(value)), due)


class Hub:
    """All sockets, and what happens to events on their way out: counters that count down, one for each event."""

    def __init__(self) -> None:
        self.sockets: list[Socket] = []
        self.extra: Json = {}  # v11: more keys in each broadcast
        self.latency = 0.0
        self.duplicate = 0  # goes out twice, with one seq
        self.reorder = 0  # goes out after the event that follows it
        self.lose = 0  # is lost, without a gap in seq

    def publish(
        self,
        event: str,
        data: Json,
        *,
        to: Container[str] | None = None,
        channel_id: str = "",
        user_id: str = "",
        omit: str = "",
        personal: Callable[[str], Json] | None = None,
    ) -> None:
        """Send an event to the sockets of `user_id`, else of the users in `to` (None: everybody's).

        `personal` gives one user's additions to `data`.
        """
        listeners = [socket for socket in self.sockets if self._hears(socket, to, user_id, omit)]
        if listeners and self.lose:
            self.lose -= 1
        elif listeners:
            fate = self._fate()
            omitted = {omit: True} if omit else None
            broadcast = {
                "omit_users": omitted,
                "user_id": user_id,
                "channel_id": channel_id,
                "team_id": "",
            } | self.extra
            tail = b',"broadcast":' + go_json(broadcast) + b',"seq":'
            same = go_json(data)
            for socket in listeners:
                body = go_json(dict(sorted((data | personal(socket.user_id)).items()))) if personal else same
                self._emit(socket, b'{"event":"%s","data":%s%s%d}' % (event.encode(), body, tail, socket.seq), fate)

    def _hears(self, socket: Socket, to: Container[str] | None, user_id: str, omit: str) -> bool:
        listener = socket.user_id
        if not listener or socket.deaf or listener == omit:
            return False
        return listener == user_id if user_id else to is None or listener in to

    def _fate(self) -> str:
        if self.duplicate:
            self.duplicate -= 1
            return "duplicate"
        if self.reorder:
            self.reorder -= 1
            return "reorder"
        return ""

    def _emit(self, socket: Socket, frame: bytes, fate: str) -> None:
        socket.seq += 1
        if fate == "reorder":
            socket.held = frame
            return
        due = trio.current_time() + self.latency if self.latency else 0.0
        frames = [frame, frame if fate == "duplicate" else None, socket.held]
        socket.held = None
        for one in frames:
            if one is not None:
                socket.put(("text", one), due)

    def sockets_of(self, user_id: str) -> list[Socket]:
        return [socket for socket in self.sockets if socket.user_id == user_id]
