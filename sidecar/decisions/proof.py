"""What proves that a post is a request's card: nothing that others may write is believed alone. Pure.

There are two witnesses, the record in Teleport and `props.tm` on the card in Mattermost; each may be rewritten by
somebody, and the stricter one holds.
"""

from __future__ import annotations

import base64
import hashlib

from sidecar.decisions.judge import FORGED
from sidecar.decisions.posts import keys
from sidecar.decisions.record import ADOPTED, Record, Slot
from sidecar.decisions.seen import Context
from sidecar.model import AccessRequest, Post

# Properties that say that somebody else posted as our bot; its own posts bear `from_bot`.
_FOREIGN = FORGED - {"from_bot"}


def asked(request: AccessRequest) -> str:
    """A digest of what was asked: another request under the same id has another one."""
    created = "" if request.created is None else f"{request.created:.3f}"
    text = f"1\0{request.id}\0{created}\0{request.user}"
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode(errors="replace")).digest())[:16].decode()


def is_card(post: Post, slot: Slot, record: Record, context: Context) -> bool:
    """Whether this is the card of that slot, as our bot made it for this very request.

    A post that was adopted from the official plugin bears no key: it is one of our bot's own, and nobody decides on it.
    """
    ours = (
        post.id == slot.p
        and post.user_id == context.bot_id
        and post.channel_id == slot.c
        and not (post.root_id or post.type or post.delete_at or post.original_id or post.props & _FOREIGN)
    )
    if slot.a == ADOPTED:
        return ours and not post.key
    mark = post.mark
    return (
        ours
        and mark.id == context.request_id
        and mark.k in keys(record, slot.k, slot.c, 0, slot.a)
        and mark.c in ("", context.options.cluster)
        and mark.q in ("", record.q)
    )


def counts_since(post: Post | object, slot: Slot, record: Record, context: Context) -> int | None:
    """From when on (Mattermost's milliseconds) words on this card count; None where none do.

    A card that was made or marked under other rules counts nothing until it is marked anew.
    """
    if not isinstance(post, Post) or slot.k != "card" or slot.a == ADOPTED or not is_card(post, slot, record, context):
        return None
    if post.mark.rules != context.rules_digest:
        return None
    return max(slot.since, post.mark.since)
