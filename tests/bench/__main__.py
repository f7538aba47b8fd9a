"""`python -m tests.bench`: the numbers of the design, as a table and as JSON. Nothing here fails for being slow."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import trio

# Before the import of grpcio, which reads it once.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from tests.bench.rows import ROWS
from tests.bench.stage import Measure, Options

ROW_SECONDS = 1200


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rtt", default="1,20,50", help="injected round trips, in milliseconds")
    parser.add_argument("--quick", action="store_true", help="shorten the rows that wait for minutes")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all measures there too")
    parser.add_argument("--official", type=Path, metavar="PATH", help="the official plugin's binary, side by side")
    given = parser.parse_args(arguments)
    options = Options(tuple(float(one) for one in given.rtt.split(",")), given.quick, given.official)
    measures = trio.run(partial(_run, given.rows.split(","), options))
    print()
    print("\n".join(table(measures)))
    if given.json is not None:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode({"machine": _machine(), "measures": measures})))


async def _run(rows: list[str], options: Options) -> list[Measure]:
    found = []
    for name in rows:
        with trio.move_on_after(ROW_SECONDS) as scope:
            async for measure in ROWS[name](options):
                print(_words(measure), flush=True)
                found.append(measure)
        if scope.cancelled_caught:
            print(f"{name}: given up after {ROW_SECONDS} s", flush=True)
    return found


def table(measures: Sequence[Measure]) -> list[str]:
    """Markdown: a line for each measure, a column for each distance, what is asked beside it."""
    subjects = list(dict.fromkeys(one.subject for one in measures))
    columns = sorted({(subjects.index(one.subject), one.rtt_ms) for one in measures if one.rtt_ms})
    if not columns:
        columns = [(0, 0.0)]
    heads = [f"{rtt:g} ms{'' if index == 0 else f', {subjects[index]}'}" for index, rtt in columns]
    lines = [f"| What | {' | '.join(heads)} | Asked |", f"|---|{'---|' * len(columns)}---|"]
    grouped: dict[tuple[str, str], list[Measure]] = {}
    for one in measures:
        grouped.setdefault((one.row, one.what), []).append(one)
    for (row, what), some in grouped.items():
        cells = {}
        for one in some:
            # What has no distance stands in its subject's first column.
            first = next(column for column in columns if column[0] == subjects.index(one.subject))
            cells[(first[0], one.rtt_ms) if one.rtt_ms else first] = _value(one)
        asked = next((one.target for one in reversed(some) if one.target), "")
        lines.append(f"| {row}: {what} | {' | '.join(cells.get(column, '') for column in columns)} | {asked} |")
    return lines


def _value(one: Measure) -> str:
    digits = 0 if one.value == int(one.value) or one.value >= 100 else 2 if one.value < 10 else 1
    mark = {True: "", False: " (!)", None: ""}[one.met]
    return f"{one.value:.{digits}f} {one.unit}".rstrip() + mark


def _words(one: Measure) -> str:
    where = f" at {one.rtt_ms:g} ms" if one.rtt_ms else ""
    asked = f" (asked: {one.target})" if one.target else ""
    return f"{one.subject}: {one.row}, {one.what}{where}: {_value(one)}{asked}"


def _machine() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_at_end": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
