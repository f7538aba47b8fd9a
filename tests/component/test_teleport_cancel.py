"""Cancelled at any await, a call is over on both sides: no thread of ours is left, and the server sees its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from sidecar.errors import LinkLost
from sidecar.teleport.client import AuthClient, open_client
from sidecar.teleport.pb import teleport_pb2 as pb
from tests.teleport_peer import (
    PONG,
    Context,
    Peer,
    authority,
    client_threads,
    connect,
    credentials,
    hang,
    other_authority,
    serve,
    wait_no_more_than,
)

_INIT = pb.Event(Type=pb.INIT).SerializeToString()
_REQUEST = pb.AccessRequestV3(Metadata=pb.Metadata(Name=b"r1")).SerializeToString()


def _hang_unary(_request: bytes, context: Context) -> bytes:
    hang(context)
    return b""


def _hang_after(*messages: bytes) -> Callable[[bytes, Context], Iterator[bytes]]:
    def stream(_request: bytes, context: Context) -> Iterator[bytes]:
        yield from messages
        hang(context)

    return stream


async def _list(client: AuthClient) -> None:
    async with client.list_requests() as requests:
        async for _ in requests:
            pass


async def _watch(client: AuthClient) -> None:
    async with client.watch() as events:
        async for _ in events:
            pass


async def _watch_unread(client: AuthClient) -> None:
    """The reader sleeps while the window is full, so the thread waits for a credit and not in grpcio."""
    async with client.watch():
        await trio.sleep_forever()


def _silent(method: str) -> Callable[[Peer], None]:
    return lambda peer: peer.unary.update({method: _hang_unary})


def _streaming(method: str, *messages: bytes) -> Callable[[Peer], None]:
    return lambda peer: peer.streams.update({method: _hang_after(*messages)})


_Case = tuple[str, Callable[[Peer], None], Callable[[AuthClient], Awaitable[object]]]
_CASES: dict[str, _Case] = {
    "ping": ("Ping", _silent("Ping"), lambda client: client.ping()),
    "read plugin data": ("GetPluginData", _silent("GetPluginData"), lambda client: client.read_plugin_data("r1")),
    "list plugin data": ("GetPluginData", _silent("GetPluginData"), lambda client: client.list_plugin_data()),
    "update": (
        "UpdatePluginData",
        _silent("UpdatePluginData"),
        lambda client: client.update_plugin_data("r1", {}, {}),
    ),
    "review": (
        "SubmitAccessReview",
        _silent("SubmitAccessReview"),
        lambda client: client.submit_review("r1", "alice", "APPROVED", ""),
    ),
    "state": (
        "SetAccessRequestState",
        _silent("SetAccessRequestState"),
        lambda client: client.set_state("r1", "DENIED", "", ""),
    ),
    "legacy list": ("GetAccessRequests", _silent("GetAccessRequests"), _list),
    "list, first": ("GetAccessRequestsV2", _streaming("GetAccessRequestsV2"), _list),
    "list, midway": ("GetAccessRequestsV2", _streaming("GetAccessRequestsV2", _REQUEST), _list),
    "get": ("GetAccessRequestsV2", _streaming("GetAccessRequestsV2"), lambda client: client.get_request("r2")),
    "watch, no INIT": ("WatchEvents", _streaming("WatchEvents"), _watch),
    "watch": ("WatchEvents", _streaming("WatchEvents", _INIT, _INIT), _watch),
    "watch, window full": ("WatchEvents", _streaming("WatchEvents", *[_INIT] * 1_000), _watch_unread),
}


@pytest.mark.parametrize("case", _CASES)
async def test_cancelled_in_flight(case: str) -> None:
    method, script, call = _CASES[case]
    with serve() as peer:
        script(peer)
        before = client_threads()
        async with connect(peer) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, client)
                await peer.wait_begun(method)
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            await peer.wait_ended(method)
            await wait_no_more_than(before)
            peer.unary["Ping"] = lambda _request, _context: PONG
            await client.ping()  # the connection is as good as before
        await wait_no_more_than(before)


@pytest.mark.parametrize("case", [name for name in _CASES if name != "watch, window full"])
async def test_cancelled_before(case: str) -> None:
    """A write that was cancelled before it began must not reach the server."""
    method, script, call = _CASES[case]
    with serve() as peer:
        script(peer)
        before = client_threads()
        async with connect(peer) as client:
            with trio.CancelScope() as scope:
                scope.cancel()
                await call(client)
            assert scope.cancelled_caught
            peer.unary["Ping"] = lambda _request, _context: PONG
            await client.ping()
        await wait_no_more_than(before)
        if method not in {"WatchEvents", "GetAccessRequestsV2", "GetAccessRequests", "Ping"}:
            assert [name for name, _ in peer.calls] == ["Ping"]


@pytest.mark.parametrize("case", ["ping", "watch", "list"])
async def test_cancelled_at_any_step(case: str) -> None:
    """An answer that comes while its call is being cancelled wakes nobody else."""
    calls: dict[str, Callable[[AuthClient], Awaitable[object]]] = {
        "ping": lambda client: client.ping(),
        "watch": _watch,
        "list": _list,
    }
    with serve() as peer:
        peer.streams["WatchEvents"] = _hang_after(_INIT, *[_INIT] * 100)
        peer.streams["GetAccessRequestsV2"] = lambda _request, _context: iter([_REQUEST] * 100)
        before = client_threads()
        async with connect(peer) as client:
            await client.ping()
            for steps in range(0, 2_000, 20):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(calls[case], client)
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
            await client.ping()
            await wait_no_more_than(before)


async def test_leaving_the_watch_ends_it() -> None:
    """Not only a cancellation: also an error of the reader, or that it has seen enough."""
    with serve() as peer:
        peer.streams["WatchEvents"] = _hang_after(_INIT)
        before = client_threads()
        async with connect(peer) as client:
            async with client.watch():
                pass
            await peer.wait_ended("WatchEvents")
            with pytest.raises(ZeroDivisionError):  # as it is: no group around it
                async with client.watch():
                    _ = 1 // 0
            await peer.wait_ended("WatchEvents")
        await wait_no_more_than(before)


async def test_closing_the_client_ends_what_is_in_flight() -> None:
    with serve() as peer:
        peer.unary["UpdatePluginData"] = _hang_unary
        before = client_threads()

        async def update(client: AuthClient) -> None:
            with pytest.raises(LinkLost) as caught:
                await client.update_plugin_data("r1", {}, {})
            assert caught.value.ambiguous

        stack = AsyncExitStack()
        client = await stack.enter_async_context(connect(peer))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(update, client)
            await peer.wait_begun("UpdatePluginData")
            await stack.aclose()
        await wait_no_more_than(before)


_SCRIPT = """
import sys, trio
from sidecar.errors import LinkError
from sidecar.teleport.client import Credentials, open_client

async def main():
    addr, *parts = sys.argv[1:]
    async with open_client(addr, Credentials(*(part.encode() for part in parts))) as client:
        try:
            async with client.watch() as events:
                print("watching")
                async for _ in events:
                    pass
        except LinkError as exc:
            print(exc.reason)

trio.run(main)
"""


async def test_nothing_but_our_own_lines_on_standard_error() -> None:
    """The core of grpcio would write a page of its own for each failed handshake and each GOAWAY."""
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    with serve() as peer:
        peer.streams["WatchEvents"] = lambda _request, _context: iter([_INIT])
        for trust, expected in ((authority(), "watching\nclosed\n"), (other_authority(), "tls\n")):
            shown = credentials(trust=trust)
            parts = (part.decode() for part in (shown.certificate, shown.key, shown.authorities))
            done = await trio.run_process(
                [sys.executable, "-c", _SCRIPT, peer.addr, *parts],
                capture_stdout=True,
                capture_stderr=True,
                env=env,
            )
            assert (done.stdout.decode(), done.stderr.decode()) == (expected, "")


async def test_the_process_exits_with_a_watch_open() -> None:
    """A thread that blocks in grpcio must never keep a stopped sidecar alive."""
    script = _SCRIPT.replace('print("watching")', 'print("watching", flush=True); sys.exit(7)')
    shown = credentials()
    with serve() as peer:
        peer.streams["WatchEvents"] = _hang_after(_INIT)
        parts = (part.decode() for part in (shown.certificate, shown.key, shown.authorities))
        done = await trio.run_process(
            [sys.executable, "-c", script, peer.addr, *parts], capture_stdout=True, check=False
        )
        assert done.returncode == 7


def test_importing_the_rest_of_the_room_is_light() -> None:
    """`sidecar health` and `version` must not pay for grpcio; only the bridge and the client import it."""
    modules = "sidecar.teleport, sidecar.teleport.credentials, sidecar.teleport.status, sidecar.teleport.codec"
    code = f"import sys, {modules}; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_opening_a_client_does_no_io() -> None:
    async with open_client("nowhere.invalid:3025", credentials()):
        pass
