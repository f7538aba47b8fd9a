"""The nouns of the simulated Mattermost: what it stores, and how Go would write it as JSON."""

from __future__ import annotations

import random
from typing import Any

import msgspec

# mattermost v11: public/model/utils.go, NewId
ALPHABET = "ybndrfg8ejkmcpqxot1uwisza345h769"
PERMISSION = "api.context.permissions.app_error"

Json = dict[str, Any]


class ApiError(Exception):
    """Mattermost's AppError: `status` and `id` are what a client may branch on."""

    def __init__(self, status: int, id: str, message: str = "") -> None:
        super().__init__(f"{status} {id}")
        self.status = status
        self.id = id
        self.message = message or id


class Token(msgspec.Struct):
    """A personal access token or a session token."""

    value: str
    user_id: str
    active: bool = True


class User(msgspec.Struct, kw_only=True):
    """A person or a bot. `token` is the newest of the account's tokens."""

    id: str
    username: str
    email: str
    create_at: int
    update_at: int
    roles: str = "system_user"
    delete_at: int = 0
    nickname: str = ""
    first_name: str = ""
    last_name: str = ""
    is_bot: bool = False
    remote_id: str | None = None
    token: str = ""

    @property
    def admin(self) -> bool:
        return "system_admin" in self.roles.split()


class Team(msgspec.Struct, kw_only=True):
    id: str
    name: str
    display_name: str
    create_at: int
    allow_open_invite: bool = False
    delete_at: int = 0
    members: set[str] = msgspec.field(default_factory=set)


class Channel(msgspec.Struct, kw_only=True):
    """A channel of `type` O, P, D or G; `members` says when each joined, `history` holds what edits left behind."""

    id: str
    name: str
    type: str
    create_at: int
    update_at: int
    team_id: str = ""
    display_name: str = ""
    creator_id: str = ""
    delete_at: int = 0
    last_post_at: int = 0
    total: int = 0
    shared: bool = False
    members: dict[str, int] = msgspec.field(default_factory=dict)
    posts: list[Post] = msgspec.field(default_factory=list)
    history: list[Post] = msgspec.field(default_factory=list)


class Post(msgspec.Struct, kw_only=True):
    """A row of the posts table; an edit leaves its former text behind as a deleted row with an `original_id`."""

    id: str
    channel_id: str
    user_id: str
    create_at: int
    update_at: int
    message: str = ""
    edit_at: int = 0
    delete_at: int = 0
    root_id: str = ""
    original_id: str = ""
    type: str = ""
    props: Json = msgspec.field(default_factory=dict)
    pending_post_id: str = ""
    replies: list[Post] = msgspec.field(default_factory=list)
    reactions: dict[tuple[str, str], Reaction] = msgspec.field(default_factory=dict)


class Reaction(msgspec.Struct, kw_only=True):
    user_id: str
    post_id: str
    emoji_name: str
    create_at: int
    update_at: int
    delete_at: int = 0
    remote_id: str = ""


def new_id() -> str:
    return "".join(random.choices(ALPHABET, k=26))


def valid_id(value: object) -> bool:
    """26 letters or digits, as model.IsValidId asks."""
    return isinstance(value, str) and len(value) == 26 and value.isascii() and value.isalnum()


def go_json(value: object) -> bytes:
    """JSON with the escapes that Go's encoder makes by itself: <, >, & and the two line separators."""
    text = msgspec.json.encode(value)
    if b"<" in text or b">" in text or b"&" in text or b"\xe2\x80" in text:
        text = text.replace(b"<", b"\\u003c").replace(b">", b"\\u003e").replace(b"&", b"\\u0026")
        text = text.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return text


def go_runes(value: object) -> int:
    """How many runes the JSON of `value` has: what Mattermost counts against its limit for props."""
    return len(go_json(value).decode())


_HEAD = ("fallback", "color", "pretext", "author_name", "author_link", "author_icon", "title", "title_link", "text")
_TAIL = ("image_url", "thumb_url", "footer", "footer_icon")


def normal_attachments(attachments: object) -> object:
    """Attachments as the server stores them: every field filled in (5.37 recordings)."""
    if not isinstance(attachments, list):
        return attachments
    return [_normal_attachment(one) for one in attachments if isinstance(one, dict)]


def _normal_attachment(raw: Json) -> Json:
    fields = raw.get("fields")
    normal: Json = {"id": 0} | {name: raw.get(name, "") for name in _HEAD}
    normal["fields"] = fields and [
        {"title": one.get("title", ""), "value": one.get("value"), "short": one.get("short", False)}
        for one in fields
        if isinstance(one, dict)
    ]
    normal |= {name: raw.get(name, "") for name in _TAIL}
    return normal | {"ts": raw.get("ts")}
