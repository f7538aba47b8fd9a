"""Protobuf <-> model, on what a real Auth Service sent and on what a hostile one could send."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import LinkGarbled
from sidecar.model import AccessRequest, Delete, Ping, PluginData, Put, Resource, Review, Threshold
from sidecar.teleport import codec
from sidecar.teleport.pb import teleport_pb2 as pb

_FOLDER = Path(__file__).parents[1] / "data" / "teleport-7.0.0-dev"
_MANIFEST: list[dict[str, Any]] = json.loads((_FOLDER / "manifest.json").read_text())
_FIXTURES = [(_FOLDER / entry["file"]).read_bytes() for entry in _MANIFEST]
_PUTS = [entry for entry in _MANIFEST if entry["decoded"].get("Type") == "PUT"]
_YEAR_1 = Timestamp(seconds=-62135596800)


def _named(entry: dict[str, Any]) -> str:
    return str(entry["file"])


# The recorded messages


@pytest.mark.parametrize("entry", _MANIFEST, ids=_named)
def test_recorded_message_has_all_that_the_manifest_names(entry: dict[str, Any]) -> None:
    """The trimmed proto has the right numbers and types, and trims nothing that a Teleport 7 sends."""
    message_type: type[Message] = getattr(pb, entry["message"].removeprefix("proto."))
    message = message_type.FromString((_FOLDER / entry["file"]).read_bytes())
    assert _as_manifest(message) == entry["decoded"]
    assert message.SerializeToString(deterministic=True) == message_type.FromString(
        message.SerializeToString()
    ).SerializeToString(deterministic=True)


def _as_manifest(message: Message) -> dict[str, Any]:
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.is_repeated and field.message_type is not None and field.message_type.name.endswith("Entry"):
        entry = field.message_type.fields_by_name["value"]
        return {pair.key.decode(): _single(entry, pair.value) for pair in value}
    return [_single(field, item) for item in value] if field.is_repeated else _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Message):
        return _as_manifest(value)
    if isinstance(value, bytes):
        return value.decode()
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return str(value) if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else value


@pytest.mark.parametrize("entry", _PUTS, ids=_named)
def test_recorded_put_becomes_the_request_of_the_manifest(entry: dict[str, Any]) -> None:
    recorded = entry["decoded"]["AccessRequest"]
    spec = recorded["Spec"]
    assert codec.decode_event((_FOLDER / entry["file"]).read_bytes()) == Put(
        AccessRequest(
            id=recorded["Metadata"]["Name"],
            user=spec["User"],
            state=spec["State"],
            roles=tuple(spec["Roles"]),
            reason=spec.get("RequestReason", ""),
            resolve_reason=spec.get("ResolveReason", ""),
            created=_unix(spec["Created"]),
            expires=_unix(recorded["Metadata"]["Expires"]),
            access_until=_unix(spec["Expires"]),
            thresholds=tuple(Threshold(t["Approve"], t["Deny"]) for t in spec["Thresholds"]),
            role_thresholds=tuple(
                (role, tuple(tuple(indexes["Indexes"]) for indexes in sets["Sets"]))
                for role, sets in spec["RoleThresholdMapping"].items()
            ),
            reviews=tuple(
                Review(r["Author"], r["ProposedState"], r["Reason"], _unix(r["Created"]))
                for r in spec.get("Reviews", [])
            ),
            suggested_reviewers=tuple(spec.get("SuggestedReviewers", [])),
        )
    )


def _unix(text: str) -> float:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction or 0}")


def test_recorded_init_delete_ping_and_plugin_data() -> None:
    init, *_, delete, ping, plugin_data = _FIXTURES
    assert init == b""  # an empty message, and none to be dropped
    assert codec.decode_event(init) == codec.Init()
    assert codec.decode_event(delete) == Delete("0f092ee2-edda-4887-a267-fce8d5e54505")
    assert codec.decode_ping(ping) == Ping("example.com", "7.0.0-dev", advanced_workflows=True)
    expected = PluginData("04aec9d9-54c7-4bdd-b6e4-706d4754a0b4", {"state": "claimed"})
    assert list(codec.decode_plugin_data(plugin_data, "mattermost")) == [expected]
    assert list(codec.decode_plugin_data(plugin_data, "slack")) == []


# What newer servers send


def _request(**spec: Any) -> pb.AccessRequestV3:
    return pb.AccessRequestV3(Metadata=pb.Metadata(Name=b"r1"), Spec=pb.AccessRequestSpecV3(**spec))


def _decoded(request: pb.AccessRequestV3) -> AccessRequest:
    return codec.decode_request(request.SerializeToString())


def test_every_field_of_a_newer_server() -> None:
    resource = pb.ResourceID(ClusterName=b"c", Kind=b"node", Name=b"n", SubResourceName=b"s")
    request = _request(
        User=b"bob",
        State=pb.PROMOTED,
        Expires=Timestamp(seconds=300),
        ResourceExpiry=Timestamp(seconds=200),
        AssumeStartTime=Timestamp(seconds=100, nanos=500_000_000),
        SessionTTL=Timestamp(seconds=400),
        Thresholds=[pb.AccessReviewThreshold(Name=b"two", Filter=b"f", Approve=2, Deny=1)],
        RequestedResourceIDs=[resource],
        DryRun=True,
        accessList=pb.PromotedAccessList(Name=b"list", Title=b"The list"),
        RequestKind=pb.LONG_TERM,
    )
    request.Metadata.Expires.seconds = 150
    assert _decoded(request) == AccessRequest(
        id="r1",
        user="bob",
        state="PROMOTED",
        expires=200,
        access_until=300,
        assume_start=100.5,
        session_ttl=400,
        thresholds=(Threshold(2, 1, "two", "f"),),
        resources=(Resource("c", "node", "n", "s"),),
        promoted_name="list",
        promoted_title="The list",
        dry_run=True,
        kind="LONG_TERM",
    )


def test_newer_list_of_resources_is_authoritative() -> None:
    old, new = pb.ResourceID(Kind=b"node", Name=b"old"), pb.ResourceID(Kind=b"app", Name=b"new")
    request = _request(RequestedResourceIDs=[old], RequestedResourceAccessIDs=[pb.ResourceAccessID(id=new)])
    assert _decoded(request).resources == (Resource("", "app", "new"),)


V1 = pb.ResourceConstraints(version=b"v1")
SSH = pb.ResourceConstraints(version=b"v1", ssh=pb.LoginConstraints(logins=[b"root", b"a\xff"]))
AWS = pb.ResourceConstraints(version=b"v1", aws_console=pb.AWSConsoleConstraints(role_arns=[b"arn:1"]))
DESKTOP = pb.ResourceConstraints(version=b"v1", windows_desktop=pb.LoginConstraints(logins=[b"Administrator"]))
# A field that none of our messages has.
NEW_FIELD = b"\xa2\x06\x00"


@pytest.mark.parametrize(
    ("constraints", "word", "only"),
    [
        (SSH, "logins", ("root", "a\ufffd")),
        (AWS, "role ARNs", ("arn:1",)),
        (DESKTOP, "logins", ("Administrator",)),
    ],
)
def test_constraints(constraints: pb.ResourceConstraints, word: str, only: tuple[str, ...]) -> None:
    access = pb.ResourceAccessID(id=pb.ResourceID(Kind=b"node", Name=b"n"), constraints=constraints)
    decoded = _decoded(_request(RequestedResourceAccessIDs=[access]))
    assert decoded.resources == (Resource("", "node", "n", "", word, only),)
    assert decoded.teleport_only == ""


@pytest.mark.parametrize(
    ("constraints", "where"),
    [
        (V1, ""),
        (pb.ResourceConstraints(), ""),
        (pb.ResourceConstraints(version=b"v2", ssh=SSH.ssh), ""),
        (pb.ResourceConstraints(version=b"v1", ssh=pb.LoginConstraints()), ""),
        (SSH, "id"),
        (SSH, "access"),
        (SSH, "constraints"),
        (SSH, "ssh"),
        (None, "id"),
        (None, "access"),
    ],
)
def test_what_cannot_be_read_of_a_resource_is_said(constraints: pb.ResourceConstraints | None, where: str) -> None:
    """An approver must not grant what the card does not show: not of a newer version's kinds, either."""
    access = pb.ResourceAccessID(id=pb.ResourceID(Kind=b"node", Name=b"n"), constraints=constraints)
    parts: dict[str, Message] = {"": pb.ResourceAccessID(), "id": access.id, "access": access}
    if where in {"constraints", "ssh"}:
        parts |= {"constraints": access.constraints, "ssh": access.constraints.ssh}
    parts[where].MergeFromString(NEW_FIELD)
    decoded = _decoded(_request(RequestedResourceAccessIDs=[pb.ResourceAccessID(id=SSH_NODE), access]))
    assert [resource.unreadable for resource in decoded.resources] == [False, True]
    assert decoded.teleport_only == "unreadable"


SSH_NODE = pb.ResourceID(ClusterName=b"c", Kind=b"node", Name=b"n", SubResourceName=b"s")


def test_an_unknown_field_of_the_older_list_is_said_too() -> None:
    strange = pb.ResourceID(Kind=b"node", Name=b"n")
    strange.MergeFromString(NEW_FIELD)
    assert _decoded(_request(RequestedResourceIDs=[strange])).teleport_only == "unreadable"


@pytest.mark.parametrize(
    ("number", "kind", "teleport_only"),
    [(0, "", ""), (1, "SHORT_TERM", ""), (2, "LONG_TERM", "long_term"), (7, "KIND 7", "unknown_kind")],
)
def test_kinds(number: int, kind: str, teleport_only: str) -> None:
    decoded = _decoded(_request(RequestKind=number))
    assert (decoded.kind, decoded.teleport_only) == (kind, teleport_only)


def test_init_with_a_payload() -> None:
    """From 16 on INIT names the kinds."""
    event = pb.Event(WatchStatus=pb.WatchStatusV1(Kind=b"watch_status"))
    assert codec.decode_event(event.SerializeToString()) == codec.Init()


# As the community edition of 18.0 answers.
FREE = {b"App": True, b"AccessRequests": True, b"DB": True, b"Desktop": True, b"JoinActiveSessions": True, b"K8s": True}


@pytest.mark.parametrize(
    ("entitlements", "expected"),
    [
        ({}, False),
        (FREE, False),
        (FREE | {b"Identity": False}, False),
        (FREE | {b"Identity": True}, True),
        (FREE | {b"unheard-of": True}, True),
        ({b"SAML": True}, True),
    ],
)
def test_entitlements_that_are_paid_for(entitlements: dict[bytes, bool], expected: bool) -> None:  # noqa: FBT001
    entries = [pb.EntitlementEntry(key=key, value=pb.EntitlementInfo(enabled=on)) for key, on in entitlements.items()]
    ping = codec.decode_ping(pb.PingResponse(ServerFeatures=pb.Features(Entitlements=entries)).SerializeToString())
    assert ping == Ping("", "", advanced_workflows=False, paid_entitlement=expected)


# What is unset, unknown, or broken


@pytest.mark.parametrize("time", [_YEAR_1, Timestamp(), Timestamp(seconds=-5), Timestamp(seconds=10**14)])
def test_a_time_that_is_no_time_is_unset(time: Timestamp) -> None:
    request = _request(Created=time, Expires=time, SessionTTL=time, Reviews=[pb.AccessReview(Created=time)])
    decoded = _decoded(request)
    assert (decoded.created, decoded.access_until, decoded.session_ttl) == (None, None, None)
    assert decoded.reviews[0].created is None


def test_year_1_does_not_hide_the_expiry_in_the_metadata() -> None:
    request = _request(ResourceExpiry=_YEAR_1)
    request.Metadata.Expires.seconds = 150
    assert _decoded(request).expires == 150


@pytest.mark.parametrize("number", [0, 5, 2**31 - 1, -1])
def test_unknown_states_keep_their_number(number: int) -> None:
    decoded = _decoded(_request(State=number, Reviews=[pb.AccessReview(ProposedState=number)]))  # type: ignore[arg-type]
    assert decoded.state == decoded.reviews[0].proposed_state == f"STATE {number}"


@pytest.mark.parametrize(
    "event",
    [
        pb.Event(Type=7, AccessRequest=_request()),  # type: ignore[arg-type]
        pb.Event(Type=pb.PUT),
        pb.Event(Type=pb.PUT, ResourceHeader=pb.ResourceHeader(Kind=b"access_request")),
        pb.Event(Type=pb.DELETE),
        pb.Event(Type=pb.DELETE, ResourceHeader=pb.ResourceHeader(Kind=b"access_list")),
    ],
)
def test_foreign_events_are_skipped(event: pb.Event) -> None:
    assert codec.decode_event(event.SerializeToString()) is None


def test_invalid_utf8_is_replaced_everywhere() -> None:
    """One requester must not be able to end the watch for all."""
    bad = b"a\xffb"
    decoded = _decoded(
        pb.AccessRequestV3(
            Metadata=pb.Metadata(Name=bad, Description=bad),
            Spec=pb.AccessRequestSpecV3(
                User=bad,
                Roles=[bad],
                RequestReason=bad,
                ResolveReason=bad,
                LoginHint=bad,
                Thresholds=[pb.AccessReviewThreshold(Name=bad, Filter=bad)],
                RoleThresholdMapping=[pb.RoleThresholdEntry(key=bad)],
                Reviews=[pb.AccessReview(Author=bad, Reason=bad)],
                SuggestedReviewers=[bad],
                RequestedResourceIDs=[pb.ResourceID(ClusterName=bad, Kind=bad, Name=bad, SubResourceName=bad)],
                accessList=pb.PromotedAccessList(Name=bad, Title=bad),
            ),
        )
    )
    good = "a\ufffdb"
    assert msgspec.json.encode(decoded).count(good.encode()) == 17
    assert decoded.reason == good


def test_no_field_that_a_server_sends_is_a_string() -> None:
    """Python's protobuf refuses a whole message for one string that is not UTF-8."""
    strings = [
        field.full_name
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.type == FieldDescriptor.TYPE_STRING
    ]
    assert strings == []


def test_plugin_data_of_others_and_broken_values() -> None:
    def entry(plugin: bytes, value: bytes) -> pb.PluginDataSpecEntry:
        data = pb.PluginDataEntry(Data=[pb.StringEntry(key=b"k", value=value)])
        return pb.PluginDataSpecEntry(key=plugin, value=data)

    record = pb.PluginDataV3(
        Metadata=pb.Metadata(Name=b"r1"),
        Spec=pb.PluginDataSpecV3(Entries=[entry(b"slack", b"theirs"), entry(b"mattermost", b"\xff")]),
    )
    answer = pb.PluginDataSeq(PluginData=[record]).SerializeToString()
    assert list(codec.decode_plugin_data(answer, "mattermost")) == [PluginData("r1", {"k": "\ufffd"})]


_DECODERS: list[Callable[[bytes], object]] = [
    codec.decode_event,
    codec.decode_request,
    lambda data: list(codec.decode_requests(data)),
    codec.decode_ping,
    lambda data: list(codec.decode_plugin_data(data, "mattermost")),
]


@pytest.mark.parametrize("decode", _DECODERS)
def test_truncated_message_is_garbled(decode: Callable[[bytes], object]) -> None:
    with pytest.raises(LinkGarbled) as caught:
        decode(b"\x0a\x7fabc")
    assert (caught.value.link, caught.value.reason) == ("teleport", "undecodable")


def test_request_without_a_name_is_garbled() -> None:
    unnamed = pb.AccessRequestV3(Spec=pb.AccessRequestSpecV3(User=b"bob"))
    with pytest.raises(LinkGarbled, match="without a name"):
        _decoded(unnamed)
    with pytest.raises(LinkGarbled, match="without a name"):
        codec.decode_event(pb.Event(Type=pb.PUT, AccessRequest=unnamed).SerializeToString())


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A recorded message with a few bytes changed, put in or cut out."""
    data = bytearray(draw(st.sampled_from([fixture for fixture in _FIXTURES if fixture])))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@settings(deadline=None)  # of two busy cores
@given(data=st.one_of(st.binary(max_size=200), _mutated()), decode=st.sampled_from(_DECODERS))
def test_whatever_is_sent_is_a_value_or_garbled(data: bytes, decode: Callable[[bytes], object]) -> None:
    try:
        value = decode(data)
    except LinkGarbled:
        return
    json.loads(msgspec.json.encode(value))  # all text is text, all numbers are numbers
    for request in _requests_in(value):
        for time in (request.created, request.expires, request.access_until, request.assume_start):
            assert time is None or datetime.fromtimestamp(time, UTC).year <= 9999


def _requests_in(value: object) -> list[AccessRequest]:
    values = value if isinstance(value, list) else [value.request if isinstance(value, Put) else value]
    return [item for item in values if isinstance(item, AccessRequest)]


# What we send


def test_watch_names_one_kind_and_no_filter() -> None:
    watch = pb.Watch.FromString(codec.encode_watch())
    assert watch == pb.Watch(Kinds=[pb.WatchKind(Kind=b"access_request")])


def test_filters() -> None:
    assert codec.encode_filter() == codec.encode_ping() == b""
    assert pb.AccessRequestFilter.FromString(codec.encode_filter("r1")) == pb.AccessRequestFilter(ID=b"r1")
    expected = pb.PluginDataFilter(Kind=b"access_request", Resource=b"r1", Plugin=b"mattermost")
    assert pb.PluginDataFilter.FromString(codec.encode_plugin_filter("mattermost", "r1")) == expected


def test_plugin_update() -> None:
    """The empty string is sent: in `Set` it deletes, in `Expect` it means absent."""
    update = codec.encode_plugin_update("mattermost", "r1", {"tm": "é", "old": ""}, {"tm": ""})
    assert pb.PluginDataUpdateParams.FromString(update) == pb.PluginDataUpdateParams(
        Kind=b"access_request",
        Resource=b"r1",
        Plugin=b"mattermost",
        Set=[pb.StringEntry(key=b"tm", value="é".encode()), pb.StringEntry(key=b"old", value=b"")],
        Expect=[pb.StringEntry(key=b"tm", value=b"")],
    )


def test_review() -> None:
    sent = codec.encode_review("r1", Review("alice", "DENIED", "no \ud800", created=1.5))
    assert pb.AccessReviewSubmission.FromString(sent) == pb.AccessReviewSubmission(
        RequestID=b"r1",
        Review=pb.AccessReview(
            Author=b"alice", ProposedState=pb.DENIED, Reason=b"no ?", Created=Timestamp(seconds=1, nanos=500_000_000)
        ),
    )


def test_review_on_behalf() -> None:
    review = pb.AccessReviewSubmission.FromString(
        codec.encode_review("r1", Review("alice", "APPROVED"), on_behalf_by="access-plugin")
    ).Review
    assert (review.Author, review.SubmittedBy, review.submitted_on_behalf_of_author) == (
        b"alice",
        b"access-plugin",
        True,
    )


def test_state() -> None:
    sent = codec.encode_state("r1", "APPROVED", "ok", "alice, ivan")
    expected = pb.RequestStateSetter(ID=b"r1", State=pb.APPROVED, Reason=b"ok", Delegator=b"alice, ivan")
    assert pb.RequestStateSetter.FromString(sent) == expected


@pytest.mark.parametrize("state", ["PENDING", "PROMOTED", "NONE", "STATE 7", ""])
def test_no_other_state_can_be_sent(state: str) -> None:
    """PENDING with a reason would break every list of a Teleport 7."""
    with pytest.raises(KeyError):
        codec.encode_state("r1", state, "because", "alice")
    with pytest.raises(KeyError):
        codec.encode_review("r1", Review("alice", state))
