"""Rules as they are read: page by page, beside what the watch tells, and from servers that misbehave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio

from sidecar.intake import rules as module
from sidecar.intake.rules import MonitoringRules
from sidecar.metrics import Metrics
from sidecar.model import AccessRequest, RuleDelete, RulePut
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST, RULE
from sidecar.simulator.teleport.rules import make_rule
from sidecar.teleport import codec
from sidecar.teleport.client import AuthClient, open_client
from sidecar.teleport.credentials import read_credentials
from sidecar.teleport.pb import teleport_pb2 as pb

LIST = "ListAccessMonitoringRulesWithFilter"
LEVEL = 'contains_any(user.traits["level"], set("L1"))'
RIGHTS = {
    REQUEST: ("list", "read"),
    PLUGIN_DATA: ("update",),
    RULE: ("list", "read"),
    "user": ("read",),
    "user_login_state": ("read",),
}


class Read:
    """A server, a client of it, and what is kept of its rules."""

    def __init__(self, auth: AuthServer, client: AuthClient) -> None:
        self.auth = auth
        self.client = client
        self.rules = MonitoringRules("mattermost", "replace", Metrics())

    async def load(self) -> bool:
        with trio.fail_after(10):
            return await self.rules.load(self.client)

    @property
    def names(self) -> list[str]:
        return [rule.name for rule in self.rules.book.rules]


@asynccontextmanager
async def reading(folder: Path, version: str = "18.0.0") -> AsyncIterator[Read]:
    with AuthServer.dual_authorization(version=version) as auth:
        auth.add_role("access-plugin", rules=RIGHTS)
        files = auth.write_credentials(folder, "access-plugin")
        credentials = read_credentials(files.crt, files.key, files.cas)
        async with open_client(auth.addr, credentials) as client:
            await client.ping()
            yield Read(auth, client)


def page(*names: str, token: str) -> bytes:
    rules = [make_rule(name, "true", ["x/y"]) for name in names]
    return pb.ListAccessMonitoringRulesResponse(rules=rules, next_page_token=token.encode()).SerializeToString()


@pytest.fixture
async def read(tmp_path: Path) -> AsyncIterator[Read]:
    async with reading(tmp_path) as one:
        yield one


async def test_the_watch_tells_of_rules_where_that_is_granted(read: Read) -> None:
    """PUT and DELETE, beside those of requests."""
    with trio.fail_after(10):
        async with read.client.watch(rules=True) as events:
            assert read.client.watches_rules
            read.auth.add_rule("a", "true", ["x/y"])
            event = await anext(events)
            assert isinstance(event, RulePut)
            assert (event.rule.name, event.rule.recipients, event.rule.unreadable) == ("a", ("x/y",), False)
            read.auth.remove_rule("a")
            assert await anext(events) == RuleDelete("a")
    read.auth.add_role("access-plugin", rules={REQUEST: ("list", "read")})
    with trio.fail_after(10):
        async with read.client.watch(rules=True):
            assert not read.client.watches_rules


async def test_what_the_watch_told_meanwhile_is_newer_than_the_list(read: Read) -> None:
    """A rule that is removed while a list is on its way is removed."""
    read.auth.add_rule("gone", "true", ["x/y"])
    read.auth.add_rule("stays", "true", ["x/y"])
    read.auth.faults.garble(LIST, page("gone", "stays", token=""))
    read.auth.faults.hang(LIST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read.load)
        await trio.to_thread.run_sync(lambda: read.auth.wait_for(lambda: read.auth.calls[LIST] == 1))
        read.rules.take(RuleDelete("gone"))
        made = codec.decode_event(
            pb.Event(Type=pb.PUT, AccessMonitoringRule=make_rule("new", "true", ["x/y"])).SerializeToString()
        )
        assert isinstance(made, RulePut)
        read.rules.take(made)
        read.auth.faults.release()
    assert read.names == ["new", "stays"]
    await read.load()
    assert read.names == ["gone", "stays"]


async def test_an_older_server_lists_without_a_filter(read: Read) -> None:
    """Found out once; those of other plugins are left out here."""
    read.auth.add_rule("ours", "true", ["x/y"])
    read.auth.add_rule("theirs", "true", ["x/y"], plugin="slack")
    read.auth.faults.fail(LIST, grpc.StatusCode.UNIMPLEMENTED, f"unknown method {LIST} for service x")
    await read.load()
    await read.load()
    assert read.names == ["ours"]
    assert (read.auth.calls[LIST], read.auth.calls["ListAccessMonitoringRules"]) == (1, 2)


@pytest.mark.parametrize("tokens", [["x", "x"], [str(number) for number in range(60)]])
async def test_a_list_without_an_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: list[str]
) -> None:
    """By the same token again, or by its length; what was read only adds."""
    monkeypatch.setattr(module, "MAX_TERMS", 50)
    async with reading(tmp_path) as read:
        for token in tokens:
            read.auth.faults.garble(LIST, page(f"rule {token}", token=token))
        await read.load()
        assert 1 <= len(read.names) <= 50
        assert read.rules.book.replace is False


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.PERMISSION_DENIED])
async def test_a_list_that_fails_keeps_what_was_known(read: Read, code: grpc.StatusCode) -> None:
    """And removes nobody until it works again."""
    read.auth.add_rule("a", "true", ["x/y"])
    await read.load()
    assert read.rules.book.replace
    read.auth.faults.fail(LIST, code, "no")
    assert await read.load() is False
    assert (read.names, read.rules.book.replace) == (["a"], False)
    await read.load()
    assert (read.names, read.rules.book.replace) == (["a"], True)


@pytest.mark.parametrize(
    ("sso", "state", "expected"),
    [
        (False, None, {"level": ("L1",)}),
        (True, None, {"level": ("L1",)}),
        (True, grpc.StatusCode.UNIMPLEMENTED, {"level": ("L1",)}),
        (True, grpc.StatusCode.PERMISSION_DENIED, None),
    ],
)
async def test_traits_are_those_of_the_last_login(
    read: Read,
    sso: bool,  # noqa: FBT001
    state: grpc.StatusCode | None,
    expected: dict[str, tuple[str, ...]] | None,
) -> None:
    """The user's own where Teleport keeps no login; nothing is guessed where the login may not be read."""
    read.auth.add_user("bob", sso=sso, traits={"level": ["L1"]})
    read.auth.add_rule("level", LEVEL, ["x/y"])
    await read.load()
    if state is not None:
        read.auth.faults.fail("GetUserLoginState", state, "no")
    book, traits = await read.rules.ruling(AccessRequest(id="r", user="bob", state="PENDING"))
    assert book.needs_traits
    assert traits == expected


async def test_traits_are_asked_for_once_a_minute(read: Read) -> None:
    """One person's requests cost one call; another's are asked for."""
    read.auth.add_rule("level", LEVEL, ["x/y"])
    await read.load()
    for user in ("bob@example.com", "bob@example.com", "alice@example.com"):
        await read.rules.ruling(AccessRequest(id="r", user=user, state="PENDING"))
    assert read.auth.calls["GetUser"] == 2


async def test_roles_are_listed_by_name(read: Read) -> None:
    """For who asks who is told."""
    read.auth.add_role("access-plugin", rules={"role": ("list", "read")})
    assert await read.client.list_roles() == ["access-plugin", "dbadmin", "devops", "reviewer"]
