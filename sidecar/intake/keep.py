"""Keep one link alive: connect, wait, connect again; and know at any time whether it works.

A peer that is away is tried again soon. A peer that says no to who we are is tried slowly, and at once when one of the
files that say who we are has changed.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn

import trio

from sidecar.errors import LinkError, LinkLost, LinkRefused, SidecarError
from sidecar.once import Once
from sidecar.times import USUAL, Backoff, Times

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    from sidecar.errors import LinkName
    from sidecar.metrics import Metrics

log = logging.getLogger(__name__)

# A link does not work while so many of the writes of so long failed by its fault, and more than half.
WRITES_SECONDS = 60
WRITES_LEAST = 5

LinkState = Literal["ready", "lost", "refused"]


class LinkStatus:
    """Whether one link works. `answered` is to be called at each sign of life; the clock is trio's."""

    def __init__(self, name: LinkName, metrics: Metrics, times: Times = USUAL) -> None:
        self.times = times
        self.name: LinkName = name
        self.state: LinkState = "lost"
        self.detail = "not connected yet"
        # How the peer is reached, where there is more than one way.
        self.way = ""
        self.since = time.time()
        self.was_ready = False
        # Whether the last life was long enough for its end to be a new incident.
        self.healthy_spell = False
        self._metrics = metrics
        self._answered = -math.inf
        self._became_ready = math.inf
        # Of the outage that lasts.
        self._once = Once()
        # Of each second with writes: when, how many, and how many of them failed by the link's fault.
        self._writes: deque[tuple[int, int, int]] = deque()
        metrics.link_up.labels(name).set_function(lambda: self.working)

    @property
    def working(self) -> bool:
        """Whether the link is ready, its peer has answered lately, and most writes reach it."""
        fresh = trio.current_time() - self._answered < self.times.stale
        return self.state == "ready" and fresh and not self._writes_fail()

    def body(self) -> dict[str, object]:
        """What /readyz says of this link."""
        state = "lost" if self.state == "ready" and not self.working else self.state
        detail = "writes fail" if self.state == "ready" and self._writes_fail() else self.detail
        body: dict[str, object] = {"state": state, "since": int(self.since), "detail": detail}
        return body | {"way": self.way} if self.way else body

    def wrote(self, *, failed: bool) -> None:
        """A write has ended; `failed` where the link is at fault."""
        second = int(trio.current_time())
        at, writes, failures = self._writes.pop() if self._writes and self._writes[-1][0] == second else (second, 0, 0)
        self._writes.append((at, writes + 1, failures + failed))
        while self._writes[0][0] <= second - WRITES_SECONDS:
            self._writes.popleft()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Count the write that is made meanwhile: a LinkError is the link's fault, every other answer is not."""
        try:
            yield
        except SidecarError as exc:
            self.wrote(failed=isinstance(exc, LinkError))
            raise
        self.wrote(failed=False)

    def _writes_fail(self) -> bool:
        lately = [one for one in self._writes if one[0] > trio.current_time() - WRITES_SECONDS]
        failures = sum(one[2] for one in lately)
        return failures >= WRITES_LEAST and 2 * failures > sum(one[1] for one in lately)

    def answered(self) -> None:
        """The peer has just answered."""
        self._answered = trio.current_time()

    def ready(self) -> None:
        """The link works from now on."""
        heard, self._answered = self._answered, trio.current_time()
        if self.state == "ready":
            return
        self._enter("ready", "")
        # What failed since the last sign of life says nothing of now.
        while self._writes and self._writes[-1][0] >= heard - 1:
            self._writes.pop()
        self._became_ready = trio.current_time()
        self.was_ready = True
        self._once.clear()
        log.info("link.ready", extra={"link": self.name})

    def ended(self) -> None:
        """The link was closed on purpose, by a reload or a stop."""
        self._enter("lost", "not connected yet")

    def failed(self, exc: LinkError) -> None:
        """The link does not work; said once for each incident, and each other refusal as an error of its own."""
        refused = isinstance(exc, LinkRefused)
        self.healthy_spell = self.state == "ready" and trio.current_time() - self._became_ready >= self.times.healthy
        self._metrics.link_reconnects_total.labels(self.name, exc.reason).inc()
        level = logging.DEBUG
        # An unreachable server gives ever new reasons, and none asks for anything; a refusal names what to mend.
        if self._once.news(f"{exc.reason} {exc.detail}" if refused else ""):
            level = logging.ERROR if refused else logging.WARNING
        log.log(
            level,
            "link.refused" if refused else "link.lost",
            extra={"link": self.name, "reason": exc.reason, "detail": exc.detail},
        )
        self._enter("refused" if refused else "lost", exc.detail)

    def stumbled(self) -> None:
        """A bug of ours ended the connection."""
        self._metrics.events_total.labels(self.name, "bug").inc()
        self.failed(LinkLost(self.name, "bug", "a bug of ours ended it: the log line link.bug says where"))

    def _enter(self, state: LinkState, detail: str) -> None:
        if state != self.state:
            self.since = time.time()
        self.state, self.detail = state, detail


class Part:
    """What can be ended and begun again by itself."""

    def __init__(self, run: Callable[[], Awaitable[None]], name: str) -> None:
        self._run, self._name = run, name
        self._scope, self._over = trio.CancelScope(), trio.Event()

    def begin(self, nursery: trio.Nursery) -> None:
        """Start it; `nursery` owns it."""
        self._scope, self._over = trio.CancelScope(), trio.Event()
        nursery.start_soon(self._live, name=self._name)

    async def end(self) -> None:
        """Cancel it, and return when it is over."""
        self._scope.cancel()
        await self._over.wait()

    async def _live(self) -> None:
        with self._scope:
            await self._run()
        self._over.set()


async def keep(
    status: LinkStatus,
    live: Callable[[], Awaitable[None]],
    backoff: Backoff,
    files: Callable[[], Iterable[Path]],
    *,
    fail_fast: bool,
) -> NoReturn:
    """Connect again and again, for ever; `live` is one connection, and ends by raising a LinkError.

    What nobody foresaw in it costs that one connection.

    Raises LinkRefused with `fail_fast` when the peer refuses before the link was ever ready.
    """
    while True:
        seen = signature(files())
        try:
            await live()
        except LinkError as exc:
            status.failed(exc)
            if status.healthy_spell:
                backoff.reset()
            if not isinstance(exc, LinkRefused):
                await trio.sleep(backoff.take())
                continue
            if fail_fast and not status.was_ready:
                raise
            with trio.move_on_after(status.times.refused_retry):
                await changed(files, seen, status.times.file_poll)
        except Exception:
            log.exception("link.bug", extra={"link": status.name})
            status.stumbled()
            if status.healthy_spell:
                backoff.reset()
            await trio.sleep(backoff.take())


@contextmanager
def one_error() -> Iterator[None]:
    """Raise a nursery's group of LinkErrors as its first one; a bug in the group takes precedence."""
    leaf: LinkError | None = None
    try:
        yield
    except* LinkError as group:
        leaf = _leaf(group)
    if leaf is not None:
        raise leaf


async def pinging(ping: Callable[[], Awaitable[object]], every: float, limit: float, status: LinkStatus) -> NoReturn:
    """Ping at intervals. Raises LinkLost ("deaf") when there is none within `limit` seconds."""
    while True:
        await trio.sleep(every)
        with trio.move_on_after(limit) as scope:
            await ping()
            status.answered()
        if scope.cancelled_caught:
            raise LinkLost(status.name, "deaf", f"no answer to a ping within {limit:g} s")


def _leaf(group: BaseExceptionGroup[LinkError]) -> LinkError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LinkError)  # noqa: S101 - `except*` let nothing else in
    return error


async def changed(files: Callable[[], Iterable[Path]], seen: list[object], poll: float) -> list[object]:
    """Wait until the files differ from `seen` and have stopped changing, so that no half-written pair is read."""
    now = signature(files())
    while now == seen:
        await trio.sleep(poll)
        now = signature(files())
    while True:
        await trio.sleep(poll)
        before, now = now, signature(files())
        if before == now:
            return now


def signature(files: Iterable[Path]) -> list[object]:
    """What changes when a file is rewritten or a link to it is swapped."""
    found: list[object] = []
    for path in files:
        try:
            stat = os.stat(path)  # noqa: PTH116 - follows links, as Kubernetes secrets need
        except OSError as exc:
            found.append(exc.errno)
        else:
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return found
