"""`sidecar demo` as a process, as a reader meets it: the story, its exit codes, and what is left behind (nothing)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from sidecar import check
from sidecar.config import load
from sidecar.simulator.demo.play import configure
from tests.theatre import theatre
from tests.tree import ROOT

# In this order, whatever stands between them.
STORY = (
    "an Auth Service listens on",
    "a Mattermost listens on",
    "the sidecar is ready after",
    "Bob asks for dbadmin",
    "alice and ivan both see it",
    "bob@example.com asks for dbadmin: ",
    "PENDING",
    "0 of 2 approvals",
    "Alice and Ivan approve",
    "bob reacts with ✅",
    "that changes nothing",
    "0 of 2 approvals",
    "You cannot review your own request.",
    "alice reacts with ✅",
    "1 of 2 approvals: alice@example.com",
    "ivan replies in its thread: approve because",
    "the card turns green",
    "APPROVED",
    "2 of 2 approvals: alice@example.com, ivan@example.com",
    "counts (2 of 2), as ivan@example.com. The request is now APPROVED.",
    "bob is told in a direct message",
    "killed (SIGKILL)",
    "the sidecar is ready after",
    "announced after all",
    "ivan replies in its thread: deny because",
    "the card turns red",
    "DENIED",
    "counts, as ivan@example.com. The request is now DENIED.",
    "the card turns grey",
    "EXPIRED",
    "3 reviews, each with its reviewer's own credentials",
    "lost, or posted twice",
)

PID = re.compile(r"the sidecar is ready after .* process (\d+),")


@contextmanager
def demo(folder: Path, *flags: str, code: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a demo whose temporary files go to `folder`; `code` gives the arguments of `demo.main` instead of flags."""
    script = f"import sys; from sidecar.simulator.demo.play import main; sys.exit(main({code}))"
    command = ["-c", script] if code else ["-m", "sidecar", "demo", *flags]
    child = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A proxy and another sidecar's settings, which must not matter here; and no terminal's width but the usual.
        env=os.environ
        | {"TMPDIR": str(folder), "HTTP_PROXY": "http://127.0.0.1:9", "SIDECAR_MATTERMOST__URL": "http://127.0.0.1:9"}
        | {"COLUMNS": ""},
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def read_until(child: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Read the story up to a line that has `pattern`."""
    assert child.stdout is not None
    for line in child.stdout:
        if match := re.search(pattern, line):
            return match
    pytest.fail(f"the story ended without {pattern}")


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_story_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    """`make demo`: every step in order, exit 0, no process and no file afterwards."""
    with demo(tmp_path) as child:
        story, complaints = child.communicate(timeout=100)
    assert (child.returncode, complaints) == (0, "")
    # Lines break where they may.
    flat = " ".join(story.translate(dict.fromkeys(map(ord, "│▌↳"), " ")).split())
    place = 0
    for words in STORY:
        place = flat.find(words, place)
        assert place >= 0, f"{words!r} is missing, or comes too early in:\n{story}"
    pids = [int(pid) for pid in PID.findall(story)]
    assert len(pids) == 2
    assert not any(map(runs, pids))
    assert not list(tmp_path.iterdir())


def test_without_a_terminal_the_story_is_plain_and_fits(tmp_path: Path) -> None:
    """A log of a build server wants no colours and no lines that wrap."""
    with demo(tmp_path) as child:
        story, _ = child.communicate(timeout=100)
    assert "\x1b" not in story
    assert max(map(len, story.splitlines())) <= 96


def test_a_message_that_does_not_come_is_told_in_a_sentence(tmp_path: Path) -> None:
    """The sidecar announces elsewhere: exit 1, what is missing, and the sidecar's own word on it."""
    code = "False, patience=10.0, settings={'mattermost.recipients': 'ops/elsewhere'}"
    with demo(tmp_path, code=code) as child:
        story, complaints = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "The story went wrong. No message for" in complaints
    assert "WARNING recipient.failed recipient=ops/elsewhere" in complaints
    assert "Traceback" not in complaints
    assert not runs(int(PID.findall(story)[0]))
    assert not list(tmp_path.iterdir())


def test_a_configuration_that_is_refused_is_told_in_a_sentence(tmp_path: Path) -> None:
    """The sidecar never starts: its own list of problems is shown."""
    with demo(tmp_path, code="False, settings={'mattermost.bogus': '1'}") as child:
        _, complaints = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "mattermost.bogus: unknown key" in complaints
    assert "ended by itself in the middle of the story, with exit code 2." in complaints
    assert "Traceback" not in complaints


def test_a_sidecar_that_dies_ends_the_story(tmp_path: Path) -> None:
    """Killed by somebody else than the story: exit 1 at once, not after a deadline."""
    with demo(tmp_path, code="True") as child:
        pid = int(read_until(child, PID.pattern)[1])
        os.kill(pid, signal.SIGKILL)
        _, complaints = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "The sidecar ended by itself in the middle of the story, killed by signal 9." in complaints
    assert "Traceback" not in complaints


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_stops_everything_quietly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with demo(tmp_path) as child:
        pid = int(read_until(child, PID.pattern)[1])
        child.send_signal(number)
        _, complaints = child.communicate(timeout=60)
    assert (child.returncode, complaints) == (code, "")
    assert not runs(pid)
    assert not list(tmp_path.iterdir())


def test_keep_stays_up_until_it_is_stopped(tmp_path: Path) -> None:
    """After the story the addresses are shown; Ctrl-C is then the ordinary end."""
    with demo(tmp_path, "--keep") as child:
        read_until(child, "stays up until Ctrl-C")
        page = read_until(child, r"be Alice, Ivan or Bob\s+(http://127\.0\.0\.1:\d+/)$")[1]
        with urlopen(page) as answer:
            assert b"/page.js" in answer.read()
        address = read_until(child, r"http://(\S+)/readyz")[1]
        health = [sys.executable, "-m", "sidecar", "health", "--url", f"http://{address}"]
        assert subprocess.run(health, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode == 0
        child.send_signal(signal.SIGINT)
        _, complaints = child.communicate(timeout=60)
    assert (child.returncode, complaints) == (0, "")
    assert not list(tmp_path.iterdir())


def test_a_reader_who_leaves_is_no_error(tmp_path: Path) -> None:
    """`sidecar demo | head`: exit 0, no traceback, and no complaint of the interpreter's last flush."""
    with demo(tmp_path) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        child.stdout = None
        assert child.wait(timeout=60) == 0
        assert child.stderr is not None
        assert child.stderr.read() == ""
    assert not list(tmp_path.iterdir())


async def test_its_configuration_passes_the_check(tmp_path: Path) -> None:
    """What the demo runs with is what an operator may copy: no finding worse than a warning."""
    async with theatre(tmp_path, sidecar=False) as here:
        findings, _ = await check.run(load(configure(here.stage, tmp_path)))
    assert [one for one in findings if one.status == "failure"] == []
    assert "reviewer.rights" in {one.id for one in findings}
