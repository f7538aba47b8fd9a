"""Protobuf <-> model. Total over everything a server may send: a value of the model, or LinkGarbled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message
from google.protobuf.proto import parse_length_prefixed
from google.protobuf.timestamp_pb2 import Timestamp

from sidecar.errors import LinkGarbled
from sidecar.model import (
    AccessRequest,
    Delete,
    MonitoringRule,
    Ping,
    PluginData,
    Put,
    Resource,
    Review,
    RuleDelete,
    RulePut,
    Threshold,
)
from sidecar.teleport.pb import teleport_pb2 as pb

KIND = "access_request"
RULES = "access_monitoring_rule"
# Just before the year 10000, where Python's dates end. gogoproto sends an unset time as year 1.
_LAST_SECOND = 253_402_300_000
# The entitlements that the community edition of 18 enables itself: they say nothing of reviews.
_FREE_ENTITLEMENTS = frozenset({b"AccessRequests", b"App", b"DB", b"Desktop", b"JoinActiveSessions", b"K8s"})
# NONE is not among them: Teleport never stores it.
_STATES: dict[int, str] = {pb.PENDING: "PENDING", pb.APPROVED: "APPROVED", pb.DENIED: "DENIED", pb.PROMOTED: "PROMOTED"}
_KINDS: dict[int, str] = {pb.UNDEFINED: "", pb.SHORT_TERM: "SHORT_TERM", pb.LONG_TERM: "LONG_TERM"}
# The others must never be sent: PENDING with a reason makes every list of a Teleport 7 fail from then on.
_VERDICTS = {"APPROVED": pb.APPROVED, "DENIED": pb.DENIED}

M = TypeVar("M", bound=Message)


class Init(msgspec.Struct, frozen=True):
    """The watch says: from here on every change is told, of rules, too, where `rules` says so."""

    rules: bool = False


def decode_event(data: bytes) -> Put | Delete | RulePut | RuleDelete | Init | None:
    """Decode one message of WatchEvents; None is one that concerns neither access requests nor rules.

    Raises:
        LinkGarbled: not an Event, or a request without a name.

    """
    event = _parse(pb.Event, data)
    if event.Type == pb.INIT:
        return Init(any(kind.Kind == RULES.encode() for kind in event.WatchStatus.Spec.Kinds))
    match event.Type, event.WhichOneof("Resource"):
        case pb.PUT, "AccessRequest":
            return Put(_request(event.AccessRequest))
        case pb.PUT, "AccessMonitoringRule":
            return RulePut(_rule(event.AccessMonitoringRule))
        case pb.DELETE, _ if event.ResourceHeader.Kind == KIND.encode():
            return Delete(_name(event.ResourceHeader.Metadata))
        case pb.DELETE, _ if event.ResourceHeader.Kind == RULES.encode():
            return RuleDelete(_text(event.ResourceHeader.Metadata.Name))
    return None


def decode_request(data: bytes) -> AccessRequest:
    """Decode a types.AccessRequestV3.

    Raises:
        LinkGarbled: not such a message, or one without a name.

    """
    return _request(_parse(pb.AccessRequestV3, data))


def decode_requests(data: bytes) -> Iterator[AccessRequest]:
    """Decode the answer of the legacy GetAccessRequests; iterating raises as decode_request does."""
    return map(_request, _cut(pb.AccessRequestV3, data))


def decode_ping(data: bytes) -> Ping:
    """Decode a proto.PingResponse; raises LinkGarbled."""
    answer = _parse(pb.PingResponse, data)
    return Ping(
        cluster=_text(answer.ClusterName),
        server_version=_text(answer.ServerVersion),
        proxy_public_addr=_text(answer.ProxyPublicAddr),
        advanced_workflows=answer.ServerFeatures.AdvancedAccessWorkflows,
        paid_entitlement=any(
            entry.value.enabled and entry.key not in _FREE_ENTITLEMENTS for entry in answer.ServerFeatures.Entitlements
        ),
    )


def decode_plugin_data(data: bytes, plugin: str) -> Iterator[PluginData]:
    """Decode a proto.PluginDataSeq: the entries of `plugin`, and nobody else's; iterating raises LinkGarbled."""
    wanted = plugin.encode()
    for record in _cut(pb.PluginDataV3, data):
        for entry in record.Spec.Entries:
            if entry.key == wanted:
                yield PluginData(
                    _name(record.Metadata), {_text(pair.key): _text(pair.value) for pair in entry.value.Data}
                )


def decode_rules(data: bytes) -> tuple[list[MonitoringRule], str]:
    """Decode a page of rules, and the token of the next one, "" behind the last; raises LinkGarbled."""
    page = _parse(pb.ListAccessMonitoringRulesResponse, data)
    return [_rule(rule) for rule in page.rules], _text(page.next_page_token)


def decode_login_state(data: bytes) -> dict[str, tuple[str, ...]]:
    """Decode the traits in a UserLoginState; raises LinkGarbled."""
    return {_text(trait.key): _texts(trait.values) for trait in _parse(pb.UserLoginState, data).spec.traits}


def decode_user(data: bytes) -> dict[str, tuple[str, ...]]:
    """Decode the traits in the answer of GetUser; raises LinkGarbled."""
    return dict(_labels(_parse(pb.GetUserResponse, data).user.Spec.Traits))


def decode_roles(data: bytes) -> list[str]:
    """Decode the names in the answer of GetRoles; raises LinkGarbled."""
    return [_text(role.Metadata.Name) for role in _parse(pb.GetRolesResponse, data).Roles]


def encode_ping() -> bytes:
    """A proto.PingRequest."""
    return pb.PingRequest().SerializeToString()


def encode_watch(*, rules: bool = False) -> bytes:
    """A proto.Watch of all access requests, and of rules where the server grants that, too.

    Without a filter: one by state would hide what resolves a request.
    """
    kinds = [KIND, RULES] if rules else [KIND]
    return pb.Watch(
        Kinds=[pb.WatchKind(Kind=kind.encode()) for kind in kinds], AllowPartialSuccess=rules
    ).SerializeToString()


def encode_rules(plugin: str, token: str, size: int) -> bytes:
    """A ListAccessMonitoringRulesRequest: one page of the rules that tell `plugin` of access requests."""
    return pb.ListAccessMonitoringRulesRequest(
        page_size=size, page_token=_bytes(token), subjects=[KIND.encode()], notification_name=_bytes(plugin)
    ).SerializeToString()


def encode_name(name: str) -> bytes:
    """A request for the one with this name."""
    return pb.GetByName(name=_bytes(name)).SerializeToString()


def encode_filter(request_id: str = "") -> bytes:
    """A types.AccessRequestFilter: one request, or all."""
    return pb.AccessRequestFilter(ID=_bytes(request_id)).SerializeToString()


def encode_plugin_filter(plugin: str, request_id: str = "") -> bytes:
    """A types.PluginDataFilter: the entries of `plugin` for one request, or for all."""
    return pb.PluginDataFilter(
        Kind=KIND.encode(), Resource=_bytes(request_id), Plugin=_bytes(plugin)
    ).SerializeToString()


def encode_plugin_update(plugin: str, request_id: str, put: Mapping[str, str], expect: Mapping[str, str]) -> bytes:
    """A types.PluginDataUpdateParams; "" means absent, in `put` and in `expect`."""
    return pb.PluginDataUpdateParams(
        Kind=KIND.encode(),
        Resource=_bytes(request_id),
        Plugin=_bytes(plugin),
        Set=_entries(put),
        Expect=_entries(expect),
    ).SerializeToString()


def encode_review(request_id: str, review: Review, on_behalf_by: str = "") -> bytes:
    """A types.AccessReviewSubmission; `on_behalf_by` names the submitting user where it is not the author (18.11)."""
    wire = pb.AccessReview(
        Author=_bytes(review.author),
        ProposedState=_VERDICTS[review.proposed_state],
        Reason=_bytes(review.reason),
        SubmittedBy=_bytes(on_behalf_by),
        submitted_on_behalf_of_author=bool(on_behalf_by),
    )
    if review.created is not None:
        # Teleport 7 never sets it.
        wire.Created.FromMicroseconds(int(review.created * 1e6))
    return pb.AccessReviewSubmission(RequestID=_bytes(request_id), Review=wire).SerializeToString()


def encode_state(request_id: str, state: str, reason: str, delegator: str) -> bytes:
    """A proto.RequestStateSetter."""
    return pb.RequestStateSetter(
        ID=_bytes(request_id), State=_VERDICTS[state], Reason=_bytes(reason), Delegator=_bytes(delegator)
    ).SerializeToString()


def _request(wire: pb.AccessRequestV3) -> AccessRequest:
    spec = wire.Spec
    return AccessRequest(
        id=_name(wire.Metadata),
        user=_text(spec.User),
        state=_state(spec.State),
        roles=_texts(spec.Roles),
        reason=_text(spec.RequestReason),
        resolve_reason=_text(spec.ResolveReason),
        created=_seconds(spec.Created),
        expires=_seconds(spec.ResourceExpiry) or _seconds(wire.Metadata.Expires),
        access_until=_seconds(spec.Expires),
        assume_start=_seconds(spec.AssumeStartTime),
        session_ttl=_seconds(spec.SessionTTL),
        thresholds=tuple(Threshold(t.Approve, t.Deny, _text(t.Name), _text(t.Filter)) for t in spec.Thresholds),
        role_thresholds=tuple(
            (_text(entry.key), tuple(tuple(indexes.Indexes) for indexes in entry.value.Sets))
            for entry in spec.RoleThresholdMapping
        ),
        reviews=tuple(
            Review(_text(r.Author), _state(r.ProposedState), _text(r.Reason), _seconds(r.Created)) for r in spec.Reviews
        ),
        suggested_reviewers=_texts(spec.SuggestedReviewers),
        resources=_resources(spec),
        promoted_name=_text(spec.accessList.Name),
        promoted_title=_text(spec.accessList.Title),
        dry_run=spec.DryRun,
        system_annotations=_labels(spec.SystemAnnotations),
        kind=_KINDS.get(spec.RequestKind, f"KIND {spec.RequestKind}"),
    )


def _resources(spec: pb.AccessRequestSpecV3) -> tuple[Resource, ...]:
    # The newer list is authoritative where it is present (access_requests.proto, 2026).
    accesses = spec.RequestedResourceAccessIDs or [pb.ResourceAccessID(id=i) for i in spec.RequestedResourceIDs]
    return tuple(map(_resource, accesses))


def _resource(access: pb.ResourceAccessID) -> Resource:
    size = access.ByteSize()
    access.DiscardUnknownFields()
    known, constraints = access.ByteSize() == size, access.constraints
    constraint = ""
    only: tuple[str, ...] = ()
    match constraints.WhichOneof("details"):
        case "aws_console":
            constraint, only = "role ARNs", _texts(constraints.aws_console.role_arns)
        case "ssh":
            constraint, only = "logins", _texts(constraints.ssh.logins)
        case "windows_desktop":
            constraint, only = "logins", _texts(constraints.windows_desktop.logins)
    if access.HasField("constraints"):
        # None at all could mean nothing, or everything.
        known = known and constraints.version == b"v1" and bool(only)
    name = access.id
    return Resource(
        _text(name.ClusterName),
        _text(name.Kind),
        _text(name.Name),
        _text(name.SubResourceName),
        constraint,
        only,
        unreadable=not known,
    )


def _rule(wire: pb.AccessMonitoringRule) -> MonitoringRule:
    spec = wire.spec
    size = spec.ByteSize()
    spec.DiscardUnknownFields()
    return MonitoringRule(
        name=_text(wire.metadata.Name),
        subjects=_texts(spec.subjects),
        condition=_text(spec.condition),
        plugin=_text(spec.notification.name),
        recipients=_texts(spec.notification.recipients),
        unreadable=spec.ByteSize() != size,
    )


def _labels(labels: pb.LabelValues) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((_text(entry.key), _texts(entry.value.Values)) for entry in labels.Values)


def _name(metadata: pb.Metadata) -> str:
    if not metadata.Name:
        raise LinkGarbled("teleport", "undecodable", "an access request without a name")
    return _text(metadata.Name)


def _state(number: int) -> str:
    return _STATES.get(number, f"STATE {number}")


def _seconds(time: Timestamp) -> float | None:
    return time.seconds + time.nanos / 1e9 if 0 < time.seconds < _LAST_SECOND else None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _texts(raw: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(_text(item) for item in raw)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _entries(pairs: Mapping[str, str]) -> list[pb.StringEntry]:
    return [pb.StringEntry(key=_bytes(key), value=_bytes(value)) for key, value in pairs.items()]


def _cut(message_type: type[M], data: bytes) -> Iterator[M]:
    """Decode what a list holds, which is its field 1, one after another.

    The whole list at once would hold the loop, and with 40,000 entries leave 100 MB behind.
    """
    rest = BytesIO(data)
    while tag := rest.read(1):
        try:
            message = parse_length_prefixed(message_type, rest) if tag == b"\n" else None
        except (DecodeError, ValueError) as exc:
            sentence = f"a {message_type.__name__} in a list of {len(data)} bytes cannot be decoded"
            raise LinkGarbled("teleport", "undecodable", sentence) from exc
        if message is None:
            sentence = f"the entries of a list of {len(data)} bytes cannot be told apart"
            raise LinkGarbled("teleport", "undecodable", sentence)
        yield message


def _parse(message_type: type[M], data: bytes) -> M:
    try:
        return message_type.FromString(data)
    except DecodeError as exc:
        sentence = f"a {message_type.__name__} of {len(data)} bytes cannot be decoded"
        raise LinkGarbled("teleport", "undecodable", sentence) from exc
