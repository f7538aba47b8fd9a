"""The controller: workers that take keys from the queue and visit what they stand for, many at a time.

What nobody foresaw in a visit costs that key alone, and is tried again.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from typing import TYPE_CHECKING, NoReturn

import msgspec
import trio

from sidecar.decisions.record import new_seed
from sidecar.errors import LinkError, PostRejected, SidecarError
from sidecar.reconcile.followed import DECISIONS
from sidecar.reconcile.visit import STUCK_AFTER, Visit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.decisions.seen import Context, Plan
    from sidecar.metrics import Metrics
    from sidecar.reconcile.entry import Entry
    from sidecar.reconcile.followed import Followed
    from sidecar.reconcile.gate import Gate
    from sidecar.reconcile.visit import Peers

log = logging.getLogger(__name__)

# Reactions that invite to decide are a convenience; they are put on a card within this time or not at all.
SEED_SECONDS = 30.0


class Controller:
    """Works on keys of the queue; `context` says what holds for every request, `others` takes keys of other kinds."""

    def __init__(
        self,
        followed: Followed,
        gate: Gate,
        context: Callable[[], Context],
        others: Callable[[str], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self.owner = uuid.uuid4().hex
        self._followed = followed
        self._context = context
        self._others = others
        self._metrics = metrics
        # What is being put on a card, or taken off it, one after the other.
        self._seeding: dict[str, trio.Event] = {}
        self._stuck: set[str] = set()
        # Asked by each scrape: while a peer is away no visit ends, and a number set at its end would stand still.
        metrics.backlog_requests.set_function(lambda: len(followed.queue) + gate.parked)
        metrics.open_requests.set_function(lambda: len(followed))
        metrics.requests_stuck.set_function(lambda: len(self._stuck))

    async def run(self, peers: Peers, workers: int) -> None:
        """Work until cancelled: at most `workers` keys at once, of which some are kept for decisions.

        A visit that is cut is made again by the next run.
        """
        kept = workers // 8
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._followed.queue.run_timers, name="reconcile.timers")
            if kept:
                nursery.start_soon(self._take, peers, nursery, kept, DECISIONS + 1, name="reconcile.decisions")
            await self._take(peers, nursery, workers - kept, None)

    async def _take(self, peers: Peers, nursery: trio.Nursery, workers: int, lanes: int | None) -> NoReturn:
        """Give the next key of these lanes to a worker when one is free."""
        limit = trio.CapacityLimiter(workers)
        while True:
            token = object()
            await limit.acquire_on_behalf_of(token)
            key = await self._followed.queue.get(lanes)
            nursery.start_soon(self._work, key, peers, limit, token, nursery, name="reconcile.worker")

    async def _work(
        self, key: str, peers: Peers, limit: trio.CapacityLimiter, token: object, nursery: trio.Nursery
    ) -> None:
        started = time.perf_counter()
        again_at = trio.current_time()
        entry = self._followed.get(key)
        try:
            if entry is None:
                await self._others(key)
                again_at = math.inf
            else:
                again_at = await self._visit(entry, peers, nursery)
        except Exception:
            log.exception("request.bug", extra={"request_id": key})
            self._metrics.events_total.labels(link="teleport", kind="bug").inc()
            failures = entry.memory.failures if entry is not None else 0
            if entry is not None:
                entry.keep(entry.memory.but(failures=failures + 1, text=None, mine=False))
                self._stuck.add(key)
            again_at = trio.current_time() + self._context().times.wait(failures, link=False)
        finally:
            limit.release_on_behalf_of(token)
            self._followed.queue.done(key, again_at)
            self._metrics.reconcile_seconds.observe(time.perf_counter() - started)

    async def _visit(self, entry: Entry, peers: Peers, nursery: trio.Nursery) -> float:
        """Look, decide and act until nothing is left to do; when to look again."""
        context = msgspec.structs.replace(
            self._context(), request_id=entry.id, requester=entry.party, owner=self.owner, seed=new_seed()
        )
        visit = Visit(self._followed, entry, peers, context, self._metrics)
        try:
            async with visit.lease.renewing():
                plan = await visit.go()
        except SidecarError as exc:
            plan = visit.failed(exc)
        except BaseException:
            entry.keep(visit.broken_off())
            raise
        self._do_courtesies(visit, plan, peers, context, nursery)
        entry.keep(plan.memory)
        if plan.memory.failures >= STUCK_AFTER or (plan.memory.failures and visit.in_trouble):
            self._stuck.add(entry.id)
        elif not plan.memory.failures or plan.drop:
            self._stuck.discard(entry.id)
        if plan.drop:
            self._followed.drop(entry)
            peers.resolver.too_many(entry.id, 0)
            return math.inf
        return plan.again_at

    def _do_courtesies(self, visit: Visit, plan: Plan, peers: Peers, context: Context, nursery: trio.Nursery) -> None:
        """Begin what no visit waits for."""
        mattermost = peers.mattermost
        for cards, deed in ((visit.new_cards, mattermost.add_reaction), (visit.over, mattermost.remove_reaction)):
            for post_id in cards:
                nursery.start_soon(self._seed, post_id, context, deed, name="reconcile.seed")
        for one in filter(peers.strangers.news, plan.strangers):
            nursery.start_soon(peers.strangers.answer, one, plan.record, context, name="reconcile.strangers")

    async def _seed(self, post_id: str, context: Context, deed: Callable[[str, str, str], Awaitable[None]]) -> None:
        """Put the emoji on a card, or take them off; where it fails, people find them themselves, or wonder."""
        rules = context.rules
        if rules.mode == "none" or "reaction" not in rules.ways:
            return
        before, done = self._seeding.get(post_id), trio.Event()
        self._seeding[post_id] = done
        try:
            with trio.move_on_after(SEED_SECONDS):
                if before is not None:
                    await before.wait()
                for emoji in (rules.approve[0], rules.deny[0]):
                    await deed(context.bot_id, post_id, emoji)
        except (LinkError, PostRejected) as exc:
            log.debug("reaction.not_seeded", extra={"post_id": post_id, "detail": str(exc)})
        finally:
            done.set()
            if self._seeding.get(post_id) is done:
                del self._seeding[post_id]
