"""`sidecar demo`: an Auth Service and a Mattermost in this process, the real sidecar in another, and the story.

Rule: a reader gets a sentence and an exit code, never a traceback, and nothing is left running.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import trio

from sidecar.simulator.demo.process import Sidecar, StoryWentWrongError, open_sidecar
from sidecar.simulator.demo.screen import Screen
from sidecar.simulator.demo.stage import CHANNEL, TEAM, Stage
from sidecar.simulator.demo.story import ACTS
from sidecar.simulator.faults import Refusal
from sidecar.simulator.mattermost.server import ApiError, MattermostServer
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.web.server import WebPage

_PATIENCE_SECONDS = 20.0
_SHOWN_LINES = 12
_COLUMNS = 92

_CONFIG = """\
[teleport]
addr = {addr}
client_crt = {crt}
client_key = {key}
root_cas = {cas}
web_url = "https://teleport.example.com"

[mattermost]
url = {url}
token_file = {token}
recipients = [{recipient}]

[reviews]
submit_as = "reviewer"
identities = {identities}

[reviewers]
{reviewers}

[endpoints]
listen = "127.0.0.1:0"

[log]
format = "json"
"""


def main(
    keep: bool,  # noqa: FBT001 - what the command line calls
    *,
    pace: float | None = None,
    patience: float = _PATIENCE_SECONDS,
    settings: Mapping[str, str] | None = None,
) -> int:
    """Tell the story; return 0 when it went as told, 1 when not, 128 + n when signal n cut it short.

    `keep` stays up after it. `pace` is a reader's (1.0 on a terminal, else 0: no pauses), `patience` the seconds in
    which each step must be done. `settings` ("section.key" to text) beat the sidecar's configuration file.
    """
    terminal = sys.stdout.isatty()
    _never_choke_on_output()
    screen = Screen(
        columns=shutil.get_terminal_size((_COLUMNS, 24)).columns,
        colour=terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb",
        true_colour=os.environ.get("COLORTERM") in {"truecolor", "24bit"},
        pace=(1.0 if terminal else 0.0) if pace is None else pace,
    )
    return trio.run(_Demo(screen, settings or {}, keep=keep, patience=patience).run)


class _Demo:
    """One evening at the theatre."""

    def __init__(self, screen: Screen, settings: Mapping[str, str], *, keep: bool, patience: float) -> None:
        self._screen = screen
        self._settings = settings
        self._keep = keep
        self._patience = patience
        self._told = False
        self._signal = 0
        self._log: deque[str] = deque()

    async def run(self) -> int:
        code = 0
        try:
            await self._until_signalled()
        except* StoryWentWrongError as group:
            self._complain(str(_first(group)))
            code = 1
        except* BrokenPipeError:
            # The reader left; there is nobody to tell.
            _silence()
            code = 1
        except* (OSError, RuntimeError, ApiError, Refusal) as group:
            self._complain(f"The stage could not be set: {_first(group)}.")
            code = 1
        return code if code or self._told else 128 + self._signal

    async def _until_signalled(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, nursery.cancel_scope)
            with tempfile.TemporaryDirectory(prefix="sidecar-demo-") as folder:
                chat = MattermostServer()
                await nursery.start(chat.serve)
                with AuthServer.dual_authorization() as auth:
                    stage = Stage(auth, chat, self._screen, patience=self._patience)
                    async with open_sidecar(configure(stage, Path(folder)), self._settings) as sidecar:
                        self._log = sidecar.lines
                        await self._tell(stage, sidecar)
            nursery.cancel_scope.cancel()

    async def _tell(self, stage: Stage, sidecar: Sidecar) -> None:
        self._screen.title("Teleport access requests in Mattermost: the whole story in a minute")
        for number, act in enumerate(ACTS, 1):
            self._screen.act(number, act.title)
            await act.play(stage, sidecar)
        self._told = True
        if self._keep:
            await _stay(stage, sidecar)
        codes: list[int] = []

        async def stop() -> None:
            codes.append(await sidecar.stop())

        await stage.within("The sidecar did not stop when it was asked to.", stop())
        stage.check(codes == [0], f"The sidecar ended with exit code {codes[0]}, not 0.")

    async def _listen(self, everything: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                self._signal = number
                everything.cancel()

    def _complain(self, sentence: str) -> None:
        lines = [_readable(line) for line in list(self._log)[-_SHOWN_LINES:]]
        if lines:
            print("\nThe sidecar's last log lines:", *lines, sep="\n  ", file=sys.stderr)
        print(f"\nThe story went wrong. {sentence}", file=sys.stderr)


def configure(stage: Stage, folder: Path) -> Path:
    """Write what an operator would: credentials, the bot's token, the configuration."""
    files = stage.auth.write_credentials(folder, "access-plugin")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(stage.bot.token)
    identities = folder / "reviewers"
    identities.mkdir(mode=0o700)
    for one in stage.people:
        stage.auth.write_credentials(identities, one.email, name=one.email).cas.unlink()
    values = {
        "addr": stage.auth.addr,
        "crt": files.crt,
        "key": files.key,
        "cas": files.cas,
        "url": stage.chat.url,
        "token": token,
        "recipient": f"{TEAM}/{CHANNEL}",
        "identities": identities,
    }
    reviewers = "\n".join(
        f"{one.username} = {{ id = {json.dumps(one.id)}, user = {json.dumps(one.email)} }}" for one in stage.people
    )
    path = folder / "teleport-mattermost.toml"
    quoted = {name: json.dumps(str(value)) for name, value in values.items()}
    path.write_text(_CONFIG.format(reviewers=reviewers, **quoted))
    return path


async def _stay(stage: Stage, sidecar: Sidecar) -> None:
    """Stay up, for whoever wants to look closer; ends with a signal."""
    screen = stage.screen
    screen.act(len(ACTS) + 1, "All of it stays up until Ctrl-C")
    async with trio.open_nursery() as nursery:
        page = await nursery.start(WebPage(stage).serve)
        screen.facts(
            [
                ("be Alice, Ivan or Bob", page),
                ("the sidecar", f"http://{sidecar.address}/readyz and /metrics"),
                ("Mattermost, REST and websocket", stage.chat.url),
                ("  the channel's posts", f"{stage.chat.url}/api/v4/channels/{stage.channel.id}/posts"),
                ("  with alice's token", f"-H 'Authorization: Bearer {stage.alice.token}'"),
                ("Auth Service, gRPC with mTLS", stage.auth.addr),
            ]
        )


def _readable(line: str) -> str:
    """A line of the log for human eyes; what is no event stays as it is."""
    try:
        facts = json.loads(line)
        head = [str(facts.pop("level")).upper(), str(facts.pop("event"))]
    except (ValueError, KeyError, AttributeError):
        return line
    for name in ("ts", "config", "traceback"):
        facts.pop(name, None)
    return " ".join([*head, *(f"{name}={value}" for name, value in facts.items())])


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _never_choke_on_output() -> None:
    """A terminal that cannot show a character shows "?" instead."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _silence() -> None:
    """Point standard output nowhere, so that the interpreter's last flush has no complaint either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
