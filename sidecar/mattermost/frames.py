"""Websocket frames -> hints: opened no further than needed, for most of them are none of our business.

A frame that is none is LinkGarbled. What users may have put into one costs that one hint alone; the sweep finds more.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from sidecar.errors import LinkGarbled, UnreadableAnswer
from sidecar.mattermost.codec import decode_error_id, decode_head
from sidecar.mattermost.decoder import Decoder
from sidecar.model import Id, Post

log = logging.getLogger(__name__)

_NULL: Final = msgspec.Raw(b"null")


class PostedHint(msgspec.Struct, frozen=True):
    """Somebody posted or edited this: look at it. `root_id` is "" outside a thread."""

    post_id: str
    root_id: str
    channel_id: str
    user_id: str


class ReactionHint(msgspec.Struct, frozen=True):
    """The reactions on this post may have changed: read them."""

    post_id: str
    channel_id: str
    user_id: str


Hint = PostedHint | ReactionHint


class Frame(msgspec.Struct):
    """A websocket frame, opened no further than needed: an event (`event`, `seq`) or a reply (`seq_reply`)."""

    event: str | None = None
    seq: int | None = None
    seq_reply: int | None = None
    status: str | None = None
    data: msgspec.Raw = _NULL
    broadcast: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL


class _Broadcast(msgspec.Struct):
    channel_id: str | None = None


class _EventData(msgspec.Struct):
    # JSON inside JSON: both are strings on the wire.
    post: str = ""
    reaction: str = ""


_NO_DATA: Final = _EventData()


class _PostIds(msgspec.Struct):
    id: Id
    root_id: str = ""
    channel_id: str = ""
    user_id: str = ""


class _ReactionIds(msgspec.Struct):
    post_id: Id
    user_id: str = ""


_frame = Decoder[Frame](Frame, "a websocket frame")
_event_data = Decoder[_EventData | None](_EventData | None, "a websocket event")
_broadcast = Decoder[_Broadcast | None](_Broadcast | None, "a websocket event")
_post_ids = Decoder[_PostIds](_PostIds, "the post of an event")
_reaction_ids = Decoder[_ReactionIds](_ReactionIds, "the reaction of an event")


def decode_frame(message: str | bytes) -> Frame:
    """Open a websocket frame; what is not needed stays undecoded."""
    return _frame(message)


def decode_hint(frame: Frame) -> Hint | None:
    """Decode what an event says to look at; None for an event that is none of our business, or cannot be read."""
    try:
        if frame.event in {"posted", "post_edited"}:
            # Edited words decide nothing, and whose edit it was is not told: the author hears that at once.
            return _posted((_event_data(frame.data) or _NO_DATA).post)
        if frame.event in {"reaction_added", "reaction_removed"}:
            reaction = _reaction_ids((_event_data(frame.data) or _NO_DATA).reaction)
            broadcast = _broadcast(frame.broadcast)
            return ReactionHint(reaction.post_id, (broadcast and broadcast.channel_id) or "", reaction.user_id)
    except LinkGarbled:
        log.debug("hint.skipped", extra={"link": "mattermost", "kind": frame.event})
    return None


def _posted(text: str) -> PostedHint:
    try:
        post: _PostIds | Post = _post_ids(text)
    except UnreadableAnswer as exc:
        head = decode_head(exc.head)
        if head is None:
            raise
        post = head
    return PostedHint(post.id, post.root_id, post.channel_id, post.user_id)


def decode_reply_error(frame: Frame) -> str:
    """Decode the error id of a reply. Never the message: it can hold the token in clear (5.37, 11)."""
    return decode_error_id(bytes(frame.error))
