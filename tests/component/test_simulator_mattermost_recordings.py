"""The simulator agrees with reality: exchanges recorded on a running Mattermost 5.37.0, replayed against it.

Compared: status, error id, names of the body's fields; of posts whether they were edited, their props and reply_count;
of listings the order. Of events: the names of the fields of data, of broadcast and of the post or reaction inside, and
the order of events.

Not compared, on purpose: what stands in NOT_COMPARED; values of ids and times; messages of errors; headers; ETags; what
came after a pending post id's 30 s (a unit test); the frames of sockets other than the bot's; the events in
SKIPPED_EVENTS; a server that restarts; resuming a websocket.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio_websocket

from sidecar.simulator.mattermost.server import ApiError, MattermostServer, User

Step = dict[str, Any]
RECORDINGS = json.loads(Path(__file__).with_name("test_simulator_mattermost_recordings.json").read_text())
SHAPES: list[list[str]] = RECORDINGS["shapes"]

NOT_COMPARED = {
    "/api/v4/config/client?format=old": "the simulator has the settings that matter, not all of them",
    "/api/v4/bots/8ouj3qgn8p8bfqbcxtgkqs1dfy": "the sidecar never asks for it",
    "/api/v4/users/me/tokens": "the sidecar never asks for it",
    "/api/v4/users/me/sessions": "the sidecar never asks for it",
    "/api/v4/channels/members/me/view": "the sidecar never asks for it",
}
SKIPPED_EVENTS = {"typing", "config_changed", "channel_viewed"}


class Replay:
    """A server with the recorded people and places under their recorded ids; ids made meanwhile are translated."""

    def __init__(self, recording: dict[str, Any]) -> None:
        self.steps: list[Step] = recording["steps"]
        self.server = server = MattermostServer()
        self.known: dict[str, str] = {}
        ids: dict[str, str] = recording["ids"]
        make = server.add_user
        self.users: dict[str, User] = {
            "admin": make("admin", id=ids["admin"], roles="system_admin system_user"),
            "bot": server.add_bot("teleport-bot", id=ids["bot"], roles="system_user system_post_all"),
            "other-bot": server.add_bot("other-bot", id=ids["other-bot"]),
        }
        self.users |= {name: make(name, id=ids[name]) for name in ("alice", "ivan", "bob", "carol")}
        crew = [user for name, user in self.users.items() if name != "carol"]
        admin, bot, alice, carol = (self.users[name] for name in ("admin", "bot", "alice", "carol"))
        ops = server.add_team("ops", id=ids["team ops"], members=crew)
        other = server.add_team("other", members=[admin, carol])
        self.channel = server.add_channel(
            ops, "access-requests", private=True, id=ids["channel access-requests"], members=crew
        )
        server.add_channel(ops, "secret", private=True, id="1k4cq4bx17bp7cfu33bnmbre9c", members=[admin])
        server.add_channel(ops, "open-nobot", id="7yfudqtwx3bipmwkawjjpwjs5c", members=[admin])
        server.add_channel(other, "other-chan", id="tmremd9rtjfx3bh969bwgs44jo", members=[carol])
        server.open_direct(bot, alice, id="tuqpo5aqm7rj5ydo6hmwiwikjo")
        server.open_direct(bot, carol, id="iukf4xsmipg3bp8qgjksjoq6ir")
        server.configure(EnableOpenServer="true")

    def translate(self, text: str) -> str:
        for old, new in self.known.items():
            text = text.replace(old, new)
        return text

    def untranslate(self, body: Any) -> Any:
        """The recorded ids again where ids are the names of fields."""
        recorded = {new: old for old, new in self.known.items()}
        return {recorded.get(key, key): value for key, value in body.items()} if isinstance(body, dict) else body

    def authorization(self, step: Step) -> str | None:
        if "authorization" in step:
            return str(step["authorization"]).replace("<teleport-bot-token>", self.users["bot"].token)
        if step["as"] == "(anonymous)":
            return None
        user = self.users.get(step["as"])
        return f"Bearer {user.token if user else step['as']}"

    async def send(self, client: httpx.AsyncClient, step: Step) -> httpx.Response:
        url = self.translate(step["url"]).replace("<teleport-bot-token>", self.users["bot"].token)
        headers = {"Authorization": value} if (value := self.authorization(step)) else {}
        body = b""
        if "body" in step:
            raw = step["body"]
            body = raw.encode() if isinstance(raw, str) else self.translate(json.dumps(unfold(raw))).encode()
        response = await client.request(step["method"], url, headers=headers, content=body)
        if "made" in step and response.status_code == 201:
            made = response.json()
            self.known.setdefault(step["made"]["id"], made["id"])
            self.known.setdefault(str(step["made"]["create_at"]), str(made["create_at"]))
        return response

    def in_process(self, step: Step) -> tuple[int, str] | None:
        """What the simulator offers only as a call; its status and error id, or None for a request to be sent."""
        for start, act in CALLS.items():
            if step["url"].startswith(start):
                try:
                    return act(self, self.users[step["as"]], step), ""
                except ApiError as exc:
                    return exc.status, exc.id
        return None


def change_profile(replay: Replay, user: User, step: Step) -> int:
    body: dict[str, str] = step["body"]
    if "username" in body:
        replay.server.rename(user, body["username"])
    else:
        replay.server.set_names(user, **body)
    return 200


def make_webhook(replay: Replay, user: User, _step: Step) -> int:
    """The recording made one and posted by it."""
    if not user.admin:
        raise ApiError(403, "api.context.permissions.app_error")
    replay.server.post_as_webhook(user, replay.channel, "from hook as ivan", username="ivan")
    return 201


def run_command(replay: Replay, user: User, step: Step) -> int:
    replay.server.post(user, replay.channel, "*approves*", type="me" if "/me" in step["body"]["command"] else "")
    return 200


def open_group(replay: Replay, _user: User, step: Step) -> int:
    replay.server.add_group(*(replay.server.users[one] for one in step["body"]), id=step["made"]["id"])
    return 201


def switch_token(replay: Replay, _user: User, step: Step) -> int:
    change = replay.server.disable_token if step["url"].endswith("disable") else replay.server.enable_token
    change(replay.users["bot"])
    return 200


CALLS = {
    "/api/v4/users/me/patch": change_profile,
    "/api/v4/hooks/incoming": make_webhook,
    "/api/v4/commands/execute": run_command,
    "/api/v4/channels/group": open_group,
    "/api/v4/users/tokens/": switch_token,
}


def unfold(value: Any) -> Any:
    """Long texts were recorded as their beginning and their length."""
    if isinstance(value, dict):
        return {key: unfold(one) for key, one in value.items()}
    if isinstance(value, list):
        return [unfold(one) for one in value]
    if isinstance(value, str) and (found := re.fullmatch(r"(.+)\.\.\.<(\d+) chars>", value, re.DOTALL)):
        start, count = found[1], int(found[2])
        return start[:-1] + start[-1] * (count - len(start) + 1)
    return value


def fields(body: Any) -> list[str] | None:
    if isinstance(body, dict):
        return sorted(body)
    if isinstance(body, list):
        return ["[]", *(sorted(body[0]) if body and isinstance(body[0], dict) else [])]
    return None


def differences(step: Step, response: httpx.Response, replay: Replay) -> list[str]:
    """What the simulator answered otherwise than the recorded server."""
    body = response.json()
    told: dict[str, tuple[object, object]] = {
        "status": (step["status"], response.status_code),
        "error": (step.get("error"), body.get("id") if response.status_code >= 400 else None),
        "fields": (SHAPES[step["keys"]], fields(replay.untranslate(body))),
    }
    if "order" in step:
        told["length"] = (len(step["order"]), len(body["order"]))
        known = [replay.known.get(one, one) for one in step["order"]]
        told["order"] = ([one for one in known if one in body["posts"]], [one for one in body["order"] if one in known])
        told["more"] = (len(step["posts"]), len(body["posts"]))
        told["next"] = (replay.known.get(step["next"], step["next"]), body["next_post_id"])
        told["prev"] = (replay.known.get(step["prev"], step["prev"]), body["prev_post_id"])
    if "props" in step and response.status_code < 300:
        told["props"] = (step["props"], sorted(body["props"]))
        told["reply_count"] = (step["reply_count"], body["reply_count"])
        told["edited"] = (step["edited"], bool(body["edit_at"]))
    return [f"{name}: recorded {old}, simulated {new}" for name, (old, new) in told.items() if old != new]


@asynccontextmanager
async def running(replay: Replay) -> AsyncIterator[httpx.AsyncClient]:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(replay.server.serve)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            yield client
        nursery.cancel_scope.cancel()


async def play(replay: Replay, client: httpx.AsyncClient) -> list[str]:
    """Send every step in order; after 30 s of the recording only the clock is of interest, so stop there."""
    found = []
    for number, step in enumerate(replay.steps):
        if "frame" in step or step["url"] in NOT_COMPARED:
            continue
        if step["t"] > 30 and step["url"] == "/api/v4/posts":
            break
        done = replay.in_process(step)
        if done is None:
            found += [
                f"{number} {step['url']} {one}" for one in differences(step, await replay.send(client, step), replay)
            ]
        elif done != (step["status"], step.get("error", "")):
            found.append(f"{number} {step['url']}: {done}")
    return found


@pytest.mark.parametrize("name", [name for name in RECORDINGS if name != "shapes"])
async def test_rest_answers_as_recorded(name: str) -> None:
    replay = Replay(RECORDINGS[name])
    async with running(replay) as client:
        assert await play(replay, client) == []


async def test_events_come_as_recorded() -> None:
    """The bot's socket hears the same events in the same order, of the same shape, as on the recorded server."""
    replay = Replay(RECORDINGS["11-ws-events"])
    wanted = [step["frame"] for step in replay.steps if "frame" in step]
    wanted = [frame for frame in wanted if frame["event"] not in SKIPPED_EVENTS]
    heard: list[dict[str, Any]] = []
    async with running(replay) as client:
        url = str(client.base_url).replace("http", "ws", 1) + "/api/v4/websocket"
        headers = [(b"Authorization", f"Bearer {replay.users['bot'].token}".encode())]
        async with trio_websocket.open_websocket_url(url, extra_headers=headers) as socket:
            heard += [json.loads(await socket.get_message()) for _ in range(2)]
            await play(replay, client)
            replay.server.send_raw("{}")  # the end
            while frame := json.loads(await socket.get_message()):
                heard.append(frame)
    assert [frame["seq"] for frame in heard] == list(range(len(wanted)))
    assert [shape(frame) for frame in heard] == [expected(frame) for frame in wanted]


def shape(frame: dict[str, Any]) -> dict[str, Any]:
    told = {"event": frame["event"], "data": list(frame["data"]), "broadcast": sorted(frame["broadcast"])}
    told["data"] = sorted(frame["data"])
    for name in ("post", "reaction"):
        if name in frame["data"]:
            inner = json.loads(frame["data"][name])
            told["inner"] = list(inner)
            if frame["event"] == "posted":
                told |= {"channel_type": frame["data"]["channel_type"], "type": inner["type"]}
                told["sender_name"] = frame["data"]["sender_name"]
            elif frame["event"] != "post_edited":
                told["zero"] = sorted(key for key in inner if key.endswith("_at") and not inner[key])
    return told


def expected(frame: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in frame.items() if name != "seq"}
    return told | {name: SHAPES[frame[name]] for name in ("data", "broadcast", "inner") if name in frame}
