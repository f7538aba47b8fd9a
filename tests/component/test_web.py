"""The demo's page without a browser: what it serves, what it refuses, and that it is nobody else's to use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.theatre import Theatre, theatre


@asynccontextmanager
async def visited(folder: Path) -> AsyncIterator[tuple[Theatre, httpx.AsyncClient]]:
    async with theatre(folder, sidecar=False) as here:
        own = {"Origin": here.page.rstrip("/")}
        async with httpx.AsyncClient(base_url=here.page, headers=own, trust_env=False) as client:
            yield here, client


async def test_the_page_and_its_files_are_served_under_a_strict_policy(tmp_path: Path) -> None:
    """Nothing from elsewhere may run, and no other page may frame it."""
    async with visited(tmp_path) as (_, client):
        for path in ("/", "/page.js", "/marks.js", "/page.css"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["x-content-type-options"]) == (200, "nosniff")
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert "access-control-allow-origin" not in answer.headers
        assert (await client.get("/../pki.py")).status_code == 404


@pytest.mark.parametrize("path", ["/", "/demo/stage", "/api/v4/users/me"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80@127.0.0.1x", "[", ""])
async def test_a_rebound_name_gets_nothing(tmp_path: Path, path: str, host: str) -> None:
    """A page that pointed its own name at the loopback sends that name."""
    async with visited(tmp_path) as (here, client):
        headers = {"Host": host, "Origin": f"http://{host}", "Authorization": f"Bearer {here.stage.alice.token}"}
        answer = await client.get(path, headers=headers)
        assert answer.status_code == 421
        assert here.stage.alice.token not in answer.text


@pytest.mark.parametrize("headers", [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
])  # fmt: skip
async def test_another_page_cannot_act(tmp_path: Path, headers: dict[str, str]) -> None:
    """Neither ask in Bob's name, nor learn the tokens, nor write with one."""
    async with visited(tmp_path) as (here, client):
        stage = here.stage
        posts = len(stage.chat.posts(stage.channel))
        mine = {"Authorization": f"Bearer {stage.alice.token}"}
        draft = {"channel_id": stage.channel.id, "message": "approve"}
        assert (await client.post("/demo/requests", json={"reason": "x"}, headers=headers)).status_code == 403
        assert (await client.get("/demo/stage", headers=headers)).status_code == 403
        assert (await client.post("/api/v4/posts", json=draft, headers=headers | mine)).status_code == 403
        assert len(stage.chat.posts(stage.channel)) == posts
        assert stage.auth.calls.total() == 0


async def test_without_an_origin_nobody_acts(tmp_path: Path) -> None:
    """Every browser sends one with a POST, so what has none is not our page."""
    async with visited(tmp_path) as (here, _), httpx.AsyncClient(base_url=here.page, trust_env=False) as client:
        assert (await client.post("/demo/requests", json={"reason": "x"})).status_code == 403
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", ""])
async def test_a_foreign_websocket_is_refused(tmp_path: Path, origin: str) -> None:
    """Websockets know no same-origin policy: the server must ask."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    async with visited(tmp_path) as (here, _), httpx.AsyncClient(base_url=here.page, trust_env=False) as client:
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} | ({"Origin": origin} if origin else {})
        answer = await client.get("/api/v4/websocket", headers=upgrade | key)
        assert answer.status_code == 403
        assert here.stage.chat.hub.sockets == []


async def test_the_page_speaks_to_mattermost_as_a_person(tmp_path: Path) -> None:
    """REST behind the page is the simulated Mattermost's, with the token that the page was given."""
    async with visited(tmp_path) as (here, client):
        facts = (await client.get("/demo/stage")).json()
        assert [one["username"] for one in facts["people"]] == ["alice", "ivan", "bob"]
        mine = {"Authorization": f"Bearer {facts['people'][0]['token']}"}
        assert (await client.get("/api/v4/users/me", headers=mine)).json()["username"] == "alice"
        draft = {"channel_id": facts["channel"]["id"], "message": "hello"}
        assert (await client.post("/api/v4/posts", json=draft, headers=mine)).status_code == 201
        assert here.stage.chat.posts(here.stage.channel)[-1].user_id == here.stage.alice.id


async def test_bob_asks_on_the_page(tmp_path: Path) -> None:
    async with visited(tmp_path) as (here, client):
        answer = await client.post("/demo/requests", json={"reason": "the disk is full", "seconds": 20})
        assert answer.status_code == 201
        request = here.stage.auth.request(answer.json()["id"])
        assert request is not None
        assert (request.user, request.roles, request.reason) == ("bob@example.com", ("dbadmin",), "the disk is full")


@pytest.mark.parametrize("body", ['{"reason": 1}', '{"seconds": 0}', '{"seconds": 1e9}', '{"seconds": "1"}', "[", ""])
async def test_what_makes_no_request_is_refused_with_a_sentence(tmp_path: Path, body: str) -> None:
    async with visited(tmp_path) as (_, client):
        answer = await client.post("/demo/requests", content=body)
        if body in {"[", ""}:  # no JSON object is one without a reason, which Teleport allows
            assert answer.status_code == 201
            return
        assert (answer.status_code, answer.json()["message"][:9]) == (400, "A request")


async def test_it_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    async with visited(tmp_path) as (here, _):
        assert httpx.URL(here.page).host == "127.0.0.1"
        with pytest.raises(OSError, match=r"connect|route|refused"):
            await trio.open_tcp_stream("127.0.0.2", httpx.URL(here.page).port or 0)
