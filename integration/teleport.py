"""The stage on a real Auth Service: administered with its tctl, used over gRPC with the people's own credentials."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import grpc
import trio
from google.protobuf.message import Message

from integration.stage import Credentials, Review, Settings, direct_access
from sidecar.teleport.pb import teleport_pb2 as pb

# What the community edition says of a role that needs more (lib/auth/auth_with_roles.go, checkRoleFeatureSupport).
_NOT_IN_THIS_EDITION = "only available in enterprise"
_CALL_SECONDS = 60.0
_RULES_SINCE = 18
# The requester's roles: the thresholds of one are for all that it lets somebody ask for.
_ASKING = ("requester", "policed-requester")


class TctlError(Exception):
    """What tctl said when it failed."""


class ProxyHost(Protocol):
    """Where the Proxy Service runs, in a process of its own; `ca_file` vouches for its web certificate."""

    addr: str
    ca_file: Path

    def stop(self) -> None: ...

    def start(self) -> None: ...


class AuthHost(Protocol):
    """Where an Auth Service runs. `put` and `take` are about files that tctl, run there, reads and writes."""

    addr: str
    # Why it is not ours to restart; "" where it is.
    no_restart: str

    @property
    def proxy(self) -> ProxyHost | None:
        """The way that the sidecar is to take, where it is not the direct one."""
        ...

    def tctl(self, *arguments: str) -> str:
        """Run tctl; its standard output. Raises TctlError."""
        ...

    def put(self, name: str, content: str) -> str: ...

    def take(self, path: str) -> bytes: ...

    def path(self, name: str) -> str: ...

    def stop(self) -> None:
        """Stop the Auth Service."""
        ...

    def start(self) -> None:
        """Start it on the same address; return when it answers."""
        ...


class Account:
    """A Teleport user who talks to the Auth Service as tsh does."""

    def __init__(self, addr: str, files: Credentials) -> None:
        self._addr = addr
        self._credentials = grpc.ssl_channel_credentials(
            files.cas.read_bytes(), files.key.read_bytes(), files.crt.read_bytes()
        )
        self._kept: grpc.Channel | None = None

    def keep(self) -> grpc.Channel:
        """Use one connection for all calls from now on, which the caller closes; else each has its own."""
        self._kept = self._connect()
        return self._kept

    def call(self, method: str, messages: Sequence[Message]) -> list[bytes]:
        """Make one call for each message, all at once; the answers, undecoded, in the same order."""
        with nullcontext(self._kept) if self._kept else self._connect() as channel:
            unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/proto.AuthService/{method}")
            futures = [
                unary.future(message.SerializeToString(), timeout=_CALL_SECONDS, wait_for_ready=True)
                for message in messages
            ]
            return [future.result() for future in futures]

    def _connect(self) -> grpc.Channel:
        options = [("grpc.ssl_target_name_override", "teleport.cluster.local")]
        return grpc.secure_channel(self._addr, self._credentials, options)


class RealCluster:
    """Roles, users and credentials of a scenario's people, made with tctl; names are unique to this run."""

    brief = 6.0

    def __init__(self, host: AuthHost, folder: Path, emails: Mapping[str, str]) -> None:
        self._host = host
        self._folder = folder
        self._tag = secrets.token_hex(3)
        found = re.search(r"v(\d+)\.\S+", host.tctl("version"))
        self._major = int(found[1]) if found else 0
        self.name = f"Teleport {found[0] if found else '?'}"
        self.requester, self.reviewers = emails["bob"], (emails["alice"], emails["ivan"])
        self.decider = f"decider-{self._tag}"
        self.no_reviews, self.no_restart = "", host.no_restart
        self.no_rules = "" if self._major >= _RULES_SINCE else f"{self.name} has no access monitoring rules"
        self.no_proxy = "" if host.proxy else "the Auth Service is reached directly"
        self._make_roles()
        self.identities = folder / "identities"
        self.identities.mkdir()
        self._accounts = {self.requester: self._account(self.requester, *_ASKING)}
        for name in self.reviewers:
            self._make_user(name, "reviewer")
            files = self._sign(name)
            self._accounts[name] = Account(host.addr, files)
            for file in (files.crt, files.key):
                shutil.copy(file, self.identities / f"{name}{file.suffix}")
        self._judge = self._account(f"judge-{self._tag}", "judge")
        self._plugin = f"plugin-{self._tag}"
        self._make_user(self._plugin, "plugin")
        self._make_user(self.decider, "plugin", "decider", *(() if self.no_rules else ("ruled",)))
        self.access, self.decider_access = self._access(self._plugin), self._access(self.decider)

    def close(self) -> None:
        """Remove the users and roles."""
        for name in (*self._accounts, self._plugin, self.decider, f"judge-{self._tag}"):
            self._host.tctl("rm", f"user/{name}")
        ruled = () if self.no_rules else ("ruled",)
        for role in (*_ASKING, "reviewer", "plugin", "decider", "judge", "target", "policed", *ruled):
            self._host.tctl("rm", f"role/{self._role(role)}")

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep the people's connections, so that a call is measured and not its handshake."""
        with ExitStack() as stack:
            for account in (*self._accounts.values(), self._judge):
                stack.enter_context(account.keep())
            yield

    # The people

    async def create_requests(
        self, count: int = 1, *, reason: bytes = b"", expires_in: float | None = None, policed: bool = False
    ) -> list[str]:
        role = "policed" if policed else "target"
        requests = [self._new_request(role, reason, expires_in) for _ in range(count)]
        # 12 began to choose the id itself and to tell it (CreateAccessRequestV2); the old call is gone since 16.
        method = "CreateAccessRequestV2" if self._major > 12 else "CreateAccessRequest"
        answers = await trio.to_thread.run_sync(self._accounts[self.requester].call, method, requests)
        if self._major <= 12:
            return [request.Metadata.Name.decode() for request in requests]
        return [pb.AccessRequestV3.FromString(answer).Metadata.Name.decode() for answer in answers]

    async def review(self, request_id: str, author: str, proposed_state: str, reason: str = "") -> None:
        review = pb.AccessReview(
            Author=author.encode(), ProposedState=pb.RequestState.Value(proposed_state), Reason=reason.encode()
        )
        review.Created.GetCurrentTime()
        submission = pb.AccessReviewSubmission(RequestID=request_id.encode(), Review=review)
        await trio.to_thread.run_sync(self._accounts[author].call, "SubmitAccessReview", [submission])

    async def resolve(self, request_id: str, state: str, reason: str = "") -> None:
        """As `tctl requests approve` or `deny`, over a connection that stands."""
        setter = pb.RequestStateSetter(
            ID=request_id.encode(), State=pb.RequestState.Value(state), Reason=reason.encode()
        )
        await trio.to_thread.run_sync(self._judge.call, "SetAccessRequestState", [setter])

    # The administrator

    async def approve(self, request_id: str, reason: str = "") -> None:
        await self._tctl("requests", "approve", f"--reason={reason}", request_id)

    async def deny(self, request_id: str, reason: str = "") -> None:
        await self._tctl("requests", "deny", f"--reason={reason}", request_id)

    async def remove(self, *request_ids: str) -> None:
        await self._tctl("requests", "rm", ",".join(request_ids))

    async def forget(self, *request_ids: str) -> None:
        try:
            await self.remove(*request_ids)
        except TctlError:
            # It stops at the first that is gone.
            for request_id in request_ids:
                with contextlib.suppress(TctlError):
                    await self.remove(request_id)

    async def state(self, request_id: str) -> str:
        try:
            found = await self._spec(request_id)
        except TctlError as exc:
            if "not found" not in str(exc):
                raise
            return ""
        return pb.RequestState.Name(found["state"])

    async def reviews(self, request_id: str) -> list[Review]:
        found = (await self._spec(request_id)).get("reviews") or []
        return [
            Review(one["author"], pb.RequestState.Name(one["proposed_state"]), one.get("reason", "")) for one in found
        ]

    async def add_rule(self, name: str, condition: str, plugin: str, recipient: str) -> None:
        await trio.to_thread.run_sync(self.create_rule, name, condition, plugin, recipient)

    async def remove_rule(self, name: str) -> None:
        await trio.to_thread.run_sync(self.delete_rule, name)

    async def renew(self) -> None:
        await trio.to_thread.run_sync(self._access, self._plugin)

    def away(self) -> AbstractAsyncContextManager[None]:
        return _away(self._host)

    def proxy_away(self) -> AbstractAsyncContextManager[None]:
        assert self._host.proxy is not None
        return _away(self._host.proxy)

    async def _spec(self, request_id: str) -> dict[str, Any]:
        found = json.loads(await self._tctl("requests", "get", request_id, "--format=json"))
        return dict(found[0]["spec"])

    async def _tctl(self, *arguments: str) -> str:
        return await trio.to_thread.run_sync(partial(self._host.tctl, *arguments))

    def create_rule(self, name: str, condition: str, plugin: str, recipient: str) -> None:
        """As `add_rule`. Raises TctlError where the server does not take it."""
        notification = {"name": plugin, "recipients": [recipient]}
        spec: dict[str, object] = {"subjects": ["access_request"], "condition": condition, "notification": notification}
        self._create("access_monitoring_rule", "v1", name, spec)

    def delete_rule(self, name: str) -> None:
        self._host.tctl("rm", f"access_monitoring_rule/{name}")

    # Setting up

    def _role(self, name: str) -> str:
        return f"check-{name}-{self._tag}"

    def _new_request(self, role: str, reason: bytes, expires_in: float | None) -> pb.AccessRequestV3:
        request = pb.AccessRequestV3(Kind=b"access_request", Version=b"v3")
        request.Metadata.Name = str(uuid.uuid4()).encode()
        request.Spec.User = self.requester.encode()
        request.Spec.Roles.append(self._role(role).encode())
        request.Spec.State = pb.PENDING
        request.Spec.RequestReason = reason
        if expires_in is not None:
            # The access that is asked for ends then, and no request outlives its access.
            request.Spec.Expires.FromNanoseconds(time.time_ns() + int(expires_in * 1e9))
        return request

    def _make_roles(self) -> None:
        target, policed = [self._role("target")], [self._role("policed")]
        for name in ("target", "policed"):
            self._make_role(name, {"logins": ["nobody"]})
        request = {"roles": target, "suggested_reviewers": list(self.reviewers)}
        try:
            two = {"approve": 2, "deny": 1}
            self._make_role("requester", {"request": {**request, "thresholds": [two]}})
            self._make_role("reviewer", {"review_requests": {"roles": target}})
            decider = {"approve": 1, "deny": 1, "filter": f'contains(reviewer.roles,"{self._role("decider")}")'}
            self._make_role("policed-requester", {"request": {"roles": policed, "thresholds": [decider]}})
            self._make_role("decider", {"review_requests": {"roles": policed}})
        except TctlError as exc:
            if _NOT_IN_THIS_EDITION not in str(exc):
                raise
            self.no_reviews = f"{self.name} is the community edition: no thresholds, no reviews"
            self._make_role("requester", {"request": request})
            for name in ("policed-requester", "reviewer", "decider"):
                self._make_role(name, {})
        # The two rules of Teleport's guide, and nothing more.
        rules = [
            {"resources": ["access_request"], "verbs": ["list", "read"]},
            {"resources": ["access_plugin_data"], "verbs": ["update"]},
        ]
        self._make_role("plugin", {"rules": rules})
        if not self.no_rules:
            self._make_role("ruled", {"rules": [{"resources": ["access_monitoring_rule"], "verbs": ["list", "read"]}]})
        self._make_role("judge", {"rules": [{"resources": ["access_request"], "verbs": ["list", "read", "update"]}]})

    def _make_role(self, name: str, allow: dict[str, object]) -> None:
        allow = {"logins": [f"no-login-{name}"], **allow}
        version = "v3" if self._major < 10 else "v5"
        self._create("role", version, self._role(name), {"allow": allow})

    def _make_user(self, name: str, *roles: str) -> None:
        self._create("user", "v2", name, {"roles": [self._role(role) for role in roles]})

    def _account(self, name: str, *roles: str) -> Account:
        self._make_user(name, *roles)
        return Account(self._host.addr, self._sign(name))

    def _access(self, name: str) -> Settings:
        """Sign in and tell the settings; again under the same name, the files are replaced."""
        if (proxy := self._host.proxy) is None:
            return direct_access(self._host.addr, self._sign(name))
        (identity,) = self._signed("file", name, "pem")
        return {
            "teleport.addr": proxy.addr,
            "teleport.identity": str(identity),
            "teleport.proxy_ca_file": str(proxy.ca_file),
        }

    def _sign(self, name: str) -> Credentials:
        return Credentials(*self._signed("tls", name, "crt", "key", "cas"))

    def _signed(self, kind: str, name: str, *ends: str) -> list[Path]:
        """Have credentials made, one file for each ending, and laid where the sidecar finds them."""
        out = self._host.path(f"{self._tag}-{secrets.token_hex(2)}.{ends[0]}")
        sign = ("auth", "sign", f"--format={kind}", f"--user={name}", f"--out={out.removesuffix('.crt')}", "--ttl=72h")
        _patiently(lambda: self._host.tctl(*sign))
        made = []
        for end in ends:
            file = self._folder / f"{name}.{end}"
            new = file.with_suffix(f".{end}.new")
            new.touch(mode=0o600)
            new.write_bytes(self._host.take(out.removesuffix(ends[0]) + end))
            made.append(new.rename(file))
        return made

    def _create(self, kind: str, version: str, name: str, spec: dict[str, object]) -> None:
        resource = {"kind": kind, "version": version, "metadata": {"name": name}, "spec": spec}
        path = self._host.put(f"{self._tag}-{kind}-{secrets.token_hex(2)}.yaml", json.dumps(resource))
        self._host.tctl("create", "-f", path)


@asynccontextmanager
async def _away(host: AuthHost | ProxyHost) -> AsyncIterator[None]:
    await trio.to_thread.run_sync(host.stop)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(host.start)


def _patiently(run: Callable[[], object], seconds: float = 10.0) -> None:
    """A new user is known to everyone in about a second: the backend is polled."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            run()
        except TctlError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.5)
        else:
            return
