"""A TCP peer whose every byte a test writes down: raw HTTP answers, hang-ups, silence, websocket frames, a proxy."""

from __future__ import annotations

import functools
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import h11
import msgspec
import trio
import trustme
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Pong, Request, TextMessage

# How long a test waits for something that must happen.
PATIENCE = 60.0
TOKEN = "8ouj3qgn8p8bfqbcxtgkqs1dfy"


class Seen(msgspec.Struct):
    """A request as it arrived."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


# What to do with a request: bytes to answer with, or one of these.
SILENCE = "silence"
CLOSE = "close"
RESET = "reset"
Answerer = Callable[[Seen], Awaitable[bytes | str]]


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names).configure_cert(context)
    return context


def trusting_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


def answer(status: int, body: object = b"", *headers: tuple[str, str], kind: str = "application/json") -> bytes:
    """Bytes of a whole HTTP answer; a body that is no bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(raw)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + raw


def app_error(status: int, error_id: str) -> bytes:
    return answer(status, {"id": error_id, "message": "x", "status_code": status})


def always(reply: bytes | str) -> Answerer:
    async def answerer(_: Seen) -> bytes | str:
        await trio.lowlevel.checkpoint()
        return reply

    return answerer


def in_turn(*replies: bytes | str) -> Answerer:
    """Answer one after the other, then the last for ever."""
    left = list(replies)

    async def answerer(_: Seen) -> bytes | str:
        await trio.lowlevel.checkpoint()
        return left.pop(0) if len(left) > 1 else left[0]

    return answerer


class HttpPeer:
    """Serves HTTP/1.1 by the answerer that the test sets; remembers what it saw."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self.seen: list[Seen] = []
        self.connections = 0
        self.open = 0
        self.url = ""
        self.port = 0
        self._raw: list[trio.SocketStream] = []

    def hang_up(self) -> None:
        """Close every connection, as a server does that restarts."""
        while self._raw:
            self._raw.pop().socket.shutdown(socket.SHUT_RDWR)

    async def handle(self, stream: trio.abc.Stream, raw: trio.SocketStream) -> None:
        self._raw.append(raw)
        self.connections += 1
        self.open += 1
        number = self.connections
        conn = h11.Connection(h11.SERVER)
        try:
            while await self._exchange(conn, stream, raw, number):
                conn.start_next_cycle()
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            self.open -= 1

    async def _exchange(
        self, conn: h11.Connection, stream: trio.abc.Stream, raw: trio.SocketStream, number: int
    ) -> bool:
        request, body = await _read_request(conn, stream)
        if request is None:
            return False
        headers = [(name.decode(), value.decode()) for name, value in request.headers]
        self.seen.append(Seen(request.method.decode(), request.target.decode(), headers, body, number))
        reply = await self.answerer(self.seen[-1])
        if isinstance(reply, bytes):
            await stream.send_all(reply)
            for event in _answer_events(reply):
                conn.send(event)
            return True
        if reply == SILENCE:
            await trio.sleep_forever()
        if reply == RESET:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


def _answer_events(reply: bytes) -> list[h11.Event]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(reply)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    events: list[h11.Event] = [head]
    while not isinstance(events[-1], h11.EndOfMessage):
        event = client.next_event()
        assert isinstance(event, h11.Event)
        events.append(event)
    return events


async def _read_request(conn: h11.Connection, stream: trio.abc.Stream) -> tuple[h11.Request | None, bytes]:
    request = None
    body = b""
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return request, body
        else:
            return None, b""


@asynccontextmanager
async def serving(
    handler: Callable[[trio.abc.Stream, trio.SocketStream], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve connections on a port of this machine; all end with the context."""

    async def handle(raw: trio.SocketStream) -> None:
        stream: trio.abc.Stream = raw
        try:
            if tls is not None:
                stream = trio.SSLStream(raw, tls, server_side=True, https_compatible=True)
            await handler(stream, raw)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
        listeners = await nursery.start(serve)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def http_peer(answerer: Answerer, tls: ssl.SSLContext | None = None) -> AsyncIterator[HttpPeer]:
    peer = HttpPeer(answerer)
    async with serving(peer.handle, tls) as port:
        peer.port = port
        peer.url = f"{'https' if tls else 'http'}://localhost:{port}"
        yield peer


async def stopped(call: Callable[[], Awaitable[object]], steps: int) -> bool:
    """Call, and cancel after so many steps of the scheduler; whether that was before the answer."""

    async def cancel_later() -> None:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_later)
            await call()
            nursery.cancel_scope.cancel()
    return scope.cancelled_caught


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Wire:
    """The server's end of one websocket."""

    def __init__(self, stream: trio.abc.Stream, seen: Request) -> None:
        self.stream = stream
        self.request = seen
        self.ws = WSConnection(ConnectionType.SERVER)
        self.seq = 0
        self._frames: list[dict[str, object]] = []

    async def text(self, text: str) -> None:
        await self.stream.send_all(self.ws.send(TextMessage(text)))

    async def json(self, value: object) -> None:
        await self.text(json.dumps(value))

    async def event(self, event: str, data: object = None, channel_id: str = "", seq: int | None = None) -> None:
        """Send an event, numbered as Mattermost does unless `seq` says otherwise."""
        number = self.seq if seq is None else seq
        await self.json({"event": event, "data": data, "broadcast": {"channel_id": channel_id}, "seq": number})
        self.seq += seq is None

    async def hello(self) -> None:
        await self.event("hello", {"connection_id": "c", "server_version": "5.37.0"})

    async def posted(self, post_id: str, root_id: str = "", seq: int | None = None) -> None:
        post = {"id": post_id, "root_id": root_id, "channel_id": "c1", "user_id": "u1", "message": "x"}
        await self.event("posted", {"post": json.dumps(post), "channel_type": "O"}, "c1", seq)

    async def close(self, code: int = 1000) -> None:
        await self.stream.send_all(self.ws.send(CloseConnection(code)))

    async def ping(self) -> None:
        await self.stream.send_all(self.ws.send(Ping(b"")))

    async def receive(self) -> dict[str, object] | str:
        """Return the next JSON frame, "pong", or "closed"."""
        text = ""
        while True:
            for event in self.ws.events():
                if isinstance(event, TextMessage):
                    text += event.data
                    if event.message_finished:
                        frame: dict[str, object] = json.loads(text)
                        return frame
                if isinstance(event, Pong):
                    return "pong"
                if isinstance(event, CloseConnection):
                    return "closed"
            data = bytes(await self.stream.receive_some())
            if not data:
                return "closed"
            self.ws.receive_data(data)


Script = Callable[[Wire], Awaitable[None]]


async def silent(_: Wire) -> None:
    """A script that says nothing."""
    await trio.sleep_forever()


@asynccontextmanager
async def socket_peer(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Accept each websocket and run the script on it; the URL of the peer."""

    async def handle(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        wire = Wire(stream, Request(host="", target=""))
        event = None
        while not isinstance(event, Request):
            data = bytes(await stream.receive_some())
            if not data:
                return
            wire.ws.receive_data(data)
            event = next(wire.ws.events(), None)
        wire.request = event
        await stream.send_all(wire.ws.send(AcceptConnection()))
        await script(wire)

    async with serving(handle, tls) as port:
        yield f"{'https' if tls else 'http'}://localhost:{port}"


class Proxy:
    """An HTTP proxy that knows CONNECT only; remembers what it was asked."""

    def __init__(self, reply: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.asked: list[bytes] = []
        self.reply = reply

    async def handle(self, stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = bytes(await stream.receive_some())
            if not data:
                return
            head += data
        self.asked.append(head)
        await stream.send_all(self.reply)
        if not self.reply.startswith(b"HTTP/1.1 200"):
            return
        port = int(head.split()[1].rpartition(b":")[2])
        far = await trio.open_tcp_stream("127.0.0.1", port)
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(_pump, stream, far, nursery)
            nursery.start_soon(_pump, far, stream, nursery)


async def _pump(source: trio.abc.Stream, sink: trio.abc.Stream, nursery: trio.Nursery) -> None:
    try:
        while data := await source.receive_some():
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    nursery.cancel_scope.cancel()


@asynccontextmanager
async def proxy_peer(proxy: Proxy, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async with serving(proxy.handle, tls) as port:
        yield f"{'https' if tls else 'http'}://localhost:{port}"
