"""What people are told: by name, in one sentence, and with nobody's words that could do harm."""

from __future__ import annotations

import pytest

from sidecar.decisions.answers import SILENT, render_answer
from sidecar.decisions.expressions import Expression, Person, Verdict
from sidecar.model import AccessRequest

REQUEST = AccessRequest(id="0186a7f4-0000-7000-8000-0000deadbeef", user="bob", state="PENDING")
OUTCOMES = (
    "submitted", "counted", "on_record", "duplicate", "resolved", "own_request", "long_term", "unknown_kind",
    "unreadable", "conflict",
    "reason_required", "malformed", "edited", "not_reviewer", "not_allowed", "mfa_required", "credential",
    "unsafe_state", "stale", "unheard", "other",
)  # fmt: skip


def verdict(outcome: str, *, username: str = "alice", way: str = "reaction", problem: str = "") -> Verdict:
    said = Expression(user_id="a", verb="approve", way=way, post_id="p", at=1, channel_id="c")  # type: ignore[arg-type]
    return Verdict(said, outcome, Person("a", "alice@example.com", problem, username))


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("way", ["reaction", "reply", "direct"])
def test_every_outcome_has_a_sentence(outcome: str, way: str) -> None:
    draft = render_answer(verdict(outcome, way=way), outcome, REQUEST, "Teleport's words")
    assert draft is not None
    assert draft.message.endswith((".", "`"))
    assert draft.message.startswith("`deadbeef` " if way == "direct" else "@alice ")


@pytest.mark.parametrize("outcome", sorted(SILENT))
def test_machines_and_ghosts_are_not_answered(outcome: str) -> None:
    assert render_answer(verdict(outcome), outcome, REQUEST) is None


def test_strangers_are_not_answered_twice() -> None:
    """Their direct messages get one fixed sentence where they are read; in a thread they are told once."""
    assert render_answer(verdict("unmapped", way="direct", problem="unmapped"), "unmapped", REQUEST) is None
    assert render_answer(verdict("unmapped", problem="unmapped"), "unmapped", REQUEST) is not None


@pytest.mark.parametrize("name", ["all", "channel", "here", "", "al ice", "@all", "alice\n@all", "Alice", "alice."])
def test_a_name_that_could_call_others_is_left_out(name: str) -> None:
    draft = render_answer(verdict("conflict", username=name), "conflict", REQUEST)
    assert draft is not None
    assert "@" not in draft.message


def test_the_words_of_others_stay_in_a_code_span() -> None:
    draft = render_answer(verdict("not_allowed"), "not_allowed", REQUEST, "@all `x` [a](b)\nand more")
    assert draft is not None
    assert draft.message.endswith("This did not count: `@all 'x' [a](b) and more`")
