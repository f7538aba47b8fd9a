"""Every command of the pages, run as an operator does: the blocks one after another, then what is named."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from tests.tree import ROOT
from tests.world import World, world

PAGES = "".join(
    path.read_text()
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "compose").rglob("*.md")),
        *sorted((ROOT / "sidecar").rglob("*.md")),
    )
)
BLOCKS = re.findall("```sh test\n(.*?)```", PAGES, flags=re.DOTALL)
# Those without arguments say what it is called; --config is left out, for the pages name several files.
NAMED = {re.sub(" --config [^ ]+", "", one) for one in re.findall("`(sidecar [a-z][^`]*)`", PAGES)}
# What the blocks do not hold, and the test that runs it.
ELSEWHERE = {
    "sidecar run": "test_run_and_health_are_as_the_pages_say",
    "sidecar health": "test_run_and_health_are_as_the_pages_say",
    "sidecar demo": "test_demo.py",
    # One for each mode is in the blocks.
    "sidecar configure --rbac MODE": "",
}


class Operator:
    """Somebody with the program in the PATH, an environment that leads to the stand-ins, and a folder."""

    def __init__(self, here: World, folder: Path) -> None:
        self.folder = folder
        variables = {f"SIDECAR_{key.upper().replace('.', '__')}": value for key, value in here.settings().items()}
        path = f"{folder / 'bin'}:{os.environ['PATH']}"
        self.environment = os.environ | variables | {"PATH": path, "PYTHONPATH": str(ROOT)}

    async def does(self, script: str) -> subprocess.CompletedProcess[bytes]:
        return await trio.run_process(
            ["sh", "-euxc", script],
            cwd=self.folder,
            env=self.environment,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
        )


@asynccontextmanager
async def operator(folder: Path) -> AsyncIterator[tuple[World, Operator]]:
    program = folder / "bin" / "sidecar"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sidecar "$@"\n')
    program.chmod(0o755)
    with trio.fail_after(100):
        async with world(folder) as here:
            yield here, Operator(here, folder)


def test_every_command_that_the_pages_name_is_run() -> None:
    lines = [re.sub(" --config [^ ]+", "", line) for block in BLOCKS for line in block.splitlines()]
    for command in NAMED:
        assert command in ELSEWHERE or any(line.startswith(command) for line in lines), command


async def test_each_block_does_what_it_says(tmp_path: Path) -> None:
    """In one folder and in the order of the pages."""
    async with operator(tmp_path) as (here, somebody):
        for block in BLOCKS:
            done = await somebody.does(block)
            assert done.returncode == 0, f"{block}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        (test,) = here.channel.posts
        assert test.user_id == here.bot.id
    assert (tmp_path / "teleport-mattermost.toml").read_text() == (ROOT / "sidecar/config/example.toml").read_text()


async def test_run_and_health_are_as_the_pages_say(tmp_path: Path) -> None:
    """Well while it runs, 1 when it has stopped, which it does for SIGTERM with 0."""
    async with operator(tmp_path) as (here, somebody):
        file = "teleport-mattermost.toml"
        assert (await somebody.does(f"sidecar configure > {file}")).returncode == 0
        port = trio.socket.socket()
        await port.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*port.getsockname())
        port.close()
        somebody.environment["SIDECAR_ENDPOINTS__LISTEN"] = address
        async with trio.open_nursery() as nursery:
            run = partial(trio.run_process, cwd=tmp_path, env=somebody.environment, check=False)
            start = partial(run, ["sidecar", "run", "--config", file], stderr=subprocess.DEVNULL)
            running: trio.Process = await nursery.start(start)
            (request_id,) = here.ask()
            await here.told([request_id])
            for command in (f"sidecar health --config {file}", f"sidecar health --url http://{address}"):
                assert (await somebody.does(command)).returncode == 0, command
            running.send_signal(signal.SIGTERM)
            assert await running.wait() == 0
        assert (await somebody.does(f"sidecar health --config {file}")).returncode == 1
