"""Hostile text stays text: table of the known tricks, and properties over anything."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.text.neutral import clean, code_span, cut, fenced, go_json_runes, one_line, plain
from tests.go_json import go_encode

ANY_TEXT = st.text(st.characters(codec=None), max_size=300)


@pytest.mark.parametrize(
    ("value", "runes"),
    [
        ("", 2),
        ("a", 3),
        ("é", 3),
        ("😀", 3),
        ("<", 8),
        ("&>", 14),
        ("\u2028\u2029", 14),
        ('"\\', 6),
        ("\n\r\t", 8),
        ("\x00", 8),
        ("\x7f", 3),
        ("\ud800", 8),
        ({}, 2),
        ([], 2),
        ({"a": 1, "b": [True, False, None]}, 29),
    ],
)
def test_runes_are_counted_as_go_counts(value: object, runes: int) -> None:
    assert go_json_runes(value) == runes


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), ANY_TEXT),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
        max_leaves=12,
    )
)
def test_runes_agree_with_an_encoder_written_apart(value: object) -> None:
    assert go_json_runes(value) == len(go_encode(value))


def test_a_value_that_json_has_not_is_a_bug_here() -> None:
    with pytest.raises(TypeError):
        go_json_runes(b"bytes")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain", "plain"),
        ("a\r\nb\rc\u2028d\x85e\x0bf", "a\nb\nc\nd\ne\nf"),
        ("a\tb\u00a0c\u2424d\u2800e", "a b c d e"),
        ("a\x00b\x1b[31mc", "ab[31mc"),
        ("\u202eevil\u202c \u2066x\u2069 \u200fy", "evil x y"),
        ("al\u200bi\u2060c\ufeffe\u00ad", "alice"),
        ("tag\U000e0041\U000e007f", "tag"),
        ("\u3164\u115f\u034f\ufe0fx", "x"),
        ("e\u0301", "é"),
        ("\ue000\ud800\uffff", "\ufffd\ufffd\ufffd"),
        ("z" + "\u0336" * 50, "z" + "\u0336" * 4),
    ],
)
def test_clean_removes_what_cannot_be_seen(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_name_with_something_invisible_does_not_pass_for_another_name() -> None:
    assert code_span("al\u200bice", 100) == "`al\ufffdice`"
    assert code_span("alice\ufe0f", 100) == "`alice\ufffd`"


@pytest.mark.parametrize(
    ("name", "span"),
    [
        ("alice@example.com", "`alice@example.com`"),
        ("", ""),
        (" \n ", "`\ufffd`"),
        ("a`b``c", "`a'b''c`"),
        ("a\u1fefb", "`a'b`"),  # NFC makes a backtick of GREEK VARIA
        ("a\n\n# b", "`a # b`"),
        ("admin" + " " * 1000 + "x", "`admin…`"),  # never just "admin"
        ("x" * 20, "`xxxxxxx…`"),
        ("<" * 20, "`<…`"),
    ],
)
def test_code_span(name: str, span: str) -> None:
    assert code_span(name, 10 if len(name) == 20 else 100) == span


@pytest.mark.parametrize(
    ("reason", "block"),
    [
        ("", ""),
        (" \n\u200b\x00", ""),
        ("why", "```\nwhy\n```"),
        ("a ``` b", "````\na ``` b\n````"),
        ("```\n@all\n```", "````\n```\n@all\n```\n````"),
        ("`" * 100, "`" * 9 + "\n" + "`" * 8 + "\n" + "`" * 9),
        ("x\u2424# y", "```\nx # y\n```"),
        ("z" * 60, "```\n" + "z" * 49 + "…\n```\n… cut: 60 characters in all"),
    ],
)
def test_fenced(reason: str, block: str) -> None:
    assert fenced(reason, 50) == block


def test_a_reason_of_many_lines_is_cut_at_forty() -> None:
    assert fenced("l\n" * 100, 9999).count("\nl") == 40


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bob@example.com", "bob@example.com"),
        ("@all", "(at)all"),
        ("a.@here b @channel", "a.(at)here b (at)channel"),
        ("http://evil.example", "http: //evil.example"),
        ("[x](y)", "[x] (y)"),
        ("a\nb`c", "a b'c"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text, 100) == shown


@given(ANY_TEXT, st.integers(4, 200))
def test_nothing_grows_beyond_its_limit(text: str, limit: int) -> None:
    for shown in (cut(text, limit), one_line(text, limit), code_span(text, limit), plain(text, limit)):
        assert len(go_encode(shown)) - 2 <= limit
    assert len(go_encode(fenced(text, limit))) - 2 <= limit + 75


@given(ANY_TEXT)
def test_only_visible_characters_come_out(text: str) -> None:
    for shown in (clean(text), one_line(text, 500), code_span(text, 500), plain(text, 500), fenced(text, 500)):
        assert {unicodedata.category(character) for character in shown.replace("\n", "")}.isdisjoint(
            {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        )
    assert "\n" not in one_line(text, 500) + code_span(text, 500) + plain(text, 500)
    assert "`" not in one_line(text, 500) + plain(text, 500)


@given(st.text("`~ \n\u1fefa", max_size=60))
def test_no_line_inside_a_fence_can_close_it(text: str) -> None:
    block = fenced(text, 500)
    if block:
        opener, *inside, closer = block.split("\n")
        assert opener == closer
        assert set(opener) == {"`"}
        assert not any(opener in line for line in inside)
