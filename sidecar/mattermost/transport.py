"""HTTP/1.1 for httpx on h11 and trio, to one server: a bounded number of connections, idle ones kept, whole answers.

httpcore, httpx's own, slows down above ten connections and loses slots of its pool to cancelled requests. Here a
connection belongs to the one call of `handle_async_request` that uses it, so whatever ends the call ends its use.
"""

from __future__ import annotations

import select
import ssl
import zlib
from typing import Any, Final

import h11
import httpx
import msgspec
import trio

from sidecar.errors import LinkGarbled, UnreadableAnswer
from sidecar.mattermost import dial
from sidecar.mattermost.decoder import HEAD_BYTES, Items

# Below the 60 s after which Mattermost and most proxies drop an idle connection.
_IDLE_SECONDS: Final = 45.0
_CONNECT_SECONDS: Final = 5.0
# One read: small enough that an answer in chunks of one byte does not hold the loop.
_READ_BYTES: Final = 16 * 1024
_HEADER_BYTES: Final = 64 * 1024
_PIECE_BYTES: Final = 64 * 1024
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
# Of a refusal nothing but the error's id counts.
_MAX_REFUSAL_BYTES: Final = 64 * 1024


class Progress(msgspec.Struct):
    """How far a request came: an extension of it, by this name."""

    # When its turn came, on trio's clock.
    begun: float | None = None
    # Whether anything may have reached the peer.
    sent: bool = False
    # What takes in the body of a good answer, of any length; without it, that comes as a whole.
    items: Items[Any] | None = None

    def restart(self) -> None:
        """Forget it, for another try."""
        self.begun, self.sent = None, False

    def ready(self) -> None:
        """Say whether to go on, directly before the first byte is sent: raise to send nothing."""


class _Connection(msgspec.Struct):
    stream: trio.abc.Stream
    http: h11.Connection
    idle_since: float = 0.0

    @property
    def stale(self) -> bool:
        """Whether it is too old, or readable: of a server that was asked nothing that can only be the end."""
        poll = select.poll()
        poll.register(dial.socket_of(self.stream), select.POLLIN)
        return trio.current_time() - self.idle_since > _IDLE_SECONDS or bool(poll.poll(0))


class Transport(httpx.AsyncBaseTransport):
    """At most `connections` to the server at `address`, each exchange at most `seconds` long once its turn has come."""

    def __init__(self, address: dial.Address, context: ssl.SSLContext, connections: int, seconds: float) -> None:
        self._address = address
        self._context = context
        # Plain HTTP is not tunnelled: the proxy is asked for the whole URL.
        proxy = dial.proxy_for(address)
        self._proxy = proxy if address.scheme == "http" else None
        self._turns = trio.CapacityLimiter(connections)
        self._seconds = seconds
        self._idle: list[_Connection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request with its whole body and return the whole answer, decompressed.

        Raises LinkError where no connection comes about, LinkGarbled, UnreadableAnswer, and httpx.TransportError where
        one breaks or is too slow.
        """
        async with self._turns:
            progress: Progress = request.extensions.get("progress", Progress())
            progress.begun = trio.current_time()
            with trio.move_on_after(self._seconds):
                connection = await self._connect()
                try:
                    return await self._exchange(connection, request, progress)
                except (trio.BrokenResourceError, h11.ProtocolError) as exc:
                    raise httpx.RemoteProtocolError(
                        f"the connection broke before the answer ({type(exc).__name__})"
                    ) from exc
                finally:
                    if not self._keep(connection):
                        await trio.aclose_forcefully(connection.stream)
        raise httpx.ReadTimeout(f"no answer within {self._seconds:g} s")

    async def aclose(self) -> None:
        """Close what is idle; what is in use is closed by its user's cancellation."""
        # Also when cancelled, which would end the loop behind the first one.
        with trio.CancelScope(shield=True):
            while self._idle:
                await trio.aclose_forcefully(self._idle.pop().stream)

    async def _connect(self) -> _Connection:
        """Return an idle connection that still serves, the one last used first, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.stale:
                return connection
            await trio.aclose_forcefully(connection.stream)
        with trio.move_on_after(_CONNECT_SECONDS):
            stream = await dial.open_stream(self._address, self._context, tunnel=self._proxy is None)
            return _Connection(stream, h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEADER_BYTES))
        raise dial.unreachable(TimeoutError(), self._address)

    def _keep(self, connection: _Connection) -> bool:
        """Keep a connection that was used to the end or not at all; False where it was not, or where more came."""
        states = connection.http.our_state, connection.http.their_state
        if connection.http.trailing_data[0]:
            return False
        if states == (h11.DONE, h11.DONE):
            connection.http.start_next_cycle()
        elif states != (h11.IDLE, h11.IDLE):
            return False
        connection.idle_since = trio.current_time()
        self._idle.append(connection)
        return True

    async def _exchange(self, connection: _Connection, request: httpx.Request, progress: Progress) -> httpx.Response:
        progress.ready()
        http, headers, url = connection.http, request.headers.raw, request.url
        target = request.extensions.get("target", url.raw_path)
        if self._proxy is not None:
            target = b"%b://%b%b" % (url.raw_scheme, url.netloc, target)
            headers = [*headers, *self._proxy.headers]
        content = b"".join(
            [
                http.send(h11.Request(method=request.method, target=target, headers=headers)) or b"",
                http.send(h11.Data(data=await request.aread())) or b"",
                http.send(h11.EndOfMessage()) or b"",
            ]
        )
        progress.sent = True
        await connection.stream.send_all(content)
        answer = await self._event(connection)
        while not isinstance(answer, h11.Response):
            if not isinstance(answer, h11.InformationalResponse):
                raise httpx.RemoteProtocolError("the connection ended before the answer")
            answer = await self._event(connection)
        kept = [(name, value) for name, value in answer.headers if name != b"content-encoding"]
        body = await self._body(connection, answer, progress.items)
        return httpx.Response(answer.status_code, headers=kept, content=body)

    async def _body(self, connection: _Connection, answer: h11.Response, items: Items[Any] | None) -> bytes:
        """Read and decompress the body; one that is too long only as far as anybody needs it, or into `items`."""
        headers = dict(answer.headers)
        unzip = zlib.decompressobj(31) if headers.get(b"content-encoding", b"").lower() == b"gzip" else None
        fine = 200 <= answer.status_code < 300
        most = MAX_ANSWER_BYTES if fine else _MAX_REFUSAL_BYTES
        hopeless = int(headers.get(b"content-length", b"0")) > most
        body = bytearray()
        while isinstance(event := await self._event(connection), h11.Data):
            if items is not None and fine:
                await self._feed(items, event.data, unzip)
                continue
            try:
                # One byte more than allowed is enough to know.
                body += unzip.decompress(event.data, most + 1 - len(body)) if unzip else event.data
            except zlib.error as exc:
                raise LinkGarbled("mattermost", "body", "the body of an answer cannot be decompressed") from exc
            if len(body) > most or (hopeless and len(body) >= HEAD_BYTES):
                if fine:
                    detail = f"an answer is longer than {most} bytes"
                    raise UnreadableAnswer("mattermost", "too_large", detail, bytes(body[:HEAD_BYTES]))
                break
        return bytes(body)

    async def _feed(self, items: Items[Any], data: bytes, unzip: zlib._Decompress | None) -> None:
        """Hand a long body on in pieces; others have their turn after each."""
        while data:
            try:
                piece = unzip.decompress(data, _PIECE_BYTES) if unzip else data
            except zlib.error as exc:
                raise LinkGarbled("mattermost", "body", "the body of an answer cannot be decompressed") from exc
            data = unzip.unconsumed_tail if unzip else b""
            items.feed(piece)
            await trio.lowlevel.checkpoint()

    async def _event(self, connection: _Connection) -> h11.Event | type[h11.PAUSED]:
        while (event := connection.http.next_event()) is h11.NEED_DATA:
            connection.http.receive_data(bytes(await connection.stream.receive_some(_READ_BYTES)))
        return event  # type: ignore[return-value] # NEED_DATA is gone
