"""The commands of README.md that are marked as runnable, run one after another as an operator does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import trio

from tests.tree import ROOT
from tests.world import world

BLOCKS = re.findall("```sh test\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = ("sidecar check", "sidecar configure", "sidecar configure --rbac", "sidecar version")


def test_the_readme_has_commands_to_run() -> None:
    lines = [line for block in BLOCKS for line in block.splitlines()]
    for command in COMMANDS:
        assert any(line.startswith(command) for line in lines), command


async def test_each_command_does_what_it_says(tmp_path: Path) -> None:
    """In one folder and in the order of the page; the environment leads them to the stand-ins."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "sidecar"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sidecar "$@"\n')
    program.chmod(0o755)
    with trio.fail_after(100):
        async with world(tmp_path) as here:
            variables = {f"SIDECAR_{key.upper().replace('.', '__')}": value for key, value in here.settings().items()}
            path = f"{programs}:{os.environ['PATH']}"
            environment = os.environ | variables | {"PATH": path, "PYTHONPATH": str(ROOT)}
            for block in BLOCKS:
                done = await trio.run_process(
                    ["sh", "-euxc", block],
                    cwd=tmp_path,
                    env=environment,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    capture_stdout=True,
                    capture_stderr=True,
                )
                assert done.returncode == 0, f"{block}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    assert (tmp_path / "teleport-mattermost.toml").read_text() == (ROOT / "sidecar/config/example.toml").read_text()
