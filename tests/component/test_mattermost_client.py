"""The REST client against a peer that answers, hangs up or keeps silent as the test says, on real sockets and TLS."""

from __future__ import annotations

import gzip
import logging
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate

import pytest
import trio
import trio.testing

from sidecar.errors import ConfigError, LinkError, LinkGarbled, LinkLost, LinkRefused, PostRejected, UnreadableAnswer
from sidecar.mattermost.client import MattermostClient, open_client
from sidecar.mattermost.dial import Address, proxy_for
from sidecar.model import Draft
from tests.mattermost_peer import (
    CLOSE,
    RESET,
    SILENCE,
    TOKEN,
    HttpPeer,
    Proxy,
    Seen,
    always,
    answer,
    app_error,
    http_peer,
    in_turn,
    proxy_peer,
    server_context,
    serving,
    stopped,
    trusting_context,
    unused_port,
)

POST = {"id": "p1", "channel_id": "c1", "user_id": "u1"}
ME = answer(200, {"id": "bot", "username": "teleport", "is_bot": True})
CREATED = answer(201, POST)
LIMITED = answer(429, b"limit exceeded\n", ("Retry-After", "30"), kind="text/plain")
PENDING_ID = "api.post.deduplicate_create_post.pending"


def token() -> str:
    return TOKEN


async def create(client: MattermostClient) -> object:
    return await client.create_post("c1", Draft("hello", {"text": "x"}), key="k1", tm={"v": 1, "k": "k1"})


async def patch(client: MattermostClient) -> object:
    await client.patch_post("p1", Draft("hello", {"text": "x"}), tm={"v": 1})
    return None


async def read(client: MattermostClient) -> object:
    return await client.me()


@asynccontextmanager
async def client_of(peer: HttpPeer, **options: object) -> AsyncIterator[MattermostClient]:
    async with open_client(peer.url, token, **options) as client:  # type: ignore[arg-type]
        yield client


async def failure_of(client: MattermostClient, call: Callable[[MattermostClient], Awaitable[object]]) -> Exception:
    with pytest.raises((LinkError, PostRejected)) as caught:
        await call(client)
    return caught.value


# what is sent


async def test_a_post_goes_out_with_its_key_and_mark_below_the_subpath() -> None:
    async with http_peer(always(CREATED)) as peer:
        peer.url += "/mm/"
        async with client_of(peer) as client:
            post = await client.create_post("c1", Draft("hello", {"text": "x"}), key="k1", tm={"k": "k1"}, root_id="r")
            await client.patch_post("p1", Draft("hello", {"text": "y"}), tm={"k": "k1"})
            await client.patch_post("p1", Draft("other"), tm={"k": "k1"}, message=True)
    assert (post.id, post.channel_id, post.user_id) == ("p1", "c1", "u1")
    created, patched, renamed = peer.seen
    assert (created.method, created.target) == ("POST", "/mm/api/v4/posts?set_online=false")
    assert created.header("authorization") == f"Bearer {TOKEN}"
    assert created.header("content-type") == "application/json"
    assert (created.header("user-agent") or "").startswith("teleport-mattermost-sidecar/")
    assert created.body == (
        b'{"channel_id":"c1","message":"hello","root_id":"r","pending_post_id":"k1",'
        b'"props":{"attachments":[{"text":"x"}],"tm":{"k":"k1"}}}'
    )
    # Only where the caller insists.
    assert renamed.body.endswith(b'"from_bot":"true"},"message":"other"}')
    assert (patched.method, patched.target) == ("PUT", "/mm/api/v4/posts/p1/patch")
    # The message stays, and from_bot would be lost: a patch replaces all props.
    assert patched.body == b'{"props":{"attachments":[{"text":"y"}],"tm":{"k":"k1"},"from_bot":"true"}}'


async def test_the_token_is_read_for_each_request() -> None:
    tokens = iter(["first", "second"])
    async with http_peer(always(ME)) as peer, open_client(peer.url, lambda: next(tokens)) as client:
        await client.me()
        await client.me()
    assert [seen.header("authorization") for seen in peer.seen] == ["Bearer first", "Bearer second"]


async def test_a_cookie_is_never_sent_back() -> None:
    cookie = ("Set-Cookie", "MMAUTHTOKEN=evil; Path=/; HttpOnly")
    async with http_peer(always(answer(200, {"id": "bot"}, cookie))) as peer, client_of(peer) as client:
        for _ in range(3):
            await client.me()
    assert [seen.header("cookie") for seen in peer.seen] == [None] * 3


@pytest.mark.parametrize("name", ["a/b", "..", "?x=1#y", "é%2F", "a b"])
async def test_a_name_cannot_leave_its_place_in_the_path(name: str) -> None:
    async with http_peer(always(answer(200, {"id": "u"}))) as peer, client_of(peer) as client:
        await client.user_by_email(name)
    [seen] = peer.seen
    assert seen.target.startswith("/api/v4/users/email/")
    assert seen.target.count("/") == 5
    assert "?" not in seen.target


@pytest.mark.parametrize("bad", ["", "two\nlines-secret", "spaced secret", "sécret", "nul\0secret"])
async def test_a_token_that_no_header_can_hold_is_refused_without_repeating_it(bad: str) -> None:
    async with http_peer(always(ME)) as peer, open_client(peer.url, lambda: bad) as client:
        error = await failure_of(client, read)
    assert isinstance(error, LinkRefused)
    assert error.reason == "token"
    assert "cret" not in "".join(traceback.format_exception(error))
    assert peer.seen == []


async def test_an_unreadable_token_file_is_a_refusal() -> None:
    def missing() -> str:
        raise FileNotFoundError(2, "No such file or directory", "/run/secrets/x")

    async with http_peer(always(ME)) as peer, open_client(peer.url, missing) as client:
        error = await failure_of(client, read)
    assert isinstance(error, LinkRefused)
    assert "No such file" in str(error)


# what answers mean


@pytest.mark.parametrize(
    ("reply", "kind", "reason", "ambiguous"),
    [
        (app_error(400, "model.post.is_valid.props.app_error"), PostRejected, None, None),
        (app_error(403, "api.context.permissions.app_error"), PostRejected, None, None),
        (app_error(404, "app.post.get.app_error"), PostRejected, None, None),
        (app_error(404, "api.context.404.app_error"), LinkLost, "unknown_route", False),
        (answer(404, b"default backend - 404", kind="text/plain"), LinkLost, "not_mattermost", False),
        (answer(413, b"<html>", kind="text/html"), PostRejected, None, None),
        (app_error(500, PENDING_ID), PostRejected, None, None),
        (app_error(500, "app.post.save.app_error"), LinkLost, "server_error", True),
        (answer(502, b"<html>502</html>", kind="text/html"), LinkLost, "server_error", True),
        (answer(503), LinkLost, "server_error", True),
        (answer(504), LinkLost, "server_error", True),
        (answer(301, b"", ("Location", "https://chat.example.com/api")), LinkRefused, "redirect", None),
        (answer(200, b"<html>login</html>", kind="text/html"), LinkGarbled, "body", None),
        (answer(201, b""), LinkGarbled, "body", None),
        (answer(201, [1]), LinkGarbled, "body", None),
        (answer(201, b"not gzip", ("Content-Encoding", "gzip")), LinkGarbled, "body", None),
        (SILENCE, LinkLost, "timeout", True),
        (CLOSE, LinkLost, "reset", True),
        (RESET, LinkLost, "reset", True),
    ],
)
async def test_each_failure_has_its_name_and_only_a_write_is_ambiguous(
    reply: bytes | str, kind: type[Exception], reason: str | None, *, ambiguous: bool | None
) -> None:
    async with http_peer(always(reply)) as peer, client_of(peer, request_seconds=0.25) as client:
        for call, writes in ((create, True), (patch, True), (read, False)):
            error = await failure_of(client, call)
            assert type(error) is kind
            if isinstance(error, LinkError):
                assert error.reason == reason
            if isinstance(error, LinkLost):
                assert error.ambiguous is (ambiguous and writes)


async def test_an_answer_that_is_no_http_is_ambiguous_for_a_write() -> None:
    async def babble(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"220 smtp.example.com ready\r\n\r\n")

    async with serving(babble) as port, open_client(f"http://127.0.0.1:{port}", token) as client:
        error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("reset", True)


async def test_nothing_listening_is_lost_and_certainly_not_sent() -> None:
    async with open_client(f"http://127.0.0.1:{unused_port()}", token) as client:
        error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("unreachable", False)


async def test_a_name_that_does_not_resolve_is_lost_and_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNames(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
            raise trio.socket.gaierror(-2, "Name or service not known")

        async def getnameinfo(self, *_: object, **__: object) -> tuple[str, str]:
            raise AssertionError("addresses are not turned into names")

    trio.socket.set_custom_hostname_resolver(NoNames())
    async with open_client("http://chat.invalid", token) as client:
        error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("dns", False)


async def test_a_drip_of_bytes_does_not_outlast_the_limit_of_a_request() -> None:
    async def drip(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.01)

    async with serving(drip) as port, open_client(f"http://127.0.0.1:{port}", token, request_seconds=0.2) as client:
        error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("timeout", True)


@pytest.mark.parametrize("zipped", [False, True])
async def test_a_huge_answer_is_garbled_before_it_fills_the_memory(
    monkeypatch: pytest.MonkeyPatch, *, zipped: bool
) -> None:
    monkeypatch.setattr("sidecar.mattermost.transport.MAX_ANSWER_BYTES", 200_000)
    body = b'{"id":"' + b"x" * 199_000 + b'"}'
    large, huge = (gzip.compress(text) if zipped else text for text in (body, body + b" " * 1000))
    headers = [("Content-Encoding", "gzip")] if zipped else []
    replies = in_turn(answer(200, large, *headers), answer(200, huge, *headers))
    async with http_peer(replies) as peer, client_of(peer) as client:
        assert len((await client.me()).id) == 199_000
        error = await failure_of(client, read)
    assert isinstance(error, UnreadableAnswer)
    assert error.reason == "too_large"


async def test_of_an_endless_answer_no_more_is_taken_in_than_the_limit() -> None:
    sent = 0

    async def endless(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        nonlocal sent
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            await stream.send_all(b" " * 100_000)
            sent += 100_000

    async with serving(endless) as port, open_client(f"http://127.0.0.1:{port}", token) as client:
        error = await failure_of(client, read)
    assert isinstance(error, UnreadableAnswer)
    # What stands in the kernel's buffers was sent, but not taken in. Its length was announced, so little was read.
    assert sent < 20_000_000


async def test_a_refusal_counts_however_long_its_page_is() -> None:
    reply = always(answer(502, b"<html>" + b"x" * 5_000_000, kind="text/html"))
    async with http_peer(reply) as peer, client_of(peer) as client:
        error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("server_error", True)


async def test_none_and_false_only_where_mattermost_itself_says_so() -> None:
    gone = always(app_error(404, "app.post.get.app_error"))
    async with http_peer(gone) as peer, client_of(peer) as client:
        assert await client.get_post("p1") is None
        assert await client.user("u1") is None
        assert await client.channel("c1") is None
        assert await client.thread("p1") == []
        assert await client.member("c1", "u1") is False
        peer.answerer = always(answer(404, b"<html>ingress</html>", kind="text/html"))
        for call in (client.get_post, client.user, client.channel, client.thread, client.member):
            with pytest.raises(LinkLost):
                await call("x")
        peer.answerer = always(app_error(403, "api.context.permissions.app_error"))
        assert await client.member("c1", "u1") is False
        with pytest.raises(PostRejected):
            await client.get_post("p1")


async def test_a_401_is_asked_again_and_only_then_believed() -> None:
    expired = app_error(401, "api.context.session_expired.app_error")
    async with http_peer(in_turn(expired, CREATED)) as peer, client_of(peer) as client:
        await create(client)
        assert len(peer.seen) == 2
        peer.answerer = always(expired)
        error = await failure_of(client, create)
    assert isinstance(error, LinkRefused)
    assert (error.reason, len(peer.seen)) == ("token", 5)


async def test_a_token_that_rotates_meanwhile_ends_the_doubt() -> None:
    tokens = iter(["old", "new"])

    async def judge(seen: Seen) -> bytes:
        await trio.lowlevel.checkpoint()
        new = seen.header("authorization") == "Bearer new"
        return ME if new else app_error(401, "api.context.session_expired.app_error")

    async with http_peer(judge) as peer, open_client(peer.url, lambda: next(tokens)) as client:
        assert (await client.me()).id == "bot"


async def test_reactions_of_unreadable_posts_do_not_hide_the_others() -> None:
    async def v11(seen: Seen) -> bytes:
        await trio.lowlevel.checkpoint()
        if b"bad" in seen.body:
            return app_error(403, "api.context.permissions.app_error")
        return answer(200, {"good7": [{"user_id": "u", "post_id": "good7", "emoji_name": "x"}], "good8": None})

    ids = [f"good{number}" for number in range(150)] + ["bad"]
    async with http_peer(v11) as peer, client_of(peer) as client:
        found = await client.reactions(ids)
    assert set(found) == set(ids) - {"bad"}
    assert [reaction.user_id for reaction in found["good7"]] == ["u"]
    assert found["good8"] == []


async def test_old_servers_list_channels_by_team() -> None:
    async def v5(seen: Seen) -> bytes:
        await trio.lowlevel.checkpoint()
        routes = {
            "/api/v4/users/me/channels": app_error(404, "api.context.404.app_error"),
            "/api/v4/users/me/teams": answer(200, [{"id": "t1"}, {"id": "t2"}]),
            "/api/v4/users/me/teams/t1/channels": answer(200, [{"id": "c1"}, {"id": "dm"}]),
            "/api/v4/users/me/teams/t2/channels": answer(200, [{"id": "c2"}, {"id": "dm"}]),
        }
        return routes[seen.target]

    async with http_peer(v5) as peer, client_of(peer) as client:
        assert [channel.id for channel in await client.my_channels()] == ["c1", "dm", "c2"]
        await client.my_channels()
    assert [seen.target for seen in peer.seen].count("/api/v4/users/me/channels") == 1


async def test_the_clock_offset_follows_the_date_header() -> None:
    async with (
        http_peer(always(answer(200, {"id": "b"}, ("Date", formatdate(time.time() + 3600, usegmt=True))))) as peer,
        client_of(peer) as client,
    ):
        assert client.clock_offset == 0.0
        await client.me()
        assert client.clock_offset == pytest.approx(3600, abs=2)
        peer.answerer = always(answer(200, {"id": "b"}, ("Date", "yesterday")))
        await client.me()
        assert client.clock_offset == pytest.approx(3600, abs=2)


async def test_outcomes_are_observed_by_verb() -> None:
    seen: list[tuple[str, str]] = []

    def observe(method: str, outcome: str, seconds: float) -> None:
        assert seconds >= 0
        seen.append((method, outcome))

    replies: dict[str, bytes | str] = {
        "ok": CREATED,
        "rejected": app_error(400, "x.y"),
        "server_error": answer(502),
        "garbled": answer(200, b"<html>"),
        "lost": CLOSE,
        "refused": answer(302),
    }
    async with http_peer(always(CREATED)) as peer, client_of(peer, observe=observe) as client:
        for reply in replies.values():
            peer.answerer = always(reply)
            for call in (create, patch):
                try:
                    await call(client)
                except (LinkError, PostRejected):
                    assert reply is not CREATED
    assert seen == [(verb, outcome) for outcome in replies for verb in ("POST", "PUT")]


# rate limit


@pytest.mark.parametrize("headers", [["1"], ["1, 1"], ["1", "1"], ["junk"], [], ["-3, 1"]])
async def test_a_429_is_waited_out_and_asked_again(headers: list[str], mock_clock: trio.testing.MockClock) -> None:
    limited = answer(429, b"limit exceeded\n", *(("Retry-After", value) for value in headers), kind="text/plain")
    async with http_peer(in_turn(limited, CREATED)) as peer, client_of(peer) as client, trio.open_nursery() as nursery:
        nursery.start_soon(create, client)
        await asleep_after(peer, 1)
        mock_clock.jump(0.99)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(peer.seen) == 1
        mock_clock.jump(0.02)
    assert len(peer.seen) == 2


async def asleep_after(peer: HttpPeer, count: int) -> None:
    """Wait until the peer has seen so many requests and nothing moves any more."""
    while len(peer.seen) < count:
        await trio.testing.wait_all_tasks_blocked(0.001)
    await trio.testing.wait_all_tasks_blocked(0.02)


async def test_one_429_stops_everybody(mock_clock: trio.testing.MockClock) -> None:
    limited = answer(429, b"limit exceeded\n", ("Retry-After", "7"), kind="text/plain")
    async with http_peer(in_turn(limited, CREATED)) as peer, client_of(peer) as client, trio.open_nursery() as nursery:
        nursery.start_soon(create, client)
        await asleep_after(peer, 1)
        for _ in range(20):
            nursery.start_soon(create, client)
        mock_clock.jump(6.9)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert len(peer.seen) == 1
        mock_clock.jump(0.2)
        # Posts are paced: 20 at once, the last of the 21 a twentieth of a second later.
        await asleep_after(peer, 21)
        mock_clock.jump(1.0)
    assert len(peer.seen) == 22


async def test_a_pause_longer_than_the_callers_deadline_says_that_nothing_was_stored() -> None:
    async with http_peer(always(LIMITED)) as peer, client_of(peer) as client:
        with trio.fail_after(5):
            error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("rate_limited", False)


class Expired(Exception):
    """What a caller's guard raises."""


async def test_a_guard_is_asked_after_all_waiting_and_before_each_try(mock_clock: trio.testing.MockClock) -> None:
    """A lease that runs out while a 429 is waited out must not let the write through afterwards."""
    asked: list[float] = []

    def guard() -> None:
        asked.append(trio.current_time())
        if len(asked) == 2:
            raise Expired

    async def guarded() -> None:
        with pytest.raises(Expired):
            await client.create_post("c1", Draft("hello"), key="k1", tm={}, guard=guard)

    limited = answer(429, b"limit exceeded\n", ("Retry-After", "7"), kind="text/plain")
    async with http_peer(in_turn(limited, CREATED)) as peer, client_of(peer) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guarded)
            await asleep_after(peer, 1)
            mock_clock.jump(7.1)
        assert len(peer.seen) == 1
        assert asked[1] - asked[0] >= 7
        # Nothing is held on to: the next call goes through.
        await create(client)


# bounds


async def test_no_more_connections_than_configured_and_they_are_kept() -> None:
    busy = 0
    most = 0

    async def slow(_: Seen) -> bytes:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await trio.testing.wait_all_tasks_blocked()
        busy -= 1
        return ME

    async with http_peer(slow) as peer, client_of(peer, max_connections=3) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(client.me)
        assert most == 3
        assert peer.connections == 3
        assert len(peer.seen) == 30


async def test_cancelled_calls_leave_nothing_behind() -> None:
    """Neither a connection nor a turn to use one: httpcore's pool loses turns to cancelled requests for ever."""
    rng = random.Random(7)

    async def reply(_seen: Seen) -> bytes:
        for _ in range(rng.randrange(6)):
            await trio.lowlevel.checkpoint()
        return ME

    async with (
        http_peer(reply) as peer,
        open_client(f"http://127.0.0.1:{peer.port}", token, max_connections=4) as client,
    ):
        # Most cancellations before anything is sent, where slots get lost; then anywhere.
        for most in [10] * 30 + [400] * 10:
            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(stopped, client.me, rng.randrange(most))
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client.me)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert peer.open <= 4
        # White box: no turn is lost, and every connection that is open is an idle one.
        transport = client._rest._transport  # type: ignore[attr-defined]
        assert transport._turns.borrowed_tokens == 0
        assert peer.open == len(transport._idle)
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert peer.open == 0


async def test_an_idle_connection_that_the_server_closed_is_not_used_for_a_write() -> None:
    """Nothing was sent on it, so nothing can have been stored."""
    async with http_peer(always(CREATED)) as peer, client_of(peer) as client:
        await create(client)
        peer.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.02)
        await create(client)
    assert [seen.connection for seen in peer.seen] == [1, 2]


async def test_an_idle_connection_is_not_used_when_the_server_may_be_closing_it(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with http_peer(always(CREATED)) as peer, open_client(peer.url, token) as client:
        for seconds in (0.0, 44.0, 46.0):
            mock_clock.jump(seconds)
            await create(client)
    assert [seen.connection for seen in peer.seen] == [1, 1, 2]


async def test_a_connection_that_breaks_when_it_is_used_again_leaves_a_write_in_doubt() -> None:
    """The server read the request: whether it closed before or after it stored the post cannot be known."""
    async with http_peer(in_turn(CREATED, CLOSE, CREATED)) as peer, client_of(peer) as client:
        await create(client)
        error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("reset", True)
    assert [seen.connection for seen in peer.seen] == [1, 1]


async def test_a_guard_that_refuses_leaves_the_connection_as_it_was() -> None:
    def guard() -> None:
        raise Expired

    observed: list[str] = []
    async with (
        http_peer(always(CREATED)) as peer,
        client_of(peer, observe=lambda _method, outcome, _seconds: observed.append(outcome)) as client,
    ):
        await create(client)
        with pytest.raises(Expired):
            await client.delete_post("p1", guard=guard)
        await create(client)
    assert [seen.connection for seen in peer.seen] == [1, 1]
    assert observed == ["ok", "ok"]


# TLS


async def test_a_context_with_the_right_authority_is_enough() -> None:
    trusting = trusting_context()
    async with (
        http_peer(always(ME), server_context("localhost")) as peer,
        client_of(peer, ssl_context=trusting) as client,
    ):
        assert (await client.me()).id == "bot"


@pytest.mark.parametrize(
    ("names", "trusting", "fix"),
    [(["localhost"], False, "mattermost.ca_file"), (["other.example.com"], True, "mattermost.url")],
)
async def test_a_certificate_that_is_not_accepted_is_a_refusal_with_its_fix(
    names: list[str], *, trusting: bool, fix: str
) -> None:
    context = trusting_context() if trusting else None
    async with http_peer(always(ME), server_context(*names)) as peer, client_of(peer, ssl_context=context) as client:
        error = await failure_of(client, create)
    assert isinstance(error, LinkRefused)
    assert error.reason == "tls"
    assert fix in str(error)
    assert peer.seen == []


async def test_https_to_a_port_without_tls_is_lost_and_not_sent() -> None:
    async with http_peer(always(ME)) as peer:
        peer.url = peer.url.replace("http:", "https:")
        async with client_of(peer, ssl_context=trusting_context()) as client:
            error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("tls", False)


# proxies


async def test_https_goes_through_the_proxy_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    async with http_peer(always(CREATED), server_context("localhost")) as peer, proxy_peer(proxy) as url:
        monkeypatch.setenv("HTTPS_PROXY", url.replace("http://", "http://me:pass%20word@"))
        monkeypatch.delenv("https_proxy", raising=False)
        async with client_of(peer, ssl_context=trusting_context()) as client:
            await create(client)
    [asked] = proxy.asked
    assert asked.startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % peer.port)
    assert b"Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk" in asked
    assert TOKEN.encode() not in asked


async def test_http_goes_through_the_proxy_in_absolute_form(monkeypatch: pytest.MonkeyPatch) -> None:
    async with http_peer(always(ME)) as peer:
        monkeypatch.setenv("http_proxy", peer.url.replace("://", "://me:pass%20word@"))
        async with open_client("http://chat.example.com/mm", token) as client:
            await client.me()
    assert [seen.target for seen in peer.seen] == ["http://chat.example.com/mm/api/v4/users/me"]
    assert peer.seen[0].header("proxy-authorization") == "Basic bWU6cGFzcyB3b3Jk"
    assert peer.seen[0].header("host") == "chat.example.com"


async def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("no_proxy", "example.com,localhost")
    async with http_peer(always(ME)) as peer, client_of(peer) as client:
        assert (await client.me()).id == "bot"


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("10.1.2.3", "localhost, 10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.4/16", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("fd00::1", "10.0.0.0/8,fd00::/8", True),
        ("10.1.2.3", "10.0.0.0/99,nonsense/8", False),
        ("chat.example.com", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
    ],
)
def test_networks_in_no_proxy_hold_addresses(
    monkeypatch: pytest.MonkeyPatch, host: str, no_proxy: str, *, direct: bool
) -> None:
    """As Go and curl have it, so that an operator may believe it."""
    monkeypatch.setenv("https_proxy", "http://proxy.example.com:3128")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert (proxy_for(Address("https", host, 443)) is None) is direct


async def test_a_proxy_that_refuses_is_lost_and_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    async with proxy_peer(proxy) as url:
        monkeypatch.setenv("https_proxy", url)
        async with open_client("https://chat.example.com", token, ssl_context=trusting_context()) as client:
            error = await failure_of(client, create)
    assert isinstance(error, LinkLost)
    assert (error.reason, error.ambiguous) == ("proxy", False)
    assert "407" in str(error)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "http://", "http://[", "http://x:99999", "http://x\x01y"])
async def test_a_proxy_that_we_cannot_use_is_a_mistake_in_the_configuration(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ConfigError, match=r"ALL_PROXY|environment"):
        async with open_client("https://chat.example.com", token, ssl_context=trusting_context()):
            pass


@pytest.mark.parametrize(
    "url",
    ["", "chat.example.com", "ftp://x", "https://", "https://u:p@x", "https://x?y", "https://x:99999", "http://["],
)
async def test_a_url_that_is_none_is_a_mistake_in_the_configuration(url: str) -> None:
    with pytest.raises(ConfigError, match=r"mattermost\.url"):
        async with open_client(url, token):
            pass


# secrets


async def test_the_token_is_in_no_log_and_no_exception(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = app_error(500, f"Invalid session token={TOKEN[::-1]}")
    replies: list[bytes | str] = [
        CLOSE,
        RESET,
        SILENCE,
        answer(502),
        answer(200, b"<"),
        app_error(403, "x"),
        app_error(401, "x"),
        LIMITED,
    ]
    async with http_peer(always(echo)) as peer, client_of(peer, request_seconds=0.2) as client:
        shown = [repr(client), str(client)]
        for reply in replies:
            peer.answerer = always(reply)
            with trio.move_on_after(3):
                error = await failure_of(client, create)
                shown += traceback.format_exception(error)
                shown += [repr(error), repr(vars(error))]
    assert all(f"Bearer {TOKEN}" == seen.header("authorization") for seen in peer.seen)
    assert TOKEN not in "".join(shown)
    assert TOKEN not in caplog.text
    assert "example.com" not in caplog.text
