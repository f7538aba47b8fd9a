"""The calls of an Auth Service that the sidecar makes, in the words of the model.

Every method raises what its map in status.py says: LinkLost, LinkRefused or LinkGarbled, and where noted the errors of
the one call. Unary calls end by themselves within 10 s, lists within 60 s.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager

import trio

from sidecar.errors import LinkGarbled, LinkRefused, SidecarError
from sidecar.model import AccessRequest, MonitoringRule, Ping, PluginData, Review
from sidecar.sliced import sliced
from sidecar.teleport import codec
from sidecar.teleport.bridge import AUTH_SERVICE, Channel, Observe, open_channel, open_local_channel
from sidecar.teleport.credentials import Credentials, read_credentials
from sidecar.teleport.findings import API_DOMAIN, shown
from sidecar.teleport.identity import own_roots
from sidecar.teleport.splice import splice
from sidecar.teleport.status import (
    CallFailed,
    is_missing_method,
    is_too_large,
    link_error,
    review_error,
    update_error,
)
from sidecar.teleport.streams import Event, Requests, events, next_event, streamed
from sidecar.teleport.tls import dial_through_proxy
from sidecar.teleport.x509 import CertificateFacts, read_certificate

__all__ = ["AuthClient", "Credentials", "Observe", "open_client", "read_credentials"]

_RULES = "/teleport.accessmonitoringrules.v1.AccessMonitoringRulesService/"
_LOGIN_STATES = "/teleport.userloginstate.v1.UserLoginStateService/"
_USERS = "/teleport.users.v1.UsersService/"
# As many as Teleport gives in one page.
_RULES_PAGE = 1000
# Watches that name a kind which an older server does not have fail there as a whole.
_PARTIAL_SUCCESS_SINCE = 15

_PING_SECONDS = 5.0
# Teleport itself tries a contended write for about two seconds.
_CALL_SECONDS = 10.0
_LIST_SECONDS = 60.0
# The plugin data of all requests comes in one message, 1 MB each at most; and Teleport 7 limits no reason in a list.
_WIDE_MIB = 256
_NARROW_MIB = 64


@asynccontextmanager
async def open_client(
    addr: str,
    credentials: Credentials,
    *,
    server_name: str | None = API_DOMAIN,
    plugin_name: str = "mattermost",
    observe: Observe = lambda _method, _outcome, _seconds: None,
    through: trio.Nursery | None = None,
) -> AsyncIterator[AuthClient]:
    """Open a client for the Auth Service at `addr` ("host:port"). Does no I/O: the first call connects.

    With `through`, `addr` is a Proxy's: it connects at once, and once only. The nursery owns what carries the bytes.

    Only the CAs of our own cluster are trusted, and `server_name` is expected in the certificate; None means the host
    of `addr`. `observe` is told each call's method, outcome ("ok", "cancelled" or a status code in lower case) and
    seconds; of a stream the wait for the first message.

    Raises:
        LinkRefused: "credentials": they cannot be read, or hold no CA of our own cluster; with `through`, "tls".
        LinkLost: with `through`, "unreachable".

    """
    ours, roots = _judged(credentials)

    @asynccontextmanager
    async def connect(mib: int) -> AsyncIterator[tuple[Channel, Callable[[], bool]]]:
        if through is None:
            async with open_channel(
                addr, credentials, roots, server_name=server_name, observe=observe, max_message_mib=mib
            ) as channel:
                yield channel, lambda: False
            return
        tls, heard = await dial_through_proxy(addr, credentials, now=time.time())
        async with (
            splice(through, tls, heard) as spliced,
            open_local_channel(spliced.target, observe=observe, max_message_mib=mib) as channel,
        ):
            yield channel, lambda: spliced.over

    async with connect(_NARROW_MIB) as (channel, is_over):
        yield AuthClient(channel, is_over, lambda: connect(_WIDE_MIB), plugin_name, ours.cluster)


def _judged(credentials: Credentials) -> tuple[CertificateFacts, bytes]:
    """Who we are, and the CAs to trust, which are never none: grpcio would take the system's."""
    try:
        ours = read_certificate(credentials.certificate)
        if roots := own_roots(credentials, ours):
            return ours, roots
    except ValueError as exc:
        raise LinkRefused("teleport", "credentials", "our certificate or the CA file cannot be read") from exc
    raise LinkRefused("teleport", "credentials", f"the CA file holds no CA of our cluster {shown(ours.cluster)}")


_Connect = Callable[[], AbstractAsyncContextManager[tuple[Channel, Callable[[], bool]]]]


class AuthClient:
    """One connection to an Auth Service, for any number of tasks."""

    def __init__(
        self, channel: Channel, is_over: Callable[[], bool], open_wide: _Connect, plugin_name: str, cluster: str
    ) -> None:
        self._channel = channel
        self._is_over = is_over
        self._open_wide = open_wide
        self._plugin = plugin_name
        self._cluster = cluster
        self._met = False
        self._legacy_list = False
        self._legacy_rules = False
        self._major = 0
        # Whether the watch that was opened last tells of rules, too.
        self.watches_rules = False

    @property
    def over(self) -> bool:
        """Whether no call can succeed any more: the connection through a Proxy was lost."""
        return self._is_over()

    async def ping(self) -> Ping:
        """Ask what server this is. Proves the way, not our rights: it needs none.

        Raises LinkRefused ("tls") where it is not of our own cluster.
        """
        self._met = False
        answer = await self._call("Ping", codec.encode_ping(), link_error, seconds=_PING_SECONDS)
        info = codec.decode_ping(answer)
        if info.cluster != self._cluster:
            sentence = f"the Auth Service says that it is of cluster {shown(info.cluster)}, we are of {self._cluster}"
            raise LinkRefused("teleport", "tls", sentence)
        self._major = info.major
        self._met = True
        return info

    async def meet(self) -> None:
        """Ping unless the present connection was: what is called next goes to a server of our own cluster."""
        if not (self._met and await self._channel.is_connected()):
            await self.ping()

    async def get_request(self, request_id: str) -> AccessRequest | None:
        """Read one request from the backend itself (lists may come from a cache that lags); None: there is none."""
        async with self._requests(codec.encode_filter(request_id), _CALL_SECONDS) as requests:
            async for request in requests:
                if request.id == request_id:
                    return request
        return None

    @asynccontextmanager
    async def list_requests(self) -> AsyncIterator[AsyncIterator[AccessRequest]]:
        """All requests that our role may read; without the verb `list` silently fewer. Entering waits for the first."""
        async with self._requests(codec.encode_filter(), _LIST_SECONDS) as requests:
            yield requests

    async def read_plugin_data(self, request_id: str) -> dict[str, str]:
        """Our plugin's entry for one request; {} where there is none."""
        request = codec.encode_plugin_filter(self._plugin, request_id)
        answer = await self._call("GetPluginData", request, link_error)
        records = codec.decode_plugin_data(answer, self._plugin)
        return next((record.data for record in records if record.request_id == request_id), {})

    async def list_plugin_data(self) -> Iterator[PluginData]:
        """Our plugin's entries for all requests, also for those that are gone. On a connection of its own.

        Iterating may raise LinkGarbled.
        """
        answer = await self._wide("GetPluginData", codec.encode_plugin_filter(self._plugin))
        return codec.decode_plugin_data(answer, self._plugin)

    async def update_plugin_data(self, request_id: str, put: Mapping[str, str], expect: Mapping[str, str]) -> None:
        """Save atomically: where every key of `expect` has that value, merge `put`. "" means absent in both.

        Raises:
            Conflict: something else stands there; nothing was written.
            RequestGone: the request, and its plugin data, are gone.
            PluginDataTooLarge: nothing was written.

        """
        request = codec.encode_plugin_update(self._plugin, request_id, put, expect)
        await self._call("UpdatePluginData", request, update_error)

    @asynccontextmanager
    async def watch(self, *, rules: bool = False) -> AsyncIterator[AsyncIterator[Event]]:
        """Watch all access requests. Entering waits for INIT without a limit of its own; what is read comes after it.

        With `rules` also access monitoring rules, if the last Ping was of a server that can say no to them alone;
        `watches_rules` tells what it said.

        The iteration never ends by itself: it raises, also where the server ends the stream in good order.
        """
        request = codec.encode_watch(rules=rules and self._major >= _PARTIAL_SUCCESS_SINCE)
        async with self._channel.stream("WatchEvents", request) as stream:
            init = codec.decode_event(await next_event(stream))
            if not isinstance(init, codec.Init):
                raise LinkGarbled("teleport", "no_init", "the watch did not begin with INIT")
            self.watches_rules = init.rules
            async with aclosing(events(stream)) as told:
                yield told

    async def list_rules(self, token: str = "") -> tuple[list[MonitoringRule], str]:
        """A page of the access monitoring rules, at least of those that name our plugin; and the next one's token.

        Raises LinkRefused: "unimplemented" where the server has none, "denied" where our role may not see them.
        """
        request = codec.encode_rules(self._plugin, token, _RULES_PAGE)
        if not self._legacy_rules:
            try:
                answer = await self._channel.unary(
                    "ListAccessMonitoringRulesWithFilter", request, seconds=_CALL_SECONDS, service=_RULES
                )
            except CallFailed as exc:
                if not is_missing_method(exc):
                    raise link_error(exc) from exc
                self._legacy_rules = True
            else:
                return codec.decode_rules(answer)
        return codec.decode_rules(await self._call("ListAccessMonitoringRules", request, link_error, service=_RULES))

    async def user_traits(self, user: str) -> dict[str, tuple[str, ...]]:
        """The traits of a user, as of the last login where Teleport keeps that."""
        request = codec.encode_name(user)
        try:
            state = await self._channel.unary(
                "GetUserLoginState", request, seconds=_CALL_SECONDS, service=_LOGIN_STATES
            )
        except CallFailed as exc:
            if exc.code not in {"NOT_FOUND", "UNIMPLEMENTED"}:
                raise link_error(exc) from exc
        else:
            return codec.decode_login_state(state)
        return codec.decode_user(await self._call("GetUser", request, link_error, service=_USERS))

    async def list_roles(self) -> list[str]:
        """The names of all roles."""
        return codec.decode_roles(await self._call("GetRoles", b"", link_error))

    async def submit_review(
        self, request_id: str, author: str, proposed_state: str, reason: str, *, on_behalf_by: str = ""
    ) -> AccessRequest:
        """Submit a review, "APPROVED" or "DENIED", and return the request as it is then.

        `on_behalf_by` is our own user where that is not the author (18.11 and newer).

        Raises:
            ReviewRejected: "duplicate", "resolved", "mfa_required", "not_allowed" or "other".
            RequestGone: there is no such request.

        """
        review = Review(author, proposed_state, reason, created=time.time())
        answer = await self._call(
            "SubmitAccessReview", codec.encode_review(request_id, review, on_behalf_by), review_error
        )
        return codec.decode_request(answer)

    async def set_state(self, request_id: str, state: str, reason: str, delegator: str) -> None:
        """Set the state, "APPROVED" or "DENIED", past all thresholds. Raises what submit_review does."""
        request = codec.encode_state(request_id, state, reason, delegator)
        await self._call("SetAccessRequestState", request, review_error)

    async def _wide(self, method: str, request: bytes) -> bytes:
        """Call on a connection of its own that takes longer messages."""
        async with self._open_wide() as (channel, is_over):
            wide = AuthClient(channel, is_over, self._open_wide, self._plugin, self._cluster)
            await wide.meet()
            return await wide._call(method, request, link_error, seconds=_LIST_SECONDS)

    async def _call(
        self,
        method: str,
        request: bytes,
        to_error: Callable[[CallFailed], SidecarError],
        service: str = AUTH_SERVICE,
        *,
        seconds: float = _CALL_SECONDS,
    ) -> bytes:
        try:
            return await self._channel.unary(method, request, seconds=seconds, service=service)
        except CallFailed as exc:
            raise to_error(exc) from exc

    @asynccontextmanager
    async def _requests(self, request: bytes, seconds: float) -> AsyncIterator[AsyncIterator[AccessRequest]]:
        async with AsyncExitStack() as stack:
            try:
                requests = await self._open_either_list(stack, request, seconds)
            except CallFailed as exc:
                raise link_error(exc) from exc
            yield await stack.enter_async_context(aclosing(requests))

    async def _open_either_list(self, stack: AsyncExitStack, request: bytes, seconds: float) -> Requests:
        """V2 came with Teleport 10, the other one went with 14. Remembered, and found out anew after an upgrade."""
        legacy = self._legacy_list
        try:
            return await self._open_list(stack, request, seconds, legacy=legacy)
        except CallFailed as exc:
            if not is_missing_method(exc):
                raise
            # Not toggled: several tasks may find it out at once.
            self._legacy_list = not legacy
            return await self._open_list(stack, request, seconds, legacy=not legacy)

    async def _open_list(self, stack: AsyncExitStack, request: bytes, seconds: float, *, legacy: bool) -> Requests:
        if legacy:
            try:
                answer = await self._channel.unary("GetAccessRequests", request, seconds=seconds)
            except CallFailed as exc:
                if not is_too_large(exc):
                    raise
                answer = await self._wide("GetAccessRequests", request)
            return sliced(codec.decode_requests(answer))
        stream = await stack.enter_async_context(self._channel.stream("GetAccessRequestsV2", request, seconds=seconds))
        return streamed(await stream.receive(), stream)
