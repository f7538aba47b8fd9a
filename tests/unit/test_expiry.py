"""What is said of certificates that end, and when: by their own lives, for each reviewer."""

from __future__ import annotations

import datetime as dt
import logging
import time

import pytest

from sidecar.intake.expiry import Expiry
from sidecar.metrics import Metrics
from sidecar.simulator.teleport.pki import ClusterPki
from sidecar.teleport.x509 import CertificateFacts, read_certificate

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
HOUR, DAY, YEAR = dt.timedelta(hours=1), dt.timedelta(days=1), dt.timedelta(days=365)
ALICE, IVAN = "alice@example.com", "ivan@example.com"

cluster = ClusterPki()


class Watched:
    """An Expiry over certificates that the test changes, at moments that it names."""

    def __init__(self, identity: str, patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.certificates: dict[str, CertificateFacts] = {}
        self.metrics = Metrics()
        self._identity = identity
        self._patch = patch
        self._caplog = caplog
        self._expiry = Expiry(identity, lambda: self.certificates, self.metrics)

    def issue(self, end: dt.datetime, life: dt.timedelta, name: str = "") -> None:
        issued = cluster.user_certificate(name or "access-plugin", [], not_before=end - life, not_after=end)
        self.certificates[name] = read_certificate(issued.certificate)

    def said(self, now: dt.datetime) -> list[tuple[str, str]]:
        """Look at this moment; the lines as (level, reviewer)."""
        self._patch.setattr(time, "time", now.timestamp)
        self._caplog.clear()
        self._expiry.look()
        return [(line.levelname, line.__dict__["reviewer"]) for line in self._caplog.records]

    @property
    def left(self) -> float | None:
        name = "teleport_mattermost_certificate_expiry_seconds"
        return self.metrics.registry.get_sample_value(name, {"identity": self._identity})


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.INFO)
    return Watched("main", monkeypatch, caplog)


@pytest.fixture
def reviewers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.INFO)
    return Watched("reviewer", monkeypatch, caplog)


def test_one_that_was_renewed_by_hand_is_told_of_again(main: Watched) -> None:
    for end in (NOON, NOON + YEAR):
        main.issue(end, YEAR)
        assert main.said(end - 15 * DAY) == []
        assert main.said(end - 13 * DAY) == [("WARNING", "")]
        assert main.said(end - 9 * DAY) == []
        assert main.said(end - DAY / 2) == [("ERROR", "")]
        assert main.said(end + DAY) == []


@pytest.mark.parametrize("life", [HOUR, 12 * HOUR])
def test_one_that_is_renewed_in_time_is_never_told_of(main: Watched, life: dt.timedelta) -> None:
    """As tbot does: after a third of its life; nor at the start of the sidecar."""
    for number in range(5):
        end = NOON + number * life / 3
        main.issue(end, life)
        assert main.said(end - life) == []
        assert main.said(end - life * 2 / 3) == []


def test_a_short_life_that_is_not_renewed_is_told_of(main: Watched) -> None:
    main.issue(NOON, HOUR)
    assert main.said(NOON - HOUR / 4) == [("WARNING", "")]
    assert main.said(NOON - HOUR / 12) == [("ERROR", "")]


def test_each_reviewer_is_told_of(reviewers: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """One that has ended hides no other, and a renewal of the soonest does not either."""
    reviewers.issue(NOON - DAY, YEAR, ALICE)
    reviewers.issue(NOON + 9 * DAY, YEAR, IVAN)
    assert reviewers.said(NOON) == [("ERROR", ALICE), ("WARNING", IVAN)]
    assert caplog.records[1].__dict__["detail"].endswith(f"--user={IVAN} --ttl=8760h --out={IVAN}")
    assert reviewers.left == -DAY.total_seconds()
    reviewers.issue(NOON + YEAR, YEAR, ALICE)
    assert reviewers.said(NOON) == []
    assert reviewers.left == 9 * DAY.total_seconds()
    assert reviewers.said(NOON + 8.5 * DAY) == [("ERROR", IVAN)]


def test_the_metric_ends_with_the_last_file(reviewers: Watched) -> None:
    reviewers.issue(NOON + DAY, YEAR, ALICE)
    reviewers.said(NOON)
    assert reviewers.left == DAY.total_seconds()
    del reviewers.certificates[ALICE]
    assert reviewers.said(NOON) == []
    assert reviewers.left is None
