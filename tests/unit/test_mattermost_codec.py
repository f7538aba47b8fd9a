"""Decoding what Mattermost says: the recordings of a 5.37.0, and everything that could be wrong with a body."""

from __future__ import annotations

import itertools
import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.expressions import FORGED, Rules, find_flaw, read_reactions, read_thread
from sidecar.decisions.record import Slot
from sidecar.errors import LinkGarbled, UnreadableAnswer
from sidecar.mattermost import codec, frames
from sidecar.mattermost.decoder import Decoder, Items
from sidecar.model import Mark, Post, Reaction, User
from sidecar.text.card import close_card, is_of_cluster
from sidecar.text.command import REASON_BYTES, Decision, parse_direct, parse_thread

FIXTURES = sorted((Path(__file__).parent.parent / "data" / "mattermost-5.37").glob("*.json"))


def steps() -> Iterator[dict[str, Any]]:
    for path in FIXTURES:
        yield from json.loads(path.read_text())["steps"]


ID = "[a-z0-9]{26}"
DECODER_OF: dict[str, Callable[[bytes], object]] = {
    f"/users/(me|{ID}|username/[^/]+|email/[^/]+)": codec.decode_user,
    "/users/me/teams": codec.decode_teams,
    f"/users/me/teams/{ID}/channels": codec.decode_channels,
    "/teams/name/[^/]+": codec.decode_team,
    f"/teams/(name/[^/]+|{ID})/channels/name/[^/]+": codec.decode_channel,
    f"/channels/(direct|group|{ID})": codec.decode_channel,
    f"/channels/{ID}/members/me": codec.decode_done,
    f"/channels/{ID}/posts|/posts/{ID}/thread": codec.decode_posts,
    "/posts/ids/reactions": codec.decode_reactions,
    f"/posts(/{ID})?(/patch)?": codec.decode_post,
    "/users/(ids|usernames)": codec.decode_users,
    "/reactions": codec.decode_done,
    "/config/client": codec.decode_config,
}


def decoder_for(path: str) -> Callable[[bytes], object] | None:
    """The decoder of the answer to a call that the client makes, by the path below /api/v4."""
    plain = path.partition("?")[0]
    return next((decode for pattern, decode in DECODER_OF.items() if re.fullmatch(pattern, plain)), None)


def rest_steps() -> list[tuple[str, str, int, Any]]:
    found = []
    for step in steps():
        if "request" in step and "body" in step["response"]:
            path = step["request"]["url"].partition("/api/v4")[2]
            found.append((step["request"]["method"], path, step["response"]["status"], step["response"]["body"]))
    return found


def test_every_recorded_answer_decodes() -> None:
    decoded = 0
    for method, path, status, body in rest_steps():
        raw = json.dumps(body).encode()
        decode = decoder_for(path)
        if status < 300 and method == "DELETE":
            codec.decode_done(raw)
        elif status < 300 and decode is not None:
            value = decode(raw)
            if isinstance(value, Post | User | codec.Channel | codec.Team):
                assert value.id == body["id"]
            decoded += 1
        elif isinstance(body, dict) and status >= 400:
            assert codec.decode_error_id(raw) == body["id"]
    assert decoded > 150


def test_every_recorded_frame_decodes_and_hints_at_the_right_post() -> None:
    hints = 0
    for step in steps():
        if step.get("dir") != "recv" or "json" not in step:
            continue
        frame = frames.decode_frame(json.dumps(step["json"]))
        assert (frame.event, frame.seq) == (step["json"].get("event"), step["json"].get("seq"))
        hint = frames.decode_hint(frame)
        if frame.event in {"posted", "post_edited"}:
            post = step["decoded_post"]
            assert hint == frames.PostedHint(post["id"], post["root_id"], post["channel_id"], post["user_id"])
            hints += 1
        elif frame.event in {"reaction_added", "reaction_removed"}:
            reaction = step["decoded_reaction"]
            channel = step["json"]["broadcast"]["channel_id"]
            assert hint == frames.ReactionHint(reaction["post_id"], channel, reaction["user_id"])
            hints += 1
        else:
            assert hint is None
    assert hints > 100


def test_an_error_reply_gives_its_id_and_never_the_text_with_the_token() -> None:
    error = {"id": "api.web_socket_router.not_authenticated.app_error", "message": "Invalid session token=SECRET"}
    frame = frames.decode_frame(json.dumps({"status": "FAIL", "seq_reply": 1, "error": error}))
    assert frames.decode_reply_error(frame) == "api.web_socket_router.not_authenticated.app_error"


def test_a_thread_names_each_post_once() -> None:
    body = {"order": ["b", "b", "a", "gone"], "posts": {"a": {"id": "a"}, "b": {"id": "b"}}}
    assert [post.id for post in codec.decode_posts(json.dumps(body).encode())] == ["b", "a"]


def test_our_own_mark_is_read_from_props() -> None:
    props = {"tm": {"v": 1, "k": "key", "id": "018f", "state": "PENDING"}, "from_bot": "true"}
    post = codec.decode_post(json.dumps({"id": "p", "props": props}).encode())
    assert (post.key, post.request_id, post.shown_state) == ("key", "018f", "PENDING")
    assert post.props == {"tm", "from_bot"}


CARD = {"fallback": "f", "color": "#ffbc1f", "fields": [{"title": "State", "value": "PENDING", "short": True}]}


@pytest.mark.parametrize(
    ("props", "attachment"),
    [
        ({"tm": {"k": "key"}, "attachments": [CARD, {"fallback": "y"}]}, CARD),
        ({"tm": {"k": "key"}, "attachments": [CARD | {"id": 0, "ts": None, "actions": [{"x": []}]}]}, CARD),
        ({"tm": {"k": ""}, "attachments": [{"pretext": "p"}]}, {"pretext": "p"}),
        ({"tm": {"k": "key"}, "attachments": []}, None),
        ({"tm": {"k": "key"}, "attachments": "x"}, None),
        ({"tm": {"k": "key"}, "attachments": [5]}, None),
        ({"tm": {"k": "key"}, "attachments": [{"fields": [{}] * 33}]}, None),
        ({"tm": {"k": "key"}, "attachments": [{"fallback": "x" * 33_000}]}, None),
        ({"tm": {"k": "key"}}, None),
        ({"attachments": [{"fallback": "not ours"}]}, None),
    ],
)
def test_the_first_attachment_is_read_only_where_the_post_claims_to_be_ours(
    props: dict[str, Any], attachment: dict[str, Any] | None
) -> None:
    assert codec.decode_post(json.dumps({"id": "p", "props": props}).encode()).attachment == attachment


@pytest.mark.parametrize(
    "tm", [None, [], "x", 5, {"k": 1, "id": None, "state": []}, {"k": {"k": "x"}}, {"k": "x", "since": 10**400}]
)
def test_a_mark_that_somebody_forged_is_no_mark_and_spoils_nothing(tm: Any) -> None:
    post = codec.decode_post(json.dumps({"id": "p", "props": {"tm": tm, "from_webhook": "true"}}).encode())
    assert (post.key, post.request_id, post.shown_state) == ("", "", "")
    assert post.props == {"tm", "from_webhook"}


@pytest.mark.parametrize("bad", [b'"\xff"', b"[1e999999]"])
def test_what_cannot_be_decoded_inside_props_spoils_only_itself(bad: bytes) -> None:
    post = codec.decode_post(b'{"id":"p","props":{"tm":{"k":%s},"from_webhook":"true"}}' % bad)
    assert post.key == ""
    assert post.props == {"tm", "from_webhook"}
    post = codec.decode_post(b'{"id":"p","props":{"tm":{"k":"key"},"attachments":[%s]}}' % bad)
    assert (post.key, post.attachment) == ("key", None)


def test_whatever_a_decision_refuses_a_post_for_is_known() -> None:
    """A property that the codec skips would never be seen."""
    assert set(codec.KNOWN_PROPS) >= FORGED


POST = (
    '{"id":"ID","create_at":1795333316126,"update_at":5,"edit_at":0,"delete_at":7,"is_pinned":false,"user_id":"USER"'
    ',"channel_id":"CHANNEL","root_id":"","original_id":"","message":MESSAGE,"type":"","props":PROPS}'
)
EVIL, USER, CHANNEL = "e" * 26, "u" * 26, "c" * 26
DEEP = "[" * 50_000 + "]" * 50_000


def evil(props: str, message: str = '"x"') -> str:
    post = POST.replace("ID", EVIL).replace("USER", USER).replace("CHANNEL", CHANNEL)
    return post.replace("PROPS", props).replace("MESSAGE", message)


@pytest.mark.parametrize("where", ["x", "tm", "attachments", "from_bot"])
def test_of_a_post_that_nests_too_deep_the_servers_own_words_are_known(where: str) -> None:
    post = evil(f'{{"{where}":{DEEP}}}', r'"\",\"user_id\":\"' + "f" * 26 + '"')
    with pytest.raises(UnreadableAnswer) as caught:
        codec.decode_post(post.encode())
    found = codec.decode_head(caught.value.head)
    assert found == Post(EVIL, CHANNEL, USER, create_at=1795333316126, delete_at=7, skipped=True)
    with pytest.raises(UnreadableAnswer):
        codec.decode_posts(f'{{"order":["{EVIL}"],"posts":{{"{EVIL}":{post}}}}}'.encode())
    hint = frames.decode_hint(frames.decode_frame(json.dumps({"event": "posted", "data": {"post": post}, "seq": 1})))
    assert hint == frames.PostedHint(EVIL, "", CHANNEL, USER)


@pytest.mark.parametrize(
    "text", ["", "{", "<html>", '{"order":["a","b"],"posts":{', evil("{}")[:100], "x" + evil("{}")]
)
def test_what_is_no_beginning_of_a_post_gives_nothing(text: str) -> None:
    assert codec.decode_head(text.encode()) is None


def test_a_long_message_is_cut_beyond_the_longest_decision() -> None:
    post = codec.decode_post(json.dumps({"id": "p", "message": "approve because " + "é" * 16_000}).encode())
    assert len(post.message) == codec.MESSAGE_CHARS
    command = parse_thread(post.message)
    assert isinstance(command, Decision)
    assert len(command.reason.encode()) == REASON_BYTES


@pytest.mark.parametrize(
    "props",
    [
        "{" + ",".join(f'"a{number}":0' for number in range(1300)) + "}",
        '{"tm":{' + ",".join(f'"a{number}":0' for number in range(1300)) + "}}",
        '{"tm":{"k":"k"},"attachments":[{' + ",".join(f'"a{number}":0' for number in range(1300)) + "}]}",
        '{"tm":{"k":"k"},"attachments":[' + "{}," * 3000 + "{}]}",
        '{"from_bot":[' + "[]," * 5000 + "[]]}",
    ],
)
def test_what_a_post_costs_does_not_depend_on_what_is_in_its_props(props: str) -> None:
    """A full page: hardly more is allocated than for one whose properties are long text, one attachment at a time."""
    assert peak_of(props) < 1.2 * peak_of(json.dumps({"x": "x" * len(props)})) + 2**20


def peak_of(props: str) -> int:
    ids = [f"{number:026}" for number in range(200)]
    posts = ",".join(f'"{one}":{{"id":"{one}","props":{props}}}' for one in ids)
    body = f'{{"order":{json.dumps(ids)},"posts":{{{posts}}}}}'.encode()
    tracemalloc.start()
    assert len(codec.decode_posts(body)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


DECODERS: list[Callable[[bytes], object]] = [
    codec.decode_post,
    codec.decode_posts,
    codec.decode_reactions,
    codec.decode_users,
    codec.decode_user,
    codec.decode_channel,
    codec.decode_channels,
    codec.decode_team,
    codec.decode_teams,
    codec.decode_config,
    codec.decode_done,
]
JUNK = [
    b"",
    b"<html>502</html>",
    b"\xff",
    b'{"id":"\xff"}',
    b'{"id":"\\ud800"}',
    b'{"id"',
    b"[" * 100_000,
    b"5",
    b"NaN",
]


@pytest.mark.parametrize("decode", DECODERS, ids=range(len(DECODERS)))
@pytest.mark.parametrize("body", JUNK, ids=range(len(JUNK)))
def test_junk_is_garbled_and_its_text_is_not_repeated(decode: Callable[[bytes], object], body: bytes) -> None:
    # Fields that nobody reads may hold anything, so these two are not junk to every decoder.
    if body not in {b'{"id":"\xff"}', b'{"id":"\\ud800"}'}:
        with pytest.raises(LinkGarbled) as caught:
            decode(body)
        assert "html" not in str(caught.value)
        assert caught.value.__cause__ is None
    with_nothing_else(decode, body)
    assert codec.decode_error_id(body) == ""


TYPES = (Post, User, Reaction, codec.Channel, codec.Team, list, dict, bool, type(None))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PROPS = st.sampled_from(codec.KNOWN_PROPS)
FIELDS = {name for kind in TYPES for name in getattr(kind, "__struct_fields__", ())}
NAMES = st.sampled_from(
    sorted({*FIELDS, *frames.Frame.__struct_fields__, *codec.KNOWN_PROPS, "k", "order", "posts", "post", "reaction"})
)
OBJECTS = st.recursive(
    st.dictionaries(NAMES | st.text(max_size=5), VALUES, max_size=8),
    lambda inner: st.dictionaries(NAMES, inner | VALUES, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(OBJECTS)
def test_any_json_gives_a_value_or_garbled(value: Any) -> None:
    body = json.dumps(value).encode()
    for decode in DECODERS:
        with suppress(LinkGarbled):
            assert isinstance(decode(body), TYPES)


SLOT = Slot(r="ops/requests", k="card", c="c", p="root")
MARK = st.dictionaries(st.sampled_from(Mark.__struct_fields__), VALUES | st.just("k"), max_size=6)
FIELD = st.dictionaries(st.sampled_from(["title", "value", "short"]), VALUES | st.just("State"), max_size=3)
ATTACHMENT = st.dictionaries(
    st.sampled_from(["fallback", "color", "pretext", "fields"]), VALUES | st.lists(FIELD, max_size=4), max_size=4
)
POSTS = st.fixed_dictionaries(
    {"id": st.text(min_size=1), "root_id": st.just("root"), "channel_id": st.just("c")},
    optional={
        "message": st.text() | st.text().map("approve because ".__add__),
        "user_id": st.text(),
        "create_at": st.integers() | st.just(10**400),
        "type": st.text(),
        "props": st.fixed_dictionaries({"tm": MARK | VALUES, "attachments": st.lists(ATTACHMENT | VALUES, max_size=2)}),
    },
)


@given(st.lists(POSTS, max_size=4, unique_by=lambda post: post["id"]))
def test_whatever_decodes_can_be_computed_with(posts: list[dict[str, Any]]) -> None:
    posts.append({"id": "root", "channel_id": "c"})
    body = json.dumps({"order": [post["id"] for post in posts], "posts": {post["id"]: post for post in posts}})
    try:
        found = codec.decode_posts(body.encode(errors="replace"))
    except LinkGarbled:
        return
    read_thread(SLOT, found, Rules(), "bot")
    for post in found:
        find_flaw(post)
        is_of_cluster(post, "example.com")
        json.dumps(close_card(post.attachment, post.request_id, "EXPIRED").attachment)
        parse_direct(post.message)


@given(OBJECTS)
def test_whatever_reactions_decode_can_be_computed_with(value: Any) -> None:
    try:
        found = codec.decode_reactions(json.dumps(value).encode())
    except LinkGarbled:
        return
    for reactions in found.values():
        read_reactions(SLOT, reactions, Rules(approve=("x",)), "bot")


@given(st.binary())
def test_any_bytes_give_a_value_or_garbled(body: bytes) -> None:
    for decode in DECODERS:
        with_nothing_else(decode, body)
    with_nothing_else(decode_event, body)


@given(
    st.sampled_from(["posted", "reaction_added", "reaction_removed", "hello", "x"]), OBJECTS | VALUES, OBJECTS | VALUES
)
def test_any_event_gives_a_hint_or_nothing_or_garbled(event: str, data: Any, inner: Any) -> None:
    for content in (data, {"post": json.dumps(inner), "reaction": json.dumps(inner)}):
        body = json.dumps({"event": event, "data": content, "broadcast": data, "seq": 3})
        with_nothing_else(decode_event, body.encode())


def decode_event(body: bytes) -> object:
    return frames.decode_hint(frames.decode_frame(body))


def with_nothing_else(decode: Callable[[bytes], object], body: bytes) -> None:
    with suppress(LinkGarbled):
        decode(body)


@given(
    st.fixed_dictionaries(
        {"id": st.text(min_size=1)},
        optional={
            "channel_id": st.text(),
            "message": st.text(),
            "delete_at": st.integers(0, 2**53),
            "remote_id": st.none() | st.text(),
            "props": st.none() | st.dictionaries(PROPS | st.text(), VALUES, max_size=4),
            "metadata": VALUES,
        },
    )
)
def test_missing_and_unknown_fields_are_no_fault(value: dict[str, Any]) -> None:
    body = json.dumps(value, ensure_ascii=False).encode(errors="replace")
    expected = json.loads(body)
    post = codec.decode_post(body)
    assert post.id == expected["id"]
    assert post.channel_id == (expected.get("channel_id") or "")
    assert post.delete_at == (expected.get("delete_at") or 0)
    assert post.props == set(expected.get("props") or ()) & set(codec.KNOWN_PROPS)
    assert post.remote_id == (expected.get("remote_id") or "")


_OBJECTS = st.lists(
    st.dictionaries(st.text(max_size=5), st.recursive(st.text() | st.integers(), st.lists, max_leaves=5))
)


@given(value=_OBJECTS, cuts=st.lists(st.integers(0, 200), max_size=10), spaced=st.booleans())
def test_a_list_may_come_in_any_pieces(value: list[dict[str, Any]], cuts: list[int], *, spaced: bool) -> None:
    body = json.dumps(value, indent=1 if spaced else None, ensure_ascii=spaced).encode()
    items = Items(Decoder[dict[str, Any]](dict[str, Any], "an object"))
    places = sorted({0, *cuts, len(body)} & set(range(len(body) + 1)))
    for begin, end in itertools.pairwise(places):
        items.feed(body[begin:end])
    assert items.end() == value


@pytest.mark.parametrize("body", [b'[{"id":"a"}', b'[{"id":"a"}]}', b'[{"id":"a"},5]', b'{"id":"a"}', b'"[]"', b""])
def test_what_is_no_list_of_objects_is_garbled(body: bytes) -> None:
    with pytest.raises(LinkGarbled):
        codec.decode_channels(body)


@pytest.mark.parametrize("body", [b'[{"id":"' + b"a" * 300_000, b"[" * 300_000, b'{"a":' * 100_000])
def test_a_list_of_one_thing_too_long_is_not_taken_in(body: bytes) -> None:
    items = codec.channels()
    with pytest.raises(UnreadableAnswer):
        items.feed(body)
