"""The stand-in Proxy Service: passes TLS on where the first ALPN name asks for the Auth Service, else is a web server.

Seen on a real 18.0 Proxy (`proxy_listener_mode: multiplex`); source: lib/srv/alpnproxy. Not imitated: everything else
that a Proxy serves, and HTTP/2.
"""

from __future__ import annotations

import json
import ssl
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import trio
from cryptography import x509
from cryptography.x509.oid import NameOID

from sidecar.simulator.teleport.pki import API_DOMAIN, Authority, general_name, write_files

# "routing": as it is by default since 8. "no_routing": SSH alone. "load_balancer": what stands before it ends TLS and
# agrees to h2 itself. "strips_alpn": the same without a word of ALPN. "http1_only": it knows no h2.
Kind = Literal["routing", "no_routing", "load_balancer", "strips_alpn", "http1_only"]

_ALPN_EXTENSION = 16


class ProxyServer:
    """A Proxy on the loopback, before the Auth Service at `auth_addr()`; `ca_pem` vouches for its web certificate."""

    def __init__(
        self,
        auth_addr: Callable[[], str],
        cluster: str = "example.com",
        *,
        kind: Kind = "routing",
        version: str = "18.0.0",
        public_addr: str = "",
        user_ca: bytes = b"",
    ) -> None:
        """Prepare it; nothing listens before `serve`. Clients may show a certificate that `user_ca` (PEM) signed."""
        self.addr = ""
        self.kind = kind
        self.cluster = cluster
        # The faults: new connections are closed at once; new ones get no further than here.
        self.refusing = False
        self.auth_is_away = False
        # It answers as any web server would.
        self.is_other_site = False
        # How many connections were passed on.
        self.passed = 0
        self.requests: list[bytes] = []
        self.client_certificates: list[bytes] = []
        self._auth_addr = auth_addr
        self._version = version
        self._public_addr = public_addr
        self._user_ca = user_ca.decode()
        self._authority = Authority("Web PKI")
        self._context = self._web_context()
        self._open: set[trio.CancelScope] = set()
        self._listening = trio.CancelScope()

    @property
    def ca_pem(self) -> bytes:
        """The CA that a `proxy_ca_file` needs."""
        return self._authority.pem

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._open)

    def cut(self) -> None:
        """Break every connection now."""
        for scope in list(self._open):
            scope.cancel()

    def stop(self) -> None:
        """End everything; `serve` listens at the same address again."""
        self._listening.cancel()

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; starts with the address of before, where there was one."""
        host, _, port = self.addr.rpartition(":")
        listeners = await trio.open_tcp_listeners(int(port or 0), host=host or "127.0.0.1")
        self.addr = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started(self.addr)
        with trio.CancelScope() as self._listening:
            await trio.serve_listeners(self._accept, listeners)

    async def _accept(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope, suppress(trio.BrokenResourceError, OSError):
            self._open.add(scope)
            try:
                async with client:
                    if not self.refusing:
                        await self._handle(client)
            finally:
                self._open.discard(scope)

    async def _handle(self, client: trio.SocketStream) -> None:
        hello = b""
        while len(hello) < 5 or len(hello) < 5 + int.from_bytes(hello[3:5], "big"):
            data = await client.receive_some(65_536)
            if not data:
                return
            hello += data
        route = f"teleport-auth@{self.cluster.encode().hex()}.{API_DOMAIN}".encode()
        if self.kind == "routing" and alpn_of(hello)[:1] == [route]:
            await self._pass_on(client, hello)
        else:
            await self._be_a_web_server(client, hello)

    async def _pass_on(self, client: trio.SocketStream, hello: bytes) -> None:
        if self.auth_is_away:
            return
        host, _, port = self._auth_addr().rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as auth, trio.open_nursery() as nursery:
            self.passed += 1
            await auth.send_all(hello)
            nursery.start_soon(_carry, client, auth, nursery.cancel_scope)
            nursery.start_soon(_carry, auth, client, nursery.cancel_scope)

    async def _be_a_web_server(self, client: trio.SocketStream, hello: bytes) -> None:
        stream = trio.StapledStream(client, _Replayed(hello, client))
        web: trio.SSLStream[Any] = trio.SSLStream(stream, self._context, server_side=True)
        request = b""
        while b"\r\n\r\n" not in request:
            data = await web.receive_some(8192)
            if not data:
                return
            request += data
        if shown := web.getpeercert(binary_form=True):
            self.client_certificates.append(shown)
        self.requests.append(request)
        if request.startswith(b"GET /webapi/ping ") and not self.is_other_site:
            status, body = b"200 OK", self._ping()
        else:
            status, body = b"404 Not Found", b"{}"
        head = b"HTTP/1.0 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        await web.send_all(head + body)
        await web.aclose()

    def _ping(self) -> bytes:
        settings = {
            "kube": {"enabled": False},
            "ssh": {"listen_addr": "0.0.0.0:3023", "web_listen_addr": "0.0.0.0:3080", "public_addr": self._public_addr},
            "tls_routing_enabled": self.kind != "no_routing",
        }
        answer = {
            "auth": {"type": "local"},
            "proxy": settings,
            "server_version": self._version,
            "min_client_version": "17.0.0",
            "cluster_name": self.cluster,
        }
        return json.dumps(answer).encode()

    def _web_context(self) -> ssl.SSLContext:
        names = [general_name(name) for name in ("localhost", "127.0.0.1", "proxy.example.com")]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy.example.com")])
        issued = self._authority.issue(subject, names=names)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(Path(folder), issued, b"", name="web")
            context.load_cert_chain(files.crt, files.key)
        if self.kind != "strips_alpn":
            context.set_alpn_protocols(["http/1.1"] if self.kind == "http1_only" else ["h2", "http/1.1"])
        if self._user_ca:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.load_verify_locations(cadata=self._user_ca)
        return context


class _Replayed(trio.abc.ReceiveStream):
    """A stream whose beginning has been read already."""

    def __init__(self, start: bytes, inner: trio.SocketStream) -> None:
        self._start = start
        self._inner = inner

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        start, self._start = self._start, b""
        return start or await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Do nothing: the sending half owns the socket."""


async def _carry(source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some(65_536):
            await sink.send_all(data)
    both.cancel()


def alpn_of(hello: bytes) -> list[bytes]:
    """Read the ALPN names of a ClientHello in one record (RFC 8446, 4.1.2; RFC 7301); none of anything else."""
    at = 5 + 4 + 2 + 32
    try:
        at += 1 + hello[at]
        at += 2 + int.from_bytes(hello[at : at + 2], "big")
        at += 1 + hello[at] + 2
        while at + 4 <= len(hello):
            kind, size = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
            if kind == _ALPN_EXTENSION:
                return _names(hello[at + 6 : at + 4 + size])
            at += 4 + size
    except IndexError:
        pass
    return []


def _names(listed: bytes) -> list[bytes]:
    names = []
    while listed:
        names.append(listed[1 : 1 + listed[0]])
        listed = listed[1 + listed[0] :]
    return names
