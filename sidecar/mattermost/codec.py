"""JSON of Mattermost 5.37 to 11 -> model values.

Every `decode_*` gives a value or raises LinkGarbled, of which UnreadableAnswer says that it nests too deep. Fields may
be missing or unknown to us; one of a wrong type is garbled, except inside a post's `props`, where users store anything.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from sidecar.errors import LinkGarbled
from sidecar.mattermost.decoder import Decoder, Items
from sidecar.model import Id, Mark, Millis, Post, Reaction, User

# A longer message is cut: no decision with the longest reason that Teleport takes, and no card of anybody's, is longer.
MESSAGE_CHARS: Final = 5000
# Our cards have 12 fields, and their properties are made for the 8,000 runes of 5.37.
_MAX_FIELDS: Final = 32
_MAX_ATTACHMENT_BYTES: Final = 32 * 1024
_MAX_BRACES: Final = 256
# How Go writes a post: the server's own fields stand before all that a user chose.
_HEAD: Final = re.compile(
    rb'\{"id":"(?P<id>[a-z0-9]{26})"'
    rb',"create_at":(?P<create_at>\d{1,15}),"update_at":\d{1,15},"edit_at":\d{1,15},"delete_at":(?P<delete_at>\d{1,15})'
    rb',"is_pinned":(?:true|false),"user_id":"(?P<user_id>[a-z0-9]{26})","channel_id":"(?P<channel_id>[a-z0-9]{26})"'
    rb',"root_id":"(?P<root_id>[a-z0-9]{26}|)",'
)


class Channel(msgspec.Struct, frozen=True):
    """A channel: `type` is O (public), P (private), D (direct, `name` is both user ids with `__`) or G."""

    id: Id
    type: str = ""
    team_id: str = ""
    name: str = ""
    display_name: str = ""
    delete_at: Millis = 0
    last_post_at: Millis = 0
    shared: bool | None = None


class Team(msgspec.Struct, frozen=True):
    """A team that the bot may see."""

    id: Id
    name: str = ""
    display_name: str = ""
    delete_at: Millis = 0


# What may be anything: it is looked at by itself, and only where it has to be.
_Any = msgspec.Raw | msgspec.UnsetType


class _Props(msgspec.Struct):
    """The properties that mean something to us; all others are skipped."""

    tm: _Any = msgspec.UNSET
    attachments: _Any = msgspec.UNSET
    from_bot: _Any = msgspec.UNSET
    from_webhook: _Any = msgspec.UNSET
    from_plugin: _Any = msgspec.UNSET
    from_oauth_app: _Any = msgspec.UNSET
    override_username: _Any = msgspec.UNSET
    override_icon_url: _Any = msgspec.UNSET
    override_icon_emoji: _Any = msgspec.UNSET
    webhook_display_name: _Any = msgspec.UNSET
    ai_generated_by: _Any = msgspec.UNSET


KNOWN_PROPS: Final = _Props.__struct_fields__
_NO_PROPS: Final = _Props()
_NO_MARK: Final = Mark()


class _WirePost(msgspec.Struct):
    id: Id
    channel_id: str = ""
    user_id: str = ""
    create_at: Millis = 0
    update_at: Millis = 0
    edit_at: Millis = 0
    delete_at: Millis = 0
    root_id: str = ""
    original_id: str = ""
    type: str = ""
    message: str = ""
    remote_id: str | None = None
    props: _Props | None = None


class _PostList(msgspec.Struct):
    order: list[str] | None = None
    posts: dict[str, _WirePost] | None = None


class _Field(msgspec.Struct):
    title: str = ""
    value: str = ""
    short: bool = False


class _Attachment(msgspec.Struct):
    fallback: str = ""
    color: str = ""
    pretext: str = ""
    footer: str = ""
    fields: Annotated[list[_Field], msgspec.Meta(max_length=_MAX_FIELDS)] | None = None


class _Error(msgspec.Struct):
    id: str = ""


class _Object(msgspec.Struct):
    """Any object."""

    update_at: Millis = 0


_post = Decoder[_WirePost](_WirePost, "a post")
_posts = Decoder[_PostList](_PostList, "a list of posts")
_mark = Decoder[Mark](Mark, "a mark")
_attachments = Decoder[list[_Attachment]](list[_Attachment], "an attachment")
_reactions = Decoder[dict[str, list[Reaction] | None]](dict[str, list[Reaction] | None], "a map of reactions")
_users = Decoder[list[User] | None](list[User] | None, "a list of users")
_teams = Decoder[list[Team] | None](list[Team] | None, "a list of teams")
_settings = Decoder[dict[str, str]](dict[str, str], "the client configuration")
_error = Decoder[_Error](_Error, "an error")
_object = Decoder[_Object](_Object, "an answer")

decode_user = Decoder[User](User, "a user")
decode_channel = Decoder[Channel](Channel, "a channel")
decode_team = Decoder[Team](Team, "a team")


def _to_post(wire: _WirePost) -> Post:
    props = wire.props or _NO_PROPS
    mark = _to_mark(props.tm)
    return Post(
        id=wire.id,
        channel_id=wire.channel_id,
        user_id=wire.user_id,
        create_at=wire.create_at,
        update_at=wire.update_at,
        edit_at=wire.edit_at,
        delete_at=wire.delete_at,
        root_id=wire.root_id,
        original_id=wire.original_id,
        type=wire.type,
        message=wire.message[:MESSAGE_CHARS],
        remote_id=wire.remote_id or "",
        key=mark.k,
        request_id=mark.id,
        shown_state=mark.state,
        mark=mark,
        props=frozenset(name for name in KNOWN_PROPS if getattr(props, name) is not msgspec.UNSET),
        attachment=_to_attachment(props.attachments) if mark is not _NO_MARK else None,
    )


def _to_mark(raw: _Any) -> Mark:
    """Our own mark, or an empty one: any user can put anything there, and must not make a channel unreadable by it."""
    try:
        return _NO_MARK if raw is msgspec.UNSET else _mark(raw)
    except LinkGarbled:
        return _NO_MARK


def _to_attachment(raw: _Any) -> dict[str, object] | None:
    """The first attachment as far as a card of ours needs it; None where it is none."""
    if raw is msgspec.UNSET or len(text := bytes(raw)) > _MAX_ATTACHMENT_BYTES or text.count(b"{") > _MAX_BRACES:
        return None
    try:
        found = _attachments(text)
    except LinkGarbled:
        return None
    return {name: value for name, value in msgspec.to_builtins(found[0]).items() if value} if found else None


def decode_post(body: bytes) -> Post:
    """Decode one post."""
    return _to_post(_post(body))


def decode_posts(body: bytes) -> list[Post]:
    """Decode a PostList in its own order, each post once: a thread names the post that was asked for twice (5.37)."""
    wire = _posts(body)
    posts = wire.posts or {}
    return [_to_post(posts[id_]) for id_ in dict.fromkeys(wire.order or ()) if id_ in posts]


def decode_head(head: bytes) -> Post | None:
    """Decode what the server says of one post, from the beginning of an answer that cannot be read as a whole."""
    found = _HEAD.match(head)
    if found is None:
        return None
    return Post(
        id=found["id"].decode(),
        channel_id=found["channel_id"].decode(),
        user_id=found["user_id"].decode(),
        create_at=int(found["create_at"]),
        delete_at=int(found["delete_at"]),
        root_id=found["root_id"].decode(),
        skipped=True,
    )


def decode_reactions(body: bytes) -> dict[str, list[Reaction]]:
    """Decode the answer of POST /posts/ids/reactions; v11 says null for none."""
    return {post_id: found or [] for post_id, found in _reactions(body).items()}


def decode_users(body: bytes) -> list[User]:
    """Decode a list of users."""
    return _users(body) or []


def decode_channels(body: bytes) -> list[Channel]:
    """Decode a list of channels."""
    items = channels()
    items.feed(body)
    return items.end()


def channels() -> Items[Channel]:
    """What decodes a list of channels as it arrives; a bot may be in tens of thousands."""
    return Items(decode_channel)


def decode_teams(body: bytes) -> list[Team]:
    """Decode a list of teams."""
    return _teams(body) or []


def decode_config(body: bytes) -> dict[str, str]:
    """Decode GET /config/client?format=old: a flat map of strings."""
    return _settings(body)


def decode_done(body: bytes) -> bool:
    """Check that an answer without news in it is at least a JSON object, not the page of some proxy."""
    _object(body)
    return True


def decode_change(body: bytes) -> int:
    """Decode when a post was changed, which is all that matters in the answer to a patch."""
    return _object(body).update_at


def decode_error_id(body: bytes) -> str:
    """Decode the `id` of an AppError, "" where the body is none; never raises."""
    try:
        return _error(body).id
    except LinkGarbled:
        return ""
