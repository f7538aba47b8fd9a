"""Every call of the client, over real TLS, and what each becomes when it fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio

from sidecar.errors import Conflict, LinkGarbled, LinkLost, LinkRefused, RequestGone, ReviewRejected, SidecarError
from sidecar.model import AccessRequest, Ping, PluginData
from sidecar.teleport import client as client_module
from sidecar.teleport.client import AuthClient
from sidecar.teleport.pb import teleport_pb2 as pb
from tests.teleport_peer import CLUSTER, Context, Peer, StatusCode, connect, fail, hang, serve


def _wire(request_id: str, state: pb.RequestState.ValueType = pb.PENDING) -> pb.AccessRequestV3:
    return pb.AccessRequestV3(
        Metadata=pb.Metadata(Name=request_id.encode()), Spec=pb.AccessRequestSpecV3(User=b"bob", State=state)
    )


def _request(request_id: str, state: str = "PENDING") -> AccessRequest:
    return AccessRequest(id=request_id, user="bob", state=state)


def _plugin_data(*request_ids: str) -> bytes:
    entry = pb.PluginDataEntry(Data=[pb.StringEntry(key=b"tm", value=b"{}")])
    spec = pb.PluginDataSpecV3(Entries=[pb.PluginDataSpecEntry(key=b"mattermost", value=entry)])
    records = [pb.PluginDataV3(Metadata=pb.Metadata(Name=name.encode()), Spec=spec) for name in request_ids]
    return pb.PluginDataSeq(PluginData=records).SerializeToString()


async def _list(client: AuthClient) -> list[AccessRequest]:
    async with client.list_requests() as requests:
        return [request async for request in requests]


async def _watch(client: AuthClient) -> None:
    async with client.watch() as events:
        async for _ in events:
            pass


async def test_ping_shows_the_version_of_nobody() -> None:
    """A server refuses clients that name an old Teleport version; one that names none is never refused."""
    with serve() as peer:
        answer = pb.PingResponse(ClusterName=CLUSTER.encode(), ServerVersion=b"18.1.0", ProxyPublicAddr=b"p:443")
        peer.unary["Ping"] = lambda _request, _context: answer.SerializeToString()
        async with connect(peer) as client:
            assert await client.ping() == Ping(CLUSTER, "18.1.0", "p:443")
        assert "version" not in peer.metadata[0]
        assert str(peer.metadata[0]["user-agent"]).startswith("teleport-mattermost-sidecar/")


# Listing


def _v2(*request_ids: str) -> Callable[[bytes, Context], Iterator[bytes]]:
    return lambda _request, _context: (_wire(name).SerializeToString() for name in request_ids)


async def test_list_and_get_from_a_stream() -> None:
    with serve() as peer:
        peer.streams["GetAccessRequestsV2"] = _v2("r1", "r2")
        async with connect(peer) as client:
            assert await _list(client) == [_request("r1"), _request("r2")]
            assert await client.get_request("r2") == _request("r2")
            assert await client.get_request("r3") is None
        assert [pb.AccessRequestFilter.FromString(request).ID for _, request in peer.calls] == [b"", b"r2", b"r3"]


async def test_legacy_list_is_remembered() -> None:
    """A Teleport 7 has no V2; it is asked for once, not before each list."""
    with serve() as peer:
        answer = pb.AccessRequests(AccessRequests=[_wire("r1"), _wire("r2", pb.DENIED)])
        peer.unary["GetAccessRequests"] = lambda _request, _context: answer.SerializeToString()
        async with connect(peer) as client:
            for _ in range(2):
                assert await _list(client) == [_request("r1"), _request("r2", "DENIED")]
            assert await client.get_request("r1") == _request("r1")
        methods = [method for method, _ in peer.calls]
        assert methods == ["GetAccessRequestsV2", *["GetAccessRequests"] * 3]


async def test_an_upgraded_server_is_found_out() -> None:
    with serve() as peer:
        peer.unary["GetAccessRequests"] = lambda _request, _context: b""
        async with connect(peer) as client:
            assert await _list(client) == []
            del peer.unary["GetAccessRequests"]
            peer.streams["GetAccessRequestsV2"] = _v2("r1")
            assert await _list(client) == [_request("r1")]


async def test_unimplemented_alone_is_no_missing_method() -> None:
    def refuse(_request: bytes, context: Context) -> Iterator[bytes]:
        fail(context, "UNIMPLEMENTED", "not on this edition")

    with serve() as peer:
        peer.streams["GetAccessRequestsV2"] = refuse
        async with connect(peer) as client:
            with pytest.raises(LinkRefused, match="not on this edition"):
                await _list(client)
        assert [method for method, _ in peer.calls] == ["GetAccessRequestsV2"]


async def test_no_list_at_all_is_a_refusal() -> None:
    with serve() as peer:
        async with connect(peer) as client:
            with pytest.raises(LinkRefused, match="unknown method") as caught:
                await _list(client)
        assert caught.value.reason == "unimplemented"


async def test_list_that_breaks_midway() -> None:
    """Half a list must never look like a whole one."""

    def broken(_request: bytes, context: Context) -> Iterator[bytes]:
        yield _wire("r1").SerializeToString()
        fail(context, "UNAVAILABLE", "gone")

    seen = []
    with serve() as peer:
        peer.streams["GetAccessRequestsV2"] = broken
        async with connect(peer) as client, client.list_requests() as requests:
            with pytest.raises(LinkLost, match="gone"):  # noqa: PT012
                async for request in requests:
                    seen.append(request)  # noqa: PERF401
    assert seen == [_request("r1")]


async def test_garbled_answers() -> None:
    bad = b"\x0a\x7fabc"
    with serve() as peer:
        for method in ("Ping", "GetPluginData", "SubmitAccessReview"):
            peer.unary[method] = lambda _request, _context: bad
        peer.streams["GetAccessRequestsV2"] = lambda _request, _context: iter([bad])
        async with connect(peer) as client:
            with pytest.raises(LinkGarbled):
                await client.ping()
            with pytest.raises(LinkGarbled):
                list(await client.list_plugin_data())
            with pytest.raises(LinkGarbled):
                await client.submit_review("r1", "alice", "APPROVED", "")
            with pytest.raises(LinkGarbled):
                await _list(client)


# Plugin data, reviews, states


async def test_plugin_data() -> None:
    with serve() as peer:
        peer.unary["GetPluginData"] = lambda _request, _context: _plugin_data("r1", "r2")
        peer.unary["UpdatePluginData"] = lambda _request, _context: b""
        async with connect(peer) as client:
            assert await client.read_plugin_data("r2") == {"tm": "{}"}
            assert await client.read_plugin_data("r3") == {}
            assert list(await client.list_plugin_data()) == [
                PluginData("r1", {"tm": "{}"}),
                PluginData("r2", {"tm": "{}"}),
            ]
            await client.update_plugin_data("r1", {"tm": "{}"}, {"tm": ""})
        filters = [
            pb.PluginDataFilter.FromString(request) for method, request in peer.calls if method == "GetPluginData"
        ]
        assert [(f.Plugin, f.Resource) for f in filters] == [(b"mattermost", name) for name in (b"r2", b"r3", b"")]
        update = pb.PluginDataUpdateParams.FromString(peer.calls[-1][1])
        assert update.Set == [pb.StringEntry(key=b"tm", value=b"{}")]
        assert update.Expect == [pb.StringEntry(key=b"tm")]


async def test_plugin_name_is_the_operators() -> None:
    with serve() as peer:
        peer.unary["GetPluginData"] = lambda _request, _context: _plugin_data("r1")
        async with connect(peer, plugin_name="chat") as client:
            assert await client.read_plugin_data("r1") == {}
        assert pb.PluginDataFilter.FromString(peer.calls[0][1]).Plugin == b"chat"


async def test_all_plugin_data_may_be_larger_than_any_other_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes in one message; its own connection has a limit of its own."""
    large = pb.PluginDataSeq(
        PluginData=[pb.PluginDataV3(Metadata=pb.Metadata(Name=b"r1", Description=b"x" * (3 << 20)))]
    )
    monkeypatch.setattr(client_module, "_WIDE_MIB", 2)
    with serve() as peer:
        peer.unary["GetPluginData"] = lambda _request, _context: large.SerializeToString()
        async with connect(peer) as client:
            with pytest.raises(LinkLost, match="larger than max") as caught:
                list(await client.list_plugin_data())
            assert caught.value.reason == "too_large"
            monkeypatch.setattr(client_module, "_WIDE_MIB", 256)
            assert list(await client.list_plugin_data()) == []


async def test_a_legacy_list_may_be_long_and_others_have_their_turn_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teleport 7 gives all requests in one message, with reasons of any length."""
    some = [pb.AccessRequestV3(Metadata=pb.Metadata(Name=b"%d" % n)) for n in range(20_000)]
    some[0].Spec.RequestReason = b"x" * (1 << 20)
    answer = pb.AccessRequests(AccessRequests=some).SerializeToString()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(client_module, "_NARROW_MIB", 1)
    with serve() as peer:
        peer.unary["GetAccessRequests"] = lambda _request, _context: answer
        async with connect(peer) as client, client.list_requests() as requests, trio.open_nursery() as nursery:
            nursery.start_soon(others)
            assert len([one async for one in requests]) == len(some)
            nursery.cancel_scope.cancel()
        monkeypatch.setattr(client_module, "_WIDE_MIB", 1)
        async with connect(peer) as client:
            with pytest.raises(LinkLost, match="larger than max") as caught:
                await _list(client)
    assert caught.value.reason == "too_large"
    assert turns > 3


async def test_review_and_state() -> None:
    with serve() as peer:
        peer.unary["SubmitAccessReview"] = lambda _request, _context: _wire("r1", pb.APPROVED).SerializeToString()
        peer.unary["SetAccessRequestState"] = lambda _request, _context: b""
        async with connect(peer) as client:
            assert await client.submit_review("r1", "alice", "APPROVED", "ok") == _request("r1", "APPROVED")
            await client.set_state("r1", "DENIED", "no", "alice")
        review = pb.AccessReviewSubmission.FromString(peer.calls[0][1]).Review
        assert (review.Author, review.ProposedState, review.Reason) == (b"alice", pb.APPROVED, b"ok")
        assert review.Created.seconds > 1_700_000_000  # a Teleport 7 would store year 1
        assert pb.RequestStateSetter.FromString(peer.calls[1][1]).Delegator == b"alice"


# Failures

_Call = Callable[[AuthClient], Awaitable[object]]
_CALLS: dict[str, _Call] = {
    "Ping": lambda client: client.ping(),
    "GetAccessRequestsV2": _list,
    "GetAccessRequests": _list,
    "GetPluginData": lambda client: client.read_plugin_data("r1"),
    "WatchEvents": _watch,
    "UpdatePluginData": lambda client: client.update_plugin_data("r1", {"a": "b"}, {}),
    "SubmitAccessReview": lambda client: client.submit_review("r1", "alice", "APPROVED", ""),
    "SetAccessRequestState": lambda client: client.set_state("r1", "DENIED", "", "alice"),
}
_STREAMS = {"GetAccessRequestsV2", "WatchEvents"}
_CODES = [code.name for code in StatusCode if code is not StatusCode.OK]
_REFUSED = {
    "PERMISSION_DENIED": "denied",
    "UNAUTHENTICATED": "denied",
    "NOT_FOUND": "user_deleted",
    "UNIMPLEMENTED": "unimplemented",
    "INVALID_ARGUMENT": "invalid_argument",
}
_JUDGED = {
    "PERMISSION_DENIED": "not_allowed",
    "ALREADY_EXISTS": "duplicate",
    "INVALID_ARGUMENT": "other",
    "UNIMPLEMENTED": "other",
    "FAILED_PRECONDITION": "other",
    "OUT_OF_RANGE": "other",
}


def _expected(method: str, code: str) -> tuple[type[SidecarError], str]:
    write = method in {"UpdatePluginData", "SubmitAccessReview", "SetAccessRequestState"}
    if write and code == "NOT_FOUND":
        return RequestGone, ""
    if write and method != "UpdatePluginData" and code in _JUDGED:
        return ReviewRejected, _JUDGED[code]
    return (LinkRefused, _REFUSED[code]) if code in _REFUSED else (LinkLost, code.lower())


def _script(peer: Peer, method: str, unary: Callable[[bytes, Context], bytes]) -> None:
    def stream(request: bytes, context: Context) -> Iterator[bytes]:
        yield unary(request, context)

    if method in _STREAMS:
        peer.streams[method] = stream
    else:
        peer.unary[method] = unary


@pytest.mark.parametrize("code", _CODES)
@pytest.mark.parametrize("method", _CALLS)
async def test_every_status_of_every_call_is_one_of_our_errors(method: str, code: str) -> None:
    with serve() as peer:
        _script(peer, method, lambda _request, context: fail(context, code, "the words"))
        async with connect(peer) as client:
            with pytest.raises(SidecarError, match="the words") as caught:
                await _CALLS[method](client)
    error = caught.value
    assert (type(error), getattr(error, "reason", "")) == _expected(method, code)
    if isinstance(error, LinkLost):
        assert error.ambiguous is (method in {"UpdatePluginData", "SubmitAccessReview", "SetAccessRequestState"})


async def test_expectations_not_met_is_a_conflict() -> None:
    with serve() as peer:
        words = 'expectations not met for field "tm"'
        peer.unary["UpdatePluginData"] = lambda _request, context: fail(context, "FAILED_PRECONDITION", words)
        async with connect(peer) as client:
            with pytest.raises(Conflict):
                await client.update_plugin_data("r1", {"tm": "new"}, {"tm": "old"})


@pytest.mark.parametrize("method", [method for method in _CALLS if method != "WatchEvents"])
async def test_every_call_has_a_deadline_of_its_own(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of trio's would do, were every caller to remember; a server that hangs must never hang us."""

    def never(_request: bytes, context: Context) -> bytes:
        hang(context)
        return b""

    for name in ("_PING_SECONDS", "_CALL_SECONDS", "_LIST_SECONDS"):
        monkeypatch.setattr(client_module, name, 0.2)
    monkeypatch.setattr(AuthClient._call, "__kwdefaults__", {"seconds": 0.2})
    with serve() as peer:
        _script(peer, method, never)
        async with connect(peer) as client:
            with pytest.raises(LinkLost) as caught:
                await _CALLS[method](client)
    assert caught.value.reason == "deadline_exceeded"


async def test_calls_are_observed() -> None:
    observed: list[tuple[str, str]] = []
    with serve() as peer:
        peer.unary["GetPluginData"] = lambda _request, context: fail(context, "ABORTED", "")
        peer.streams["GetAccessRequestsV2"] = _v2("r1", "r2")

        def observe(method: str, outcome: str, seconds: float) -> None:
            assert seconds >= 0
            observed.append((method, outcome))

        async with connect(peer, observe=observe) as client:
            await client.ping()
            await _list(client)
            with pytest.raises(LinkLost):
                await client.read_plugin_data("r1")
    assert observed == [("Ping", "ok"), ("GetAccessRequestsV2", "ok"), ("GetPluginData", "aborted")]


async def test_a_closed_client_is_lost_and_nothing_was_sent() -> None:
    with serve() as peer:
        async with connect(peer) as client:
            pass
        with pytest.raises(LinkLost, match="channel was closed") as caught:
            await client.update_plugin_data("r1", {}, {})
        assert not caught.value.ambiguous
        with pytest.raises(LinkLost, match="channel was closed"):
            await _watch(client)
        assert peer.calls == []


async def test_nothing_listens() -> None:
    with serve() as peer:
        pass
    async with connect(peer) as client:
        with pytest.raises(LinkLost, match="Connection refused") as caught:
            await client.update_plugin_data("r1", {}, {})
    assert not caught.value.ambiguous
