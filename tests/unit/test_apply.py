"""What becomes of an action at a Mattermost in memory that forgets pending ids at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from sidecar.decisions.actions import Action, Answer, Create, Delete, Patch, Place, Reply
from sidecar.decisions.proof import MAX_ATTEMPTS
from sidecar.decisions.record import ADOPTED, Owed, Record, Slot, post_key
from sidecar.decisions.seen import Context
from sidecar.decisions.settle import Result
from sidecar.errors import LinkGarbled, LinkLost, PostRejected, SidecarError
from sidecar.model import Draft, Post
from sidecar.reconcile.apply import PENDING_ID, Applier
from sidecar.reconcile.lease import Lease, LeaseLost
from sidecar.text.card import TextOptions

CARD = Slot(r="ops/x", c="chan", p="card", s="posted")
WAITING = Slot(r="ops/x", c="chan")
CREATE, REPLY = Create(0, Draft("card"), "h", ("PENDING", 0)), Reply(0, 1, Draft("review"))
PATCH = Patch(0, Draft("card"), "h", ("PENDING", 0), 7)
CONTEXT = Context(bot_id="bot", options=TextOptions(cluster="example.com"), rules_digest="rules")
FORBIDDEN = PostRejected(403, "api.context.permissions.app_error")


class Board:
    """Posts, and what the next calls end with: an error before or ("after") behind the deed, or somebody's post."""

    clock_offset = 0.0

    def __init__(self) -> None:
        self.made: list[Post] = []
        self.patched: list[tuple[str, bool]] = []
        self.marks: list[dict[str, object]] = []
        self.deleted: list[str] = []
        self.stands = True
        self.faults: list[SidecarError | str] = []

    async def _begin(self, guard: Callable[[], None]) -> str:
        await trio.lowlevel.checkpoint()
        guard()
        fault = self.faults.pop(0) if self.faults else ""
        if isinstance(fault, SidecarError):
            raise fault
        return fault

    async def create_post(
        self,
        channel_id: str,
        draft: Draft,
        *,
        key: str,
        tm: dict[str, object],
        root_id: str = "",
        announces: bool = False,
        guard: Any,
    ) -> Post:
        fault = await self._begin(guard)
        self.marks.append(tm)
        user = "eve" if fault == "foreign" else "bot"
        post = Post(f"post{len(self.made)}", channel_id, user, root_id=root_id, message=draft.message, key=key)
        self.made.append(post)
        if fault == "deleted":
            return msgspec.structs.replace(post, delete_at=5)
        if fault == "after":
            raise LinkLost("mattermost", "timeout", "", ambiguous=True)
        return post

    async def patch_post(
        self, post_id: str, draft: Draft, *, tm: dict[str, object], message: bool = False, guard: Any
    ) -> int:
        await self._begin(guard)
        self.marks.append(tm)
        self.patched.append((post_id, message))
        return 9

    async def delete_post(self, post_id: str, *, guard: Any) -> None:
        await self._begin(guard)
        self.deleted.append(post_id)

    async def get_post(self, post_id: str) -> Post | None:
        await trio.lowlevel.checkpoint()
        return Post(post_id, "chan", "bot") if self.stands else None


class Store:
    async def update_plugin_data(self, request_id: str, put: dict[str, str], expect: dict[str, str]) -> None:
        await trio.lowlevel.checkpoint()


class Act:
    def __init__(self, *slots: Slot, owe: tuple[Owed, ...] = ()) -> None:
        self.board = Board()
        self.results: dict[tuple[object, ...], Result] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.newer = False
        self.lease = Lease(Store(), "id-1", "me", 30, lambda _: {}, clock=trio.current_time)  # type: ignore[arg-type]
        self.record = Record(seed="seed", owner="me", at=1, exp=2, seen=("PENDING", 0), posts=slots, owe=owe, q="asked")

    async def apply(self, *actions: Action) -> Result:
        """Carry the actions out; the result of the last one."""
        if not self.lease.held:
            await self.lease.take(self.record, None)
        applier = Applier(
            self.board,  # type: ignore[arg-type]
            None,
            self.lease,
            CONTEXT,
            done=lambda action, result: self.results.update({action.identity: result}),
            count=lambda kind, outcome: self.counts.update([(kind, outcome)]),
            newer=lambda: self.newer,
        )
        await applier.apply(actions)
        return self.results[actions[-1].identity]


LOST, AMBIGUOUS = LinkLost("mattermost", "reset", ""), LinkLost("mattermost", "reset", "", ambiguous=True)


@pytest.mark.parametrize(
    ("faults", "made", "expected"),
    [
        ([], 1, {"attempt": 0}),
        ([LOST], 0, {"error": LinkLost, "ambiguous": False}),
        ([AMBIGUOUS], 0, {"error": LinkLost, "ambiguous": True}),
        (["after"], 1, {"error": LinkLost, "ambiguous": True}),
        ([LinkGarbled("mattermost", "body", "")], 0, {"error": LinkGarbled, "ambiguous": True}),
        ([FORBIDDEN], 0, {"error": PostRejected, "ambiguous": False}),
        # Our own earlier try is under way there: the same key again.
        ([PostRejected(500, PENDING_ID)], 1, {"attempt": 0}),
        ([PostRejected(500, PENDING_ID)] * MAX_ATTEMPTS, 0, {"error": LinkLost, "ambiguous": True}),
        ([PostRejected(500, PENDING_ID), LOST], 0, {"error": LinkLost, "ambiguous": True}),
        # Somebody used our key first, or it was deleted: another key.
        (["foreign"], 2, {"attempt": 1}),
        (["deleted"], 2, {"attempt": 1}),
        (["foreign", "after"], 2, {"error": LinkLost, "ambiguous": True, "attempt": 1}),
        (["foreign"] * MAX_ATTEMPTS, MAX_ATTEMPTS, {"error": PostRejected, "ambiguous": False}),
    ],
)
@pytest.mark.parametrize("action", [CREATE, REPLY])
async def test_how_a_post_is_made(
    autojump_clock: MockClock, action: Action, faults: list[Any], made: int, expected: dict[str, Any]
) -> None:
    act = Act(CARD if action is REPLY else WAITING)
    act.board.faults = faults.copy()
    result = await act.apply(action)
    assert len(act.board.made) == made
    assert (result.error is None) == ("error" not in expected)
    for name, value in expected.items():
        found = getattr(result, name)
        assert isinstance(found, value) if name == "error" else found == value
    if result.error is None:
        kind, which = ("card", 0) if action is CREATE else ("review", 1)
        assert result.post is not None
        assert result.post.key == post_key("seed", kind, "chan", which, result.attempt)


@pytest.mark.parametrize(
    ("message", "faults", "stands", "expected"),
    [
        (False, [], True, [("card", False)]),
        (True, [], True, [("card", True)]),
        # An old post's message may be out of reach; its attachment is not.
        (True, [PostRejected(400, "api.post.update_post.permissions_time_limit.app_error")], True, [("card", False)]),
        # A replica may lag behind.
        (False, [FORBIDDEN, FORBIDDEN], True, [("card", False)]),
        # 403 says the same of a deleted post and of a lost membership: reading it tells them apart.
        (False, [FORBIDDEN] * 3, True, "refused"),
        (False, [FORBIDDEN] * 3, False, "gone"),
        (False, [PostRejected(404, "app.post.get.app_error")], False, "gone"),
        (False, [PostRejected(400, "can_not_update_post_in_deleted")], True, "refused"),
        (False, [LOST], True, "lost"),
    ],
)
async def test_how_a_card_is_patched(
    autojump_clock: MockClock,
    message: bool,  # noqa: FBT001 - a table
    faults: list[Any],
    stands: bool,  # noqa: FBT001 - a table
    expected: Any,
) -> None:
    act = Act(CARD)
    act.board.faults, act.board.stands = faults.copy(), stands
    result = await act.apply(msgspec.structs.replace(PATCH, message=message))
    if isinstance(expected, list):
        assert (result, act.board.patched) == (Result(rules="rules", at=9), expected)
    else:
        assert type(result.error) is {"refused": PostRejected, "gone": type(None), "lost": LinkLost}[expected]
        assert result.gone == (expected == "gone")
        assert act.board.patched == []


@pytest.mark.parametrize(
    ("slot", "action", "kind", "since"),
    [
        (WAITING, CREATE, "card", 0),
        (CARD, REPLY, "review", 0),
        (CARD, PATCH, "card", 7),
        # An adopted post was not made for this: nobody shall decide on it.
        (msgspec.structs.replace(CARD, a=ADOPTED), PATCH, "", 7),
        # What is made in its thread is ours.
        (msgspec.structs.replace(CARD, a=ADOPTED), REPLY, "review", 0),
    ],
)
async def test_what_a_post_is_marked_with(slot: Slot, action: Action, kind: str, since: int) -> None:
    act = Act(slot)
    await act.apply(action)
    (mark,) = act.board.marks
    key = post_key("seed", kind, "chan", int(kind == "review"), 0) if kind else ""
    assert mark == {
        "v": 1, "id": "id-1", "k": key, "n": 0, "state": "PENDING", "q": "asked", "c": "example.com",
        "who": "", "rules": "rules", "since": since,
    }  # fmt: skip


async def test_a_version_that_is_superseded_is_not_shown_in_between() -> None:
    """Its replies are made; the card waits for the newer version, which comes next."""
    act = Act(CARD)
    act.newer = True
    assert (await act.apply(REPLY, PATCH)).skipped
    assert (act.board.patched, len(act.board.made)) == ([], 1)


async def test_replies_in_one_thread_come_one_after_another_and_answers_first() -> None:
    owed = Owed("i", "chan", "answer", "card")
    act = Act(CARD, owe=(owed,))
    await act.apply(REPLY, Reply(0, -1, Draft("end")), Answer(owed))
    assert [post.message for post in act.board.made] == ["answer", "review", "end"]
    assert {post.root_id for post in act.board.made} == {"card"}


async def test_one_failure_stops_nothing_else() -> None:
    act = Act(CARD, WAITING)
    act.board.faults = [LOST]
    await act.apply(REPLY, msgspec.structs.replace(CREATE, position=1), Reply(0, 2, Draft("two")))
    assert sum(result.error is None for result in act.results.values()) == 2


@pytest.mark.parametrize("fault", [None, LOST, FORBIDDEN])
async def test_a_double_is_deleted_and_counted(fault: SidecarError | None) -> None:
    act = Act(CARD)
    act.board.faults = [fault] if fault is not None else []
    result = await act.apply(Delete("twin", Place("chan")))
    assert result.error is fault
    assert act.counts["duplicate", "repaired"] == (fault is None)
    assert act.board.deleted == ([] if fault else ["twin"])


@pytest.mark.parametrize("action", [CREATE, PATCH, REPLY, Delete("twin", Place("chan"))])
async def test_no_write_without_a_valid_lease(autojump_clock: MockClock, action: Action) -> None:
    act = Act(CARD)
    await act.lease.take(act.record, None)
    await trio.sleep(21)
    with pytest.raises(LeaseLost):
        await act.apply(action)
    assert (act.board.made, act.board.patched, act.board.deleted, act.results) == ([], [], [], {})
