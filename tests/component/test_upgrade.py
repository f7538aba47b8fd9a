"""The version before this one, this one, and back: one record, one configuration, one card for each request."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from tests.tree import ROOT
from tests.world import World, field, world

# What the record and the card looked like before `since`, `q` and `c`.
BEFORE = "97f0461dd2"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The source of the version before, ready to run."""
    command = ["git", "-C", str(ROOT), "archive", BEFORE, "sidecar"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("the history does not reach back to the version before")
    folder = tmp_path / "before"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as source:
        source.extractall(folder, filter="data")
    if subprocess.run(
        [sys.executable, "-c", "import sidecar.app"], cwd=folder, capture_output=True, check=False
    ).returncode:
        pytest.skip("the libraries of the version before are not installed")
    return folder


@contextmanager
def started(source: Path, file: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "run", "--config", str(file)],
        cwd=source,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@asynccontextmanager
async def sidecar(source: Path, file: Path) -> AsyncIterator[None]:
    """A sidecar of this source, which is stopped in order at the end."""
    with started(source, file) as child:
        yield
        child.terminate()
        assert await trio.to_thread.run_sync(child.wait, abandon_on_cancel=True) == 0


def configuration(here: World) -> str:
    """Reviewers by their ids, and no key that came later."""
    people = ((here.alice, "alice@example.com"), (here.ivan, "ivan@example.com"))
    reviewers = [f'{one.username} = {{ id = "{one.id}", user = "{user}" }}' for one, user in people]
    settings = [f"{key} = {value if value.startswith('[') else repr(value)}" for key, value in here.settings().items()]
    switches = ("mattermost.notify_requester", "mattermost.max_posts_per_second")
    plain = [line.replace("'", "") if line.startswith(switches) else line for line in settings]
    return "\n".join([*plain, "[reviewers]", *reviewers, ""])


async def test_a_request_goes_on_over_an_upgrade_and_back(tmp_path: Path, before: Path) -> None:
    """Announced by one, reviewed under the other, ended under the first again, and asked anew in between."""
    file = tmp_path / "sidecar.toml"
    with trio.fail_after(90):
        async with world(tmp_path) as here:
            file.write_text(configuration(here))
            async with sidecar(before, file):
                (first,) = here.ask()
                await here.told([first])
                await here.released(first)
            async with sidecar(ROOT, file):
                here.auth.review(first, "alice@example.com", "APPROVED")
                await here.chat.wait_for(lambda: any("alice" in field(card, "Reviews") for card in here.cards()))
                (second,) = here.ask()
                await here.told([first, second])
                await here.released(second)
            async with sidecar(before, file):
                here.auth.review(first, "ivan@example.com", "APPROVED")
                here.auth.review(second, "ivan@example.com", "DENIED")
                await here.told([first], "APPROVED")
                await here.told([second], "DENIED")
                (third,) = here.ask()
                await here.told([third])
                await here.released(third)
            async with sidecar(ROOT, file):
                here.auth.review(third, "alice@example.com", "DENIED")
                await here.told([third], "DENIED")
            assert here.states() == {first: ["APPROVED"], second: ["DENIED"], third: ["DENIED"]}
