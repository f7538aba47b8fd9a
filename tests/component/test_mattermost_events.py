"""The websocket link against a peer whose every frame the test writes, on real sockets and TLS."""

from __future__ import annotations

import json
import logging
import random
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sidecar.errors import LinkError, LinkGarbled, LinkLost, LinkRefused
from sidecar.mattermost import inbox
from sidecar.mattermost.events import Events, PostedHint, ReactionHint, open_events
from sidecar.simulator.mattermost.server import Answer, MattermostServer, WebsocketTimes
from tests.mattermost_peer import (
    TOKEN,
    Proxy,
    Script,
    Wire,
    proxy_peer,
    server_context,
    serving,
    silent,
    socket_peer,
    trusting_context,
    unused_port,
)


def token() -> str:
    return TOKEN


@asynccontextmanager
async def events_of(script: Script, **options: float) -> AsyncIterator[Events]:
    async with socket_peer(script) as url, open_events(url, token, **options) as events:  # type: ignore[arg-type]
        yield events


async def first_failure(events: Events) -> LinkError:
    with pytest.raises(LinkError) as caught:
        async for _ in events:
            pass
    return caught.value


async def failure_to_open(url: str, **options: object) -> LinkError:
    with pytest.raises(LinkError) as caught:
        async with open_events(url, token, **options):  # type: ignore[arg-type]
            pytest.fail("it connected")
    return caught.value


async def idle(wire: Wire) -> None:
    """Answer JSON pings until the client goes."""
    while isinstance(frame := await wire.receive(), dict):
        await wire.json({"status": "OK", "seq_reply": frame["seq"], "data": {"text": "pong"}})


# connecting


async def test_connected_means_hello_below_the_subpath_with_the_token_in_a_header() -> None:
    seen: list[Wire] = []
    greet = trio.Event()

    async def script(wire: Wire) -> None:
        seen.append(wire)
        await greet.wait()
        await wire.hello()
        await idle(wire)

    connected = trio.Event()

    async def connect(url: str) -> None:
        async with open_events(url, token):
            connected.set()

    async with socket_peer(script) as url, trio.open_nursery() as nursery:
        nursery.start_soon(connect, url + "/mm/")
        while not seen:
            await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not connected.is_set()
        greet.set()
        await connected.wait()
    assert seen[0].request.target == "/mm/api/v4/websocket"
    headers = dict(seen[0].request.extra_headers)
    assert headers[b"authorization"] == f"Bearer {TOKEN}".encode()
    assert b"origin" not in headers


async def test_a_bad_token_is_silence_and_then_the_end() -> None:
    """Recorded: 101, no frame, TCP closed without a close frame after 5 s."""

    async def script(_: Wire) -> None:
        await trio.lowlevel.checkpoint()

    async with socket_peer(script) as url:
        error = await failure_to_open(url)
    assert isinstance(error, LinkLost)
    assert error.reason == "no_hello"


async def test_the_caller_sets_the_deadline_of_hello() -> None:
    async with socket_peer(silent) as url:
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.1):
            async with open_events(url, token):
                pass


@pytest.mark.parametrize(
    "first", ['{"event":"posted","seq":0}', '{"event":"hello","seq":5}', "<html>", '{"seq":"x"}', "[]"]
)
async def test_any_other_first_frame_is_garbled(first: str) -> None:
    async with socket_peer(lambda wire: wire.text(first)) as url:
        assert isinstance(await failure_to_open(url), LinkGarbled)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "closed"),
        (b"220 smtp.example.com ready\r\n\r\n", "closed"),
        (b"HTTP/1.1 429 X\r\nRetry-After: 1\r\nContent-Length: 15\r\n\r\nlimit exceeded\n", "rejected"),
        (b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n", "rejected"),
        (b"HTTP/1.1 502 X\r\nConnection: close\r\n\r\n<html>", "closed"),
        (b"HTTP/1.1 301 X\r\nLocation: https://x/\r\nContent-Length: 0\r\n\r\n", "rejected"),
    ],
)
async def test_a_refused_handshake_is_lost_at_once(reply: bytes, reason: str) -> None:
    async def handle(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(reply)

    async with serving(handle) as port:
        error = await failure_to_open(f"http://127.0.0.1:{port}")
    assert isinstance(error, LinkLost)
    assert error.reason == reason


async def test_nothing_listening_is_lost() -> None:
    assert (await failure_to_open(f"http://127.0.0.1:{unused_port()}")).reason == "unreachable"


async def test_tls_with_the_right_authority_works_and_with_another_is_refused() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await idle(wire)

    async with socket_peer(script, server_context("localhost")) as url:
        async with open_events(url, token, ssl_context=trusting_context()):
            pass
        error = await failure_to_open(url)
        assert isinstance(error, LinkRefused)
        assert "mattermost.ca_file" in str(error)
    async with socket_peer(script, server_context("other.example.com")) as url:
        assert isinstance(await failure_to_open(url, ssl_context=trusting_context()), LinkRefused)


@pytest.mark.parametrize("secure", [False, True])
async def test_the_websocket_goes_through_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, *, secure: bool
) -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.posted("p1")
        await idle(wire)

    proxy = Proxy()
    async with socket_peer(script, server_context("localhost") if secure else None) as url, proxy_peer(proxy) as way:
        monkeypatch.setenv("https_proxy" if secure else "http_proxy", way.replace("://", "://me:secret@"))
        async with open_events(url, token, ssl_context=trusting_context()) as events:
            assert (await anext(events)).post_id == "p1"
        monkeypatch.setenv("no_proxy", "localhost")
        async with open_events(url, token, ssl_context=trusting_context()):
            pass
    [asked] = proxy.asked
    assert asked.startswith(f"CONNECT {url.partition('://')[2]} HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in asked
    assert TOKEN.encode() not in asked


async def test_a_proxy_with_tls_of_its_own_works(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await idle(wire)

    context = server_context("localhost")
    async with socket_peer(script, context) as url, proxy_peer(Proxy(), context) as way:
        monkeypatch.setenv("https_proxy", way)
        async with open_events(url, token, ssl_context=trusting_context()):
            pass


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"\r\n\r\n", b"HTTP/1.\r\n\r\n", b"SSH-2.0\r\n\r\n", b"x" * 20_000]
)
async def test_a_proxy_that_refuses_is_lost(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy_peer(Proxy(reply)) as way:
        monkeypatch.setenv("http_proxy", way)
        error = await failure_to_open("http://chat.example.com")
    assert isinstance(error, LinkLost)
    assert error.reason == "proxy"


# what arrives


async def test_events_become_hints_in_order() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.posted("p1")
        await wire.event("typing", {"user_id": "u1"})
        reaction = {"user_id": "u2", "post_id": "p2", "emoji_name": "x"}
        await wire.event("reaction_added", {"reaction": json.dumps(reaction)}, "c2")
        await wire.posted("p3", "p2")
        await wire.event("reaction_removed", {"reaction": json.dumps(reaction | {"post_id": "p4"})}, "c2")
        await idle(wire)

    async with events_of(script) as events:
        assert [await anext(events) for _ in range(4)] == [
            PostedHint("p1", "", "c1", "u1"),
            ReactionHint("p2", "c2", "u2"),
            PostedHint("p3", "p2", "c1", "u1"),
            ReactionHint("p4", "c2", "u2"),
        ]


async def test_duplicates_by_seq_are_dropped_and_a_gap_ends_the_link() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.posted("p1")
        await wire.posted("twice", seq=1)
        await wire.posted("p2")
        await wire.posted("old", seq=1)
        await wire.json({"event": "posted", "data": {"post": '{"id":"unnumbered"}'}})
        await wire.posted("late", seq=7)
        await idle(wire)

    async with events_of(script) as events:
        assert [(await anext(events)).post_id for _ in range(2)] == ["p1", "p2"]
        error = await first_failure(events)
    assert isinstance(error, LinkLost)
    assert error.reason == "gap"


async def test_another_hello_means_that_events_were_lost() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.hello()
        await idle(wire)

    async with events_of(script) as events:
        assert (await first_failure(events)).reason == "gap"


@pytest.mark.parametrize(
    "frame",
    [
        "not json",
        '{"event":',
        '{"event":"posted","seq":"1"}',
        '{"event":"posted","data":' + "[" * 5000 + "]" * 5000 + ',"seq":1}',
    ],
)
async def test_a_garbage_frame_ends_the_link_after_what_came_before(frame: str) -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.posted("p1", seq=None)
        await wire.text(frame.replace('"seq":1', '"seq":2'))
        await idle(wire)

    async with events_of(script) as events:
        assert (await anext(events)).post_id == "p1"
        assert isinstance(await first_failure(events), LinkGarbled)


@pytest.mark.parametrize(
    "frame",
    [
        '{"event":"posted","data":{"post":"{"},"seq":2}',
        '{"event":"posted","data":{"post":"' + "[" * 5000 + "]" * 5000 + '"},"seq":2}',
        '{"event":"reaction_added","data":{},"seq":2}',
        '{"event":"posted","data":[],"seq":2}',
    ],
)
async def test_what_cannot_be_read_in_a_frame_costs_that_hint_alone(frame: str) -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.posted("p1")
        await wire.text(frame)
        await wire.posted("p2", seq=3)
        await idle(wire)

    async with events_of(script) as events:
        assert [(await anext(events)).post_id for _ in range(2)] == ["p1", "p2"]


async def test_broken_framing_ends_the_link() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.stream.send_all(b"\xff\xff\xff\xff\xff")
        await trio.sleep_forever()

    async with events_of(script) as events:
        assert isinstance(await first_failure(events), LinkLost)


@pytest.mark.parametrize("greeted", [False, True])
async def test_any_bytes_end_the_link_with_an_error_of_ours(*, greeted: bool) -> None:
    rng = random.Random(11)
    heads = [b"", b"HTTP/1.1 ", b"HTTP/1.1 101 X\r\n", b"HTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\n", b"\r\n\r\n"]
    heads = [b"", b"\x81", b"\x82\x05", b"\x88", b"\x89\x01", b"\x81\x7f", b"\x01\x02ab\x80"] if greeted else heads

    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.stream.send_all(rng.choice(heads) + rng.randbytes(rng.randrange(40)))

    async def raw(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(rng.choice(heads) + rng.randbytes(rng.randrange(40)))

    async with socket_peer(script) as talking, serving(raw) as port:
        for _ in range(100):
            with pytest.raises(LinkError):
                await read_all(talking if greeted else f"http://127.0.0.1:{port}")


async def read_all(url: str) -> None:
    async with open_events(url, token) as events:
        async for _ in events:
            pass


async def test_a_frame_too_large_is_garbled_and_a_large_one_is_not() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.posted("p1" + "x" * 3_000_000)
        await wire.posted("p2" + "x" * 5_000_000)
        await idle(wire)

    async with events_of(script, max_message_bytes=4_000_000) as events:
        assert len((await anext(events)).post_id) == 3_000_002
        error = await first_failure(events)
    assert isinstance(error, LinkGarbled)
    assert error.reason == "oversized"


async def test_ten_thousand_foreign_events_pass_by() -> None:
    user = {"user": {"id": "u", "notify": ["x" * 50] * 5}}

    async def script(wire: Wire) -> None:
        await wire.hello()
        for number in range(10_000):
            await wire.event(["user_updated", "status_change", "custom_plugin_x"][number % 3], user)
        await wire.posted("p1")
        await idle(wire)

    async with events_of(script) as events:
        assert (await anext(events)).post_id == "p1"


@pytest.mark.parametrize("code", [None, 1000, 1001, 1011])
async def test_every_end_is_lost_after_what_came_before(code: int | None) -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.posted("p1")
        if code is not None:
            await wire.close(code)

    async with events_of(script) as events:
        assert (await anext(events)).post_id == "p1"
        error = await first_failure(events)
    assert isinstance(error, LinkLost)
    assert error.reason == "closed"


# a slow consumer


async def test_a_slow_consumer_does_not_stop_the_reading_and_sees_each_post_once() -> None:
    read = trio.Event()

    async def script(wire: Wire) -> None:
        await wire.hello()
        for _ in range(1000):
            await wire.posted("again")
        for number in range(1000):
            await wire.posted(f"p{number}")
        await wire.ping()
        assert await wire.receive() == "pong"
        read.set()
        await idle(wire)

    async with events_of(script) as events:
        await read.wait()
        posts = [(await anext(events)).post_id for _ in range(1001)]
    assert posts == ["again", *(f"p{number}" for number in range(1000))]


async def test_more_than_can_wait_ends_the_link_instead_of_growing() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        for number in range(inbox._MAX_WAITING + 50):
            await wire.posted(f"p{number}")
        await idle(wire)

    async with events_of(script) as events:
        while events._failure is None:
            await trio.testing.wait_all_tasks_blocked(0.01)
        hints = [await anext(events) for _ in range(inbox._MAX_WAITING)]
        error = await first_failure(events)
    assert error.reason == "overflow"
    assert hints[0].post_id == "p0"
    assert isinstance(error, LinkLost)


# liveness


async def test_a_json_ping_proves_the_link() -> None:
    answered: list[dict[str, object]] = []

    async def script(wire: Wire) -> None:
        await wire.hello()
        while isinstance(frame := await wire.receive(), dict):
            answered.append(frame)
            await wire.json({"status": "OK", "seq_reply": frame["seq"], "data": {"text": "pong"}})

    async with events_of(script, ping_seconds=0.02) as events:
        before = events.proven_at
        while len(answered) < 3:
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert events.proven_at > before
    assert answered[:3] == [{"seq": number, "action": "ping"} for number in (1, 2, 3)]


@pytest.mark.parametrize("replies", [[], [99], [0]])
async def test_a_deaf_socket_is_found_although_it_answers_protocol_pings(replies: list[int]) -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        while isinstance(await wire.receive(), dict):
            for number in replies:
                await wire.json({"status": "OK", "seq_reply": number})

    async with events_of(script, ping_seconds=0.02, answer_seconds=0.05) as events:
        error = await first_failure(events)
    assert isinstance(error, LinkLost)
    assert error.reason == "deaf"


async def test_busy_traffic_does_not_hide_a_deaf_session() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        while True:
            await wire.event("typing")
            await trio.lowlevel.checkpoint()

    async with events_of(script, ping_seconds=0.02, answer_seconds=0.05) as events:
        assert (await first_failure(events)).reason == "deaf"


async def test_a_server_that_reads_no_more_is_found() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await trio.sleep_forever()

    async with events_of(script, ping_seconds=0.0, answer_seconds=0.05) as events:
        assert (await first_failure(events)).reason == "deaf"


async def test_a_refused_ping_names_the_error_and_not_the_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    error_id = "api.web_socket_router.not_authenticated.app_error"

    async def script(wire: Wire) -> None:
        await wire.hello()
        await wire.receive()
        error = {"id": error_id, "message": f"Invalid session token={TOKEN}", "status_code": 401}
        await wire.json({"status": "FAIL", "seq_reply": 1, "error": error})
        await idle(wire)

    async with events_of(script, ping_seconds=0.01) as events:
        error = await first_failure(events)
    assert isinstance(error, LinkLost)
    assert error.reason == "deaf"
    assert error_id in str(error)
    assert TOKEN not in "".join(traceback.format_exception(error)) + repr(vars(error)) + repr(events)
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("bad", ["", "two\nlines-secret"])
async def test_a_token_that_no_header_can_hold_is_refused(bad: str) -> None:
    async with socket_peer(idle) as url:
        with pytest.raises(LinkRefused) as caught:
            async with open_events(url, lambda: bad):
                pass
    assert "secret" not in "".join(traceback.format_exception(caught.value))


# leaving


async def test_what_the_body_raises_leaves_as_itself() -> None:
    async def script(wire: Wire) -> None:
        await wire.hello()
        await idle(wire)

    cause = KeyError("cause")
    async with socket_peer(script) as url:
        with pytest.raises(ValueError, match="mine") as caught:
            async with open_events(url, token):
                raise ValueError("mine") from cause
    assert caught.value.__cause__ is cause


async def test_leaving_or_cancelling_closes_the_connection() -> None:
    gone = 0

    async def script(wire: Wire) -> None:
        nonlocal gone
        await wire.hello()
        try:
            await idle(wire)
        finally:
            gone += 1

    async with socket_peer(script) as url:
        async with open_events(url, token):
            pass
        with trio.move_on_after(0.05):
            async with open_events(url, token) as events:
                await anext(events)
        for steps in range(0, 60, 3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, scope, steps)
                    async with open_events(url, token) as events:
                        await anext(events)
        async with open_events(url, token):
            pass
        while gone < 3:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def cancel_after(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


# the simulated Mattermost, which knows more of the real one's habits


@pytest.fixture
async def server(nursery: trio.Nursery) -> MattermostServer:
    server = MattermostServer(websocket_times=WebsocketTimes(auth=0.2))
    await nursery.start(server.serve)
    return server


async def test_the_simulated_mattermost_tells_of_posts_and_reactions(server: MattermostServer) -> None:
    bot, alice = server.add_bot("teleport"), server.add_user("alice")
    team = server.add_team("ops", members=[bot, alice])
    channel = server.add_channel(team, "requests", members=[bot, alice])
    async with open_events(server.url, lambda: bot.token, ping_seconds=0.01) as events:
        post = server.post(alice, channel, "hello")
        server.react(alice, post, "white_check_mark")
        assert await anext(events) == PostedHint(post.id, "", channel.id, alice.id)
        assert await anext(events) == ReactionHint(post.id, channel.id, alice.id)
        server.drop_sockets()
        assert (await first_failure(events)).reason == "closed"


async def test_the_simulated_mattermost_with_a_bad_token(server: MattermostServer) -> None:
    with pytest.raises(LinkLost) as caught:
        async with open_events(server.url, token):
            pass
    assert caught.value.reason == "no_hello"


@pytest.mark.parametrize("how", ["hub", "session"])
async def test_the_simulated_mattermost_going_deaf(server: MattermostServer, how: str) -> None:
    bot = server.add_bot("teleport")
    async with open_events(server.url, lambda: bot.token, ping_seconds=0.01, answer_seconds=0.1) as events:
        server.deafen(bot, how=how)  # type: ignore[arg-type]
        assert (await first_failure(events)).reason == "deaf"


async def test_the_simulated_mattermost_refusing_the_handshake(server: MattermostServer) -> None:
    server.fail(path="/api/v4/websocket", answer=Answer(429, b"limit exceeded\n"))
    assert (await failure_to_open(server.url)).reason == "rejected"
