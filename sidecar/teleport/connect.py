"""Connections to the one Auth Service that the configuration names, by the way that the last preflight found."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

import trio

from sidecar.teleport.client import AuthClient, Observe, open_client
from sidecar.teleport.credentials import Credentials
from sidecar.teleport.findings import API_DOMAIN, Finding
from sidecar.teleport.tls import DIRECT, preflight


class Connector:
    """Finds out whether `addr` is the Auth Service's or a Proxy's; the nursery owns what a Proxy needs in between.

    `server_name` is expected in the certificate on a direct connection; None means the host of `addr`.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        addr: str,
        *,
        server_name: str | None = API_DOMAIN,
        plugin_name: str = "mattermost",
        proxy_ca_file: Path | None = None,
        observe: Observe = lambda _method, _outcome, _seconds: None,
    ) -> None:
        self._nursery = nursery
        self._addr = addr
        self._server_name = server_name
        self._plugin = plugin_name
        self._proxy_ca_file = proxy_ca_file
        self._observe = observe
        self._way = DIRECT

    @property
    def way(self) -> Literal["direct", "proxy"]:
        """How the Auth Service is reached, as far as is known."""
        return self._way.name

    @property
    def web_addr(self) -> str:
        """The Proxy's own public address, "" where there is none on the way."""
        return "" if self._way.proxy is None else self._way.proxy.public_addr or self._addr

    async def preflight(
        self, credentials: Credentials, *, verify: str, now: float, step_seconds: float = 5.0
    ) -> list[Finding]:
        """Find the way, and everything that grpcio would not explain; see `tls.preflight`."""
        findings, self._way = await preflight(
            self._addr,
            credentials,
            verify=verify,
            now=now,
            step_seconds=step_seconds,
            way=self._way,
            proxy_ca_file=self._proxy_ca_file,
        )
        return findings

    def open(self, credentials: Credentials) -> AbstractAsyncContextManager[AuthClient]:
        """Open a client; see `open_client`."""
        return open_client(
            self._addr,
            credentials,
            server_name=self._server_name,
            plugin_name=self._plugin,
            observe=self._observe,
            through=None if self._way.proxy is None else self._nursery,
        )
