"""The process: endpoints that come first and go last, signals, and the work between.

/readyz answers from the first moment on. SIGTERM ends the work in order; after SIGHUP it goes on by the configuration
that is there by then.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from sidecar import endpoints, notify
from sidecar import log as lines
from sidecar.assembly import Assembly
from sidecar.errors import ConfigError, LinkRefused
from sidecar.files import load_pair, trusting
from sidecar.intake.keep import LinkStatus
from sidecar.metrics import Metrics
from sidecar.times import USUAL, Times

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.config import Config

log = logging.getLogger(__name__)

LOOP_CHECK_SECONDS = 1.0
# Of <malloc.h>.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


async def run(
    config: Config,
    *,
    fail_fast: bool = False,
    stop: trio.Event | None = None,
    reload: Callable[[], Config] | None = None,
    tell: Callable[[Config], None] = lambda _config: None,
    manager: Callable[[str], None] = lambda _state: None,
    times: Times = USUAL,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Run the sidecar until SIGTERM, SIGINT or `stop`; return the exit code.

    `reload` answers SIGHUP, and `tell` is given what is taken over then. `manager` is told the states of `notify`.

    Starts with the bound address of the endpoints. Raises ConfigError where they cannot be bound or a file that the
    configuration names cannot be used.
    """
    _keep_memory_flat()
    process = _Process(
        config, trio.Event() if stop is None else stop, (reload, tell), manager, times, fail_fast=fail_fast
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.listen_to_signals, nursery.cancel_scope, name="app.signals")
            nursery.start_soon(process.watch_loop, name="app.loop")
            address = await nursery.start(process.serve_endpoints, name="app.endpoints")
            log.info("endpoints.listening", extra={"address": address})
            # Not after the links: a peer that is away must not keep what is ordered after us from starting.
            manager(notify.READY)
            task_status.started(address)
            await process.work()
            nursery.cancel_scope.cancel()
    except* LinkRefused:
        # Said by the link itself; `--fail-fast` asked for it.
        process.exit_code = 3
    return process.exit_code


def _keep_memory_flat() -> None:
    """Let glibc give back what it need not keep; other libraries of C have no such switches.

    It has a heap for each thread, and grpcio's threads come and go; and what was once large is kept from then on.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, 256 * 1024)


class _Process:
    """Everything of one run."""

    def __init__(
        self,
        config: Config,
        stop: trio.Event,
        reload: tuple[Callable[[], Config] | None, Callable[[Config], None]],
        manager: Callable[[str], None],
        times: Times,
        *,
        fail_fast: bool,
    ) -> None:
        self.exit_code = 0
        self._stop = stop
        self._reload, self._tell = reload
        self._manager = manager
        self._metrics = Metrics()
        # What the endpoints are served by: changing more than the certificate's content needs a restart.
        self._served = config.endpoints
        self._context: ssl.SSLContext | None = None
        self._statuses = (
            LinkStatus("teleport", self._metrics, times),
            LinkStatus("mattermost", self._metrics, times),
        )
        self._assembly = Assembly(config, self._metrics, times, self._statuses, fail_fast=fail_fast)

    async def work(self) -> None:
        """Work until asked to stop."""
        complete = await self._assembly.run(self._stop)
        log.info("process.stopped", extra={"complete": complete})

    # -- beside the work ---------------------------------------------------------------------------------------------

    async def serve_endpoints(self, *, task_status: trio.TaskStatus[str]) -> None:
        settings = self._served
        if settings.tls_crt is not None:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            load_pair(self._context, "endpoints.tls_crt", settings.tls_crt, settings.tls_key)
        token = None
        if settings.bearer_token_file is not None:
            bearer = endpoints.BearerToken(settings.bearer_token_file)
            bearer.read()  # at the start it is the configuration that is wrong
            token = bearer.now
        pages = endpoints.Pages(self._metrics.generate, self._readiness, token)
        await endpoints.serve(settings.address, pages, ssl_context=self._context, task_status=task_status)

    async def listen_to_signals(self, everything: trio.CancelScope) -> None:
        """The first signal stops in order, the second at once; SIGHUP reloads."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    self._manager(notify.RELOADING)
                    self._read_again()
                    self._manager(notify.READY)
                elif self._stop.is_set():
                    log.warning("process.cut", extra={"signal": signal.Signals(number).name})
                    self.exit_code = 128 + number
                    everything.cancel()
                    return
                else:
                    log.info("process.stopping", extra={"signal": signal.Signals(number).name})
                    self._manager(notify.STOPPING)
                    self._stop.set()

    def _read_again(self) -> None:
        """Load the configuration again, or keep the old one and say why."""
        if self._reload is None:
            return
        try:
            config = self._reload()
            trusting("mattermost.ca_file", config.mattermost.ca_file)
            if self._context is not None:
                load_pair(self._context, "endpoints.tls_crt", self._served.tls_crt, self._served.tls_key)
        except ConfigError as exc:
            log.warning("config.kept", extra={"problems": exc.problems})
            return
        self._tell(config)
        if config.endpoints != self._served:
            log.warning("config.unchangeable", extra={"detail": "[endpoints] needs a restart; the rest is taken over"})
        self._assembly.reload(config)

    async def watch_loop(self) -> None:
        """Measure how late the loop runs its timers, and what of the log nobody read."""
        while True:
            due = trio.current_time() + LOOP_CHECK_SECONDS
            await trio.sleep_until(due)
            self._metrics.loop_lag_seconds.set(trio.current_time() - due)
            self._metrics.log_lines_lost_total.inc(lines.take_lost())
            self._manager(notify.ALIVE)

    def _readiness(self) -> tuple[bool, dict[str, object]]:
        draining = self._stop.is_set()
        ready = not draining and all(link.working for link in self._statuses)
        return ready, {"ready": ready, "links": {one.name: one.body() for one in self._statuses}, "draining": draining}
