"""A program under measurement: a real process, what it logs, and what the kernel says that it costs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

ROOT = Path(__file__).parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
_FOREIGN = ("SIDECAR_", "TELEPORT_PLUGIN_", "PYTHONDONTWRITEBYTECODE")


class ProgramEnded(Exception):
    """The program under measurement ended by itself; the text says how."""


class Child:
    """The process. `lines` are the log lines that were JSON, each with the wall-clock second of its arrival.

    What the kernel says of it is NaN once it is gone: a measurement goes on where its program does not.
    """

    def __init__(self, process: trio.Process, began: float) -> None:
        self.process = process
        # Unix seconds directly before exec.
        self.began = began
        self.lines: list[tuple[float, dict[str, Any]]] = []
        self.text: list[str] = []
        self.over = False
        self._asked = False
        self._news = trio.Event()

    @property
    def fate(self) -> str:
        """How it ended by itself; "" while it runs, or when it was told to end."""
        code = self.process.returncode
        if code is None or self._asked:
            return ""
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process ended, {how}"

    @property
    def pid(self) -> int:
        return self.process.pid

    async def logged(self, event: str, count: int = 1, **facts: object) -> float:
        """Wait for so many lines of this event; returns when the last of them arrived (Unix seconds)."""
        while len(found := self._of(event, facts)) < count:
            if self.over:
                raise ProgramEnded(self.fate)
            self._news = trio.Event()
            await self._news.wait()
        return found[count - 1]

    async def ready(self) -> None:
        """Wait until both links work."""
        await self.logged("link.ready", link="teleport")
        await self.logged("link.ready", link="mattermost")

    def _of(self, event: str, facts: dict[str, object]) -> list[float]:
        return [
            when
            for when, line in self.lines
            if line.get("event") == event and all(line.get(key) == value for key, value in facts.items())
        ]

    def kill(self) -> None:
        """End it as a power failure would."""
        self._asked = True
        self.process.kill()

    async def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self._asked = True
        self.process.terminate()
        await self.process.wait()

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS if fields else math.nan

    def status(self, name: str) -> float:
        """One number of /proc/PID/status: VmRSS and VmHWM in KiB, Threads."""
        lines = self._proc("status").splitlines()
        # One that has ended and was not waited for has a status without memory.
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), math.nan)

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.pid}/{name}").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def rss_mb(self) -> float:
        return self.status("VmRSS") / 1024

    def peak_mb(self) -> float:
        return self.status("VmHWM") / 1024

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    async def read(self) -> None:
        """Take what it logs until it ends."""
        rest = b""
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line)
            self._news.set()
        await self.process.wait()
        self.over = True
        self._news.set()

    def _take(self, line: bytes) -> None:
        try:
            parsed = msgspec.json.decode(line)
        except msgspec.DecodeError:
            parsed = None
        if isinstance(parsed, dict):
            self.lines.append((time.time(), parsed))
        else:
            self.text.append(line.decode(errors="replace"))


def sidecar_command(settings: dict[str, str]) -> list[str]:
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "sidecar", "run", "--set", "log.format=json", *flags]


@asynccontextmanager
async def child(command: Iterable[str], on_end: Callable[[], None] = lambda: None) -> AsyncIterator[Child]:
    """A process that is killed at the end if it still runs; `on_end` is called when it has ended before."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    began = time.time()
    process = await trio.lowlevel.open_process(
        list(command), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, env=environment
    )
    assert process.stderr is not None
    async with process.stderr, trio.open_nursery() as nursery:
        one = Child(process, began)

        async def live() -> None:
            await one.read()
            on_end()

        nursery.start_soon(live)
        try:
            yield one
        finally:
            with trio.CancelScope(shield=True):
                if process.poll() is None:
                    one.kill()
                await process.wait()
            nursery.cancel_scope.cancel()
