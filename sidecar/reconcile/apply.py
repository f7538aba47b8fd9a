"""Carrying out the work for one recipient: make, patch and answer posts so that each exists exactly once.

A post's key is computable from the record and unguessable by others, so that whoever carries on after a crash can find
out by reading whether a post was made.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import trio

from sidecar.decisions.plan import end_number, replied
from sidecar.decisions.record import post_key
from sidecar.errors import LinkError, LinkGarbled, LinkLost, PostRejected, SidecarError
from sidecar.reconcile.lease import LeaseLost
from sidecar.text import card as text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.decisions.plan import Work
    from sidecar.decisions.record import Slot
    from sidecar.model import Draft, Post
    from sidecar.reconcile.lease import Hold

log = logging.getLogger(__name__)

PAGE = 200
# 5,000 posts: beyond that a look-up proves nothing in useful time, and the post waits.
MAX_PAGES = 25
# Posts are looked for from this long before the claim, for clocks that disagree.
LOOKUP_MARGIN_SECONDS = 600
# Different 201s that are not ours, or "pending" answers, before the recipient is left for later.
MAX_ATTEMPTS = 5
# PATCH says 403 for unknown, deleted, lagging and not-a-member alike (observed on 5.37): replicas get this long.
PATCH_RETRY_SECONDS = (0.5, 1.5)

PENDING_RETRY_SECONDS = 0.3
REPLIES = ("review", "end")
# Marks the doubt about a patch; no key of a post has such a sign in it.
PATCHED = "patch|"

PENDING_ID = "api.post.deduplicate_create_post.pending"


class Posts(Protocol):
    """What delivery needs of Mattermost; see `sidecar.mattermost.client` for the errors."""

    @property
    def clock_offset(self) -> float: ...

    async def create_post(
        self,
        channel_id: str,
        draft: Draft,
        *,
        key: str,
        tm: dict[str, object],
        root_id: str = "",
        guard: Callable[[], None] = ...,
    ) -> Post: ...

    async def patch_post(
        self,
        post_id: str,
        draft: Draft,
        *,
        tm: dict[str, object],
        message: bool = False,
        guard: Callable[[], None] = ...,
    ) -> None: ...

    async def delete_post(self, post_id: str, *, guard: Callable[[], None] = ...) -> None: ...

    async def get_post(self, post_id: str) -> Post | None: ...

    async def channel_posts(self, channel_id: str, page: int, per_page: int = PAGE) -> list[Post]: ...

    async def thread(self, post_id: str) -> list[Post]: ...

    async def add_reaction(self, user_id: str, post_id: str, emoji: str) -> None: ...


class Spot(NamedTuple):
    """Where a post stands and what makes it the only one: kind, number or name, channel, root where it is a reply.

    `position` is that of the slot which remembers the attempt, None where nobody needs to.
    """

    kind: str
    which: int | str
    channel_id: str
    root_id: str = ""
    attempt: int = 0
    position: int | None = None


class LookupBounded(SidecarError):
    """A channel is too busy to prove that a post does not exist; it is not made now."""

    def __init__(self, channel_id: str) -> None:
        super().__init__(f"the newest {PAGE * MAX_PAGES} posts of channel {channel_id} do not reach back far enough")


class Doubts:
    """Which posts may exist although the record does not say so: those are looked for before they are made.

    `cards`: the record was not made by this process, so a card that it lists as waiting may have been posted.
    `replies`: its last holder did not give it up in an orderly way, so anything unrecorded may have been posted.
    """

    def __init__(self, *, cards: bool, replies: bool, mentions: bool = False) -> None:
        self.cards = cards
        self.replies = replies
        # The official plugin began to announce it: a post of our bot that names the request is the card.
        self.mentions = mentions
        # Its last holder had doubts, and took them with it.
        self.inherited = False
        # key -> (channel, root post or "", trio's time of the doubt)
        self._keys: dict[str, tuple[str, str, float]] = {}

    def __bool__(self) -> bool:
        return self.inherited or bool(self._keys)

    def add(self, key: str, channel_id: str, root_id: str) -> None:
        """No answer told whether the post with this key was made."""
        self._keys[key] = (channel_id, root_id, trio.current_time())

    def inherit(self, key: str, channel_id: str) -> None:
        """A dead holder left this doubtful, long ago; a doubt of our own about it is younger and stays."""
        self._keys.setdefault(key, (channel_id, "", -math.inf))

    def about(self, key: str, *, reply: bool) -> bool:
        """Whether to look before making the post with this key."""
        return key in self._keys or (self.replies if reply else self.cards)

    def ripe(self, before: float) -> list[tuple[str, str, str]]:
        """The doubts (key, channel, root) that are older than this time of trio's clock."""
        return [(key, channel, root) for key, (channel, root, since) in self._keys.items() if since <= before]

    def settle(self, key: str) -> None:
        """The doubt about this key is over."""
        self._keys.pop(key, None)


class Deliverer:
    """Writes to Mattermost for one held request. `bot_id` is who we are: a post of anybody else is never ours."""

    def __init__(
        self,
        posts: Posts,
        bot_id: str,
        hold: Hold,
        doubts: Doubts,
        *,
        count: Callable[[str, str], None],
        seeds: tuple[str, ...] = (),
        superseded: Callable[[], bool] = lambda: False,
        placed: Callable[[], None] = lambda: None,
    ) -> None:
        self._posts = posts
        self._bot_id = bot_id
        self._hold = hold
        self._doubts = doubts
        self._count = count
        # Reactions that invite to decide with one click.
        self._seeds = seeds
        # Whether a newer version is known and will be delivered next.
        self._superseded = superseded
        # Threads that have a reply for certain (that of a card which came resolved has none, although its end counts as
        # told), and whose turn it is to make the first one: Mattermost answers 500 to first replies that come at once
        # (5.37 and 11: both insert the thread's row).
        self._begun = {slot.p for slot in hold.record.posts if slot.rep and min(slot.rep) > 0}
        self._first: dict[str, trio.Lock] = {}
        # Told of each new card at once: people decide before the other recipients have theirs.
        self._placed = placed

    async def deliver(self, work: Work) -> None:
        """Bring one recipient's messages up to date; progress is noted in the hold step by step.

        Raises LinkLost, LinkRefused, LeaseLost or LookupBounded; what this one recipient refuses is noted, not raised.
        """
        try:
            if work.create and work.card is not None:
                await self._create(work, work.card)
            for reply in work.replies:
                await self._reply(work, reply.number, reply.draft)
            # Last, so that reviews which come together cost one patch.
            if not work.create and work.card is not None and not self._superseded():
                await self._patch(work, work.card)
        except PostRejected as exc:
            self._reject(work.position, exc)

    async def answer(self, channel_id: str, root_id: str, identity: str, draft: Draft) -> None:
        """Tell one person what became of their decision. Who cannot be told is left alone."""
        try:
            await self._place(Spot("answer", identity, channel_id, root_id), draft)
        except PostRejected as exc:
            log.info("answer.rejected", extra={"request_id": self._hold.request_id, "status": exc.status})

    async def verify(self, before: float) -> bool:
        """Look again for posts that were made twice over: once by a try that got no answer, once by the next one.

        To be called when everything due was delivered: it ends the doubts that make delivery look first. True where a
        card was found that is not on record, which then must be brought up to date.
        """
        if self._doubts.inherited:
            self._inherit()
        replaced = False
        for key, channel_id, root_id in self._doubts.ripe(before):
            if key.startswith(PATCHED):
                replaced |= self._mistrust(channel_id)
            else:
                try:
                    replaced |= self._replace(key, await self._find(frozenset((key,)), channel_id, root_id))
                except (PostRejected, LookupBounded) as exc:
                    # No longer ours to read, so not ours to repair; or it only gets longer.
                    log.debug("doubt.settled", extra={"request_id": self._hold.request_id, "detail": str(exc)})
            self._doubts.settle(key)
        return replaced

    def _inherit(self) -> None:
        """Doubt every card: a try of the last holder's may have come after the one that it wrote down."""
        for position, slot in enumerate(self._hold.record.posts):
            if slot.p and slot.s in ("posted", "failed"):
                self._doubts.inherit(self._key(self._spot(position, slot.k), slot.a), slot.c)
                self._doubts.inherit(PATCHED + slot.c, slot.c)
        self._doubts.inherited = False

    def _mistrust(self, channel_id: str) -> bool:
        """Let the cards of a channel count as untrue; whether there are any."""
        found = [n for n, slot in enumerate(self._hold.record.posts) if slot.c == channel_id and slot.p]
        for position in found:
            self._update(position, shown=("", 0))
        return bool(found)

    def _replace(self, key: str, found: str) -> bool:
        """Put what was found under a card's key on record, where another one stood; whether it did."""
        replaced = False
        for position, slot in enumerate(self._hold.record.posts):
            if found not in ("", slot.p) and key in self._keys(self._spot(position, slot.k)):
                # The younger one, which we had on record, is deleted and its thread with it; or none was found when
                # the request ended, and this one came after all.
                self._update(position, p=found, s="posted", h="", shown=("", 0), rep=())
                replaced = True
        return replaced

    async def close(self, position: int, state: str) -> None:
        """End the card of a request that Teleport no longer has, from what the card itself shows."""
        number = end_number(state)
        slot = self._hold.record.posts[position]
        try:
            if not slot.p:
                slot = await self._recover(position)
            post = await self._posts.get_post(slot.p) if slot.p else None
            if post is None:
                self._update(position, s="gone")
                return
            draft = text.close_card(post.attachment, self._hold.request_id, state)
            if not await self._patch_post(position, slot, draft):
                return
            if number not in slot.rep:
                await self._place(self._spot(position, "end", -number), text.render_gone_reply(state))
                self._hold.update(position, replied(self._hold.record.posts[position], number))
            self._update(position, s="posted", h=text.content_hash(draft), shown=self._hold.record.seen)
        except PostRejected as exc:
            self._reject(position, exc)

    async def _recover(self, position: int) -> Slot:
        """The slot with the card that an earlier holder may have made without recording it."""
        slot = self._hold.record.posts[position]
        spot = self._spot(position, slot.k)
        if not self._doubts.about(self._key(spot, slot.a), reply=False):
            return slot
        return self._update(position, p=await self._find_spot(spot))

    def _slot(self, work: Work) -> Slot:
        return self._hold.record.posts[work.position]

    def _update(self, position: int, **changes: object) -> Slot:
        slot = msgspec.structs.replace(self._hold.record.posts[position], **changes)
        self._hold.update(position, slot)
        return slot

    async def _create(self, work: Work, card: Draft) -> None:
        post_id, doubtful = await self._place(self._spot(work.position, self._slot(work).k), card)
        self._update(work.position, p=post_id)
        if doubtful:
            # An earlier try made it, perhaps of an earlier version of the request.
            await self._patch(work, card)
        else:
            self._update(work.position, s="posted", h=work.card_hash, shown=self._hold.record.seen)
        self._placed()
        if self._slot(work).k == "card":
            await self._seed(post_id)

    async def _seed(self, post_id: str) -> None:
        """A convenience: where it fails, people find the emoji themselves."""
        for emoji in self._seeds:
            try:
                await self._posts.add_reaction(self._bot_id, post_id, emoji)
            except (LinkError, PostRejected) as exc:
                log.debug("reaction.not_seeded", extra={"post_id": post_id, "detail": str(exc)})
                return

    async def _patch(self, work: Work, card: Draft) -> None:
        if await self._patch_post(work.position, self._slot(work), card):
            self._update(work.position, s="posted", h=work.card_hash, shown=self._hold.record.seen)

    async def _patch_post(self, position: int, slot: Slot, card: Draft) -> bool:
        """Patch a card; False when the post is gone. An adopted post (never rendered by us) gets our message too."""
        tm = self._tm(self._hold.record.seen[0], self._key(self._spot(position, slot.k), slot.a))
        for pause in (*PATCH_RETRY_SECONDS, None):
            try:
                await self._posts.patch_post(slot.p, card, tm=tm, message=not slot.h, guard=self._require)
            except (LinkLost, LinkGarbled) as exc:
                if isinstance(exc, LinkGarbled) or exc.ambiguous:
                    # It may be carried out after the next one, and would stay.
                    self._doubts.add(PATCHED + slot.c, slot.c, "")
                raise
            except PostRejected as exc:
                if exc.status == 400 and "time_limit" in exc.error_id and not slot.h:
                    await self._posts.patch_post(slot.p, card, tm=tm, guard=self._require)
                elif exc.status != 403 or pause is None:
                    if exc.status in (403, 404) and await self._posts.get_post(slot.p) is None:
                        self._count("update", "gone")
                        self._update(position, s="gone")
                        return False
                    raise
                else:
                    await trio.sleep(pause)
                    continue
            self._count("update", "ok")
            return True
        raise AssertionError("unreachable")

    async def _reply(self, work: Work, number: int, draft: Draft) -> None:
        slot = self._slot(work)
        if not slot.p or slot.s == "gone":
            return
        await self._place(self._spot(work.position, "review" if number > 0 else "end", abs(number)), draft)
        self._hold.update(work.position, replied(self._slot(work), number))

    async def _place(self, spot: Spot, draft: Draft) -> tuple[str, bool]:
        """Like `_make`; one at a time until a thread has its first reply."""
        root_id = spot.root_id
        if not root_id or root_id in self._begun:
            return await self._make(spot, draft)
        if spot.kind != "answer":
            # Whoever decided waits for a word; answers that start together with this are in the queue before it.
            await trio.lowlevel.checkpoint()
        async with self._first.setdefault(root_id, trio.Lock()):
            placed = await self._make(spot, draft)
            self._begun.add(root_id)
            return placed

    async def _make(self, spot: Spot, draft: Draft) -> tuple[str, bool]:
        """The id of the one post with this identity, made now unless a look-up finds it; True where it may be older."""
        attempt = spot.attempt
        for _ in range(MAX_ATTEMPTS):
            key = self._key(spot, attempt)
            doubtful = self._doubts.about(key, reply=bool(spot.root_id))
            if doubtful and (found := await self._find_spot(spot)):
                self._count(spot.kind, "found")
                return found, True
            post, error_id = await self._try(spot, key, draft)
            if post is not None and self._ours(post, frozenset((key,)), spot.channel_id):
                self._count(spot.kind, "ok")
                return post.id, doubtful
            if error_id == PENDING_ID:
                # Our own earlier try is still under way there; with the same key we are given its post.
                await trio.sleep(PENDING_RETRY_SECONDS)
                continue
            # Somebody used our pending_post_id first and we were given their post (observed on 5.37), or the post of
            # this key was deleted: only another key can be sure to post.
            self._count(spot.kind, "foreign")
            attempt += 1
            if spot.position is not None:
                self._update(spot.position, a=attempt)
        raise PostRejected(201, "not_our_post")

    async def _try(self, spot: Spot, key: str, draft: Draft) -> tuple[Post | None, str]:
        """Make the post once: what Mattermost answered, or the refusal after which it may be tried again at once."""
        tm = self._tm(self._hold.record.seen[0], key)
        try:
            return await self._posts.create_post(
                spot.channel_id, draft, key=key, tm=tm, root_id=spot.root_id, guard=self._require
            ), ""
        except (LinkLost, LinkGarbled) as exc:
            if isinstance(exc, LinkGarbled) or exc.ambiguous:
                self._doubts.add(key, spot.channel_id, spot.root_id)
            self._count(spot.kind, "lost")
            raise
        except PostRejected as exc:
            if exc.error_id == PENDING_ID:
                return None, exc.error_id
            self._count(spot.kind, "rejected")
            raise

    async def _find_spot(self, spot: Spot) -> str:
        return await self._find(self._keys(spot), spot.channel_id, spot.root_id)

    def _keys(self, spot: Spot) -> frozenset[str]:
        """The keys of all attempts: one may have been raised, used, and not yet recorded."""
        return frozenset(self._key(spot, n) for n in range(spot.attempt + MAX_ATTEMPTS))

    async def _find(self, keys: frozenset[str], channel_id: str, root_id: str) -> str:
        """The id of our post with one of these keys, or "". Finding two keeps the older and deletes the younger."""
        posts = await self._posts.thread(root_id) if root_id else await self._since_claim(channel_id)
        ours = {post.id: post for post in posts if self._ours(post, keys, channel_id)}
        if not ours and not root_id and self._doubts.mentions:
            ours = {post.id: post for post in posts if self._mentions(post, channel_id)}
        kept, *younger = sorted(ours.values(), key=lambda post: (post.create_at, post.id)) or (None,)
        for post in younger:
            await self._posts.delete_post(post.id, guard=self._require)
            self._count("duplicate", "repaired")
        return kept.id if kept is not None else ""

    async def _since_claim(self, channel_id: str) -> list[Post]:
        oldest = (self._hold.record.at - LOOKUP_MARGIN_SECONDS + self._posts.clock_offset) * 1000
        found: list[Post] = []
        for page in range(MAX_PAGES):
            posts = await self._posts.channel_posts(channel_id, page)
            found += [post for post in posts if post.user_id == self._bot_id]
            if len(posts) < PAGE or posts[-1].create_at < oldest:
                return found
        raise LookupBounded(channel_id)

    def _ours(self, post: Post, keys: frozenset[str], channel_id: str) -> bool:
        return (
            post.user_id == self._bot_id
            and post.channel_id == channel_id
            and post.key in keys
            and not post.delete_at
            and not post.original_id
        )

    def _mentions(self, post: Post, channel_id: str) -> bool:
        """Whether this is what the official plugin posted through our bot for the same request."""
        return (
            self._ours(post, frozenset(("",)), channel_id)
            and not post.root_id
            and self._hold.request_id in post.message
        )

    def _spot(self, position: int, kind: str, index: int = 0) -> Spot:
        slot = self._hold.record.posts[position]
        return Spot(kind, index, slot.c, slot.p if kind in REPLIES else "", slot.a, position)

    def _key(self, spot: Spot, attempt: int) -> str:
        return post_key(self._hold.record.seed, spot.kind, spot.channel_id, spot.which, attempt)

    def _tm(self, state: str, key: str) -> dict[str, object]:
        return {"v": 1, "id": self._hold.request_id, "k": key, "n": self._hold.record.seen[1], "state": state}

    def _require(self) -> None:
        if not self._hold.valid:
            raise LeaseLost(self._hold.request_id)

    def _reject(self, position: int, exc: PostRejected) -> None:
        """Note that Mattermost refused this recipient: for ever where the channel is archived or the card deleted."""
        slot = self._hold.record.posts[position]
        if "deleted" in exc.error_id:
            status = "archived"
        elif "root_id" in exc.error_id:
            status = "gone"
        else:
            status = "failed"
        self._update(position, s=status)
        if slot.s == status:
            return  # said before
        log.warning(
            "recipient.rejected",
            extra={
                "request_id": self._hold.request_id,
                "recipient": slot.r,
                "status": exc.status,
                "error_id": exc.error_id,
                "slot_status": status,
            },
        )
