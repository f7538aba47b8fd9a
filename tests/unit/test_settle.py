"""What an action's result means for the record and the memory."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sidecar.decisions.actions import Answer, Create, Patch, Place, Reply
from sidecar.decisions.record import ADOPTED, Owed, Record, Slot
from sidecar.decisions.seen import Doubt, Memory, Seen
from sidecar.decisions.settle import Result, State, settle, unsaved
from sidecar.errors import LinkLost, PostRejected
from sidecar.model import Draft, Mark, Post

OWED = Owed("i", "dm", "No.")
RECORD = Record(
    seed="s", owner="me", at=1, exp=2, seen=("PENDING", 0), posts=(Slot(r="x", c="c", p="p", s="posted"),), owe=(OWED,)
)
PATCH, REPLY = Patch(0, Draft("x"), "h", ("PENDING", 0), 0), Reply(0, 1, Draft("x"))
CREATE = Create(0, Draft("x"), "h", ("PENDING", 0))
AWAY = LinkLost("mattermost", "reset", "x")


@pytest.mark.parametrize("action", [CREATE, PATCH, REPLY])
@pytest.mark.parametrize(
    ("error_id", "status"),
    [("permissions", "failed"), ("can_not_update_post_in_deleted", "archived"), ("invalid.root_id", "gone")],
)
def test_what_a_refusal_makes_of_a_recipient(action: Any, error_id: str, status: str) -> None:
    after = settle(State(Seen(), RECORD, Memory()), action, Result(error=PostRejected(403, error_id)), 100.0, 35.0)
    assert after.record.posts[0].s == status
    assert (after.seen.failed, after.seen.error, after.memory.doubts) == (frozenset({action.identity}), None, ())


@pytest.mark.parametrize(
    ("action", "doubt"),
    [
        (CREATE, Doubt(Place("c"), 135.0)),
        (PATCH, Doubt(Place("c", "p"), 135.0, card=True)),
        (REPLY, Doubt(Place("c", "p"), 135.0)),
        (Answer(OWED), Doubt(Place("dm"), 135.0)),
    ],
)
def test_a_write_without_an_answer_leaves_a_doubt_in_its_place(action: Any, doubt: Doubt) -> None:
    for ambiguous, doubts in ((True, (doubt,)), (False, ())):
        result = Result(error=AWAY, ambiguous=ambiguous)
        after = settle(State(Seen(), RECORD, Memory()), action, result, 100.0, 35.0)
        assert (after.record, after.seen.error, after.memory.doubts) == (RECORD, AWAY, doubts)


def test_a_save_that_failed_asks_for_a_look_at_once_and_forgets_no_later_one() -> None:
    place = Place("c")
    assert unsaved(Memory(), frozenset({place}), 100.0, overtaken=False).doubts == (Doubt(place, 100.0),)
    due_later = Memory(doubts=(Doubt(place, 135.0, card=True),))
    assert unsaved(due_later, frozenset({place}), 100.0, overtaken=False).doubts == (Doubt(place, 100.0, 2, card=True),)
    overtaken = unsaved(Memory(mine=True), frozenset({place}), 100.0, overtaken=True)
    assert (overtaken.mine, overtaken.touched) == (False, frozenset({"c"}))
    assert overtaken.doubts == (Doubt(place, 100.0, 2, card=True),)


def test_a_patched_card_is_marked_as_is_known_then() -> None:
    """What is said from now on counts in the same look; an adopted post bears no mark and never does."""
    patch = Patch(0, Draft("x"), "h", ("PENDING", 1), 7)
    for key, since in (("k", 7), ("", 0)):
        card = Post("p", "c", "bot", key=key, mark=Mark(k=key))
        after = settle(
            State(Seen(cards={"p": card}), RECORD, Memory()), patch, Result(rules="rules", at=9), 100.0, 35.0
        )
        (slot,) = after.record.posts
        # By Mattermost's own clock from when it was marked: our idea of that clock is a second off.
        assert (slot.h, slot.shown, slot.since) == ("h", ("PENDING", 1), 9)
        marked = after.seen.cards["p"]
        assert isinstance(marked, Post)
        assert (marked.mark.rules, marked.mark.since) == ("rules" if key else "", since)


@pytest.mark.parametrize(("a", "attempt", "left"), [(0, 2, 2), (3, 2, 3), (ADOPTED, 0, ADOPTED), (ADOPTED, 2, ADOPTED)])
def test_an_adopted_post_stays_one_whatever_is_tried_in_its_thread(a: int, attempt: int, left: int) -> None:
    """Else it would lack its key, and a second card would be made."""
    record = msgspec.structs.replace(RECORD, posts=(msgspec.structs.replace(RECORD.posts[0], a=a),))
    after = settle(State(Seen(), record, Memory()), REPLY, Result(attempt=attempt), 100.0, 35.0)
    assert after.record.posts[0].a == left
    # A card that we make in its place is none.
    made = settle(State(Seen(), record, Memory()), CREATE, Result(attempt=attempt), 100.0, 35.0)
    assert made.record.posts[0].a == max(a, attempt)


def test_who_refuses_an_answer_is_owed_none() -> None:
    for error in (None, PostRejected(403, "x")):
        assert settle(State(Seen(), RECORD, Memory()), Answer(OWED), Result(error=error), 100.0, 35.0).record.owe == ()
