"""Who is told: the official plugin's rules, and what is new."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.decisions.routing import MAX_SUGGESTED, Named, Routes, is_email, route
from sidecar.model import AccessRequest

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


def test_a_requester_cannot_have_the_whole_company_told() -> None:
    everybody = tuple(f"user{n}@example.com" for n in range(300))
    assert len(names(Routes(roles={}), suggested_reviewers=everybody)) == MAX_SUGGESTED


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
