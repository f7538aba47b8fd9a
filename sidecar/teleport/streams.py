"""What comes in streams: requests of a list, and events of a watch."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from sidecar.errors import LinkLost
from sidecar.model import AccessRequest, Delete, Put, RuleDelete, RulePut
from sidecar.teleport import codec
from sidecar.teleport.bridge import ServerStream
from sidecar.teleport.status import CallFailed, link_error, watch_error

Event = Put | Delete | RulePut | RuleDelete
Requests = AsyncGenerator[AccessRequest, None]


async def streamed(message: bytes | None, stream: ServerStream) -> Requests:
    """The requests of a list whose first message is there."""
    while message is not None:
        yield codec.decode_request(message)
        try:
            message = await stream.receive()
        except CallFailed as exc:
            raise link_error(exc) from exc


async def events(stream: ServerStream) -> AsyncGenerator[Event, None]:
    """What a watch tells, without an end."""
    while True:
        event = codec.decode_event(await next_event(stream))
        if isinstance(event, Event):
            yield event


async def next_event(stream: ServerStream) -> bytes:
    """The next message of a watch; raises where it ended, also in good order."""
    try:
        message = await stream.receive()
    except CallFailed as exc:
        raise watch_error(exc) from exc
    if message is None:
        # What a slow reader and a reset cache look like from 16 on (lib/auth/grpcserver.go drops the error).
        raise LinkLost("teleport", "closed", "WatchEvents ended with OK")
    return message
