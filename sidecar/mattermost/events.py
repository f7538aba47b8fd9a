"""The websocket link: a stream of hints where to look, and the proof that it still delivers.

Nothing here is believed: whoever consumes the hints reads by REST. Every connect is fresh (no resume), so whoever opens
a link sweeps once by REST, and whatever breaks the order of events ends the link.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

import h11
import msgspec
import trio
import wsproto.utilities
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, WebSocketConnection, wrap_client_stream

from sidecar.errors import LinkError, LinkGarbled, LinkLost
from sidecar.mattermost import dial
from sidecar.mattermost.auth import USER_AGENT, bearer
from sidecar.mattermost.frames import Frame, PostedHint, ReactionHint, decode_frame, decode_hint, decode_reply_error
from sidecar.mattermost.inbox import Events
from sidecar.mattermost.streams import WatchedStream, raise_single

__all__ = ["Events", "PostedHint", "ReactionHint", "open_events"]

# A legal post can make a frame of over 1 MiB, trio-websocket's default; a preview of another one doubles it.
_MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
_PING_SECONDS: Final = 15.0
_ANSWER_SECONDS: Final = 10.0
# What trio-websocket lets through; h11 has its word where the answer to the upgrade is no HTTP.
_SOCKET_ERRORS: Final = (HandshakeError, ConnectionClosed, wsproto.utilities.ProtocolError, h11.ProtocolError)


class _Link(msgspec.Struct):
    address: dial.Address
    token: Callable[[], str]
    context: ssl.SSLContext
    ping_seconds: float
    answer_seconds: float
    max_message_bytes: int


@asynccontextmanager
async def open_events(
    url: str,
    token: Callable[[], str],
    *,
    ssl_context: ssl.SSLContext | None = None,
    ping_seconds: float = _PING_SECONDS,
    answer_seconds: float = _ANSWER_SECONDS,
    max_message_bytes: int = _MAX_MESSAGE_BYTES,
) -> AsyncIterator[Events]:
    """Connect and wait for `hello`; the caller sets the deadline for that (10 s).

    A token that Mattermost does not accept looks like a link on which no hello comes: LinkLost(no_hello), or the
    caller's deadline. Ask `MattermostClient.me` then. Raises LinkLost, LinkGarbled, LinkRefused (certificate, token
    file), ConfigError (URL, proxy of the environment).
    """
    address = dial.parse_url(url)
    context = ssl_context or dial.client_context(address)
    link = _Link(address, token, context, ping_seconds, answer_seconds, max_message_bytes)
    try:
        async with trio.open_nursery() as nursery:
            yield await nursery.start(_run, link, name="mattermost.events")
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_single(group)


async def _run(link: _Link, *, task_status: trio.TaskStatus[Events]) -> None:
    events = Events()
    error: LinkError | None = None
    connected = False
    stream = WatchedStream(await dial.open_stream(link.address, link.context))
    try:
        # trio-websocket's reader needs a nursery; it lives no longer than this one.
        async with trio.open_nursery() as nursery:
            try:
                socket = await _upgrade(nursery, stream, link)
                await _greeted(socket)
                events.proven_at = trio.current_time()
                task_status.started(events)
                connected = True
                await _follow(socket, events, link)
            except LinkError as exc:
                error = exc
            nursery.cancel_scope.cancel()
    except* _SOCKET_ERRORS as group:
        error = error or _broken(group)
    finally:
        await trio.aclose_forcefully(stream)
    if error is not None and connected:
        events.fail(error)
    elif error is not None:
        raise error


def _broken(group: ExceptionGroup[Exception]) -> LinkLost:
    exc = group.exceptions[0]
    if isinstance(exc, ConnectionRejected):
        detail = f"the server answered {exc.status_code} to the websocket handshake"
        return LinkLost("mattermost", "rejected", detail)
    return LinkLost("mattermost", "closed", f"the websocket broke ({type(exc).__name__})")


async def _upgrade(nursery: trio.Nursery, stream: WatchedStream, link: _Link) -> WebSocketConnection:
    headers = [
        (b"Authorization", bearer(link.token).encode()),
        (b"User-Agent", USER_AGENT.encode()),
    ]
    # trio-websocket waits for ever where the server hangs up instead of answering.
    with trio.CancelScope() as handshake:
        stream.on_end = handshake.cancel
        socket = await wrap_client_stream(
            nursery,
            cast("trio.SocketStream", stream),
            link.address.authority,
            f"{link.address.path}/api/v4/websocket",
            extra_headers=headers,
            max_message_size=link.max_message_bytes,
            receive_buffer_size=None,
        )
        stream.on_end = None
        return socket
    raise LinkLost("mattermost", "closed", "the server hung up during the websocket handshake")


async def _greeted(socket: WebSocketConnection) -> None:
    """Wait for `hello`, which is always the first event of a fresh link."""
    try:
        frame = decode_frame(await socket.get_message())
    except ConnectionClosed:
        detail = "the websocket closed before its hello: the usual sign of a bot token that is not accepted"
        raise LinkLost("mattermost", "no_hello", detail) from None
    if frame.event != "hello" or frame.seq != 0:
        raise LinkGarbled("mattermost", "no_hello", "the first frame of the websocket is no hello")


async def _follow(socket: WebSocketConnection, events: Events, link: _Link) -> None:
    """Read for ever, and ask by a JSON ping whether the server still knows us; protocol pings do not show that."""
    seq = 1
    pings = 0
    waiting = False
    due = trio.current_time() + link.ping_seconds
    while True:
        frame = None
        with trio.move_on_at(due):
            frame = decode_frame(await _message(socket))
        if frame is None:
            if waiting:
                raise LinkLost("mattermost", "deaf", f"no answer to a ping within {link.answer_seconds:g} s")
            pings += 1
            waiting = True
            due = trio.current_time() + link.answer_seconds
            await _ping(socket, pings, due)
        elif frame.seq_reply is not None:
            if waiting and _proves(frame, pings):
                waiting = False
                events.proven_at = trio.current_time()
                due = events.proven_at + link.ping_seconds
        else:
            seq = _take(frame, seq, events)


async def _message(socket: WebSocketConnection) -> str | bytes:
    try:
        return await socket.get_message()
    except ConnectionClosed as exc:
        # The reason's text is the server's own; only the code is said.
        code = exc.reason.code if exc.reason else 1006
        if code == 1009:
            raise LinkGarbled("mattermost", "oversized", "a websocket frame is longer than we accept") from None
        raise LinkLost("mattermost", "closed", f"the websocket closed ({code})") from None


async def _ping(socket: WebSocketConnection, number: int, deadline: float) -> None:
    with trio.move_on_at(deadline):
        try:
            await socket.send_message(f'{{"seq":{number},"action":"ping"}}')
        except ConnectionClosed:
            return  # the next read says so, and what came before it is still read
        return
    raise LinkLost("mattermost", "deaf", "the server takes no more frames")


def _proves(frame: Frame, number: int) -> bool:
    if frame.status != "OK":
        said = decode_reply_error(frame) or "without an id"
        raise LinkLost("mattermost", "deaf", f"the server no longer knows us (ping answered with {said})")
    return frame.seq_reply == number


def _take(frame: Frame, expected: int, events: Events) -> int:
    """Handle one event and return the next number; one seen before is dropped, a gap ends the link."""
    if frame.event is None or frame.seq is None:
        return expected
    if frame.event == "hello" or frame.seq > expected:
        raise LinkLost("mattermost", "gap", "events were lost on the websocket")
    if frame.seq < expected:
        return expected
    hint = decode_hint(frame)
    if hint is not None:
        events.put(hint)
    return expected + 1
