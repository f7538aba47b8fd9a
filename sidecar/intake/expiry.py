"""When our certificates end: a metric always, and a line in the log when one was not renewed in time."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import trio

from sidecar.once import Once
from sidecar.teleport.findings import THREE_FILES, Files, ending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.metrics import Metrics
    from sidecar.teleport.x509 import CertificateFacts

log = logging.getLogger(__name__)

_LEVELS = {"": logging.NOTSET, "expires_soon": logging.WARNING, "expires_today": logging.ERROR}


class Expiry:
    """Watches one identity, "main" or "reviewer"; `read` gives its certificates by reviewer, our own by "".

    `files` is what our own are called.
    """

    def __init__(
        self,
        identity: str,
        read: Callable[[], Mapping[str, CertificateFacts]],
        metrics: Metrics,
        files: Files = THREE_FILES,
    ) -> None:
        self._identity = identity
        self._files = files
        self._read = read
        self._metrics = metrics
        self._once = Once()

    def look(self) -> None:
        """Set the metric, and log what is news."""
        certificates, now = self._read(), time.time()
        metric = self._metrics.certificate_expiry_seconds
        if certificates:
            metric.labels(self._identity).set(min(one.not_after for one in certificates.values()) - now)
        else:
            # A series that says 0, or what was true once, would wake somebody for nothing.
            metric.remove(self._identity)
        for reviewer, one in certificates.items():
            level = _LEVELS[ending(one, now)]
            if level and self._once.news(reviewer, (one.not_after, level)):
                self._tell(level, reviewer, one)

    def _tell(self, level: int, reviewer: str, one: CertificateFacts) -> None:
        log.log(
            level,
            "certificate.expires",
            extra={
                "identity": self._identity,
                "reviewer": reviewer,
                "expires": datetime.fromtimestamp(one.not_after, UTC).strftime("%Y-%m-%d %H:%M UTC"),
                "detail": self._files.sign_again(reviewer or one.user, reviewer),
            },
        )

    async def watch(self, every: float) -> NoReturn:
        """Look at intervals."""
        while True:
            self.look()
            await trio.sleep(every)
