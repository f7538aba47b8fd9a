"""Connections to the Auth Service as [teleport] names it, each after a look at what grpcio would not explain."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from sidecar.errors import LinkLost
from sidecar.intake.expiry import Expiry
from sidecar.once import Once
from sidecar.teleport.connect import Connector
from sidecar.teleport.findings import ONE_FILE, THREE_FILES, to_error
from sidecar.teleport.identity import credential_files, load_credentials
from sidecar.teleport.x509 import read_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import trio

    from sidecar.config.sections import TeleportConfig
    from sidecar.errors import LinkError
    from sidecar.intake.keep import LinkStatus
    from sidecar.metrics import Metrics
    from sidecar.teleport.client import AuthClient
    from sidecar.teleport.credentials import Credentials
    from sidecar.teleport.x509 import CertificateFacts

log = logging.getLogger(__name__)


class LastGood:
    """The credentials that worked last, and the state that their files had by then; outlives the link."""

    def __init__(self) -> None:
        self.credentials: Credentials | None = None
        self.files: list[object] = []
        self._told: tuple[list[object], str] | None = None

    def forget(self) -> None:
        """They are shown elsewhere now, or others are."""
        self.credentials = self._told = None

    def take(self, credentials: Credentials, files: list[object]) -> None:
        """A connection with these works; where they are those of before, the files still wait to be mended."""
        if credentials is not self.credentials:
            self.credentials, self.files, self._told = credentials, files, None

    def tell_kept(self, files: list[object], exc: LinkError) -> None:
        """Say why the files are not used, once for each state of them."""
        news = (files, exc.reason)
        if self._told != news:
            self._told = news
            log.warning("credentials.kept", extra={"reason": exc.reason, "detail": exc.detail})


class Dialer:
    """Opens connections by `settings`, once `begin` has named who owns what they need.

    `own_user` is who we are, `last_good` the credentials that worked last.
    """

    def __init__(self, settings: TeleportConfig, status: LinkStatus, metrics: Metrics) -> None:
        self.own_user = ""
        self.last_good = LastGood()
        self._settings = settings
        self._status = status
        self._metrics = metrics
        self._connector: Connector | None = None
        self._certificates: dict[str, CertificateFacts] = {}
        self._warned = Once()

    def configure(self, settings: TeleportConfig) -> None:
        """Dial by these settings from the next `begin` on."""
        before, self._settings = self._settings, settings
        if (before.addr, credential_files(before)) != (settings.addr, credential_files(settings)):
            self.last_good.forget()

    def begin(self, nursery: trio.Nursery) -> None:
        """Find the way anew; `nursery` owns what a Proxy needs in between."""
        settings = self._settings
        files = THREE_FILES if settings.identity is None else ONE_FILE
        self.expiry = Expiry("main", lambda: self._certificates, self._metrics, files)
        self._connector = Connector(
            nursery,
            settings.addr,
            server_name="teleport.cluster.local" if settings.verify == "cluster" else None,
            plugin_name=settings.plugin_name,
            proxy_ca_file=settings.proxy_ca_file,
            observe=self._metrics.observe_grpc,
        )
        self._warned.clear()

    @property
    def web_addr(self) -> str:
        """The Proxy's own public address, "" where there is none on the way."""
        return self._connector.web_addr if self._connector is not None else ""

    def open(self, credentials: Credentials) -> AbstractAsyncContextManager[AuthClient]:
        """A connection with a reviewer's credentials, by the way that ours have found. Raises LinkLost before that."""
        return self._known().open(credentials)

    def files(self) -> tuple[Path, ...]:
        """What our credentials are read from."""
        return credential_files(self._settings)

    @asynccontextmanager
    async def connect(self, credentials: Credentials | None) -> AsyncIterator[tuple[AuthClient, Credentials]]:
        """A connection with these credentials, or those in the files."""
        if credentials is None:
            credentials = load_credentials(self._settings)
            if not self.own_user:
                # Known before the Auth Service answers; from then on, the certificate that worked last counts.
                with suppress(ValueError):
                    self._watch_end(read_certificate(credentials.certificate))
        await self._inspect(credentials)
        async with self.open(credentials) as client:
            yield client, credentials

    def adopt(self, credentials: Credentials) -> None:
        """A connection has proven to work: its certificate is who we are."""
        ours = read_certificate(credentials.certificate)
        self.own_user = ours.user
        self._watch_end(ours)

    def _known(self) -> Connector:
        if self._connector is None:
            raise LinkLost("teleport", "away", "there is no connection to the Auth Service")
        return self._connector

    def _watch_end(self, ours: CertificateFacts) -> None:
        self._certificates = {"": ours}
        self.expiry.look()

    async def _inspect(self, credentials: Credentials) -> None:
        """Raise what stands in the way as its one sentence with the fix; warn of the rest once."""
        connector = self._known()
        findings = await connector.preflight(credentials, verify=self._settings.verify, now=time.time())
        self._status.way = connector.way
        for finding in findings:
            if finding.status == "failure":
                raise to_error(finding)
            if finding.status == "warning" and self._warned.news(finding.id):
                log.warning("preflight.warned", extra={"check": finding.id, "detail": to_error(finding).detail})
