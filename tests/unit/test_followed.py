"""The requests that are followed: each waits once, is worked on once, and is bounded. On a clock that jumps."""

from __future__ import annotations

import math
import time

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sidecar.decisions.record import KEY, Record, Slot, encode
from sidecar.decisions.routing import Routes
from sidecar.model import AccessRequest, Delete, PluginData, Put, Review
from sidecar.reconcile.followed import KEEP_WAITING, SPARE_TIMERS, Entry, Followed
from sidecar.times import Times

ROUTES = Routes(roles={"*": ("ops/x",)}, notify_requester=False)
REVIEW = Review("alice", "APPROVED", "fine")


def request(name: str = "a", state: str = "PENDING", *reviews: Review, **more: object) -> AccessRequest:
    return AccessRequest(id=name, user="bob", state=state, roles=("dbadmin",), reviews=reviews, **more)  # type: ignore[arg-type]


def record(**changes: object) -> str:
    slot = Slot(r="ops/x", c="c", p="p", s="posted", shown=("PENDING", 0))
    made = Record(seed="s", owner="", at=1, exp=int(time.time()) + 3600, seen=("PENDING", 0), posts=(slot,))
    return encode(msgspec.structs.replace(made, **changes))


@pytest.fixture
def followed() -> Followed:
    return Followed(ROUTES, open_requests=10, queue=5)


async def take(followed: Followed) -> Entry:
    with trio.fail_after(1):
        return await followed.next()


async def test_a_request_waits_once_however_often_it_is_named(followed: Followed) -> None:
    followed.look(request())
    followed.look(request("a", "PENDING", REVIEW))
    followed.event(Put(request("a", "APPROVED", REVIEW)))
    assert followed.backlog == 1
    entry = await take(followed)
    assert entry.request is not None
    assert entry.request.state == "APPROVED"


async def test_a_request_never_has_two_workers(followed: Followed) -> None:
    """What comes while one works on it is the next look, and the only one."""
    followed.look(request())
    entry = await take(followed)
    followed.look(request("a", "PENDING", REVIEW))
    followed.look(request("a", "DENIED", REVIEW))
    assert followed.backlog == 0
    followed.release(entry)
    assert (await take(followed)) is entry
    followed.release(entry)
    assert followed.backlog == 0


@pytest.mark.parametrize("stale", [request(), request("a", "PENDING", REVIEW), request("a", "APPROVED", REVIEW)])
async def test_what_is_old_or_known_is_no_news(followed: Followed, stale: AccessRequest) -> None:
    followed.look(request("a", "DENIED", REVIEW))
    followed.release(await take(followed))
    assert not followed.look(stale)
    assert not followed.look(request("a", "DENIED", REVIEW))
    assert followed.backlog == 0


async def test_news_without_a_new_version_is_looked_at_but_not_expected_from_the_watch(followed: Followed) -> None:
    assert followed.look(request())
    followed.release(await take(followed))
    assert not followed.look(request(reason="changed"))
    assert followed.backlog == 1


async def test_dry_runs_are_nobodys_business(followed: Followed) -> None:
    followed.look(request(dry_run=True))
    assert len(followed) == 0


async def test_waiting_requests_are_kept_whole_only_so_many(followed: Followed) -> None:
    """Beyond that, and for long texts, they are read again by id: memory is bounded."""
    many = Followed(ROUTES, open_requests=5000, queue=5000)
    for number in range(KEEP_WAITING + 10):
        many.look(request(str(number)))
    many.look(request("long", reason="x" * 5000))
    kept = [await take(many) for _ in range(KEEP_WAITING + 11)]
    assert sum(entry.request is not None for entry in kept) == KEEP_WAITING


async def test_more_than_can_be_followed_makes_a_list_due_when_there_is_room(followed: Followed) -> None:
    for number in range(12):
        followed.look(request(str(number)))
    assert len(followed) == 10
    with trio.move_on_after(0.01) as scope:
        await followed.room_again()
    assert scope.cancelled_caught
    for _ in range(2):
        followed.drop(await take(followed))
    with trio.fail_after(1):
        await followed.room_again()
    followed.look(request("11"))
    assert "11" in followed


async def test_a_settled_request_needs_no_worker(followed: Followed) -> None:
    """After a restart most requests are as their records say: nobody has to look."""
    followed.know(PluginData("a", {KEY: record()}))
    followed.look(request(expires=time.time() + 3600))
    assert followed.backlog == 0
    followed.look(request("a", "PENDING", REVIEW))
    assert followed.backlog == 1


@pytest.mark.parametrize("text", [record(done=True), '{"v":2}', "x"])
async def test_records_that_are_over_or_not_ours_are_not_followed(followed: Followed, text: str) -> None:
    followed.know(PluginData("a", {KEY: text}))
    followed.know(PluginData("b", {"messages": "c/d"}))
    assert len(followed) == 0


async def test_a_record_whose_request_the_list_lacks_is_looked_for_by_id(followed: Followed) -> None:
    """Records are read in the same breath as the list: what only they know is missing from it."""
    followed.begin_list()
    followed.know(PluginData("gone", {KEY: record()}))
    followed.look(request("a"))
    assert followed.end_list(1)
    names = {(await take(followed)).id for _ in range(2)}
    assert names == {"a", "gone"}


async def test_an_empty_list_proves_nothing(followed: Followed) -> None:
    followed.know(PluginData("a", {KEY: record()}))
    followed.begin_list()
    assert not followed.end_list(0)
    assert followed.backlog == 0


async def test_an_empty_list_may_lag_behind_the_watch() -> None:
    """The first request of a quiet cluster is no sign of a missing verb while the list may not know it yet."""
    for lag, nothing_is_missing in ((30.0, True), (0.0, False)):
        followed = Followed(ROUTES, times=Times(list_lag=lag))
        followed.event(Put(request()))
        followed.begin_list()
        assert followed.end_list(0) is nothing_is_missing


async def test_an_empty_list_is_fine_when_all_has_expired(followed: Followed) -> None:
    followed.know(PluginData("a", {KEY: record(exp=int(time.time()) - 5)}))
    followed.begin_list()
    assert followed.end_list(0)


async def test_a_request_that_came_during_a_list_is_not_missing_from_it(followed: Followed) -> None:
    followed.begin_list()
    followed.look(request("listed"))
    followed.event(Put(request("new")))
    followed.end_list(1)
    entries = [await take(followed) for _ in range(2)]
    assert not any(entry.absent for entry in entries)


async def test_a_deletion_is_a_proof(followed: Followed) -> None:
    followed.event(Delete("a"))
    assert (await take(followed)).gone


async def test_timers_wake_in_order_and_the_earliest_counts(
    autojump_clock: MockClock, nursery: trio.Nursery, followed: Followed
) -> None:
    nursery.start_soon(followed.run_timers)
    began = trio.current_time()
    entries = {}
    for name in ("a", "b"):
        followed.look(request(name))
        entries[name] = await take(followed)
        followed.release(entries[name])
    followed.wake_in(entries["a"], 50)
    followed.wake_in(entries["b"], 20)
    followed.wake_in(entries["a"], 10)
    followed.wake_in(entries["a"], 30)
    woken = []
    for _ in range(2):
        entry = await followed.next()
        woken.append((entry.id, round(trio.current_time() - began)))
        followed.release(entry)
    assert woken == [("a", 10), ("b", 20)]
    with trio.move_on_after(1000) as scope:
        await followed.next()
    assert scope.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_a_dropped_request_is_not_woken(
    autojump_clock: MockClock, nursery: trio.Nursery, followed: Followed
) -> None:
    nursery.start_soon(followed.run_timers)
    followed.look(request())
    entry = await take(followed)
    followed.wake_in(entry, 5)
    followed.drop(entry)
    followed.release(entry)
    with trio.move_on_after(100) as scope:
        await followed.next()
    assert scope.cancelled_caught
    nursery.cancel_scope.cancel()


async def test_what_is_over_leaves_no_timers_behind(followed: Followed) -> None:
    """Each would have waited for its expiry in a week; the one that is still followed is still woken."""
    followed.look(request("kept"))
    kept = await take(followed)
    followed.wake_in(kept, 3600)
    for number in range(5 * SPARE_TIMERS):
        followed.look(request(str(number)))
        entry = await take(followed)
        followed.wake_in(entry, 7 * 86400)
        followed.drop(entry)
    assert len(followed._timers) <= SPARE_TIMERS + 10
    assert (kept.wake, "kept") in followed._timers


async def test_a_worker_that_waits_is_woken_by_news(nursery: trio.Nursery, followed: Followed) -> None:
    found = []

    async def work() -> None:
        found.append((await followed.next()).id)

    nursery.start_soon(work)
    await wait_all_tasks_blocked()
    followed.look(request())
    await wait_all_tasks_blocked()
    assert found == ["a"]


def test_expiry_is_checked_a_minute_after_it(followed: Followed) -> None:
    assert followed.expiry_check(time.time() + 100) == pytest.approx(160, abs=1)
    assert followed.expiry_check(None) == math.inf


@pytest.mark.parametrize(("left", "seconds"), [(3600, 3660), (-30, 30), (-600, 60)])
async def test_the_look_at_what_should_be_over_is_never_now(
    left: float, seconds: float, autojump_clock: MockClock
) -> None:
    """A request that Teleport still has although by our clock it is over: one of the clocks is wrong."""
    followed = Followed(ROUTES)
    entry = Entry("a")
    followed._entries["a"] = entry
    followed.wake_at_expiry(entry, time.time() + left)
    assert entry.wake - trio.current_time() == pytest.approx(seconds, abs=1)


@pytest.mark.parametrize(("age", "seconds"), [(100, 100), (-100, 0)])
async def test_how_long_a_request_has_been_pending(age: float, seconds: float, followed: Followed) -> None:
    """By its own word, where it was made while we were down; never by a clock of ours that is behind."""
    followed.look(request(created=time.time() - age))
    (entry,) = followed._entries.values()
    assert trio.current_time() - entry.pending_since == pytest.approx(seconds, abs=2)


async def test_a_read_by_id_that_overtakes_the_events_is_not_forgotten(followed: Followed) -> None:
    """A worker reads what two events are about; the first came before its answer, the second after: it reads again."""
    first, last = request("a", "PENDING", REVIEW), request("a", "DENIED", REVIEW, REVIEW)
    followed.look(request())
    entry = await followed.next()
    entry.take_request()
    followed.look(first)
    entry.version, entry.digest = last.version, hash(last)  # as the worker notes it, who leaves it to the next look
    followed.look(last)
    followed.release(entry)
    assert await followed.next() is entry
    assert entry.take_request() is None


async def test_a_record_that_comes_after_all_ends_the_silence(followed: Followed) -> None:
    """Resolved when we first read it; a replica that had read it before has claimed it since, and died."""
    followed.look(request("a", "DENIED", REVIEW))
    entry = await followed.next()
    entry.take_request()
    entry.silent = True  # as the worker decides, who found no record
    followed.release(entry)
    followed.know(PluginData("a", {KEY: record(owner="dead")}))
    assert await followed.next() is entry
    assert (entry.silent, entry.known) == (False, True)
    assert entry.foreign is not None
    followed.release(entry)
    followed.know(PluginData("a", {KEY: record(owner="dead", n=9)}))
    assert followed.backlog == 0
