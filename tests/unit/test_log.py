"""The log is read by machines and by tired people: one event, one line, nothing forged and nothing leaked."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from sidecar import log
from sidecar.errors import LinkLost, SidecarError

logger = logging.getLogger("sidecar.test")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def stream(clean_log: logging.Logger) -> io.StringIO:
    """Return what a process without a terminal would write."""
    stream = io.StringIO()
    log.setup(expected=(SidecarError,), stream=stream)
    return stream


@pytest.fixture
def terminal(clean_log: logging.Logger) -> io.StringIO:
    """Return what a process on a terminal would write."""
    stream = Terminal()
    log.setup(expected=(SidecarError,), stream=stream)
    return stream


def test_an_event_is_one_json_object(stream: io.StringIO) -> None:
    logger.info("request.posted", extra={"request_id": "0190-aa", "duration_seconds": 0.25})
    line = json.loads(stream.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {"level": "info", "event": "request.posted", "request_id": "0190-aa", "duration_seconds": 0.25}


def test_timestamps_are_rfc_3339_in_utc() -> None:
    record = logging.makeLogRecord({"name": "sidecar", "msg": "a.b", "created": 1_795_366_800.25})
    assert json.loads(log.JsonFormatter().format(record))["ts"] == "2026-11-22T17:00:00.250Z"


def test_an_event_is_one_line_on_a_terminal(terminal: io.StringIO) -> None:
    logger.warning("link.lost", extra={"link": "teleport", "detail": "it went away", "empty": ""})
    line = terminal.getvalue()
    assert line.endswith(' WARNING link.lost link=teleport detail="it went away" empty=""\n')
    assert line.count("\n") == 1


@pytest.mark.parametrize("hostile", ["a\nb", "a\r\x1b[2Kb", "a\x85b", "a\u2028b", "a\u202eb", "a\x00b", "a\ud800b"])
def test_nothing_pretends_to_be_another_line(terminal: io.StringIO, hostile: str) -> None:
    logger.warning(hostile, extra={"fact": hostile, "word": [hostile]})
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text[:-1].isprintable()


@pytest.mark.parametrize("hostile", ["a\nb", "a\x1b[2Kb", "a\ud800b"])
def test_json_stays_one_line(stream: io.StringIO, hostile: str) -> None:
    logger.warning(hostile, extra={"fact": hostile})
    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue())["fact"] == hostile


def test_any_value_can_be_logged(stream: io.StringIO) -> None:
    logger.info("a.b", extra={"fact": object, "table": {3: {1, 2}}})
    assert json.loads(stream.getvalue())["fact"] == "<class 'object'>"


def _fail(exc: Exception) -> None:
    try:
        raise exc
    except type(exc):
        logger.exception("step.failed")


def test_a_bug_has_its_traceback_in_one_field(stream: io.StringIO) -> None:
    _fail(KeyError("x"))
    line = json.loads(stream.getvalue())
    assert line["error"] == "KeyError: 'x'"
    assert "test_log.py" in line["traceback"]


def test_an_expected_error_has_no_traceback(stream: io.StringIO) -> None:
    _fail(LinkLost("teleport", "closed", "the stream ended"))
    line = json.loads(stream.getvalue())
    assert line["error"] == "LinkLost: teleport: the stream ended"
    assert "traceback" not in line


def test_a_traceback_on_a_terminal_is_indented(terminal: io.StringIO) -> None:
    """So that no line of it, whatever the exception says, looks like an event."""
    _fail(ValueError("first\n2026-11-22T17:00:00.000Z INFO review.submitted"))
    first, *rest = terminal.getvalue().splitlines()
    assert "step.failed" in first
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_exception_call_outside_of_a_handler(stream: io.StringIO) -> None:
    logger.error("a.b", exc_info=sys.exc_info())
    assert "traceback" not in json.loads(stream.getvalue())


def test_libraries_are_named_and_kept_quiet(stream: io.StringIO) -> None:
    logging.getLogger("httpx").info("HTTP Request: GET https://chat.example.com")
    logging.getLogger("trio.serve_listeners").error("accept failed: %s", 24)
    assert json.loads(stream.getvalue())["logger"] == "trio.serve_listeners"
    assert json.loads(stream.getvalue())["event"] == "accept failed: 24"


@pytest.mark.parametrize(
    ("severity", "level"), [("info", 20), ("WARN", 30), ("Warning", 30), ("err", 40), ("trace", 10), ("DEBUG", 10)]
)
def test_severities_of_the_official_plugin(clean_log: logging.Logger, severity: str, level: int) -> None:
    log.setup(severity, stream=io.StringIO())
    assert clean_log.level == level


def test_the_format_can_be_chosen(clean_log: logging.Logger) -> None:
    stream, terminal = io.StringIO(), Terminal()
    log.setup(form="text", stream=stream)
    logger.info("a.b")
    log.setup(form="json", stream=terminal)
    logger.info("a.b")
    assert stream.getvalue().endswith("INFO    a.b\n")
    assert json.loads(terminal.getvalue())["event"] == "a.b"
