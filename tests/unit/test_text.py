"""What people read: whole cards, then each field and state as a table."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from sidecar.model import AccessRequest, Draft, Mark, Post, Resource, Review, Threshold
from sidecar.text.card import TextOptions, close_card, content_hash, is_of_cluster, render_card
from sidecar.text.names import asks
from sidecar.text.replies import (
    render_end_reply,
    render_gone_reply,
    render_reminder,
    render_review_reply,
    told_end,
)
from tests.golden import Golden

ID = "0193523a-2c9e-7d5c-9a3b-1f2e3d4c5b6a"
CREATED = 1795338000.0  # 2026-11-22 09:00 UTC
HOUR = 3600
OPTIONS = TextOptions(
    cluster="example.com", web_url="https://teleport.example.com", ways=("reaction", "reply", "direct")
)
REQUEST = AccessRequest(
    id=ID,
    user="bob@example.com",
    state="PENDING",
    roles=("dbadmin", "sre"),
    reason="Restore `orders`\nfrom the backup",
    created=CREATED,
    expires=CREATED + HOUR,
    access_until=CREATED + 8 * HOUR,
    thresholds=(Threshold(2, 1),),
    reviews=(Review("alice@example.com", "APPROVED", "fine"),),
    resources=(
        Resource("example.com", "node", "web-1"),
        Resource("leaf", "db", "orders"),
        Resource("example.com", "node", "web-2"),
    ),
)


def fields(draft: Draft) -> dict[str, str]:
    assert draft.attachment is not None
    return {field["title"]: field["value"] for field in cast("list[dict[str, str]]", draft.attachment["fields"])}


def card(options: TextOptions = OPTIONS, state: str | None = None, **changes: Any) -> dict[str, str]:
    request = msgspec.structs.replace(REQUEST, **changes)
    return fields(render_card(request, options=options, state=state))


def test_a_whole_card(golden: Golden) -> None:
    draft = render_card(REQUEST, options=OPTIONS)
    assert draft.attachment is not None
    assert set(draft.attachment) == {"fallback", "color", "fields", "footer"}
    assert draft.attachment["color"] == "#ffbc1f"
    assert draft.attachment["fallback"] == f"PENDING: bob@example.com asks for dbadmin, sre ({ID})"
    golden(draft.message, *(f"{title}: {value}" for title, value in fields(draft).items()), draft.attachment["footer"])


MANY: dict[str, Any] = {"roles": ("a", "b", "`c`", "d", "e")}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "`bob@example.com` asks for `dbadmin`, `sre`: `Restore 'orders' from the backup`"),
        ({"reason": ""}, "`bob@example.com` asks for `dbadmin`, `sre`"),
        ({"reason": " \n"}, "`bob@example.com` asks for `dbadmin`, `sre`"),
        (MANY, "`bob@example.com` asks for `a`, `b`, `'c'` and 2 more: `Restore 'orders' from the backup`"),
        ({"roles": (), "reason": ""}, "`bob@example.com` asks for 3 resources"),
        ({"roles": (), "resources": REQUEST.resources[:1], "user": "", "reason": "x"},
         "Somebody asks for 1 resource: `x`"),
        ({"user": "@all\n", "roles": ("[a](x)",), "reason": "@here"}, "`@all` asks for `[a](x)`: `@here`"),
        ({"roles": ("x",), "reason": "é" * 121}, "`bob@example.com` asks for `x`: `" + "é" * 120 + "…`"),
        ({"roles": ("x",), "reason": "<" * 120}, "`bob@example.com` asks for `x`: `" + "<" * 120 + "`"),
    ],
)  # fmt: skip
def test_the_first_words_say_who_asks_for_what_and_why(changes: dict[str, Any], said: str) -> None:
    """They are what a notification, a search and a list of threads show, and never change."""
    request = msgspec.structs.replace(REQUEST, **changes)
    assert asks(request) == said
    for state, kind in (("PENDING", "card"), ("DENIED", "requester")):
        draft = render_card(msgspec.structs.replace(request, state=state), options=OPTIONS, kind=cast("Any", kind))
        assert draft.message == f"{said}\nAccess request {ID}"


def test_nothing_is_said_twice_and_what_changes_comes_first() -> None:
    assert list(card()) == ["State", "Reviews", "Expires", "Access until", "Resources", "Decide"]
    assert list(card(**MANY))[:2] == ["Roles", "State"]
    assert card(**MANY)["Roles"] == "`a`, `b`, `'c'`, `d`, `e`"
    assert card(reason="x" * 121)["Reason"] == "```\n" + "x" * 121 + "\n```"
    assert "Reason" not in card(reason="x" * 120)
    same: dict[str, Any] = {"access_until": REQUEST.expires}
    assert "Access until" not in card(**same)
    assert "Expires" not in card(**same, state="APPROVED")
    assert card(**same, state="APPROVED")["Access until"] == "2026-11-22 10:00 UTC, 1 h"


def test_two_fields_stand_side_by_side_where_both_say_something() -> None:
    def short(**changes: Any) -> list[str]:
        draft = render_card(msgspec.structs.replace(REQUEST, **changes), options=OPTIONS)
        assert draft.attachment is not None
        return [one["title"] for one in cast("list[dict[str, Any]]", draft.attachment["fields"]) if one["short"]]

    assert short() == ["State", "Reviews", "Expires", "Access until"]
    assert short(reviews=(), thresholds=()) == ["Expires", "Access until"]
    assert short(access_until=None) == ["State", "Reviews"]


def test_a_card_whose_message_says_nothing_says_it_all_itself() -> None:
    """A version before this one made it, and no message is ever edited."""
    shown = fields(render_card(REQUEST, options=OPTIONS, whole=True))
    assert [shown[one] for one in ("Requester", "Roles")] == ["`bob@example.com`", "`dbadmin`, `sre`"]
    assert shown["Reason"].startswith("```\nRestore `orders`\n")


def test_a_resolved_card_has_its_resolution_and_nothing_to_decide() -> None:
    shown = card(
        state="DENIED",
        resolve_reason="no ticket @all",
        reviews=(*REQUEST.reviews, Review("ivan@example.com", "DENIED", "no ticket @all")),
    )
    assert list(shown) == ["State", "Reviews", "Expires", "Access until", "Resources", "Resolution"]
    assert shown["Resolution"] == "```\nno ticket @all\n```"
    assert shown["Reviews"] == "1 of 2 approvals: `alice@example.com`; 1 denial: `ivan@example.com`"


def test_the_least_request_has_the_least_card() -> None:
    draft = render_card(AccessRequest(id=ID, user="bob", state="APPROVED"), options=TextOptions())
    assert list(fields(draft)) == ["State"]
    assert draft.attachment is not None
    assert draft.attachment["footer"] == ID
    assert draft.attachment["fallback"] == f"APPROVED: bob asks for 0 resources ({ID})"


@pytest.mark.parametrize("state", ["APPROVED", "DENIED", "EXPIRED", "PROMOTED", "REMOVED"])
@pytest.mark.parametrize("kind", ["card", "requester"])
def test_no_card_that_ended_says_pending(state: str, kind: Any) -> None:
    options = msgspec.structs.replace(OPTIONS, unasked=True, left_out=3)
    draft = render_card(REQUEST, options=options, kind=kind)
    for ended in (
        render_card(REQUEST, options=options, kind=kind, state=state),
        close_card(draft.attachment, ID, state),
        close_card(None, ID, state),
    ):
        assert "pending" not in str(ended).lower()
        assert state in str(ended.attachment)


def test_a_card_that_is_closed_keeps_its_small_print() -> None:
    draft = render_card(REQUEST, options=OPTIONS)
    closed = close_card(draft.attachment, ID, "EXPIRED").attachment
    assert draft.attachment is not None
    assert closed is not None
    assert closed["footer"] == draft.attachment["footer"] == f"example.com · created 2026-11-22 09:00 UTC · {ID}"


@pytest.mark.parametrize(
    ("mark", "field", "ours"),
    [("example.com", "", True), ("else.com", "`example.com`", False), ("", "`example.com`", True), ("", "", False)],
)
def test_whose_card_it_is(mark: str, field: str, ours: bool) -> None:  # noqa: FBT001
    attachment = {"fields": [{"title": "Cluster", "value": field, "short": True}]} if field else None
    post = Post("p", "c", "bot", mark=Mark(c=mark), attachment=cast("Any", attachment))
    assert is_of_cluster(post, "example.com") == ours
    assert not is_of_cluster(post, "")


@pytest.mark.parametrize(
    ("state", "colour", "shown", "decidable"),
    [
        ("PENDING", "#ffbc1f", "⏳ PENDING", True),
        ("APPROVED", "#3db887", "✅ APPROVED", False),
        ("DENIED", "#d24b4e", "❌ DENIED", False),
        ("PROMOTED", "#1c58d9", "PROMOTED to the access list `Production @here`", False),
        ("EXPIRED", "#8d8d8d", "⌛ EXPIRED", False),
        ("REMOVED", "#8d8d8d", "REMOVED", False),
        ("STATE 7", "#8d8d8d", "STATE 7", False),
        ("@all", "#8d8d8d", "STATE ?", False),
    ],
)
def test_each_state(state: str, colour: str, shown: str, decidable: bool) -> None:  # noqa: FBT001
    request = msgspec.structs.replace(REQUEST, state=state, promoted_title="Production @here", promoted_name="x")
    draft = render_card(request, options=OPTIONS)
    assert draft.attachment is not None
    assert draft.attachment["color"] == colour
    assert fields(draft)["State"] == shown
    assert ("Decide" in fields(draft)) == decidable
    assert str(draft.attachment["fallback"]).startswith(shown.lstrip("⏳✅❌⌛ ").split(" to ")[0] + ": ")


def test_promoted_without_a_title_names_the_list() -> None:
    assert card(state="PROMOTED", promoted_name="prod")["State"] == "PROMOTED to the access list `prod`"
    assert card(state="PROMOTED")["State"] == "PROMOTED"


ALICE, IVAN = Review("alice", "APPROVED"), Review("ivan", "DENIED")


@pytest.mark.parametrize(
    ("thresholds", "reviews", "state", "shown"),
    [
        ((Threshold(2, 1),), (), "PENDING", "0 of 2 approvals"),
        ((Threshold(2, 1),), (), "EXPIRED", None),
        ((Threshold(1, 1),), (), "PENDING", None),
        ((Threshold(1, 1),), (ALICE,), "APPROVED", "1 of 1 approval: `alice`"),
        ((Threshold(2, 1),), (IVAN,), "PENDING", "0 of 2 approvals; 1 denial: `ivan`"),
        ((Threshold(2, 1),), (IVAN,), "DENIED", "1 denial: `ivan`"),
        ((Threshold(2, 1, filter="contains(reviewer.roles, 'x')"),), (ALICE,), "PENDING", "1 approval: `alice`"),
        ((Threshold(2, 1), Threshold(1, 1)), (ALICE, IVAN), "PENDING", "1 approval: `alice`; 1 denial: `ivan`"),
        ((Threshold(0, 1),), (ALICE,), "PENDING", "1 approval: `alice`"),
        ((), (ALICE, Review("eve", "APPROVED")), "PENDING", "2 approvals: `alice`, `eve`"),
        ((), (Review("a", "PROMOTED"), Review("b", "STATE 9")), "PROMOTED", "1 promotion: `a`; 1 other review: `b`"),
        ((), (Review("@all", "APPROVED"), Review("", "APPROVED")), "PENDING", "2 approvals: `@all`, `(empty)`"),
    ],
)
def test_reviews(thresholds: object, reviews: object, state: str, shown: str | None) -> None:
    """It says "1 of 2" only where exactly one threshold without a filter decides."""
    assert card(thresholds=thresholds, reviews=reviews, state=state).get("Reviews") == shown


@pytest.mark.parametrize(
    ("changes", "zone", "shown"),
    [
        ({}, None, "2026-11-22 17:00 UTC, 8 h"),
        ({}, "Europe/Paris", "2026-11-22 17:00 UTC (18:00 CET), 8 h"),
        ({}, "Asia/Tokyo", "2026-11-22 17:00 UTC (2026-11-23 02:00 JST), 8 h"),
        ({"created": None}, None, "2026-11-22 17:00 UTC"),
        ({"created": CREATED + 9 * HOUR}, None, "2026-11-22 17:00 UTC"),
        ({"access_until": CREATED + 5399.6}, None, "2026-11-22 10:29 UTC, 1 h 30 min"),
        ({"access_until": CREATED + 49 * HOUR}, None, "2026-11-24 10:00 UTC, 2 d 1 h"),
        ({"access_until": CREATED + 20}, None, "2026-11-22 09:00 UTC"),
        ({"assume_start": CREATED + HOUR}, None, "2026-11-22 17:00 UTC, 8 h, not before 2026-11-22 10:00 UTC"),
        ({"access_until": None}, None, None),
        ({"access_until": 1e18}, None, None),
        ({"access_until": float("nan")}, None, None),
        ({"access_until": float("inf"), "created": float("-inf")}, None, None),
        ({"created": 1e300}, None, "2026-11-22 17:00 UTC"),
        ({"access_until": 253402300799.0, "created": None}, "Asia/Tokyo", None),
    ],
)
def test_times_are_absolute(changes: dict[str, Any], zone: str | None, shown: str | None) -> None:
    options = msgspec.structs.replace(OPTIONS, time_zone=zone)
    assert card(options, **changes).get("Access until") == shown


LINK = f"[Review in Teleport](https://teleport.example.com/web/requests/{ID})"
TSH = f"`tsh request review --approve {ID}` or `tsh request review --deny {ID}`"


@pytest.mark.parametrize(
    ("changes", "options", "shown"),
    [
        ({}, {}, (f"{LINK}. Here: react with :white_check_mark: or :x:; or reply `approve` or `deny because …`; or"
         " write me `approve 3d4c5b6a` or `deny 3d4c5b6a …`.")),
        ({}, {"ways": ()}, f"{LINK}. {TSH}"),
        ({}, {"ways": (), "web_url": ""}, TSH),
        ({}, {"ways": (), "reviews_supported": False}, TSH),
        ({}, {"ways": (), "web_url": "https://x)[y](javascript:z"}, TSH),
        ({}, {"ways": (), "web_url": "javascript:alert"}, TSH),
        ({}, {"ways": (), "web_url": "https://[::1]/"},
         f"[Review in Teleport](https://[::1]/web/requests/{ID}). {TSH}"),
        ({}, {"ways": ("reply",), "web_url": ""}, f"Here: reply `approve` or `deny because …`. {TSH}"),
        ({}, {"ways": ("reply",), "web_url": "", "commands": False}, "Here: reply `approve` or `deny because …`."),
        ({}, {"ways": ("reply",), "require_reason": "approve"},
         f"{LINK}. Here: reply `approve because …` or `deny because …`."),
        ({}, {"ways": ("reaction",), "require_reason": "deny"}, f"{LINK}. Here: react with :white_check_mark:."),
        ({}, {"ways": ("reaction",), "require_reason": "both"}, f"{LINK}. {TSH}"),
        ({}, {"ways": ("direct",), "whole_ids": True}, f"{LINK}. Here: write me `approve {ID}` or `deny {ID} …`."),
        ({}, {"ways": ("reply",), "deciders": ("alice@example.com", "@all")},
         f"{LINK}. `alice@example.com`, `@all`: reply `approve` or `deny because …`."),
        ({}, {"ways": ("reply",), "left_out": 3},
         (f"{LINK}. Here: reply `approve` or `deny because …`."
         " Suggested reviewers were told directly, and 3 more were not.")),
        ({"kind": "LONG_TERM"}, {}, f"A long-term request. {LINK}"),
        ({"kind": "LONG_TERM"}, {"web_url": ""}, "A long-term request. Review it on the web page of Teleport."),
        (
            {"kind": "KIND 7"},
            {"web_url": ""},
            "A kind of request that this sidecar does not know. Review it on the web page of Teleport.",
        ),
        (
            {"resources": (Resource("", "node", "n", unreadable=True),)},
            {"web_url": ""},
            "A request narrowed in a way this sidecar cannot show. Review it on the web page of Teleport.",
        ),
    ],
)  # fmt: skip
def test_how_to_decide(changes: dict[str, Any], options: dict[str, Any], shown: str) -> None:
    """One line, and the commands only for whom nothing shorter leads anywhere."""
    assert card(msgspec.structs.replace(OPTIONS, **options), **changes)["Decide"] == shown


@pytest.mark.parametrize("request_id", ["$(reboot)", "a; b", "x\ny", "`", "", "a" * 65])
def test_an_odd_id_never_gets_into_a_command_or_a_link(request_id: str) -> None:
    assert "Decide" not in card(id=request_id)
    requester = render_card(
        msgspec.structs.replace(REQUEST, id=request_id, state="APPROVED"), options=OPTIONS, kind="requester"
    )
    assert requester.attachment is not None
    assert "tsh" not in str(requester.attachment["pretext"])


def test_an_odd_id_cannot_mention_anybody_in_the_message() -> None:
    draft = render_card(msgspec.structs.replace(REQUEST, id="@all #x"), options=OPTIONS)
    assert draft.message.endswith("\nAccess request ?all??x")


@pytest.mark.parametrize(
    ("state", "pretext"),
    [
        ("PENDING", "Your access request waits for review."),
        ("APPROVED", f"Your access request was approved. Use it with `tsh login --request-id={ID}`."),
        (
            "DENIED",
            'Your access request was denied. To ask again: `tsh request create --roles=dbadmin,sre --reason="…"`.',
        ),
        (
            "EXPIRED",
            (
                "Your access request expired before it was decided."
                ' To ask again: `tsh request create --roles=dbadmin,sre --reason="…"`.'
            ),
        ),
        ("STATE 7", "Your access request changed."),
    ],
)
def test_the_requester_is_told_and_never_asked(state: str, pretext: str) -> None:
    draft = render_card(msgspec.structs.replace(REQUEST, state=state), options=OPTIONS, kind="requester")
    assert draft.attachment is not None
    assert draft.attachment["pretext"] == pretext
    assert "Decide" not in fields(draft)


@pytest.mark.parametrize("roles", [(), ("a; reboot",), ("$(x)",), ("`",)])
def test_an_odd_role_never_gets_into_a_command(roles: tuple[str, ...]) -> None:
    draft = render_card(
        msgspec.structs.replace(REQUEST, roles=roles, state="DENIED"), options=OPTIONS, kind="requester"
    )
    assert draft.attachment is not None
    assert draft.attachment["pretext"] == (
        "Your access request was denied. To ask again, make a new request in Teleport."
    )


def test_the_requester_hears_that_nobody_was_asked() -> None:
    options = msgspec.structs.replace(OPTIONS, unasked=True)
    for state, told in (("PENDING", True), ("DENIED", False)):
        draft = render_card(msgspec.structs.replace(REQUEST, state=state), options=options, kind="requester")
        assert draft.attachment is not None
        assert ("Nobody was asked" in str(draft.attachment["pretext"])) == told


def test_long_lists_say_how_much_is_left_out() -> None:
    shown = card(
        roles=tuple(f"role-{n}" for n in range(300)),
        resources=tuple(Resource("example.com", "node", f"n{n}") for n in range(1000)),
        reviews=tuple(Review(f"r{n}", "APPROVED") for n in range(200)),
    )
    assert shown["Roles"].endswith("`role-39`, … 260 more")
    assert shown["Resources"].startswith("1000 resources, the first 10 of them:\n`node`: `n0`, ")
    assert shown["Resources"].endswith("`n9`")
    assert shown["Reviews"].startswith("200 of 2 approvals: `r0`")
    assert shown["Reviews"].endswith("`r19`, … 180 more")


def test_the_fallback_stays_short() -> None:
    draft = render_card(msgspec.structs.replace(REQUEST, roles=("r",) * 12), options=OPTIONS)
    assert draft.attachment is not None
    assert str(draft.attachment["fallback"]).endswith(f"r, r and 2 more ({ID})")


def test_what_alone_is_asked_for_of_a_resource_is_shown() -> None:
    many = tuple(f"arn:{n}" for n in range(12))
    assert card(
        resources=(
            Resource("", "node", "n", "", "logins", ("root", "@here")),
            Resource("", "app", "aws", "", "role ARNs", many),
            Resource("", "app", "new", "", "role ARNs", ("x",), unreadable=True),
        )
    )["Resources"].split("\n")[1:] == [
        "`node`: `n` (only the logins `root`, `@here`)",
        "`app`: `aws` (only the role ARNs " + ", ".join(f"`{arn}`" for arn in many[:10]) + ", … 2 more), "
        "`new` (narrowed in a way this sidecar cannot show: see Teleport)",
    ]


@pytest.mark.parametrize(
    ("kind", "shown"),
    [("", None), ("SHORT_TERM", "short term"), ("LONG_TERM", "long term"), ("KIND 7", "unknown: KIND 7")],
)
def test_the_kind_is_shown_where_teleport_tells_it(kind: str, shown: str | None) -> None:
    assert card(kind=kind).get("Kind") == shown


def test_a_resource_may_have_a_part() -> None:
    pod = Resource("example.com", "pod", "kube-1", "default/web")
    assert card(resources=(pod,))["Resources"] == "1 resource:\n`pod`: `kube-1/default/web`"


BOBS = "bob@example.com's request for dbadmin, sre"
ALL_OF = (Threshold(2, 1),)


@pytest.mark.parametrize(
    ("review", "state", "message"),
    [
        (Review("alice@example.com", "APPROVED"), "PENDING", f"alice@example.com approved {BOBS} (2 of 2)."),
        (
            Review("ivan@example.com", "APPROVED", "go"), "APPROVED",
            f"ivan@example.com approved {BOBS} (2 of 2). The request is now APPROVED.\n\n```\ngo\n```",
        ),
        (Review("a`@all", "DENIED", "no\n# x"), "PENDING", f"`a'@all` denied {BOBS}.\n\n```\nno\n# x\n```"),
        (
            Review("ivan", "PROMOTED"), "PROMOTED",
            f"ivan promoted {BOBS}. The request is now PROMOTED to the access list `Prod`.",
        ),
        (Review("", "STATE 9"), "PENDING", f"Somebody reviewed {BOBS}: STATE 9."),
        (Review("x", "@here"), "PENDING", f"x reviewed {BOBS}: STATE ?."),
    ],
)  # fmt: skip
def test_a_review_reply(review: Review, state: str, message: str) -> None:
    request = msgspec.structs.replace(REQUEST, reviews=(*REQUEST.reviews, review), state=state, promoted_title="Prod")
    reply = render_review_reply(request, 1, ending=state != "PENDING")
    assert reply == Draft(message)
    assert told_end(reply.message) == state


@pytest.mark.parametrize("thresholds", [(), (Threshold(1, 1, filter="x"),), (Threshold(1, 1), Threshold(1, 1))])
def test_a_reply_counts_only_where_the_card_does(thresholds: tuple[Threshold, ...]) -> None:
    request = msgspec.structs.replace(REQUEST, thresholds=thresholds, roles=("a", "b", "@all", "d", "e"))
    expected = "alice@example.com approved bob@example.com's request for a, b, `@all` and 2 more."
    assert render_review_reply(request, 0, ending=False).message.partition("\n")[0] == expected


@pytest.mark.parametrize(
    ("state", "changes", "message"),
    [
        ("APPROVED", {}, f"{BOBS} is now APPROVED."),
        ("DENIED", {"resolve_reason": "no ```"}, f"{BOBS} is now DENIED.\n\n````\nno ```\n````"),
        ("PROMOTED", {"promoted_title": "Prod"}, f"{BOBS} is now PROMOTED to the access list `Prod`."),
        ("EXPIRED", {}, f"{BOBS} is now EXPIRED."),
        ("@all", {}, f"{BOBS} is now STATE ?."),
    ],
)
def test_an_end_reply(state: str, changes: dict[str, Any], message: str) -> None:
    assert render_end_reply(msgspec.structs.replace(REQUEST, **changes), state) == Draft(message)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, BOBS),
        ({"roles": tuple("abcdefghijklm")}, "bob@example.com's request for a, b, c and 10 more"),
        ({"roles": ()}, "bob@example.com's request for 3 resources"),
        ({"user": "@all", "roles": ("[x](y)",)}, "`(at)all`'s request for `[x] (y)`"),
    ],
)
def test_what_a_request_was_about_that_is_gone_stands_on_its_card(changes: dict[str, Any], told: str) -> None:
    draft = render_card(msgspec.structs.replace(REQUEST, **changes), options=OPTIONS)
    assert render_gone_reply(draft.attachment, "EXPIRED") == Draft(f"{told} is now EXPIRED.")
    assert render_gone_reply(None, "REMOVED") == Draft("The request is now REMOVED.")


def test_a_reminder_names_who_has_not_reviewed_and_what_is_missing() -> None:
    reminder = render_reminder(REQUEST, ["ivan", "eve"], OPTIONS).message
    assert reminder == f"@ivan @eve {BOBS} still waits for review (1 of 2). It expires at 2026-11-22 10:00 UTC."
    plain = msgspec.structs.replace(REQUEST, thresholds=(), expires=None)
    assert render_reminder(plain, [], OPTIONS).message == f"{BOBS} still waits for review."


def test_the_hash_follows_what_is_seen() -> None:
    """A pinned value: another one after an upgrade would patch every open card once."""
    draft = render_card(REQUEST, options=OPTIONS)
    assert len(content_hash(draft)) == 16
    assert content_hash(Draft("a", {"b": "é", "c": 1})) == "ff792b2bb79f1eaf"
    assert content_hash(draft) == content_hash(render_card(msgspec.structs.replace(REQUEST), options=OPTIONS))
    others = [
        render_card(REQUEST, options=OPTIONS, state="EXPIRED"),
        render_card(REQUEST, options=OPTIONS, kind="requester"),
        render_card(msgspec.structs.replace(REQUEST, reviews=()), options=OPTIONS),
        Draft(draft.message),
    ]
    assert len({content_hash(other) for other in [draft, *others]}) == 5
