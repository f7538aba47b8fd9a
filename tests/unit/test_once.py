"""What is said once, what is remembered, and how long waits grow."""

from __future__ import annotations

from sidecar.once import Bounded, Once
from sidecar.times import Backoff, doubled


def test_the_oldest_entry_makes_room() -> None:
    """An entry that is set again is a new one; one that is only read is not."""
    known: Bounded[str, int] = Bounded(2)
    known["a"], known["b"] = 1, 2
    known["a"] = 3
    assert known["b"] == 2
    known["c"] = 4
    assert dict(known) == {"a": 3, "c": 4}


def test_a_state_is_news_once() -> None:
    once = Once()
    assert [once.news("file", state) for state in ("gone", "gone", "empty", "gone")] == [True, False, True, True]
    assert once.news("other", "gone")
    assert (once.forget("file"), once.forget("file")) == (True, False)
    assert once.news("file", "gone")
    once.clear()
    assert once.news("other", "gone")


def test_a_subject_alone_is_news_once() -> None:
    once = Once(2)
    assert [once.news(subject) for subject in ("a", "a", "b", "c", "a")] == [True, False, True, True, True]
    assert (once.news(), once.news()) == (True, False)


def test_what_was_said_is_news_again_after_an_hour() -> None:
    once = Once(every=3600.0)
    assert [once.news("alice", now=now) for now in (10.0, 3609.0, 3610.0, 3611.0)] == [True, False, True, False]


def test_waits_double_up_to_the_most_however_often() -> None:
    assert [doubled(60.0, 3600.0, failures) for failures in (0, 1, 2, 5, 6, 5000)] == [60, 120, 240, 1920, 3600, 3600]


def test_a_backoff_is_jittered_and_starts_anew() -> None:
    backoff = Backoff(1.0, 8.0)
    for most in (1.0, 2.0, 4.0, 8.0, 8.0):
        assert most / 10 <= backoff.take() <= most
    backoff.reset()
    assert backoff.take() <= 1.0
