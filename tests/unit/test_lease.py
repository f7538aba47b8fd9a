"""Holding a record: for how long writes may start, what a lost answer means, and that two never hold it at once.

The store is a compare-and-swap in memory, as strict as Teleport's. The clock of the lease is trio's, which jumps.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import trio
from trio.testing import MockClock

from sidecar.decisions.record import KEY, Record, Slot, Stored, decode, encode
from sidecar.decisions.view import TAKEOVER
from sidecar.errors import Conflict, LinkLost, LinkRefused, RequestGone
from sidecar.reconcile.lease import Lease, LeaseLost

AWAY = LinkLost("teleport", "unavailable", "cut", ambiguous=True)
RECORD = Record(seed="s", owner="me", at=1, exp=2, seen=("PENDING", 0), posts=(Slot(r="ops/x"),))


class Store:
    """Plugin data of one request; `faults` are played one for each write: before it, after it, a second later, ..."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.writes = 0
        self.reads = 0
        self.faults: list[str] = []
        self.late: list[Callable[[], None]] = []
        self.after_read: list[Callable[[], None]] = []
        self.gone = False

    async def read_plugin_data(self, request_id: str) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        if "read" in self.faults:
            self.faults.remove("read")
            raise AWAY
        found = dict(self.data)
        for swap in self.after_read:
            swap()
        self.after_read.clear()
        return found

    async def update_plugin_data(self, request_id: str, put: dict[str, str], expect: dict[str, str]) -> None:
        await trio.lowlevel.checkpoint()
        self.writes += 1
        fault = self.faults.pop(0) if self.faults and self.faults[0] != "read" else ""
        if fault == "refuse":
            raise LinkRefused("teleport", "denied", "no")
        if fault == "late":
            self.late.append(lambda: self._swap(put, expect))
        if fault == "later":
            self.after_read.append(lambda: self._swap(put, expect))
        if fault in ("before", "late", "later"):
            raise AWAY
        self._swap(put, expect)
        if fault == "slow":
            await trio.sleep(1)
        if fault == "after":
            raise AWAY

    async def ready(self) -> None:
        await trio.sleep(0.1)
        for swap in self.late:
            swap()
        self.late.clear()

    def _swap(self, put: dict[str, str], expect: dict[str, str]) -> None:
        if self.gone:
            raise RequestGone("x")
        if any(self.data.get(key, "") != value for key, value in expect.items()):
            raise Conflict("x")
        self.data = {key: value for key, value in (self.data | put).items() if value}

    @property
    def record(self) -> Record:
        found = decode(self.data[KEY])
        assert isinstance(found, Record)
        return found


def lease(store: Store, owner: str = "me", seconds: int = 30) -> Lease:
    return Lease(store, "x", owner, seconds, lambda _: {}, clock=trio.current_time)  # type: ignore[arg-type]


async def claimed(store: Store) -> Lease:
    mine = lease(store)
    await mine.take(RECORD, None)
    return mine


async def test_no_write_starts_in_the_last_third_of_a_lease(autojump_clock: MockClock) -> None:
    mine = await claimed(Store())
    await trio.sleep(19.9)
    before = mine.valid
    await trio.sleep(0.2)
    assert (before, mine.valid) == (True, False)


async def test_renewing_keeps_it_valid_and_saves_progress(autojump_clock: MockClock) -> None:
    store = Store()
    mine = await claimed(store)
    async with mine.renewing():
        mine.record = msgspec.structs.replace(mine.record, posts=(Slot(r="ops/x", c="c", p="post", s="posted"),))
        await trio.sleep(95)
        assert mine.valid
        assert store.record.posts[0].p == "post"
        assert store.record.n == 1 + 9
    assert store.record.owner == "me"
    await mine.save(release=True)
    assert (store.record.owner, store.record.n) == ("", 11)


@pytest.mark.parametrize("seconds", [1, 2, 30, 300])
def test_nobody_takes_over_while_a_write_may_still_be_under_way(seconds: int) -> None:
    """The last write starts a third before the end and takes a third at most; others wait longer than the whole."""
    last_write_ends = seconds - seconds / 3 + seconds / 3
    assert last_write_ends <= seconds < seconds * TAKEOVER
    assert RECORD.lease_s * TAKEOVER == 35


@pytest.mark.parametrize(
    "faults", [["before"], ["after"], ["after", "read"], ["before", "before"], ["late"], ["later"]]
)
async def test_a_lost_answer_is_decided_by_reading_back(autojump_clock: MockClock, faults: list[str]) -> None:
    """Carried out, not carried out, or carried out late: in the end it is there once, and it is ours."""
    store = Store()
    store.faults = faults.copy()
    mine = await claimed(store)
    assert store.record.n == 1
    assert mine.saved == store.data[KEY]
    assert mine.valid
    store.faults = faults.copy()
    await mine.save()
    assert store.record.n == 2
    assert mine.saved == store.data[KEY]


async def test_a_write_that_landed_long_before_it_was_known_gives_no_fresh_lease(autojump_clock: MockClock) -> None:
    """Others have watched it since it landed, not since its answer came."""
    store = Store()
    mine = await claimed(store)

    async def away_for_long() -> None:
        await trio.sleep(21)

    store.ready = away_for_long  # type: ignore[method-assign]
    # Carried out between our look and our second try, which then finds itself in its own way.
    store.faults = ["later"]
    await mine.save()
    assert store.writes == 3
    assert not mine.valid


@pytest.mark.parametrize("faults", [[], ["before"], ["late"]])
async def test_of_two_only_one_holds_it(autojump_clock: MockClock, faults: list[str]) -> None:
    """The second claim finds the first; the second to take it finds that the text is another."""
    store = Store()
    mine, late, theirs = await claimed(store), lease(store, "them"), lease(store, "them")
    before = Stored(mine.record, mine.saved)
    store.faults = faults.copy()
    with pytest.raises(Conflict):
        await late.take(msgspec.structs.replace(RECORD, seed="them", owner="them"), None)
    await mine.save()
    store.faults = faults.copy()
    with pytest.raises(LeaseLost):
        await theirs.take(before.record, before)
    for other in (late, theirs):
        assert (other.valid, other.held) == (False, False)
        with pytest.raises(LeaseLost):
            other.require()
    assert mine.valid
    assert store.record.owner == "me"


@pytest.mark.parametrize("faults", [[], ["before"], ["after"], ["late"]])
async def test_who_takes_over_goes_on_from_what_is_stored(autojump_clock: MockClock, faults: list[str]) -> None:
    store = Store()
    dead = await claimed(store)
    store.faults = faults.copy()
    theirs = lease(store, "them", 60)
    await theirs.take(msgspec.structs.replace(dead.record, exp=9), Stored(dead.record, dead.saved))
    assert (theirs.valid, theirs.held, theirs.saved) == (True, True, store.data[KEY])
    assert (store.record.owner, store.record.lease_s, store.record.n, store.record.exp) == ("them", 60, 2, 9)
    with pytest.raises(LeaseLost):
        await dead.save()
    with pytest.raises(LeaseLost):
        dead.require()


async def test_nobody_writes_before_the_record_is_theirs() -> None:
    mine = lease(Store())
    with pytest.raises(LeaseLost):
        mine.require()
    with pytest.raises(LeaseLost):
        await mine.save()


async def test_a_renewal_that_waited_for_the_release_writes_nothing(autojump_clock: MockClock) -> None:
    """It would put our name back into a record that was given up."""
    store = Store()
    mine = await claimed(store)
    async with mine.renewing():
        await trio.sleep(9.5)
        store.faults = ["slow"]
        await mine.save(release=True)
        await trio.sleep(60)
    assert (store.record.owner, store.record.n, store.writes, mine.held) == ("", 2, 2, False)


async def test_work_that_ends_during_a_renewal_keeps_what_it_did(autojump_clock: MockClock) -> None:
    """The renewal was carried out, its answer is still on its way: it must not pass for somebody else's save."""
    store = Store()
    mine = await claimed(store)
    store.faults = ["slow"]
    async with mine.renewing():
        await trio.sleep(10.5)
        mine.record = msgspec.structs.replace(mine.record, posts=(Slot(r="ops/x", c="c", p="post", s="posted"),))
    await mine.save(release=True)
    assert (store.record.n, store.record.owner, store.record.posts[0].p) == (3, "", "post")


async def test_a_lost_lease_ends_the_renewing_not_the_work(autojump_clock: MockClock) -> None:
    """The work asks before each write, and stops there."""
    store = Store()
    mine = await claimed(store)
    async with mine.renewing():
        store.data[KEY] = encode(Record("s", "them", 1, 2, ("PENDING", 0), (), n=7))
        await trio.sleep(11)
        assert not mine.valid
        await trio.sleep(100)
    with pytest.raises(LeaseLost):
        await mine.save(release=True)
    assert store.record.owner == "them"


@pytest.mark.parametrize("fault", ["refuse", "gone"])
async def test_a_renewal_that_is_refused_leaves_the_word_to_the_last_save(
    autojump_clock: MockClock, fault: str
) -> None:
    store = Store()
    mine = await claimed(store)
    if fault == "gone":
        store.gone = True
    else:
        store.faults = ["refuse"]
    async with mine.renewing():
        await trio.sleep(25)
        assert not mine.valid
    if fault == "gone":
        with pytest.raises(RequestGone):
            await mine.save()


async def test_the_error_of_the_work_comes_out_plain() -> None:
    mine = await claimed(Store())
    with pytest.raises(LinkLost) as caught:
        async with mine.renewing():
            raise AWAY
    assert caught.value is AWAY


async def test_adoption_expects_that_nobody_made_a_record_meanwhile() -> None:
    """What the official plugin left has no record yet: the first save makes it, once."""
    store = Store()
    store.data = {"messages": "a/b", "user": "bob"}
    await lease(store).take(RECORD, Stored(RECORD, ""))
    with pytest.raises(LeaseLost):
        await lease(store, "them").take(RECORD, Stored(RECORD, ""))
    with pytest.raises(Conflict):
        await lease(store).take(RECORD, None)
