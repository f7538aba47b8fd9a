"""Which verdicts are on record while their answers are owed."""

from __future__ import annotations

import pytest

from sidecar.decisions.record import Record
from sidecar.model import Draft
from sidecar.reconcile.controller import _owing, _told, _untold
from sidecar.reconcile.observe import Answer


def answer(at: int, outcome: str = "own_request") -> Answer:
    return Answer("c", "p", f"bob:{at}", Draft("No."), ("bob", "approve", "reaction|p", at, outcome))


def record(*ledger: tuple[str, str, str, int, str], state: str = "PENDING") -> Record:
    return Record(seed="s", owner="", at=1, exp=2, seen=(state, 0), posts=(), dec=ledger)


def test_what_is_owed_is_not_on_record_and_what_is_told_is() -> None:
    one = answer(5)
    full = _told(record(), (one,))
    assert full.dec == (one.entry,)
    assert _owing(full, (one,)).dec == ()


def test_an_older_answer_brings_no_older_verdict_back() -> None:
    newer = record(answer(7).entry)
    assert _told(newer, (answer(5),)) == newer


def test_what_another_holder_has_told_is_not_told_again() -> None:
    one, other = answer(5), answer(7)
    assert _untold((one, other), record(one.entry)) == (other,)


@pytest.mark.parametrize("outcome", ["counted", "submitted"])
def test_what_decided_is_on_record_at_once(outcome: str) -> None:
    """Later it would be taken for something that came too late."""
    one = answer(5, outcome)
    ended = record(one.entry, state="APPROVED")
    assert _owing(ended, (one,)) == ended
    assert _untold((one,), ended) == (one,)
    assert _owing(record(one.entry), (one,)).dec == ()
