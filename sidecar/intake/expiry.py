"""When our certificates end: a metric always, and a line in the log when one was not renewed in time."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn

import trio

from sidecar.teleport.findings import ending, of_one_file, sign_again

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.metrics import Metrics
    from sidecar.teleport.x509 import CertificateFacts

log = logging.getLogger(__name__)

_LEVELS = {"": logging.NOTSET, "expires_soon": logging.WARNING, "expires_today": logging.ERROR}


class Expiry:
    """Watches one identity, "main" or "reviewer"; `read` gives its certificates by reviewer, our own by "".

    `one_file` says that the certificate stands in an identity file.
    """

    def __init__(
        self,
        identity: str,
        read: Callable[[], Mapping[str, CertificateFacts]],
        metrics: Metrics,
        *,
        one_file: bool = False,
    ) -> None:
        self._identity = identity
        self._one_file = one_file
        self._read = read
        self._metrics = metrics
        # What was said, of which end: each thing once.
        self._said: dict[str, tuple[float, int]] = {}

    def look(self) -> None:
        """Set the metric, and say what is new to be said."""
        certificates, now = self._read(), time.time()
        metric = self._metrics.certificate_expiry_seconds
        if certificates:
            metric.labels(self._identity).set(min(one.not_after for one in certificates.values()) - now)
        else:
            # A series that says 0, or what was true once, would wake somebody for nothing.
            metric.remove(self._identity)
        for reviewer, one in certificates.items():
            self._tell(reviewer, one, _LEVELS[ending(one, now)])

    def _tell(self, reviewer: str, one: CertificateFacts, level: int) -> None:
        end, said = self._said.get(reviewer, (0.0, logging.NOTSET))
        if end != one.not_after:
            said = logging.NOTSET
        if level > said:
            fix = sign_again(reviewer or one.user, reviewer or "auth")
            log.log(
                level,
                "certificate.expires",
                extra={
                    "identity": self._identity,
                    "reviewer": reviewer,
                    "expires": datetime.fromtimestamp(one.not_after, UTC).strftime("%Y-%m-%d %H:%M UTC"),
                    "detail": of_one_file(fix) if self._one_file else fix,
                },
            )
        self._said[reviewer] = (one.not_after, max(level, said))


async def watch(expiries: list[Expiry], every: float) -> NoReturn:
    """Look again and again."""
    while True:
        for expiry in expiries:
            expiry.look()
        await trio.sleep(every)
