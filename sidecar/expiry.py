"""When our certificates end: a metric always, a warning two weeks before, an error the day before."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.metrics import Metrics

log = logging.getLogger(__name__)

WARNING_SECONDS = 14 * 86400
ERROR_SECONDS = 86400


class Expiry:
    """Watches one identity, "main" or "reviewer"; `read` gives its soonest end in Unix seconds, None for none."""

    def __init__(self, identity: str, read: Callable[[], float | None], metrics: Metrics) -> None:
        self._identity = identity
        self._read = read
        self._metrics = metrics
        # What was said, of which certificate: each thing once.
        self._said: tuple[float, int] = (0.0, logging.NOTSET)
        self._replaced = False

    def look(self) -> None:
        """Set the metric, and say what is new to be said."""
        end = self._read()
        if end is None:
            return
        left = end - time.time()
        # Only now: a series that says 0 before the first look would wake somebody for nothing.
        self._metrics.certificate_expiry_seconds.labels(self._identity).set(left)
        said_end, said = self._said
        if end != said_end:
            # Where something renews the certificates, a short life is as it should be.
            self._replaced = self._replaced or bool(said_end)
            said = logging.NOTSET
        level = self._level(left)
        if level > said:
            moment = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
            log.log(level, "certificate.expires", extra={"identity": self._identity, "expires": moment})
        self._said = (end, max(level, said))

    def _level(self, left: float) -> int:
        if left <= 0 or (left < ERROR_SECONDS and not self._replaced):
            return logging.ERROR
        return logging.WARNING if left < WARNING_SECONDS and not self._replaced else logging.NOTSET


async def watch(expiries: list[Expiry], every: float) -> NoReturn:
    """Look again and again."""
    while True:
        for expiry in expiries:
            expiry.look()
        await trio.sleep(every)
