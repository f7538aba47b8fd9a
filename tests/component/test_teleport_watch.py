"""The watch: what comes through, every way it ends, and that a slow reader holds the server back."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from sidecar.errors import LinkError, LinkGarbled, LinkLost, LinkRefused
from sidecar.model import Delete, Put
from sidecar.teleport.client import AuthClient
from sidecar.teleport.pb import teleport_pb2 as pb
from sidecar.teleport.streams import Event
from tests.teleport_peer import PATIENCE, Context, connect, fail, hang, serve

_FIXTURES = Path(__file__).parents[1] / "data" / "teleport-7.0.0-dev"
_INIT = pb.Event(Type=pb.INIT).SerializeToString()


def _delete(name: str, padding: int = 0) -> bytes:
    metadata = pb.Metadata(Name=name.encode(), Description=b"x" * padding)
    header = pb.ResourceHeader(Kind=b"access_request", Metadata=metadata)
    return pb.Event(Type=pb.DELETE, ResourceHeader=header).SerializeToString()


async def _all(client: AuthClient) -> list[Event]:
    """Everything up to the error that ends the watch."""
    seen: list[Event] = []
    async with client.watch() as events:
        async for event in events:
            seen.append(event)  # noqa: PERF401
    return seen


async def test_recorded_stream() -> None:
    """What a Teleport 7 sent, in its order; INIT is an empty message and is not told."""
    recorded = [path.read_bytes() for path in sorted(_FIXTURES.glob("event-*.binpb"))]
    with serve() as peer:
        peer.streams["WatchEvents"] = lambda _request, _context: iter(recorded)
        async with connect(peer) as client, client.watch() as events:
            seen = [await anext(events) for _ in recorded[1:]]
    puts = [event.request for event in seen if isinstance(event, Put)]
    assert [(request.state, len(request.reviews)) for request in puts] == [
        ("PENDING", 0),
        ("PENDING", 1),
        ("APPROVED", 2),
        ("PENDING", 0),
        ("DENIED", 1),
        ("PENDING", 0),
    ]
    assert seen[-1] == Delete(puts[-1].id)


async def test_entering_waits_for_init() -> None:
    """What is listed after INIT misses nothing; before it, it could."""
    go = threading.Event()

    def late(_request: bytes, _context: Context) -> Iterator[bytes]:
        go.wait(PATIENCE)
        yield _INIT
        yield _delete("r1")

    entered = trio.Event()

    async def enter(client: AuthClient) -> None:
        async with client.watch() as events:
            entered.set()
            assert await anext(events) == Delete("r1")

    with serve() as peer:
        peer.streams["WatchEvents"] = late
        async with connect(peer) as client, trio.open_nursery() as nursery:
            nursery.start_soon(enter, client)
            while not peer.calls:
                await client.ping()
            await client.ping()
            assert not entered.is_set()
            go.set()
            await entered.wait()


async def test_foreign_events_do_not_end_the_watch() -> None:
    stream = [_INIT, pb.Event(Type=pb.PUT).SerializeToString(), _INIT, _delete("r1")]
    with serve() as peer:
        peer.streams["WatchEvents"] = lambda _request, _context: iter(stream)
        async with connect(peer) as client, client.watch() as events:
            assert await anext(events) == Delete("r1")


_ENDS = [
    pytest.param(None, LinkLost, "closed", id="clean"),
    pytest.param(("UNKNOWN", "watcher closed"), LinkLost, "closed", id="reset cache"),
    pytest.param(("INVALID_ARGUMENT", "buffer overflow"), LinkLost, "overflow", id="slow reader"),
    pytest.param(("UNAVAILABLE", "going down"), LinkLost, "unavailable", id="going down"),
    pytest.param(("PERMISSION_DENIED", "access denied"), LinkRefused, "denied", id="denied"),
    pytest.param(("NOT_FOUND", 'user "p" is not found'), LinkRefused, "user_deleted", id="deleted"),
]


@pytest.mark.parametrize("begun", [0, 1, 3], ids=["before INIT", "after INIT", "after an event"])
@pytest.mark.parametrize(("end", "kind", "reason"), _ENDS)
async def test_every_end_is_told(end: tuple[str, str] | None, kind: type[LinkError], reason: str, begun: int) -> None:
    """A stream that ends in good order would otherwise look like a quiet one."""

    def ending(_request: bytes, context: Context) -> Iterator[bytes]:
        yield from [_INIT, _delete("r1"), _delete("r2")][:begun]
        if end is not None:
            fail(context, *end)

    seen: list[Event] = []
    with serve() as peer:
        peer.streams["WatchEvents"] = ending
        async with connect(peer) as client:
            with pytest.raises(LinkError) as caught:  # noqa: PT012
                async with client.watch() as events:
                    async for event in events:
                        seen.append(event)  # noqa: PERF401
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert seen == [Delete("r1"), Delete("r2")][: max(0, begun - 1)]


async def test_server_killed() -> None:
    def until_killed(_request: bytes, context: Context) -> Iterator[bytes]:
        yield _INIT
        hang(context)

    with serve() as peer:
        peer.streams["WatchEvents"] = until_killed
        async with connect(peer) as client:
            with pytest.raises(LinkLost):  # noqa: PT012
                async with client.watch() as events:
                    await trio.to_thread.run_sync(peer.stop)
                    await anext(events)


async def test_closed_client_ends_its_watch() -> None:
    """Rotation closes the old channel; nobody may wait on it for ever."""

    def quiet(_request: bytes, context: Context) -> Iterator[bytes]:
        yield _INIT
        hang(context)

    async def read(client: AuthClient) -> None:
        with pytest.raises(LinkLost) as caught:  # noqa: PT012
            async with client.watch() as events:
                watching.set()
                await anext(events)
        assert caught.value.reason == "cancelled"

    watching = trio.Event()

    with serve() as peer:
        peer.streams["WatchEvents"] = quiet
        stack = AsyncExitStack()
        client = await stack.enter_async_context(connect(peer))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, client)
            await watching.wait()
            await stack.aclose()


@pytest.mark.parametrize("first", [_delete("r1"), pb.Event(Type=pb.PUT).SerializeToString()])
async def test_a_watch_that_does_not_begin_with_init(first: bytes) -> None:
    with serve() as peer:
        peer.streams["WatchEvents"] = lambda _request, _context: iter([first, _INIT])
        async with connect(peer) as client:
            with pytest.raises(LinkGarbled) as caught:
                await _all(client)
    assert caught.value.reason == "no_init"


@pytest.mark.parametrize("cut", [1, 10, 100])
async def test_truncated_event(cut: int) -> None:
    recorded = (_FIXTURES / "event-01-put-dual-pending-0reviews.binpb").read_bytes()
    with serve() as peer:
        peer.streams["WatchEvents"] = lambda _request, _context: iter([_INIT, recorded, recorded[:-cut]])
        async with connect(peer) as client, client.watch() as events:
            assert isinstance(await anext(events), Put)
            with pytest.raises(LinkGarbled) as caught:
                await anext(events)
    assert caught.value.reason == "undecodable"


async def test_invalid_utf8_does_not_end_the_watch() -> None:
    spec = pb.AccessRequestSpecV3(RequestReason=b"\xff\xfe", State=pb.PENDING)
    poison = pb.Event(Type=pb.PUT, AccessRequest=pb.AccessRequestV3(Metadata=pb.Metadata(Name=b"r1"), Spec=spec))
    with serve() as peer:
        peer.streams["WatchEvents"] = lambda _request, _context: iter(
            [_INIT, poison.SerializeToString(), _delete("r1")]
        )
        async with connect(peer) as client, client.watch() as events:
            event = await anext(events)
            assert isinstance(event, Put)
            assert event.request.reason == "\ufffd\ufffd"
            assert await anext(events) == Delete("r1")


async def test_a_burst_arrives_whole_and_in_order() -> None:
    """More than the window, so that credits are given and taken all along; the end does not overtake the last event."""
    names = [f"r{number}" for number in range(1_000)]
    seen = []
    with serve() as peer:
        peer.streams["WatchEvents"] = lambda _request, _context: itertools.chain([_INIT], map(_delete, names))
        async with connect(peer) as client:
            with pytest.raises(LinkLost):  # noqa: PT012
                async with client.watch() as events:
                    async for event in events:
                        seen.append(event)  # noqa: PERF401
    assert seen == [Delete(name) for name in names]


async def test_a_slow_reader_holds_the_server_back() -> None:
    """Memory stays bounded: once our window and those of HTTP/2 are full, the server makes no more events."""
    total = 4_000
    made = [0]

    def flood(_request: bytes, _context: Context) -> Iterator[bytes]:
        yield _INIT
        for number in range(total):
            made[0] += 1
            yield _delete(f"r{number}", padding=32_768)

    seen = 0
    with serve() as peer:
        peer.streams["WatchEvents"] = flood
        async with connect(peer) as client:
            with pytest.raises(LinkLost):  # noqa: PT012
                async with client.watch() as events:
                    await _standstill(client, made, total)
                    assert made[0] < total / 2
                    async for _ in events:
                        seen += 1
    assert seen == made[0] == total


async def _standstill(client: AuthClient, made: list[int], total: int) -> None:
    """Until a hundred calls were answered without one more event."""
    quiet = before = 0
    while quiet < 100 and before < total:
        await client.ping()
        quiet = quiet + 1 if made[0] == before else 0
        before = made[0]
