"""A gRPC server over mutual TLS whose every answer a test writes down: wire bytes, any status, at any moment."""

from __future__ import annotations

import os
import queue
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import trio
import trustme

from sidecar.simulator.teleport.pki import ClusterPki, write_files
from sidecar.teleport.client import AuthClient, Credentials, open_client
from sidecar.teleport.pb import teleport_pb2 as pb

import grpc  # isort: skip - after the bridge, which quietens it; a test that needs its names takes them from here

Context = grpc.ServicerContext
StatusCode = grpc.StatusCode

NAME = "teleport.cluster.local"
CLUSTER = "example.com"
# The answer to a Ping.
PONG = pb.PingResponse(ClusterName=CLUSTER.encode()).SerializeToString()
# How long a test waits for another thread before it fails.
PATIENCE = 60.0

_STREAMS = ("WatchEvents", "GetAccessRequestsV2")
_UNARY = (
    *("Ping", "GetAccessRequests", "GetPluginData", "UpdatePluginData"),
    *("SubmitAccessReview", "SetAccessRequestState"),
)
Unary = Callable[[bytes, Context], bytes]
Stream = Callable[[bytes, Context], Iterator[bytes]]


def other_authority() -> trustme.CA:
    """An authority of a cluster of the same name."""
    return trustme.CA(organization_name=CLUSTER)


@cache
def authority() -> trustme.CA:
    """The one authority of a test run, for both sides."""
    return other_authority()


def credentials(ca: trustme.CA | None = None, trust: trustme.CA | None = None, **issue: Any) -> Credentials:
    """Client credentials, good ones unless told otherwise."""
    leaf = (ca or authority()).issue_cert("access-plugin", **issue)
    return Credentials(
        leaf.cert_chain_pems[0].bytes(),
        leaf.private_key_pem.bytes(),
        (trust or authority()).cert_pem.bytes(),
    )


class Peer:
    """`unary` and `streams` map a method to what it does."""

    def __init__(self) -> None:
        self.addr = ""
        self.unary: dict[str, Unary] = {"Ping": lambda _request, _context: PONG}
        self.streams: dict[str, Stream] = {}
        self.calls: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.begun: queue.Queue[str] = queue.Queue()
        self.ended: queue.Queue[str] = queue.Queue()
        self.stop: Callable[[], object] = lambda: None

    def handlers(self) -> grpc.GenericRpcHandler:
        """Answer all methods that the client knows; one that the test left out does not exist, as grpc-go says it."""
        table: dict[str, grpc.RpcMethodHandler[bytes, bytes]]
        table = {name: grpc.unary_unary_rpc_method_handler(partial(self._unary, name)) for name in _UNARY}
        table |= {name: grpc.unary_stream_rpc_method_handler(partial(self._stream, name)) for name in _STREAMS}
        return grpc.method_handlers_generic_handler("proto.AuthService", table)

    def _note(self, method: str, request: bytes, context: Context) -> None:
        context.add_callback(lambda: self.ended.put(method))
        self.calls.append((method, request))
        self.begun.put(method)
        self.metadata.append(dict(context.invocation_metadata()))

    def _unary(self, method: str, request: bytes, context: Context) -> bytes:
        self._note(method, request, context)
        return self.unary.get(method, partial(_missing, method))(request, context)

    def _stream(self, method: str, request: bytes, context: Context) -> Iterator[bytes]:
        self._note(method, request, context)
        yield from self.streams.get(method, partial(_missing, method))(request, context)

    async def wait_begun(self, method: str) -> None:
        """Wait until the server works at a call of the method."""
        await _wait_for(self.begun, method)

    async def wait_ended(self, method: str) -> None:
        """Wait until a call of the method is over on the server's side."""
        await _wait_for(self.ended, method)


async def _wait_for(methods: queue.Queue[str], method: str) -> None:
    while await trio.to_thread.run_sync(partial(methods.get, timeout=PATIENCE)) != method:
        pass


@contextmanager
def serve(name: str = NAME, ca: trustme.CA | None = None, **issue: Any) -> Iterator[Peer]:
    """Serve on a free port of the loopback. The certificate bears `name` only, as a stock one has no localhost."""
    peer = Peer()
    leaf = (ca or authority()).issue_cert(name, **issue)
    with ThreadPoolExecutor(16, thread_name_prefix="peer") as pool:
        server = grpc.server(pool, handlers=[peer.handlers()])
        pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())
        root = authority().cert_pem.bytes()
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair], root, require_client_auth=True)
        )
        peer.addr = f"127.0.0.1:{port}"
        server.start()
        peer.stop = lambda: server.stop(None).wait(PATIENCE)
        try:
            yield peer
        finally:
            peer.stop()


@asynccontextmanager
async def serve_openssl(pki: ClusterPki, folder: Path) -> AsyncIterator[Peer]:
    """Serve with the TLS of Python, which takes every kind of key that Go's takes."""
    peer = Peer()
    files = write_files(folder, pki.server_certificate(), pki.user_ca.pem, name="openssl")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.cas)
    context.load_cert_chain(files.crt, files.key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    with ThreadPoolExecutor(16, thread_name_prefix="peer") as pool:
        server = grpc.server(pool, handlers=[peer.handlers()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()

        async def terminate(raw: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                async with trio.SSLStream(raw, context, server_side=True) as tls:
                    await tls.do_handshake()
                    async with await trio.open_tcp_stream("127.0.0.1", port) as plain, trio.open_nursery() as nursery:
                        nursery.start_soon(_carry, tls, plain, nursery.cancel_scope)
                        nursery.start_soon(_carry, plain, tls, nursery.cancel_scope)

        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, terminate, 0, host="127.0.0.1"))
            peer.addr = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            yield peer
            nursery.cancel_scope.cancel()
        server.stop(None).wait(PATIENCE)


async def _carry(source: trio.abc.Stream, sink: trio.abc.Stream, both: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError):
        while data := await source.receive_some(65_536):
            await sink.send_all(data)
    both.cancel()


@asynccontextmanager
async def connect(peer: Peer, **options: Any) -> AsyncIterator[AuthClient]:
    """Open a client with good credentials."""
    async with open_client(peer.addr, credentials(), **options) as client:
        yield client


def fail(context: Context, code: str, details: str) -> NoReturn:
    """End the call with a status."""
    context.abort(grpc.StatusCode[code], details)


def _missing(method: str, _request: bytes, context: Context) -> NoReturn:
    fail(context, "UNIMPLEMENTED", f"unknown method {method} for service proto.AuthService")


def hang(context: Context) -> None:
    """Wait until the call is over."""
    over = threading.Event()
    if context.add_callback(over.set):
        over.wait(PATIENCE)


def client_threads() -> set[threading.Thread]:
    """All threads but those of the servers, of trio's pool and of the test run itself."""
    foreign = ("peer", "simulator", "Trio thread", "MainThread")
    return {thread for thread in threading.enumerate() if not thread.name.startswith(foreign)}


def descriptors() -> int:
    """How many this process, which holds both sides, has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - it only counts


async def wait_no_more_than(before: set[threading.Thread]) -> None:
    """Fail unless every thread that is not in `before` ends."""
    for thread in client_threads() - before:
        await trio.to_thread.run_sync(thread.join, PATIENCE)
        assert not thread.is_alive(), f"{thread.name} is left"
