"""The image, run as strictly as it can be: `make image image-test`. No part of `make test`, which names no image."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.world import World, world

ENGINE = os.environ.get("SIDECAR_TEST_ENGINE", "docker")
IMAGE = os.environ.get("SIDECAR_TEST_IMAGE", "")
USER = "65532"
MEMORY = 128 * 1024 * 1024


def missing() -> str:
    """Why there is nothing to test here, "" where there is."""
    if not IMAGE:
        return "SIDECAR_TEST_IMAGE names no image to test"
    try:
        subprocess.run([ENGINE, "info"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{ENGINE} does not answer"
    return ""


if WHY := missing():
    pytest.skip(WHY, allow_module_level=True)


async def engine(*arguments: str, check: bool = True) -> str:
    """Run one command of the container engine; return what it printed."""
    done = await trio.run_process([ENGINE, *arguments], capture_stdout=True, capture_stderr=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{ENGINE} {' '.join(arguments)}: {done.stderr.decode()}")
    return done.stdout.decode().strip()


def environment(settings: dict[str, str]) -> list[str]:
    """The settings as variables, which `run` and the health check both read."""
    variables = {f"SIDECAR_{key.replace('.', '__').upper()}": value for key, value in settings.items()}
    return [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]


def hand_over(folder: Path) -> str:
    """Make the files those of the container's user, as an operator would; return the user to run as."""
    if os.geteuid() != 0:
        return f"{os.getuid()}:{os.getgid()}"
    for path in [folder, *folder.iterdir()]:
        os.chown(path, int(USER), int(USER))
    for parent in folder.parents[:2]:  # pytest's own folders are closed to everybody else
        parent.chmod(0o755)
    return f"{USER}:{USER}"


@asynccontextmanager
async def container(here: World, port: int) -> AsyncIterator[str]:
    """The sidecar in a container without any right; gives its name."""
    name = f"sidecar-test-{uuid.uuid4().hex[:12]}"
    settings = here.settings(endpoints__listen=f"127.0.0.1:{port}")
    limits = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", f"--memory={MEMORY}"]
    volume = f"{here.folder}:{here.folder}:ro"
    user = hand_over(here.folder)
    rest = ["--user", user, "--network=host", "--volume", volume, *environment(settings)]
    await engine("run", "--detach", "--name", name, *limits, *rest, IMAGE)
    try:
        yield name
    finally:
        with trio.CancelScope(shield=True):
            await engine("rm", "--force", name, check=False)


async def configured() -> dict[str, Any]:
    (inspected,) = json.loads(await engine("image", "inspect", IMAGE))
    config: dict[str, Any] = inspected["Config"]
    return {"Healthcheck": inspected.get("Healthcheck")} | config  # podman's place for it, then docker's


async def test_a_locked_down_container_announces_and_stops(tmp_path: Path, unused_port: int) -> None:
    """Read-only, no capability, a numeric user, 128 MiB: a request is announced, health answers, SIGTERM ends it."""
    async with world(tmp_path) as here, container(here, unused_port) as name:
        await here.recorded(lambda: here.auth.watchers > 0)
        request_id = here.auth.create_request("bob@example.com", ["dbadmin"], reason="fix it")
        await here.shows("PENDING")
        await here.released(request_id)
        assert await engine("exec", name, "python", "-m", "sidecar", "health") == "healthy"
        async with httpx.AsyncClient() as client:
            page = (await client.get(f"http://127.0.0.1:{unused_port}/metrics")).text
        (memory,) = (line for line in page.splitlines() if line.startswith("process_resident_memory_bytes "))
        assert float(memory.split()[1]) < MEMORY
        await engine("stop", "--time", "9", name)
        (state,) = json.loads(await engine("inspect", name))
        assert state["State"]["ExitCode"] == 0
        assert "process.stopped" in await logs(name)


@pytest.fixture
def own_file(tmp_path: Path, unused_port: int) -> Path:
    tmp_path.chmod(0o755)
    path = tmp_path / "own.toml"
    chat = ["[mattermost]", 'url = "http://127.0.0.1:9"', 'token_file = "/nowhere"', 'recipients = ["ops/x"]']
    path.write_text("\n".join(["[endpoints]", f'listen = "127.0.0.1:{unused_port}"', *chat]))
    return path


async def test_the_images_health_check_follows_the_configuration_in_use(own_file: Path) -> None:
    """It names no file: what counts is what the first process was started with."""
    name = f"sidecar-test-{uuid.uuid4().hex[:12]}"
    limits = ["--read-only", "--cap-drop=all", "--network=host", "--volume", f"{own_file.parent}:{own_file.parent}:ro"]
    with trio.fail_after(60):
        await engine("run", "--detach", "--name", name, *limits, IMAGE, "run", "--config", str(own_file))
        try:
            await says(name, b"endpoints.listening")
            assert await engine("exec", name, "python", "-m", "sidecar", "health") == "healthy"
        finally:
            with trio.CancelScope(shield=True):
                await engine("rm", "--force", name, check=False)


async def says(name: str, event: bytes) -> None:
    """Return when a container's log holds this."""
    follow = [ENGINE, "logs", "--follow", name]
    process = await trio.lowlevel.open_process(follow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    heard = b""
    async for piece in process.stdout:
        heard += piece
        if event in heard:
            break
    process.kill()
    await process.wait()
    await process.stdout.aclose()


async def logs(name: str) -> str:
    done = await trio.run_process([ENGINE, "logs", name], capture_stdout=True, stderr=subprocess.STDOUT)
    return done.stdout.decode()


async def test_the_image_says_how_it_wants_to_run() -> None:
    """A number for the user, no shell form anywhere, a health check, labels that scanners and registries read."""
    config = await configured()
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["python", "-m", "sidecar"]
    assert config["Cmd"] == ["run"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "sidecar", "health"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not any("TOKEN" in name or "PIP" in name for name in config["Env"])


async def test_nothing_in_the_image_installs_or_needs_compiling() -> None:
    """No pip; and every module that `run` imports lies there compiled, as the container cannot do it itself."""
    code = """
import importlib.util, os, sys
import sidecar.app, sidecar.cli
assert importlib.util.find_spec("pip") is None, "pip"
files = [module.__spec__ for module in sys.modules.values() if getattr(module, "__spec__", None)]
print(*[spec.origin for spec in files if spec.cached and not os.path.exists(spec.cached)])
"""
    output = await engine("run", "--rm", "--read-only", "--cap-drop=all", "--entrypoint", "python", IMAGE, "-c", code)
    assert output == ""


async def test_configuration_problems_are_said_and_end_it_with_2() -> None:
    done = await trio.run_process(
        [ENGINE, "run", "--rm", "--read-only", IMAGE], capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 2
    assert b"mattermost.url" in done.stderr


@pytest.fixture
def unused_port() -> int:
    """A port that was free a moment ago; the container shares our network."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
