"""What a check prints is an interface: for eyes, and for scripts."""

from __future__ import annotations

import ast
import json
import re
from string import Formatter

import pytest
import trio
import trio.testing

from sidecar.check.report import Step, failure, ok, passed, sentence, side_by_side, to_json, to_lines, warning
from sidecar.teleport.findings import sayings
from tests.tree import ROOT


def test_a_line_for_each_status_and_the_fix_below() -> None:
    findings = [
        ok("a", "one", "fine."),
        warning("b", "two", "look\n  here.", "first\n  second"),
        failure("c", "three", "broken.", "mend it"),
    ]
    assert [line for finding in findings for line in to_lines(finding)] == [
        "ok      one: fine.",
        "warning two: look here.",
        "        first",
        "          second",
        "FAILURE three: broken.",
        "        mend it",
    ]


def test_nothing_that_a_peer_says_moves_the_cursor() -> None:
    hostile = failure("a", "\x1b[2Jx", "\x1b]0;owned\x07\u202e\r\n\x00", "\x1b[31m\nb\x9b")
    lines = to_lines(hostile)
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_json() -> None:
    document = json.loads(to_json([warning("b", "two", "look\there")]))
    assert document == {
        "ok": True,
        "checks": [{"id": "b", "status": "warning", "subject": "two", "message": "look\there", "fix": ""}],
    }


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ("an end", "An end."),
        ("an end.", "An end."),
        ("did you mean x?", "Did you mean x?"),
        ("", "."),
        ("alice@example.com's key", "alice@example.com's key."),
    ],
)
def test_sentence(words: str, whole: str) -> None:
    assert sentence(words) == whole


def test_a_warning_passes_and_a_failure_does_not() -> None:
    assert passed([ok("a", "", ""), warning("b", "", "")])
    assert not passed([ok("a", "", ""), failure("c", "", "", "")])


async def test_side_by_side_keeps_order_and_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    """One silent peer costs its own line, not the others and not the sum of all waits."""

    async def quick() -> list[object]:
        return [ok("quick", "", "")]

    async def slow() -> list[object]:
        await trio.sleep(4)
        return [ok("slow", "", "")]

    steps = [Step(run, failure("late", "", "", "")) for run in (trio.sleep_forever, slow, quick)]  # type: ignore[arg-type]
    found = await side_by_side(steps, 5)
    assert [one.id for one in found] == ["late", "slow", "quick"]
    assert trio.current_time() == pytest.approx(5)


def pattern(id: ast.expr) -> str:
    """What an id can be, as a regular expression."""
    match id:
        case ast.JoinedStr(values=parts):
            return "".join(map(pattern, parts))
        case ast.IfExp(body=one, orelse=other):
            return f"(?:{pattern(one)}|{pattern(other)})"
        case ast.Constant(value=text):
            return re.escape(str(text))
        case ast.FormattedValue():
            return "[a-z_]+"
    raise AssertionError(f"{ast.unparse(id)}: write the id where it is asked for")


@pytest.mark.parametrize("room", ["check", "teleport"])
def test_each_saying_is_asked_for_with_its_facts(room: str) -> None:
    """What no type says: an id without a saying, a place in it without a fact."""
    known, given = sayings(f"sidecar.{room}"), dict[str, set[str]]()
    trees = (ast.parse(path.read_text()) for path in (ROOT / "sidecar" / room).glob("*.py"))
    for call in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "found":
            asked = [id for id in known if re.fullmatch(pattern(call.args[0]), id)]
            assert asked, ast.unparse(call)
            for id in asked:
                given.setdefault(id, set()).update(word.arg or "**" for word in call.keywords)
    for id, (_, message, fix) in known.items():
        places = {name for _, name, _, _ in Formatter().parse(message + fix) if name}
        assert places <= given[id] | {"subject"} or "**" in given[id], id
