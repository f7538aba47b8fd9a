"""Servers that already run: told by their addresses."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from integration.teleport import TctlError


def run_tctl(command: list[str]) -> str:
    """Run tctl; its standard output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise TctlError(f"{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class LocalFiles:
    """Files for a tctl that runs on this machine."""

    def __init__(self, folder: Path) -> None:
        self._files = folder

    def put(self, name: str, content: str) -> str:
        file = self._files / name
        file.write_text(content)
        return str(file)

    def take(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def path(self, name: str) -> str:
        return str(self._files / name)


class RunningAuthService(LocalFiles):
    """TELEPORT_ADDR, and TCTL: the command with its own flags, "tctl" where it is not given."""

    no_restart = "the Auth Service at TELEPORT_ADDR is not ours to restart"
    proxy = None

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.addr = os.environ["TELEPORT_ADDR"]
        self._command = shlex.split(os.environ.get("TCTL", "tctl"))

    def tctl(self, *arguments: str) -> str:
        # Flags of the command itself, -c or -i, may stand before or behind the subcommand.
        return run_tctl([*self._command, *arguments])

    def stop(self) -> None:
        raise AssertionError(self.no_restart)

    def start(self) -> None:
        raise AssertionError(self.no_restart)


class RunningMattermost:
    """MATTERMOST_URL and MATTERMOST_ADMIN_TOKEN."""

    no_restart = "the Mattermost at MATTERMOST_URL is not ours to restart"

    def __init__(self) -> None:
        self.url = os.environ["MATTERMOST_URL"].rstrip("/")
        self.admin_token = os.environ["MATTERMOST_ADMIN_TOKEN"]

    def stop(self) -> None:
        raise AssertionError(self.no_restart)

    def start(self) -> None:
        raise AssertionError(self.no_restart)
