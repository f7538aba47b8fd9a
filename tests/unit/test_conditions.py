"""The conditions of access monitoring rules: as Teleport decides them, or not at all."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.decisions.conditions import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_TERMS,
    Facts,
    NotEvaluable,
    facts_of,
    parse,
)
from sidecar.model import AccessRequest

SPEC = "access_request.spec."
ROLES = f"{SPEC}roles"
FACTS = facts_of(
    AccessRequest(
        id="r1",
        user="bob@example.com",
        state="PENDING",
        roles=("dev", "stage"),
        reason='say "please"',
        suggested_reviewers=("alice", "ivan"),
        system_annotations=(("team", ("db", "cloud")), ("empty", ())),
        created=100.0,
        expires=200.0,
    ),
    {"level": ("L1",), "team": ("Cloud", "Tools")},
)

# What Teleport 18 makes of each for this request (its documentation, its tests, and the reader of its predicates).
CONDITIONS = [
    ("true", True),
    ("false", False),
    ("!true", False),
    ("!!true", True),
    ("!false && true", True),
    ("!(true && false)", True),
    ("true || false && false", True),
    ("(true || false) && false", False),
    ("false || false || true", True),
    ("true && true && false", False),
    (f'{ROLES}.contains("dev")', True),
    (f'{ROLES}.contains("prod")', False),
    (f'{ROLES}.contains("de")', False),
    (f'{ROLES}.contains("DEV")', False),
    (f'!{ROLES}.contains("prod")', True),
    (f'{ROLES}.contains("dev") && !{ROLES}.contains("prod")', True),
    (f'contains_any({ROLES}, set("prod", "dev"))', True),
    (f'{ROLES}.contains_any(set("prod", "dev"))', True),
    (f'contains_any({ROLES}, set("prod"))', False),
    (f"contains_any({ROLES}, set())", False),
    (f'contains_all({ROLES}, set("dev", "stage"))', True),
    (f'{ROLES}.contains_all(set("dev"))', True),
    (f'contains_all({ROLES}, set("dev", "prod"))', False),
    (f'contains_all(set("dev", "stage", "prod"), {ROLES})', True),
    (f'contains_all(set("dev"), {ROLES})', False),
    (f'set("stage", "dev").contains_all({ROLES})', True),
    (f"contains_all({ROLES}, set())", False),
    ("contains_all(set(), set())", False),
    (f"is_empty({ROLES})", False),
    ("set().isempty()", True),
    (f"{SPEC}user == `bob@example.com`", True),
    (f'{SPEC}user != "bob@example.com"', False),
    (f'"alice" == {SPEC}user', False),
    (f'{SPEC}request_reason == "say \\"please\\""', True),
    (f'{SPEC}request_reason == ""', False),
    (f'{SPEC}suggested_reviewers.contains("alice")', True),
    (f'contains_all({SPEC}suggested_reviewers, set("alice", "bob"))', False),
    (f'{SPEC}system_annotations["team"].contains("db")', True),
    (f'{SPEC}system_annotations.team.contains("db")', True),
    (f'{SPEC}system_annotations["team"].contains("web")', False),
    (f'is_empty({SPEC}system_annotations["other"])', True),
    (f'{SPEC}system_annotations["empty"].isempty()', True),
    ('contains_any(user.traits["level"], set("L1", "L2"))', True),
    ('contains_any(user.traits["level"], set("L2"))', False),
    ('user.traits["team"].contains_all(set("Cloud", "Tools"))', True),
    ('user.traits.team.contains("Cloud")', True),
    ('contains_any(user.traits["none"], set("L1"))', False),
    (
        f'contains_all(set("dev", "stage"), {ROLES}) &&\n  contains_any(user.traits["level"], set("L1", "L2"))',
        True,
    ),
    (f'contains_any({ROLES}, set("dev")) && contains_any(user.traits["level"], set("L9"))', False),
    ("1 == 1", True),
    ('"\\u0041\\x42\\n" == "AB\\n"', True),
    # What is no bool matches nothing.
    (ROLES, False),
    (f"{SPEC}user", False),
    (f"{SPEC}creation_time", False),
    (f"{SPEC}expiry", False),
    ("user.traits", False),
    ('set("x")', False),
    ("`true`", False),
    ("((((true))))", True),
    ('set("a", "b",).contains("b")', True),
]

# What Teleport 18.0 takes no rule with, and what it would mean.
BEYOND = [
    (f'contains({ROLES}, "stage")', True),
    (f'contains({ROLES}, "prod")', False),
    (f'{ROLES}\n.contains("dev")', True),
    ("true\n&& false", False),
]


@pytest.mark.parametrize(("text", "expected"), [*CONDITIONS, *BEYOND])
def test_a_condition_is_decided_as_teleport_decides_it(text: str, expected: bool) -> None:  # noqa: FBT001
    assert parse(text).holds(FACTS) is expected


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 1, "expected a value, found the end"),
        ("   ", 4, "expected a value, found the end"),
        (f'{SPEC}resource_labels_union["env"].contains("x")', 1, f"{SPEC}resource_labels_union is not known"),
        (f'regexp.match({ROLES}, "^d")', 1, "the function regexp.match is not known"),
        ('true && day(x) == "Monday"', 9, "the function day is not known"),
        (f'{ROLES}.matches("x")', 27, "the function matches is not known"),
        ("set().is_empty()", 7, "the function is_empty is not known"),
        (f"isempty({ROLES})", 1, "the function isempty is not known"),
        (f'{ROLES}.set("x")', 27, "the function set is not known"),
        (f'access_request.status.notified || {ROLES}.contains("x")', 1, "access_request.status.notified is not known"),
        ("nobody", 1, "nobody is not known"),
        ("user.name", 1, "user.name is not known"),
        (f"contains({ROLES})", 1, "contains takes 2 values, not 1"),
        (f'contains({ROLES}, "a", "b")', 1, "contains takes 2 values, not 3"),
        (f'contains_any({ROLES}, "dev")', 1, "expected a set, found a string"),
        ('"dev".contains("d")', 7, "expected a set, found a string"),
        (f"{SPEC}user && true", 26, "expected a bool, found a string"),
        ("true && 1", 9, "expected a bool, found a number"),
        ("!1", 1, "expected a bool, found a number"),
        (f'{ROLES} == "dev"', 27, "== compares strings or numbers, not a set"),
        (f"{SPEC}creation_time != {SPEC}expiry", 35, "!= compares strings or numbers, not a time"),
        ('"1" == 1', 5, "expected a string, found a number"),
        ('"a" == "b" == "c"', 12, "expected the end, found =="),
        (f'{ROLES}["dev"]', 26, "expected a map, found a set"),
        ("user.traits[1]", 12, "expected a string, found a number"),
        ("user.traits.x.y", 15, "expected a map, found a set"),
        ("(true", 6, "expected ), found the end"),
        ("true)", 5, "expected the end, found )"),
        ("true end", 6, "expected the end, found end"),
        ("true true", 6, "expected the end, found true"),
        ("set(,)", 5, "expected a value, found ,"),
        ("user.", 6, "expected a name, found the end"),
        ("true & false", 6, "'&' is not known"),
        ("'dev' == `x`", 1, '"\'" is not known'),
        ('"open', 1, "'\"' is not known"),
        ("`open", 1, "'`' is not known"),
        ('"\\q" == ""', 1, "the escape \\q is not known"),
        ('"\\ud800" == ""', 1, "the escape \\ud800 is not known"),
        ('"\\xff" == ""', 1, "the escape \\x is not known"),
        ("0x10 == 16", 1, "'0' is not known"),
        ("1.5 == 1", 1, "'1' is not known"),
        ("true // always", 6, "'/' is not known"),
        ("true < false", 6, "'<' is not known"),
        ("true" + " " * MAX_LENGTH, MAX_LENGTH + 1, f"the condition is longer than {MAX_LENGTH} characters"),
        ("(" * (MAX_DEPTH + 1) + "true" + ")" * (MAX_DEPTH + 1), MAX_DEPTH + 1, "nested more than"),
        ("||".join(["true"] * (MAX_TERMS + 1)), None, ""),
    ],
)
def test_what_is_not_evaluable_is_named_with_its_place(text: str, position: int | None, words: str) -> None:
    with pytest.raises(NotEvaluable) as caught:
        parse(text)
    assert words in caught.value.reason
    if position is not None:
        assert caught.value.position == position


@pytest.mark.parametrize(
    ("text", "needs"),
    [('contains_any(user.traits["level"], set("L1"))', True), (f'{ROLES}.contains("user.traits")', False)],
)
def test_traits_are_asked_for_only_where_they_are_needed(text: str, needs: bool) -> None:  # noqa: FBT001
    assert parse(text).needs_traits is needs


def test_what_teleport_does_not_say_of_a_request_is_empty() -> None:
    facts = facts_of(AccessRequest(id="x", user="", state="PENDING"), {})
    assert facts == Facts()
    for text, _ in CONDITIONS:
        assert parse(text).holds(facts) in {True, False}


WORDS = [
    *(f"{SPEC}{name}" for name in ("roles", "user", "system_annotations", "request_reason", "expiry")),
    "user.traits", "user.", "set", "contains", "contains_all", "contains_any", "is_empty", "true", "false",
    "&&", "||", "!", "==", "!=", "(", ")", "[", "]", ",", ".", '"dev"', "`x`", '"\\n"', "1", " ", "\n",
]  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=string.printable, max_size=80),
    st.lists(st.sampled_from(WORDS), max_size=60).map("".join),
    st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join),
    st.builds(
        lambda text, at, more: text[:at] + more + text[at + 1 :],
        st.sampled_from([text for text, _ in CONDITIONS]),
        st.integers(0, 80),
        st.sampled_from(WORDS),
    ),
    st.builds(
        lambda word, count: word * count,
        st.sampled_from([*WORDS, "!(", "set(", "a[", "true||", "x."]),
        st.integers(0, 2000),
    ),
)


@settings(deadline=None)
@given(TEXTS)
def test_any_text_is_decided_or_not_evaluable_within_bounds(text: str) -> None:
    """No other error, and no more terms than the bound, whatever an operator or a hostile server wrote."""
    problem: NotEvaluable | None = None
    try:
        condition = parse(text)
    except NotEvaluable as exc:
        problem = exc
    else:
        assert condition.terms <= min(MAX_TERMS, len(text))
        assert condition.holds(FACTS) in {True, False}
    assert problem is None or 1 <= problem.position <= len(text) + 1


def test_a_reading_takes_each_term_once() -> None:
    """Steps are bounded by the terms, also where sets are large."""
    steps = 0

    class Counting(frozenset[str]):
        def __contains__(self, one: object) -> bool:
            nonlocal steps
            steps += 1
            return super().__contains__(one)

    text = " || ".join([f'{ROLES}.contains("none")'] * 150)
    condition = parse(text)
    started = time.perf_counter()
    assert condition.holds(Facts(roles=Counting(str(n) for n in range(10_000)))) is False
    assert steps == 150
    assert condition.terms < 1000
    assert time.perf_counter() - started < 5


EXPRESSIONS = st.recursive(
    st.sampled_from(["true", "false"]),
    lambda inner: st.one_of(
        st.builds(lambda one: f"!({one})", inner),
        st.builds(lambda one, other: f"({one} && {other})", inner, inner),
        st.builds(lambda one, other: f"({one} || {other})", inner, inner),
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(EXPRESSIONS)
def test_the_connectives_mean_what_they_mean(text: str) -> None:
    python = text.replace("!", " not ").replace("&&", "and").replace("||", "or")
    expected = eval(python.replace("true", "True").replace("false", "False"))
    assert parse(text).holds(FACTS) is expected


def test_a_reason_is_short_whatever_the_condition_holds() -> None:
    with pytest.raises(NotEvaluable) as caught:
        parse("x" * 5000)
    assert len(caught.value.reason) < 210
