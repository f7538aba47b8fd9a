"""The requests that are followed: each waits once, is worked on once, and is bounded. On a clock that jumps."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
import uuid
from collections import Counter
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from sidecar.config.sections import LimitsConfig
from sidecar.decisions.expressions import Expression
from sidecar.decisions.proof import asked
from sidecar.decisions.record import KEY, Record, Slot, encode, new_seed, post_key
from sidecar.decisions.routing import Routes
from sidecar.decisions.seen import Context, Memory
from sidecar.model import AccessRequest, Delete, Mark, PluginData, Post, Put, Review
from sidecar.reconcile.entry import KEEP_RECORD_LENGTH, MOST_SPEAKERS, Entry
from sidecar.reconcile.followed import (
    KEEP_WAITING,
    Followed,
)
from sidecar.reconcile.heard import DIRECT_MESSAGES, EARLY_HINTS
from sidecar.times import Times

ROUTES = Routes(roles={"*": ("ops/x",)}, notify_requester=False)
REVIEW = Review("alice", "APPROVED", "fine")


def request(name: str = "a", state: str = "PENDING", *reviews: Review, **more: Any) -> AccessRequest:
    fields = {"user": "bob", "roles": ("dbadmin",)} | more
    return AccessRequest(id=name, state=state, reviews=reviews, **fields)


def record(**changes: object) -> str:
    slot = Slot(r="ops/x", c="c", p="p", s="posted", shown=("PENDING", 0))
    made = Record(seed="s", owner="", at=1, exp=int(time.time()) + 3600, seen=("PENDING", 0), posts=(slot,))
    return encode(msgspec.structs.replace(made, **changes))


@pytest.fixture
def followed() -> Followed:
    return Followed(ROUTES, LimitsConfig(open_requests=10, queue=5))


async def take(followed: Followed) -> Entry:
    with trio.fail_after(1):
        entry = followed.get(await followed.queue.get())
    assert entry is not None
    return entry


async def test_a_request_waits_once_however_often_it_is_named(followed: Followed) -> None:
    followed.look(request())
    followed.look(request("a", "PENDING", REVIEW))
    followed.event(Put(request("a", "APPROVED", REVIEW)))
    assert len(followed.queue) == 1
    entry = await take(followed)
    assert entry.request is not None
    assert entry.request.state == "APPROVED"


async def test_a_request_never_has_two_workers(followed: Followed) -> None:
    """What comes while one works on it is the next look, and the only one."""
    followed.look(request())
    entry = await take(followed)
    followed.look(request("a", "PENDING", REVIEW))
    followed.look(request("a", "DENIED", REVIEW))
    assert len(followed.queue) == 0
    followed.queue.done(entry.id)
    assert (await take(followed)) is entry
    followed.queue.done(entry.id)
    assert len(followed.queue) == 0


@pytest.mark.parametrize("stale", [request(), request("a", "PENDING", REVIEW), request("a", "APPROVED", REVIEW)])
async def test_what_is_old_or_known_is_no_news(followed: Followed, stale: AccessRequest) -> None:
    followed.look(request("a", "DENIED", REVIEW))
    followed.queue.done((await take(followed)).id)
    assert not followed.look(stale)
    assert not followed.look(request("a", "DENIED", REVIEW))
    assert len(followed.queue) == 0


async def test_another_request_under_the_same_id_is_news(followed: Followed) -> None:
    """Its DELETE was missed, or it was not; what lags behind tells of the former one."""
    former, another = request("a", "DENIED", REVIEW, created=10.0), request("a", created=11.0)
    followed.look(former)
    entry = await take(followed)
    followed.event(Delete("a"))
    followed.queue.done("a")
    assert followed.look(another)
    assert (entry.gone, entry.version, entry.facts.gone) == (False, another.version, False)
    assert entry.take_request() == another
    assert not followed.look(former)
    assert not followed.look(another)
    assert entry.version == another.version


async def test_news_without_a_new_version_is_looked_at_but_not_expected_from_the_watch(followed: Followed) -> None:
    assert followed.look(request())
    followed.queue.done((await take(followed)).id)
    assert not followed.look(request(reason="changed"))
    assert len(followed.queue) == 1


async def test_dry_runs_are_nobodys_business(followed: Followed) -> None:
    followed.look(request(dry_run=True))
    assert len(followed) == 0


async def test_waiting_requests_are_kept_whole_only_so_many(followed: Followed) -> None:
    """Beyond that, and for long texts, they are read again by id: memory is bounded."""
    many = Followed(ROUTES, LimitsConfig(open_requests=5000, queue=5000))
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


async def test_requesters_take_turns_where_there_is_no_room_for_all(followed: Followed) -> None:
    """Whoever asks most waits; nobody who was told is left out, and no one is left out for an equal."""
    bobs = [request(f"bob{n}") for n in range(12)]
    for one in bobs:
        followed.look(one)
    told = followed.get("bob0")
    assert told is not None
    told.keep(Memory(known=True))
    for user in ("carol", "dave", "erin"):
        for n in range(5):
            followed.look(request(f"{user}{n}", user=user))
    asked = [f"{user}{n}" for user in ("bob", "carol", "dave", "erin") for n in range(12)]
    kept = Counter(one.rstrip("0123456789") for one in asked if one in followed)
    assert len(followed) == 10
    assert sorted(kept.values()) == [2, 2, 3, 3]
    assert "bob0" in followed
    followed.look(bobs[11])
    assert len(followed) == 10


async def test_a_settled_request_needs_no_worker(followed: Followed) -> None:
    """After a restart most requests are as their records say: nobody has to look."""
    followed.know(PluginData("a", {KEY: record()}))
    followed.look(request(expires=time.time() + 3600))
    assert len(followed.queue) == 0
    followed.look(request("a", "PENDING", REVIEW))
    assert len(followed.queue) == 1


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
    assert len(followed.queue) == 0


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
    assert all(entry.absent_since == math.inf for entry in entries)


async def test_a_deletion_is_a_proof(followed: Followed) -> None:
    followed.event(Delete("a"))
    assert (await take(followed)).gone


async def test_expiry_is_checked_a_minute_after_it(followed: Followed) -> None:
    for expires, seconds in ((time.time() + 100, 160.0), (None, math.inf)):
        entry = Entry("a")
        entry.learn(request(expires=expires))
        assert entry.over_in(60.0) == pytest.approx(seconds, abs=1)


@pytest.mark.parametrize(("left", "seconds"), [(3600, 3660), (-30, 30), (-600, 60)])
async def test_the_look_at_what_should_be_over_is_never_now(
    left: float, seconds: float, followed: Followed, autojump_clock: MockClock
) -> None:
    """A request that Teleport still has although by our clock it is over: one of the clocks is wrong."""
    followed.look(request())
    entry = await take(followed)
    entry.keep(Memory(known=True, text=record(), told=(hash("p"),)))
    followed.queue.done("a")
    followed.look(request(expires=time.time() + left))
    assert len(followed.queue) == 0
    with trio.fail_after(4000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(followed.queue.run_timers)
            begun = trio.current_time()
            await followed.queue.get()
            nursery.cancel_scope.cancel()
    assert trio.current_time() - begun == pytest.approx(seconds, abs=1)


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
    entry = await take(followed)
    entry.take_request()
    followed.look(first)
    entry.learn(last)  # as its worker does, who leaves it to the next look
    followed.look(last)
    followed.queue.done(entry.id)
    assert await take(followed) is entry
    assert entry.take_request() is None


async def test_a_record_that_comes_after_all_is_offered(followed: Followed) -> None:
    """Resolved when we first read it; a replica that had read it before has claimed it since, and died."""
    followed.look(request("a", "DENIED", REVIEW))
    entry = await take(followed)
    entry.keep(Memory(silent=True))
    followed.queue.done("a")
    followed.know(PluginData("a", {KEY: record(owner="dead")}))
    assert await take(followed) is entry
    assert entry.offered == record(owner="dead")
    entry.keep(Memory(known=True))
    followed.queue.done("a")
    followed.know(PluginData("a", {KEY: record(owner="dead", n=9)}))
    assert len(followed.queue) == 0


async def test_a_long_record_is_read_again_instead_of_being_kept(followed: Followed) -> None:
    followed.look(request())
    entry = await take(followed)
    for length, kept in ((KEEP_RECORD_LENGTH, True), (KEEP_RECORD_LENGTH + 1, False)):
        entry.keep(Memory(known=True, text="x" * length))
        assert (entry.memory.text is not None, entry.memory.known) == (kept, True)


# -- hints -----------------------------------------------------------------------------------------------------------


def said(number: int = 1) -> Expression:
    return Expression(user_id="u", verb="approve", way="direct", post_id=f"dm{number}", at=1, channel_id="dm")


def card(*posts: str) -> Record:
    slots = tuple(Slot(r=post, c=f"c-{post}", p=post, s="posted") for post in posts)
    return Record(seed="s", owner="", at=1, exp=2, seen=("PENDING", 0), posts=slots)


async def announced(followed: Followed, name: str = "a") -> Entry:
    followed.look(request(name))
    entry = await take(followed)
    entry.keep(Memory(known=True))
    followed.heard.show_cards(entry, card(f"p-{name}"))
    followed.queue.done(entry.id)
    return entry


async def test_what_is_said_on_a_card_is_heard_and_taken_once(followed: Followed) -> None:
    entry = await announced(followed)
    followed.heard.hear("elsewhere", "u")
    assert len(followed.queue) == 0
    for number in range(MOST_SPEAKERS + 2):
        followed.heard.hear("p-a", f"u{number}")
    followed.heard.hear("p-a", "u5")
    assert len(followed.queue) == 1
    assert entry.remember() == Memory(known=True, listen=True, speakers=("u2", "u3", "u4", "u5"))
    assert not entry.hinted
    # A visit that is cut leaves them to the next.
    assert entry.remember().speakers == ("u2", "u3", "u4", "u5")


async def test_what_was_said_before_the_card_was_known_is_not_lost(followed: Followed) -> None:
    followed.heard.hear("p-a", "u")
    entry = await announced(followed)
    assert len(followed.queue) == 1
    assert entry.remember().speakers == ("u",)


async def test_posts_of_no_concern_take_no_memory(followed: Followed) -> None:
    for number in range(EARLY_HINTS + 100):
        followed.heard.hear(f"x{number}")
    assert len(followed.heard._early) == EARLY_HINTS


async def test_a_card_that_is_replaced_or_gone_is_heard_no_more(followed: Followed) -> None:
    entry = await announced(followed)
    followed.heard.show_cards(entry, card("p-2"))
    assert followed.heard.open_cards() == {"p-2": "c-p-2"}
    followed.heard.hear("p-a")
    assert len(followed.queue) == 0
    followed.drop(entry)
    followed.heard.show_cards(entry, card("p-3"))
    followed.heard.hear("p-2")
    assert (len(followed.queue), followed.heard.open_cards(), followed.heard._cards) == (0, {}, {})


async def test_only_what_is_open_is_decided_on(followed: Followed) -> None:
    """The oldest comes first: who names the end of an id alone is asked in that order."""
    await announced(followed)
    await announced(followed, "b")
    assert followed.heard.open_requests() == {"a": ("c-p-a",), "b": ("c-p-b",)}
    followed.look(request("a", "APPROVED", REVIEW))
    assert list(followed.heard.open_requests()) == ["b"]
    assert list(followed.heard.open_requests(decided=True)) == ["a"]
    assert followed.heard.open_cards() == {"p-b": "c-p-b"}


async def test_direct_messages_wait_once_each_and_are_bounded(followed: Followed) -> None:
    entry = await announced(followed)
    assert not followed.heard.tell("unknown", said())
    assert followed.heard.tell("a", said())
    assert followed.heard.tell("a", said())
    direct = entry.remember().direct
    assert direct == (said(),)
    entry.keep(Memory(known=True, direct=direct))
    assert all(followed.heard.tell("a", said(number)) for number in range(DIRECT_MESSAGES))
    assert not followed.heard.tell("a", said(99))


async def test_decisions_go_before_changes_before_announcements(followed: Followed) -> None:
    """In the last, requesters take turns: one who asks a hundred times keeps nobody else waiting."""
    for name in ("change", "decision"):
        await announced(followed, name)
    for number, user in enumerate(("bob", "bob", "eve")):
        followed.look(request(f"{user}{number}", user=user))
    followed.look(request("change", "PENDING", REVIEW))
    followed.heard.hear("p-decision", "u")
    followed.queue.add("direct channel")
    order = [await followed.queue.get() for _ in range(6)]
    assert order == ["decision", "direct channel", "change", "bob0", "eve2", "bob1"]


# -- many ------------------------------------------------------------------------------------------------------------


def planted(name: str, recipients: int) -> tuple[AccessRequest, PluginData, list[Post]]:
    """A request that was announced before, its record, and the cards as a page shows them."""
    made = request(name, created=time.time(), expires=time.time() + 3600)
    seed = new_seed()
    slots, cards = [], []
    for n in range(recipients):
        channel, post_id = f"channel{n}".ljust(26, "0"), f"{name}{n}"[-26:].rjust(26, "p")
        key = post_key(seed, "card", channel, 0, 0)
        slots.append(Slot(r="ops/x", c=channel, p=post_id, s="posted", h="h" * 16, shown=("PENDING", 0), since=1))
        cards.append(Post(post_id, channel, "bot", key=key, mark=Mark(k=key, id=name, q=asked(made))))
    text = record(seed=seed, posts=tuple(slots), q=asked(made))
    return made, PluginData(name, {KEY: text}), cards


@pytest.mark.parametrize("recipients", [1, 2, 3, 10, 30])
async def test_a_followed_request_costs_two_kilobytes_and_a_fifth_for_each_more_recipient(recipients: int) -> None:
    count = 400
    followed = Followed(Routes(roles={"*": ("ops/x",)}))
    context = Context(bot_id="bot")

    def know(count: int) -> None:
        for _ in range(count):
            made, data, cards = planted(str(uuid.uuid4()), recipients)
            # As they come from the wire: no text is shared.
            followed.know(msgspec.convert(msgspec.to_builtins(data), PluginData))
            followed.look(msgspec.json.decode(msgspec.json.encode(made), type=AccessRequest))
            followed.heard.see(msgspec.json.decode(msgspec.json.encode(cards), type=list[Post]), context)

    know(100)  # tables grow by leaps
    gc.collect()
    tracemalloc.start()
    try:
        know(count)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / count <= 2048 + (recipients - 1) * 205


async def test_cards_that_a_page_shows_need_no_look(autojump_clock: MockClock) -> None:
    followed = Followed(ROUTES)
    followed.heard.swept = True
    context = Context(bot_id="bot")
    some = [planted(f"r{n}", 1) for n in range(100)]
    for made, data, _ in some:
        followed.know(data)
        assert not followed.look(made)
    forged = [msgspec.structs.replace(cards[0], user_id="mallory") for _, _, cards in some[90:95]]
    followed.heard.see([*(cards[0] for _, _, cards in some[:90]), *forged], context)
    with trio.move_on_after(3000):
        await followed.queue.run_timers()
    # Those that were not seen, or turned out to be somebody else's posts.
    assert {(await take(followed)).id for _ in range(len(followed.queue))} == {f"r{n}" for n in range(90, 100)}
