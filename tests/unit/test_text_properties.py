"""Whatever a request holds: the card fits, and nothing untrusted is ever parsed as Markdown.

The Markdown reader in here is written apart from the renderer, after Mattermost's server (shared/markdown) and, where
its rule for the end of a fence differs, after the web client's.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.model import AccessRequest, Draft, Resource, Review, Threshold
from sidecar.text.card import TextOptions, close_card, content_hash, render_card
from sidecar.text.names import asks
from sidecar.text.replies import render_end_reply, render_gone_reply, render_reminder, render_review_reply
from tests.go_json import go_encode

TRICKS = [
    "@all", "@channel", "@here", "foo.@all", "\\@all", "&#64;all", "`", "``", "```", "````", "~~~", "\n```\n", "\n",
    "\n~~~\n", "\n\n", "\r", "\u2424", "\u2028", "\x85", "\u1fef", "#evil", "~evil", "http://evil.example", "[evil](x)",
    "www.evil.example", "](http://evil.example)", "![evil](x)", "<b>", "&", '"', "\x00", "\x1b", "\u202e", "\u200b",
    "\ud800", "\U000e0041", "\\", "$evil$", "    evil", "\n> ", "\n- ", "\n# ", ":evil:", "é", "😀", "\u0301" * 9, "*",
    "__", "\t", "|",
]  # fmt: skip
HOSTILE = st.lists(st.sampled_from(TRICKS) | st.text(st.characters(codec=None), max_size=4), max_size=12).map("".join)
# How often each text and each list is repeated.
SIZES = st.tuples(st.sampled_from([1, 1, 50, 3000]), st.sampled_from([1, 3, 300]))
TIMES = st.none() | st.floats(-1e12, 1e12) | st.sampled_from([1795338000.0, 1795341600.0])
KNOWN_STATES = ["PENDING", "APPROVED", "DENIED", "PROMOTED", "EXPIRED", "REMOVED", "STATE 7"]
STATES = st.sampled_from(["PENDING", *KNOWN_STATES]) | st.sampled_from(KNOWN_STATES) | HOSTILE
IDS = st.just("0193523a-2c9e-7d5c-9a3b-1f2e3d4c5b6a")
REVIEWS = st.builds(Review, author=HOSTILE, proposed_state=STATES, reason=HOSTILE)
RESOURCES = st.builds(
    Resource,
    cluster=HOSTILE,
    kind=HOSTILE,
    name=HOSTILE,
    sub_resource=HOSTILE,
    constraint=st.sampled_from(["", "logins", "role ARNs"]),
    only=st.lists(HOSTILE, max_size=3).map(tuple),
    unreadable=st.booleans(),
)
THRESHOLDS = st.builds(Threshold, approve=st.integers(0, 2**31), deny=st.integers(0, 9), name=HOSTILE, filter=HOSTILE)


def grown(request: AccessRequest, sizes: tuple[int, int]) -> AccessRequest:
    """Repeat every text and list of the request; hypothesis itself is happier with small values."""
    texts, lists = sizes
    names = ("user", "reason", "resolve_reason", "promoted_name", "promoted_title")
    changes: dict[str, Any] = {name: getattr(request, name) * texts for name in names}
    changes["roles"] = tuple(role * texts for role in request.roles) * lists
    changes["resources"] = request.resources * lists
    changes["reviews"] = tuple(
        msgspec.structs.replace(review, author=review.author * texts, reason=review.reason * texts)
        for review in request.reviews * min(lists, 70)
    )
    return msgspec.structs.replace(request, **changes)


KINDS = st.sampled_from(["", "SHORT_TERM", "LONG_TERM", "KIND 7", "KIND -3"])
REQUESTS = st.builds(
    AccessRequest,
    id=st.one_of(IDS, IDS, HOSTILE),
    user=HOSTILE,
    state=STATES,
    roles=st.lists(HOSTILE, max_size=4).map(tuple),
    reason=HOSTILE,
    resolve_reason=HOSTILE,
    created=TIMES,
    expires=TIMES,
    access_until=TIMES,
    assume_start=TIMES,
    thresholds=st.lists(THRESHOLDS, max_size=2).map(tuple),
    reviews=st.lists(REVIEWS, max_size=4).map(tuple),
    resources=st.lists(RESOURCES, max_size=4).map(tuple),
    promoted_name=HOSTILE,
    promoted_title=HOSTILE,
    kind=KINDS,
)
OPTIONS = st.builds(
    TextOptions,
    cluster=HOSTILE,
    web_url=st.sampled_from(["", "https://teleport.example.com"]) | HOSTILE,
    time_zone=st.sampled_from([None, "Europe/Paris"]),
    ways=st.sampled_from([(), ("reaction", "reply", "direct")]),
    require_reason=st.sampled_from(["none", "approve", "deny", "both"]),
)
OWN_LINK = re.compile(r"\[Review in Teleport\]\(https://teleport\.example\.com/web/requests/[0-9A-Za-z-]+\)")
OWN_TEXT = (
    "PENDING APPROVED DENIED PROMOTED EXPIRED REMOVED STATE to the access list approval approvals denial denials"
    " promotion promotions other review reviews of more cut characters in all resource resources first them UTC CET"
    " CEST LMT PMT WET WEST WEMT d h min not before A long term request Review it on web page Teleport Here react with"
    " white check mark x approve or deny reply thread send me as direct message Your waits for was approved Use denied"
    " a expired decided promoted an now gives removed changed reviewed Somebody Request is"
    " Suggested reviewers were told directly and not The for write me asks It tsh create roles reason To ask again"
    " make new Nobody asked bot"
    " knows nobody tell Please reviewers yourself expires at still somebody s created"
    " this sidecar narrowed way that cannot does know show see only logins role ARNs kind short unknown KIND"
)
OWN_WORDS = set(OWN_TEXT.split())


def outside_code(markdown: str, closes: Callable[[str, str], bool]) -> str:
    """Return what Mattermost parses: all but fenced blocks and code spans."""
    paragraphs: list[str] = [""]
    fence = ""
    for line in re.split("\r\n|[\n\r\u2424]", markdown):
        opener = re.fullmatch(" {0,3}(`{3,}|~{3,})[^`]*", line)
        if fence:
            fence = "" if closes(line, fence) else fence
        elif opener:
            fence = opener[1]
            paragraphs.append("")
        elif line.strip():
            paragraphs[-1] += line + "\n"
        else:
            paragraphs.append("")
    assert not fence, "an open fence hides what we say below it"
    return "\n".join(map(_without_spans, paragraphs))


def _without_spans(paragraph: str) -> str:
    kept, runs = "", re.split("(`+)", paragraph)
    while runs:
        part = runs.pop(0)
        if part.startswith("`") and part in runs:
            del runs[: runs.index(part) + 1]
        else:
            kept += part
    return kept


def _closes_on_server(line: str, fence: str) -> bool:
    return bool(re.fullmatch(f" {{0,3}}{fence}`* *", line))


def _closes_in_web_client(line: str, fence: str) -> bool:
    return bool(re.match(f" {{0,3}}{fence}[`~]*", line))


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


# Names that are nothing but a word or an address stand bare.
BARE = re.compile(r"(?!www\.)[0-9A-Za-z]+(?:[._-][0-9A-Za-z]+)*(?:@[0-9A-Za-z]+(?:[.-][0-9A-Za-z]+)*)?", re.IGNORECASE)


def assert_harmless(text: str, names: frozenset[str] = frozenset()) -> None:
    """`names` may stand bare, as far as they are nothing but names."""
    known = sorted((name for name in names if BARE.fullmatch(name)), key=len, reverse=True)
    for closes in (_closes_on_server, _closes_in_web_client):
        parsed = OWN_LINK.sub("", outside_code(text, closes))
        for name in known:
            parsed = re.sub(rf"(?<![\w.@-]){re.escape(name)}(?![\w@-])", "", parsed)
        assert not re.search(r"[^0-9A-Za-z .,:;?()_\n…⏳✅❌⌛'-]", parsed), parsed
        assert set(re.findall("[A-Za-z]+", parsed)) <= OWN_WORDS, parsed


def assert_card_is_harmless(draft: Draft) -> None:
    assert draft.attachment is not None
    fields = cast("list[dict[str, str]]", draft.attachment["fields"])
    for text in [*(field["value"] for field in fields), *strings(draft.attachment.get("pretext"))]:
        assert len(text) <= 7000
        assert_harmless(text)
    assert not re.search(r"(?<![0-9A-Za-z])@|://|\]\(|\n|`", str(draft.attachment["fallback"]))


def assert_visible(draft: Draft) -> None:
    for text in (draft.message, *strings(draft.attachment)):
        categories = {unicodedata.category(character) for character in text.replace("\n", "")}
        assert categories.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
        assert "\u2424" not in text, "the web client makes a line break of it"


def test_the_reader_sees_what_is_not_code() -> None:
    """The judge is judged: known attacks must be seen."""
    for text in (
        "@all",
        "`a` @all",
        "```\na\n```\n@all",
        "``` `\n@all",
        "`a\n\n@all`",
        "`a\u2424\u2424@all`",
    ):
        assert "@all" in outside_code(text, _closes_on_server)
    for text in ("`@all`", "```\n@all\n```", "``a`@all``", "````\n```\n@all\n````"):
        assert "@all" not in outside_code(text, _closes_on_server)
    assert "@all" in outside_code("```\n```~\n@all", _closes_in_web_client)


@pytest.mark.parametrize("state", KNOWN_STATES)
def test_the_reader_knows_all_that_we_say_ourselves(state: str) -> None:
    """Else the properties below would fail by chance, on text that is ours."""
    constraints = (
        Resource("x", "x", "x"),
        Resource("x", "x", "x", "", "logins", ("x",) * 99),
        Resource("x", "x", "x", "", "role ARNs", ("x",), unreadable=True),
    )
    for kind, reason, request_kind, resource, web_url in itertools.product(
        ("card", "requester"),
        ("none", "approve", "deny", "both"),
        ("", "SHORT_TERM", "LONG_TERM", "KIND 7"),
        constraints,
        ("", "https://teleport.example.com"),
    ):
        request = AccessRequest(
            id="0193523a-2c9e-7d5c-9a3b-1f2e3d4c5b6a", user="bob", state=state, roles=("x",) * 99, reason="x" * 9999,
            created=0.0, access_until=2e8, assume_start=1e8, thresholds=(Threshold(2, 1),), promoted_name="x",
            resources=(resource,) * 99, kind=request_kind,
            reviews=tuple(Review("x", proposed) for proposed in KNOWN_STATES),
        )  # fmt: skip
        options = TextOptions(
            web_url=web_url, time_zone="Europe/Paris", ways=("reaction", "reply", "direct"),
            require_reason=cast("Any", reason),
        )  # fmt: skip
        assert_card_is_harmless(render_card(request, options=options, kind=cast("Any", kind)))


@settings(max_examples=200, deadline=None)
@given(REQUESTS, SIZES, OPTIONS, st.sampled_from(["card", "requester"]))
def test_any_card_is_harmless_and_fits(
    small: AccessRequest, sizes: tuple[int, int], options: TextOptions, kind: str
) -> None:
    request = grown(small, sizes)
    draft = render_card(request, options=options, kind=cast("Any", kind))
    attachment = draft.attachment
    assert attachment is not None
    stored = {
        "id": 0, "fallback": "", "color": "", "pretext": "", "author_name": "", "author_link": "", "author_icon": "",
        "title": "", "title_link": "", "text": "", "image_url": "", "thumb_url": "", "footer": "", "footer_icon": "",
        "ts": None,
    } | attachment  # fmt: skip
    props = {"attachments": [stored], "tm": {"v": 1, "rest": "x" * 180}, "from_bot": "true"}
    assert len(go_encode(props)) < 7600
    assert_visible(draft)
    first, _, last = draft.message.partition("\n")
    assert re.fullmatch("Access request [0-9A-Za-z?-]{0,64}", last)
    assert first == asks(request)
    assert_harmless(first)
    assert not re.search(r"(?<![0-9A-Za-z])@|://|\]\(|\n|`", str(attachment["footer"]))
    assert_card_is_harmless(draft)
    again = render_card(request, options=options, kind=cast("Any", kind))
    assert again == draft
    assert content_hash(again) == content_hash(draft)


@settings(max_examples=100, deadline=None)
@given(REQUESTS, SIZES, STATES)
def test_any_reply_is_harmless_and_fits(small: AccessRequest, sizes: tuple[int, int], state: str) -> None:
    """4,000 is what Mattermost databases from before 5.0 hold; today's is 16,383."""
    request = grown(small, sizes)
    names = frozenset((request.user, *request.roles, *(review.author for review in request.reviews)))
    replies = [render_end_reply(request, state), render_reminder(request, (), TextOptions())]
    closed = close_card(render_card(request, options=TextOptions()).attachment, request.id, state)
    replies.append(render_gone_reply(closed.attachment, state))
    replies += [
        render_review_reply(request, index, ending=index % 2 == 1) for index in range(min(3, len(request.reviews)))
    ]
    for reply in replies:
        assert reply.attachment is None
        assert len(reply.message) <= 4000
        assert_visible(reply)
        assert_harmless(reply.message, names)


@pytest.mark.parametrize("text", ["<", "&", '"', "@all ", "`", "é", "😀", "a\n", "\u2424", "\ud800", "\u1fef", "x"])
def test_the_largest_request_fits(text: str) -> None:
    huge, large = text * 100_000, text * 1000
    request = AccessRequest(
        id="0" * 64, user=huge, state="PENDING", roles=(large,) * 300, reason=huge, resolve_reason=huge,
        created=0.0, expires=1e9, access_until=2e11, assume_start=1e11, thresholds=(Threshold(2**31, 1),),
        reviews=tuple(Review(large, state, large) for state in ("APPROVED", "DENIED", "PROMOTED", "?") * 50),
        resources=tuple(
            Resource(str(n) + large, str(n) + large, large, large, "logins", (huge,) * 100) for n in range(1000)
        ),
        promoted_title=huge,
    )  # fmt: skip
    options = TextOptions(
        cluster=huge, web_url="https://" + "a" * 292, time_zone="Asia/Tokyo", ways=("reaction", "reply", "direct")
    )
    for kind in ("card", "requester"):
        draft = render_card(request, options=options, kind=cast("Any", kind))
        assert draft.attachment is not None
        assert len(go_encode(draft.attachment)) < 7200
