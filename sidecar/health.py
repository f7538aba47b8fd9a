"""Where `sidecar health` asks: the address of the endpoints, and a connection to it."""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sidecar.errors import ConfigError

if TYPE_CHECKING:
    from sidecar.config import Config

HEALTH_SECONDS = 3.0


def connection(url: str) -> tuple[http.client.HTTPConnection, str]:
    """Return a connection that is not open yet, and the path to ask for."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if not host or parts.scheme not in {"http", "https"}:
        raise ConfigError([f"--url: {url} is not an http:// or https:// address"])
    path = parts.path.rstrip("/") or "/healthz"
    if parts.scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=HEALTH_SECONDS), path
    # It is our own listener, and its certificate bears the name that others use.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=HEALTH_SECONDS, context=context), path


def own_url(config: Config) -> str:
    """Return where this configuration's own endpoints answer."""
    host, port = config.endpoints.address
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where it listens, not us
    scheme = "https" if config.endpoints.tls_crt else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/healthz"
