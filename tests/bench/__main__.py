"""`python -m tests.bench`: the numbers of the design, as a table and as JSON. Nothing here fails for being slow."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

# Before the import of grpcio, which reads it once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tests.bench.child import ProgramEnded
from tests.bench.report import BROKEN, README, Report, new_report, read_report, table, words
from tests.bench.rows import ROWS, Row
from tests.bench.stage import Measure, Options, Turn


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rtt", default="1,20,50", help="injected round trips, in milliseconds")
    parser.add_argument("--quick", action="store_true", help="shorten the rows that wait for minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all measures there too")
    parser.add_argument("--official", type=Path, metavar="PATH", help="the official plugin's binary, side by side")
    parser.add_argument("--markdown", type=Path, metavar="JSON", help="measure nothing: the README's table of that run")
    given = parser.parse_args(arguments)
    if given.markdown is not None:
        print("\n".join(table(read_report(given.markdown).measures, README)))
        return
    rows = given.rows.split(",")
    if unknown := [name for name in rows if name not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}")
    options = Options(tuple(float(one) for one in given.rtt.split(",")), given.quick, given.official)
    report = new_report(arguments)
    trio.run(partial(_run, [ROWS[name] for name in rows], options, report, given.json))
    print()
    print("\n".join(table(report.measures)))


async def _run(rows: Sequence[Row], options: Options, report: Report, path: Path | None) -> None:
    began = trio.current_time()
    turns = [(row, turn) for row in rows for turn in row.turns(options)]
    for number, (row, turn) in enumerate(turns, 1):
        where = f" at {turn.rtt_ms:g} ms" if turn.rtt_ms else ""
        print(
            f"[{number}/{len(turns)}, {trio.current_time() - began:.0f} s] {row.name}, {turn.subject}{where}",
            flush=True,
        )
        await play(row, turn, report)
        report.seconds = round(trio.current_time() - began, 1)
        if path is not None:
            report.write(path)


async def play(row: Row, turn: Turn, report: Report) -> None:
    """Take the measures of a turn. One that breaks or takes too long says so as its result; the next are not hurt."""

    def add(measure: Measure) -> None:
        print(f"  {words(measure)}", flush=True)
        report.measures.append(measure)

    note = f"given up after {row.seconds:g} s"
    try:
        with trio.move_on_after(row.seconds):
            async for measure in row.play(turn):
                add(measure)
            note = ""
    except* ProgramEnded as group:
        note = str(_first(group))
    except* TimeoutError as group:
        # The stand-in waited in vain for what the program should have done there.
        traceback.print_exception(group)
        note = "what was waited for did not come"
    if note:
        add(turn.measure(BROKEN, None, note=note))


def _first(group: BaseException) -> BaseException:
    return _first(group.exceptions[0]) if isinstance(group, BaseExceptionGroup) else group


if __name__ == "__main__":
    main()
