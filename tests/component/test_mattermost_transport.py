"""The transport by itself and under a client of httpx: what it sends, what it keeps, and what cancellation leaves."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
import trio.testing

from sidecar.errors import LinkError, LinkGarbled, LinkLost
from sidecar.mattermost import dial
from sidecar.mattermost.transport import Transport
from tests.mattermost_peer import (
    PATIENCE,
    HttpPeer,
    Proxy,
    Seen,
    always,
    answer,
    http_peer,
    proxy_peer,
    server_context,
    serving,
    stopped,
    trusting_context,
)

OK = answer(200, {"id": "x"})


@asynccontextmanager
async def transport_to(url: str, connections: int = 4, seconds: float = PATIENCE) -> AsyncIterator[Transport]:
    context = trusting_context() if url.startswith("https") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with trio.fail_after(PATIENCE):
        async with Transport(dial.parse_url(url), context, connections, seconds) as transport:
            yield transport


async def ask(transport: Transport, url: str, body: bytes = b"{}") -> httpx.Response:
    return await transport.handle_async_request(httpx.Request("POST", f"{url}/x?y=1", content=body))


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_of_httpx_can_use_it(*, tls: bool) -> None:
    async with http_peer(always(OK), server_context("localhost") if tls else None) as peer:
        async with transport_to(peer.url) as transport, httpx.AsyncClient(transport=transport) as client:
            for _ in range(3):
                reply = await client.post(f"{peer.url}/x", json={"a": "b" * 100_000})
                assert (reply.status_code, reply.json()) == (200, {"id": "x"})
        assert peer.connections == 1
    assert peer.seen[0].body == b'{"a":"' + b"b" * 100_000 + b'"}'


@pytest.mark.parametrize(
    ("head", "body", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"{}", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n", b"{}", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", b"{}", False),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"{}", False),
    ],
)
async def test_a_connection_is_kept_where_the_server_keeps_it(head: bytes, body: bytes, *, kept: bool) -> None:
    connections = 0

    async def handle(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        while await stream.receive_some():
            await stream.send_all(head + body)
            if not kept:
                return

    async with serving(handle) as port, transport_to(f"http://127.0.0.1:{port}") as transport:
        for _ in range(2):
            assert (await ask(transport, f"http://127.0.0.1:{port}")).content == b"{}"
    assert connections == (1 if kept else 2)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"\0\r\n\r\n",
        b"",
    ],
)
async def test_whatever_answers_there_is_a_named_error(reply: bytes) -> None:
    async def handle(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(reply)

    async with serving(handle) as port, transport_to(f"http://127.0.0.1:{port}") as transport:
        with pytest.raises((httpx.RemoteProtocolError, LinkGarbled)):
            await ask(transport, f"http://127.0.0.1:{port}")
        assert not transport._idle


async def test_an_answer_too_many_is_nobodys_and_least_of_all_the_next_calls() -> None:
    async def handle(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        while asked := await stream.receive_some():
            body = b"%d" % len(asked)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) * 2)

    async with serving(handle) as port, transport_to(f"http://127.0.0.1:{port}") as transport:
        first = await ask(transport, f"http://127.0.0.1:{port}")
        second = await ask(transport, f"http://127.0.0.1:{port}", b"{}" * 50)
    assert int(second.content) > int(first.content) + 90


async def test_a_host_that_is_no_name_is_lost_like_one_that_is_unknown() -> None:
    async with transport_to("http://" + "x" * 70 + ".example.com") as transport:
        with pytest.raises(LinkLost) as caught:
            await ask(transport, "http://x")
    assert (caught.value.reason, caught.value.ambiguous) == ("dns", False)


# cancellation


async def assert_nothing_leaks(transport: Transport, peer: HttpPeer) -> None:
    """No turn is taken, and every connection that the server sees is an idle one of ours."""
    assert transport._turns.borrowed_tokens == 0
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert peer.open == len(transport._idle)


@pytest.mark.parametrize("way", ["http", "https", "proxy"])
async def test_a_call_that_is_cancelled_anywhere_leaves_nothing_behind(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slowly(_: Seen) -> bytes:
        for _step in range(5):
            await trio.lowlevel.checkpoint()
        return answer(200, b"x" * 100_000)

    proxy = Proxy()
    async with (
        http_peer(slowly, None if way == "http" else server_context("localhost")) as peer,
        proxy_peer(proxy) as at,
    ):
        if way == "proxy":
            monkeypatch.setenv("https_proxy", at)
        async with transport_to(peer.url, connections=2) as transport:
            steps = stops = 0
            while await stopped(partial(ask, transport, peer.url), steps):
                await assert_nothing_leaks(transport, peer)
                steps += 1
                stops += 1
                if steps % 2:
                    # Every other time on a new connection.
                    await transport.aclose()
            assert stops > 10
            await ask(transport, peer.url)
            await assert_nothing_leaks(transport, peer)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert peer.open == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_all_idle_connections_are_closed_also_when_cancelled(*, tls: bool) -> None:
    async def slowly(_: Seen) -> bytes:
        await trio.testing.wait_all_tasks_blocked(0.01)
        return OK

    async with http_peer(slowly, server_context("localhost") if tls else None) as peer:
        with trio.CancelScope() as scope:
            async with transport_to(peer.url) as transport:
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(ask, transport, peer.url)
                assert len(transport._idle) == 3
                scope.cancel()
                await trio.sleep_forever()
        assert transport._idle == []
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert peer.open == 0


async def test_a_call_that_is_too_slow_leaves_nothing_behind() -> None:
    hung_up = 0

    async def mute(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        nonlocal hung_up
        while await stream.receive_some():
            pass
        hung_up += 1

    async with serving(mute) as port:
        url = f"http://127.0.0.1:{port}"
        async with transport_to(url, connections=1, seconds=0.05) as transport:
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    await ask(transport, url)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert (hung_up, transport._turns.borrowed_tokens, transport._idle) == (3, 0, [])


async def test_who_waits_for_a_turn_is_not_too_slow_and_can_be_cancelled() -> None:
    gate = trio.Event()

    async def gated(_: Seen) -> bytes:
        await gate.wait()
        return OK

    async with http_peer(gated) as peer, transport_to(peer.url, connections=1) as transport:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, transport, peer.url)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as impatient:
                    impatient.start_soon(ask, transport, peer.url)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    scope.cancel()
            nursery.start_soon(ask, transport, peer.url)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(peer.seen) == 1
            gate.set()
        assert len(peer.seen) == 2
        await assert_nothing_leaks(transport, peer)


async def test_a_failing_call_gives_its_turn_back() -> None:
    async with transport_to("https://127.0.0.1:1", connections=1) as transport:
        for _ in range(3):
            with pytest.raises(LinkError):
                await ask(transport, "https://127.0.0.1:1")
        assert transport._turns.borrowed_tokens == 0
