"""The log: one line for an event, on standard error; JSON, or text on a terminal.

Rule: an event is a constant in dotted past tense ("watcher.ready"), its facts are `extra`. Never a secret; free text of
people only at DEBUG.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

Format = Literal["auto", "text", "json"]

# The official plugin's words that `logging` does not know.
_LEVELS = {"TRACE": "DEBUG", "ERR": "ERROR"}
# They log addresses at INFO and frames at DEBUG, and a frame holds what people wrote.
_CHATTY = ("httpx", "httpcore", "trio-websocket", "trio_websocket", "hpack")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# Everything that moves a cursor, ends a line or turns text around.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def setup(
    severity: str = "INFO",
    form: Format = "auto",
    *,
    expected: tuple[type[BaseException], ...] = (),
    stream: TextIO | None = None,
) -> None:
    """Send the process's log to `stream` (standard error). An exception in `expected` is told without a traceback."""
    stream = stream or sys.stderr
    text = form == "text" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter(expected) if text else JsonFormatter(expected))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS.get(severity.upper(), severity.upper()))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Formatter(logging.Formatter):
    def __init__(self, expected: tuple[type[BaseException], ...] = ()) -> None:
        super().__init__()
        self._expected = expected

    def _facts(self, record: logging.LogRecord) -> dict[str, Any]:
        facts = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if not record.name.startswith("sidecar"):
            facts["logger"] = record.name
        exc = record.exc_info[1] if record.exc_info else None
        if exc is not None:
            facts["error"] = f"{type(exc).__name__}: {exc}"
        return facts

    def _traceback(self, record: logging.LogRecord) -> str:
        exc = record.exc_info[1] if record.exc_info else None
        if exc is None or isinstance(exc, self._expected):
            return ""
        return "".join(traceback.format_exception(exc))


class JsonFormatter(_Formatter):
    """`{"ts","level","event", facts…, "traceback"}`; `ts` is RFC 3339 in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self._facts(record),
        }
        if trace := self._traceback(record):
            line["traceback"] = trace
        try:
            return msgspec.json.encode(line, enc_hook=str).decode()
        except (TypeError, ValueError):  # a key that is no text, half a surrogate pair: ASCII can say everything
            return json.dumps({str(key): value for key, value in line.items()}, default=str)


class TextFormatter(_Formatter):
    """`ts LEVEL event key=value …`; nothing in it can move the cursor or pretend to be another line."""

    def format(self, record: logging.LogRecord) -> str:
        facts = [f"{key}={_word(value)}" for key, value in self._facts(record).items()]
        line = _escape(" ".join([_timestamp(record), f"{record.levelname:7}", record.getMessage(), *facts]))
        trace = self._traceback(record).splitlines()
        return "\n    ".join([line, *map(_escape, trace)])


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(value: object) -> str:
    """Quote what would not read as one word."""
    text = str(value)
    return text if text and not re.search(r'[\s"=]', text) else json.dumps(text, ensure_ascii=False)


def _escape(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
