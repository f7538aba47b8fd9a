"""The log is read by machines and by tired people: one event, one line, nothing forged and nothing leaked."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

import pytest

from sidecar import log
from sidecar.errors import LinkLost, SidecarError

logger = logging.getLogger("sidecar.test")


class Stream(TextIOWrapper):
    """A file in the place of standard error; `terminal` is what it says of itself."""

    def __init__(self, path: Path, *, terminal: bool = False) -> None:
        super().__init__(path.open("wb"), encoding="utf-8")
        self._path = path
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def getvalue(self) -> str:
        """Return what was written, once all of it was."""
        for handler in logging.getLogger().handlers:
            handler.flush()
        return self._path.read_text()


@pytest.fixture
def files(tmp_path: Path, clean_log: logging.Logger) -> Iterator[tuple[Stream, Stream]]:
    """Return two streams, the second of which is a terminal."""
    with Stream(tmp_path / "file") as plain, Stream(tmp_path / "terminal", terminal=True) as terminal:
        yield plain, terminal
        for handler in clean_log.handlers:
            handler.flush()


@pytest.fixture
def stream(files: tuple[Stream, Stream]) -> Stream:
    """Return what a process without a terminal would write."""
    log.setup(expected=(SidecarError,), stream=files[0])
    return files[0]


@pytest.fixture
def terminal(files: tuple[Stream, Stream]) -> Stream:
    """Return what a process on a terminal would write."""
    log.setup(expected=(SidecarError,), stream=files[1])
    return files[1]


def test_an_event_is_one_json_object(stream: Stream) -> None:
    logger.info("request.posted", extra={"request_id": "0190-aa", "duration_seconds": 0.25})
    line = json.loads(stream.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {"level": "info", "event": "request.posted", "request_id": "0190-aa", "duration_seconds": 0.25}


def test_timestamps_are_rfc_3339_in_utc() -> None:
    record = logging.makeLogRecord({"name": "sidecar", "msg": "a.b", "created": 1_795_366_800.25})
    assert json.loads(log.JsonFormatter().format(record))["ts"] == "2026-11-22T17:00:00.250Z"


def test_an_event_is_one_line_on_a_terminal(terminal: Stream) -> None:
    logger.warning("link.lost", extra={"link": "teleport", "detail": "it went away", "empty": ""})
    line = terminal.getvalue()
    assert line.endswith(' WARNING link.lost link=teleport detail="it went away" empty=""\n')
    assert line.count("\n") == 1


@pytest.mark.parametrize("hostile", ["a\nb", "a\r\x1b[2Kb", "a\x85b", "a\u2028b", "a\u202eb", "a\x00b", "a\ud800b"])
def test_nothing_pretends_to_be_another_line(terminal: Stream, hostile: str) -> None:
    logger.warning(hostile, extra={"fact": hostile, "word": [hostile]})
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text[:-1].isprintable()


@pytest.mark.parametrize("hostile", ["a\nb", "a\x1b[2Kb", "a\ud800b"])
def test_json_stays_one_line(stream: Stream, hostile: str) -> None:
    logger.warning(hostile, extra={"fact": hostile})
    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue())["fact"] == hostile


def test_any_value_can_be_logged(stream: Stream) -> None:
    logger.info("a.b", extra={"fact": object, "table": {3: {1, 2}}})
    assert json.loads(stream.getvalue())["fact"] == "<class 'object'>"


def _fail(exc: Exception) -> None:
    try:
        raise exc
    except type(exc):
        logger.exception("step.failed")


def test_a_bug_has_its_traceback_in_one_field(stream: Stream) -> None:
    _fail(KeyError("x"))
    line = json.loads(stream.getvalue())
    assert line["error"] == "KeyError: 'x'"
    assert "test_log.py" in line["traceback"]


def test_an_expected_error_has_no_traceback(stream: Stream) -> None:
    _fail(LinkLost("teleport", "closed", "the stream ended"))
    line = json.loads(stream.getvalue())
    assert line["error"] == "LinkLost: teleport: the stream ended"
    assert "traceback" not in line


def test_a_traceback_on_a_terminal_is_indented(terminal: Stream) -> None:
    """So that no line of it, whatever the exception says, looks like an event."""
    _fail(ValueError("first\n2026-11-22T17:00:00.000Z INFO review.submitted"))
    first, *rest = terminal.getvalue().splitlines()
    assert "step.failed" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_exception_call_outside_of_a_handler(stream: Stream) -> None:
    logger.error("a.b", exc_info=sys.exc_info())
    assert "traceback" not in json.loads(stream.getvalue())


def test_libraries_are_named_and_kept_quiet(stream: Stream) -> None:
    logging.getLogger("httpx").info("HTTP Request: GET https://chat.example.com")
    logging.getLogger("trio.serve_listeners").error("accept failed: %s", 24)
    assert json.loads(stream.getvalue())["logger"] == "trio.serve_listeners"
    assert json.loads(stream.getvalue())["event"] == "accept failed: 24"


@pytest.mark.parametrize(
    ("severity", "level"), [("info", 20), ("WARN", 30), ("Warning", 30), ("err", 40), ("trace", 10), ("DEBUG", 10)]
)
def test_severities_of_the_official_plugin(
    files: tuple[Stream, Stream], clean_log: logging.Logger, severity: str, level: int
) -> None:
    log.setup(severity, stream=files[0])
    assert clean_log.level == level


def test_the_format_can_be_chosen(files: tuple[Stream, Stream]) -> None:
    stream, terminal = files
    log.setup(form="text", stream=stream)
    logger.info("a.b")
    assert stream.getvalue().endswith("INFO    a.b\n")
    log.setup(form="json", stream=terminal)
    logger.info("a.b")
    assert json.loads(terminal.getvalue())["event"] == "a.b"


class Pipe:
    """A pipe whose reader reads when it is told to, in the place of standard error."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.stream = os.fdopen(writing, "w")
        log.setup("DEBUG", form="json", stream=self.stream)

    def read(self) -> list[dict[str, object]]:
        """Return every line up to and with the one that tells of lost ones."""
        with os.fdopen(self.reading) as reader:
            lines = []
            for line in reader:
                lines.append(json.loads(line))
                if lines[-1]["event"] == "log.lost":
                    break
            return lines

    def fill(self) -> int:
        """Write more than the buffer takes, and return how many lines that were."""
        count = 2 * log.BUFFER_BYTES // 1000
        for number in range(count):
            logger.info("a.b", extra={"number": number, "padding": "x" * 1000})
        return count


@pytest.fixture
def pipe(clean_log: logging.Logger) -> Iterator[Pipe]:
    """Return a pipe that nobody reads yet."""
    pipe = Pipe()
    yield pipe
    logging.getLogger().handlers[0].close()
    pipe.stream.close()


def test_a_reader_that_does_not_read_costs_lines_and_no_time(pipe: Pipe) -> None:
    """Lines are whole and in order; what was lost is among the newest, counted, and told when it reads again."""
    count = pipe.fill()
    lost = log.take_lost()
    assert 0 < lost < count
    assert log.take_lost() == 0
    *lines, told = pipe.read()
    # Meanwhile a little fits that came after what was lost.
    numbers = [int(str(line["number"])) for line in lines]
    assert len(numbers) == count - lost
    assert numbers == sorted(set(numbers))
    assert (told["level"], told["lines"]) == ("warning", lost)


def test_a_descriptor_that_somebody_else_made_not_block(pipe: Pipe) -> None:
    writing = pipe.stream.fileno()
    fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | os.O_NONBLOCK)
    count = pipe.fill()
    assert len(pipe.read()) == count - log.take_lost() + 1


def test_where_no_reader_is_left_lines_are_lost_and_nothing_else(pipe: Pipe) -> None:
    os.close(pipe.reading)
    logger.info("a.b")
    logger.info("c.d")
    logging.getLogger().handlers[0].flush()
    assert log.take_lost() == 2


def test_a_reload_keeps_the_thread(files: tuple[Stream, Stream]) -> None:
    before = threading.active_count()
    for form in ("text", "json", "text") * 10:
        log.setup(form=form, stream=files[0])
    assert threading.active_count() == before + 1


_ENDS = """
import logging, sys, threading
from sidecar import log
log.setup()
for number in range(5000):
    logging.getLogger("sidecar.test").info("a.b", extra={"number": number, "padding": "x" * 1000})
print("done", flush=True)
sys.stdin.read()
"""


def test_a_process_ends_in_good_order_though_nobody_reads() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0
