"""What statuses, Retry-After and Date headers mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import LinkLost, LinkRefused, PostRejected
from sidecar.mattermost import answers

OUTCOMES = {"ok", "refused", "rejected", "rate_limited", "server_error", "lost", "garbled"}


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ([], 1.0),
        (["1"], 1.0),
        (["3, 5"], 5.0),
        (["3", "7"], 7.0),
        (["soon"], 1.0),
        (["soon, 4"], 4.0),
        (["-5"], 1.0),
        (["1e9"], 1.0),
        (["0"], 1.0),
        (["86400"], 60.0),
        (["9" * 400], 60.0),
        (["Sun, 22 Nov 2026 08:00:10 GMT"], 10.0),
        (["Sun, 22 Nov 2026 07:00:00 GMT"], 1.0),
    ],
)
def test_retry_after_takes_the_longest_that_makes_sense(values: list[str], seconds: float) -> None:
    now = answers.server_time("Sun, 22 Nov 2026 08:00:00 GMT")
    assert now is not None
    assert answers.retry_after(values, now) == seconds


@given(st.lists(st.text(), max_size=4), st.floats(0, 2e9))
def test_no_retry_after_header_breaks_us_or_stops_us_for_long(values: list[str], now: float) -> None:
    assert 1.0 <= answers.retry_after(values, now) <= 60.0


@given(st.text())
def test_no_date_header_breaks_us(date: str) -> None:
    time = answers.server_time(date)
    assert time is None or isinstance(time, float)


@given(st.integers(100, 599))
def test_outcomes_are_a_closed_set(status: int) -> None:
    assert answers.outcome(status) in OUTCOMES


@pytest.mark.parametrize(
    ("status", "error_id", "kind", "reason"),
    [
        (301, "", LinkRefused, "redirect"),
        (400, "model.post.is_valid.props.app_error", PostRejected, None),
        (401, "api.context.session_expired.app_error", LinkRefused, "token"),
        (403, "api.context.permissions.app_error", PostRejected, None),
        (403, "", PostRejected, None),
        (404, "app.post.get.app_error", PostRejected, None),
        (404, "", LinkLost, "not_mattermost"),
        (404, "api.context.404.app_error", LinkLost, "unknown_route"),
        (408, "", LinkLost, "server_error"),
        (413, "", PostRejected, None),
        (500, "api.post.deduplicate_create_post.pending", PostRejected, None),
        (500, "app.post.save.app_error", LinkLost, "server_error"),
        (501, "license_error.feature_unavailable", PostRejected, None),
        (501, "", LinkLost, "server_error"),
        (502, "", LinkLost, "server_error"),
        (503, "api.context.server_busy.app_error", LinkLost, "server_error"),
    ],
)
def test_each_status_has_its_meaning(status: int, error_id: str, kind: type[Exception], reason: str | None) -> None:
    for write in (False, True):
        error = answers.refusal(status, error_id, "", write=write)
        assert type(error) is kind
        if isinstance(error, PostRejected):
            assert (error.status, error.error_id) == (status, error_id)
        if isinstance(error, LinkLost | LinkRefused):
            assert error.reason == reason
        if isinstance(error, LinkLost):
            # Only what may have been carried out is ambiguous: a 404 of anybody was not.
            assert error.ambiguous is (write and reason == "server_error")


@pytest.mark.parametrize("location", ["http://[portal/login", "", "/login", "http://", "//", "http://" + "x" * 9999])
def test_a_redirect_to_nowhere_is_a_refusal_like_any_other(location: str) -> None:
    error = answers.refusal(302, "", location, write=True)
    assert isinstance(error, LinkRefused)
    assert len(str(error)) < 500


@given(st.text() | st.text("[]:/@?#htp.").map("http://".__add__))
def test_no_location_breaks_us(location: str) -> None:
    assert isinstance(answers.refusal(302, "", location, write=False), LinkRefused)


def test_a_redirect_names_the_host_and_not_what_else_the_header_holds() -> None:
    error = answers.refusal(302, "", "https://user:secret@chat.example.com:8443/login?token=secret", write=False)
    assert "https://chat.example.com:8443" in str(error)
    assert "secret" not in str(error)
