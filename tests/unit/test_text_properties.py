"""Whatever a request holds: the card fits, and nothing untrusted is ever parsed as Markdown.

The Markdown reader in here is written apart from the renderer, after Mattermost's server (shared/markdown) and, where
its rule for the end of a fence differs, after the web client's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import TypeVar, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.model import AccessRequest, Draft, Resource, Review, Threshold
from sidecar.text import TextOptions, content_hash, render_card, render_end_reply, render_review_reply
from tests.go_json import go_encode

TRICKS = [
    "@all", "@channel", "@here", "foo.@all", "\\@all", "&#64;all", "`", "``", "```", "````", "~~~", "\n```\n", "\n",
    "\n~~~\n", "\n\n", "\r", "\u2424", "\u2028", "\x85", "\u1fef", "#evil", "~evil", "http://evil.example", "[evil](x)",
    "www.evil.example", "](http://evil.example)", "![evil](x)", "<b>", "&", '"', "\x00", "\x1b", "\u202e", "\u200b",
    "\ud800", "\U000e0041", "\\", "$evil$", "    evil", "\n> ", "\n- ", "\n# ", ":evil:", "é", "😀", "\u0301" * 9, "*",
    "__", "\t", "|",
]  # fmt: skip
T = TypeVar("T")
HOSTILE = st.builds(
    lambda parts, times: "".join(parts) * times,
    st.lists(st.sampled_from(TRICKS) | st.text(st.characters(codec=None), max_size=4), max_size=12),
    st.sampled_from([1, 1, 1, 50, 3000]),
)
TIMES = st.none() | st.floats(-1e12, 1e12) | st.sampled_from([1795338000.0, 1795341600.0])
STATES = st.sampled_from(["PENDING", "APPROVED", "DENIED", "PROMOTED", "EXPIRED", "REMOVED", "STATE 7"]) | HOSTILE
IDS = st.just("0193523a-2c9e-7d5c-9a3b-1f2e3d4c5b6a")
REVIEWS = st.builds(Review, author=HOSTILE, proposed_state=STATES, reason=HOSTILE)
RESOURCES = st.builds(Resource, cluster=HOSTILE, kind=HOSTILE, name=HOSTILE, sub_resource=HOSTILE)
THRESHOLDS = st.builds(Threshold, approve=st.integers(0, 2**31), deny=st.integers(0, 9), name=HOSTILE, filter=HOSTILE)


def many(values: st.SearchStrategy[T], most: int) -> st.SearchStrategy[tuple[T, ...]]:
    return st.builds(
        lambda few, times: tuple((few * times)[:most]), st.lists(values, max_size=4), st.sampled_from([1, 3, most])
    )


REQUESTS = st.builds(
    AccessRequest,
    id=IDS | HOSTILE,
    user=HOSTILE,
    state=STATES,
    roles=many(HOSTILE, 300),
    reason=HOSTILE,
    resolve_reason=HOSTILE,
    created=TIMES,
    expires=TIMES,
    access_until=TIMES,
    assume_start=TIMES,
    thresholds=many(THRESHOLDS, 2),
    reviews=many(REVIEWS, 200),
    resources=many(RESOURCES, 1000),
    promoted_name=HOSTILE,
    promoted_title=HOSTILE,
    long_term=st.booleans(),
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
    " expired decided promoted an now gives removed changed reviewed Somebody Request is"
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


def assert_harmless(text: str) -> None:
    for closes in (_closes_on_server, _closes_in_web_client):
        parsed = OWN_LINK.sub("", outside_code(text, closes))
        assert not re.search(r"[^0-9A-Za-z .,:;?()_\n…⏳✅❌⌛-]", parsed), parsed
        assert set(re.findall("[A-Za-z]+", parsed)) <= OWN_WORDS, parsed


def assert_visible(draft: Draft) -> None:
    for text in (draft.message, *strings(draft.attachment)):
        categories = {unicodedata.category(character) for character in text.replace("\n", "")}
        assert categories.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


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


@settings(max_examples=300, deadline=None)
@given(REQUESTS, OPTIONS, st.sampled_from(["card", "requester"]))
def test_any_card_is_harmless_and_fits(request: AccessRequest, options: TextOptions, kind: str) -> None:
    draft = render_card(request, options=options, kind="card" if kind == "card" else "requester")
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
    assert re.fullmatch("Access request [0-9A-Za-z?-]{0,64}", draft.message)
    fields = cast("list[dict[str, str]]", attachment["fields"])
    for text in [*(field["value"] for field in fields), *strings(attachment.get("pretext"))]:
        assert len(text) <= 7000
        assert_harmless(text.replace("tsh login --request-id=", ""))
    assert not re.search(r"(?<![0-9A-Za-z])@|://|\]\(|\n|`", str(attachment["fallback"]))
    again = render_card(request, options=options, kind="card" if kind == "card" else "requester")
    assert again == draft
    assert content_hash(again) == content_hash(draft)


@settings(max_examples=100, deadline=None)
@given(REQUESTS, STATES)
def test_any_reply_is_harmless_and_fits(request: AccessRequest, state: str) -> None:
    """4,000 is what Mattermost databases from before 5.0 hold; today's is 16,383."""
    replies = [render_end_reply(request, state)]
    replies += [render_review_reply(request, index) for index in range(min(3, len(request.reviews)))]
    for reply in replies:
        assert reply.attachment is None
        assert len(reply.message) <= 4000
        assert_visible(reply)
        assert_harmless(reply.message)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["<", "&", '"', "@all ", "`", "é", "😀", "a\n", "\u2424", "\ud800", "\u1fef", "x"]))
def test_the_largest_request_fits(text: str) -> None:
    huge = text * 100_000
    request = AccessRequest(
        id="0" * 64, user=huge, state="PENDING", roles=(huge,) * 300, reason=huge, resolve_reason=huge,
        created=0.0, expires=1e9, access_until=2e11, assume_start=1e11, thresholds=(Threshold(2**31, 1),),
        reviews=tuple(Review(huge, state, huge) for state in ("APPROVED", "DENIED", "PROMOTED", "?") * 50),
        resources=tuple(Resource(huge + str(n), huge + str(n), huge, huge) for n in range(1000)),
        promoted_title=huge,
    )  # fmt: skip
    options = TextOptions(
        cluster=huge, web_url="https://" + "a" * 292, time_zone="Asia/Tokyo", ways=("reaction", "reply", "direct")
    )
    for kind in ("card", "requester"):
        draft = render_card(request, options=options, kind="card" if kind == "card" else "requester")
        assert draft.attachment is not None
        assert len(go_encode(draft.attachment)) < 7200
