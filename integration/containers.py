"""Servers in containers, by testcontainers, where a Docker-compatible engine answers.

The images can be others: MATTERMOST_IMAGE, TELEPORT_IMAGE (any that has `teleport` and `tctl` and reads its
configuration from /etc/teleport/teleport.yaml). Host ports are fixed for the run: a restart must not move them.
"""

from __future__ import annotations

import gc
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import docker  # type: ignore[import-untyped]
from docker.errors import DockerException  # type: ignore[import-untyped]
from testcontainers.core.container import DockerContainer

from integration.binaries import answers_ping, free_port, mattermost_settings, teleport_config
from integration.mattermost import PASSWORD, Rest, log_in
from integration.stage import Unavailable
from integration.teleport import TctlError

MATTERMOST_IMAGE = os.environ.get("MATTERMOST_IMAGE", "mattermost/mattermost-preview")
TELEPORT_IMAGE = os.environ.get("TELEPORT_IMAGE", "public.ecr.aws/gravitational/teleport-distroless:18")
_START_SECONDS = 180.0


def require_engine() -> None:
    """Raise Unavailable where no engine answers."""
    # The library leaves the socket open that it could not connect.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        answers = _engine_answers()
        gc.collect()
    if not answers:
        raise Unavailable("no Docker-compatible engine answers")


def _engine_answers() -> bool:
    try:
        client = docker.from_env(timeout=5)
    except DockerException:
        return False
    client.close()
    return True


def _start(container: DockerContainer) -> None:
    try:
        container.start()
    except DockerException as exc:
        container.stop()
        raise Unavailable(f"the image {container.image} cannot be had: {str(exc)[:200]}") from exc


class ContainedAuthService:
    """An Auth Service alone, with a stock certificate."""

    no_restart = ""
    proxy = None

    def __init__(self) -> None:
        port = free_port()
        self.addr = f"127.0.0.1:{port}"
        tag = re.search(r":(\d+)[^/]*$", TELEPORT_IMAGE)
        config = teleport_config(int(tag[1]) if tag else 18, "0.0.0.0:3025", "/var/lib/teleport")
        self._container = (
            DockerContainer(TELEPORT_IMAGE)
            .with_bind_ports(3025, port)
            .with_copy_into_container(json.dumps(config).encode(), "/etc/teleport/teleport.yaml")
        )
        _start(self._container)
        _patiently("the Auth Service", self._answers)

    def tctl(self, *arguments: str) -> str:
        # Standard output alone: a warning must not become a part of JSON.
        done = self._container.get_wrapped_container().exec_run(["tctl", *arguments], demux=True)
        out, err = (part.decode() if part else "" for part in done.output)
        if done.exit_code:
            raise TctlError(err.strip() or out.strip())
        return out

    def put(self, name: str, content: str) -> str:
        self._container.copy_into_container(content.encode(), self.path(name))
        return self.path(name)

    def take(self, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file"
            self._container.copy_from_container(path, file)
            return file.read_bytes()

    def path(self, name: str) -> str:
        return f"/var/lib/teleport/check-{name}"

    def stop(self) -> None:
        self._container.get_wrapped_container().stop(timeout=20)

    def start(self) -> None:
        self._container.get_wrapped_container().start()
        _patiently("the Auth Service", self._answers)

    def remove(self) -> None:
        self._container.stop()

    def _answers(self) -> bool:
        try:
            self.tctl("status")
        except TctlError:
            return False
        return True


class ContainedMattermost:
    """`mattermost-preview`: a Mattermost with its own PostgreSQL. The first user is its administrator."""

    no_restart = ""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._container = (
            DockerContainer(MATTERMOST_IMAGE)
            .with_bind_ports(8065, port)
            .with_envs(**mattermost_settings(), MM_SERVICESETTINGS_SITEURL=self.url)
        )
        _start(self._container)
        _patiently("Mattermost", lambda: answers_ping(self.url))
        rest = Rest(self.url)
        rest("POST", "/users", {"username": "admin", "email": "admin@example.com", "password": PASSWORD})
        rest.close()
        self.admin_token = log_in(self.url, "admin")

    def stop(self) -> None:
        self._container.get_wrapped_container().stop(timeout=20)

    def start(self) -> None:
        self._container.get_wrapped_container().start()
        _patiently("Mattermost", lambda: answers_ping(self.url))

    def remove(self) -> None:
        self._container.stop()


def _patiently(what: str, answers: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _START_SECONDS
    while not answers():
        if time.monotonic() > give_up:
            raise AssertionError(f"{what} did not answer within {_START_SECONDS:g} s")
        time.sleep(0.5)
