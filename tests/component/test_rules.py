"""Who is told by access monitoring rules: a sidecar beside a Teleport that has them, and beside ones that do not."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import trio

from sidecar.simulator.mattermost.server import Channel
from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST, RULE
from tests.world import QUICK, Running, World, field, running, world

DBADMIN = 'access_request.spec.roles.contains("dbadmin")'
LEVEL = 'contains_any(user.traits["level"], set("L1"))'
BASE = {REQUEST: ("list", "read"), PLUGIN_DATA: ("update",)}
RULES = BASE | {RULE: ("list", "read")}
USERS = RULES | {"user": ("read",), "user_login_state": ("read",)}
TIMES = msgspec.structs.replace(QUICK, list_every=0.3, silent=0.05)
# A field of a rule's spec that no version has today.
NEW_FIELD = b"\xa2\x06\x00"


class Ruled:
    """A world, its sidecar, and a channel that no configuration names."""

    def __init__(self, here: World, sidecar: Running, channel: Channel) -> None:
        self.here = here
        self.sidecar = sidecar
        self.channel = channel

    async def ask(self, **more: Any) -> str:
        """Bob asks; the id, once all who are to be told were told."""
        (request_id,) = self.here.ask(**more)
        await self.here.released(request_id)
        return request_id

    async def reviewed(self, request_id: str, channel: Channel) -> None:
        """Alice reviews an open request; returns when its card there shows it, and all is at rest."""
        self.here.auth.review(request_id, "alice@example.com", "APPROVED")
        await self.here.chat.wait_for(
            lambda: any(
                "1 of 2" in field(card, "Reviews")
                for card in self.here.cards(channel)
                if card.props["tm"]["id"] == request_id
            )
        )
        await self.here.released(request_id)

    def told(self, request_id: str) -> list[str]:
        """Which of the two channels have a card of this request."""
        found = {"static": self.here.channel, "rule": self.channel}
        return [name for name, channel in found.items() if request_id in self.here.states(channel)]


@asynccontextmanager
async def ruled(
    folder: Path, rules: dict[str, str], *, rights: dict[str, tuple[str, ...]] = RULES, version: str = "18.0.0",
    traits: dict[str, list[str]] | None = None, unknown: bytes = b"", **changes: str,
) -> AsyncIterator[Ruled]:  # fmt: skip
    """A running sidecar; each of the rules tells the second channel."""
    async with world(folder, version=version) as here:
        here.auth.add_role("access-plugin", rules=rights)
        here.auth.add_user("bob@example.com", ["devops"], traits=traits or {})
        channel = here.chat.add_channel(here.team, "dba", members=(here.alice, here.ivan, here.bob, here.bot))
        for name, condition in rules.items():
            here.auth.add_rule(name, condition, ["ops/dba"], unknown=unknown)
        async with running(here.config(**changes), times=TIMES) as sidecar:
            await here.watched()
            await here.lines.heard("link.ready", link="teleport")
            yield Ruled(here, sidecar, channel)


@pytest.mark.parametrize(
    ("mode", "condition", "expected"),
    [
        ("replace", DBADMIN, ["rule"]),
        ("replace", f"!{DBADMIN}", ["static"]),
        ("add", DBADMIN, ["static", "rule"]),
        ("add", f"!{DBADMIN}", ["static"]),
        ("off", DBADMIN, ["static"]),
    ],
)
async def test_a_rule_that_holds_replaces_adds_or_is_off(
    tmp_path: Path, mode: str, condition: str, expected: list[str]
) -> None:
    """As `[rules] mode` says."""
    with trio.fail_after(10):
        async with ruled(tmp_path, {"dba": condition}, rules__mode=mode) as there:
            assert there.told(await there.ask()) == expected
            asked = there.here.auth.calls["ListAccessMonitoringRulesWithFilter"]
            assert bool(asked) == (mode != "off")
            assert not there.here.lines.problems


async def test_rules_of_others_tell_nobody(tmp_path: Path) -> None:
    """Neither another plugin's rule, nor one about other things."""
    with trio.fail_after(10):
        async with ruled(tmp_path, {}) as there:
            there.here.auth.add_rule("slack", DBADMIN, ["ops/dba"], plugin="slack")
            there.here.auth.add_rule("lists", DBADMIN, ["ops/dba"], subjects=["access_list"])
            there.here.auth.add_rule("ours", f"!{DBADMIN}", ["ops/dba"])
            await changed(there, "ours")
            assert there.told(await there.ask()) == ["static"]


async def test_rules_change_while_it_runs(tmp_path: Path) -> None:
    """New requests go by the rules of now; those that were announced keep their cards, and get no others."""
    with trio.fail_after(15):
        async with ruled(tmp_path, {}) as there:
            first = await there.ask()
            assert there.told(first) == ["static"]
            there.here.auth.add_rule("dba", DBADMIN, ["ops/dba"])
            await changed(there, "dba")
            second = await there.ask()
            assert there.told(second) == ["rule"]
            await there.reviewed(first, there.here.channel)
            assert there.told(first) == ["static"]
            there.here.auth.remove_rule("dba")
            await changed(there, "dba", 2)
            third = await there.ask()
            assert there.told(third) == ["static"]
            await there.reviewed(second, there.channel)
            assert there.told(second) == ["rule"]
            for request_id in (first, second, third):
                there.here.auth.set_state(request_id, "DENIED")
            await there.here.told([second], "DENIED", channel=there.channel)
            await there.here.told([first, third], "DENIED")
            assert there.told(first) == ["static"]
            assert there.told(second) == ["rule"]


async def test_a_rule_that_stops_naming_us_is_no_rule_of_ours(tmp_path: Path) -> None:
    """As removed as one that is deleted."""
    with trio.fail_after(10):
        async with ruled(tmp_path, {"dba": DBADMIN}) as there:
            there.here.auth.add_rule("dba", DBADMIN, ["ops/dba"], plugin="slack")
            await changed(there, "dba")
            assert there.told(await there.ask()) == ["static"]


async def test_rules_are_listed_again_after_each_break(tmp_path: Path) -> None:
    """A change that no watch told counts all the same: the official plugin misses it."""
    with trio.fail_after(10):
        async with ruled(tmp_path, {"dba": DBADMIN}) as there:
            there.here.auth.stop()
            there.here.auth.remove_rule("dba")
            there.here.auth.add_rule("all", f"!{DBADMIN}", ["ops/dba"])
            there.here.auth.start()
            await there.here.lines.heard("link.ready", 2, link="teleport")
            assert there.told(await there.ask()) == ["static"]


@pytest.mark.parametrize("version", ["7.0.0-dev", "12.4.1", "16.0.0"])
async def test_a_server_without_rules_is_no_trouble(tmp_path: Path, version: str) -> None:
    """One line says so."""
    with trio.fail_after(10):
        async with ruled(tmp_path, {}, version=version) as there:
            assert there.told(await there.ask()) == ["static"]
            line = await there.here.lines.heard("rules.unread")
            assert "has no access monitoring rules" in line["detail"]
            calls = there.here.auth.calls
            listed = calls["GetAccessRequests"] + calls["GetAccessRequestsV2"]
            await there.here.recorded(
                lambda: (
                    there.here.auth.calls["GetAccessRequests"] + there.here.auth.calls["GetAccessRequestsV2"]
                    > listed + 1
                )
            )
            assert len(there.here.lines.of("rules.unread")) == 1
            assert calls["WatchEvents"] == 1
            assert not there.here.lines.problems


async def test_denied_rules_are_one_line_and_tried_again_when_rights_may_have_changed(tmp_path: Path) -> None:
    """Without the verbs nobody is lost; with them the rules count, and the watch tells of them."""
    with trio.fail_after(15):
        async with ruled(tmp_path, {"dba": DBADMIN}, rights=BASE) as there:
            assert there.told(await there.ask()) == ["static"]
            line = await there.here.lines.heard("rules.unread")
            assert "access_monitoring_rule" in line["detail"]
            assert await metric(there, "unread") == 1
            there.here.auth.add_role("access-plugin", rules=RULES)
            await there.here.lines.heard("rules.read")
            assert there.told(await there.ask()) == ["rule"]
            await there.here.recorded(lambda: there.here.auth.calls["WatchEvents"] >= 2)
            there.here.auth.remove_rule("dba")
            await changed(there, "dba")
            assert len(there.here.lines.of("rules.unread")) == 1
            assert not [event for event in there.here.lines.problems if event.startswith("rule")]


async def test_many_rules_are_read_page_by_page(tmp_path: Path) -> None:
    """2,500 of them, of which the last one holds."""
    with trio.fail_after(20):
        async with ruled(tmp_path, {f"r{n:04}": f"!{DBADMIN}" for n in range(2499)} | {"z": DBADMIN}) as there:
            assert there.told(await there.ask()) == ["rule"]
            assert await metric(there, "evaluable") == 2500
            assert there.here.auth.calls["ListAccessMonitoringRulesWithFilter"] >= 3


async def test_a_list_that_ends_early_removes_nobody(tmp_path: Path) -> None:
    """Denied on page two: who is named there cannot be known, so all others are told."""
    with trio.fail_after(20):
        rules = {"a": DBADMIN} | {f"r{n:04}": f"!{DBADMIN}" for n in range(2499)}
        async with world_denying_page_two(tmp_path, rules) as there:
            assert there.told(await there.ask()) == ["static", "rule"]
            line = await there.here.lines.heard("rules.unread")
            assert line["levelname"] == "WARNING"
            assert await metric(there, "unread") == 1
            there.here.auth.rules_end_after_page_one = False
            await there.here.lines.heard("rules.read")
            assert there.told(await there.ask()) == ["rule"]


@pytest.mark.parametrize(
    ("condition", "unknown", "words"),
    [
        ('regexp.match(access_request.spec.roles, "^x")', b"", "regexp.match is not known"),
        (f"!{DBADMIN}", NEW_FIELD, "a field that this sidecar does not know"),
    ],
)
async def test_a_rule_that_cannot_be_evaluated_removes_nobody(
    tmp_path: Path, condition: str, unknown: bytes, words: str
) -> None:
    """It is named once, and counted."""
    with trio.fail_after(10):
        async with ruled(tmp_path, {"odd": condition}, unknown=unknown) as there:
            assert there.told(await there.ask()) == ["static", "rule"]
            assert there.told(await there.ask()) == ["static", "rule"]
            (line,) = there.here.lines.of("rule.not_evaluable")
            assert line["rule"] == "odd"
            assert words in line["detail"]
            assert await metric(there, "not_evaluable") == 1


@pytest.mark.parametrize(
    ("traits", "rights", "expected"),
    [
        ({"level": ["L1"]}, USERS, ["rule"]),
        ({"level": ["L2"]}, USERS, ["static"]),
        ({"level": ["L2"]}, RULES, ["static", "rule"]),
    ],
)
async def test_traits_are_read_where_a_rule_asks_for_them(
    tmp_path: Path, traits: dict[str, list[str]], rights: dict[str, tuple[str, ...]], expected: list[str]
) -> None:
    """Where they may not be read, such a rule removes nobody, and says why."""
    with trio.fail_after(10):
        async with ruled(tmp_path, {"level": LEVEL}, traits=traits, rights=rights) as there:
            assert there.told(await there.ask()) == expected
            assert there.told(await there.ask()) == expected
            denied = there.here.lines.of("rule.not_evaluable")
            assert [line["rule"] for line in denied] == ["level"] * (rights is RULES)
            assert all("the traits of users cannot be read" in line["detail"] for line in denied)


async def test_traits_that_do_not_come_hold_nobody_up(tmp_path: Path) -> None:
    """A service that fails costs the certainty of one rule."""
    with trio.fail_after(10):
        async with ruled(tmp_path, {"level": LEVEL}, rights=USERS) as there:
            there.here.auth.faults.fail("GetUserLoginState", grpc.StatusCode.INTERNAL, "broken")
            for _ in range(2):
                assert there.told(await there.ask()) == ["static", "rule"]
            assert len(there.here.lines.of("traits.unread")) == 1
            assert await metric(there, "not_evaluable") == 0
            assert not there.here.lines.problems


@asynccontextmanager
async def world_denying_page_two(folder: Path, rules: dict[str, str]) -> AsyncIterator[Ruled]:
    async with world(folder, version="18.0.0") as here:
        here.auth.add_role("access-plugin", rules=RULES)
        here.auth.rules_end_after_page_one = True
        channel = here.chat.add_channel(here.team, "dba", members=(here.alice, here.bot))
        for name, condition in rules.items():
            here.auth.add_rule(name, condition, ["ops/dba"])
        async with running(here.config(), times=TIMES) as sidecar:
            await here.lines.heard("link.ready", link="teleport")
            yield Ruled(here, sidecar, channel)


async def metric(there: Ruled, state: str) -> float:
    return (await there.sidecar.metrics())[f'rules{{state="{state}"}}']


async def changed(there: Ruled, name: str, count: int = 1) -> None:
    """Return when the watch has told so many changes of a rule."""
    await there.here.lines.heard("rule.changed", count, level=logging.DEBUG, rule=name)
