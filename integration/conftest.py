"""Where the servers come from. A simulator stands in for a part that is missing; a way without any is skipped."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

# Read once, when grpcio is imported; its own lines are no part of a test's output.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import pytest

from integration import addresses, binaries, containers
from integration.mattermost import ChatHost, RealChat
from integration.scenarios import unplayable
from integration.simulated import simulated_chat, simulated_cluster
from integration.stage import Chat, Cluster, Scenario, Stage, Unavailable, open_stage
from integration.teleport import AuthHost, RealCluster


class Servers(NamedTuple):
    """What one way has, None where a simulator stands in; `emails` are the people's on either side."""

    emails: Mapping[str, str]
    cluster: RealCluster | None
    chat: RealChat | None


@pytest.fixture(scope="session", params=["containers", "binaries", "proxy", "addresses"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers of one way, for all scenarios."""
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        try:
            found = _WAYS[request.param](stack, folder)
        except Unavailable as exc:
            pytest.skip(f"{request.param}: {exc}")
        yield found


@pytest.fixture
def playable(scenario: Scenario, servers: Servers) -> None:
    """Skip a scenario that needs what these servers do not have. Not in the scenario: pytest-trio drops the reason."""
    if reason := unplayable(scenario, servers.cluster, servers.chat):
        pytest.skip(reason)


@pytest.fixture
async def stage(servers: Servers, tmp_path: Path) -> AsyncIterator[Stage]:
    """A scenario's own channel on the servers."""
    async with _cluster(servers, tmp_path) as cluster, _chat(servers) as chat:
        print(f"{cluster.name}, {chat.name}")
        async with open_stage(cluster, chat, tmp_path) as found:
            yield found


@asynccontextmanager
async def _cluster(servers: Servers, folder: Path) -> AsyncIterator[Cluster]:
    if servers.cluster is not None:
        yield servers.cluster
        return
    async with simulated_cluster(folder, emails=servers.emails) as cluster:
        yield cluster


@asynccontextmanager
async def _chat(servers: Servers) -> AsyncIterator[Chat]:
    if servers.chat is not None:
        yield servers.chat
        return
    async with simulated_chat(emails=servers.emails) as chat:
        yield chat


def _contained(stack: ExitStack, folder: Path) -> Servers:
    containers.require_engine()
    auth = containers.ContainedAuthService()
    stack.callback(auth.remove)
    mattermost = containers.ContainedMattermost()
    stack.callback(mattermost.remove)
    return _populate(stack, folder, auth, mattermost)


def _from_binaries(stack: ExitStack, folder: Path) -> Servers:
    auth, mattermost = _start_binaries(stack, folder)
    return _populate(stack, folder, auth, mattermost)


def _start_binaries(stack: ExitStack, folder: Path) -> tuple[binaries.AuthService | None, binaries.Mattermost | None]:
    auth, mattermost = None, None
    if "TELEPORT_BIN" in os.environ:
        auth = binaries.AuthService(folder)
        stack.callback(auth.stop)
    if {"MATTERMOST_HOME", "MATTERMOST_DSN"} <= os.environ.keys():
        mattermost = binaries.Mattermost(folder)
        stack.callback(mattermost.stop)
    if auth is None and mattermost is None:
        raise Unavailable("neither TELEPORT_BIN nor MATTERMOST_HOME with MATTERMOST_DSN is set")
    return auth, mattermost


def _through_proxy(stack: ExitStack, folder: Path) -> Servers:
    if "TELEPORT_BIN" not in os.environ:
        raise Unavailable("TELEPORT_BIN is not set")
    auth, mattermost = _start_binaries(stack, folder)
    assert auth is not None
    auth.add_proxy(folder)
    assert auth.proxy is not None
    stack.callback(auth.proxy.stop)
    return _populate(stack, folder, auth, mattermost)


def _at_addresses(stack: ExitStack, folder: Path) -> Servers:
    auth = addresses.RunningAuthService(folder) if "TELEPORT_ADDR" in os.environ else None
    here = {"MATTERMOST_URL", "MATTERMOST_ADMIN_TOKEN"} <= os.environ.keys()
    mattermost = addresses.RunningMattermost() if here else None
    if auth is None and mattermost is None:
        raise Unavailable("neither TELEPORT_ADDR nor MATTERMOST_URL with MATTERMOST_ADMIN_TOKEN is set")
    return _populate(stack, folder, auth, mattermost)


_WAYS = {
    "containers": _contained,
    "binaries": _from_binaries,
    "proxy": _through_proxy,
    "addresses": _at_addresses,
}


def _populate(stack: ExitStack, folder: Path, auth: AuthHost | None, mattermost: ChatHost | None) -> Servers:
    """Make the people of the story on the servers, under names that nobody else has; at the end they go."""
    tag = secrets.token_hex(3)
    emails = {name: f"{name}-{tag}@example.com" for name in ("bob", "alice", "ivan", "mallory")}
    cluster, chat = None, None
    if auth is not None:
        cluster = RealCluster(auth, folder, emails)
        stack.callback(cluster.close)
    if mattermost is not None:
        chat = RealChat(mattermost, emails)
        stack.callback(chat.close)
    return Servers(emails, cluster, chat)
