"""The stand-in Auth Service decides as Teleport does: statuses and texts are those of a real server or its source."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from sidecar.model import Resource, Threshold
from sidecar.simulator.faults import Refusal
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.teleport.pki import ClusterPki, Identity
from sidecar.simulator.teleport.profile import Profile
from sidecar.simulator.teleport.roles import filter_matches
from sidecar.simulator.teleport.rpc import Caller
from sidecar.simulator.teleport.watch import Interest, Watcher
from sidecar.teleport.codec import decode_request
from sidecar.teleport.pb import teleport_pb2 as pb

RECORDED = Path(__file__).parents[1] / "data" / "teleport-7.0.0-dev"
ALL_VERSIONS = ["7.0.0-dev", "12.4.1", "16.0.0", "18.0.0"]
BOB, ALICE, IVAN, PLUGIN = "bob@example.com", "alice@example.com", "ivan@example.com", "access-plugin"
YEAR_1 = -62135596800


def story(version: str = "7.0.0-dev", **options: Any) -> AuthServer:
    return AuthServer.dual_authorization(version=version, **options)


@pytest.fixture(name="server")
def _server() -> AuthServer:
    return story()


def call_as(server: AuthServer, user: str, *, impersonator: str = "") -> Caller:
    return server.authenticate(Identity(user, server.users[user].roles, impersonator))


def ask(server: AuthServer, **more: Any) -> str:
    return server.create_request(BOB, ["dbadmin"], **more)


def submission(request_id: str, state: "pb.RequestState.ValueType", **review: Any) -> pb.AccessReviewSubmission:
    return pb.AccessReviewSubmission(
        RequestID=request_id.encode(), Review=pb.AccessReview(ProposedState=state, **review)
    )


@contextmanager
def refused(code: grpc.StatusCode, details: str) -> Iterator[None]:
    with pytest.raises(Refusal) as caught:
        yield
    assert (caught.value.code, caught.value.details) == (code, details)


@contextmanager
def recording(server: AuthServer) -> Iterator[list[bytes]]:
    """Collect everything that a watcher is sent while the body runs."""
    watcher = Watcher(PLUGIN, (Interest(),), 1000)
    seen: list[bytes] = []
    with server.watching(watcher):
        yield seen
        server.inject(b"end")
        for event in watcher:
            if event == b"end":
                break
            seen.append(event)


# Fidelity to the recorded server


def normal(message: Message) -> Message:
    """Make times that are set, and ids, equal; everything else must be equal by itself."""
    for field, value in message.ListFields():
        values = list(value) if field.is_repeated else [value]
        for each in values:
            if isinstance(each, Timestamp) and each.seconds > 0:
                each.seconds, each.nanos = 1, 0
            elif isinstance(each, pb.Metadata):
                each.Name, each.ID = b"id", 1
                normal(each)
            elif isinstance(each, Message):
                normal(each)
    return message


def recorded(name: str) -> Message:
    return normal(pb.Event.FromString((RECORDED / f"event-{name}.binpb").read_bytes()))


def test_events_are_those_of_the_recorded_server(server: AuthServer) -> None:
    """The dual request, a denial, and what a deletion looks like, field by field."""
    with recording(server) as events:
        dual = ask(server, reason="need to fix the *prod* db, cc @all", suggested_reviewers=[ALICE, IVAN])
        server.review(dual, ALICE, "APPROVED", "ok by me")
        server.review(dual, IVAN, "APPROVED", "go ahead")
        denied = ask(server)
        server.review(denied, ALICE, "DENIED", "not today")
        expiring = ask(server, reason="will expire", expires_in=60)
        server.delete_request(expiring)
    names = [
        "01-put-dual-pending-0reviews",
        "02-put-dual-pending-1reviews",
        "03-put-dual-approved-2reviews",
        "04-put-denied-pending-0reviews",
        "05-put-denied-denied-1reviews",
        "06-put-expiring-pending-0reviews",
        "07-delete",
    ]
    assert [normal(pb.Event.FromString(event)) for event in events] == [recorded(name) for name in names]


def test_encoded_fields_stand_in_the_recorded_order(server: AuthServer) -> None:
    """The same bytes but for the id; and a PUT is canonical protobuf."""
    event = (RECORDED / "event-07-delete.binpb").read_bytes()
    with recording(server) as events:
        server.delete_request(ask(server))
    put, delete = events
    assert len(delete) == len(event) == 73
    assert (delete[:28], delete[64:]) == (event[:28], event[64:])
    assert pb.Event.FromString(put).SerializeToString() == put


def test_init_is_empty_before_16_and_names_the_kinds_after() -> None:
    watch = pb.Watch(Kinds=[pb.WatchKind(Kind=b"access_request")])
    old, new = story("12.0.0"), story("16.0.0")
    init, _ = old.watch(call_as(old, PLUGIN), watch)
    assert init == (RECORDED / "event-00-init.binpb").read_bytes() == b""
    init, _ = new.watch(call_as(new, PLUGIN), watch)
    assert [kind.Kind for kind in pb.Event.FromString(init).WatchStatus.Spec.Kinds] == [b"access_request"]


def test_ping_is_that_of_the_recorded_server(server: AuthServer) -> None:
    answer = server.ping(call_as(server, PLUGIN), pb.PingRequest())
    assert answer.SerializeToString() == (RECORDED / "ping-response.binpb").read_bytes()


def test_plugin_data_is_that_of_the_recorded_server(server: AuthServer) -> None:
    server.write_plugin_data(ask(server), {"state": "claimed"})
    answer = server.get_plugin_data(call_as(server, PLUGIN), pb.PluginDataFilter(Kind=b"access_request"))
    expected = pb.PluginDataSeq.FromString((RECORDED / "plugin-data.binpb").read_bytes())
    assert normal(answer) == normal(expected)


def test_a_review_without_a_time_is_year_1_on_7_and_now_later() -> None:
    for version, unset in [("7.0.0-dev", True), ("12.0.0", False)]:
        server = story(version)
        answer = server.submit_access_review(call_as(server, ALICE), submission(ask(server), pb.APPROVED))
        created = pb.AccessRequestV3.FromString(answer).Spec.Reviews[0].Created.seconds
        assert (created == YEAR_1) is unset


def encoded(server: AuthServer, request_id: str) -> pb.AccessRequestV3:
    return pb.AccessRequestV3.FromString(server.encoded(server.scan(request_id)[0]))


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_where_the_expiry_stands(version: str) -> None:
    server = story(version)
    request = encoded(server, ask(server, expires_in=600))
    in_spec = version.startswith("18")
    assert request.Spec.HasField("ResourceExpiry") is in_spec
    assert request.Metadata.HasField("Expires") is not in_spec
    assert (request.Metadata.ID > 0) is not in_spec
    assert request.Spec.Expires.seconds > time.time() + 3600


@pytest.mark.parametrize(("version", "digit"), [("7.0.0-dev", "4"), ("12.0.0", "4"), ("16.0.0", "7"), ("18.0.0", "7")])
def test_request_ids_are_uuids_of_the_right_kind(version: str, digit: str) -> None:
    server = story(version)
    ids = [ask(server) for _ in range(3)]
    assert {request_id[14] for request_id in ids} == {digit}
    assert len({request_id[:8] for request_id in ids}) == (1 if digit == "7" else 3)


@pytest.mark.parametrize(
    ("version", "present", "absent"),
    [
        ("7.0.0-dev", "GetAccessRequests", "GetAccessRequestsV2"),
        ("12.0.0", "GetAccessRequestsV2", "ListAccessRequests"),
        ("16.0.0", "GetAccessRequestsV2", "GetAccessRequests"),
        ("18.0.0", "GetAccessRequestsV2", "GetAccessRequests"),
    ],
)
def test_which_list_exists(version: str, present: str, absent: str) -> None:
    assert present in Profile.of(version).methods
    assert absent not in Profile.of(version).methods


def test_hostile_bytes_go_out_as_they_came_in(server: AuthServer) -> None:
    request_id = ask(server, reason=b"bad \xff\xfe text")
    assert encoded(server, request_id).Spec.RequestReason == b"bad \xff\xfe text"


def test_a_state_from_the_future_and_other_fields_reach_the_wire() -> None:
    server = story("18.0.0")
    request_id = ask(server, resources=[Resource("example.com", "node", "db1")])
    server.rewrite(request_id, state="STATE 7", kind="LONG_TERM", promoted_name="list", assume_start=2e9)
    spec = encoded(server, request_id).Spec
    assert (int(spec.State), spec.RequestKind, spec.accessList.Name) == (7, pb.LONG_TERM, b"list")
    assert (spec.AssumeStartTime.seconds, spec.RequestedResourceIDs[0].Name) == (2_000_000_000, b"db1")


def test_constraints_and_kinds_reach_the_sidecar_as_they_were_stored() -> None:
    server = story("18.0.0")
    resources = (
        Resource("c", "node", "n", "", "logins", ("root",)),
        Resource("c", "windows_desktop", "d", "", "logins", ("Administrator",)),
        Resource("c", "app", "aws", "", "role ARNs", ("arn:1",)),
        Resource("c", "node", "strange", unreadable=True),
        Resource("c", "node", "whole"),
    )
    request_id = ask(server, resources=resources)
    for kind in ("SHORT_TERM", "KIND 7"):
        server.rewrite(request_id, kind=kind)
        read = decode_request(encoded(server, request_id).SerializeToString())
        assert (read.kind, read.resources) == (kind, resources)


# Reviews


def test_two_people_approve_and_the_second_decides(server: AuthServer) -> None:
    request_id = ask(server)
    first = server.review(request_id, ALICE, "APPROVED", "ok")
    assert (first.state, first.resolve_reason) == ("PENDING", "")
    second = server.review(request_id, IVAN, "APPROVED", "go ahead")
    assert (second.state, second.resolve_reason) == ("APPROVED", "go ahead")
    assert second.expires == second.access_until


def test_one_denial_decides_at_once(server: AuthServer) -> None:
    request_id = ask(server)
    server.review(request_id, ALICE, "APPROVED")
    denied = server.review(request_id, IVAN, "DENIED", "no")
    assert (denied.state, denied.resolve_reason, len(denied.reviews)) == ("DENIED", "no", 2)
    assert denied.expires != denied.access_until


def test_without_thresholds_one_review_is_enough(server: AuthServer) -> None:
    server.add_role("devops", request_roles=["dbadmin"])
    request_id = ask(server)
    request = server.review(request_id, ALICE, "APPROVED")
    assert request.state == "APPROVED"
    assert request.thresholds == (Threshold(name="default", approve=1, deny=1),)


def test_a_filter_decides_whose_review_counts(server: AuthServer) -> None:
    """The way of `submit_as = "plugin"`: its own threshold, met by its own review."""
    own = Threshold(name="chat", approve=1, deny=1, filter='contains(reviewer.roles, "chat-quorum")')
    server.add_role("devops", request_roles=["dbadmin"], thresholds=[Threshold(approve=2, deny=1), own])
    server.add_role("chat-quorum", review_roles=["db*"])
    server.add_user(PLUGIN, ["access-plugin", "chat-quorum"])
    request_id = ask(server)
    assert server.review(request_id, ALICE, "APPROVED").state == "PENDING"
    assert server.review(request_id, PLUGIN, "APPROVED", "two agreed").state == "APPROVED"
    assert [list(each.ThresholdIndexes) for each in encoded(server, request_id).Spec.Reviews] == [[0], [0, 1]]


def test_each_role_needs_its_own_quorum(server: AuthServer) -> None:
    """Two of the requester's roles: their thresholds are collected, and every index set must be met."""
    server.add_role("web", request_roles=["www"], thresholds=[Threshold(approve=1, deny=1)])
    server.add_role("reviewer", review_roles=["dbadmin", "www"])
    server.add_user(BOB, ["devops", "web"])
    request_id = server.create_request(BOB, ["www", "dbadmin"])
    request = server.review(request_id, ALICE, "APPROVED")
    assert request.roles == ("dbadmin", "www")
    assert request.role_thresholds == (("dbadmin", ((0,),)), ("www", ((1,),)))
    assert request.state == "PENDING"
    assert server.review(request_id, IVAN, "APPROVED").state == "APPROVED"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ('contains(reviewer.roles, "a")', True),
        ('contains(reviewer.roles,"b")', False),
        ('!contains(reviewer.roles, "b") && contains(request.roles, "dbadmin")', True),
        ('contains(reviewer.roles, "b") || contains(reviewer.roles, "a")', True),
    ],
)
def test_filters(text: str, expected: bool) -> None:  # noqa: FBT001
    assert filter_matches(text, ["a"], ["dbadmin"]) is expected


def test_a_filter_that_is_not_understood_is_refused_early() -> None:
    with pytest.raises(ValueError, match="unsupported filter"):
        story().add_role("x", thresholds=[Threshold(approve=1, deny=1, filter="regexp.match(x)")])


PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
MISSING = grpc.StatusCode.NOT_FOUND


def test_reviews_that_teleport_refuses(server: AuthServer) -> None:
    server.add_user("lead@example.com", ["devops", "reviewer"])
    own = server.create_request("lead@example.com", ["dbadmin"])
    request_id = ask(server)
    review = server.submit_access_review
    alice = call_as(server, ALICE)
    with refused(PERMISSION_DENIED, f'user "{ALICE}" cannot submit reviews on behalf of "{IVAN}"'):
        review(alice, submission(request_id, pb.APPROVED, Author=IVAN.encode()))
    with refused(PERMISSION_DENIED, f'user "{PLUGIN}" cannot submit reviews'):
        review(call_as(server, PLUGIN), submission(request_id, pb.APPROVED))
    with refused(MISSING, 'cannot apply review to access request "nope" (not found)'):
        review(alice, submission("nope", pb.APPROVED))
    with refused(PERMISSION_DENIED, f'user "lead@example.com" cannot review request "{own}"'):
        review(call_as(server, "lead@example.com"), submission(own, pb.APPROVED))
    with refused(INVALID, "invalid state proposal: PENDING (expected approval/denial)"):
        review(alice, submission(request_id, pb.PENDING))
    values = pb.LabelValues(Values=[pb.LabelValuesEntry(key=b"k")])
    text = "annotations are not yet supported in reviews, try omitting annotations field"
    with refused(grpc.StatusCode.UNIMPLEMENTED, text):
        review(alice, submission(request_id, pb.APPROVED, Annotations=values))
    assert server.requests()[1].reviews == ()


@pytest.mark.parametrize(
    ("version", "code"),
    [("7.0.0-dev", PERMISSION_DENIED), ("16.0.0", PERMISSION_DENIED), ("18.0.0", grpc.StatusCode.ALREADY_EXISTS)],
)
def test_a_second_review_by_one_author(version: str, code: grpc.StatusCode) -> None:
    """Also on a resolved request: "already reviewed" comes first."""
    server = story(version)
    request_id = ask(server)
    server.review(request_id, ALICE, "APPROVED")
    server.set_state(request_id, "APPROVED")
    with refused(code, f'user "{ALICE}" has already reviewed this request'):
        server.review(request_id, ALICE, "DENIED")


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_a_review_of_a_resolved_request(version: str) -> None:
    """Older servers store it without a word and without effect."""
    server = story(version)
    request_id = ask(server)
    server.set_state(request_id, "APPROVED", "by hand")
    if Profile.of(version).major < 15:
        request = server.review(request_id, ALICE, "DENIED", "late")
        assert (request.state, request.resolve_reason, len(request.reviews)) == ("APPROVED", "by hand", 1)
    else:
        with refused(PERMISSION_DENIED, "the access request has been already approved"):
            server.review(request_id, ALICE, "DENIED", "late")


def test_review_for_a_human_from_18_11() -> None:
    for version, works in [("18.11.0", True), ("18.10.9", False)]:
        server = story(version)
        server.add_role("for-users", submit_for_users=[ALICE])
        server.add_user(PLUGIN, ["access-plugin", "for-users"])
        plugin, request_id = call_as(server, PLUGIN), ask(server)
        wanted = submission(request_id, pb.APPROVED, Author=ALICE.encode(), submitted_on_behalf_of_author=True)
        if works:
            review = pb.AccessRequestV3.FromString(server.submit_access_review(plugin, wanted)).Spec.Reviews[0]
            assert (review.Author, review.SubmittedBy) == (ALICE.encode(), PLUGIN.encode())
            assert review.submitted_on_behalf_of_author
            wanted.Review.Author = IVAN.encode()
        author = IVAN if works else ALICE
        with refused(PERMISSION_DENIED, f'user "{PLUGIN}" cannot submit reviews on behalf of "{author}"'):
            server.submit_access_review(plugin, wanted)


def test_admin_actions_may_need_a_second_factor() -> None:
    text = "admin-level API request requires MFA verification"
    server = story("16.0.0")
    server.mfa_required = True
    wanted = submission(ask(server), pb.APPROVED)
    for impersonator in ("", IVAN):
        with refused(PERMISSION_DENIED, text):
            server.submit_access_review(call_as(server, ALICE, impersonator=impersonator), wanted)
    by_tctl = f"{ClusterPki().host_id}.example.com"
    server.submit_access_review(call_as(server, ALICE, impersonator=by_tctl), wanted)
    server.add_user("bot-x", ["reviewer"], bot=True)
    server.submit_access_review(call_as(server, "bot-x"), wanted)
    assert [review.author for review in server.requests()[0].reviews] == [ALICE, "bot-x"]


# SetAccessRequestState


def setter(request_id: str, state: "pb.RequestState.ValueType", **more: Any) -> pb.RequestStateSetter:
    return pb.RequestStateSetter(ID=request_id.encode(), State=state, **more)


@pytest.fixture
def updater() -> AuthServer:
    """Build the story with a plugin that may set states."""
    server = story()
    server.add_role("access-plugin", rules={"access_request": ["list", "read", "update"]})
    return server


def test_state_transitions(updater: AuthServer) -> None:
    request_id = ask(updater)
    plugin = call_as(updater, PLUGIN)
    for state, reason in [(pb.APPROVED, b"a"), (pb.APPROVED, b"b"), (pb.DENIED, b"c"), (pb.DENIED, b"d")]:
        updater.set_access_request_state(plugin, setter(request_id, state, Reason=reason, Delegator=b"alice"))
        request = updater.request(request_id)
        assert request is not None
        assert (request.state, request.resolve_reason) == (pb.RequestState.Name(state), reason.decode())
    with refused(INVALID, 'cannot set request-state "APPROVED" (already denied)'):
        updater.set_access_request_state(plugin, setter(request_id, pb.APPROVED))
    assert [(caller, change.delegator) for caller, change in updater.state_changes[:4]] == [(PLUGIN, "alice")] * 4


def test_state_changes_that_teleport_refuses(updater: AuthServer) -> None:
    request_id, plugin = ask(updater), call_as(updater, PLUGIN)
    change = updater.set_access_request_state
    with refused(MISSING, 'cannot set state of access request "x" (not found)'):
        change(plugin, setter("x", pb.APPROVED))
    with refused(INVALID, "missing request state"):
        change(plugin, setter(request_id, pb.NONE))
    text = 'role "x" not in original request, overrides must be a subset of original role list'
    with refused(INVALID, text):
        change(plugin, setter(request_id, pb.APPROVED, Roles=[b"x"]))
    with refused(INVALID, "cannot override roles when setting state: DENIED"):
        change(plugin, setter(request_id, pb.DENIED, Roles=[b"dbadmin"]))
    with refused(PERMISSION_DENIED, 'access denied to perform action "update" on "access_request"'):
        change(call_as(updater, ALICE), setter(request_id, pb.APPROVED))


def test_nobody_sets_the_state_of_their_own_request_on_18() -> None:
    server = story("18.0.0")
    server.add_role("devops", request_roles=["dbadmin"], rules={"access_request": ["update"]})
    server.add_user("carol@example.com", ["devops"])
    text = "directly updating the state of your own access requests is not permitted"
    with refused(PERMISSION_DENIED, text):
        server.set_access_request_state(call_as(server, BOB), setter(ask(server), pb.APPROVED))
    other = server.create_request("carol@example.com", ["dbadmin"])
    with refused(MISSING, f'access request "{other}" not found'):
        server.set_access_request_state(call_as(server, BOB), setter(other, pb.APPROVED))


def test_pending_with_a_reason_poisons_every_list_on_7_and_is_skipped_on_16(server: AuthServer) -> None:
    bad, good = ask(server), ask(server)
    server.set_state(bad, "PENDING", "oops")
    with refused(INVALID, "pending requests cannot include resolve reason"):
        server.list_requests(call_as(server, PLUGIN), pb.AccessRequestFilter())
    server.profile = Profile.of("16.0.0")
    assert len(server.list_requests(call_as(server, PLUGIN), pb.AccessRequestFilter())) == 1
    server.profile = Profile.of("7.0.0-dev")
    server.delete_request(bad)
    assert [request.id for request in server.requests()] == [good]


def test_reasons_are_limited_from_12_on() -> None:
    assert ask(story(), reason="x" * 100_000)
    with refused(INVALID, "access request reason is too long, max 4096 bytes"):
        ask(story("12.0.0"), reason="x" * 4097)


# Rights


def listed(server: AuthServer, user: str, **wanted: Any) -> list[str]:
    found = server.list_requests(call_as(server, user), pb.AccessRequestFilter(**wanted))
    return [pb.AccessRequestV3.FromString(each).Metadata.Name.decode() for each in found]


def test_missing_rights_narrow_a_list_silently(server: AuthServer) -> None:
    request_id = ask(server)
    server.add_user("nobody")
    assert {user: listed(server, user) for user in (PLUGIN, BOB, ALICE, "nobody")} == {
        PLUGIN: [request_id],
        BOB: [request_id],
        ALICE: [request_id],
        "nobody": [],
    }
    server.add_role("access-plugin", rules={"access_request": ["read"]})
    assert listed(server, PLUGIN) == []


def test_a_deny_rule_is_told_on_16() -> None:
    server = story("16.0.0")
    server.add_role("access-plugin", deny_rules={"access_request": ["list"]})
    with refused(PERMISSION_DENIED, 'access denied to perform action "list" on "access_request"'):
        listed(server, PLUGIN)


def test_list_filters(server: AuthServer) -> None:
    server.add_user("carol@example.com", ["devops"])
    first, second = ask(server), server.create_request("carol@example.com", ["dbadmin"])
    server.set_state(second, "DENIED")
    assert listed(server, PLUGIN, ID=first.encode()) == [first]
    assert listed(server, PLUGIN, ID=b"unknown") == []
    assert listed(server, PLUGIN, User=b"carol@example.com") == [second]
    assert listed(server, PLUGIN, State=pb.PENDING) == [first]


def test_a_frozen_cache_shows_old_lists_but_true_gets() -> None:
    for version, lags in [("12.0.0", False), ("16.0.0", True)]:
        server = story(version)
        first = ask(server)
        server.freeze_list_cache()
        second = ask(server)
        assert (second not in listed(server, PLUGIN)) is lags
        assert listed(server, PLUGIN, ID=second.encode()) == [second]
        server.thaw_list_cache()
        assert set(listed(server, PLUGIN)) == {first, second}


def test_a_deleted_user_fails_every_call(server: AuthServer) -> None:
    server.remove_user(PLUGIN)
    with refused(MISSING, f'user "{PLUGIN}" is not found'):
        server.authenticate(Identity(PLUGIN, ("access-plugin",)))


def test_roles_come_from_the_certificate_from_12_on() -> None:
    for version, live in [("7.0.0-dev", True), ("12.0.0", False)]:
        server = story(version)
        server.add_user(PLUGIN, ["reviewer"])
        caller = server.authenticate(Identity(PLUGIN, ("access-plugin",)))
        assert [role.name for role in caller.roles] == ["reviewer" if live else "access-plugin"]


@pytest.mark.parametrize(
    ("kinds", "code", "details"),
    [
        ([], PERMISSION_DENIED, "can't setup global watch"),
        ([{"Kind": b"role"}], PERMISSION_DENIED, 'access denied to perform action "read" on "role"'),
        (
            [{"Kind": b"access_request", "Filter": [pb.StringEntry(key=b"zzz", value=b"1")]}],
            INVALID,
            "unknown filter key zzz",
        ),
        (
            [{"Kind": b"access_request", "Filter": [pb.StringEntry(key=b"state", value=b"pending")]}],
            INVALID,
            'unknown request state: "pending"',
        ),
    ],
)
def test_watches_that_teleport_refuses(
    server: AuthServer, kinds: list[dict[str, Any]], code: grpc.StatusCode, details: str
) -> None:
    with refused(code, details):
        server.watch(call_as(server, PLUGIN), pb.Watch(Kinds=[pb.WatchKind(**kind) for kind in kinds]))


def test_a_watch_needs_read_except_for_ones_own(server: AuthServer) -> None:
    bob = call_as(server, BOB)
    kind = pb.WatchKind(Kind=b"access_request")
    with refused(PERMISSION_DENIED, 'access denied to perform action "read" on "access_request"'):
        server.watch(bob, pb.Watch(Kinds=[kind]))
    own = pb.WatchKind(Kind=b"access_request", Filter=[pb.StringEntry(key=b"user", value=BOB.encode())])
    assert server.watch(bob, pb.Watch(Kinds=[own]))
    new = story("16.0.0")
    with refused(INVALID, "none of the requested kinds can be watched"):
        new.watch(call_as(new, BOB), pb.Watch(Kinds=[kind], AllowPartialSuccess=True))


@pytest.mark.parametrize("name", ["", "x"])
def test_filters_act_on_puts_and_names_on_both(server: AuthServer, name: str) -> None:
    request_id = ask(server)
    request = server.request(request_id)
    interest = Interest(name=name, state="DENIED")
    assert not interest.wants(request_id, request)
    assert interest.wants(request_id, None) is (not name)


# Plugin data


def update(server: AuthServer, request_id: str, user: str = PLUGIN, **maps: dict[str, str]) -> None:
    pairs = {
        field: [pb.StringEntry(key=key.encode(), value=value.encode()) for key, value in held.items()]
        for field, held in maps.items()
    }
    message = pb.PluginDataUpdateParams(
        Kind=b"access_request", Resource=request_id.encode(), Plugin=b"mattermost", **pairs
    )
    server.update_plugin_data(call_as(server, user), message)


def test_compare_and_swap(server: AuthServer) -> None:
    request_id = ask(server)
    update(server, request_id, Set={"a": "1", "b": "2"}, Expect={"a": "", "zzz": ""})
    with refused(grpc.StatusCode.FAILED_PRECONDITION, 'expectations not met for field "a"'):
        update(server, request_id, Set={"b": "3"}, Expect={"a": ""})
    update(server, request_id, Set={"a": "", "c": "3"}, Expect={"a": "1"})
    assert server.plugin_data(request_id) == {"b": "2", "c": "3"}
    update(server, request_id, Set={"d": "4"})
    assert server.plugin_data(request_id) == {"b": "2", "c": "3", "d": "4"}


def test_plugins_share_the_object_but_not_their_entries(server: AuthServer) -> None:
    request_id = ask(server)
    update(server, request_id, Set={"a": "1"})
    server.write_plugin_data(request_id, {"z": "9"}, plugin="slack")
    held = server.find_plugin_data(plugin="slack")
    assert [each.entries for each in held] == [{"mattermost": {"a": "1"}, "slack": {"z": "9"}}]
    update(server, request_id, Set={"a": ""})
    assert server.find_plugin_data(plugin="mattermost") == []
    assert server.plugin_data(request_id, "slack") == {"z": "9"}


def test_plugin_data_has_a_size(server: AuthServer) -> None:
    request_id = ask(server)
    update(server, request_id, Set={"a": "x" * 999_000})
    with refused(INVALID, "plugin data size limit exceeded"):
        update(server, request_id, Set={"b": "<" * 1000})
    assert set(server.plugin_data(request_id)) == {"a"}


def test_plugin_data_outlives_its_request(server: AuthServer) -> None:
    """Until an hour after the access would end; the first write needs the request."""
    request_id, other = ask(server, access_for=600), ask(server)
    update(server, request_id, Set={"a": "1"})
    server.delete_request(request_id)
    server.delete_request(other)
    update(server, request_id, Set={"b": "2"})
    assert server.plugin_data(request_id) == {"a": "1", "b": "2"}
    assert 4190 < server.find_plugin_data(request_id)[0].expires - time.time() <= 4200
    with refused(MISSING, f'access request "{other}" not found'):
        update(server, other, Set={"a": "1"})


def test_plugin_data_rights(server: AuthServer) -> None:
    request_id = ask(server)
    with refused(PERMISSION_DENIED, 'access denied to perform action "update" on "access_plugin_data"'):
        update(server, request_id, ALICE, Set={"a": "1"})
    wanted = pb.PluginDataFilter(Kind=b"access_request")
    with refused(PERMISSION_DENIED, 'access denied to perform action "list" on "access_plugin_data"'):
        server.get_plugin_data(call_as(server, ALICE), wanted)
    with refused(INVALID, 'unsupported resource kind "x"'):
        server.get_plugin_data(call_as(server, PLUGIN), pb.PluginDataFilter(Kind=b"x"))


# Time and watches


def test_an_expired_request_is_hidden_at_once(server: AuthServer) -> None:
    """Even where its DELETE is late; nothing deletes here, since no clock runs."""
    request_id = ask(server)
    server.rewrite(request_id, expires=time.time() - 1)
    assert server.request(request_id) is None
    assert server.requests() == []
    with refused(MISSING, f'cannot apply review to access request "{request_id}" (not found)'):
        server.review(request_id, ALICE, "APPROVED")


@pytest.mark.parametrize(
    ("version", "seconds"), [("7.0.0-dev", 3600), ("12.0.0", 3600), ("16.0.0", 8 * 3600), ("18.0.0", 8 * 3600)]
)
def test_how_long_a_request_stays_pending(version: str, seconds: int) -> None:
    server = story(version)
    request = server.request(ask(server))
    assert request is not None
    assert request.created is not None
    assert request.expires == pytest.approx(request.created + seconds)


@pytest.mark.parametrize(("version", "code"), [("7.0.0-dev", INVALID), ("16.0.0", None)])
def test_a_slow_reader_loses_its_watch(version: str, code: grpc.StatusCode | None) -> None:
    server = story(version, watch_buffer=3)
    watcher = Watcher(PLUGIN, (Interest(),), server.watch_buffer)
    with server.watching(watcher):
        for _ in range(4):
            ask(server)
        if code is None:
            assert list(watcher) == []
        else:
            with refused(code, "buffer overflow"):
                list(watcher)
    assert server.watchers == 0


def test_waiting_for_what_never_comes_ends() -> None:
    with pytest.raises(TimeoutError):
        story().wait_for(lambda: False, 0.01)


@pytest.mark.parametrize(("version", "there"), [("16.0.0", False), ("17.0.0", True), ("18.0.0", True)])
def test_what_has_expired_is_still_there_on_newer_versions(version: str, *, there: bool) -> None:
    """For a minute and a half, and it may be decided in that time."""
    server = story(version)
    request_id = ask(server, expires_in=-1)
    assert [one.id for one in server.requests()] == ([request_id] if there else [])
    if there:
        server.set_state(request_id, "DENIED", "too late")
        server.expired_seconds = 0.5
        request_id = ask(server, expires_in=-1)
        assert request_id not in {one.id for one in server.requests()}
