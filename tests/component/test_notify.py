"""What the service manager hears of a real process: sd_notify(3), over a real socket."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.notify import ALIVE, READY, notifier
from tests.world import process

# Nobody is there, and no file either: ready for the manager is not ready for work.
ALONE = {
    "teleport.addr": "127.0.0.1:1",
    "teleport.identity": "/nowhere/identity",
    "mattermost.url": "http://127.0.0.1:1",
    "mattermost.token_file": "/nowhere/token",
    "mattermost.recipients": "ops/access-requests",
    "endpoints.listen": "127.0.0.1:0",
}


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(address)
        ear.settimeout(20)
        yield ear


def heard(ear: socket.socket, word: str) -> str:
    """Return the next datagram that is no sign of life; it begins with `word`."""
    while (text := ear.recv(200).decode()) == ALIVE:
        pass
    assert text.startswith(word)
    return text


def test_a_process_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ready without either peer, alive each second, reloading and ready again, stopping."""
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    with manager(path) as ear, process(ALONE) as child:
        heard(ear, READY)
        assert ear.recv(200).decode() == ALIVE
        before = time.monotonic_ns() // 1000
        child.send_signal(signal.SIGHUP)
        word, _, moment = heard(ear, "RELOADING=1\n").partition("MONOTONIC_USEC=")
        assert before <= int(moment) <= time.monotonic_ns() // 1000
        assert word == "RELOADING=1\n"
        heard(ear, READY)
        child.terminate()
        heard(ear, "STOPPING=1")
        assert child.wait(20) == 0


def test_an_abstract_address_and_no_watchdog() -> None:
    with manager("\0sidecar-notify-test") as ear:
        notify = notifier({"NOTIFY_SOCKET": "@sidecar-notify-test"})
        notify(ALIVE)
        notify(READY)
        assert ear.recv(200) == b"READY=1"


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}])
def test_a_manager_that_is_not_there_is_nobodys_problem(environment: dict[str, str]) -> None:
    notifier(environment)(READY)


def test_a_manager_that_does_not_read_holds_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with manager(path):
        notify = notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1"})
        for _ in range(10_000):
            notify(ALIVE)
