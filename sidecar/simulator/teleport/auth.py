"""The stand-in Auth Service on a real socket: gRPC over mutual TLS, as a plugin meets it.

One thread for each call under way, which is why an injected round trip is a sleep. Not imitated: callers without a
client certificate (refused by TLS here, the builtin Nop there), and the HTTP API behind the same port.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import Message

from sidecar.model import Threshold
from sidecar.simulator.faults import Refusal, Waiting
from sidecar.simulator.teleport.pki import ClusterPki, CredentialFiles, read_identity
from sidecar.simulator.teleport.profile import Profile
from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST, denied
from sidecar.simulator.teleport.rpc import METHODS, Caller, Method, Service
from sidecar.teleport.pb import teleport_pb2 as pb

_PREFIX = "/proto.AuthService/"
_THREADS = 200
_BIND_SECONDS = 10.0

# keepalive.EnforcementPolicy and the rest of lib/auth/grpcserver.go; SO_REUSEPORT would hide a port still in use
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 60_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.http2.ping_timeout_ms", 180_000),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
)

_identity = lru_cache(maxsize=1024)(read_identity)

# only the stubs know that it is generic
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"

T = TypeVar("T")


class AuthServer(Service):
    """An Auth Service on the loopback. Usable from any thread; users, roles and requests outlive `stop`."""

    def __init__(
        self,
        cluster: str = "example.com",
        *,
        version: str = "7.0.0-dev",
        pki: ClusterPki | None = None,
        port: int = 0,
        nodename: str = "auth1",
        public_addr: Sequence[str] = (),
        watch_buffer: int | None = None,
    ) -> None:
        """Prepare it; nothing listens before `start`. `public_addr` adds names to the server's certificate."""
        super().__init__(cluster, version=version, watch_buffer=watch_buffer)
        self.pki = pki or ClusterPki(cluster)
        self.certificate = self.pki.server_certificate(nodename=nodename, public_addr=public_addr)
        self.port = port
        self._running: _Running | None = None

    @classmethod
    def dual_authorization(
        cls,
        cluster: str = "example.com",
        *,
        version: str = "7.0.0-dev",
        port: int = 0,
        watch_buffer: int | None = None,
    ) -> Self:
        """Build the cluster of the dual authorisation guide: Bob asks for dbadmin, Alice and Ivan must both agree."""
        server = cls(cluster, version=version, port=port, watch_buffer=watch_buffer)
        server.add_role("access-plugin", rules={REQUEST: ("list", "read"), PLUGIN_DATA: ("update",)})
        server.add_role("devops", request_roles=["dbadmin"], thresholds=[Threshold(approve=2, deny=1)])
        server.add_role("reviewer", review_roles=["dbadmin"])
        server.add_role("dbadmin")
        server.add_user("bob@example.com", ["devops"])
        server.add_user("alice@example.com", ["reviewer"])
        server.add_user("ivan@example.com", ["reviewer"])
        server.add_user("access-plugin", ["access-plugin"])
        return server

    @property
    def addr(self) -> str:
        """Where it listens, "127.0.0.1:port"; the same after a restart."""
        return f"127.0.0.1:{self.port}"

    def write_credentials(
        self, folder: Path, user: str = "access-plugin", *, name: str = "auth", impersonator: str | None = None
    ) -> CredentialFiles:
        """Sign in as `tctl auth sign --format=tls` does. Raises Refusal for single sign-on users, as Teleport does."""
        found = self._user(user)
        if found.sso:
            raise denied("access denied")
        return self.pki.write_credentials(folder, user, found.roles, name=name, impersonator=impersonator)

    def start(self) -> None:
        """Listen, on the port of before where there was one."""
        if self._running is None:
            self._running = _Running(self)
            self.port = self._running.port

    def stop(self) -> None:
        """Cut everything, as a killed process does; at once. Clients see UNAVAILABLE."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def restart(self, version: str | None = None) -> None:
        """Stop and start on the same port with the same backend, perhaps as another version."""
        self.stop()
        if version is not None:
            self.profile = Profile.of(version)
        self.start()

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        self.stop()


class _Running(grpc.GenericRpcHandler):
    """One life of the server between start and stop."""

    def __init__(self, owner: AuthServer) -> None:
        self._owner = owner
        self._stopped = threading.Event()
        self._handlers = {f"/{method.service}/{name}": self._handler(name, method) for name, method in METHODS.items()}
        self._handlers[_PREFIX + "WatchEvents"] = grpc.unary_stream_rpc_method_handler(self._watch)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="simulator-auth")
        self._server, self.port = self._bind()
        self._server.start()
        self._clock = threading.Thread(target=owner.expire_until, args=(self._stopped.is_set,), daemon=True)
        self._clock.start()

    def stop(self) -> None:
        self._stopped.set()
        self._owner.faults.end_calls()
        self._owner.close_watchers("unavailable")
        self._server.stop(None).wait(5)
        self._pool.shutdown(wait=False)
        self._owner.wake_expiry()
        self._clock.join()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Find the method of a call; those that this version does not have end as on a Go server."""
        path = handler_call_details.method
        service, _, method = path.removeprefix("/").rpartition("/")
        known = self._owner.profile.methods
        if method in known and path in self._handlers:
            return self._handlers[path]
        details = f"unknown method {method} for service {service}"
        if not any(path.startswith(f"/{service}/") and path.rpartition("/")[2] in known for path in self._handlers):
            details = f"unknown service {service}"
        return _refusing(details)

    def _bind(self) -> tuple[grpc.Server, int]:
        owner = self._owner
        authorities = owner.pki.user_ca.pem + owner.pki.host_ca.pem
        pair = (owner.certificate.key, owner.certificate.certificate)
        credentials = grpc.ssl_server_credentials([pair], authorities, require_client_auth=True)
        give_up = time.monotonic() + _BIND_SECONDS
        while True:
            server = grpc.server(self._pool, handlers=[self], options=_OPTIONS)
            try:
                return server, server.add_secure_port(owner.addr, credentials)
            except RuntimeError:
                # the port of before may be in use for a moment longer
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.02)

    def _handler(self, name: str, method: Method) -> Handler:
        if method.streams:
            return grpc.unary_stream_rpc_method_handler(lambda data, context: self._stream(name, data, context))
        return grpc.unary_unary_rpc_method_handler(lambda data, context: self._unary(name, data, context))

    def _unary(self, name: str, data: bytes, context: grpc.ServicerContext) -> bytes:
        method = METHODS[name]
        return _to_bytes(self._call(name, context, lambda caller: method.run(self._owner, caller, method.parse(data))))

    def _stream(self, name: str, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        method = METHODS[name]
        yield from self._call(name, context, lambda caller: method.run(self._owner, caller, method.parse(data)))

    def _watch(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        owner = self._owner
        init, watcher = self._call(
            "WatchEvents", context, lambda caller: owner.watch(caller, pb.Watch.FromString(data))
        )
        with owner.watching(watcher), self._waiting(context) as call:
            if not context.add_callback(lambda: watcher.end("ok")):
                return  # cancelled meanwhile: nothing would ever end the watch
            yield init
            for event in watcher:
                owner.faults.pause(call)
                yield event

    def _call(self, name: str, context: grpc.ServicerContext, run: Callable[[Caller], T]) -> T:
        """Carry a call out between the faults that were ordered for it."""
        owner = self._owner
        fault = owner.faults.take(name)
        with owner.changed:
            owner.calls[name] += 1
            owner.changed.notify_all()
        with self._waiting(context) as call:
            owner.faults.apply(name, call, fault, executed=False)
            self._greet(context)
            pem = context.auth_context()["x509_pem_cert"][0]
            answer = run(owner.authenticate(_identity(pem)))
            owner.faults.apply(name, call, fault, executed=True)
        return answer if fault.answer is None else cast("T", fault.answer)

    @contextmanager
    def _waiting(self, context: grpc.ServicerContext) -> Iterator[Waiting]:
        """Let a call wait and be refused; ends it with the status of a Refusal."""
        call = self._owner.faults.enter(context.add_callback)
        if self._stopped.is_set():
            call.end()
        try:
            yield call
        except Refusal as refusal:
            context.abort(refusal.code, refusal.details)
        finally:
            self._owner.faults.leave(call)

    def _greet(self, context: grpc.ServicerContext) -> None:
        """Exchange versions in metadata: 12 and newer tell theirs, 18 turns old clients away (silent ones never)."""
        profile = self._owner.profile
        if profile.major >= 12:
            context.send_initial_metadata((("version", profile.version),))
        if profile.guards_own_state:
            told = dict(context.invocation_metadata()).get("version")
            if told is not None and _major(str(told)) < profile.major - 1:
                raise denied("client version is unsupported")


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _to_bytes(answer: Message | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def _refusing(details: str) -> Handler:
    """A handler that fits any shape of call, since it never answers."""

    def refuse(_data: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, details)

    return grpc.unary_unary_rpc_method_handler(refuse)
