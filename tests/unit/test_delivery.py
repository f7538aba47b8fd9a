"""One recipient's messages, each exactly once, against a Mattermost in memory that forgets pending ids at once.

That is its harshest form: nothing but our own look-ups keeps a post from being made twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
import trio
from sidecar.decisions.plan import Plan, Target
from trio.testing import MockClock

from sidecar.decisions import plan as planning
from sidecar.decisions.record import Record, Slot, post_key
from sidecar.errors import LinkGarbled, LinkLost, PostRejected
from sidecar.model import AccessRequest, Draft, Post, Review
from sidecar.reconcile.apply import MAX_ATTEMPTS, PAGE, Deliverer, Doubts, LookupBounded
from sidecar.reconcile.lease import Hold, LeaseLost, LeaseTimes
from sidecar.text.fields import TextOptions

OPTIONS = TextOptions(cluster="example.com")
TARGET = Target("ops/x", "card", "chan")
ALICE = Review("alice", "APPROVED", "fine")
IVAN = Review("ivan", "APPROVED", "go")
# The claim was made at this time of Mattermost's clock, in seconds.
CLAIMED = 100_000
PENDING_ID = "api.post.deduplicate_create_post.pending"


class Board:
    """Channels and posts. `faults` are played one for each creation: see `create_post`."""

    clock_offset = 0.0

    def __init__(self) -> None:
        self.all: list[Post] = []
        self.now = CLAIMED * 1000
        self.faults: list[str] = []
        self.patched: Counter[str] = Counter()
        self.patch_fault: PostRejected | None = None
        self.reads = 0

    @property
    def standing(self) -> list[Post]:
        return [post for post in self.all if not post.delete_at]

    def put(self, *, user_id: str = "bot", **changes: object) -> Post:
        """Make a post by anybody."""
        self.now += 1
        post = Post(id=f"post{len(self.all)}", channel_id="chan", user_id=user_id, create_at=self.now)
        self.all.append(msgspec.structs.replace(post, **changes))
        return self.all[-1]

    async def create_post(
        self,
        channel_id: str,
        draft: Draft,
        *,
        key: str,
        tm: dict[str, object],
        root_id: str = "",
        guard: Callable[[], None] = lambda: None,
    ) -> Post:
        await trio.lowlevel.checkpoint()
        guard()
        fault = self.faults.pop(0) if self.faults else ""
        if fault in ("refused", "before"):
            raise LinkLost("mattermost", "reset", "", ambiguous=fault == "before")
        if fault == "403":
            raise PostRejected(403, "api.context.permissions.app_error")
        if fault == PENDING_ID:
            raise PostRejected(500, fault)
        if fault == "foreign":
            return self.put(user_id="eve", key=key)
        post = self.put(
            channel_id=channel_id, key=key, root_id=root_id, message=draft.message, shown_state=str(tm["state"])
        )
        if fault == "after":
            raise LinkLost("mattermost", "timeout", "", ambiguous=True)
        if fault == "garbled":
            raise LinkGarbled("mattermost", "body", "")
        return post

    async def patch_post(
        self,
        post_id: str,
        draft: Draft,
        *,
        tm: dict[str, object],
        message: bool = False,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        await trio.lowlevel.checkpoint()
        guard()
        if self.patch_fault is not None:
            raise self.patch_fault
        self.patched[post_id] += 1

    async def delete_post(self, post_id: str, *, guard: Callable[[], None] = lambda: None) -> None:
        await trio.lowlevel.checkpoint()
        guard()
        self.all = [msgspec.structs.replace(one, delete_at=1) if one.id == post_id else one for one in self.all]

    async def get_post(self, post_id: str) -> Post | None:
        await trio.lowlevel.checkpoint()
        return next((post for post in self.standing if post.id == post_id), None)

    async def channel_posts(self, channel_id: str, page: int, per_page: int = PAGE) -> list[Post]:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        newest = sorted(
            (post for post in self.standing if post.channel_id == channel_id), key=lambda post: -post.create_at
        )
        return newest[page * per_page : (page + 1) * per_page]

    async def thread(self, post_id: str) -> list[Post]:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        return [post for post in self.standing if post_id in (post.id, post.root_id)]

    async def add_reaction(self, user_id: str, post_id: str, emoji: str) -> None:
        await trio.lowlevel.checkpoint()


class Store:
    """Takes every save."""

    async def read_plugin_data(self, request_id: str) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        return {}

    async def update_plugin_data(self, request_id: str, put: dict[str, str], expect: dict[str, str]) -> None:
        await trio.lowlevel.checkpoint()

    async def ready(self) -> None:
        await trio.lowlevel.checkpoint()


def request(*reviews: Review, state: str = "PENDING") -> AccessRequest:
    return AccessRequest(id="id-1", user="bob", state=state, roles=("dbadmin",), reviews=reviews)


class Sidecar:
    """One life: a record that it holds, and its doubts. `after_crash` is the next one, with what was saved."""

    def __init__(self, board: Board, record: Record, doubts: Doubts) -> None:
        self.board = board
        self.doubts = doubts
        self.counts: Counter[tuple[str, str]] = Counter()
        times, clock = LeaseTimes(30), trio.current_time
        self.hold = Hold(Store(), "id-1", "me", times, record=record, saved="", official=lambda _: {}, clock=clock)
        self.deliverer = Deliverer(board, "bot", self.hold, doubts, count=self._count)

    @classmethod
    async def new(cls, board: Board) -> Sidecar:
        record = Record(seed="seed", owner="me", at=CLAIMED, exp=CLAIMED + 3600, seen=("PENDING", 0), posts=())
        made = cls(board, record, Doubts(cards=False, replies=False))
        await made.hold.claim()
        made.plan(request())
        return made

    async def after_crash(self, saved: Record) -> Sidecar:
        made = Sidecar(self.board, saved, Doubts(cards=True, replies=True))
        await made.hold.save()
        return made

    def plan(self, now: AccessRequest) -> Plan:
        step = planning.plan(now, self.hold.record, (TARGET,), OPTIONS)
        self.hold.record = step.record
        return step

    async def deliver(self, now: AccessRequest) -> None:
        for work in self.plan(now).work:
            await self.deliverer.deliver(work)

    async def until_delivered(self, now: AccessRequest) -> None:
        """Try again as long as the link fails, as the reconciler does."""
        for _ in range(20):
            try:
                await self.deliver(now)
            except (LinkLost, LinkGarbled):
                continue
            return
        raise AssertionError("never delivered")

    @property
    def slot(self) -> Slot:
        return self.hold.record.posts[0]

    def _count(self, kind: str, outcome: str) -> None:
        self.counts[kind, outcome] += 1


def cards(board: Board) -> list[Post]:
    return [post for post in board.standing if not post.root_id and post.user_id == "bot"]


def replies(board: Board) -> list[str]:
    return [post.message.partition("\n")[0] for post in board.standing if post.root_id]


FAULTS = ["refused", "before", "after", "garbled", PENDING_ID, "foreign"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("position", [0, 1, 2, 3])
async def test_every_failure_of_every_post_is_made_good_once(
    autojump_clock: MockClock, fault: str, position: int
) -> None:
    """The card, two reviews and the end, each failing in each way."""
    board = Board()
    sidecar = await Sidecar.new(board)
    board.faults = [""] * position + [fault] * 2
    done = request(ALICE, IVAN, state="APPROVED")
    await sidecar.until_delivered(done)
    assert len(cards(board)) == 1
    assert replies(board) == ["`alice` reviewed: APPROVED", "`ivan` reviewed: APPROVED", "Request is now APPROVED"]
    assert sidecar.slot.rep == (-1, 1, 2)
    before = len(board.all)
    await sidecar.deliver(done)
    assert len(board.all) == before


@pytest.mark.parametrize("posts", range(5))
async def test_killed_after_any_number_of_posts_without_a_record(posts: int) -> None:
    """The next life finds by key what the first one made, and makes the rest."""
    board = Board()
    first = await Sidecar.new(board)
    done = request(ALICE, IVAN, state="APPROVED")
    first.plan(done)
    saved = first.hold.record
    board.faults = [""] * posts + ["refused"]
    try:
        await first.deliver(done)
    except LinkLost:
        assert posts < 4
    second = await first.after_crash(saved)
    board.faults = []
    await second.until_delivered(done)
    assert len(cards(board)) == 1
    assert len(replies(board)) == len(set(replies(board))) == 3


async def test_a_card_that_is_found_is_brought_up_to_date() -> None:
    """It was made of an earlier version of the request."""
    board = Board()
    first = await Sidecar.new(board)
    await first.deliver(request())
    waiting = msgspec.structs.replace(first.hold.record, posts=(Slot(r="ops/x", c="chan"),))
    second = await first.after_crash(waiting)
    await second.deliver(request(ALICE))
    assert board.patched[cards(board)[0].id] == 1
    assert second.slot.shown == ("PENDING", 1)


async def test_who_was_never_in_doubt_looks_nothing_up() -> None:
    board = Board()
    sidecar = await Sidecar.new(board)
    await sidecar.deliver(request(ALICE))
    assert board.reads == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": "eve"},
        {"channel_id": "elsewhere"},
        {"original_id": "post7"},
        {"delete_at": 5},
        {"key": "another"},
    ],
)
async def test_what_only_looks_like_ours_is_not(changes: dict[str, object]) -> None:
    """Another's post with our key, a former version of an edited one, a deleted one."""
    board = Board()
    first = await Sidecar.new(board)
    first.plan(request())
    key = post_key("seed", "card", "chan", 0, 0)
    board.put(**({"key": key} | changes))  # type: ignore[arg-type]
    second = await first.after_crash(first.hold.record)
    await second.deliver(request())
    assert second.counts["card", "ok"] == 1


async def test_of_two_the_older_is_kept() -> None:
    board = Board()
    first = await Sidecar.new(board)
    first.plan(request())
    key = post_key("seed", "card", "chan", 0, 0)
    older, younger = board.put(key=key), board.put(key=key)
    second = await first.after_crash(first.hold.record)
    await second.deliver(request())
    assert [post.id for post in cards(board)] == [older.id]
    assert second.slot.p == older.id != younger.id
    assert second.counts["duplicate", "repaired"] == 1


async def test_a_post_of_a_raised_attempt_is_found_by_the_next_life() -> None:
    """Somebody took our first key; the second was used and not recorded."""
    board = Board()
    first = await Sidecar.new(board)
    first.plan(request())
    saved = first.hold.record
    board.faults = ["foreign", "after"]
    with pytest.raises(LinkLost):
        await first.deliver(request())
    second = await first.after_crash(saved)
    await second.deliver(request())
    assert len(cards(board)) == 1


async def test_somebody_who_takes_every_key_fails_that_recipient_alone() -> None:
    board = Board()
    sidecar = await Sidecar.new(board)
    board.faults = ["foreign"] * MAX_ATTEMPTS
    await sidecar.deliver(request())
    assert (sidecar.slot.s, sidecar.slot.p) == ("failed", "")


async def test_a_look_up_reads_back_to_the_claim_and_no_further() -> None:
    """Ten minutes before it, by Mattermost's clock, for clocks that disagree."""
    board = Board()
    board.now = (CLAIMED - 3600) * 1000
    for _ in range(1000):
        board.put(user_id="eve")
    board.now = CLAIMED * 1000
    first = await Sidecar.new(board)
    first.plan(request())
    second = await first.after_crash(first.hold.record)
    await second.deliver(request())
    assert board.reads == 1
    assert len(cards(board)) == 1


async def test_a_look_up_heeds_a_clock_that_is_an_hour_behind() -> None:
    board = Board()
    board.clock_offset = -3600.0
    board.now = (CLAIMED - 3600) * 1000
    ours = board.put(key=post_key("seed", "card", "chan", 0, 0))
    for _ in range(300):
        board.put(user_id="eve")
    first = await Sidecar.new(board)
    first.plan(request())
    second = await first.after_crash(first.hold.record)
    await second.deliver(request())
    assert [post.id for post in cards(board)] == [ours.id]


async def test_a_channel_too_busy_to_prove_anything_is_left_for_later() -> None:
    board = Board()
    for _ in range(5001):
        board.put(user_id="eve")
    first = await Sidecar.new(board)
    first.plan(request())
    second = await first.after_crash(first.hold.record)
    with pytest.raises(LookupBounded):
        await second.deliver(request())
    assert (board.reads, cards(board)) == (25, [])


async def test_no_write_without_a_valid_lease(autojump_clock: MockClock) -> None:
    board = Board()
    sidecar = await Sidecar.new(board)
    await trio.sleep(21)
    with pytest.raises(LeaseLost):
        await sidecar.deliver(request())
    assert board.all == []


@pytest.mark.parametrize(
    ("error", "deleted", "status"),
    [
        (PostRejected(403, "api.context.permissions.app_error"), True, "gone"),
        (PostRejected(403, "api.context.permissions.app_error"), False, "failed"),
        (PostRejected(404, "app.post.get.app_error"), True, "gone"),
        (PostRejected(400, "api.post.update_post.can_not_update_post_in_deleted.error"), False, "archived"),
    ],
)
async def test_why_a_card_cannot_be_patched(
    autojump_clock: MockClock,
    error: PostRejected,
    deleted: bool,  # noqa: FBT001 - a table
    status: str,
) -> None:
    """403 says the same of a deleted post and of a lost membership: reading it tells them apart."""
    board = Board()
    sidecar = await Sidecar.new(board)
    await sidecar.deliver(request())
    if deleted:
        await board.delete_post(sidecar.slot.p)
    board.patch_fault = error
    changed = msgspec.structs.replace(request(), reason="another")
    await sidecar.deliver(changed)
    assert sidecar.slot.s == status


async def test_a_late_double_of_a_card_is_replaced_by_the_older(autojump_clock: MockClock) -> None:
    """The first try was carried out after the second, on a node that knew nothing of it, but is dated earlier."""
    board = Board()
    sidecar = await Sidecar.new(board)
    board.faults = ["before"]
    await sidecar.until_delivered(request(ALICE))
    second = sidecar.slot.p
    late = board.put(key=board.all[0].key, create_at=CLAIMED * 1000)
    assert not await sidecar.deliverer.verify(trio.current_time() - 35)
    await trio.sleep(40)
    await sidecar.hold.save()
    assert sidecar.doubts
    assert await sidecar.deliverer.verify(trio.current_time() - 35)
    assert not sidecar.doubts
    assert sidecar.slot.p == late.id != second
    await sidecar.deliver(request(ALICE))
    assert board.patched[late.id] == 1
    assert sidecar.slot.rep == (1,)


async def test_a_late_card_of_a_request_that_has_ended_is_closed_too(autojump_clock: MockClock) -> None:
    """It was looked for when the request ended, and was carried out after that."""
    board = Board()
    sidecar = await Sidecar.new(board)
    board.faults = ["before"]
    with pytest.raises(LinkLost):
        await sidecar.deliver(request())
    await sidecar.deliverer.close(0, "EXPIRED")
    assert sidecar.slot.s == "gone"
    late = board.put(key=post_key("seed", "card", "chan", 0, 0))
    await trio.sleep(40)
    await sidecar.hold.save()
    assert await sidecar.deliverer.verify(trio.current_time() - 35)
    assert planning.closing(sidecar.hold.record, 0.0).positions == (0,)
    await sidecar.deliverer.close(0, "EXPIRED")
    assert (sidecar.slot.p, sidecar.slot.s, board.patched[late.id]) == (late.id, "posted", 1)


async def test_a_late_answer_in_a_direct_channel_is_not_taken_for_the_card_there(autojump_clock: MockClock) -> None:
    board = Board()
    sidecar = await Sidecar.new(board)
    await sidecar.deliver(request())
    card = sidecar.slot.p
    board.faults = ["after"]
    with pytest.raises(LinkLost):
        await sidecar.deliverer.answer("chan", "", "alice:approve", Draft("done"))
    await trio.sleep(40)
    assert not await sidecar.deliverer.verify(trio.current_time() - 35)
    assert sidecar.slot.p == card


async def test_a_version_that_is_superseded_is_not_shown_in_between() -> None:
    """Its replies are made; the card waits for the newer version, which comes next."""
    board = Board()
    sidecar = await Sidecar.new(board)
    await sidecar.deliver(request())
    newer = True
    sidecar.deliverer = Deliverer(
        board, "bot", sidecar.hold, sidecar.doubts, count=sidecar._count, superseded=lambda: newer
    )
    await sidecar.deliver(request(ALICE))
    assert (board.patched.total(), len(replies(board))) == (0, 1)
    newer = False
    await sidecar.deliver(request(ALICE, IVAN, state="APPROVED"))
    assert (board.patched.total(), len(replies(board))) == (1, 3)
    assert sidecar.slot.shown == ("APPROVED", 2)


async def test_an_inherited_doubt_does_not_cut_a_younger_one_short(autojump_clock: MockClock) -> None:
    """Who takes over may get no answer itself: its own write may come late, whatever became of the dead holder's."""
    doubts = Doubts(cards=True, replies=True)
    doubts.add("ours", "c", "")
    doubts.inherit("ours", "c")
    doubts.inherit("theirs", "c")
    assert doubts.ripe(trio.current_time() - 1) == [("theirs", "c", "")]
    await trio.sleep(2)
    assert len(doubts.ripe(trio.current_time() - 1)) == 2
