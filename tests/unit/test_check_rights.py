"""What is made of Teleport's answers, case by case."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sidecar.check.rights import Answers, judge, role_of, version_of
from sidecar.decisions.record import Record, encode
from sidecar.model import AccessRequest, Ping, PluginData
from sidecar.teleport.x509 import CertificateFacts
from tests.golden import Golden

NOW = 1_800_000_000.0
OURS = CertificateFacts(
    user="access-plugin",
    roles=("access-plugin",),
    cluster="example.com",
    impersonator="",
    issuer_organisation="example.com",
    serial=1,
    not_before=0,
    not_after=NOW * 2,
    dns_names=(),
    ip_addresses=(),
    is_ca=False,
    spki_sha256="",
)
RECORD = Record(seed="s", owner="", at=0, exp=int(NOW) + 60, seen=("PENDING", 0), posts=())


def told(**answers: Any) -> dict[str, tuple[str, str]]:
    """Id -> (status, message)."""
    findings = judge(Answers("auth:3025", OURS, "mattermost", **answers), NOW)
    assert len({one.id for one in findings}) == len(findings)
    return {one.id: (one.status, one.message) for one in findings}


def request(id: str = "r", state: str = "PENDING", created: float | None = NOW) -> AccessRequest:
    return AccessRequest(id=id, user="bob", state=state, created=created)


def records(record: Record, key: str = "tm") -> list[PluginData]:
    return [PluginData("r", {key: encode(record)})]


def denial(verb: str, resource: str) -> str:
    return f'X ended with PERMISSION_DENIED: access denied to perform action "{verb}" on "{resource}"; add …'


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("7.0.0-dev", None),
        ("18.11.2+meta", None),
        ("v17.0.0", None),
        ("6.2.1", "teleport.version.too_old"),
        ("next", "teleport.version.unknown"),
        ("\x1b[2J", "teleport.version.unknown"),
    ],
)
def test_version(version: str, expected: str | None) -> None:
    found = told(info=Ping("example.com", version))
    assert [id for id in found if id.startswith("teleport.version")] == ([expected] if expected else [])
    assert "\x1b" not in str(found)


def test_versions_compare_as_numbers() -> None:
    assert version_of(Ping("", "18.9.0")) < (18, 11) <= version_of(Ping("", "18.11.0-rc.1"))


def test_another_cluster_answers(golden: Golden) -> None:
    golden(told(info=Ping("evil.example.com", "16.0.0"))["teleport.ping.other_cluster"])


@pytest.mark.parametrize("ahead", [0.0, 60.0, -9999.0, None])
def test_what_can_be_known_of_teleport_s_clock(ahead: float | None, golden: Golden) -> None:
    """It tells no time, so being well is no proof, and the line says so."""
    created = None if ahead is None else NOW + ahead
    status, message = told(requests=[request(created=created)])["teleport.clock"]
    assert status == "ok"
    golden(message)


def test_a_request_from_the_future_is_a_clock(golden: Golden) -> None:
    status, message = told(requests=[request(created=NOW), request(created=NOW + 61)])["teleport.clock"]
    assert status == "warning"
    golden(message)


def test_an_empty_list_is_well_and_says_what_it_cannot_know(golden: Golden) -> None:
    golden(told(requests=[], records=[])["teleport.rights.list"])


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "failure"),
        ({"done": True}, "ok"),
        ({"exp": int(NOW) - 1}, "ok"),
    ],
)
def test_only_records_that_are_open_speak_against_an_empty_list(changes: dict[str, Any], status: str) -> None:
    found = records(msgspec.structs.replace(RECORD, **changes))
    assert told(requests=[], records=found)["teleport.rights.list"][0] == status


def test_records_that_nobody_can_read_speak_for_nothing() -> None:
    assert told(requests=[], records=[PluginData("r", {"tm": '{"v":99}'})])["teleport.rights.list"][0] == "ok"


def test_denied_plugin_data_betrays_a_missing_list() -> None:
    """Either right would do for plugin data, so neither is there."""
    found = told(requests=[], denials={"teleport.plugin_data": denial("list", "access_plugin_data")})
    assert found["teleport.rights.list"][0] == "failure"
    assert found["teleport.rights.plugin_data.read"] == (
        "failure",
        'We may not read plugin data: access denied to perform action "list" on "access_plugin_data".',
    )


def test_a_missing_read_of_plugin_data_says_nothing_of_the_list() -> None:
    found = told(requests=[], denials={"teleport.plugin_data": denial("read", "access_plugin_data")})
    assert found["teleport.rights.list"][0] == "ok"


def test_a_list_that_is_denied_outright() -> None:
    """Only an explicit deny rule does that, on newer servers."""
    found = told(denials={"teleport.rights.list": denial("list", "access_request")})
    assert found["teleport.rights.list"][0] == "failure"


@pytest.mark.parametrize(
    ("data", "created", "noticed"),
    [
        ({"messages": "c/p"}, NOW - 60, True),
        ({"user": "bob"}, NOW - 60, True),
        ({"messages": "c/p", "tm": "{}"}, NOW - 60, False),
        ({"messages": "c/p"}, NOW - 90_000, False),
        ({"other": "x"}, NOW - 60, False),
    ],
)
def test_the_official_plugin(data: dict[str, str], created: float, *, noticed: bool) -> None:
    """Its old records are no sign of life, and ours bear its keys too."""
    found = told(requests=[request(created=created)], records=[PluginData("r", data)])
    assert ("teleport.official_plugin" in found) is noticed


def test_records_of_requests_that_are_gone_are_no_sign_of_life() -> None:
    assert "teleport.official_plugin" not in told(requests=[], records=[PluginData("r", {"messages": "c/p"})])


def test_what_did_not_answer_is_not_judged() -> None:
    assert told() == {}


def test_the_rule_names_our_roles() -> None:
    assert (role_of(("a",)), role_of(("a", "b\x1b"))) == ("the role a", "one of our roles (a, b?)")


@pytest.mark.parametrize(
    ("name", "near"),
    [("DBADMIN", "dbadmin"), (" dbadmin ", "dbadmin"), ("prod-db", "Prod-DB"), ("^dbadmin$", "dbadmin")],
)
def test_a_name_that_matches_no_role_has_the_nearest_one(name: str, near: str) -> None:
    asked = AccessRequest(id="r", user="bob", state="PENDING", roles=("dbadmin", "Prod-DB"))
    assert told(requests=[asked], roles=(name,))["role_to_recipients"] == (
        "warning",
        f'No request asks for "{name}", but for {near}; names of roles must match exactly.',
    )


@pytest.mark.parametrize("name", ["dbadmin", "dbadmins", "*", "db*", "Prod-DB"])
def test_a_name_of_its_own_is_well(name: str) -> None:
    asked = AccessRequest(id="r", user="bob", state="PENDING", roles=("dbadmin", "Prod-DB"))
    assert "role_to_recipients" not in told(requests=[asked], roles=(name,))
