"""What a run leaves behind: its measures with where and how they were taken, and tables of them in Markdown."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tests.bench import real
from tests.bench.stage import Measure


class Machine(msgspec.Struct, frozen=True):
    """Where a run took place; the load says how quiet it was there."""

    processor: str
    architecture: str
    system: str
    cores: int
    python: str
    load_before: float


class Report(msgspec.Struct):
    """The JSON of a run; written after each turn, so that a run that was stopped has told what it knew."""

    date: str
    command: str
    machine: Machine
    seconds: float = 0.0
    measures: list[Measure] = msgspec.field(default_factory=list)

    def write(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")


class Line(msgspec.Struct, frozen=True):
    """A line of a table: measures of one row, joined by commas."""

    label: str
    row: str
    whats: tuple[str, ...]


# The lines of the README, in its words.
README = (
    Line("announce to 2 channels, p50", "announce", ("k = 2, p50",)),
    Line("calls for it", "announce", ("REST calls a request, k = 2", "gRPC calls a request")),
    Line("announce to 100 people, first time", "broadcast", ("cold",)),
    Line("announce to 100 people, again", "broadcast", ("warm",)),
    Line("16 requests, 2 channels, 2 reviews each", "race", ("until all is told",)),
    Line("calls for them", "race", ("REST calls", "gRPC calls")),
    Line("1,000 requests at once, watch dropped meanwhile", "burst", ("rate", "told", "told twice")),
    Line("1,000 requests made while it was down", "downtime", ("from exec", "told", "told twice")),
    Line(
        "200 requests while Mattermost answers 503 for a minute: told after its return",
        "outage",
        ("503: all told after its return", "503: told", "503: told twice"),
    ),
    Line("the same with 429", "outage", ("429: all told after its return", "429: told", "429: told twice")),
    Line("SIGKILL at any instant, 200 times", "kills", ("lost", "messages twice")),
    Line("two replicas, the working one killed: taken over after", "takeover", ("taken over after",)),
    Line("reaction to submitted review, p50", "reaction", ("p50",)),
    Line("Teleport hangs: noticed after", "deaf", ("Auth Service hangs",)),
    Line("Mattermost hangs: noticed after", "deaf", ("Mattermost hangs",)),
    Line("the websocket is deaf: noticed after", "deaf", ("websocket is deaf",)),
    Line("exec to ready", "start", ("exec to ready",)),
    Line("memory when idle", "start", ("idle memory",)),
    Line("memory after 10,000 ended requests", "ended", ("memory after 10000 requests",)),
    *(
        Line(
            f"{count:,} open requests, {recipients} recipients each, Teleport {major}: {what}",
            "many",
            (f"{count} open, {recipients} recipients, Teleport {major}: {what}",),
        )
        for count, recipients, major in ((10_000, 10, 16), (50_000, 1, 7))
        for what in ("start", "a request", "slowest /healthz")
    ),
    Line(
        "the worst page of legal posts holds the loop for",
        "posts",
        ("5.37, 790 names each", "11, 26,000 lists in one", "one that nests deep"),
    ),
    Line("CPU when idle", "start", ("idle CPU",)),
    Line("SIGTERM to exit", "start", ("SIGTERM to exit",)),
    Line("real servers: request to card", "real", (real.CARD,)),
    Line("real servers: review to changed card", "real", (real.CHANGED,)),
    Line("real servers: CPU for both", "real", (real.CPU,)),
)


def new_report(arguments: Sequence[str]) -> Report:
    machine = Machine(
        processor=_processor(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        load_before=os.getloadavg()[0],
    )
    command = shlex.join(["python", "-m", "tests.bench", *arguments])
    return Report(datetime.now(UTC).isoformat(timespec="seconds"), command, machine)


def read_report(path: Path) -> Report:
    return msgspec.json.decode(path.read_bytes(), type=Report)


def table(measures: Sequence[Measure], lines: Sequence[Line] = ()) -> list[str]:
    """Markdown: a column for each program and distance, then what is asked; without `lines`, one for each measure."""
    if not lines:
        found = dict.fromkeys((one.row, one.what) for one in measures)
        lines = [Line(f"{row}: {what}", row, (what,)) for row, what in found]
    columns = _columns(measures)
    heads = [" ".join(filter(None, (subject, f"{rtt:g} ms" if rtt else ""))) for subject, rtt in columns]
    heads = [head.removeprefix("sidecar").strip() or "measured" for head in heads]
    made = [f"| What | {' | '.join(heads)} | Asked |", f"|---|{'---|' * len(columns)}---|"]
    for line in lines:
        wanted = (*line.whats, BROKEN)
        some = [one for one in measures if one.row == line.row and one.what in wanted]
        some.sort(key=lambda one: wanted.index(one.what))
        if some:
            cells = [_cell([one for one in some if _column(one, columns) == column]) for column in columns]
            made.append(f"| {line.label} | {' | '.join(cells)} | {_asked(some)} |")
    return made


# What stands instead of the measures of a turn that came to no end.
BROKEN = "the whole row"


def _columns(measures: Sequence[Measure]) -> list[tuple[str, float]]:
    subjects = list(dict.fromkeys(one.subject for one in measures))
    found = sorted({(one.subject, one.rtt_ms) for one in measures}, key=lambda one: (subjects.index(one[0]), one[1]))
    far = {subject for subject, rtt in found if rtt}
    # What has no distance stands in its program's first column.
    return [(subject, rtt) for subject, rtt in found if rtt or subject not in far]


def _column(one: Measure, columns: Sequence[tuple[str, float]]) -> tuple[str, float]:
    where = (one.subject, one.rtt_ms)
    return where if where in columns else next(column for column in columns if column[0] == one.subject)


def _cell(some: Sequence[Measure]) -> str:
    values = ", ".join(number(one) for one in some if one.value is not None)
    notes = dict.fromkeys(note for one in some for note in one.note.split("; ") if note)
    mark = " **(missed)**" if any(one.met is False for one in some) else ""
    text = "; ".join(filter(None, (values, *notes))) or ("not reached" if some else "")
    return text + mark


def _asked(some: Sequence[Measure]) -> str:
    targets = ", ".join(dict.fromkeys(one.target for one in some if one.target))
    judged = [one.met for one in some if one.met is not None]
    return f"{targets}: {'met' if all(judged) else 'missed'}" if judged else ""


def number(one: Measure) -> str:
    """The value as people read it."""
    if one.value is None:
        return ""
    digits = 0 if one.value == int(one.value) or one.value >= 100 else 2 if one.value < 10 else 1
    return f"{one.value:.{digits}f} {one.unit}".rstrip()


def words(one: Measure) -> str:
    """A measure as a line of progress."""
    where = f" at {one.rtt_ms:g} ms" if one.rtt_ms else ""
    asked = f" (asked: {one.target}: {'met' if one.met else 'missed'})" if one.met is not None else ""
    value = "; ".join(filter(None, (number(one), one.note))) or "not reached"
    return f"{one.subject}: {one.row}, {one.what}{where}: {value}{asked}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
