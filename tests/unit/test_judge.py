"""What becomes of what people say: a table of verdicts, and what holds for every input."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import Policy
from sidecar.decisions import expressions
from sidecar.decisions.expressions import (
    ACCEPTED,
    COUNTED,
    FORGED,
    Expression,
    Person,
    Rules,
    find_flaw,
    read_reactions,
    read_thread,
)
from sidecar.decisions.judge import ANYTHING, MOST_BY_ALL, MOST_BY_ONE, entry_for, judge, unjudged, with_room
from sidecar.decisions.quorum import progress, tally, votes
from sidecar.decisions.record import Slot
from sidecar.model import AccessRequest, Post, Reaction, Resource, Review, Threshold

BOT, CARD, CHANNEL = "bot", "card", "channel"
REQUEST = AccessRequest(id="r1", user="bob", state="PENDING", roles=("dbadmin",))
SLOT = Slot(r="ops/requests", c=CHANNEL, p=CARD, s="posted")
PEOPLE = {
    "a": Person("a", "alice"),
    "a2": Person("a2", "alice"),
    "i": Person("i", "ivan"),
    "b": Person("b", "bob"),
    "m": Person("m", problem="unmapped"),
    "x": Person("x"),
}
QUORUM = Rules(mode="plugin", policies={"*": Policy(("alice", "ivan"), 2, 1)})
SINGLE = Rules(mode="reviewer")


def say(user: str = "a", verb: str = "approve", at: int = 10, **more: Any) -> Expression:
    more = {"way": "reaction", "post_id": CARD, "channel_id": CHANNEL, "root_id": CARD} | more
    return Expression(user_id=user, verb=verb, at=at, **more)  # type: ignore[arg-type]


def outcomes(*said: Expression, rules: Rules = SINGLE, request: AccessRequest = REQUEST) -> list[str]:
    return [verdict.outcome for verdict in judge(said, said, PEOPLE, request, rules)]


def but(request: AccessRequest = REQUEST, **changes: Any) -> AccessRequest:
    return msgspec.structs.replace(request, **changes)


@pytest.mark.parametrize(
    ("said", "more", "expected"),
    [
        ([say()], {}, [ACCEPTED]),
        ([say("i", "deny")], {}, [ACCEPTED]),
        ([say("b")], {}, ["own_request"]),
        ([say("a")], {"request": but(user="ALICE")}, ["own_request"]),
        ([say("m")], {}, ["unmapped"]),
        ([say("x")], {}, ["unmapped"]),
        ([say("nobody")], {}, ["unknown"]),
        ([say(flaw="forged")], {}, ["forged"]),
        ([say(flaw="edited")], {}, ["edited"]),
        ([say(verb="?", flaw="malformed")], {}, ["malformed"]),
        ([say("m", "?", flaw="malformed")], {}, ["unmapped"]),
        ([say(), say(verb="deny", at=11)], {}, ["conflict", "conflict"]),
        ([say(), say("a2", "deny")], {}, ["conflict", "conflict"]),
        ([say(), say("a2", at=11)], {}, [ACCEPTED, "duplicate"]),
        ([say(), say("a2", at=11)], {"rules": QUORUM}, [ACCEPTED, ACCEPTED]),
        ([say()], {"request": but(reviews=(Review("alice", "APPROVED"),))}, ["on_record"]),
        ([say()], {"request": but(reviews=(Review("alice", "DENIED"),))}, ["duplicate"]),
        ([say()], {"request": but(state="APPROVED", reviews=(Review("alice", "APPROVED"),))}, ["on_record"]),
        ([say()], {"request": but(state="DENIED")}, ["resolved"]),
        ([say()], {"request": but(state="STATE 9")}, ["resolved"]),
        ([say()], {"request": but(kind="LONG_TERM")}, ["long_term"]),
        ([say()], {"request": but(kind="KIND 7")}, ["unknown_kind"]),
        ([say()], {"request": but(kind="SHORT_TERM")}, [ACCEPTED]),
        ([say()], {"request": but(resources=(Resource("", "node", "n", unreadable=True),))}, ["unreadable"]),
        ([say()], {"rules": Rules(mode="reviewer", require_reason="approve")}, ["reason_required"]),
        ([say(verb="deny")], {"rules": Rules(mode="reviewer", require_reason="approve")}, [ACCEPTED]),
        ([say(reason="ok")], {"rules": Rules(mode="reviewer", require_reason="both")}, [ACCEPTED]),
        # What lacked its reason was no decision, so its author may still choose the other one.
        (
            [say(), say(verb="deny", at=11, reason="no", way="reply", post_id="p")],
            {"rules": Rules(mode="reviewer", require_reason="both")},
            ["reason_required", ACCEPTED],
        ),
        ([say()], {"rules": Rules(mode="plugin", policies={"*": Policy(("ivan",), 1, 1)})}, ["not_reviewer"]),
        ([say()], {"rules": Rules(mode="plugin", policies={"web": Policy(("alice",), 1, 1)})}, ["not_reviewer"]),
    ],
)
def test_verdicts(said: list[Expression], more: dict[str, Any], expected: list[str]) -> None:
    assert outcomes(*said, **more) == expected


@pytest.mark.parametrize(
    ("person", "more", "expected"),
    [
        (Person("a", "alice-admin", also=("Bob",)), {}, "own_request"),
        (Person("a", "alice"), {"asker": frozenset({"a"})}, "own_request"),
        (Person("a", "alice"), {"asker": frozenset({"x"})}, ACCEPTED),
        # The account that asks is linked to this Teleport user, too.
        (Person("a", "Alice"), {"asker": frozenset({"x"}), "linked": {"x": "alice"}}, "own_request"),
        (Person("a", "alice"), {"asker": None}, "requester_unknown"),
        # One account is one head, whatever it is linked to by now; what was refused of it does not matter.
        (Person("a", "alice2"), {"heads": (("a", "alice"),)}, "another_name"),
        (Person("a", "alice"), {"heads": (("a", "alice"),)}, ACCEPTED),
        (Person("a", "alice2"), {"ledger": (("a", "approve", "reply|p", 5, "submitted"),)}, "another_name"),
        (Person("a", "alice2"), {"heads": (("i", "ivan"),)}, ACCEPTED),
        (Person("a", "alice2"), {"ledger": (("a", "approve", "reply|p", 5, "not_allowed"),)}, ACCEPTED),
    ],
)
def test_one_account_is_one_head_and_never_the_requesters(person: Person, more: dict[str, Any], expected: str) -> None:
    rules = msgspec.structs.replace(SINGLE, linked=more.pop("linked", {}))
    (verdict,) = judge([say()], [say()], {"a": person}, REQUEST, rules, **more)
    assert verdict.outcome == expected


def test_teleport_users_that_share_an_account_are_one_head() -> None:
    """The account of one of them need not speak: the tables tell that the two are one."""
    people = {"a": Person("a", "alice", also=("ivan",)), "i": Person("i", "ivan", also=("alice",))}
    said = [say(), say("i", at=11)]
    verdicts = judge(said, said, people, REQUEST, QUORUM)
    assert votes(said, (), verdicts, people, QUORUM, REQUEST) == {"alice": "approve"}
    said = [say(), say("i", "deny", at=11)]
    verdicts = judge(said, said, people, REQUEST, QUORUM)
    assert votes(said, (), verdicts, people, QUORUM, REQUEST) == {}


def test_who_reviewed_on_teleport_is_no_head_here() -> None:
    counted = (("a", "approve", f"reaction|{CARD}", 10, COUNTED),)
    request = but(reviews=(Review("Alice", "APPROVED"),))
    assert votes([say()], counted, [], PEOPLE, QUORUM, request) == {}
    assert outcomes(say(), rules=QUORUM, request=request) == ["on_record"]
    assert outcomes(say(verb="deny"), rules=QUORUM, request=request) == ["duplicate"]


@pytest.mark.parametrize(
    ("mode", "thresholds", "expected"),
    [
        ("plugin", (Threshold(1, 1),), ACCEPTED),
        ("plugin", (Threshold(2, 1),), "unfiltered"),
        ("plugin", (Threshold(1, 2),), "unfiltered"),
        ("plugin", (Threshold(2, 1, filter="x"),), ACCEPTED),
        ("plugin", (Threshold(1, 1, filter="x"), Threshold(2, 1)), "unfiltered"),
        ("reviewer", (Threshold(2, 1),), ACCEPTED),
    ],
)
def test_our_own_review_adds_up_with_nobodys(mode: Any, thresholds: Any, expected: str) -> None:
    rules = msgspec.structs.replace(QUORUM, mode=mode)
    assert outcomes(say(), rules=rules, request=but(thresholds=thresholds)) == [expected]


def test_a_direct_message_that_counted_before_a_restart_is_asked_for_once_more() -> None:
    lost = say(way="direct", post_id="dm", flaw="unheard")
    assert unjudged([lost], (("a", "approve", "direct|dm", 10, COUNTED),)) == [lost]
    assert unjudged([lost], (("a", "approve", "direct|dm", 10, "unheard"),)) == []
    assert unjudged([lost], (("a", "approve", "direct|dm", 10, "submitted"),)) == []


def test_reactions_count_by_emoji_post_and_author() -> None:
    rules = Rules(mode="reviewer", approve=("+1",), deny=("-1",))

    def reaction(emoji: str = "+1", user: str = "a", post: str = CARD, **more: Any) -> Reaction:
        return Reaction(user, post, emoji, 5, **more)

    ignored = [reaction("tada"), reaction(user=BOT), reaction(post="other"), reaction(delete_at=3)]
    found = read_reactions(SLOT, [*ignored, reaction("-1"), reaction(remote_id="far")], rules, BOT)
    assert [(one.verb, one.flaw) for one in found] == [("deny", ""), ("approve", "remote")]
    assert read_reactions(SLOT, [reaction()], msgspec.structs.replace(rules, ways=("reply",)), BOT) == []


def thread(*replies: Post) -> list[Post]:
    return [Post(CARD, CHANNEL, BOT, create_at=5), *replies]


def reply(message: str = "approve", user: str = "a", **more: Any) -> Post:
    fields = {"channel_id": CHANNEL, "create_at": 10, "root_id": CARD, "message": message}
    return Post("p", user_id=user, **fields | more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("post", "expected"),
    [
        (reply(), [("approve", "")]),
        (reply("deny because no"), [("deny", "")]),
        (reply("approve? not sure"), [("?", "malformed")]),
        (reply("looking at it"), []),
        (reply(user=BOT), []),
        (reply(root_id="other"), []),
        (reply(channel_id="other"), []),
        (reply(delete_at=12), []),
        (reply(create_at=4), [("approve", "forged")]),
        (reply(edit_at=12), [("approve", "edited")]),
        (reply(type="custom_poll"), [("approve", "forged")]),
        (reply(original_id="q"), [("approve", "forged")]),
        (reply(remote_id="far"), [("approve", "remote")]),
        *((reply(props=frozenset({mark})), [("approve", "forged")]) for mark in sorted(FORGED)),
    ],
)
def test_replies(post: Post, expected: list[tuple[str, str]]) -> None:
    found = read_thread(SLOT, thread(post), SINGLE, BOT)
    assert [(one.verb, one.flaw) for one in found] == expected


def test_a_thread_whose_root_is_gone_says_nothing() -> None:
    assert read_thread(SLOT, [reply()], SINGLE, BOT) == []


def test_what_was_judged_is_fresh_again_only_when_it_is_given_again() -> None:
    ledger = (("a", "approve", f"reaction|{CARD}", 10, "conflict"),)
    assert unjudged([say(at=10), say(at=9)], ledger) == []
    assert unjudged([say(at=11)], ledger) == [say(at=11)]
    assert unjudged([say(verb="deny", at=3)], ledger) == [say(verb="deny", at=3)]


def test_of_a_stranger_all_that_was_said_until_then_is_refused() -> None:
    ledger = (("m", ANYTHING, ANYTHING, 10, "unmapped"),)
    assert unjudged([say("m"), say("m", "deny", 9), say("m", at=10, way="reply", post_id="p")], ledger) == []
    assert unjudged([say("m", at=11)], ledger) == [say("m", at=11)]
    (verdict,) = judge([say("m", at=11)], [], PEOPLE, REQUEST, SINGLE)
    assert entry_for(verdict, verdict.outcome) == ("m", ANYTHING, ANYTHING, 11, "unmapped")


def test_one_person_fills_their_own_room_alone() -> None:
    many = [say("a", at=n, way="reply", post_id=f"p{n}") for n in range(1, MOST_BY_ONE + 5)]
    ledger = tuple(("a", one.verb, one.source, one.at, "malformed") for one in many[:MOST_BY_ONE])
    assert len(with_room(many, PEOPLE, ())) == MOST_BY_ONE
    assert with_room(unjudged(many, ledger), PEOPLE, ledger) == []
    assert with_room([say("i")], PEOPLE, ledger) == [say("i")]
    # What is given again takes no more room.
    assert with_room([msgspec.structs.replace(many[0], at=99)], PEOPLE, ledger)


def test_nobody_else_fills_the_room_of_a_reviewer() -> None:
    ledger = tuple((f"s{n}", "approve", "reply|p", 10, "not_reviewer") for n in range(MOST_BY_ALL))
    fresh = [say("m", at=11), say("nobody", at=11), say("a", at=12), say("a", "deny", at=12)]
    assert with_room(fresh, PEOPLE, ledger) == [fresh[2]]
    assert with_room(fresh, PEOPLE, ()) == fresh[2:]


@pytest.mark.parametrize(
    ("cast", "roles", "expected"),
    [
        ({}, ("dbadmin",), ""),
        ({"alice": "approve"}, ("dbadmin",), ""),
        ({"alice": "approve", "ivan": "approve"}, ("dbadmin",), "APPROVED"),
        ({"alice": "approve", "ivan": "deny"}, ("dbadmin",), "DENIED"),
        ({"alice": "approve", "bob": "approve"}, ("dbadmin",), ""),
        ({"alice": "approve", "carol": "approve"}, ("dbadmin",), ""),
        ({"alice": "approve", "ivan": "approve"}, ("dbadmin", "web"), ""),
        ({"alice": "approve", "ivan": "approve", "carol": "approve"}, ("dbadmin", "web"), "APPROVED"),
        ({"alice": "approve", "ivan": "approve", "carol": "approve"}, (), "APPROVED"),
    ],
)
def test_each_role_has_its_own_quorum(cast: dict[str, str], roles: tuple[str, ...], expected: str) -> None:
    everybody = Policy(("alice", "ivan", "bob"), 2, 1)
    rules = Rules(mode="state", policies={"*": everybody, "web": Policy(("carol",), 1, 1)})
    assert tally(but(roles=roles), cast, rules) == expected


def test_a_role_without_a_policy_is_never_approved() -> None:
    rules = Rules(mode="plugin", policies={"web": Policy(("alice",), 1, 1)})
    assert tally(REQUEST, {"alice": "approve"}, rules) == ""
    assert tally(but(roles=("web", "dbadmin")), {"alice": "approve"}, rules) == ""


def test_progress_is_told_by_role_where_several_count_apart() -> None:
    assert progress(REQUEST, {"alice": "approve"}, QUORUM, "approve") == "1 of 2"
    assert progress(REQUEST, {"alice": "deny"}, QUORUM, "deny") == "1 of 1"
    rules = msgspec.structs.replace(QUORUM, policies=QUORUM.policies | {"web": Policy(("carol",), 1, 1)})
    expected = "1 of 2 for dbadmin, 0 of 1 for web"
    assert progress(but(roles=("dbadmin", "web")), {"alice": "approve"}, rules, "approve") == expected


def cast(*said: Expression, ledger: tuple[expressions.LedgerEntry, ...] = ()) -> dict[str, str]:
    fresh = unjudged(said, ledger)
    return votes(said, ledger, judge(fresh, said, PEOPLE, REQUEST, QUORUM), PEOPLE, QUORUM, REQUEST)


def test_a_vote_counts_while_it_stands_and_is_of_one_mind() -> None:
    counted = (("a", "approve", f"reaction|{CARD}", 10, COUNTED),)
    assert cast(say(), ledger=counted) == {"alice": "approve"}
    assert cast(ledger=counted) == {}
    assert cast(say(), say(verb="deny", at=12), ledger=counted) == {}
    assert cast(say("a2", "deny", 12), ledger=counted) == {"alice": "deny"}
    assert cast(say("b")) == {}


# -- for every input --

PROBLEMS = ("", "bot", "deactivated", "remote", "guest", "unmapped", "unknown", "renamed", "identity_unsafe")
USERS = tuple("abcde")
persons = st.builds(
    Person, user_id=st.just(""), teleport_user=st.sampled_from(("", "alice", "ivan", "bob")),
    problem=st.sampled_from(PROBLEMS),
)  # fmt: skip
crowds = st.fixed_dictionaries({}, optional=dict.fromkeys(USERS, persons))
spoken = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(USERS),
        "verb": st.sampled_from(("approve", "deny", "?")),
        "way": st.sampled_from(("reaction", "reply", "direct")),
        "post_id": st.sampled_from(("card", "p1", "p2")),
        "at": st.integers(0, 5),
        "channel_id": st.just(CHANNEL),
        "reason": st.sampled_from(("", "because")),
        "flaw": st.sampled_from(("", "", "", "forged", "edited", "remote")),
    }
).map(lambda one: Expression(**one | {"flaw": one["flaw"] or ("malformed" if one["verb"] == "?" else "")}))  # type: ignore[arg-type]
speech = st.lists(spoken, max_size=8)
requests = st.builds(
    lambda state, authors, user: but(
        state=state, user=user, reviews=tuple(Review(author, "APPROVED") for author in sorted(authors))
    ),
    st.sampled_from(("PENDING", "PENDING", "APPROVED", "DENIED", "STATE 9")),
    st.sets(st.sampled_from(("alice", "ivan"))),
    st.sampled_from(("bob", "alice", "Alice")),
)
rule_sets = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(("reviewer", "plugin", "state", "on_behalf")),
        "require_reason": st.sampled_from(("none", "approve", "deny", "both")),
        "policies": st.just({"*": Policy(("alice", "ivan", "bob"), 2, 1)}),
    }
).map(lambda fields: Rules(**fields))  # type: ignore[arg-type]


@given(speech, crowds, requests, rule_sets)
def test_only_a_person_in_good_standing_is_ever_accepted(
    said: list[Expression], people: dict[str, Person], request: AccessRequest, rules: Rules
) -> None:
    for verdict in judge(unjudged(said, ()), said, people, request, rules):
        if verdict.outcome == ACCEPTED:
            person = people[verdict.expression.user_id]
            assert not person.problem
            assert person.teleport_user
            assert person.teleport_user.lower() != request.user.lower()
            assert not verdict.expression.flaw
            assert verdict.expression.verb in ("approve", "deny")
            assert request.state == "PENDING"


@given(speech, crowds, requests, rule_sets)
def test_one_teleport_user_is_submitted_at_most_once_and_for_one_thing(
    said: list[Expression], people: dict[str, Person], request: AccessRequest, rules: Rules
) -> None:
    accepted = [one for one in judge(unjudged(said, ()), said, people, request, rules) if one.outcome == ACCEPTED]
    users = [one.person.teleport_user for one in accepted]
    assert rules.by_quorum or len(users) == len(set(users))
    assert len({(one.person.teleport_user, one.expression.verb) for one in accepted}) == len(set(users))


@given(speech, crowds, requests, rule_sets, st.randoms())
def test_the_order_of_reading_changes_nothing(
    said: list[Expression], people: dict[str, Person], request: AccessRequest, rules: Rules, random: Any
) -> None:
    shuffled = said.copy()
    random.shuffle(shuffled)
    first = judge(unjudged(said, ()), said, people, request, rules)
    second = judge(unjudged(shuffled, ()), shuffled, people, request, rules)
    assert first == second
    assert votes(said, (), first, people, rules, request) == votes(shuffled, (), second, people, rules, request)


@given(speech, crowds, requests, rule_sets)
def test_nothing_is_judged_twice(
    said: list[Expression], people: dict[str, Person], request: AccessRequest, rules: Rules
) -> None:
    verdicts = judge(unjudged(said, ()), said, people, request, rules)
    ledger = tuple(entry_for(verdict, verdict.outcome) for verdict in verdicts)
    assert unjudged(said, ledger) == []


@given(speech, crowds, requests)
def test_an_approval_needs_as_many_people_as_the_policy_says(
    said: list[Expression], people: dict[str, Person], request: AccessRequest
) -> None:
    rules = Rules(mode="plugin", policies={"*": Policy(("alice", "ivan", "bob"), 2, 1)})
    verdicts = judge(unjudged(said, ()), said, people, request, rules)
    counted = votes(said, (), verdicts, people, rules, request)
    if tally(request, counted, rules) == "APPROVED":
        approving = {
            people[one.user_id].teleport_user for one in said if one.verb == "approve" and one.user_id in people
        }
        assert len(approving - {request.user}) >= 2
        assert "deny" not in counted.values()


def test_a_plain_post_has_no_flaw() -> None:
    """The property above is worth something only if something can pass."""
    assert find_flaw(reply()) == ""
