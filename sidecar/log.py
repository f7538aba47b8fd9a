"""The log: one line for an event, on standard error; JSON, or text on a terminal.

Rule: an event is a constant in dotted past tense ("watcher.ready"), its facts are `extra`. Never a secret; free text of
people only at DEBUG. A reader that does not read costs lines, which are counted, and never time.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import threading
import traceback
from collections import deque
from datetime import UTC, datetime
from itertools import accumulate, takewhile
from typing import Any, Literal, TextIO

import msgspec

log = logging.getLogger(__name__)

Format = Literal["auto", "text", "json"]

# The official plugin's words that `logging` does not know.
_LEVELS = {"TRACE": "DEBUG", "ERR": "ERROR"}
# They log addresses at INFO and frames at DEBUG, and a frame holds what people wrote.
_CHATTY = ("httpx", "httpcore", "trio-websocket", "trio_websocket", "hpack")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# What waits for a reader: some 5,000 lines.
BUFFER_BYTES = 1 << 20
# Up to here a write to a pipe is not mixed with another process's (PIPE_BUF).
_AT_ONCE_BYTES = 4096
# How long the end of the process waits for a reader.
_FLUSH_SECONDS = 1.0
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
    root = logging.getLogger()
    # A reload keeps the writer: one that is held up by its reader could not be ended.
    kept = [one for one in root.handlers if isinstance(one, Writer) and one.stream is stream]
    handler = kept[0] if kept else Writer(stream)
    handler.setFormatter(TextFormatter(expected) if text else JsonFormatter(expected))
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS.get(severity.upper(), severity.upper()))
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def take_lost() -> int:
    """Return how many lines were lost since the last call."""
    return sum(one.take_lost() for one in logging.getLogger().handlers if isinstance(one, Writer))


class Writer(logging.Handler):
    """Writes to the stream's descriptor from a thread of its own, past the stream; what exceeds the buffer is lost.

    A thread, because nothing else keeps the loop from waiting: O_NONBLOCK would be set for everybody who shares the
    descriptor, and that it is writable does not say that a line fits. Past the stream, because Python flushes that at
    the end, and aborts where a thread that does not come back holds its lock.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream
        self._descriptor = stream.fileno()
        self._encoding = stream.encoding
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        # Lines lost: in all since `take_lost`, and for want of room since that was last told.
        self._lost = self._untold = 0
        self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line to be written; never waits for whoever reads it."""
        line = f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")
        with self._changed:
            if self._bytes + len(line) > BUFFER_BYTES:
                self._lost += 1
                self._untold += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify_all()

    def take_lost(self) -> int:
        """Return how many lines were lost since the last call."""
        with self._changed:
            lost, self._lost = self._lost, 0
            return lost

    def flush(self) -> None:
        """Wait a moment until everything is written; `logging` does so at the end of the process."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, _FLUSH_SECONDS)

    def close(self) -> None:
        """Let the thread end once everything is written."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        super().close()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    return
                sizes = takewhile(lambda size: size <= _AT_ONCE_BYTES, accumulate(map(len, self._lines)))
                count = max(1, sum(1 for _ in sizes))
                batch = b"".join(self._lines[n] for n in range(count))
            written = self._write(batch)
            with self._changed:
                for _ in range(count):
                    self._bytes -= len(self._lines.popleft())
                self._lost += 0 if written else count
                # Not told where nobody can be told, which would be one more lost line.
                untold = self._untold if written and not self._lines else 0
                self._untold -= untold
                self._changed.notify_all()
            if untold:
                log.warning("log.lost", extra={"lines": untold})

    def _write(self, batch: bytes) -> bool:
        """Write it, however long that takes; False where there is no reader any more."""
        rest = memoryview(batch)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Somebody who shares the descriptor wants it so.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:
                return False
        return True


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
