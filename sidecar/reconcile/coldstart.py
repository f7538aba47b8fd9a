"""Once after a start: end the cards that say PENDING although Teleport has forgotten their request and its record."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sidecar.errors import PostRejected, RecipientError
from sidecar.model import EXPIRED, PENDING
from sidecar.text import card as text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sidecar.model import Destination, Post
    from sidecar.reconcile.ports import Mattermost, Teleport

log = logging.getLogger(__name__)


async def close_orphans(
    names: Iterable[str],
    resolve: Callable[[str], Awaitable[Destination]],
    posts: Mattermost,
    lookups: Teleport,
    *,
    bot_id: str,
    cluster: str,
    followed: Callable[[str], bool],
) -> int:
    """Read the newest page of each channel and end what is over; return how many cards were ended.

    Such a request is past its access expiry by an hour or more, for that is how long its record lives: it expired.
    Only cards that bear the name of our cluster: another cluster's sidecar may use the same bot and channel, and no
    request of its is known here. Raises LinkError.
    """
    channels: dict[str, None] = {}
    for name in names:
        try:
            channels[(await resolve(name)).channel_id] = None
        except RecipientError:
            continue
    ended = 0
    for channel_id in channels:
        try:
            newest = await posts.channel_posts(channel_id, 0)
        except PostRejected:
            # No longer a member: nothing there can be changed.
            continue
        for post in newest:
            if not _looks_open(post, bot_id) or not text.is_of_cluster(post, cluster):
                continue
            if not followed(post.request_id) and await _forgotten(lookups, post):
                ended += await _close(posts, post)
    return ended


def _looks_open(post: Post, bot_id: str) -> bool:
    return (
        post.user_id == bot_id
        and post.shown_state == PENDING
        and bool(post.request_id)
        and not (post.root_id or post.delete_at or post.original_id)
    )


async def _forgotten(lookups: Teleport, post: Post) -> bool:
    if await lookups.get_request(post.request_id) is not None:
        return False
    return not await lookups.read_plugin_data(post.request_id)


async def _close(posts: Mattermost, post: Post) -> int:
    draft = text.close_card(post.attachment, post.request_id, EXPIRED)
    tm = {"v": 1, "id": post.request_id, "k": post.key, "n": 0, "state": EXPIRED}
    try:
        await posts.patch_post(post.id, draft, tm=tm)
    except PostRejected as exc:
        log.info("orphan.rejected", extra={"post_id": post.id, "status": exc.status, "error_id": exc.error_id})
        return 0
    log.info("orphan.closed", extra={"post_id": post.id, "request_id": post.request_id})
    return 1
