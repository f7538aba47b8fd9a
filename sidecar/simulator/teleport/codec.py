"""What the stand-in Auth Service keeps, and how a given version writes it to the wire.

Text is kept as `str`; bytes that are no UTF-8 are kept as surrogates and go out as they came in, as gogoproto does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from google.protobuf.timestamp_pb2 import Timestamp

from sidecar.model import AccessRequest, Resource, Review, Threshold
from sidecar.simulator.teleport.profile import Profile
from sidecar.simulator.teleport.roles import REQUEST
from sidecar.teleport.pb import teleport_pb2 as pb

# gogoproto writes a zero time.Time that may not be null as year 1
YEAR_1 = -62135596800


@dataclass(frozen=True)
class Ballot:
    """What Teleport stores with a review beyond `model.Review`: the thresholds it counts toward, and who sent it."""

    indexes: tuple[int, ...] = ()
    submitted_by: str = ""
    on_behalf: bool = False


@dataclass(frozen=True)
class StoredRequest:
    """A request in the backend; `ballots` stands beside `request.reviews`, `serial` grows with every write."""

    request: AccessRequest
    ballots: tuple[Ballot, ...]
    serial: int
    annotations: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class StoredPluginData:
    """The plugin data of one request, of all plugins."""

    request_id: str
    entries: Mapping[str, Mapping[str, str]]
    expires: float
    serial: int


def raw(text: str) -> bytes:
    """Encode, the smuggled bytes included."""
    return text.encode("utf-8", "surrogateescape")


def text(value: bytes | str) -> str:
    """Decode so that `raw` gives the same bytes back."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def state_number(name: str) -> pb.RequestState.ValueType:
    """Turn "APPROVED" into 2 and "STATE 7" into 7."""
    if name.startswith("STATE "):
        # an open enum: proto3 carries any number
        return cast("pb.RequestState.ValueType", int(name[6:]))
    return pb.RequestState.Value(name)


def _kind_number(name: str) -> pb.AccessRequestKind.ValueType:
    if name.startswith("KIND "):
        return cast("pb.AccessRequestKind.ValueType", int(name[5:]))
    return pb.AccessRequestKind.Value(name)


def state_name(number: int) -> str:
    """Turn 2 into "APPROVED" and 7 into "STATE 7"."""
    known = pb.RequestState.DESCRIPTOR.values_by_number.get(number)
    return known.name if known else f"STATE {number}"


def entries(pairs: Mapping[str, str]) -> list[pb.StringEntry]:
    """Encode a map of strings, sorted as gogoproto's stable marshaller does."""
    return [pb.StringEntry(key=raw(key), value=raw(value)) for key, value in sorted(pairs.items())]


def from_entries(message: Iterable[pb.StringEntry]) -> dict[str, str]:
    """Decode a map of strings."""
    return {text(entry.key): text(entry.value) for entry in message}


def encode_request(stored: StoredRequest, profile: Profile) -> pb.AccessRequestV3:
    """Write a request as this version does (reference: types.AccessRequestV3)."""
    request = stored.request
    metadata = _metadata(request.id, stored.serial, profile)
    spec = pb.AccessRequestSpecV3(
        User=raw(request.user),
        Roles=[raw(role) for role in request.roles],
        State=state_number(request.state),
        Created=_required_time(request.created),
        Expires=_required_time(request.access_until),
        RequestReason=raw(request.reason),
        ResolveReason=raw(request.resolve_reason),
        ResolveAnnotations=encode_labels(stored.annotations),
        SystemAnnotations=encode_labels(request.system_annotations),
        Thresholds=[_threshold(threshold) for threshold in request.thresholds],
        RoleThresholdMapping=[_mapping(role, sets) for role, sets in request.role_thresholds],
        Reviews=[_review(*pair) for pair in zip(request.reviews, stored.ballots, strict=True)],
        SuggestedReviewers=[raw(name) for name in request.suggested_reviewers],
        RequestedResourceIDs=[_resource(resource) for resource in request.resources],
        AssumeStartTime=_time(request.assume_start),
        DryRun=request.dry_run,
    )
    if request.promoted_name or request.promoted_title:
        spec.accessList.Name = raw(request.promoted_name)
        spec.accessList.Title = raw(request.promoted_title)
    elif profile.writes_access_list and stored.ballots and request.state != "PENDING":
        spec.accessList.SetInParent()
    if any(resource.constraint or resource.unreadable for resource in request.resources):
        spec.RequestedResourceAccessIDs.extend(_access(resource) for resource in request.resources)
    if request.kind:
        spec.RequestKind = _kind_number(request.kind)
    if profile.has_revision:
        spec.MaxDuration.CopyFrom(_required_time(request.access_until))
        spec.SessionTTL.CopyFrom(_required_time(request.session_ttl))
    if request.expires is not None:
        (spec.ResourceExpiry if profile.expiry_in_spec else metadata.Expires).CopyFrom(_required_time(request.expires))
    return pb.AccessRequestV3(Kind=raw(REQUEST), Version=b"v3", Metadata=metadata, Spec=spec)


def encode_delete(request_id: str) -> pb.Event:
    """Write the event for a request that is gone: its name and nothing else, by expiry and by hand alike."""
    metadata = pb.Metadata(Name=raw(request_id), Namespace=b"default")
    header = pb.ResourceHeader(Kind=raw(REQUEST), Version=b"v3", Metadata=metadata)
    return pb.Event(Type=pb.DELETE, ResourceHeader=header)


def encode_init(kinds: Iterable[pb.WatchKind], profile: Profile) -> pb.Event:
    """Write INIT: no bytes at all, or the confirmed kinds."""
    if not profile.init_status:
        return pb.Event()
    status = pb.WatchStatusV1(
        Kind=b"watch_status",
        Version=b"v1",
        Metadata=pb.Metadata(Name=b"watch-status", Namespace=b"default"),
        Spec=pb.WatchStatusSpecV1(Kinds=kinds),
    )
    return pb.Event(WatchStatus=status)


def encode_plugin_data(stored: StoredPluginData, profile: Profile) -> pb.PluginDataV3:
    """Write plugin data; the entries of all plugins go out together."""
    metadata = _metadata(stored.request_id, stored.serial, profile)
    metadata.Expires.CopyFrom(_required_time(stored.expires))
    spec = pb.PluginDataSpecV3(
        Entries=[
            pb.PluginDataSpecEntry(key=raw(plugin), value=pb.PluginDataEntry(Data=entries(data)))
            for plugin, data in sorted(stored.entries.items())
        ]
    )
    return pb.PluginDataV3(Kind=b"plugin_data", SubKind=raw(REQUEST), Version=b"v3", Metadata=metadata, Spec=spec)


def seconds(stamp: Timestamp) -> float | None:
    """Read a time; None where it is unset."""
    return stamp.seconds + stamp.nanos / 1e9 if stamp.seconds > 0 else None


def _metadata(name: str, serial: int, profile: Profile) -> pb.Metadata:
    metadata = pb.Metadata(Name=raw(name), Namespace=b"default")
    if profile.has_metadata_id:
        metadata.ID = serial
    if profile.has_revision:
        metadata.Revision = raw(f"{serial:032x}")
    return metadata


def _time(value: float | None) -> Timestamp | None:
    return None if value is None else _required_time(value)


def _required_time(value: float | None) -> Timestamp:
    if value is None:
        return Timestamp(seconds=YEAR_1)
    whole, nanos = divmod(round(value * 1_000_000), 1_000_000)
    return Timestamp(seconds=whole, nanos=nanos * 1000)


def encode_labels(values: Iterable[tuple[str, tuple[str, ...]]]) -> pb.LabelValues:
    """Encode a map of lists."""
    return pb.LabelValues(
        Values=[
            pb.LabelValuesEntry(key=raw(key), value=pb.StringValues(Values=[raw(each) for each in held]))
            for key, held in values
        ]
    )


def _threshold(threshold: Threshold) -> pb.AccessReviewThreshold:
    return pb.AccessReviewThreshold(
        Name=raw(threshold.name), Filter=raw(threshold.filter), Approve=threshold.approve, Deny=threshold.deny
    )


def _mapping(role: str, sets: Iterable[Iterable[int]]) -> pb.RoleThresholdEntry:
    index_sets = [pb.ThresholdIndexSet(Indexes=indexes) for indexes in sets]
    return pb.RoleThresholdEntry(key=raw(role), value=pb.ThresholdIndexSets(Sets=index_sets))


def _review(review: Review, ballot: Ballot) -> pb.AccessReview:
    return pb.AccessReview(
        Author=raw(review.author),
        ProposedState=state_number(review.proposed_state),
        Reason=raw(review.reason),
        Created=_required_time(review.created),
        Annotations=pb.LabelValues(),
        ThresholdIndexes=ballot.indexes,
        SubmittedBy=raw(ballot.submitted_by),
        submitted_on_behalf_of_author=ballot.on_behalf,
    )


def _resource(resource: Resource) -> pb.ResourceID:
    return pb.ResourceID(
        ClusterName=raw(resource.cluster),
        Kind=raw(resource.kind),
        Name=raw(resource.name),
        SubResourceName=raw(resource.sub_resource),
    )


def _access(resource: Resource) -> pb.ResourceAccessID:
    access = pb.ResourceAccessID(id=_resource(resource))
    only = [raw(each) for each in resource.only]
    if resource.constraint or resource.unreadable:
        access.constraints.version = b"v1"
    if resource.constraint == "role ARNs":
        access.constraints.aws_console.role_arns.extend(only)
    elif resource.constraint:
        (
            access.constraints.windows_desktop if resource.kind == "windows_desktop" else access.constraints.ssh
        ).logins.extend(only)
    if resource.unreadable:
        # field 100: what a newer version may add
        access.constraints.MergeFromString(b"\xa2\x06\x00")
    return access
