"""JSON of Mattermost 5.37 to 11 -> model values.

Every `decode_*` gives a value or raises LinkGarbled. Fields may be missing, null or unknown to us; one of a wrong type
is garbled, except inside a post's `props`, where any user may store what he likes.
"""

from __future__ import annotations

import msgspec

from sidecar.errors import LinkGarbled
from sidecar.mattermost.decoder import Decoder, Id
from sidecar.model import Post, Reaction, User


class Channel(msgspec.Struct, frozen=True):
    """A channel: `type` is O (public), P (private), D (direct, `name` is both user ids with `__`) or G."""

    id: str
    type: str = ""
    team_id: str = ""
    name: str = ""
    display_name: str = ""
    delete_at: int = 0
    last_post_at: int = 0


class Team(msgspec.Struct, frozen=True):
    """A team that the bot may see."""

    id: str
    name: str = ""
    display_name: str = ""


class _WirePost(msgspec.Struct):
    id: Id
    channel_id: str | None = None
    user_id: str | None = None
    create_at: int | None = None
    update_at: int | None = None
    edit_at: int | None = None
    delete_at: int | None = None
    root_id: str | None = None
    original_id: str | None = None
    type: str | None = None
    message: str | None = None
    remote_id: str | None = None
    props: dict[str, msgspec.Raw] | None = None


class _WireList(msgspec.Struct):
    order: list[str] | None = None
    posts: dict[str, _WirePost] | None = None


class _WireReaction(msgspec.Struct):
    user_id: Id
    post_id: Id
    emoji_name: Id
    update_at: int | None = None
    delete_at: int | None = None
    remote_id: str | None = None


class _WireUser(msgspec.Struct):
    id: Id
    username: str | None = None
    email: str | None = None
    delete_at: int | None = None
    is_bot: bool | None = None
    roles: str | None = None
    remote_id: str | None = None


class _WireChannel(msgspec.Struct):
    id: Id
    type: str | None = None
    team_id: str | None = None
    name: str | None = None
    display_name: str | None = None
    delete_at: int | None = None
    last_post_at: int | None = None


class _WireTeam(msgspec.Struct):
    id: Id
    name: str | None = None
    display_name: str | None = None


class _WireError(msgspec.Struct):
    id: str | None = None


_post = Decoder[_WirePost](_WirePost, "a post")
_post_list = Decoder[_WireList](_WireList, "a list of posts")
_reactions = Decoder[list[_WireReaction] | None](list[_WireReaction] | None, "a list of reactions")
_reaction_map = Decoder[dict[str, list[_WireReaction] | None]](
    dict[str, list[_WireReaction] | None], "a map of reactions"
)
_user = Decoder[_WireUser](_WireUser, "a user")
_channel = Decoder[_WireChannel](_WireChannel, "a channel")
_channels = Decoder[list[_WireChannel] | None](list[_WireChannel] | None, "a list of channels")
_teams = Decoder[list[_WireTeam] | None](list[_WireTeam] | None, "a list of teams")
_team = Decoder[_WireTeam](_WireTeam, "a team")
_object = Decoder[dict[str, msgspec.Raw]](dict[str, msgspec.Raw], "an answer")
_text_map = Decoder[dict[str, str | None]](dict[str, str | None], "the client configuration")
_error = Decoder[_WireError](_WireError, "an error")
_anything = Decoder[object](object, "a property")


def _to_post(wire: _WirePost) -> Post:
    props = wire.props or {}
    tm = _tm(props["tm"]) if "tm" in props else {}
    return Post(
        id=wire.id,
        channel_id=wire.channel_id or "",
        user_id=wire.user_id or "",
        create_at=wire.create_at or 0,
        update_at=wire.update_at or 0,
        edit_at=wire.edit_at or 0,
        delete_at=wire.delete_at or 0,
        root_id=wire.root_id or "",
        original_id=wire.original_id or "",
        type=wire.type or "",
        message=wire.message or "",
        remote_id=wire.remote_id or "",
        key=tm.get("k", ""),
        request_id=tm.get("id", ""),
        shown_state=tm.get("state", ""),
        props=frozenset(props),
        attachment=_attachment(props["attachments"]) if tm and "attachments" in props else None,
    )


def _attachment(raw: msgspec.Raw) -> dict[str, object] | None:
    """The first attachment; only asked for where the post claims to be ours."""
    try:
        found = _anything(raw)
    except LinkGarbled:
        return None
    first = found[0] if isinstance(found, list) and found else None
    return first if isinstance(first, dict) else None


def _tm(raw: msgspec.Raw) -> dict[str, str]:
    """Our own mark, or {}: any user can put anything here, and must not make his channel unreadable by it."""
    try:
        found = _anything(raw)
    except LinkGarbled:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _to_reaction(wire: _WireReaction) -> Reaction:
    return Reaction(
        wire.user_id, wire.post_id, wire.emoji_name, wire.update_at or 0, wire.delete_at or 0, wire.remote_id or ""
    )


def _to_channel(wire: _WireChannel) -> Channel:
    return Channel(
        wire.id,
        wire.type or "",
        wire.team_id or "",
        wire.name or "",
        wire.display_name or "",
        wire.delete_at or 0,
        wire.last_post_at or 0,
    )


def _to_team(wire: _WireTeam) -> Team:
    return Team(wire.id, wire.name or "", wire.display_name or "")


def decode_post(body: bytes) -> Post:
    """Decode one post."""
    return _to_post(_post(body))


def decode_posts(body: bytes) -> list[Post]:
    """Decode a PostList in its own order, each post once: a thread names the post that was asked for twice (5.37)."""
    wire = _post_list(body)
    posts = wire.posts or {}
    return [_to_post(posts[id_]) for id_ in dict.fromkeys(wire.order or ()) if id_ in posts]


def decode_reactions(body: bytes) -> list[Reaction]:
    """Decode the reactions on one post; v11 says null for none."""
    return [_to_reaction(wire) for wire in _reactions(body) or ()]


def decode_reaction_map(body: bytes) -> dict[str, list[Reaction]]:
    """Decode the answer of POST /posts/ids/reactions."""
    return {post_id: [_to_reaction(wire) for wire in wires or ()] for post_id, wires in _reaction_map(body).items()}


def decode_user(body: bytes) -> User:
    """Decode one user."""
    wire = _user(body)
    return User(
        wire.id,
        wire.username or "",
        wire.email or "",
        wire.delete_at or 0,
        is_bot=wire.is_bot or False,
        roles=wire.roles or "",
        remote_id=wire.remote_id or "",
    )


def decode_channel(body: bytes) -> Channel:
    """Decode one channel."""
    return _to_channel(_channel(body))


def decode_channels(body: bytes) -> list[Channel]:
    """Decode a list of channels."""
    return [_to_channel(wire) for wire in _channels(body) or ()]


def decode_team(body: bytes) -> Team:
    """Decode one team."""
    return _to_team(_team(body))


def decode_teams(body: bytes) -> list[Team]:
    """Decode a list of teams."""
    return [_to_team(wire) for wire in _teams(body) or ()]


def decode_config(body: bytes) -> dict[str, str]:
    """Decode GET /config/client?format=old: a flat map of strings."""
    return {name: value or "" for name, value in _text_map(body).items()}


def decode_member(body: bytes) -> bool:
    """Decode a channel membership: that there is one is all we ask."""
    _object(body)
    return True


def decode_done(body: bytes) -> None:
    """Check that an answer without news in it is at least a JSON object, not the page of some proxy."""
    _object(body)


def decode_error_id(body: bytes) -> str:
    """Decode the `id` of an AppError, "" where the body is none; never raises."""
    try:
        return _error(body).id or ""
    except LinkGarbled:
        return ""
