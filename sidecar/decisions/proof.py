"""What proves that a post is a request's card: nothing that others may write is believed alone. Pure.

There are two witnesses, the record in Teleport and `props.tm` on the card in Mattermost; each may be rewritten by
somebody, and the stricter one holds.
"""

from __future__ import annotations

import base64
import hashlib

from sidecar.decisions.expressions import FORGED
from sidecar.decisions.record import ADOPTED, Record, Slot, post_key
from sidecar.decisions.seen import Context
from sidecar.model import AccessRequest, Post

# Properties that say that somebody else posted as our bot; its own posts bear `from_bot`.
_FOREIGN = FORGED - {"from_bot"}
# Different 201s that are not ours before a recipient is left for later.
MAX_ATTEMPTS = 5


def asked(request: AccessRequest) -> str:
    """A digest of what was asked: another request under the same id has another one."""
    created = "" if request.created is None else f"{request.created:.3f}"
    text = f"1\x00{request.id}\x00{created}\x00{request.user}"
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode(errors="replace")).digest())[:16].decode()


def keys(record: Record, kind: str, channel_id: str, which: int | str, attempt: int) -> frozenset[str]:
    """The keys of all attempts at one post: one may have been raised, used, and not yet recorded."""
    return frozenset(post_key(record.seed, kind, channel_id, which, n) for n in range(max(attempt, 0) + MAX_ATTEMPTS))


def is_ours(post: Post, wanted: frozenset[str], channel_id: str, bot_id: str) -> bool:
    """Whether our bot, and nothing in its name, made this post there, with one of these keys; it still stands."""
    return (
        post.user_id == bot_id
        and post.channel_id == channel_id
        and post.key in wanted
        and not (post.type or post.delete_at or post.original_id or post.props & _FOREIGN)
    )


def is_card(post: Post, slot: Slot, record: Record, context: Context, request: AccessRequest | None) -> bool:
    """Whether this is the card of that slot, as our bot made it for this very request.

    A post that was adopted from the official plugin bears no key: it is one of our bot's own, and nobody decides on it.
    Of a request that is gone, and whose record does not say what was asked, any card with its key is one.
    """
    if post.id != slot.p or post.root_id:
        return False
    if slot.a == ADOPTED:
        return is_ours(post, frozenset(("",)), slot.c, context.bot_id)
    mark, q = post.mark, record.q or (asked(request) if request is not None else "")
    return (
        is_ours(post, keys(record, slot.k, slot.c, 0, slot.a), slot.c, context.bot_id)
        and mark.id == context.request_id
        and mark.c in ("", context.options.cluster)
        and (not q or mark.q in ("", q))
    )


def counts_since(
    post: Post | object, slot: Slot, record: Record, context: Context, request: AccessRequest
) -> int | None:
    """From when on (Mattermost's milliseconds) words on this card count; None where none do.

    A card that was made or marked under other rules counts nothing until it is marked anew, and the record with it.
    """
    if not isinstance(post, Post) or slot.k != "card" or slot.a == ADOPTED:
        return None
    if not is_card(post, slot, record, context, request):
        return None
    if {post.mark.rules, record.rules} != {context.rules_digest}:
        return None
    return max(slot.since, post.mark.since, record.since)
