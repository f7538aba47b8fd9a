"""The record in plugin data: canonical, readable by its successors, refused when it is not ours."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions import record as records
from sidecar.decisions.record import ADOPTED, Record, Slot, Unreadable
from sidecar.model import AccessRequest, Review

SLOTS = st.builds(
    Slot,
    r=st.text(max_size=40),
    k=st.sampled_from(("card", "requester")),
    c=st.text(max_size=26),
    p=st.text(max_size=26),
    a=st.integers(ADOPTED, 9),
    s=st.sampled_from(("posted", "waiting", "failed", "gone", "archived")),
    h=st.text(max_size=16),
    shown=st.tuples(st.text(max_size=9), st.integers(0, 99)),
    rep=st.lists(st.integers(-3, 20), max_size=5).map(tuple),
    since=st.integers(0, 2**43),
)
RECORDS = st.builds(
    Record,
    seed=st.text(max_size=22),
    owner=st.text(max_size=36),
    at=st.integers(0, 2**40),
    exp=st.integers(0, 2**40),
    seen=st.tuples(st.sampled_from(("PENDING", "APPROVED", "STATE 9")), st.integers(0, 99)),
    posts=st.lists(SLOTS, max_size=5).map(tuple),
    n=st.integers(0, 2**40),
    q=st.text(max_size=16),
    done=st.booleans(),
)


@given(RECORDS)
def test_a_record_survives_its_text_and_the_text_is_canonical(record: Record) -> None:
    text = records.encode(record)
    assert records.decode(text) == record
    assert text.isascii()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def test_the_keys_are_those_that_others_read() -> None:
    """The names are a contract: the document is read from outside. In a slot what is as usual is left out."""
    full = Slot(r="ops/x", k="requester", c="c", p="p", a=1, s="posted", h="h", shown=("PENDING", 0), rep=(1,), since=1)
    record = Record(seed="s", owner="", at=1, exp=2, seen=("PENDING", 0), posts=(full, Slot(r="ops/y")), q="q")
    document = json.loads(records.encode(record))
    assert set(document) == {"v", "n", "seed", "owner", "lease_s", "at", "exp", "seen", "posts", "dec", "done", "q"}
    assert set(document["posts"][0]) == {"r", "k", "c", "p", "a", "s", "h", "shown", "rep", "since"}
    assert document["posts"][1] == {"r": "ops/y"}


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "null", '{"v":2}', '{"v":"1"}', '{"v":1}', '{"v":1,"seed":7}', "{" * 9999]
)
def test_what_is_not_ours_to_change_is_unreadable(text: str) -> None:
    assert isinstance(records.decode(text), Unreadable)


@pytest.mark.parametrize(("attempt", "readable"), [(-2, False), (ADOPTED, True), (100, True), (10**15, False)])
def test_nobody_makes_us_compute_keys_without_end(attempt: int, readable: bool) -> None:  # noqa: FBT001 - a table
    record = Record(seed="s", owner="", at=1, exp=2, seen=("PENDING", 0), posts=(Slot(r="x", a=attempt),))
    assert isinstance(records.decode(records.encode(record)), Record) is readable


@given(st.text())
def test_no_text_makes_decoding_fail(text: str) -> None:
    assert isinstance(records.decode(text), Record | Unreadable)


def test_a_newer_format_is_named() -> None:
    found = records.decode('{"v":7,"seed":"x"}')
    assert isinstance(found, Unreadable)
    assert found.why == "it has format 7, this sidecar knows 1: a newer sidecar wrote it"


def test_post_keys_differ_by_every_part_and_reveal_nothing() -> None:
    seed = records.new_seed()
    keys = {
        records.post_key(seed, kind, channel, index, attempt)
        for kind in ("card", "review", "end")
        for channel in ("a", "b")
        for index in (0, 1)
        for attempt in (0, 1)
    }
    assert len(keys) == 24
    assert all(len(key) == 22 for key in keys)
    assert records.post_key(records.new_seed(), "card", "a", 0, 0) not in keys


def test_what_the_official_plugin_reads_is_said_in_its_words() -> None:
    """Going back to that plugin must find its own keys."""
    posts = (
        Slot(r="a", c="chan1", p="post1", s="posted"),
        Slot(r="b", c="chan2", p="post2", s="posted"),
        Slot(r="c", k="requester", c="chan3", p="post3", s="posted"),
        Slot(r="d", c="chan4", s="failed"),
    )
    record = Record(seed="s", owner="", at=1, exp=2, seen=("APPROVED", 1), posts=posts)
    request = AccessRequest(
        id="x",
        user="bob",
        roles=("a", "b"),
        state="APPROVED",
        reason="be\x00cause",
        resolve_reason="fine",
        reviews=(Review("alice", "APPROVED"),),
    )
    assert records.official_fields(request, record) == {
        "messages": "chan1/post1,chan2/post2",
        "user": "bob",
        "roles": "a,b",
        "request_reason": "because",
        "reviews_count": "1",
        "resolution": "APPROVED",
        "resolve_reason": "fine",
    }


def test_what_the_official_plugin_wrote_is_taken_over() -> None:
    data = {"messages": "chan1/post1,chan2/post2,broken", "user": "bob", "reviews_count": "2", "resolution": "DENIED"}
    record = records.adopt(data, seed="s", owner="", at=1, exp=2, lease_s=30)
    assert record.seen == ("DENIED", 2)
    assert [(slot.c, slot.p, slot.a, slot.s, slot.h, slot.rep) for slot in record.posts] == [
        ("chan1", "post1", ADOPTED, "posted", "", (1, 2, -2)),
        ("chan2", "post2", ADOPTED, "posted", "", (1, 2, -2)),
    ]


@given(st.dictionaries(st.sampled_from(("messages", "reviews_count", "resolution")), st.text(max_size=30)))
def test_hostile_official_data_never_fails(data: dict[str, str]) -> None:
    adopted = records.adopt(data, seed="s", owner="", at=1, exp=2, lease_s=30)
    assert records.decode(records.encode(adopted)) == adopted


def test_size_leaves_room_for_what_a_slot_still_learns() -> None:
    empty = Record(seed="s" * 22, owner="", at=1, exp=2, seen=("PENDING", 0), posts=(Slot(r="ops/x"),))
    slot = Slot(r="ops/x", c="c" * 26, p="p" * 26, s="posted", h="h" * 16, shown=("APPROVED", 12), rep=(1, 2, -1))
    full = msgspec.structs.replace(empty, posts=(slot,), owner="", seen=("APPROVED", 12))
    assert len(records.encode(full)) <= records.size(empty)
