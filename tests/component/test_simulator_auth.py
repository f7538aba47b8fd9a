"""The stand-in Auth Service over real mutual TLS, asked by a plain blocking client."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
import trio.testing
from google.protobuf.message import Message

from sidecar.simulator.faults import Refusal
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.teleport.pki import ClusterPki, CredentialFiles
from sidecar.teleport.pb import teleport_pb2 as pb

BOB, ALICE, IVAN, PLUGIN = "bob@example.com", "alice@example.com", "ivan@example.com", "access-plugin"
CUT = "Stream removed (Socket closed)"
SECONDS = 60.0


class Client:
    """Blocking calls as one user."""

    def __init__(self, addr: str, files: CredentialFiles, name: str = "teleport.cluster.local") -> None:
        credentials = grpc.ssl_channel_credentials(
            files.cas.read_bytes(), files.key.read_bytes(), files.crt.read_bytes()
        )
        options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
        self.channel = grpc.secure_channel(addr, credentials, options=options)

    def unary(self, method: str, message: Message, answer: type[Any] = pb.PingRequest, **more: Any) -> Any:
        call: grpc.UnaryUnaryMultiCallable[Message, Any] = self.channel.unary_unary(
            f"/proto.AuthService/{method}",
            request_serializer=lambda sent: sent.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(message, **{"timeout": SECONDS, "wait_for_ready": True, **more})

    def ping(self, **more: Any) -> pb.PingResponse:
        answer: pb.PingResponse = self.unary("Ping", pb.PingRequest(), pb.PingResponse, **more)
        return answer

    def raw(self, method: str) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        """Bytes in, bytes out, and futures."""
        return self.channel.unary_unary(f"/proto.AuthService/{method}", bytes, bytes)

    def list(self, method: str = "GetAccessRequestsV2") -> list[pb.AccessRequestV3]:
        call = self.channel.unary_stream(
            f"/proto.AuthService/{method}",
            request_serializer=pb.AccessRequestFilter.SerializeToString,
            response_deserializer=pb.AccessRequestV3.FromString,
        )
        return list(call(pb.AccessRequestFilter(), timeout=SECONDS))

    def watch(self, deserialize: Callable[[bytes], Any] = pb.Event.FromString) -> Any:
        call = self.channel.unary_stream(
            "/proto.AuthService/WatchEvents",
            request_serializer=pb.Watch.SerializeToString,
            response_deserializer=deserialize,
        )
        return call(pb.Watch(Kinds=[pb.WatchKind(Kind=b"access_request")]), timeout=SECONDS)

    def watching(self) -> Any:
        """A watch that has its INIT."""
        stream = self.watch()
        assert next(stream).Type == pb.INIT
        return stream


@pytest.fixture
def server() -> Iterator[AuthServer]:
    with AuthServer.dual_authorization() as running:
        yield running
        running.faults.clear()


@pytest.fixture
def sign_in(server: AuthServer, tmp_path: Path) -> Iterator[Callable[[str], Client]]:
    clients: list[Client] = []

    def sign(user: str) -> Client:
        clients.append(Client(server.addr, server.write_credentials(tmp_path, user, name=user)))
        return clients[-1]

    yield sign
    for client in clients:
        client.channel.close()


@pytest.fixture
def client(sign_in: Callable[[str], Client]) -> Client:
    return sign_in(PLUGIN)


def ends_with(stream: Any) -> tuple[grpc.StatusCode, str] | None:
    """How a stream ends; None for a clean end."""
    try:
        for _ in stream:
            pass
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return None


def is_cut(stream: Any) -> bool:
    """The server went; grpcio's sentence for it depends on what arrives first."""
    return (ends_with(stream) or ("", ""))[0] is grpc.StatusCode.UNAVAILABLE


def failure(run: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        run()
    return caught.value.code(), caught.value.details() or ""


def put_of(event: pb.Event) -> str:
    assert event.Type == pb.PUT
    return event.AccessRequest.Metadata.Name.decode()


def save(client: Client, request_id: str, value: bytes, **more: Any) -> None:
    message = pb.PluginDataUpdateParams(
        Kind=b"access_request",
        Resource=request_id.encode(),
        Plugin=b"mattermost",
        Set=[pb.StringEntry(key=b"k", value=value)],
    )
    client.unary("UpdatePluginData", message, **more)


def test_the_whole_story(server: AuthServer, sign_in: Callable[[str], Client]) -> None:
    """Bob asks, Alice and Ivan approve with their own certificates, the plugin watches."""
    plugin = sign_in(PLUGIN)
    stream = plugin.watching()
    request_id = server.create_request(BOB, ["dbadmin"], reason="fix it")
    first = next(stream)
    assert (put_of(first), first.AccessRequest.Spec.State) == (request_id, pb.PENDING)
    for user in (ALICE, IVAN):
        submission = pb.AccessReviewSubmission(
            RequestID=request_id.encode(), Review=pb.AccessReview(ProposedState=pb.APPROVED, Reason=b"ok")
        )
        sign_in(user).unary("SubmitAccessReview", submission, pb.AccessRequestV3)
    states = [next(stream).AccessRequest.Spec for _ in range(2)]
    assert [(spec.State, len(spec.Reviews)) for spec in states] == [(pb.PENDING, 1), (pb.APPROVED, 2)]
    assert [caller for caller, _ in server.submissions] == [ALICE, IVAN]
    server.delete_request(request_id)
    assert next(stream).ResourceHeader.Metadata.Name == request_id.encode()


def test_requests_expire_by_the_clock(server: AuthServer, client: Client) -> None:
    """A sooner expiry overtakes a later one that was known before."""
    stream = client.watching()
    later = server.create_request(BOB, ["dbadmin"], expires_in=3600)
    soon = server.create_request(BOB, ["dbadmin"], expires_in=0.2)
    assert [put_of(next(stream)) for _ in range(2)] == [later, soon]
    gone = next(stream)
    assert (gone.Type, gone.ResourceHeader.Metadata.Name) == (pb.DELETE, soon.encode())
    assert [request.id for request in server.requests()] == [later]


def test_an_approved_request_lives_on(server: AuthServer, client: Client) -> None:
    """Approval moves the expiry to the end of the access, so the earlier one must not delete it."""
    stream = client.watching()
    kept = server.create_request(BOB, ["dbadmin"], expires_in=1)
    server.set_state(kept, "APPROVED")
    server.create_request(BOB, ["dbadmin"], expires_in=1.1)
    assert [next(stream).Type for _ in range(4)] == [pb.PUT, pb.PUT, pb.PUT, pb.DELETE]
    assert [request.id for request in server.requests()] == [kept]


@pytest.mark.parametrize(
    ("how", "seen"),
    [
        ("closed", (grpc.StatusCode.UNKNOWN, "watcher closed")),
        ("overflow", (grpc.StatusCode.INVALID_ARGUMENT, "buffer overflow")),
        ("unavailable", (grpc.StatusCode.UNAVAILABLE, CUT)),
        ("ok", None),
    ],
)
def test_every_way_a_watch_ends(
    server: AuthServer, client: Client, how: Any, seen: tuple[grpc.StatusCode, str] | None
) -> None:
    streams = [client.watching(), client.watching()]
    assert server.close_watchers(how) == 2
    assert [ends_with(stream) for stream in streams] == [seen, seen]
    server.wait_for(lambda: server.watchers == 0)


def test_a_closed_client_frees_its_watch(server: AuthServer, client: Client) -> None:
    stream = client.watching()
    assert server.watchers == 1
    stream.cancel()
    server.wait_for(lambda: server.watchers == 0)


def test_a_stalled_watch_stays_open_and_silent(server: AuthServer, client: Client) -> None:
    """A new one hears everything."""
    deaf = client.watching()
    assert server.stall_watchers() == 1
    hearing = client.watching()
    request_id = server.create_request(BOB, ["dbadmin"])
    assert put_of(next(hearing)) == request_id
    server.close_watchers("ok")
    assert list(deaf) == []


def test_raw_bytes_reach_the_watchers(server: AuthServer, client: Client) -> None:
    stream = client.watch(bytes)
    assert next(stream) == b""
    server.inject(b"\xff\xff garbage")
    assert next(stream) == b"\xff\xff garbage"


def test_a_reader_that_falls_behind_is_dropped(tmp_path: Path) -> None:
    """64 events on 7: the client reads nothing while more is sent than its window and the buffer hold."""
    with AuthServer.dual_authorization() as server:
        client = Client(server.addr, server.write_credentials(tmp_path))
        stream = client.watching()
        while server.watchers:
            server.create_request(BOB, ["dbadmin"], reason="x" * 4000)
        assert ends_with(stream) == (grpc.StatusCode.INVALID_ARGUMENT, "buffer overflow")
        client.channel.close()


@pytest.mark.parametrize("version", ["7.0.0-dev", "12.0.0", "18.0.0"])
def test_lists_by_version(tmp_path: Path, version: str) -> None:
    with AuthServer.dual_authorization(version=version) as server:
        request_id = server.create_request(BOB, ["dbadmin"])
        client = Client(server.addr, server.write_credentials(tmp_path))
        unknown = "unknown method {} for service proto.AuthService"
        legacy = partial(client.unary, "GetAccessRequests", pb.AccessRequestFilter(), pb.AccessRequests)
        if version.startswith("7"):
            refusal = failure(client.list)
            assert refusal == (grpc.StatusCode.UNIMPLEMENTED, unknown.format("GetAccessRequestsV2"))
            found = legacy().AccessRequests
        else:
            found = client.list()
        if version.startswith("18"):
            assert failure(legacy) == (grpc.StatusCode.UNIMPLEMENTED, unknown.format("GetAccessRequests"))
        assert [request.Metadata.Name.decode() for request in found] == [request_id]
        assert client.ping().ServerVersion == version.encode()
        client.channel.close()


def test_an_old_client_is_turned_away_by_18_when_it_tells_its_version(tmp_path: Path) -> None:
    with AuthServer.dual_authorization(version="18.0.0") as server:
        client = Client(server.addr, server.write_credentials(tmp_path))
        refusal = failure(lambda: client.ping(metadata=[("version", "16.4.0")]))
        assert refusal == (grpc.StatusCode.PERMISSION_DENIED, "client version is unsupported")
        assert client.ping(metadata=[("version", "17.0.0")]).ServerVersion == b"18.0.0"
        client.channel.close()


def test_rights_reach_the_wire(server: AuthServer, sign_in: Callable[[str], Client]) -> None:
    refusal = ends_with(sign_in(ALICE).watch())
    text = 'access denied to perform action "read" on "access_request"'
    assert refusal == (grpc.StatusCode.PERMISSION_DENIED, text)
    client = sign_in(PLUGIN)
    server.remove_user(PLUGIN)
    assert failure(client.ping)[0] is grpc.StatusCode.NOT_FOUND


# TLS


def test_foreign_certificates_do_not_get_in(server: AuthServer, tmp_path: Path) -> None:
    foreign = ClusterPki("example.com").write_credentials(tmp_path, PLUGIN, [])
    trusting = CredentialFiles(foreign.crt, foreign.key, tmp_path / "right.cas")
    trusting.cas.write_bytes(server.pki.host_ca.pem)
    client = Client(server.addr, trusting)
    code, _ = failure(lambda: client.ping(wait_for_ready=False))
    assert code is grpc.StatusCode.UNAVAILABLE
    client.channel.close()
    assert server.calls["Ping"] == 0


@pytest.mark.parametrize(
    ("name", "fits"), [("localhost", False), ("auth1", True), ("abc.teleport.cluster.local", True)]
)
def test_the_server_bears_the_stock_names(server: AuthServer, tmp_path: Path, name: str, fits: bool) -> None:  # noqa: FBT001
    client = Client(server.addr, server.write_credentials(tmp_path), name)
    if fits:
        assert client.ping().ClusterName == b"example.com"
    else:
        assert "Hostname Verification Check failed" in failure(lambda: client.ping(wait_for_ready=False))[1]
    client.channel.close()


# Faults


def test_ordered_failures_happen_as_often_as_ordered(server: AuthServer, client: Client) -> None:
    request_id = server.create_request(BOB, ["dbadmin"])
    server.faults.fail("UpdatePluginData", grpc.StatusCode.FAILED_PRECONDITION, "too many concurrent writes", times=2)
    for _ in range(2):
        refusal = failure(lambda: save(client, request_id, b"1"))
        assert refusal == (grpc.StatusCode.FAILED_PRECONDITION, "too many concurrent writes")
    assert server.plugin_data(request_id) == {}
    save(client, request_id, b"1")
    assert server.plugin_data(request_id) == {"k": "1"}
    assert server.calls["UpdatePluginData"] == 3


def test_a_lost_answer_was_carried_out(server: AuthServer, client: Client) -> None:
    request_id = server.create_request(BOB, ["dbadmin"])
    server.faults.lose_answer("UpdatePluginData")
    assert failure(lambda: save(client, request_id, b"1")) == (grpc.StatusCode.UNAVAILABLE, CUT)
    assert server.plugin_data(request_id) == {"k": "1"}


@pytest.mark.parametrize("executed", [False, True])
def test_a_deadline_may_pass_before_or_after_the_write(server: AuthServer, client: Client, executed: bool) -> None:  # noqa: FBT001
    """And nothing is carried out for a client that gave up before."""
    request_id = server.create_request(BOB, ["dbadmin"])
    server.faults.delay("UpdatePluginData", 60, executed=executed)
    code, _ = failure(lambda: save(client, request_id, b"1", timeout=1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.plugin_data(request_id) == ({"k": "1"} if executed else {})


def test_other_bytes_may_be_answered(server: AuthServer, client: Client) -> None:
    server.faults.garble("Ping", pb.PingResponse(ClusterName=b"other").SerializeToString())
    assert [client.ping().ClusterName for _ in range(2)] == [b"other", b"example.com"]


def test_a_hang_lasts_until_it_is_released(server: AuthServer, client: Client) -> None:
    """Calls and events alike; then everything arrives."""
    stream = client.watching()
    server.faults.hang()
    request_id = server.create_request(BOB, ["dbadmin"])
    with ThreadPoolExecutor(2) as pool:
        event: Future[pb.Event] = pool.submit(next, stream)
        answer = pool.submit(client.ping)
        server.wait_for(lambda: server.calls["Ping"] == 1)
        assert failure(lambda: client.ping(timeout=0.2))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not event.done()
        assert not answer.done()
        server.faults.release()
        assert put_of(event.result(SECONDS)) == request_id
        assert answer.result(SECONDS).ClusterName == b"example.com"


def test_init_can_be_withheld(server: AuthServer, client: Client) -> None:
    server.faults.hang("WatchEvents")
    stream = client.watch()
    server.wait_for(lambda: server.calls["WatchEvents"] == 1)
    assert client.ping().ClusterName == b"example.com"
    assert server.watchers == 0
    server.faults.release()
    assert next(stream).Type == pb.INIT


def test_latency_is_a_round_trip_for_many_calls_at_once(server: AuthServer, client: Client) -> None:
    """150 calls wait beside each other, and an event takes half of it; each at least as long as ordered."""
    stream = client.watching()
    call = client.raw("Ping")
    server.faults.latency = 0.4
    begun = time.monotonic()
    server.create_request(BOB, ["dbadmin"])
    put_of(next(stream))
    assert time.monotonic() - begun >= 0.2
    begun = time.monotonic()
    futures = [call.future(b"", timeout=SECONDS) for _ in range(150)]
    assert all(pb.PingResponse.FromString(future.result()).ClusterName for future in futures)
    assert time.monotonic() - begun >= 0.4
    # one after another they would take a minute, and the deadline above would have passed
    assert server.calls["Ping"] == 150


# Life


def test_a_restart_keeps_the_port_and_the_state_and_may_be_an_upgrade(server: AuthServer, client: Client) -> None:
    request_id = server.create_request(BOB, ["dbadmin"])
    save(client, request_id, b"1")
    stream = client.watching()
    addr = server.addr
    server.restart("18.0.0")
    assert is_cut(stream)
    assert server.addr == addr
    assert client.ping().ServerVersion == b"18.0.0"
    assert [request.Metadata.Name.decode() for request in client.list()] == [request_id]
    assert client.list()[0].Spec.HasField("ResourceExpiry")
    assert server.plugin_data(request_id) == {"k": "1"}


def test_stop_cuts_whatever_is_under_way(server: AuthServer, client: Client) -> None:
    """Hung calls, sleeping calls and open watches; no thread is left."""
    streams = [client.watching() for _ in range(3)]
    server.faults.hang("UpdatePluginData")
    server.faults.delay("Ping", 600)
    sleeping = client.raw("Ping").future(b"", timeout=SECONDS)
    hung = client.raw("UpdatePluginData").future(b"", timeout=SECONDS)
    server.wait_for(lambda: server.calls["Ping"] == server.calls["UpdatePluginData"] == 1)
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("simulator-auth")]
    server.stop()
    for future in (sleeping, hung):
        assert failure(future.result)[0] is grpc.StatusCode.UNAVAILABLE
    assert all(is_cut(stream) for stream in streams)
    for thread in workers:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in workers)
    assert failure(lambda: client.ping(wait_for_ready=False))[0] is grpc.StatusCode.UNAVAILABLE


def test_stopping_twice_and_never_starting_are_fine() -> None:
    server = AuthServer()
    server.stop()
    with server:
        server.stop()


async def test_trio_waits_in_a_thread(server: AuthServer) -> None:
    """The way of the component tests: no polling, and the change wakes the waiter."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: server.wait_for(lambda: bool(server.requests())))
        await trio.testing.wait_all_tasks_blocked()
        server.create_request(BOB, ["dbadmin"])


def test_single_sign_on_users_get_no_files(server: AuthServer, tmp_path: Path) -> None:
    server.add_user("sso@example.com", ["reviewer"], sso=True)
    with pytest.raises(Refusal, match="PERMISSION_DENIED: access denied"):
        server.write_credentials(tmp_path, "sso@example.com")


def test_one_role_is_read_by_those_who_may(client: Client, server: AuthServer) -> None:
    """The official plugin asks for each role of a request, goes on where it may not, and gives up at any other no."""

    def ask(name: bytes) -> pb.RoleV6:
        found: pb.RoleV6 = client.unary("GetRole", pb.GetByName(name=name), pb.RoleV6)
        return found

    refusal = 'access denied to perform action "read" on "role"'
    assert failure(lambda: ask(b"dbadmin")) == (grpc.StatusCode.PERMISSION_DENIED, refusal)
    server.add_role(PLUGIN, rules={"role": ("read",)})
    assert ask(b"dbadmin").Metadata.Name == b"dbadmin"
    assert failure(lambda: ask(b"nobody"))[0] is grpc.StatusCode.NOT_FOUND
