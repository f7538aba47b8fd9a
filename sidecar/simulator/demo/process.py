"""The sidecar of the demo: a real process with a real configuration file, and what it logs.

Rule: it never outlives the demo. An end that nobody asked for spoils the story.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

_PACKAGE = Path(__file__).parents[2]
_KEPT_LINES = 200
_STOP_SECONDS = 15.0
_CUT_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
# What would lead the sidecar elsewhere: settings of another one, and proxies on the way to the loopback.
_FOREIGN = ("SIDECAR_", "TELEPORT_PLUGIN_", "GRPC_")


class StoryWentWrongError(Exception):
    """The demo saw something else than the story tells; the text is a sentence for the reader."""


class Sidecar:
    """The process, started and stopped as the story wants; use `open_sidecar`."""

    def __init__(self, nursery: trio.Nursery, config: Path, settings: Mapping[str, str]) -> None:
        flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        self._command = [sys.executable, "-m", _PACKAGE.name, "run", "--config", str(config), *flags]
        self._nursery = nursery
        self._process: trio.Process | None = None
        self._logged = trio.Event()
        self.address = ""  # where its endpoints are
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.events: deque[dict[str, Any]] = deque(maxlen=_KEPT_LINES)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        """Start it; its log of before is forgotten."""
        self.events.clear()
        self._process = await trio.lowlevel.open_process(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # The very package that tells the story, wherever the reader stands; Ctrl-C is for the story alone.
            cwd=_PACKAGE.parent,
            env=_environment(os.environ),
            process_group=0,
        )
        self._nursery.start_soon(self._live, self._process)

    async def kill(self) -> None:
        """Kill it as a power failure would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()

    async def stop(self) -> int:
        """Ask it to stop, as an orchestrator does, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.terminate()
        return await process.wait()

    async def logged(self, predicate: Callable[[Collection[dict[str, Any]]], bool]) -> None:
        """Return when its log, as parsed lines since its start, satisfies `predicate`."""
        while not predicate(self.events):
            self._logged = trio.Event()
            await self._logged.wait()

    async def get(self, path: str) -> tuple[int, str]:
        """Ask one of its endpoints; returns status and body."""
        return await trio.to_thread.run_sync(_get, self.address, path, abandon_on_cancel=True)

    async def _live(self, process: trio.Process) -> None:
        try:
            await self._read(process)
            code = await process.wait()
        finally:
            with trio.move_on_after(2 * _CUT_SECONDS, shield=True):
                await _end(process)
        if process is self._process:
            raise StoryWentWrongError(f"The sidecar ended by itself in the middle of the story, {_how(code)}.")

    async def _read(self, process: trio.Process) -> None:
        rest = b""
        assert process.stderr is not None
        async for data in process.stderr:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"))
            self._logged.set()

    def _take(self, line: str) -> None:
        self.lines.append(line)
        try:
            event = json.loads(line)
        except ValueError:
            return
        if isinstance(event, dict):
            self.events.append(event)
            if event.get("event") == "endpoints.listening":
                self.address = str(event["address"])


@asynccontextmanager
async def open_sidecar(config: Path, settings: Mapping[str, str]) -> AsyncIterator[Sidecar]:
    """Give a sidecar that is not started yet; whatever happens, it has ended afterwards."""
    async with trio.open_nursery() as nursery:
        sidecar = Sidecar(nursery, config, settings)
        yield sidecar
        with trio.move_on_after(_STOP_SECONDS):
            await sidecar.stop()
        nursery.cancel_scope.cancel()


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in inherited.items()
        if not name.startswith(_FOREIGN) and not name.lower().endswith("_proxy")
    }


async def _end(process: trio.Process) -> None:
    """End a process for certain: first as one asks, then as one insists."""
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(_CUT_SECONDS):
            await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()
    if process.stderr is not None:
        await process.stderr.aclose()


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"with exit code {code}"


def _get(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()
