"""The decisions about posts, as a table: what a request, a record and recipients lead to."""

from __future__ import annotations

import msgspec
import pytest
from sidecar.decisions.plan import Plan, Target

from sidecar.decisions import plan as planning
from sidecar.decisions.record import MAX_BYTES, Record, Slot, encode
from sidecar.model import AccessRequest, Review
from sidecar.text.fields import TextOptions

OPTIONS = TextOptions(cluster="example.com")
ALICE = Review("alice", "APPROVED", "fine")
IVAN = Review("ivan", "APPROVED", "go")
OPS = Target("ops/x", "card", "chan-ops")
BOB = Target("bob@example.com", "requester", "chan-bob")
NOBODY = Target("ops/typo", "card", "")


def make_request(state: str = "PENDING", *reviews: Review, **more: object) -> AccessRequest:
    return AccessRequest(id="id-1", user="bob", state=state, roles=("dbadmin",), reviews=reviews, **more)  # type: ignore[arg-type]


def make_record(*slots: Slot, seen: tuple[str, int] = ("PENDING", 0), **more: object) -> Record:
    return Record(seed="s", owner="", at=1000, exp=5000, seen=seen, posts=slots, **more)  # type: ignore[arg-type]


def shown(request: AccessRequest, kind: str = "card", **changes: object) -> Slot:
    """A slot whose card shows `request` and has all its replies."""
    empty = make_record(seen=(request.state, len(request.reviews)))
    step = planning.plan(request, empty, (Target("ops/x", kind, "chan-ops"),), OPTIONS, announce=True)  # type: ignore[arg-type]
    slot = msgspec.structs.replace(
        step.record.posts[0],
        p="post-1",
        s="posted",
        h=step.work[0].card_hash,
        shown=(request.state, len(request.reviews)),
        rep=tuple(range(1, len(request.reviews) + 1))
        + (() if request.state == "PENDING" else (planning.end_number(request.state),)),
    )
    return msgspec.structs.replace(slot, **changes)


def summary(step: Plan) -> list[tuple[str, str, list[int]]]:
    """(channel, what happens to the card, replies) of each recipient with work."""
    return [
        (
            step.record.posts[work.position].c,
            "post" if work.create else "patch" if work.card else "-",
            [reply.number for reply in work.replies],
        )
        for work in step.work
    ]


PENDING = make_request()
REVIEWED = make_request("PENDING", ALICE)
APPROVED = make_request("APPROVED", ALICE, IVAN)
DENIED = make_request("DENIED", ALICE, IVAN)
FRESH = make_record()


@pytest.mark.parametrize(
    ("request_now", "record", "targets", "expected"),
    [
        pytest.param(PENDING, FRESH, (OPS,), [("chan-ops", "post", [])], id="a new request is announced"),
        pytest.param(
            PENDING, FRESH, (OPS, BOB), [("chan-ops", "post", []), ("chan-bob", "post", [])], id="the requester too"
        ),
        pytest.param(PENDING, FRESH, (), [], id="nobody to tell"),
        pytest.param(PENDING, FRESH, (NOBODY,), [], id="a recipient that cannot be reached waits"),
        pytest.param(PENDING, FRESH, (NOBODY, OPS), [("chan-ops", "post", [])], id="and stops nobody else"),
        pytest.param(
            PENDING,
            FRESH,
            (OPS, Target("other name", "card", "chan-ops")),
            [("chan-ops", "post", [])],
            id="one channel, once",
        ),
        pytest.param(
            REVIEWED, FRESH, (OPS,), [("chan-ops", "post", [1])], id="reviews made before the announcement are told"
        ),
        pytest.param(PENDING, make_record(shown(PENDING)), (OPS,), [], id="nothing changed, nothing happens"),
        pytest.param(
            REVIEWED,
            make_record(shown(PENDING)),
            (OPS,),
            [("chan-ops", "patch", [1])],
            id="a review patches and replies",
        ),
        pytest.param(
            APPROVED,
            make_record(shown(PENDING)),
            (OPS,),
            [("chan-ops", "patch", [1, 2, -1])],
            id="two reviews and the end in one patch",
        ),
        pytest.param(
            DENIED,
            make_record(shown(APPROVED), seen=("APPROVED", 2)),
            (OPS,),
            [("chan-ops", "patch", [-2])],
            id="APPROVED may still become DENIED",
        ),
        pytest.param(
            APPROVED,
            make_record(Slot(r="ops/x", c="chan-ops")),
            (OPS,),
            [("chan-ops", "post", [1, 2, -1])],
            id="owed while PENDING, resolved meanwhile: still told",
        ),
        pytest.param(
            APPROVED, make_record(Slot(r="ops/x", c="chan-ops", s="failed")), (OPS,), [], id="failed and over: not told"
        ),
        pytest.param(
            APPROVED,
            make_record(shown(PENDING)),
            (OPS, BOB),
            [("chan-ops", "patch", [1, 2, -1])],
            id="nobody new once over",
        ),
        pytest.param(REVIEWED, make_record(shown(PENDING, s="gone")), (OPS,), [], id="a deleted card stays deleted"),
        pytest.param(
            REVIEWED, make_record(shown(PENDING, s="archived")), (OPS,), [], id="an archived channel is left alone"
        ),
        pytest.param(
            APPROVED,
            make_record(shown(PENDING, s="failed")),
            (OPS,),
            [("chan-ops", "patch", [1, 2, -1])],
            id="a card that could not be patched must still become true",
        ),
        pytest.param(
            PENDING,
            make_record(Slot(r="ops/typo", s="failed")),
            (Target("ops/typo", "card", "chan-new"),),
            [("chan-new", "post", [])],
            id="a failed recipient that is found is told",
        ),
        pytest.param(
            PENDING,
            make_record(Slot(r="chan-ops", c="chan-ops", p="post-9", s="posted", shown=("PENDING", 0))),
            (OPS,),
            [("chan-ops", "patch", [])],
            id="a post of the official plugin is taken over",
        ),
    ],
)
def test_what_is_done(
    request_now: AccessRequest, record: Record, targets: tuple[Target, ...], expected: list[tuple[str, str, list[int]]]
) -> None:
    assert summary(planning.plan(request_now, record, targets, OPTIONS)) == expected


@pytest.mark.parametrize(
    ("request_now", "record"),
    [
        (PENDING, make_record(shown(REVIEWED), seen=("PENDING", 1))),
        (REVIEWED, make_record(shown(APPROVED), seen=("APPROVED", 2))),
        (APPROVED, make_record(shown(DENIED), seen=("DENIED", 2))),
        (DENIED, make_record(shown(PENDING), seen=("EXPIRED", 0))),
    ],
)
def test_an_older_version_changes_nothing(request_now: AccessRequest, record: Record) -> None:
    step = planning.plan(request_now, record, (OPS,), OPTIONS)
    assert step.stale
    assert step.work == ()
    assert step.record == record


def test_doing_what_the_plan_says_leaves_nothing_to_do() -> None:
    """The plan converges: its own outcome needs no further step."""
    step = planning.plan(APPROVED, make_record(shown(PENDING)), (OPS,), OPTIONS)
    work = step.work[0]
    done = msgspec.structs.replace(
        step.record.posts[0], h=work.card_hash, shown=("APPROVED", 2), rep=tuple(reply.number for reply in work.replies)
    )
    record = msgspec.structs.replace(step.record, posts=(done,))
    assert planning.plan(APPROVED, record, (OPS,), OPTIONS).work == ()
    assert planning.settled(APPROVED, record, frozenset({"ops/x"}))


def test_a_failed_recipient_is_left_alone_until_it_is_due() -> None:
    record = make_record(Slot(r="ops/x", c="chan-ops", s="failed"))
    assert planning.plan(PENDING, record, (OPS,), OPTIONS, retry_failed=False).work == ()
    assert planning.plan(PENDING, record, (OPS,), OPTIONS, retry_failed=True).work != ()


def test_a_channel_where_writes_crossed_is_patched_once_more() -> None:
    record = make_record(shown(PENDING))
    step = planning.plan(PENDING, record, (OPS,), OPTIONS, touched=frozenset({"chan-ops"}))
    assert summary(step) == [("chan-ops", "patch", [])]


def test_a_resolved_request_is_announced_without_replies_where_that_is_wanted() -> None:
    step = planning.plan(APPROVED, make_record(seen=("APPROVED", 2)), (OPS,), OPTIONS, announce=True)
    assert summary(step) == [("chan-ops", "post", [])]


def test_who_could_not_be_looked_up_is_told_even_if_the_request_is_over() -> None:
    """Mattermost did not say whether the recipient exists: that is no reason to leave them out."""
    unknown = Target("ops/typo", "card", "", owed=True)
    record = planning.plan(PENDING, FRESH, (unknown, OPS), OPTIONS).record
    assert [slot.s for slot in record.posts] == ["waiting", "waiting"]
    reached = msgspec.structs.replace(NOBODY, channel_id="chan-typo")
    record = msgspec.structs.replace(record, posts=(record.posts[0], shown(PENDING)))
    assert summary(planning.plan(DENIED, record, (reached, OPS), OPTIONS))[0] == ("chan-typo", "post", [])
    # It does not exist, as it turned out.
    step = planning.plan(DENIED, record, (NOBODY, OPS), OPTIONS)
    assert step.record.posts[0].s == "failed"
    step = planning.plan(DENIED, step.record, (reached, OPS), OPTIONS)
    assert step.record.posts[0].c == ""
    # It is a name of a channel that was told already.
    same = msgspec.structs.replace(NOBODY, channel_id="chan-ops")
    assert [slot.r for slot in planning.plan(PENDING, record, (same, OPS), OPTIONS).record.posts] == ["ops/x"]


def test_recipients_beyond_the_room_of_a_record_are_refused_and_counted() -> None:
    targets = tuple(Target(f"user{n}@example.com", "card", f"channel-{n:017}") for n in range(600))
    step = planning.plan(PENDING, FRESH, targets, OPTIONS)
    assert 300 <= len(step.record.posts) < 600
    assert step.refused == 600 - len(step.record.posts)
    assert len(encode(step.record)) <= MAX_BYTES


@pytest.mark.parametrize(
    ("seen", "now", "state"),
    [
        (("PENDING", 0), 5000, "EXPIRED"),
        (("PENDING", 1), 4999, "EXPIRED"),
        (("PENDING", 0), 4000, "REMOVED"),
        # the last holder died between reading this and showing it
        (("APPROVED", 2), 9000, "APPROVED"),
        (("STATE 9", 0), 9000, "STATE 9"),
        (("REMOVED", 0), 9000, "REMOVED"),
    ],
)
def test_how_a_request_that_is_gone_ends(seen: tuple[str, int], now: float, state: str) -> None:
    record = make_record(shown(PENDING), seen=seen)
    closing = planning.closing(record, now)
    assert closing.state == state
    assert closing.positions == (0,)


@pytest.mark.parametrize("state", ["APPROVED", "DENIED", "EXPIRED", "STATE 9"])
def test_a_card_that_says_how_it_ended_is_left_alone_when_the_request_goes(state: str) -> None:
    record = make_record(shown(PENDING, shown=(state, 2)), seen=(state, 2))
    assert planning.closing(record, 9000).positions == ()
    assert planning.closed(record).done


def test_a_request_is_done_only_when_every_card_says_so() -> None:
    ended = shown(PENDING, shown=("EXPIRED", 0))
    open_card = shown(PENDING, s="failed")
    assert planning.closed(make_record(ended, seen=("EXPIRED", 0))).done
    assert not planning.closed(make_record(ended, open_card, seen=("EXPIRED", 0))).done


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "somebody"},
        {"seen": ("PENDING", 1)},
        {"posts": (shown(PENDING, s="waiting"),)},
        {"posts": (shown(PENDING, s="failed"),)},
        {"posts": (shown(PENDING, shown=("", 0)),)},
        {"posts": ()},
    ],
)
def test_what_is_not_settled(changes: dict[str, object]) -> None:
    record = make_record(shown(PENDING))
    assert planning.settled(PENDING, record, frozenset({"ops/x"}))
    assert not planning.settled(PENDING, msgspec.structs.replace(record, **changes), frozenset({"ops/x"}))
