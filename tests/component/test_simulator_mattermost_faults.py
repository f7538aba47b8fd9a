"""Faults of the simulated Mattermost do what their names say, to the requests they name, and are counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from sidecar.simulator.mattermost.server import Answer, MattermostServer


class Rig:
    def __init__(self, version: str = "5.37.0") -> None:
        self.server = MattermostServer(version)
        self.bot = self.server.add_bot("teleport-bot")
        self.alice = self.server.add_user("alice")
        team = self.server.add_team("ops", members=[self.bot, self.alice])
        self.channel = self.server.add_channel(team, "requests", private=True, members=[self.bot, self.alice])
        self.client: httpx.AsyncClient

    async def create(self, message: str = "card", **more: Any) -> httpx.Response:
        body = {"channel_id": self.channel.id, "message": message} | more
        return await self.client.post("/api/v4/posts", json=body)

    def messages(self) -> list[str]:
        return [post.message for post in self.server.posts(self.channel)]


@asynccontextmanager
async def running(version: str = "5.37.0") -> AsyncIterator[Rig]:
    rig = Rig(version)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(rig.server.serve)
        headers = {"Authorization": f"Bearer {rig.bot.token}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as rig.client:
            yield rig
        nursery.cancel_scope.cancel()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running() as one:
        yield one


async def test_fail_strikes_so_often_and_stores_nothing(rig: Rig) -> None:
    fault = rig.server.fail(method="POST", path="/api/v4/posts", times=2, answer=Answer(503, {"id": "busy"}))
    answers = [await rig.create(str(number)) for number in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 201]
    assert answers[0].json() == {"id": "busy"}
    assert (fault.hits, rig.messages()) == (2, ["2"])


async def test_a_fault_names_its_requests_by_template_glob_and_content(rig: Rig) -> None:
    rig.server.fail(path="/api/v4/users/{user_id}", times=None)
    rig.server.fail(path="/api/v4/posts*", where=lambda request: b"second" in request.body, skip=1, times=None)
    assert (await rig.client.get("/api/v4/users/me")).headers["content-type"] == "text/html"
    assert (await rig.client.get("/api/v4/users/username/alice")).status_code == 200
    answers = [await rig.create(text) for text in ("second", "first", "second")]
    assert [answer.status_code for answer in answers] == [201, 201, 502]
    rig.server.clear_faults()
    assert (await rig.client.get("/api/v4/users/me")).status_code == 200


def test_a_path_that_can_match_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="slash"):
        MattermostServer().fail(path="posts")


async def test_cut_before_stores_nothing_and_cut_after_stores(rig: Rig) -> None:
    rig.server.cut(method="POST", path="/api/v4/posts", when="before")
    with pytest.raises(httpx.TransportError):
        await rig.create("before")
    rig.server.cut(method="POST", path="/api/v4/posts", when="after")
    with pytest.raises(httpx.TransportError):
        await rig.create("after")
    assert rig.messages() == ["after"]


async def test_hang_ends_with_the_client_and_late_is_carried_out_without_it(rig: Rig) -> None:
    rig.server.hang(path="/api/v4/posts")
    rig.server.late(0.2, path="/api/v4/posts", when="before")
    for text in ("hung", "late"):
        with pytest.raises(httpx.ReadTimeout):
            await rig.client.post("/api/v4/posts", json={"channel_id": rig.channel.id, "message": text}, timeout=0.05)
    await rig.server.wait_for(rig.messages)
    assert rig.messages() == ["late"]
    await rig.server.wait_for(lambda: rig.server.connections <= 1)


async def test_down_and_up_keep_the_port_and_the_posts(rig: Rig) -> None:
    await rig.create("kept")
    await rig.server.down("refuse")
    with pytest.raises(httpx.ConnectError):
        await rig.create("refused")
    await rig.server.up()
    assert (await rig.create("again")).status_code == 201
    await rig.server.down("503")
    assert (await rig.create("unavailable")).status_code == 503
    await rig.server.up()
    assert rig.messages() == ["kept", "again"]


async def test_a_restart_forgets_pending_ids(rig: Rig) -> None:
    first, same = [await rig.create("a", pending_post_id="k") for _ in range(2)]
    await rig.server.restart()
    other = await rig.create("a", pending_post_id="k")
    assert first.json()["id"] == same.json()["id"] != other.json()["id"]


async def test_the_same_pending_id_meanwhile_is_500_pending(rig: Rig) -> None:
    rig.server.processing = 0.1
    answers: list[httpx.Response] = []

    async def create() -> None:
        answers.append(await rig.create("once", pending_post_id="k"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(create)
    assert sorted(answer.status_code for answer in answers) == [201, 500, 500]
    assert answers[0].json()["id"] == "api.post.deduplicate_create_post.pending"
    assert rig.messages() == ["once"]


async def test_rate_limit_answers_as_recorded_and_stores_nothing(rig: Rig) -> None:
    """PerSec 2, MaxBurst 5, VaryByUser: six pass with doubled headers, the seventh is a plain 429."""
    rig.server.rate_limit(0.01, 5, vary_by_user=True)
    answers = [await rig.create() for _ in range(7)]
    assert [answer.status_code for answer in answers] == [201] * 6 + [429]
    assert answers[0].headers["x-ratelimit-limit"] == "6, 6"
    limited = answers[6]
    assert (limited.text, limited.headers["content-type"]) == ("limit exceeded\n", "text/plain; charset=utf-8")
    assert (limited.headers["x-ratelimit-limit"], limited.headers["x-ratelimit-remaining"]) == ("6", "0")
    assert int(limited.headers["retry-after"]) >= 1
    other = {"Authorization": f"Bearer {rig.alice.token}"}
    assert (await rig.client.get("/api/v4/users/me", headers=other)).status_code == 200
    rig.server.no_rate_limit()
    assert (await rig.create()).status_code == 201
    assert len(rig.messages()) == 7


async def test_latency_delays_every_answer(rig: Rig) -> None:
    rig.server.latency = 0.06
    started = trio.current_time()
    await rig.client.get("/api/v4/users/me")
    assert trio.current_time() - started >= 0.06


async def test_calls_and_requests_are_recorded(rig: Rig) -> None:
    await rig.create()
    await rig.client.get(f"/api/v4/users/{rig.alice.id}")
    await rig.client.get("/api/v4/nope")
    assert rig.server.calls == {("POST", "/api/v4/posts"): 1, ("GET", "/api/v4/users/{user_id}"): 1, ("GET", ""): 1}
    assert rig.server.requests[0] == ("POST", "/api/v4/posts", "teleport-bot")


async def test_a_cookie_beats_the_header_and_needs_a_browsers_sign_to_post(rig: Rig) -> None:
    """A client that keeps the cookie of a login is taken for a browser: its POSTs are 401."""
    cookie = {"Cookie": f"MMAUTHTOKEN={rig.alice.token}"}
    assert (await rig.client.get("/api/v4/users/me", headers=cookie)).json()["username"] == "alice"
    body = {"channel_id": rig.channel.id, "message": "x"}
    assert (await rig.client.post("/api/v4/posts", headers=cookie, json=body)).status_code == 401


async def test_headers_tell_version_and_clock_and_a_401_unsets_the_cookie(rig: Rig) -> None:
    rig.server.clock_offset = 3600 * 24 * 365 * 100
    answer = await rig.client.get("/api/v4/users/me")
    assert answer.headers["x-version-id"].startswith("5.37.0.")
    assert int(answer.headers["date"].split()[3]) > 2100
    refused = await rig.client.get("/api/v4/users/me", headers={"Authorization": "Bearer wrong"})
    assert refused.headers["set-cookie"].startswith("MMAUTHTOKEN=;")


async def test_v11_has_other_limits_and_routes() -> None:
    async with running("11.0.0") as rig:
        assert (await rig.create("x" * 16384)).json()["id"] == "model.post.is_valid.message_length.app_error"
        assert (await rig.create("big", props={"k": "x" * 300_600})).status_code == 413
        made = (await rig.create("fine", props={"k": "x" * 20_000})).json()
        assert "parent_id" not in made
        assert (await rig.client.get("/api/v4/users/me/channels")).status_code == 200
        assert (await rig.client.post("/api/v4/posts/ids", json=[made["id"]])).json()[0]["id"] == made["id"]
        assert (await rig.client.get(f"/api/v4/posts/{made['id']}/reactions")).json() is None
        assert (await rig.client.get("/api/v4/config/client")).status_code == 200


async def test_keep_alive_head_and_broken_clients(rig: Rig) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", rig.server.port)
    request = b"GET /api/v4/system/ping HTTP/1.1\r\nHost: x\r\n\r\n"
    await stream.send_all(request * 2 + b"nonsense\r\n\r\n")
    received = b""
    while data := await stream.receive_some():
        received += data
    assert received.count(b"HTTP/1.1 200 OK") == 2
    await stream.aclose()
    assert (await rig.client.head("/")).status_code == 200
    assert (await rig.client.get("/ops/channels/town-square")).text.startswith("<!doctype html>")
