"""Carry a plan's actions out, side by side, each post exactly once.

A post's key is computable from the record and unguessable by others, so that whoever carries on after a crash can find
out by reading whether a post was made. What a result means is said by `sidecar.decisions.settle`.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from sidecar.decisions.actions import Action, Answer, Create, Delete, Patch, Reply, Resolve, Submit
from sidecar.decisions.proof import MAX_ATTEMPTS, is_ours
from sidecar.decisions.record import ADOPTED, Record, post_key
from sidecar.decisions.settle import Result
from sidecar.errors import LinkError, LinkGarbled, LinkLost, PostRejected, SidecarError
from sidecar.reconcile.lease import LeaseLost
from sidecar.reconcile.side_by_side import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sidecar.decisions.seen import Context
    from sidecar.model import Draft
    from sidecar.reconcile.lease import Lease
    from sidecar.reconcile.ports import Mattermost
    from sidecar.reconcile.submit import Submitter

# PATCH says 403 for unknown, deleted, lagging and not-a-member alike (observed on 5.37): replicas get this long.
PATCH_RETRY_SECONDS = (0.5, 1.5)
PENDING_RETRY_SECONDS = 0.3
PENDING_ID = "api.post.deduplicate_create_post.pending"


class PostIdentity(NamedTuple):
    """Where a post goes and what makes it the only one: kind, number or name, channel, root where it is a reply."""

    kind: str
    which: int | str
    channel_id: str
    root_id: str = ""
    attempt: int = 0


class Applier:
    """Acts for one held request. `done` takes each result at once; `newer` says that a patch would be outdated."""

    def __init__(
        self,
        mattermost: Mattermost,
        submitter: Submitter | None,
        lease: Lease,
        context: Context,
        *,
        done: Callable[[Action, Result], None],
        count: Callable[[str, str], None],
        newer: Callable[[], bool],
    ) -> None:
        self._mattermost = mattermost
        self._submitter = submitter
        self._lease = lease
        self._context = context
        self._done = done
        self._count = count
        self._newer = newer

    async def apply(self, actions: Iterable[Action]) -> None:
        """Carry all actions out. Raises LeaseLost when we may no longer write; other failures are results."""
        chains: OrderedDict[str, list[Action]] = OrderedDict()
        for number, action in enumerate(actions):
            # Replies in one thread go one after another: Mattermost answers 500 to first replies that come at once
            # (5.37 and 11: both insert the thread's row), and an end must not come before its review. Whoever decided
            # waits for a word, so answers go first.
            root = self._root(action)
            chain = chains.setdefault(root or f"{number}", [])
            chain.insert(
                sum(isinstance(one, Answer) for one in chain) if isinstance(action, Answer) else len(chain), action
            )
        await gather([partial(self._chain, one) for one in chains.values()])

    def _root(self, action: Action) -> str:
        if isinstance(action, Answer):
            return action.owed.t
        return self._record.posts[action.position].p if isinstance(action, Reply) else ""

    @property
    def _record(self) -> Record:
        return self._lease.record

    async def _chain(self, actions: list[Action]) -> None:
        for action in actions:
            try:
                result = await self._act(action)
            except LeaseLost:
                raise
            except SidecarError as exc:
                result = Result(error=exc, ambiguous=_ambiguous(exc))
            self._done(action, result)

    async def _act(self, action: Action) -> Result:
        if isinstance(action, Create | Reply | Answer):
            return await self._make(*self._identity(action))
        if isinstance(action, Patch):
            return await self._patch(action)
        if isinstance(action, Delete):
            await self._mattermost.delete_post(action.post_id, guard=self._lease.require)
            self._count("duplicate", "repaired")
            return Result()
        return await self._submit(action)

    async def _submit(self, action: Submit | Resolve) -> Result:
        if self._submitter is None:
            return Result(skipped=True)
        self._lease.require()
        if isinstance(action, Submit):
            return Result(after=await self._submitter.review(action.verdict, action.request))
        return Result(after=await self._submitter.resolve(action.request, action.state, action.reason, action.voters))

    # -- posts -------------------------------------------------------------------------------------------------------

    def _identity(self, action: Create | Reply | Answer) -> tuple[PostIdentity, Draft, tuple[str, int]]:
        record = self._record
        if isinstance(action, Answer):
            owed = action.owed
            return PostIdentity("answer", owed.i, owed.c, owed.t), owed.draft, record.seen
        slot = record.posts[action.position]
        if isinstance(action, Create):
            return PostIdentity(slot.k, 0, slot.c, "", max(slot.a, 0)), action.draft, action.shown
        kind = "reminder" if action.reminds else "review" if action.number > 0 else "end"
        return PostIdentity(kind, abs(action.number), slot.c, slot.p, max(slot.a, 0)), action.draft, record.seen

    async def _make(self, identity: PostIdentity, draft: Draft, shown: tuple[str, int]) -> Result:
        """Make the one post with this identity."""
        attempt = identity.attempt
        pending = False
        for _ in range(MAX_ATTEMPTS):
            key = post_key(self._record.seed, identity.kind, identity.channel_id, identity.which, attempt)
            try:
                post = await self._mattermost.create_post(
                    identity.channel_id,
                    draft,
                    key=key,
                    tm=self._tm(key, shown, 0),
                    root_id=identity.root_id,
                    announces=identity.kind in ("card", "requester"),
                    guard=self._lease.require,
                )
            except PostRejected as exc:
                if exc.error_id != PENDING_ID:
                    self._count(identity.kind, "rejected")
                    return Result(error=exc, attempt=attempt)
                # Our own earlier try is still under way there; with the same key we are given its post.
                pending = True
                await trio.sleep(PENDING_RETRY_SECONDS)
                continue
            except LinkError as exc:
                self._count(identity.kind, "lost")
                return Result(error=exc, ambiguous=pending or _ambiguous(exc), attempt=attempt)
            if is_ours(post, frozenset((key,)), identity.channel_id, self._context.bot_id):
                self._count(identity.kind, "ok")
                return Result(post=post, attempt=attempt)
            # Somebody used our pending_post_id first and we were given their post (observed on 5.37), or the post of
            # this key was deleted: only another key can be sure to post.
            self._count(identity.kind, "foreign")
            attempt += 1
        if pending:
            lost = LinkLost("mattermost", "pending", "Mattermost is still storing an earlier try", ambiguous=True)
            return Result(error=lost, ambiguous=True, attempt=attempt)
        return Result(error=PostRejected(201, "not_our_post"), attempt=attempt)

    async def _patch(self, action: Patch) -> Result:
        if self._newer():
            return Result(skipped=True)
        slot = self._record.posts[action.position]
        # A post that we adopted never gets a key: it was not made for this.
        key = "" if slot.a == ADOPTED else post_key(self._record.seed, slot.k, slot.c, 0, slot.a)
        tm = self._tm(key, action.shown, action.since)
        message = action.message
        for pause in (*PATCH_RETRY_SECONDS, None):
            try:
                at = await self._mattermost.patch_post(
                    slot.p, action.draft, tm=tm, message=message, guard=self._lease.require
                )
            except PostRejected as exc:
                if exc.status == 400 and "time_limit" in exc.error_id and message:
                    message = False
                elif exc.status == 403 and pause is not None:
                    await trio.sleep(pause)
                else:
                    return await self._refused_patch(slot.p, exc)
            except LinkError as exc:
                self._count("update", "lost")
                return Result(error=exc, ambiguous=_ambiguous(exc))
            else:
                self._count("update", "ok")
                return Result(rules=self._context.rules_digest, at=at)
        return Result(error=PostRejected(403, ""))

    async def _refused_patch(self, post_id: str, exc: PostRejected) -> Result:
        if exc.status in (403, 404):
            try:
                if await self._mattermost.get_post(post_id) is None:
                    self._count("update", "gone")
                    return Result(gone=True)
            except SidecarError as failure:
                return Result(error=failure)
        self._count("update", "rejected")
        return Result(error=exc)

    def _tm(self, key: str, shown: tuple[str, int], since: int) -> dict[str, object]:
        context = self._context
        return {
            "v": 1,
            "id": self._lease.request_id,
            "k": key,
            "n": shown[1],
            "state": shown[0],
            "q": self._record.q,
            "c": context.options.cluster,
            "who": self._record.who,
            "rules": context.rules_digest,
            "since": since,
        }


def _ambiguous(exc: SidecarError) -> bool:
    """Whether a write that failed so may have been carried out all the same."""
    return isinstance(exc, LinkGarbled) or (isinstance(exc, LinkLost) and exc.ambiguous)
