"""The controller: a visit to a request is observe, decide, leased apply, settle; again until it comes to rest.

A visit may fail anywhere. What it leaves behind is in the record and the memory, and the next carries on from there.
"""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import trio

from sidecar.decisions.decide import decide
from sidecar.decisions.judge import DONE, STATES
from sidecar.decisions.posts import FAILED
from sidecar.decisions.record import Record, Slot, Stored, Unreadable, new_seed, official_fields
from sidecar.decisions.seen import (
    UNASKED,
    Action,
    Answer,
    Context,
    Create,
    Now,
    Patch,
    Place,
    Plan,
    Reply,
    Resolve,
    Seen,
    Submit,
    Unknown,
)
from sidecar.decisions.settle import Result, State, settle, unsaved
from sidecar.decisions.view import TAKEOVER
from sidecar.errors import Conflict, LinkError, PostRejected, RequestGone, ReviewRejected, SidecarError
from sidecar.model import PENDING, AccessRequest
from sidecar.reconcile.apply import Applier
from sidecar.reconcile.lease import Lease, LeaseLost, boottime
from sidecar.reconcile.observe import stored
from sidecar.reconcile.side_by_side import outcomes
from sidecar.times import doubled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.decisions.seen import Look, Memory, Outcome
    from sidecar.metrics import Metrics
    from sidecar.reconcile.followed import Entry, Followed
    from sidecar.reconcile.gate import Gate
    from sidecar.reconcile.observe import Observer
    from sidecar.reconcile.ports import Mattermost, Teleport
    from sidecar.reconcile.resolve import Resolver
    from sidecar.reconcile.submit import Submitter

log = logging.getLogger(__name__)

# Reactions that invite to decide are a convenience; they are put on a card within this time or not at all.
SEED_SECONDS = 30.0
# Requests that are kept whole while the link to Mattermost is down.
KEPT = 1000
# A visit takes five or six; one that goes on must not hold the loop for ever.
MOST_STEPS = 500
# A request that failed so often in a row is stuck, also where only a link's errors were to blame.
STUCK_AFTER = 5


class Peers(NamedTuple):
    """What a visit turns to. `forget` lets a recipient be looked up again."""

    teleport: Teleport
    mattermost: Mattermost
    observer: Observer
    resolver: Resolver
    submitter: Submitter | None
    gate: Gate
    forget: Callable[[str], None]


class Controller:
    """Works on keys of the queue; `context` says what holds for every request, `others` takes keys of other kinds."""

    def __init__(
        self,
        followed: Followed,
        peers: Peers,
        context: Callable[[], Context],
        metrics: Metrics,
        *,
        workers: int,
        seeds: tuple[str, ...] = (),
        others: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.owner = uuid.uuid4().hex
        self._followed = followed
        self._peers = peers
        self._context = context
        self._metrics = metrics
        self._workers = workers
        self._seeds = seeds
        self._others = others
        self._courtesies: trio.Nursery | None = None
        # What is being put on a card, or taken off it, one after the other.
        self._seeding: dict[str, trio.Event] = {}
        self._stuck: set[str] = set()
        # Asked by each scrape: while a peer is away no visit ends, and a number set at its end would stand still.
        metrics.backlog_requests.set_function(lambda: len(followed.queue) + peers.gate.parked)
        metrics.open_requests.set_function(lambda: len(followed))
        metrics.requests_stuck.set_function(lambda: len(self._stuck))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled: at most `workers` keys at once."""
        limit = trio.CapacityLimiter(self._workers)
        async with trio.open_nursery() as nursery:
            self._courtesies = nursery
            nursery.start_soon(self._followed.queue.run_timers, name="reconcile.timers")
            await nursery.start(self._peers.resolver.run, name="reconcile.resolver")
            task_status.started()
            while True:
                token = object()
                await limit.acquire_on_behalf_of(token)
                key = await self._followed.queue.get()
                nursery.start_soon(self._work, key, limit, token, name="reconcile.worker")

    async def _work(self, key: str, limit: trio.CapacityLimiter, token: object) -> None:
        """One visit; what nobody foresaw in it costs this key alone, and is tried again."""
        started = time.perf_counter()
        again_at = float("inf")
        entry = self._followed.get(key)
        try:
            if entry is not None:
                again_at = await self._visit(entry)
            elif self._others is not None:
                await self._others(key)
        except Exception:
            log.exception("request.bug", extra={"request_id": key})
            self._metrics.events_total.labels(link="teleport", kind="bug").inc()
            times = self._context().times
            failures = entry.memory.failures if entry is not None else 0
            if entry is not None:
                self._followed.keep(entry, entry.memory.but(failures=min(failures + 1, 20), text=None, mine=False))
                self._stuck.add(entry.id)
            again_at = trio.current_time() + doubled(times.retry_first, times.retry_most, failures)
        finally:
            limit.release_on_behalf_of(token)
            self._followed.queue.done(key, again_at)
            self._metrics.reconcile_seconds.observe(time.perf_counter() - started)

    async def _visit(self, entry: Entry) -> float:
        """Look, decide and act until nothing is left to do; when to look again."""
        context = msgspec.structs.replace(
            self._context(), request_id=entry.id, requester=entry.party, owner=self.owner, seed=new_seed()
        )
        visit = _Visit(self._followed, entry, self._peers, context, self._metrics)
        try:
            async with visit.lease.renewing():
                plan = await visit.go()
        except SidecarError as exc:
            plan = visit.failed(exc)
        if self._courtesies is not None:
            mattermost = self._peers.mattermost
            for cards, deed in ((visit.new_cards, mattermost.add_reaction), (visit.over, mattermost.remove_reaction)):
                for post_id in cards:
                    self._courtesies.start_soon(self._seed, post_id, context.bot_id, deed, name="reconcile.seed")
        self._followed.keep(entry, plan.memory)
        if plan.memory.failures >= STUCK_AFTER or (plan.memory.failures and visit.in_trouble):
            self._stuck.add(entry.id)
        elif not plan.memory.failures or plan.drop:
            self._stuck.discard(entry.id)
        if plan.drop:
            self._followed.drop(entry)
            self._peers.resolver.too_many(entry.id, 0)
            return float("inf")
        return plan.again_at

    async def _seed(self, post_id: str, bot_id: str, deed: Callable[[str, str, str], Awaitable[None]]) -> None:
        """A convenience: where it fails, people find the emoji themselves, or wonder who denied an approved request."""
        before, done = self._seeding.get(post_id), trio.Event()
        self._seeding[post_id] = done
        try:
            with trio.move_on_after(SEED_SECONDS):
                if before is not None:
                    await before.wait()
                for emoji in self._seeds:
                    await deed(bot_id, post_id, emoji)
        except (LinkError, PostRejected) as exc:
            log.debug("reaction.not_seeded", extra={"post_id": post_id, "detail": str(exc)})
        finally:
            done.set()
            if self._seeding.get(post_id) is done:
                del self._seeding[post_id]


class _Visit:
    """One visit to one request."""

    def __init__(self, followed: Followed, entry: Entry, peers: Peers, context: Context, metrics: Metrics) -> None:
        self._followed = followed
        self._entry = entry
        self._peers = peers
        self._context = context
        self._metrics = metrics
        self._memory = _with_hints(entry)
        self._seen = Seen(request=entry.take_request() or UNASKED, stored=_kept(entry, self._memory))
        self.lease = Lease(peers.teleport, entry.id, context.owner, context.lease_s, self._official)
        self.new_cards: list[str] = []
        # Cards whose request ended.
        self.over: list[str] = []
        # Whether something else than a link is to blame.
        self.in_trouble = False
        self._acted: set[Place] = set()
        self._told = False
        # Calls are cut at a third of a lease, so that none is carried out much later than this.
        self._late = min(context.times.verify, context.lease_s * TAKEOVER)
        self._claimed = False

    async def go(self) -> Plan:
        """The last plan of this visit, which says when to look again."""
        gate = self._peers.gate
        with ExitStack() as stack:
            for _ in range(MOST_STEPS):
                plan = self._decide()
                if plan.over:
                    return await self._end(plan)
                if not self._seen.held:
                    if _needs_mattermost(plan) and not gate.open:
                        return self._park()
                    if plan.take:
                        stack.enter_context(gate.writing())
                await self._step(plan)
        raise SidecarError(f"it did not come to rest within {MOST_STEPS} steps")

    def _park(self) -> Plan:
        """Wait for Mattermost's link without a worker; what an event brought is kept for as many as are few."""
        if isinstance(self._seen.request, AccessRequest) and not self._seen.by_id and self._peers.gate.parked < KEPT:
            self._entry.request = self._entry.request or self._seen.request
        self._peers.gate.park(self._entry.id)
        return Plan(memory=self._memory)

    def failed(self, exc: SidecarError) -> Plan:
        """The visit broke off; what it did since the last save is on no record."""
        log.debug("request.postponed", extra={"request_id": self._entry.id, "detail": str(exc)})
        memory, times, now = self._memory, self._context.times, trio.current_time()
        if isinstance(exc, Conflict | LeaseLost) and not self._acted:
            return Plan(memory=memory.but(text=None, known=True, mine=False), again_at=now)
        if self._seen.held or isinstance(exc, LinkError | Conflict | LeaseLost):
            memory = unsaved(memory, frozenset(self._acted), now, overtaken=isinstance(exc, LeaseLost))
        self.in_trouble = not isinstance(exc, LinkError | Conflict | LeaseLost | RequestGone)
        # Where there is no connection, the link says so for all.
        away = isinstance(exc, LinkError) and exc.reason == "away"
        if memory.failures == (0 if self.in_trouble else STUCK_AFTER - 1) and not away:
            log.warning("request.stuck", extra={"request_id": self._entry.id, "detail": str(exc)})
        if self.in_trouble:
            wait = doubled(times.retry_first, times.retry_most, memory.failures)
        else:
            wait = doubled(times.failure_first, times.failure_most, memory.failures)
        if isinstance(exc, RequestGone):
            self._entry.request = None
        return Plan(memory=memory.but(failures=min(memory.failures + 1, 20)), again_at=now + wait)

    # -- decide ------------------------------------------------------------------------------------------------------

    def _decide(self) -> Plan:
        newer = self._entry.take_request()
        if newer is not None and not (
            isinstance(self._seen.request, AccessRequest)
            and self._seen.by_id
            and newer.version <= self._seen.request.version
        ):
            self._seen = self._seen.but(request=newer, by_id=False)
        if self._seen.held:
            self._seen = self._seen.but(stored=Stored(self.lease.record, self.lease.saved))
        now = Now(time.time(), trio.current_time(), boottime(), self._peers.mattermost.clock_offset)
        plan = decide(self._seen, self._entry.facts, self._memory, self._context, now)
        self._note(plan)
        self._memory = plan.memory
        if self._seen.held and plan.record is not None:
            before, self.lease.record = self.lease.record, plan.record
            self._compare(before)
        return plan

    def _compare(self, before: Record) -> None:
        """Say of which recipients reading showed that they are lost."""
        for position, (old, new) in enumerate(zip(before.posts, self.lease.record.posts, strict=False)):
            read = self._seen.cards.get(new.p)
            if new.s == "failed" and old.p == new.p and isinstance(read, Unknown):
                self._complain(position, before, Result(error=read.why))
            elif new.s == "gone" and old.s != "gone" and new.p:
                self._count("update", "gone")

    def _note(self, plan: Plan) -> None:
        if plan.trouble:
            self.in_trouble = True
            log.warning(
                "record.untouchable" if isinstance(self._seen.stored, Unreadable) else "request.stuck",
                extra={"request_id": self._entry.id, "detail": plan.trouble},
            )
        for one in plan.outcomes:
            self._account(one)
        if plan.record is not None:
            self._peers.resolver.too_many(self._entry.id, plan.refused)
        if plan.unproven:
            self._metrics.records_unproven_total.inc(plan.unproven)
            log.warning("record.unproven", extra={"request_id": self._entry.id, "cards": plan.unproven})
        if self._seen.held:
            for kind in plan.found:
                self._count(kind, "found")

    # -- act ---------------------------------------------------------------------------------------------------------

    async def _step(self, plan: Plan) -> None:
        """Look and take side by side, or act."""
        jobs: list[Callable[[], Awaitable[None]]] = []
        if plan.look:
            jobs.append(partial(self._look, plan.look))
        if plan.take and plan.record is not None:
            jobs.append(partial(self._take, plan.record))
        for failure in await outcomes(jobs) if jobs else ():
            if isinstance(failure, SidecarError):
                raise failure
        if plan.actions and self._seen.held:
            await self._apply(plan)

    async def _look(self, look: Look) -> None:
        seen = await self._peers.observer.look(look, self._seen, self._memory, self._context)
        # Taking the record may have ended meanwhile.
        self._seen = seen.but(held=self._seen.held, held_since=self._seen.held_since, stored=seen.stored)
        request = self._seen.request
        if look.request and isinstance(request, AccessRequest) and request.version >= self._entry.version:
            self._followed.learn(self._entry, request)
        if look.request and request is None:
            self._entry.request = None
        if isinstance(self._seen.stored, Stored):
            self._memory = self._memory.but(known=True, mentions=self._memory.mentions or _is_wedge(self._seen.stored))

    async def _take(self, record: Record) -> None:
        before = self._seen.stored
        await self.lease.take(record, before if isinstance(before, Stored) else None)
        self._claimed = not isinstance(before, Stored)
        self._seen = self._seen.but(held=True, held_since=trio.current_time())

    async def _apply(self, plan: Plan) -> None:
        applier = Applier(
            self._peers.mattermost,
            self._peers.submitter,
            self.lease,
            self._context,
            done=self._settle,
            count=self._count,
            newer=lambda: self._entry.request is not None and self._entry.request.version > self.lease.record.version,
        )
        for action in plan.actions:
            if isinstance(action, Create | Patch | Reply):
                slot = self.lease.record.posts[action.position]
                self._acted.add(Place(slot.c, "" if isinstance(action, Create) else slot.p))
            elif isinstance(action, Answer):
                self._acted.add(Place(action.owed.c, action.owed.t))
        await applier.apply(plan.actions)

    def _settle(self, action: Action, result: Result) -> None:
        before = self.lease.record
        state = settle(
            State(self._seen, before, self._memory), action, result, trio.current_time(), self._late, self._context
        )
        self._seen, self.lease.record, self._memory = state.seen, state.record, state.memory
        for one in state.outcomes:
            self._account(one)
        if isinstance(action, Submit | Resolve):
            self._count_review(action, result)
            if result.after is not None and result.after.version >= self._entry.version:
                self._followed.learn(self._entry, result.after)
        elif not result.skipped:
            self._peers.gate.wrote(failed=isinstance(result.error, LinkError))
        if isinstance(action, Create | Patch | Reply):
            self._told = self._told or result.error is None
            self._complain(action.position, before, result)
        if isinstance(action, Create | Patch) and result.error is None:
            self._note_card(before.posts[action.position], action, result)

    def _note_card(self, slot: Slot, action: Create | Patch, result: Result) -> None:
        if isinstance(action, Create) and result.post is not None:
            if slot.k == "card" and action.shown[0] == PENDING:
                self.new_cards.append(result.post.id)
            # People decide before the other recipients have theirs.
            self._followed.show_cards(self._entry, self.lease.record)
        elif slot.k == "card" and slot.p and slot.shown[0] == PENDING and action.shown[0] != PENDING:
            # A cross of the bot's on an approved card would look like a denial.
            self.over.append(slot.p)

    def _complain(self, position: int, before: Record, result: Result) -> None:
        """Say that Mattermost refused this recipient, once."""
        slot = self.lease.record.posts[position]
        if not isinstance(result.error, PostRejected):
            return
        if slot.s in FAILED and slot.c:
            self._peers.forget(slot.r)
            self._peers.resolver.lost(slot.r, self._entry.id)
        if slot.s != before.posts[position].s:
            log.warning(
                "recipient.rejected",
                extra={
                    "request_id": self._entry.id,
                    "recipient": slot.r,
                    "status": result.error.status,
                    "error_id": result.error.error_id,
                    "slot_status": slot.s,
                },
            )

    async def _end(self, plan: Plan) -> Plan:
        """Write down what was done, and give the record up where nothing is in doubt."""
        memory = plan.memory
        if plan.save and plan.record is not None:
            if not self._seen.held:
                await self._take_to_release(plan.record)
            else:
                await self.lease.save(release=not memory.timed)
            self._memory = memory = memory.but(known=True, text=self.lease.saved)
        elif isinstance(self._seen.stored, Stored) and self._seen.stored.text:
            memory = memory.but(known=True, text=self._seen.stored.text)
        record = plan.record or (self._seen.stored.record if isinstance(self._seen.stored, Stored) else None)
        if record is not None:
            self._followed.show_cards(self._entry, record)
            self._say(record, ended=plan.drop and record.done and plan.save)
        return msgspec.structs.replace(plan, memory=memory)

    async def _take_to_release(self, record: Record) -> None:
        """The record is held by us from an earlier visit, and there is nothing left to do."""
        before = self._seen.stored
        if isinstance(before, Stored):
            self.lease.saved = before.text
            self.lease.record = record
            await self.lease.save(release=True)

    # -- what is said of it ------------------------------------------------------------------------------------------

    def _official(self, record: Record) -> dict[str, str]:
        request = self._seen.request
        return official_fields(request if isinstance(request, AccessRequest) else None, record)

    def _say(self, record: Record, *, ended: bool) -> None:
        """What became of a request's messages, for whoever asks at night whether anybody was told."""
        if ended:
            event = "request.ended"
        elif self._claimed:
            event = "request.announced"
        elif self._told:
            event = "request.updated"
        else:
            return
        told = sum(1 for slot in record.posts if slot.s == "posted")
        if event == "request.announced" and not any(slot.k == "card" and slot.s != "failed" for slot in record.posts):
            log.warning("request.unasked", extra={"request_id": self._entry.id})
        if event == "request.announced":
            self._metrics.reviewers_left_out_total.inc(record.left)
        log.info(
            event,
            extra={
                "request_id": self._entry.id,
                "request_state": record.seen[0],
                "reviews": record.seen[1],
                "told": told,
                "untold": len(record.posts) - told,
                # None: only the requester knows of it, or nobody.
                "reviewers_told": sum(1 for slot in record.posts if slot.s == "posted" and slot.k == "card"),
                "reviewers_left_out": record.left,
            },
        )

    def _account(self, one: Outcome) -> None:
        """One audit line for each decision and each refusal; reasons that people wrote are not in it."""
        done = one.outcome in DONE
        if not done:
            self._metrics.decisions_refused_total.labels(one.outcome).inc()
        expression = one.verdict.expression
        log.info(
            "decision.taken" if done else "decision.refused",
            extra={
                "request_id": self._entry.id,
                "request_state": one.state,
                "user_id": expression.user_id,
                "reviewer": one.verdict.person.teleport_user,
                "proposed_state": STATES.get(expression.verb, ""),
                "way": expression.way,
                "post_id": expression.post_id,
                "outcome" if done else "reason": one.outcome,
            },
        )

    def _count_review(self, action: Submit | Resolve, result: Result) -> None:
        state = action.state if isinstance(action, Resolve) else STATES[action.verdict.expression.verb]
        if result.error is None:
            self._metrics.reviews_total.labels(state, "submitted").inc()
        elif isinstance(result.error, ReviewRejected):
            self._metrics.reviews_total.labels(state, result.error.reason).inc()

    def _count(self, kind: str, outcome: str) -> None:
        if kind == "duplicate":
            self._metrics.duplicates_repaired_total.inc()
        elif kind == "update":
            self._metrics.updates_total.labels(outcome=outcome).inc()
        else:
            self._metrics.posts_total.labels(kind=kind, outcome=outcome).inc()


def _with_hints(entry: Entry) -> Memory:
    """What is remembered, with what Mattermost said since the last visit."""
    memory = entry.memory
    if entry.retry:
        entry.retry = False
        memory = memory.but(retries=0)
    hinted, speakers, direct = entry.take_hints()
    if not hinted:
        return memory
    return memory.but(
        listen=True,
        speakers=speakers,
        direct=(*memory.direct, *(one for one in direct if one not in memory.direct)),
    )


def _kept(entry: Entry, memory: Memory) -> Stored | Unreadable | Unknown | None:
    """The record as last known, without asking for it."""
    text = memory.text if memory.known else entry.offered
    entry.offered = None
    return UNASKED if text is None else stored(text)


def _is_wedge(one: Stored) -> bool:
    """Whether the official plugin began to announce it, and may have posted or not."""
    return not one.text and not one.record.posts


def _needs_mattermost(plan: Plan) -> bool:
    look = plan.look
    wants = look.targets or look.evidence or look.places or look.cards
    return bool(wants or plan.take or plan.actions)
