"""The simulated websocket: authentication as recorded on a 5.37.0, the ways of going deaf, damage on demand."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
import trio_websocket
import trustme

from sidecar.simulator.mattermost.server import Answer, Channel, MattermostServer, User, WebsocketTimes


class Rig:
    """A bot and alice in one channel, and a way to the server's websocket."""

    def __init__(self, version: str = "5.37.0", times: WebsocketTimes | None = None) -> None:
        self.server = MattermostServer(version, websocket_times=times)
        self.bot: User = self.server.add_bot("teleport-bot")
        self.alice = self.server.add_user("alice")
        team = self.server.add_team("ops", members=[self.bot, self.alice])
        self.channel: Channel = self.server.add_channel(team, "requests", private=True, members=[self.bot, self.alice])

    @asynccontextmanager
    async def socket(
        self,
        token: str | None = "",
        *,
        more: tuple[tuple[bytes, bytes], ...] = (),
        tls: ssl.SSLContext | None = None,
        queue: int = 1,
    ) -> AsyncIterator[trio_websocket.WebSocketConnection]:
        """Open a websocket: with the bot's token, another one, or (None) without."""
        headers = [] if token is None else [(b"Authorization", f"Bearer {token or self.bot.token}".encode())]
        plain = await trio.open_tcp_stream("127.0.0.1", self.server.port)
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = plain
        if tls is not None:
            stream = trio.SSLStream(plain, tls, server_hostname="127.0.0.1", https_compatible=True)
        try:  # the library leaves sockets unclosed on some ways out, so the stream is ours
            async with trio.open_nursery() as nursery:
                socket = await trio_websocket.wrap_client_stream(
                    nursery,
                    stream,
                    f"127.0.0.1:{self.server.port}",
                    "/api/v4/websocket",
                    extra_headers=[*headers, *more],
                    message_queue_size=queue,
                )
                yield socket
                nursery.cancel_scope.cancel()
        except* trio_websocket.ConnectionRejected as group:
            raise group.exceptions[0] from None
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.server.serve)
        yield rig
        nursery.cancel_scope.cancel()


async def heard(socket: trio_websocket.WebSocketConnection) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(await socket.get_message())
    return frame


async def all_of(socket: trio_websocket.WebSocketConnection) -> None:
    while True:
        await socket.get_message()


async def told(socket: trio_websocket.WebSocketConnection, **message: Any) -> dict[str, Any]:
    await socket.send_message(json.dumps(message))
    return await heard(socket)


async def ready(socket: trio_websocket.WebSocketConnection) -> None:
    """Past hello and the status_change that follows it."""
    assert (await heard(socket))["event"] == "hello"
    assert (await heard(socket))["event"] == "status_change"


async def test_hello_comes_first_and_ping_is_answered() -> None:
    async with running(Rig()) as rig, rig.socket() as socket:
        hello = await heard(socket)
        assert (hello["event"], hello["seq"]) == ("hello", 0)
        assert hello["data"]["server_version"].startswith("5.37.0.")
        assert (await heard(socket))["event"] == "status_change"
        pong = await told(socket, seq=7, action="ping")
        assert (pong["status"], pong["seq_reply"], pong["data"]["text"]) == ("OK", 7, "pong")


async def test_v11_hello_names_the_host_and_broadcasts_have_more_fields() -> None:
    async with running(Rig("11.0.0")) as rig, rig.socket() as socket:
        hello = await heard(socket)
        assert "server_hostname" in hello["data"]
        assert {"connection_id", "omit_connection_id"} < set(hello["broadcast"])


@pytest.mark.parametrize("token", ["x" * 26, None])
async def test_a_bad_token_is_101_then_silence_then_eof(token: str | None) -> None:
    """No frame, no close frame: the client library sees an abnormal closure (1006)."""
    async with running(Rig(times=WebsocketTimes(auth=0.05))) as rig, rig.socket(token) as socket:
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await socket.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1006


async def test_challenge_hello_comes_before_the_ok() -> None:
    async with running(Rig()) as rig, rig.socket(None) as socket:
        await socket.send_message(json.dumps({"seq": 1, "action": "ping"}))  # no answer before authentication
        challenge = {"seq": 2, "action": "authentication_challenge", "data": {"token": rig.bot.token}}
        assert (await told(socket, **challenge))["event"] == "hello"
        assert await heard(socket) in ({"status": "OK", "seq_reply": 2}, ANY_STATUS)


ANY_STATUS: Any = type("AnyStatus", (), {"__eq__": lambda _, frame: frame["event"] == "status_change"})()


@pytest.mark.parametrize("data", [{"token": "x" * 26}, None])
async def test_a_bad_challenge_ends_the_connection_at_once(data: dict[str, str] | None) -> None:
    async with running(Rig()) as rig, rig.socket(None) as socket:
        await socket.send_message(json.dumps({"seq": 1, "action": "authentication_challenge", "data": data}))
        with pytest.raises(trio_websocket.ConnectionClosed):
            await socket.get_message()


async def test_garbage_from_the_client_ends_without_and_a_long_frame_with_a_close_frame() -> None:
    async with running(Rig()) as rig:
        for frame, code in (("not json", 1006), ("x" * 9000, 1009)):
            async with rig.socket() as socket:
                await ready(socket)
                await socket.send_message(frame)
                with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                    await socket.get_message()
                assert closed.value.reason is not None
                assert closed.value.reason.code == code


async def test_unknown_actions_and_bad_numbers_are_refused() -> None:
    async with running(Rig()) as rig, rig.socket() as socket:
        await ready(socket)
        wrong = {"nonsense": (1, "bad_action"), "ping": (0, "bad_seq"), "": (1, "no_action")}
        for action, (seq, name) in wrong.items():
            assert (await told(socket, seq=seq, action=action))["error"][
                "id"
            ] == f"api.web_socket_router.{name}.app_error"


async def test_foreign_origin_is_refused_own_one_is_welcome() -> None:
    async with running(Rig()) as rig:
        with pytest.raises(trio_websocket.ConnectionRejected) as refused:
            async with rig.socket(more=((b"Origin", b"https://evil.example.com"),)):
                pass
        assert refused.value.status_code == 403
        async with rig.socket(more=((b"Origin", rig.server.url.encode()),)) as socket:
            await ready(socket)


async def test_a_disabled_bot_goes_deaf_and_stays_deaf_when_enabled_again() -> None:
    async with running(Rig()) as rig, rig.socket() as socket:
        await ready(socket)
        rig.server.deactivate(rig.bot)
        rig.server.activate(rig.bot)
        rig.server.post(rig.alice, rig.channel, "unheard")
        answer = await told(socket, seq=1, action="ping")
        assert (answer["status"], answer["error"]["status_code"]) == ("FAIL", 401)
        await socket.ping()  # the protocol's own ping is answered all the same


async def test_a_disabled_bot_with_a_young_socket_is_cut_at_the_check() -> None:
    async with running(Rig(times=WebsocketTimes(auth=0.05))) as rig, rig.socket() as socket:
        await ready(socket)
        rig.server.deactivate(rig.bot)
        with pytest.raises(trio_websocket.ConnectionClosed):
            await socket.get_message()


@pytest.mark.parametrize(("version", "hears"), [("5.37.0", True), ("11.0.0", False)])
async def test_a_disabled_token_keeps_hearing_on_5_37_only(*, version: str, hears: bool) -> None:
    """And the error of its JSON ping shows the token in clear, which is why nobody may log it."""
    async with running(Rig(version)) as rig, rig.socket() as socket:
        await ready(socket)
        rig.server.disable_token(rig.bot)
        answer = await told(socket, seq=1, action="ping")
        assert answer["error"]["status_code"] == 401
        assert (rig.bot.token in answer["error"]["message"]) is hears
        rig.server.post(rig.alice, rig.channel, "still there?")
        rig.server.set_roles(rig.bot, "system_user")  # drops the session cache
        if hears:
            assert (await heard(socket))["event"] == "posted"
        assert "not_authenticated" in (await told(socket, seq=2, action="ping"))["error"]["id"]


async def test_after_a_hub_panic_old_sockets_are_silent_and_new_ones_hear() -> None:
    async with running(Rig()) as rig, rig.socket() as old:
        await ready(old)
        rig.server.deafen()
        async with rig.socket() as new:
            assert (await heard(new))["event"] == "hello"
            await old.send_message(json.dumps({"seq": 1, "action": "ping"}))
            await old.ping()
            rig.server.post(rig.alice, rig.channel, "hello")
            assert (await heard(new))["event"] == "posted"
            rig.server.send_raw("the end")
            assert await old.get_message() == "the end"


async def test_only_members_hear_and_nothing_is_replayed_to_who_comes_back() -> None:
    async with running(Rig()) as rig, rig.socket() as socket:
        await ready(socket)
        rig.server.leave(rig.channel, rig.bot)
        rig.server.post(rig.alice, rig.channel, "missed")
        rig.server.join(rig.channel, rig.bot)
        rig.server.post(rig.alice, rig.channel, "heard")
        frames = [await heard(socket) for _ in range(3)]
        assert [frame["event"] for frame in frames] == ["user_removed", "user_added", "posted"]
        assert json.loads(frames[2]["data"]["post"])["message"] == "heard"


async def test_events_can_be_doubled_swapped_and_lost() -> None:
    async with running(Rig()) as rig, rig.socket() as socket:
        await ready(socket)
        rig.server.hub.duplicate, rig.server.hub.reorder = 1, 1
        for text in ("doubled", "late", "early"):
            rig.server.post(rig.alice, rig.channel, text)
        rig.server.hub.lose = 1
        rig.server.post(rig.alice, rig.channel, "lost")
        rig.server.post(rig.alice, rig.channel, "last")
        assert [(await heard(socket))["seq"] for _ in range(5)] == [2, 2, 4, 3, 5]


async def test_no_hello_garbage_close_codes_and_drops() -> None:
    async with running(Rig()) as rig:
        rig.server.hello = False
        async with rig.socket() as socket:
            await rig.server.wait_for(lambda: rig.server.hub.sockets_of(rig.bot.id))
            rig.server.send_raw('{"event":')
            assert await socket.get_message() == '{"event":'
            rig.server.send_raw(b"\xff\x00")
            assert await socket.get_message() == b"\xff\x00"
            rig.server.drop_sockets(close_code=1001)
            with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                await socket.get_message()
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1001


async def test_upgrades_fail_and_are_limited_like_requests() -> None:
    async with running(Rig()) as rig:
        rig.server.fail(path="/api/v4/websocket", answer=Answer(503))
        with pytest.raises(trio_websocket.ConnectionRejected) as refused:
            async with rig.socket():
                pass
        assert refused.value.status_code == 503
        rig.server.rate_limit(0.001, 0)
        async with rig.socket() as socket:
            await ready(socket)
            with pytest.raises(trio_websocket.ConnectionRejected) as limited:
                async with rig.socket():
                    pass
        assert limited.value.status_code == 429
        assert rig.server.calls["GET", "/api/v4/websocket"] == 3


async def test_the_server_pings_and_drops_who_does_not_pong() -> None:
    """Data frames do not count as life, only pongs do; the client library's own pongs keep the first socket open."""
    async with running(Rig(times=WebsocketTimes(auth=0.01, ping=0.02, pong=1.0))) as rig:
        async with rig.socket() as socket:
            await ready(socket)
            (here,) = rig.server.hub.sockets
            opened = here.last_pong
            await rig.server.wait_for(lambda: here.last_pong > opened + rig.server.times.pong)
            assert (await told(socket, seq=1, action="ping"))["status"] == "OK"
        stream = await trio.open_tcp_stream("127.0.0.1", rig.server.port)
        head = "GET /api/v4/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        keys = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        await stream.send_all(f"{head}{keys}Authorization: Bearer {rig.bot.token}\r\n\r\n".encode())
        received = b""
        while data := await stream.receive_some():
            received += data
        assert b"101" in received
        assert b"\x89\x00" in received  # a ping without payload
        await stream.aclose()


async def test_a_reader_that_falls_behind_is_closed_with_an_empty_close_frame() -> None:
    async with running(Rig()) as rig, rig.socket(queue=2000) as socket:
        await ready(socket)
        for number in range(300):
            rig.server.post(rig.alice, rig.channel, str(number))
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await all_of(socket)
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1005


async def test_what_comes_after_a_close_frame_is_not_sent_and_does_no_harm() -> None:
    async with running(Rig()) as rig, rig.socket() as socket:
        await ready(socket)
        rig.server.drop_sockets(close_code=1012)
        rig.server.post(rig.alice, rig.channel, "too late")
        with pytest.raises(trio_websocket.ConnectionClosed):
            await socket.get_message()
        await rig.server.wait_for(lambda: not rig.server.hub.sockets)


async def test_an_upgrade_without_a_key_is_a_bad_request() -> None:
    async with running(Rig()) as rig:
        stream = await trio.open_tcp_stream("127.0.0.1", rig.server.port)
        head = b"GET /api/v4/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        await stream.send_all(head)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
        await stream.aclose()


async def test_rest_and_websocket_over_tls_on_one_port() -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    rig = Rig()
    rig.server = server = MattermostServer(ssl_context=server_side)
    bot = server.add_bot("teleport-bot")
    async with running(rig):
        assert server.url.startswith("https://")
        async with httpx.AsyncClient(verify=client_side, trust_env=False) as client:
            assert (await client.get(f"{server.url}/api/v4/system/ping")).json()["status"] == "OK"
        async with rig.socket(bot.token, tls=client_side) as socket:
            assert (await heard(socket))["event"] == "hello"
