"""The decision grammar: what decides, what gets the grammar as answer, and what is talk."""

from __future__ import annotations

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sidecar.text.command import (
    REASON_BYTES,
    Ambiguous,
    Decision,
    Help,
    List,
    Malformed,
    NearMiss,
    NotACommand,
    Show,
    Unknown,
    is_near_emoji,
    match_id,
    parse_direct,
    parse_thread,
    short_id,
)

ID = "0193523a-2c9e-7d5c-9a3b-1f2e3d4c5b6a"
OTHER = "0193523a-2c9e-7d5c-9a3b-aaaa3d4c5b6a"
LOOK_ALIKES = ["ａｐｐｒｏｖｅ", "аpprove", "a\u200bpprove", "ap\u00adprove", "аррrоvе", "𝐚𝐩𝐩𝐫𝐨𝐯𝐞", "ⓓeny"]  # noqa: RUF001
ANY_TEXT = st.text(st.characters(codec=None), max_size=60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("approve", Decision("approve")),
        ("Approve", Decision("approve")),
        ("DENY", Decision("deny")),
        ("deny \n", Decision("deny")),
        ("approve because it is needed", Decision("approve", "it is needed")),
        ("deny  BECAUSE no\nticket", Decision("deny", "no\nticket")),
        ("approve: ok", Decision("approve", "ok")),
        ("deny: a\x00b\x1b\u202ec", Decision("deny", "abc")),
        ("approve because @all", Decision("approve", "@all")),
        # It starts with the verb and does not fit.
        ("approve? not sure", Malformed()),
        ("approve!", Malformed()),
        ("approve.", Malformed()),
        ("approve this please", Malformed()),
        ("approve because", Malformed()),
        ("approve because ", Malformed()),
        ("approve becausewhy", Malformed()),
        ("approve:", Malformed()),
        ("approve:thumbsup:", Malformed()),
        ("approve : x", Malformed()),
        ("approve, because x", Malformed()),
        ("approve: \u200b\x00", Malformed()),
        ("approve\ndeny", Malformed()),
        ("approve deny", Malformed()),
        ("approve\u200b", Malformed()),
        ("approve\u00a0because x", Malformed()),
        (f"approve {ID}", Malformed()),
        # Talk.
        ("", NotACommand()),
        (" approve", NearMiss()),
        ("\napprove", NearMiss()),
        ("> approve", NearMiss()),
        ("`approve`", NearMiss()),
        ("**approve**", NearMiss()),
        ("please approve", NearMiss()),
        ("approved", NearMiss()),
        ("approve_x", NotACommand()),
        ("approveд", NearMiss()),
        ("denying it", NearMiss()),
        ("list", NotACommand()),
        ("yes", NearMiss()),
    ],
)
def test_a_reply_in_a_thread(text: str, expected: object) -> None:
    assert parse_thread(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"approve {ID}", Decision("approve", id=ID)),
        ("Deny 3D4C5B6A", Decision("deny", id="3D4C5B6A")),
        (f"deny {ID} no ticket", Decision("deny", "no ticket", ID)),
        ("deny 3d4c5b6a because no ticket", Decision("deny", "no ticket", "3d4c5b6a")),
        ("deny 3d4c5b6a because", Decision("deny", "because", "3d4c5b6a")),
        ("approve 1f2e-3d4c5b6a", Decision("approve", id="1f2e-3d4c5b6a")),
        ("list", List()),
        ("List ", List()),
        ("help", Help()),
        ("hello", Help()),
        ("?", Help()),
        (f"show {ID}", Show(ID)),
        ("SHOW 3d4c5b6a", Show("3d4c5b6a")),
        # It starts with a command word and does not fit.
        ("approve", Malformed()),
        ("approve it", Malformed()),
        ("approve because x", Malformed()),
        ("approve 3d4c5b6", Malformed()),
        ("approve 3d4c-5b6", Malformed()),
        ("show 3d4c-5b6", Malformed()),
        ("approve 3d4c5b6a?", Malformed()),
        ("approve 3d4c5b6g", Malformed()),
        ("approve  \n3d4c5b6a", Malformed()),
        ("approve `3d4c5b6a`", Malformed()),
        ("approve 3d4c5b6a \u200b", Malformed()),
        (f"approve\u00a0{ID}", Malformed()),
        ("approve " + "a" * 65, Malformed()),
        ("approve ３d4c5b6a", Malformed()),  # noqa: RUF001
        ("show", Malformed()),
        ("show all", Malformed()),
        ("list all", Malformed()),
        ("help!", Malformed()),
        # Talk.
        (f" approve {ID}", NearMiss(ID)),
        (f"{ID} approve", NearMiss(ID)),
        ("lists", NotACommand()),
        ("hello all of you", NotACommand()),
        ("", NotACommand()),
    ],
)
def test_a_direct_message(text: str, expected: object) -> None:
    assert parse_direct(text) == expected


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("I approve", True), ("aprove", True), ("dney", True), ("appprove it", True), ("approce", True),
        ("LGTM :+1:", True), ("👍🏽", True), (":white_check_mark:", True), ("\u2705", True), ("ok", True),
        ("looks good to me", True), ("No way!", True), ("@bot approve", True), ("/approve", True), ("Approved.", True),
        ("improve it", False), ("can you approve this?", False), ("what is db-7?", False), ("thanks", False),
        ("let me look at it", False), ("I saw that, yes", False), ("ok, so what is it that fails", False),
        ("I will approve it as soon as the backup is through", False), ("approv" * 30, False), (":tada:", False),
    ],
)  # fmt: skip
def test_what_looks_like_a_decision(text: str, near: bool) -> None:  # noqa: FBT001
    assert parse_thread(text) == (NearMiss() if near else NotACommand())
    assert parse_direct(text) == (NearMiss() if near else NotACommand())


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_what_looks_like_a_verb_decides_nothing(text: str) -> None:
    for command in (parse_thread(text), parse_direct(f"{text} {ID}")):
        assert isinstance(command, NearMiss | NotACommand)


@pytest.mark.parametrize(
    ("name", "near"),
    [("+1", True), ("thumbsup_medium_dark_skin_tone", True), ("x", True), ("eyes", False), ("skin_tone", False)],
)
def test_which_reactions_look_like_a_decision(name: str, near: bool) -> None:  # noqa: FBT001
    assert is_near_emoji(name) == near


@pytest.mark.parametrize("fold", ["li\u017ft", "shoW\u0307", "\u212aeep"])
def test_case_folding_stays_within_ascii(fold: str) -> None:
    """The long s folds to "s" and the Kelvin sign to "k" in Unicode; neither is our verb."""
    assert not isinstance(parse_direct(fold), List | Show)
    assert not isinstance(parse_thread(fold), Decision)


def test_a_long_reason_is_cut_to_what_teleport_takes_between_characters() -> None:
    decision = parse_thread("deny: " + "é" * 5000 + "x")
    assert isinstance(decision, Decision)
    assert decision.reason == "é" * (REASON_BYTES // 2)
    odd = parse_thread("deny: x" + "é" * 5000)
    assert isinstance(odd, Decision)
    assert odd.reason == "x" + "é" * (REASON_BYTES // 2 - 1)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (ID, ID),
        (ID.upper(), ID),
        ("1f2e3d4c5b6a", ID),
        ("1f2e-3d4c5b6a", ID),
        ("E3D4C5B6A", ID),
        ("9a3b-aaaa3d4c5b6a", OTHER),
        ("3d4c5b6a", Ambiguous()),
        ("d4c5b6a", Unknown()),
        ("0193523a", Unknown()),
        ("ffffffff", Unknown()),
        ("", Unknown()),
        ("not-an-id", Unknown()),
        ("plain", "plain"),
    ],
)
def test_which_request_is_meant(token: str, expected: object) -> None:
    """Front parts never count: ids of newer servers are ordered by time and share them."""
    assert match_id(token, [ID, OTHER, "plain", ID]) == expected


def test_a_whole_id_beats_an_ending() -> None:
    assert match_id("3d4c5b6a", ["3d4c5b6a", ID]) == "3d4c5b6a"


def test_the_short_id_means_its_request() -> None:
    assert short_id(ID) == "3d4c5b6a"
    assert match_id(short_id(ID), [ID]) == ID
    assert short_id("odd") == "odd"


@given(ANY_TEXT, st.sampled_from(["approve", "deny", "approve because x", "deny: x", f"approve {ID}", "list", "help"]))
def test_nothing_decides_with_anything_before_it(before: str, command: str) -> None:
    assume(not before[:1].isascii() or not before[:1].isalpha())
    assume(before)
    assert isinstance(parse_thread(before + command), NotACommand | NearMiss)
    assert isinstance(parse_direct(before + command), NotACommand | NearMiss)


@given(ANY_TEXT, st.sampled_from(["approve", "deny"]))
def test_a_decision_is_exactly_the_grammar(after: str, verb: str) -> None:
    decision = parse_thread(verb + after)
    if isinstance(decision, Decision):
        rest = after.rstrip(" \t\r\n")
        assert decision.verb == verb
        assert rest == "" or rest[0] == ":" or rest.lstrip(string.whitespace).lower().startswith("because")
        assert bool(decision.reason) == bool(rest)


@given(ANY_TEXT)
def test_any_text_parses_to_something_harmless(text: str) -> None:
    for command in (parse_thread(text), parse_direct(text)):
        if isinstance(command, Decision):
            assert text[: len(command.verb)].lower() == command.verb
            assert len(command.reason.encode()) <= REASON_BYTES
            assert "\x00" not in command.reason


@given(st.lists(st.uuids().map(str), min_size=1, max_size=20, unique=True), st.integers(8, 32))
def test_an_ending_finds_its_request_or_says_that_it_is_ambiguous(ids: list[str], length: int) -> None:
    token = ids[0].replace("-", "")[-length:]
    assert match_id(token, ids) in (ids[0], Ambiguous())
