"""Any prefix, repetition and order of events ends in the same messages, whatever was cut off in between.

The room below is a Mattermost of dictionaries: a post with an identity that exists is found, not made again, which
is what keys and look-ups give the real one.
"""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from sidecar.decisions.plan import Plan, Target, Work

from sidecar.decisions import plan as planning
from sidecar.decisions.record import Record, decode, encode
from sidecar.model import APPROVED, DENIED, PENDING, PROMOTED, AccessRequest, Draft, Review
from sidecar.text import card as text
from sidecar.text.fields import TextOptions

OPTIONS = TextOptions(cluster="example.com")
TARGETS = (
    Target("ops/x", "card", "chan-ops"),
    Target("dba/y", "card", "chan-dba"),
    Target("~y", "card", "chan-dba"),
    Target("bob@example.com", "requester", "chan-bob"),
)
NAMES = frozenset(target.name for target in TARGETS if target.name != "~y")


@st.composite
def histories(draw: st.DrawFn) -> list[AccessRequest]:
    """Every version of one request, oldest first: reviews, then perhaps a turn, then perhaps another."""
    reviews = [
        Review(f"reviewer{n}", draw(st.sampled_from([APPROVED, DENIED])), draw(st.text(max_size=5)))
        for n in range(draw(st.integers(0, 4)))
    ]
    request = AccessRequest(id="id-1", user="bob", state=PENDING, roles=("dba",), expires=5000.0)
    history = [msgspec.structs.replace(request, reviews=tuple(reviews[:n])) for n in range(len(reviews) + 1)]
    for states in ((APPROVED, PROMOTED), (DENIED,)):
        if draw(st.booleans()):
            state = draw(st.sampled_from(states))
            history.append(msgspec.structs.replace(history[-1], state=state, resolve_reason=draw(st.text(max_size=5))))
    return history


class Room:
    """What people see, and the record that would survive a crash."""

    def __init__(self, request: AccessRequest) -> None:
        self.cards: dict[str, Draft] = {}
        self.replies: dict[tuple[str, int], Draft] = {}
        record = Record(seed="s", owner="", at=1000, exp=5000, seen=(request.state, len(request.reviews)), posts=())
        # The claim is saved before anything is posted.
        self.saved = encode(self.look(record, request).record)

    @property
    def record(self) -> Record:
        record = decode(self.saved)
        assert isinstance(record, Record)
        return record

    def look(self, record: Record, request: AccessRequest) -> Plan:
        return planning.plan(request, record, TARGETS, OPTIONS)

    def act(self, request: AccessRequest, deeds: int | None = None, *, save: bool = True) -> None:
        """One look that is cut off after so many deeds, with or without what it had done on record."""
        step = self.look(self.record, request)
        if step.stale:
            assert not step.work
            return
        record = step.record
        left = 10_000 if deeds is None else deeds
        for work in step.work:
            for deed in self._deeds(work):
                if left <= 0:
                    break
                left -= 1
                record = self._carry_out(record, work, deed)
        if save:
            self.saved = encode(record)

    @staticmethod
    def _deeds(work: Work) -> list[int]:
        """The numbers of the replies, and 0 for the card: first when it is made, last when it is patched."""
        replies = [reply.number for reply in work.replies]
        if work.card is None:
            return replies
        return [0, *replies] if work.create else [*replies, 0]

    def _carry_out(self, record: Record, work: Work, number: int) -> Record:
        slot = record.posts[work.position]
        if number:
            draft = next(reply.draft for reply in work.replies if reply.number == number)
            self.replies.setdefault((slot.c, number), draft)
            slot = planning.replied(slot, number)
        else:
            assert work.card is not None
            self.cards[slot.c] = work.card
            slot = msgspec.structs.replace(slot, p=f"post-{slot.c}", s="posted", h=work.card_hash, shown=record.seen)
        posts = list(record.posts)
        posts[work.position] = slot
        return msgspec.structs.replace(record, posts=tuple(posts))


def wanted(request: AccessRequest) -> dict[int, Draft]:
    """The replies that the last version of a request must have in each thread."""
    replies = {n + 1: text.render_review_reply(request, n) for n in range(len(request.reviews))}
    if request.state != PENDING:
        replies[planning.end_number(request.state)] = text.render_end_reply(request, request.state)
    return replies


@given(st.data(), histories())
def test_any_order_and_any_crash_end_in_the_same_messages(data: st.DataObject, history: list[AccessRequest]) -> None:
    """However the versions come, and wherever a look is cut off, the last whole look makes everything true."""
    pending = [request for request in history if request.state == PENDING]
    room = Room(data.draw(st.sampled_from(pending), label="claimed"))
    for request in data.draw(st.lists(st.sampled_from(history), max_size=8), label="events"):
        room.act(
            request,
            data.draw(st.none() | st.integers(0, 12), label="deeds"),
            save=data.draw(st.booleans(), label="saved"),
        )
    last = history[-1]
    if data.draw(st.booleans(), label="said anew"):
        # The same version may say something else at last. What it said before does not come back.
        last = msgspec.structs.replace(last, reason="anew")
    room.act(last)
    kinds = {"chan-ops": "card", "chan-dba": "card", "chan-bob": "requester"}
    assert room.cards == {
        channel: text.render_card(last, options=OPTIONS, kind=kind)  # type: ignore[arg-type]
        for channel, kind in kinds.items()
    }
    ends = {planning.end_number(request.state) for request in history if request.state != PENDING}
    for channel in kinds:
        told = {number: draft for (where, number), draft in room.replies.items() if where == channel}
        assert wanted(last).items() <= told.items()
        # A turn that was overtaken may have been told; nothing else.
        assert told.keys() - wanted(last).keys() <= ends
    assert planning.settled(last, room.record, NAMES)
    assert not room.look(room.record, last).work


@given(st.data(), histories())
def test_what_is_older_than_what_was_acted_on_changes_nothing(
    data: st.DataObject, history: list[AccessRequest]
) -> None:
    """P4: a cached list, a replay, another Auth Service."""
    pending = [request for request in history if request.state == PENDING]
    room = Room(pending[0])
    newer = data.draw(st.sampled_from(history))
    room.act(newer)
    before = (room.saved, dict(room.cards), dict(room.replies))
    for request in history:
        if request.version < newer.version:
            assert room.look(room.record, request).stale
            room.act(request)
    assert before == (room.saved, room.cards, room.replies)


@given(histories(), st.integers(0, 20))
def test_what_is_gone_is_closed_once(history: list[AccessRequest], deeds: int) -> None:
    """A request that goes away after any look leaves no card that says PENDING, and ends as done."""
    pending = [request for request in history if request.state == PENDING]
    room = Room(pending[0])
    room.act(history[-1], deeds)
    record = room.record
    closing = planning.closing(record, now=6000.0)
    posts = list(record.posts)
    for position in closing.positions:
        status = "posted" if posts[position].p else "gone"
        shown = (closing.state, 0)
        posts[position] = msgspec.structs.replace(posts[position], s=status, shown=shown)
    ended = planning.closed(msgspec.structs.replace(record, posts=tuple(posts), seen=(closing.state, 0)))
    assert ended.done
    assert not planning.closing(ended, now=6000.0).positions
    assert all(slot.shown[0] != PENDING for slot in ended.posts)
