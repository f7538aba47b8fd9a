"""The benchmark says what happened: a number, or why there is none."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.bench.__main__ import main, play
from tests.bench.child import ProgramEnded, child
from tests.bench.report import README, Line, Report, new_report, read_report, table
from tests.bench.rows import ROWS, Row
from tests.bench.stage import Measure, Options, Turn

OURS = Turn("race", Options(), "sidecar", 20.0)
THEIRS = Turn("race", Options(), "official", 20.0)


@pytest.fixture
def report() -> Report:
    return new_report(["--rows", "race"])


def test_a_table_has_a_column_for_each_program_and_says_what_missed() -> None:
    measures = [
        OURS.measure("time", 2.5, "s", target="<= 2 s", met=False),
        OURS.measure("calls", 2, "REST", target="2", met=True),
        THEIRS.measure("time", None, "s", target="<= 2 s", met=False, note="3 of 16 told; exit code 1"),
        THEIRS.measure("calls", 4, "REST", target="2", met=False, note="exit code 1"),
    ]
    assert table(measures) == [
        "| What | 20 ms | official 20 ms | Asked |",
        "|---|---|---|---|",
        "| race: time | 2.50 s **(missed)** | 3 of 16 told; exit code 1 | <= 2 s: missed |",
        "| race: calls | 2 REST | 4 REST; exit code 1 | 2: met |",
    ]
    [_, _, joined] = table(measures, [Line("both", "race", ("time", "calls")), Line("absent", "burst", ("rate",))])
    assert joined == ("| both | 2.50 s, 2 REST **(missed)** | 4 REST; 3 of 16 told; exit code 1 | <= 2 s, 2: missed |")


def test_what_has_no_distance_stands_in_the_first_column_of_its_program() -> None:
    measures = [OURS.measure("time", 1, "s"), Turn("start", Options()).measure("idle memory", 58, "MB")]
    assert table(measures)[-1] == "| start: idle memory | 58 MB |  |"
    assert table(measures[1:])[0] == "| What | measured | Asked |"


def test_what_was_not_reached_misses_its_target() -> None:
    measure = OURS.measure("time", float("nan"), target="<= 2 s", met=True)
    assert (measure.value, measure.met) == (None, False)


def test_the_lines_of_the_readme_are_of_rows_that_are_measured() -> None:
    assert {line.row for line in README} == set(ROWS)


def test_a_report_is_read_back_for_the_readme(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.measures.append(OURS.measure("until all is told", 0.61, "s", target="<= 2 s"))
    report.write(tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report
    main(["--markdown", str(tmp_path / "report.json")])
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| 16 requests, 2 channels, 2 reviews each | 0.61 s | <= 2 s: met |"
    )


async def test_a_turn_that_takes_too_long_is_given_up(report: Report, autojump_clock: trio.testing.MockClock) -> None:
    async def race(turn: Turn) -> AsyncIterator[Measure]:
        yield turn.measure("time", 1, "s")
        await trio.sleep_forever()

    await play(Row(race, 30), OURS, report)
    assert [(one.value, one.note) for one in report.measures] == [(1, ""), (None, "given up after 30 s")]


async def test_a_turn_whose_program_ends_says_so(report: Report) -> None:
    async def race(turn: Turn) -> AsyncIterator[Measure]:
        async with child([sys.executable, "-c", "raise SystemExit(3)"]) as program:
            await program.ready()
        yield turn.measure("time", 1, "s")

    with trio.fail_after(20):
        await play(Row(race, 30), OURS, report)
    [measure] = report.measures
    assert measure.note == "its process ended, exit code 3"


async def test_what_the_kernel_says_of_a_program_that_is_gone_is_no_number() -> None:
    with trio.fail_after(20):
        async with child([sys.executable, "-c", "raise SystemExit(3)"]) as program:
            with pytest.raises(ProgramEnded):
                await program.ready()
            assert str([program.peak_mb(), program.cpu_seconds()]) == "[nan, nan]"


async def test_a_program_that_is_told_to_end_has_not_ended_by_itself() -> None:
    with trio.fail_after(20):
        async with child([sys.executable, "-c", "import signal; signal.pause()"]) as program:
            await program.stop()
            assert program.process.returncode is not None
            assert program.fate == ""
