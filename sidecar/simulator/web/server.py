"""A small page of the simulator, for people: be Alice, Ivan or Bob in a browser.

One loopback listener serves the page, hands /api/v4 (REST and websocket) to the simulated Mattermost in this process,
and has a few paths of its own below /demo, which are no part of Mattermost. Since it acts as people, it talks to
nothing but its own page: not to a name that somebody pointed at this address, and not to another page of the browser.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import h11
import trio

from sidecar.simulator.demo.stage import BOB, ROLE, Stage
from sidecar.simulator.faults import Refusal
from sidecar.simulator.mattermost.http import Connection
from sidecar.simulator.mattermost.server import Answer, Request

_FOLDER = Path(__file__).parent
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/marks.js": ("marks.js", "text/javascript; charset=utf-8"),
}
_OWN_NAMES = {"127.0.0.1", "localhost"}
# Nothing from elsewhere, nothing written into the page, nobody around it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self' ws://{host}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LONGEST_SECONDS = 3600.0


class WebPage:
    """The page of one stage; `serve` reports its address."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve on the loopback until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/")
        await trio.serve_listeners(self._client, [listener])

    async def _client(self, stream: trio.abc.Stream) -> None:
        try:
            await Connection(stream).run(self._handle, self._upgrade)
        finally:
            await trio.aclose_forcefully(stream)

    async def _handle(self, request: Request) -> Answer:
        if (refusal := refuse(request)) is not None:
            return refusal
        if request.path.startswith("/api/"):
            return await self._stage.chat.handle(request)
        return _answer(request, self._own(request))

    async def _upgrade(
        self, request: Request, head: h11.Request, stream: trio.abc.Stream, rest: bytes
    ) -> Answer | None:
        if (refusal := refuse(request)) is not None:
            return refusal
        return await self._stage.chat.upgrade(request, head, stream, rest)

    def _own(self, request: Request) -> Answer:
        match request.method, request.path:
            case "GET" | "HEAD", path if path in _FILES:
                name, kind = _FILES[path]
                return Answer(200, (_FOLDER / name).read_bytes(), (("Content-Type", kind),))
            case "GET", "/demo/stage":
                return Answer(200, self._facts())
            case "POST", "/demo/requests":
                return self._ask(request)
        return _said(404, "There is nothing here.")

    def _facts(self) -> dict[str, object]:
        """Who is who. The tokens are worth as much as the demo."""
        stage = self._stage
        people = [{"id": one.id, "username": one.username, "token": one.token} for one in stage.people]
        channel = {"id": stage.channel.id, "name": stage.channel.name}
        return {
            "people": people,
            "bot": {"id": stage.bot.id, "username": stage.bot.username},
            "channel": channel,
            "requester": stage.bob.id,
            "role": ROLE,
        }

    def _ask(self, request: Request) -> Answer:
        """Bob asks for the role, as with tsh."""
        body = request.object()
        reason, seconds = body.get("reason", ""), body.get("seconds", _LONGEST_SECONDS)
        if not isinstance(reason, str) or not isinstance(seconds, int | float) or not 1 <= seconds <= _LONGEST_SECONDS:
            return _said(400, "A request has a reason, and between 1 and 3600 seconds.")
        try:
            request_id = self._stage.auth.create_request(BOB, [ROLE], reason=reason, expires_in=float(seconds))
        except Refusal as refusal:
            return _said(400, refusal.details)
        return Answer(201, {"id": request_id})


def refuse(request: Request) -> Answer | None:
    """Say why a request is none of our page's, None where it may be.

    A browser tells the truth about `Host`, `Origin` and `Sec-Fetch-Site`, whatever a page wants: a foreign name in
    `Host` is a rebound one, a foreign `Origin` a foreign page. Only the page itself may be linked to from elsewhere.
    """
    host = request.headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        name = None
    if name not in _OWN_NAMES:
        return _said(421, "This page answers to 127.0.0.1 and localhost only.")
    acts = request.method not in {"GET", "HEAD"} or "upgrade" in request.headers
    origin = request.headers.get("origin", "" if acts else f"http://{host}")
    site = request.headers.get("sec-fetch-site", "same-origin")
    linked = request.method == "GET" and request.path == "/" and not acts
    if origin != f"http://{host}" or (site not in {"same-origin", "none"} and not linked):
        return _said(403, "Only the page itself may ask for this.")
    return None


def _said(status: int, message: str) -> Answer:
    return Answer(status, json.dumps({"message": message}), (("Content-Type", "application/json"),))


def _answer(request: Request, answer: Answer) -> Answer:
    return answer.plus(
        (
            ("Content-Security-Policy", _POLICY.format(host=request.headers["host"])),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cache-Control", "no-store"),
        )
    )
