"""Where Mattermost is and how to get a byte stream to it: URL, proxy from the environment, TLS.

REST and the websocket share these decisions, so both go the same way. Proxies: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
NO_PROXY as the standard library reads them (lower case wins), and networks in NO_PROXY; the websocket goes through
CONNECT also for ws.
"""

from __future__ import annotations

import base64
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Final, cast
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec
import trio

from sidecar.errors import ConfigError, LinkError, LinkLost, LinkRefused

_PORTS: Final = {"http": 80, "https": 443}
# OpenSSL's words for an answer in plain HTTP; the second since 3.2.
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
# A proxy's answer to CONNECT is a few lines.
_PROXY_ANSWER_BYTES: Final = 16384
_HOST: Final = re.compile(r"[!-~]+")


class Address(msgspec.Struct, frozen=True):
    """A Mattermost URL taken apart; `path` is the subpath without a slash at its end, "" at the root."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """What the Host header says: without the port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and authority, for people."""
        return f"{self.scheme}://{self.authority}"


def parse_url(url: str) -> Address:
    """Take `mattermost.url` apart.

    Raises ConfigError: no http(s) URL with a host, or one with a password, a query or a fragment in it.
    """
    problem = "mattermost.url must look like https://chat.example.com, with a path where Mattermost has one"
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise ConfigError([problem]) from None
    if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError([problem])
    return Address(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], parts.path.rstrip("/"))


class Proxy(msgspec.Struct, frozen=True):
    """The proxy that the environment names; `headers` say who we are there, where the URL does."""

    scheme: str
    host: str
    port: int
    headers: tuple[tuple[bytes, bytes], ...] = ()


def proxy_for(address: Address) -> Proxy | None:
    """Return the proxy that the environment names for this address.

    Raises ConfigError for a proxy that is neither http nor https.
    """
    proxies = getproxies()
    name = address.scheme if address.scheme in proxies else "all"
    proxy = proxies.get(name, "")
    if not proxy or proxy_bypass(f"{address.host}:{address.port}", proxies) or _in_networks(address.host, proxies):
        return None
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not _HOST.fullmatch(parts.hostname or "") or port == 0:
        fix = "name another, or Mattermost's host in NO_PROXY"
        raise ConfigError([f"{name.upper()}_PROXY: only an http:// or https:// proxy with a host can be used: {fix}"])
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = ((b"Proxy-Authorization", b"Basic " + base64.b64encode(pair.encode())),)
    return Proxy(parts.scheme, parts.hostname or "", port or _PORTS[parts.scheme], headers)


def _in_networks(host: str, proxies: dict[str, str]) -> bool:
    """Whether NO_PROXY names a network (10.0.0.0/8) that the host is in; like Go and curl, only where it is an address.

    The standard library does not know networks.
    """
    for part in proxies.get("no", "").split(","):
        with suppress(ValueError):
            if "/" in part and ip_address(host) in ip_network(part.strip(), strict=False):
                return True
    return False


def client_context(address: Address) -> ssl.SSLContext:
    """Return a context that trusts what the system trusts (SSL_CERT_FILE and SSL_CERT_DIR are honoured).

    Where nothing speaks TLS it trusts nobody, for reading the system's store takes a while.
    """
    proxy = proxy_for(address)
    if "https" in {address.scheme, proxy and proxy.scheme}:
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def open_stream(address: Address, context: ssl.SSLContext, *, tunnel: bool = True) -> trio.abc.Stream:
    """Connect, through the environment's proxy where it names one, with TLS for https.

    Without `tunnel` the stream ends at the proxy, which takes requests in plain HTTP by their whole URL. Raises
    LinkLost, or LinkRefused where the server's certificate is not accepted. The caller sets the deadline.
    """
    proxy = proxy_for(address)
    try:
        if proxy is None:
            stream: trio.abc.Stream = await trio.open_tcp_stream(address.host, address.port)
        else:
            stream = await trio.open_tcp_stream(proxy.host, proxy.port)
            if proxy.scheme == "https":
                stream = await _with_tls(stream, proxy.host, context)
            if tunnel:
                await _tunnel(stream, proxy, address)
        return await _with_tls(stream, address.host, context) if address.scheme == "https" else stream
    except (OSError, UnicodeError, trio.BrokenResourceError) as exc:
        raise unreachable(exc, address) from exc


def socket_of(stream: trio.abc.Stream) -> int:
    """Return the descriptor below a stream of `open_stream`."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return cast("trio.SocketStream", stream).socket.fileno()


async def _with_tls(stream: trio.abc.Stream, host: str, context: ssl.SSLContext) -> trio.abc.Stream:
    secure = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await secure.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secure


async def _tunnel(stream: trio.abc.Stream, proxy: Proxy, address: Address) -> None:
    host = f"[{address.host}]" if ":" in address.host else address.host
    target = f"{host}:{address.port}".encode()
    lines = [b"CONNECT %b HTTP/1.1" % target, b"Host: " + target, *(b": ".join(header) for header in proxy.headers)]
    try:
        await stream.send_all(b"\r\n".join([*lines, b"", b""]))
        await _read_connect_answer(stream)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _read_connect_answer(stream: trio.abc.Stream) -> None:
    # Mattermost speaks only when spoken to, so nothing of its own can follow the proxy's answer.
    answer = bytearray()
    while b"\r\n\r\n" not in answer:
        chunk = await stream.receive_some()
        answer += chunk
        if not chunk or len(answer) > _PROXY_ANSWER_BYTES:
            raise LinkLost("mattermost", "proxy", "the proxy closed the connection")
    words = [*bytes(answer).split(None, 2), b"", b""]
    if not answer.startswith(b"HTTP/1.") or words[1] != b"200":
        said = words[1][:3].decode("ascii", "replace")
        raise LinkLost("mattermost", "proxy", f"the proxy answered {said} to CONNECT")


def unreachable(exc: BaseException, address: Address) -> LinkError:
    """Name why no connection came about, from whatever stands behind `exc`; nothing was sent."""
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return LinkRefused("mattermost", "tls", _distrust(cause, address))
        if isinstance(cause, ssl.SSLError):
            detail = f"TLS with {address.origin} failed: {cause.reason or 'closed'}"
            if cause.reason in _NOT_TLS:
                detail = (
                    f"the port of {address.origin} speaks no TLS: write mattermost.url with http:// or another port"
                )
            return LinkLost("mattermost", "tls", detail)
        # The names of hosts have a form, too.
        if isinstance(cause, socket.gaierror | UnicodeError):
            return LinkLost("mattermost", "dns", f"the host name of {address.origin} cannot be resolved")
    way = " through the proxy that the environment names" if proxy_for(address) else ""
    return LinkLost("mattermost", "unreachable", f"nothing can be reached at {address.origin}{way}")


def _distrust(exc: ssl.SSLCertVerificationError, address: Address) -> str:
    # OpenSSL: 10 expired, 62 host name, 64 IP address; all else is a chain that ends in nothing we trust.
    fixes = {
        10: "the server's certificate has to be renewed",
        62: "mattermost.url has to use a name that the certificate bears",
        64: "mattermost.url has to use a name that the certificate bears",
    }
    fix = fixes.get(exc.verify_code, "name its certificate authority in mattermost.ca_file")
    return f"the certificate of {address.origin} is not accepted ({exc.verify_message}): {fix}"


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """Walk the whole tree of causes, contexts and group members, nearest first."""
    waiting = [exc]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__]
        if isinstance(found, BaseExceptionGroup):
            waiting += found.exceptions
