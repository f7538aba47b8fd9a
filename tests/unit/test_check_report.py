"""What a check prints is an interface: for eyes, and for scripts."""

from __future__ import annotations

import json

import pytest
import trio
import trio.testing

from sidecar.check.report import Step, failure, ok, passed, sentence, side_by_side, to_json, to_lines, warning


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
