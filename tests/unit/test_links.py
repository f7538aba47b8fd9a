"""Keeping a link: how often it is tried, what is said, and what counts as working. On a clock that jumps."""

from __future__ import annotations

import itertools
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from sidecar.errors import Conflict, LinkError, LinkGarbled, LinkLost, LinkRefused, PostRejected, SidecarError
from sidecar.intake.keep import LinkStatus, changed, keep, one_error, pinging, signature
from sidecar.metrics import Metrics
from sidecar.times import Backoff

LOST = LinkLost("teleport", "unavailable", "nobody there")
REFUSED = LinkRefused("teleport", "denied", "not you")


@pytest.fixture
def status() -> LinkStatus:
    return LinkStatus("teleport", Metrics())


class Lives:
    """Plays the lives of a link: each entry is (seconds, became ready, how it ended); the last one repeats."""

    def __init__(self, status: LinkStatus, *lives: tuple[float, bool, LinkError]) -> None:
        self._status = status
        self._lives = list(lives)
        self.began: list[float] = []

    async def live(self) -> None:
        self.began.append(trio.current_time())
        seconds, ready, error = self._lives.pop(0) if len(self._lives) > 1 else self._lives[0]
        if ready:
            self._status.ready()
        await trio.sleep(seconds)
        raise error


async def kept(lives: Lives, status: LinkStatus, seconds: float, files: list[Path] | None = None) -> list[float]:
    """When lives began within so many seconds, relative to the first."""
    with trio.move_on_after(seconds):
        await keep(status, lives.live, Backoff(0.25, 4.0), lambda: files or [], fail_fast=False)
    return [began - lives.began[0] for began in lives.began]


async def test_a_peer_that_is_away_is_not_hammered(autojump_clock: MockClock, status: LinkStatus) -> None:
    """The waits grow to the most and stay there, before the first ready as after it."""
    began = await kept(Lives(status, (0.0, False, LOST)), status, 100)
    assert 100 / 4.0 <= len(began) <= 100
    assert all(later - earlier <= 4.0 for earlier, later in itertools.pairwise(began))


async def test_an_outage_after_a_long_healthy_life_is_not_hammered_either(
    autojump_clock: MockClock, status: LinkStatus
) -> None:
    began = await kept(Lives(status, (3600.0, True, LOST), (0.0, False, LOST)), status, 3700)
    assert began[1] - 3600 <= 0.25  # the first try comes at once
    assert len(began) <= 100


async def test_a_link_that_lives_shortly_again_and_again_is_slowed_down(
    autojump_clock: MockClock, status: LinkStatus
) -> None:
    assert len(await kept(Lives(status, (0.1, True, LOST)), status, 100)) <= 100


async def test_a_refusal_is_tried_slowly(autojump_clock: MockClock, status: LinkStatus) -> None:
    began = await kept(Lives(status, (0.0, False, REFUSED)), status, 200)
    assert began == pytest.approx([0, 60, 120, 180])
    assert status.body()["state"] == "refused"


async def test_a_refusal_is_tried_at_once_when_a_file_changed(
    autojump_clock: MockClock, status: LinkStatus, tmp_path: Path
) -> None:
    """And has come to rest, so that a pair is not read half written."""
    file = tmp_path / "token"
    async with trio.open_nursery() as nursery:
        lives = Lives(status, (0.0, False, REFUSED))
        nursery.start_soon(partial(kept, lives, status, 30, [file]))
        await trio.sleep(10)
        assert len(lives.began) == 1
        file.write_text("new")
    assert len(lives.began) == 2
    assert 10 < lives.began[1] - lives.began[0] < 15


async def test_fail_fast_gives_up_only_before_the_first_ready(autojump_clock: MockClock, status: LinkStatus) -> None:
    lives = Lives(status, (0.0, False, LOST), (1.0, True, REFUSED), (0.0, False, LOST))
    with trio.move_on_after(100) as scope:
        await keep(status, lives.live, Backoff(0.25, 4.0), list, fail_fast=True)
    assert scope.cancelled_caught
    fresh = LinkStatus("teleport", Metrics())
    with pytest.raises(LinkRefused):
        await keep(fresh, Lives(fresh, (0, False, REFUSED)).live, Backoff(1, 1), list, fail_fast=True)


async def test_a_bug_costs_one_connection(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its place and counted, and the next connection is tried with the usual patience."""
    metrics = Metrics()
    status = LinkStatus("teleport", metrics)
    began = []

    async def live() -> None:
        began.append(trio.current_time())
        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise ZeroDivisionError

    with trio.move_on_after(100):
        await keep(status, live, Backoff(0.25, 4.0), list, fail_fast=False)
    assert 100 / 4.0 <= len(began) <= 100
    bugs = [line for line in caplog.records if line.getMessage() == "link.bug"]
    assert len(bugs) == len(began)
    assert bugs[0].exc_info is not None
    assert metrics.events_total.labels("teleport", "bug")._value.get() == len(began)
    assert status.body()["state"] == "lost"


async def test_each_incident_is_said_once(
    autojump_clock: MockClock, status: LinkStatus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other = LinkLost("teleport", "timeout", "")
    expired, mismatched = (LinkRefused("teleport", "tls", detail) for detail in ("it expired", "the key is another's"))
    for error in (LOST, other, LOST, expired, LOST, expired, mismatched, mismatched):
        status.failed(error)
    status.ready()
    status.ready()
    status.failed(LOST)
    said = [(line.levelname, line.getMessage()) for line in caplog.records]
    assert said == [
        ("WARNING", "link.lost"),
        ("ERROR", "link.refused"),
        ("ERROR", "link.refused"),
        ("INFO", "link.ready"),
        ("WARNING", "link.lost"),
    ]


async def test_a_ready_link_that_is_silent_for_too_long_does_not_work(
    autojump_clock: MockClock, status: LinkStatus
) -> None:
    status.ready()
    await trio.sleep(29)
    assert (status.working, status.body()["state"]) == (True, "ready")
    await trio.sleep(2)
    assert (status.working, status.body()["state"]) == (False, "lost")
    status.answered()
    assert (status.working, status.body()["state"]) == (True, "ready")


async def test_a_link_whose_writes_mostly_fail_does_not_work(autojump_clock: MockClock, status: LinkStatus) -> None:
    """At least five of a minute, and more than half; others' mistakes are not the link's."""

    def write(error: SidecarError | None) -> None:
        with suppress(SidecarError), status.writing():
            if error is not None:
                raise error

    def works() -> bool:
        return status.working

    status.ready()
    for error in (None, Conflict(), PostRejected(403, ""), *[LOST] * 4):
        write(error)
    assert works()
    write(LOST)
    assert (works(), status.body()["state"], status.body()["detail"]) == (False, "lost", "writes fail")
    write(None)
    write(None)
    assert works()  # five of ten
    write(LOST)
    assert not works()
    for _ in range(3):
        await trio.sleep(25)
        status.answered()
    assert (works(), status.body()["detail"]) == (True, "")


async def test_what_failed_while_the_link_was_lost_is_forgotten(autojump_clock: MockClock, status: LinkStatus) -> None:
    """What failed although the peer answered is not: a link that comes and goes hides nothing."""
    for heard in (False, True):
        for _ in range(9):
            status.wrote(failed=True)
        await trio.sleep(5)
        if heard:
            status.answered()
        status.failed(LOST)
        status.ready()
        assert status.working is not heard


async def test_a_ping_without_an_answer_ends_the_link(autojump_clock: MockClock, status: LinkStatus) -> None:
    answers = 3

    async def ping() -> None:
        nonlocal answers
        answers -= 1
        await trio.sleep(1 if answers else 100)

    began = trio.current_time()
    with pytest.raises(LinkLost) as caught:
        await pinging(ping, 15, 5, status)
    assert caught.value.reason == "deaf"
    assert trio.current_time() - began == pytest.approx(15 + 1 + 15 + 1 + 15 + 5)


async def test_a_group_of_link_errors_comes_out_as_one() -> None:
    with pytest.raises(LinkLost) as caught, one_error():
        raise ExceptionGroup("", [ExceptionGroup("", [LOST]), LinkGarbled("teleport", "x", "y")])
    assert caught.value is LOST


async def test_a_bug_beside_a_link_error_goes_first() -> None:
    with pytest.raises(ExceptionGroup) as caught, one_error():
        raise ExceptionGroup("", [LOST, ZeroDivisionError()])
    assert caught.group_contains(ZeroDivisionError)


async def test_a_swapped_link_and_a_missing_file_are_changes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Kubernetes swaps a symbolic link; an editor writes a new file."""
    first, second, link = tmp_path / "1", tmp_path / "2", tmp_path / "token"
    first.write_text("same")
    second.write_text("same")
    link.symlink_to(first)
    seen = signature([link])
    link.unlink()
    assert signature([link]) != seen
    link.symlink_to(second)
    assert signature([link]) != seen
    with trio.fail_after(10):
        assert await changed(lambda: [link], seen, 1.0) == signature([link])
