"""grpcio <-> trio: the only room with threads and callbacks.

Calls carry bytes both ways. A unary call needs no thread of ours: its done-callback wakes the waiting task. A server
stream has one daemon thread that blocks in grpcio's iterator. It may run `_WINDOW` messages ahead of the reader, then
waits, and HTTP/2 flow control holds the server back. Not with `SingleThreadedUnaryStream`: a stream that is left keeps
its connection open there, and grpcio starts a thread for each unary call that no other one is beside.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Protocol, Self

import trio

from sidecar import __version__
from sidecar.errors import LinkLost
from sidecar.teleport.credentials import Credentials
from sidecar.teleport.findings import API_DOMAIN
from sidecar.teleport.status import CallFailed

# grpcio's core writes its own lines to stderr on each failed handshake; it reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

# (method, outcome, seconds); the outcome is "ok", "cancelled" or the name of a status code in lower case.
Observe = Callable[[str, str, float], None]

AUTH_SERVICE = "/proto.AuthService/"
_WINDOW = 64
_CLOSE_SECONDS = 5.0
_MIB = 1 << 20
_CONNECTIVITY_SECONDS = 1.0


def open_channel(
    addr: str,
    credentials: Credentials,
    roots: bytes,
    *,
    server_name: str | None,
    observe: Observe,
    max_message_mib: int = 64,
) -> Channel:
    """Open a channel with grpcio's own TLS.

    Only what `roots` (PEM) signed is trusted; `server_name` None checks it against the dialled host itself.
    """
    tls = grpc.ssl_channel_credentials(roots, credentials.key, credentials.certificate)
    return Channel(grpc.secure_channel(f"dns:///{addr}", tls, _options(server_name, max_message_mib)), observe)


def open_local_channel(target: str, *, observe: Observe, max_message_mib: int = 64) -> Channel:
    """Open a channel over a socket of this process, behind which a connection is protected already."""
    options = [*_options(None, max_message_mib), ("grpc.default_authority", API_DOMAIN)]
    return Channel(grpc.insecure_channel(target, options), observe)


class Channel:
    """One lazily opened connection to one Auth Service; as an async context manager it is closed at the end."""

    def __init__(self, channel: grpc.Channel, observe: Observe) -> None:
        self._observe = observe
        self._channel = channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        # It waits for a thread that tells of the connectivity, up to 0.2 s.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._channel.close)

    async def is_connected(self) -> bool:
        """Whether the next call goes over a connection that stands; else grpcio opens one for it.

        Not for each call: a thread of grpcio's tells it, which ends in 0.2 s.
        """
        told: list[grpc.ChannelConnectivity] = []
        news, token = trio.Event(), trio.lowlevel.current_trio_token()

        def tell(connectivity: grpc.ChannelConnectivity) -> None:
            told.append(connectivity)
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(news.set)

        self._channel.subscribe(tell)
        try:
            with trio.move_on_after(_CONNECTIVITY_SECONDS):
                await news.wait()
        finally:
            self._channel.unsubscribe(tell)
        return told[-1:] == [grpc.ChannelConnectivity.READY]

    async def unary(self, method: str, request: bytes, *, seconds: float, service: str = AUTH_SERVICE) -> bytes:
        """Call a method of the Auth Service, or of another service beside it, within `seconds`.

        Raises:
            CallFailed: the call ended otherwise than OK.
            LinkLost: "closed": the channel was closed before.

        """
        await trio.lowlevel.checkpoint_if_cancelled()  # who is cancelled already writes nothing
        with _observed(self._observe, method):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(service + method)
            try:
                future = call.future(request, timeout=seconds)
            except ValueError as exc:
                raise _closed_channel() from exc
            await _done(future)
            if future.code() is not grpc.StatusCode.OK:
                raise _failure(method, future)
            return future.result()

    @asynccontextmanager
    async def stream(self, method: str, request: bytes, *, seconds: float | None = None) -> AsyncIterator[ServerStream]:
        """Open a server stream; leaving the block cancels the call. `seconds` limits its whole life.

        Raises:
            LinkLost: "closed": the channel was closed before.

        """
        open_call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(AUTH_SERVICE + method)
        try:
            call = open_call(request, timeout=seconds)
        except ValueError as exc:
            raise _closed_channel() from exc
        stream = ServerStream(method, call, self._observe)
        try:
            threading.Thread(target=stream.pump, name=f"grpc {method}", daemon=True).start()
            yield stream
        finally:
            await stream.aclose()


class _Ended(Protocol):
    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...


class _Messages(_Ended, Protocol):
    def cancel(self) -> object: ...
    def __iter__(self) -> Iterator[bytes]: ...


class ServerStream:
    """The messages of one call, in order, for one task."""

    def __init__(self, method: str, call: _Messages, observe: Observe) -> None:
        self._method = method
        self._call = call
        self._observe: Observe | None = observe
        self._token = trio.lowlevel.current_trio_token()
        # The last one tells how the call ended (None: OK). One queue for both, so that no end overtakes a message.
        self._arrived: deque[bytes | CallFailed | None] = deque()
        self._news = trio.Event()
        self._credits = threading.Semaphore(_WINDOW)
        self._closed = False

    async def receive(self) -> bytes | None:
        """Next message; None when the server ended the stream with OK. The wait for the first one is observed.

        Raises:
            CallFailed: the stream ended otherwise.

        """
        if self._observe is None:
            return await self._receive()
        observe, self._observe = self._observe, None
        with _observed(observe, self._method):
            return await self._receive()

    async def _receive(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        while not self._arrived:
            self._news = trio.Event()
            await self._news.wait()
        item = self._arrived.popleft()
        if isinstance(item, bytes):
            self._credits.release()
            return item
        self._arrived.append(item)  # whoever asks again gets the same end
        if item is None:
            return None
        raise item

    def pump(self) -> None:
        """Move messages from grpcio to trio until the call ends. The body of the thread."""
        end: CallFailed | None = CallFailed(self._method, "UNKNOWN", "the reader of the stream broke")
        try:
            for message in self._call:
                # Also read to its end once nobody listens: the core keeps a call, and its connection, until then.
                if not self._closed:
                    self._put(message)
                    self._credits.acquire()
            end = None
        except grpc.RpcError:
            end = _failure(self._method, self._call)
        finally:
            self._put(end)

    async def aclose(self) -> None:
        """Cancel the call, and return when it and its thread are over."""
        self._closed = True
        self._call.cancel()
        self._credits.release()
        # No peer is asked, so the limit only says so. An interpreter that ends meanwhile would hang on the call's lock.
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            while not self._arrived or isinstance(self._arrived[-1], bytes):
                self._news = trio.Event()
                await self._news.wait()

    def _put(self, item: bytes | CallFailed | None) -> None:
        self._arrived.append(item)
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake, idempotent=True)

    def _wake(self) -> None:
        self._news.set()


async def _done(future: grpc.Future[bytes]) -> None:
    """Wait until the call ended; when cancelled, cancel it."""
    token = trio.lowlevel.current_trio_token()
    task = trio.lowlevel.current_task()
    waiting = True

    def wake() -> None:
        if waiting:
            trio.lowlevel.reschedule(task)

    def abort(_: object) -> trio.lowlevel.Abort:
        nonlocal waiting
        waiting = False  # the callback comes all the same, and the task may wait for something else by then
        future.cancel()
        return trio.lowlevel.Abort.SUCCEEDED

    def done(_: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(wake)

    future.add_done_callback(done)
    await trio.lowlevel.wait_task_rescheduled(abort)


@contextmanager
def _observed(observe: Observe, method: str) -> Iterator[None]:
    started = time.monotonic()
    outcome = "cancelled"
    try:
        yield
        outcome = "ok"
    except CallFailed as exc:
        outcome = exc.code.lower()
        raise
    finally:
        observe(method, outcome, time.monotonic() - started)


def _failure(method: str, call: _Ended) -> CallFailed:
    return CallFailed(method, call.code().name, call.details() or "")


def _closed_channel() -> LinkLost:
    return LinkLost("teleport", "closed", "the channel was closed, nothing was sent")


def _options(server_name: str | None, max_message_mib: int) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = [
        # A server allows one ping a minute, counted with its own clock; 59 s earned GOAWAY "too_many_pings".
        ("grpc.keepalive_time_ms", 75_000),
        # What the watchdog obeys is the second; the documented first one feeds TCP_USER_TIMEOUT.
        ("grpc.keepalive_timeout_ms", 15_000),
        ("grpc.http2.ping_timeout_ms", 15_000),
        ("grpc.http2.max_pings_without_data", 0),
        # The legacy list is one message, and Teleport 7 does not limit the reasons in it.
        ("grpc.max_receive_message_length", max_message_mib * _MIB),
        ("grpc.initial_reconnect_backoff_ms", 1_000),
        # A call fails at once while the channel waits to reconnect, so this bounds how late a returned server is seen.
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.primary_user_agent", f"teleport-mattermost-sidecar/{__version__}"),
    ]
    if server_name is not None:
        # Also the SNI. As Teleport's own clients do (api/client/credentials.go).
        options.append(("grpc.ssl_target_name_override", server_name))
    return options
