"""The RPCs of the stand-in Auth Service: who may call what, and what goes over the wire.

Facts: lib/auth/auth_with_roles.go and grpcserver.go, 7.0 to 18.0. No sockets here: identities and messages in, answers
out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.protobuf.message import Message

from sidecar.model import AccessRequest
from sidecar.simulator.faults import Refusal
from sidecar.simulator.teleport.backend import Backend
from sidecar.simulator.teleport.codec import (
    encode_init,
    encode_plugin_data,
    from_entries,
    raw,
    seconds,
    state_name,
    text,
)
from sidecar.simulator.teleport.pki import Identity
from sidecar.simulator.teleport.reviews import StateChange, Submission, check_state_change
from sidecar.simulator.teleport.roles import (
    PLUGIN_DATA,
    REQUEST,
    RULE,
    Role,
    allows,
    denied,
    denies,
    invalid,
    matches,
    may_review,
    require,
)
from sidecar.simulator.teleport.rules import (
    get_login_state,
    get_role,
    get_roles,
    get_user,
    list_rules,
    list_rules_plain,
)
from sidecar.simulator.teleport.watch import Interest, Watcher
from sidecar.teleport.pb import teleport_pb2 as pb

_HOST = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.")


@dataclass(frozen=True)
class Caller:
    """Who calls, and the roles that count for the call."""

    identity: Identity
    roles: tuple[Role, ...]

    @property
    def user(self) -> str:
        """The Teleport user name."""
        return self.identity.user


_FREE = ("AccessRequests", "App", "DB", "Desktop", "JoinActiveSessions", "K8s")


class Service(Backend):
    """The RPCs over one cluster. `calls` counts arrivals by method; the two lists keep `(caller, what arrived)`."""

    def __init__(self, cluster: str, *, version: str, watch_buffer: int | None = None) -> None:
        super().__init__(version, watch_buffer=watch_buffer)
        self.cluster = cluster
        self.proxy_public_addr = ""
        # The paid editions' switch for reviews (7); and the entitlements, of which 18 enables some without a licence.
        self.advanced_workflows = True
        self.entitlements: Mapping[str, bool] = dict.fromkeys(_FREE if version.startswith("18.") else (), True)
        self.mfa_required = False
        self.calls: Counter[str] = Counter()
        self.submissions: list[tuple[str, Submission]] = []
        self.state_changes: list[tuple[str, StateChange]] = []

    def authenticate(self, identity: Identity) -> Caller:
        """Turn a certificate into a caller. Raises Refusal where the user is gone."""
        with self.changed:
            stored = self._user(identity.user)
            names = stored.roles if self.profile.roles_are_live or not identity.roles else identity.roles
            return Caller(identity, tuple(self.roles_of(names)))

    def ping(self, _caller: Caller, _message: pb.PingRequest) -> Message:
        """Needs no rights."""
        features = pb.Features(Kubernetes=True, App=True, DB=True, AdvancedAccessWorkflows=self.advanced_workflows)
        for name, enabled in self.entitlements.items():
            features.Entitlements.add(key=raw(name), value=pb.EntitlementInfo(enabled=enabled))
        return pb.PingResponse(
            ClusterName=raw(self.cluster),
            ServerVersion=raw(self.profile.version),
            ServerFeatures=features,
            ProxyPublicAddr=raw(self.proxy_public_addr),
        )

    # Reading requests

    def list_requests(self, caller: Caller, message: pb.AccessRequestFilter) -> list[bytes]:
        """Give encoded requests; without `list` and `read` only the caller's own and those they may review."""
        user, state = text(message.User), message.State
        everything = allows(caller.roles, REQUEST, "list") and allows(caller.roles, REQUEST, "read")
        if self.profile.major >= 15:
            for verb in ("list", "read"):
                if denies(caller.roles, REQUEST, verb):
                    require(caller.roles, REQUEST, verb)
        found = []
        for stored in self.scan(text(message.ID), cached=True):
            request = stored.request
            if (user and request.user != user) or (state and request.state != state_name(state)):
                continue
            if everything or self._concerns(caller, request):
                found.append(self.encoded(stored))
        return found

    def list_requests_legacy(self, caller: Caller, message: pb.AccessRequestFilter) -> Message:
        """The same in one message."""
        found = self.list_requests(caller, message)
        return pb.AccessRequests(AccessRequests=[pb.AccessRequestV3.FromString(each) for each in found])

    def watch(self, caller: Caller, message: pb.Watch) -> tuple[bytes, Watcher]:
        """Judge a watch, once; gives INIT and the watcher, not yet subscribed."""
        if not message.Kinds:
            raise denied("can't setup global watch")
        confirmed = []
        for kind in message.Kinds:
            try:
                self._may_watch(caller, kind)
            except Refusal:
                if not (message.AllowPartialSuccess and self.profile.init_status):
                    raise
                continue
            confirmed.append(kind)
        if not confirmed:
            raise invalid("none of the requested kinds can be watched")
        interests = tuple(_interest(kind) for kind in confirmed)
        init = encode_init(confirmed, self.profile).SerializeToString()
        return init, Watcher(caller.user, interests, self.watch_buffer)

    # Deciding

    def set_access_request_state(self, caller: Caller, message: pb.RequestStateSetter) -> Message:
        """Past all thresholds, for whoever has `update`."""
        change = StateChange(
            request_id=text(message.ID),
            state=state_name(message.State),
            reason=text(message.Reason),
            delegator=text(message.Delegator),
            annotations=tuple(
                (text(entry.key), tuple(text(value) for value in entry.value.Values))
                for entry in message.Annotations.Values
            ),
            roles=tuple(text(role) for role in message.Roles),
        )
        with self.changed:
            self.state_changes.append((caller.user, change))
            require(caller.roles, REQUEST, "update")
            self._require_mfa(caller)
            check_state_change(change, self.profile)
            if self.profile.guards_own_state:
                self._check_own_state(caller, change)
            self.change_state(change)
        return pb.PingRequest()  # google.protobuf.Empty: no bytes

    def submit_access_review(self, caller: Caller, message: pb.AccessReviewSubmission) -> bytes:
        """One review; answers with the request after it. The order of the checks is Teleport's."""
        review = message.Review
        submission = Submission(
            request_id=text(message.RequestID),
            author=text(review.Author) or caller.user,
            proposed_state=state_name(review.ProposedState),
            reason=text(review.Reason),
            created=seconds(review.Created),
            roles=tuple(text(role) for role in review.Roles),
            annotated=bool(review.Annotations.Values),
            submitted_by=text(review.SubmittedBy),
            on_behalf=review.submitted_on_behalf_of_author,
        )
        with self.changed:
            self.submissions.append((caller.user, submission))
            if not submission.request_id:
                raise invalid("missing request ID")
            if submission.proposed_state == "PROMOTED" and self.profile.major >= 15:
                raise invalid("state promoted can be only set when promoting to access list")
            on_behalf = self._check_author(caller, submission)
            self._require_mfa(caller)
            submission = replace(submission, submitted_by=caller.user if on_behalf else "", on_behalf=on_behalf)
            is_bot = self._is_bot(caller.user) and self.profile.knows_admin_mfa and not on_behalf
            return self.encoded(self.submit(submission, caller.identity.roles if is_bot else None))

    # Plugin data

    def get_plugin_data(self, caller: Caller, message: pb.PluginDataFilter) -> Message:
        """Objects of one request or all; `Plugin` selects objects, not entries."""
        self._check_plugin_kind(message.Kind)
        for verb in ("list", "read"):
            _require_plugin_data(caller, verb)
        if text(message.Kind) != REQUEST:
            return pb.PluginDataSeq()
        found = self.find_plugin_data(text(message.Resource), text(message.Plugin))
        return pb.PluginDataSeq(PluginData=[encode_plugin_data(each, self.profile) for each in found])

    def update_plugin_data(self, caller: Caller, message: pb.PluginDataUpdateParams) -> Message:
        """Compare and swap."""
        self._check_plugin_kind(message.Kind)
        _require_plugin_data(caller, "update")
        if not message.Resource:
            raise invalid(self.profile.no_resource)
        new, expect = from_entries(message.Set), from_entries(message.Expect)
        self.write_plugin_data(text(message.Resource), new, expect, plugin=text(message.Plugin))
        return pb.PingRequest()  # google.protobuf.Empty: no bytes

    def _concerns(self, caller: Caller, request: AccessRequest) -> bool:
        return request.user == caller.user or may_review(caller.user, caller.roles, request)

    def _may_watch(self, caller: Caller, kind: pb.WatchKind) -> None:
        name = text(kind.Kind)
        own = from_entries(kind.Filter).get("user") == caller.user
        if not (own and name == REQUEST):
            require(caller.roles, name, "read")
        if name != REQUEST and not (name == RULE and self.profile.has_rules):
            raise invalid(f'cache "auth" does not support watching resource "{name}"')

    def _check_own_state(self, caller: Caller, change: StateChange) -> None:
        """18 reads the request through the caller's own rights first."""
        visible = self.list_requests(caller, pb.AccessRequestFilter(ID=raw(change.request_id)))
        if not visible:
            details = f'access request "{change.request_id}" not found'
            raise Refusal(grpc.StatusCode.NOT_FOUND, details)
        request = self.request(change.request_id)
        if request is not None and request.user == caller.user:
            raise denied("directly updating the state of your own access requests is not permitted")

    def _check_author(self, caller: Caller, submission: Submission) -> bool:
        """Say whether the review is on behalf of somebody else; raises Refusal where that is not allowed."""
        user, author = caller.user, submission.author
        patterns = [pattern for role in caller.roles for pattern in role.submit_for_users]
        covered = self.profile.submits_for_users and submission.on_behalf and matches(patterns, author)
        if author != user and not covered:
            raise denied(f'user "{user}" cannot submit reviews on behalf of "{author}"')
        if not any(role.review_roles or role.submit_for_users for role in caller.roles):
            raise denied(f'user "{user}" cannot submit reviews')
        return author != user

    def _require_mfa(self, caller: Caller) -> None:
        """Bots are exempt, and certificates that `tctl auth sign` made on the Auth host."""
        if not (self.mfa_required and self.profile.knows_admin_mfa):
            return
        impersonator = caller.identity.impersonator
        by_host = _HOST.match(impersonator) and impersonator not in self.users
        if not (self._is_bot(caller.user) or self._is_bot(impersonator) or by_host):
            raise denied("admin-level API request requires MFA verification")

    def _is_bot(self, name: str) -> bool:
        return name in self.users and self.users[name].bot

    def _check_plugin_kind(self, kind: bytes) -> None:
        known = {REQUEST, "access_list"} if self.profile.major >= 15 else {REQUEST}
        if text(kind) not in known:
            raise invalid(f'unsupported resource kind "{text(kind)}"')


@dataclass(frozen=True)
class Method:
    """How one RPC is read and carried out."""

    parse: Callable[[bytes], Any]
    run: Callable[[Service, Caller, Any], Any]
    streams: bool = False
    service: str = "proto.AuthService"


_RULES = "teleport.accessmonitoringrules.v1.AccessMonitoringRulesService"
METHODS = {
    "Ping": Method(pb.PingRequest.FromString, Service.ping),
    "GetAccessRequests": Method(pb.AccessRequestFilter.FromString, Service.list_requests_legacy),
    "GetAccessRequestsV2": Method(pb.AccessRequestFilter.FromString, Service.list_requests, streams=True),
    "SetAccessRequestState": Method(pb.RequestStateSetter.FromString, Service.set_access_request_state),
    "SubmitAccessReview": Method(pb.AccessReviewSubmission.FromString, Service.submit_access_review),
    "GetPluginData": Method(pb.PluginDataFilter.FromString, Service.get_plugin_data),
    "UpdatePluginData": Method(pb.PluginDataUpdateParams.FromString, Service.update_plugin_data),
    "GetRole": Method(pb.GetByName.FromString, get_role),
    "GetRoles": Method(pb.PingRequest.FromString, get_roles),
    "ListAccessMonitoringRulesWithFilter": Method(
        pb.ListAccessMonitoringRulesRequest.FromString, list_rules, service=_RULES
    ),
    "ListAccessMonitoringRules": Method(
        pb.ListAccessMonitoringRulesRequest.FromString, list_rules_plain, service=_RULES
    ),
    "GetUserLoginState": Method(
        pb.GetByName.FromString, get_login_state, service="teleport.userloginstate.v1.UserLoginStateService"
    ),
    "GetUser": Method(pb.GetByName.FromString, get_user, service="teleport.users.v1.UsersService"),
}


def _require_plugin_data(caller: Caller, verb: str) -> None:
    """The same verb on access_request does as well; the error names access_plugin_data."""
    if not allows(caller.roles, REQUEST, verb):
        require(caller.roles, PLUGIN_DATA, verb)


def _interest(kind: pb.WatchKind) -> Interest:
    filters = from_entries(kind.Filter)
    for key in filters:
        if key not in {"id", "user", "state"}:
            raise invalid(f"unknown filter key {key}")
    state = filters.get("state", "")
    if state and state not in pb.RequestState.keys():  # noqa: SIM118 - an enum wrapper is no mapping
        raise invalid(f'unknown request state: "{state}"')
    return Interest(text(kind.Name), filters.get("id", ""), filters.get("user", ""), state, text(kind.Kind))
