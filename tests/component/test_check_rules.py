"""What `sidecar check` says of access monitoring rules, and of who is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sidecar import check
from sidecar.config import Config
from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST, RULE
from sidecar.teleport.findings import Finding
from tests.world import World, world

DBADMIN = 'access_request.spec.roles.contains("dbadmin")'
LEVEL = 'contains_any(user.traits["level"], set("L1"))'
RULES = {REQUEST: ("list", "read"), PLUGIN_DATA: ("update",), RULE: ("list", "read")}
ALL = RULES | {"user": ("read",), "user_login_state": ("read",), "role": ("list", "read")}


@asynccontextmanager
async def ruled(
    folder: Path, rights: dict[str, tuple[str, ...]] = ALL, version: str = "18.0.0", **rules: str
) -> AsyncIterator[World]:
    """A Teleport with rules; each tells ops/dba."""
    async with world(folder, version=version) as here:
        here.auth.add_role("access-plugin", rules=rights)
        here.auth.add_user("bob@example.com", ["devops"], traits={"level": ["L1"]})
        for name, condition in rules.items():
            here.auth.add_rule(name, condition, ["ops/dba"])
        yield here


async def rows(config: Config) -> list[Finding]:
    """The rows about rules and routes; the whole check ends within its time."""
    with trio.fail_after(30):
        findings, _ = await check.run(config)
    return [one for one in findings if one.id.startswith(("teleport.rules", "routes"))]


def brief(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(one.id, one.status, one.subject) for one in findings]


async def test_rules_and_roles_each_have_a_row(tmp_path: Path) -> None:
    """A rule that cannot be evaluated says where and why; each role says who is told."""
    async with ruled(tmp_path, dba=DBADMIN, odd='regexp.match(access_request.spec.roles, "x")') as here:
        routes = {"mattermost__recipients": "[]", "role_to_recipients__d*": '["ops/d"]'}
        found = await rows(here.config(**routes))
    assert brief(found) == [
        ("teleport.rules", "ok", "mattermost"),
        ("teleport.rules.not_evaluable", "warning", "odd"),
        ("routes.role", "ok", "access-plugin"),
        ("routes.role", "ok", "dbadmin"),
        ("routes.role", "ok", "devops"),
        ("routes.role", "ok", "reviewer"),
        ("routes.unmatched", "warning", "role_to_recipients"),
    ]
    assert "2 access monitoring rules" in found[0].message
    assert "at character 1: the function regexp.match is not known" in found[1].message
    assert 'ops/d (role_to_recipients."d*"), ops/dba (the access monitoring rule "dba")' in found[3].message
    assert found[-1].message == "No entry matches 2 roles of the cluster: access-plugin, reviewer."


async def test_a_role_that_may_list_nothing_is_no_trouble(tmp_path: Path) -> None:
    """A stock role of the guide has no warning, only a word."""
    async with ruled(tmp_path, {REQUEST: ("list", "read"), PLUGIN_DATA: ("update",)}) as here:
        found = await rows(here.config())
    assert brief(found) == [("teleport.rules", "ok", "mattermost"), ("routes", "ok", "mattermost")]
    assert "sidecar configure --rbac" in found[0].message


@pytest.mark.parametrize(
    ("version", "mode", "words"),
    [("18.0.0", "off", 'mode is "off"'), ("16.0.0", "replace", "has no access monitoring rules")],
)
async def test_no_rules(tmp_path: Path, version: str, mode: str, words: str) -> None:
    """By the configuration's wish, or by the server's age."""
    async with ruled(tmp_path, version=version) as here:
        found = await rows(here.config(rules__mode=mode))
    assert brief(found)[0] == ("teleport.rules", "ok", "mattermost")
    assert words in found[0].message


@pytest.mark.parametrize(("rights", "warned"), [(RULES, True), (ALL, False)])
async def test_traits_that_rules_ask_for_must_be_readable(
    tmp_path: Path,
    rights: dict[str, tuple[str, ...]],
    warned: bool,  # noqa: FBT001
) -> None:
    """Asked for nobody's: what counts is the right."""
    async with ruled(tmp_path, rights, level=LEVEL) as here:
        found = await rows(here.config())
    assert (("teleport.rules.traits", "warning", "mattermost") in brief(found)) is warned


@pytest.mark.parametrize(
    ("roles", "user", "expected"),
    [
        (("dbadmin",), "bob@example.com", {"ops/dba": 'the access monitoring rule "dba".'}),
        (("other",), "bob@example.com", {"ops/dba": 'the access monitoring rule "level".'}),
        (("other",), "alice@example.com", {"ops/access-requests": 'role_to_recipients."*".'}),
        (
            ("other",),
            "",
            {
                "ops/access-requests": 'role_to_recipients."*".',
                "ops/dba": 'the access monitoring rule "level", which cannot be evaluated.',
            },
        ),
    ],
)
async def test_who_is_told(tmp_path: Path, roles: tuple[str, ...], user: str, expected: dict[str, str]) -> None:
    """Each recipient with the rule or the line that names it."""
    async with ruled(tmp_path, dba=DBADMIN, level=LEVEL) as here:
        findings, _ = await check.who_is_told(here.config(), roles, user)
    assert {one.subject: one.message for one in findings} == expected


async def test_who_is_told_without_teleport(tmp_path: Path) -> None:
    """What the configuration says is said, and that rules may say more."""
    async with ruled(tmp_path) as here:
        config = here.config(mattermost__recipients="[]", role_to_recipients__dbadmin='["ops/dba"]')
        here.auth.stop()
        findings, _ = await check.who_is_told(config, ("dbadmin",), "")
        assert [(one.id, one.status) for one in findings] == [("told", "ok"), ("told.rules", "warning")]
        findings, _ = await check.who_is_told(config, ("other",), "")
        assert [(one.id, one.status) for one in findings] == [("told.nobody", "warning"), ("told.rules", "warning")]


async def test_those_whom_only_rules_name_are_looked_up_too(tmp_path: Path) -> None:
    """Nobody is told where a rule names a channel that is not there; those in the configuration have their row."""
    async with ruled(tmp_path) as here:
        there = here.chat.add_channel(here.team, "dba", members=(here.bot,))
        for name, recipients in {"one": ["ops/dba", "ops/access-requests"], "two": ["ops/dba", "ops/nowhere"]}.items():
            here.auth.add_rule(name, DBADMIN, recipients)
        with trio.fail_after(30):
            findings, _ = await check.run(here.config())
        assert not here.chat.posts(there)
    found = {(one.id, one.subject): one for one in findings if one.id.startswith("recipient")}
    assert list(found) == [
        ("recipient", "ops/access-requests"),
        ("recipient.by_rule", "ops/dba"),
        ("recipient.by_rule.not_found", "ops/nowhere"),
    ]
    assert [one.status for one in found.values()] == ["ok", "ok", "failure"]
    assert found["recipient.by_rule", "ops/dba"].message.endswith("Named by the access monitoring rule one, two.")
