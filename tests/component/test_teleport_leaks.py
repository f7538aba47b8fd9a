"""Connections, watches and lists that come and go for months leave nothing behind, on either side.

Both sides live in this process, so its descriptors, threads and bytes are those of both.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from sidecar.errors import LinkLost
from sidecar.teleport.client import AuthClient
from sidecar.teleport.pb import teleport_pb2 as pb
from sidecar.times import Times
from tests.bench.child import child, sidecar_command
from tests.teleport_peer import PATIENCE, Context, Peer, client_threads, connect, descriptors, hang, serve
from tests.world import reloading, world

_INIT = pb.Event(Type=pb.INIT).SerializeToString()
_LIST = [pb.AccessRequestV3(Metadata=pb.Metadata(Name=name)).SerializeToString() for name in (b"r1", b"r2", b"r3")]
# What one round left behind before was two descriptors; a page of bytes is noise of the allocator.
_GROWTH_MB = 6.0


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _init_and_hang(_request: bytes, context: Context) -> Iterator[bytes]:
    yield _INIT
    hang(context)


async def _lost(client: AuthClient, peer: Peer) -> None:
    """A watch that the server ends."""
    peer.streams["WatchEvents"] = lambda _request, _context: iter([_INIT])
    async with client.watch() as events:
        with pytest.raises(LinkLost):
            await anext(aiter(events))
    peer.streams["WatchEvents"] = _init_and_hang


async def _round(peer: Peer, old: AuthClient) -> None:
    """One renewal: the new connection watches while the old one still serves, as the link does it."""
    async with connect(peer) as newer, old.watch():
        await newer.ping()
        async with newer.watch():
            await old.ping()
            assert await newer.get_request("r1") is not None
        await _lost(newer, peer)
        async with newer.list_requests() as requests:
            await anext(aiter(requests))  # and the rest is not wanted


async def _flat(one_round: Callable[[], Awaitable[None]], rounds: int) -> None:
    """Both sides end with what they had once they were warm."""
    warm = max(3, rounds // 4)
    for _ in range(warm):
        await one_round()
    threads, files = len(client_threads()), descriptors()
    for _ in range(rounds - warm):
        await one_round()
    with trio.move_on_after(PATIENCE):
        # grpcio's core closes its sockets in threads of its own
        while descriptors() > files or len(client_threads()) > threads:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert (descriptors() <= files, len(client_threads()) <= threads) == (True, True)


async def _renewals(rounds: int) -> None:
    with serve() as peer:
        peer.streams["WatchEvents"] = _init_and_hang
        peer.streams["GetAccessRequestsV2"] = lambda _request, _context: iter(_LIST)
        async with connect(peer) as old:

            async def one_round() -> None:
                await _round(peer, old)
                await _settled(peer)

            await _flat(one_round, rounds)
            mib = resident_mb()
            await _flat(one_round, rounds)
            assert resident_mb() - mib < _GROWTH_MB


async def _settled(peer: Peer) -> None:
    """Every call that reached the server is over there."""
    with trio.fail_after(PATIENCE):
        while peer.begun.qsize() > peer.ended.qsize():  # noqa: ASYNC110 - the server's threads tell nobody
            await trio.sleep(0.01)


async def test_a_few_renewals_leave_nothing_behind() -> None:
    await _renewals(20)


@pytest.mark.soak
async def test_a_thousand_renewals_leave_nothing_behind() -> None:
    await _renewals(500)


async def _reloads(folder: Path, rounds: int) -> None:
    """The whole sidecar: credentials renewed, both links moved by another configuration, watch lost."""
    times = Times(file_poll=0.02, call=0.05, list_at_most_every=0.05)
    async with (
        world(folder, version="16.0.0-dev") as here,
        reloading(here, here.config(), times=times) as sidecar,
    ):
        ready = partial(here.lines.heard, "link.ready", link="teleport")
        done = 0
        await ready()

        async def one_round() -> None:
            nonlocal done
            done += 1
            here.auth.close_watchers("closed")
            await ready(2 * done)
            here.auth.write_credentials(folder, "access-plugin")
            await here.lines.heard("credentials.replaced", done)
            other = {"rules__mode": "off", "mattermost__max_connections": "9"} if done % 2 else {}
            await sidecar.reload(here.config(**other))
            await ready(2 * done + 1)
            await here.lines.heard("link.ready", done + 1, link="mattermost")
            await here.recorded(lambda: here.auth.watchers == 1)

        await _flat(one_round, rounds)


async def test_a_few_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    await _reloads(tmp_path, 12)


@pytest.mark.soak
async def test_hundreds_of_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    await _reloads(tmp_path, 334)


@pytest.mark.soak
async def test_reloads_of_a_process_cost_no_memory(tmp_path: Path) -> None:
    """The log of a sidecar in the test's own loop would be counted, too."""
    async with world(tmp_path) as here, child(sidecar_command(here.settings())) as program:
        await program.ready()
        mib = []
        for number in range(300):
            program.process.send_signal(signal.SIGHUP)
            await program.logged("config.reloaded", number + 1)
            mib.append(program.rss_mb())
        assert mib[-1] - mib[99] < _GROWTH_MB
