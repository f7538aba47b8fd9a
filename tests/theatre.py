"""The stage of the demo for tests: both stand-ins with their people, the sidecar in the loop, and the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import trio

from sidecar.config import load
from sidecar.simulator.demo.play import configure
from sidecar.simulator.demo.screen import Screen
from sidecar.simulator.demo.stage import Stage
from sidecar.simulator.mattermost.server import MattermostServer
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.web.server import WebPage
from tests.world import running

PATIENCE = 60.0


class Theatre(NamedTuple):
    """The stage, and the address of its page."""

    stage: Stage
    page: str


@asynccontextmanager
async def theatre(folder: Path, *, sidecar: bool = True) -> AsyncIterator[Theatre]:
    """Everything that `sidecar demo --keep` keeps, without the story."""
    chat = MattermostServer()
    screen = Screen(columns=92, colour=False, true_colour=False, pace=0.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(chat.serve)
        with AuthServer.dual_authorization() as auth:
            stage = Stage(auth, chat, screen, patience=PATIENCE)
            page = await nursery.start(WebPage(stage).serve)
            if sidecar:
                async with running(load(configure(stage, folder))):
                    yield Theatre(stage, page)
            else:
                yield Theatre(stage, page)
        nursery.cancel_scope.cancel()
