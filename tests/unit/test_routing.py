"""Who is told: the official plugin's rules, and what is new."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.routing import (
    Named,
    Routes,
    RuleBook,
    Ruled,
    explain,
    is_email,
    read_rule,
    route,
)
from sidecar.model import AccessRequest, MonitoringRule

ROLES = {"*": ("ops/all",), "dbadmin": ("dba/requests", "@ivan"), "quiet": ()}


def names(routes: Routes, **request: object) -> list[str]:
    found = route(AccessRequest(id="x", user="bob", state="PENDING", **request), routes)  # type: ignore[arg-type]
    return [named.name for named in found]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("dbadmin",), ["dba/requests", "@ivan"]),
        (("other",), ["ops/all"]),
        (("dbadmin", "other"), ["dba/requests", "@ivan", "ops/all"]),
        (("other", "another"), ["ops/all"]),
        (("quiet",), []),
        ((), ["ops/all"]),
    ],
)
def test_roles_decide_and_the_star_is_for_roles_without_an_entry(roles: tuple[str, ...], expected: list[str]) -> None:
    assert names(Routes(roles=ROLES), roles=roles) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("off", []),
        ("mapped", ["@alice"]),
        ("email", ["@alice", "ivan@example.com"]),
    ],
)
def test_suggested_reviewers_are_told_by_map_or_by_email(mode: str, expected: list[str]) -> None:
    told = {"roles": {}, "reviewers": {"alice@example.com": "@alice"}, "notify_requester": False}
    routes = msgspec.convert({**told, "suggested_reviewers": mode}, Routes)
    suggested = ("alice@example.com", "ivan@example.com", "no mail", "alice@example.com")
    assert names(routes, suggested_reviewers=suggested) == expected


def test_who_was_suggested_only_is_told_apart() -> None:
    """There is a limit to them alone, and it counts those who exist."""
    routes = Routes(roles={"*": ("ivan@example.com",)}, notify_requester=False)
    request = AccessRequest(
        id="x", user="bob", state="PENDING", suggested_reviewers=("alice@example.com", "ivan@example.com")
    )
    assert route(request, routes) == (Named("ivan@example.com"), Named("alice@example.com", suggested=True))


@pytest.mark.parametrize(
    ("user", "mapped", "expected"),
    [
        ("bob@example.com", {}, (Named("bob@example.com", "requester"),)),
        ("bob", {"bob": "@bob.b"}, (Named("@bob.b", "requester"),)),
        ("bob", {}, ()),
        ("bob@example.com", {"bob@example.com": "@bob"}, (Named("@bob", "requester"),)),
    ],
)
def test_the_requester_is_told_by_map_or_by_email(
    user: str, mapped: dict[str, str], expected: tuple[Named, ...]
) -> None:
    request = AccessRequest(id="x", user=user, state="PENDING")
    assert route(request, Routes(roles={}, requesters=mapped)) == expected
    assert route(request, Routes(roles={}, requesters=mapped, notify_requester=False)) == ()


def test_a_requester_who_is_a_recipient_gets_the_reviewers_card_once() -> None:
    request = AccessRequest(id="x", user="bob@example.com", state="PENDING")
    assert route(request, Routes(roles={"*": ("bob@example.com",)})) == (Named("bob@example.com", "card"),)


@pytest.mark.parametrize(
    "text", ["a@b", "@b.c", "a@", "a b@c.d", "a@b.c\n", "a@b.c,d@e.f", "<a@b.c>", "a@b..c", "é@b.c", ""]
)
def test_what_is_no_email_address(text: str) -> None:
    assert not is_email(text)


@pytest.mark.parametrize("text", ["a@b.c", "alice.o'neil+x@mail.example.com"])
def test_what_is_an_email_address(text: str) -> None:
    assert is_email(text)


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("prod-db",), ["prod/db"]),
        (("prod-web",), ["prod/all"]),
        (("prod-web-eu",), ["prod/eu"]),
        (("prod-",), ["prod/all"]),
        (("prod",), ["ops/all"]),
        (("xprod-db",), ["ops/all"]),
        (("PROD-web",), ["ops/all"]),
        (("prod-\nweb",), ["prod/all"]),
        (("prod[1]",), ["odd/one"]),
        (("prod1",), ["ops/all"]),
        (("a-b", "prod-db"), ["ab/two", "prod/db"]),
        (("prod-web", "prod-mail", "other"), ["prod/all", "ops/all"]),
    ],
)
def test_a_role_takes_its_own_entry_then_the_longest_pattern_then_the_star(
    roles: tuple[str, ...], expected: list[str]
) -> None:
    table: dict[str, tuple[str, ...]] = {
        "prod-*": ("prod/all",),
        "prod-*-eu": ("prod/eu",),
        "prod-db": ("prod/db",),
        "prod[1]*": ("odd/one",),
        "*-b": ("ab/two",),
        "a-*": ("ab/one",),
        "*": ("ops/all",),
    }
    assert names(Routes(roles=table), roles=roles) == expected
    assert names(Routes(roles={}), roles=roles) == []


def rule(name: str, condition: str, *recipients: str, **more: Any) -> MonitoringRule:
    ours = {"plugin": "mattermost", "subjects": ("access_request",)} | more
    return MonitoringRule(name=name, condition=condition, recipients=recipients, **ours)


def ruled(rules: Iterable[MonitoringRule], plugin: str) -> tuple[Ruled, ...]:
    read = (read_rule(one, plugin) for one in sorted(rules, key=lambda one: one.name))
    return tuple(one for one in read if one is not None)


DBA = rule("dba", 'access_request.spec.roles.contains("dbadmin")', "rules/dba", "@ivan")
LEVEL = rule("level", 'contains_any(user.traits["level"], set("L1"))', "rules/level")
BROKEN = rule("broken", 'regexp.match(access_request.spec.roles, "^x")', "rules/broken")
SCHEDULED = rule("scheduled", "true", "rules/night", unreadable=True)
STATIC = Routes(roles={"*": ("ops/all",)}, notify_requester=False)


@pytest.mark.parametrize(
    ("rules", "replace", "traits", "expected"),
    [
        ((), True, None, ["ops/all", "alice@example.com"]),
        ((DBA,), True, None, ["rules/dba", "@ivan"]),
        ((DBA,), False, None, ["ops/all", "alice@example.com", "rules/dba", "@ivan"]),
        ((rule("other", 'access_request.spec.roles.contains("x")', "rules/x"),), True, None,
         ["ops/all", "alice@example.com"]),
        ((rule("nobody", "true"),), True, None, ["ops/all", "alice@example.com"]),
        ((DBA, rule("all", "true", "rules/all", "@ivan")), True, None, ["rules/all", "@ivan", "rules/dba"]),
        ((rule("theirs", "true", "x/y", plugin="slack"),), True, None, ["ops/all", "alice@example.com"]),
        ((rule("lists", "true", "x/y", subjects=("access_list",)),), True, None, ["ops/all", "alice@example.com"]),
        ((DBA, LEVEL), True, {"level": ("L1",)}, ["rules/dba", "@ivan", "rules/level"]),
        ((DBA, LEVEL), True, {}, ["rules/dba", "@ivan"]),
        ((DBA, LEVEL), True, None, ["ops/all", "alice@example.com", "rules/dba", "@ivan", "rules/level"]),
        ((DBA, BROKEN), True, {}, ["ops/all", "alice@example.com", "rules/broken", "rules/dba", "@ivan"]),
        ((SCHEDULED,), True, {}, ["ops/all", "alice@example.com", "rules/night"]),
    ],
)  # fmt: skip
def test_rules_that_hold_replace_the_others_and_what_cannot_be_evaluated_removes_nobody(
    rules: tuple[MonitoringRule, ...],
    replace: bool,  # noqa: FBT001
    traits: dict[str, tuple[str, ...]] | None,
    expected: list[str],
) -> None:
    request = AccessRequest(
        id="x", user="bob", state="PENDING", roles=("dbadmin",), suggested_reviewers=("alice@example.com",)
    )
    book = RuleBook(ruled(rules, "mattermost"), replace)
    assert [named.name for named in route(request, STATIC, book, traits)] == expected
    assert list(explain(request, STATIC, book, traits)) == expected


def test_the_requester_is_told_whatever_rules_say() -> None:
    request = AccessRequest(id="x", user="bob@example.com", state="PENDING")
    book = RuleBook(ruled((rule("all", "true", "rules/all"),), "mattermost"), replace=True)
    told = route(request, Routes(roles={"*": ("ops/all",)}), book)
    assert told == (Named("rules/all"), Named("bob@example.com", "requester"))


def test_each_recipient_is_explained() -> None:
    request = AccessRequest(
        id="x",
        user="bob@example.com",
        state="PENDING",
        roles=("prod-db", "dbadmin"),
        suggested_reviewers=("alice@example.com",),
    )
    routes = Routes(roles={"*": ("ops/all",), "prod-*": ("ops/prod",)})
    told = explain(request, routes, RuleBook(ruled((BROKEN, DBA), "mattermost"), replace=True))
    assert {name: why for name, (_, why) in told.items()} == {
        "ops/prod": 'role_to_recipients."prod-*"',
        "ops/all": 'role_to_recipients."*"',
        "alice@example.com": "a suggested reviewer",
        "rules/broken": 'the access monitoring rule "broken", which cannot be evaluated',
        "rules/dba": 'the access monitoring rule "dba"',
        "@ivan": 'the access monitoring rule "dba"',
        "bob@example.com": "the requester",
    }


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (BROKEN, "at character 1: the function regexp.match is not known"),
        (SCHEDULED, "it has a field that this sidecar does not know"),
        (rule("empty", "", "x/y"), "at character 1"),
        (DBA, ""),
    ],
)
def test_why_a_rule_cannot_be_evaluated_is_said(one: MonitoringRule, words: str) -> None:
    (read,) = ruled((one,), "mattermost")
    assert words in read.problem
    assert bool(words) == (read.condition is None)


@given(st.lists(st.sampled_from([DBA, LEVEL, BROKEN, SCHEDULED]), unique=True), st.booleans(), st.booleans())
def test_a_rule_that_cannot_be_evaluated_never_makes_fewer_people_told(
    rules: list[MonitoringRule],
    replace: bool,  # noqa: FBT001
    known: bool,  # noqa: FBT001
) -> None:
    request = AccessRequest(id="x", user="bob", state="PENDING", roles=("dbadmin",))
    traits: dict[str, tuple[str, ...]] | None = {} if known else None
    told = set(route(request, STATIC, RuleBook(ruled(rules, "mattermost"), replace), traits))
    readable = [one for one in rules if one not in {BROKEN, SCHEDULED}]
    without = set(route(request, STATIC, RuleBook(ruled(readable, "mattermost"), replace), traits))
    assert told >= without
