"""One visit to one request: observe, decide, leased apply, settle; again until it comes to rest.

A visit may fail anywhere. What it leaves behind is in the record and the memory, and the next carries on from there.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import trio

from sidecar.decisions.actions import Action, Answer, Create, Patch, Place, Reply, Resolve, Submit
from sidecar.decisions.decide import decide
from sidecar.decisions.posts import FAILED
from sidecar.decisions.record import Record, Slot, Stored, Unreadable, official_fields
from sidecar.decisions.seen import UNASKED, Now, Plan, Seen, Unknown
from sidecar.decisions.settle import Result, State, settle, unsaved
from sidecar.decisions.view import TAKEOVER
from sidecar.errors import Conflict, LinkError, PostRejected, RequestGone, SidecarError
from sidecar.model import PENDING, AccessRequest
from sidecar.reconcile.apply import Applier
from sidecar.reconcile.lease import Lease, LeaseLost, boottime
from sidecar.reconcile.observe import stored
from sidecar.reconcile.report import Report
from sidecar.reconcile.side_by_side import gather

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.decisions.seen import Context, Look, Memory
    from sidecar.metrics import Metrics
    from sidecar.reconcile.entry import Entry
    from sidecar.reconcile.followed import Followed
    from sidecar.reconcile.gate import Gate
    from sidecar.reconcile.observe import Observer
    from sidecar.reconcile.ports import Mattermost, Teleport
    from sidecar.reconcile.resolve import Resolver
    from sidecar.reconcile.strangers import Strangers
    from sidecar.reconcile.submit import Submitter

log = logging.getLogger(__name__)

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
    strangers: Strangers


class Visit:
    """One visit; `context` is that of this request."""

    def __init__(self, followed: Followed, entry: Entry, peers: Peers, context: Context, metrics: Metrics) -> None:
        self._followed = followed
        self._entry = entry
        self._peers = peers
        self._context = context
        self._memory = entry.remember()
        self._seen = Seen(request=entry.take_request() or UNASKED, stored=_kept(entry, self._memory))
        self._report = Report(entry.id, metrics)
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

    def broken_off(self, *, overtaken: bool = False) -> Memory:
        """What to remember of a visit that ended in the middle: what it did since the last save is on no record."""
        return unsaved(self._memory, frozenset(self._acted), trio.current_time(), overtaken=overtaken)

    def failed(self, exc: SidecarError) -> Plan:
        """The plan that stands for a visit that broke off."""
        log.debug("request.postponed", extra={"request_id": self._entry.id, "detail": str(exc)})
        memory, now = self._memory, trio.current_time()
        if isinstance(exc, Conflict | LeaseLost) and not self._acted:
            return Plan(
                memory=memory.but(text=None, last=self.lease.saved or memory.last, known=True, mine=False), again_at=now
            )
        if self._seen.held or isinstance(exc, LinkError | Conflict | LeaseLost):
            memory = self.broken_off(overtaken=isinstance(exc, LeaseLost)).but(last=self.lease.saved or memory.last)
        self.in_trouble = not isinstance(exc, LinkError | Conflict | LeaseLost | RequestGone)
        # Where there is no connection, the link says so for all.
        away = isinstance(exc, LinkError) and exc.reason == "away"
        if memory.failures == (0 if self.in_trouble else STUCK_AFTER - 1) and not away:
            self._report.trouble(str(exc))
        if isinstance(exc, RequestGone):
            self._entry.request = None
        wait = self._context.times.wait(memory.failures, link=not self.in_trouble)
        return Plan(memory=memory.but(failures=memory.failures + 1), again_at=now + wait)

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
        boot = boottime()
        offset = self._peers.mattermost.clock_offset
        now = Now(time.time(), trio.current_time(), boot, offset, boot + self._followed.booted)
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
                self._complain(position, before, read.why)
            elif new.s == "gone" and old.s != "gone" and new.p:
                self._report.count("update", "gone")

    def _note(self, plan: Plan) -> None:
        """What a plan says besides what is to be done."""
        if plan.trouble:
            self.in_trouble = True
            self._report.trouble(plan.trouble, untouchable=isinstance(self._seen.stored, Unreadable))
        self._report.decisions(plan.outcomes)
        self._report.unproven(plan.unproven)
        if plan.record is not None:
            self._peers.resolver.too_many(self._entry.id, plan.refused)
        for kind in plan.found if self._seen.held else ():
            self._report.count(kind, "found")

    # -- act ---------------------------------------------------------------------------------------------------------

    async def _step(self, plan: Plan) -> None:
        """Look and take side by side, or act."""
        jobs: list[Callable[[], Awaitable[None]]] = []
        if plan.look:
            jobs.append(partial(self._look, plan.look))
        if plan.take and plan.record is not None:
            jobs.append(partial(self._take, plan.record))
        await gather(jobs)
        if plan.actions and self._seen.held:
            await self._apply(plan)

    async def _look(self, look: Look) -> None:
        seen = await self._peers.observer.look(look, self._seen, self._memory, self._context)
        # Taking the record may have ended meanwhile.
        self._seen = seen.but(held=self._seen.held, held_since=self._seen.held_since, stored=seen.stored)
        request = self._seen.request
        if look.request and isinstance(request, AccessRequest) and not self._entry.outdates(request):
            self._entry.learn(request)
        if look.request and request is None:
            self._entry.request = None
        found = self._seen.stored
        gone = found is None or (isinstance(found, Stored) and not found.text)
        if look.record and gone and self._memory.last is not None:
            # The seed is in there, by which our posts are known.
            kept = stored(self._memory.last)
            self._seen = self._seen.but(stored=Stored(kept.record, "") if isinstance(kept, Stored) else None)
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
            count=self._report.count,
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
        self._report.decisions(state.outcomes)
        if isinstance(action, Submit | Resolve):
            self._report.submission(action, result)
            if result.after is not None and not self._entry.outdates(result.after):
                self._entry.learn(result.after)
        elif not result.skipped:
            self._peers.gate.wrote(failed=isinstance(result.error, LinkError))
        if isinstance(action, Create | Patch | Reply):
            self._told = self._told or result.error is None
            self._complain(action.position, before, result.error)
        if isinstance(action, Create | Patch) and result.error is None:
            self._note_card(before.posts[action.position], action, result)

    def _note_card(self, slot: Slot, action: Create | Patch, result: Result) -> None:
        if isinstance(action, Create) and result.post is not None:
            if slot.k == "card" and action.shown[0] == PENDING:
                self.new_cards.append(result.post.id)
            # People decide before the other recipients have theirs.
            self._followed.heard.show_cards(self._entry, self.lease.record)
        elif slot.k == "card" and slot.p and slot.shown[0] == PENDING and action.shown[0] != PENDING:
            # A cross of the bot's on an approved card would look like a denial.
            self.over.append(slot.p)

    def _complain(self, position: int, before: Record, error: SidecarError | None) -> None:
        """Say that Mattermost refused this recipient, once."""
        slot = self.lease.record.posts[position]
        if not isinstance(error, PostRejected):
            return
        if slot.s in FAILED and slot.c:
            self._peers.forget(slot.r)
            self._peers.resolver.lost(slot.r, self._entry.id)
        if slot.s != before.posts[position].s:
            self._report.rejected(slot, error)

    async def _end(self, plan: Plan) -> Plan:
        """Write down what was done, and give the record up where nothing is in doubt."""
        memory = plan.memory
        seen = self._seen.stored if isinstance(self._seen.stored, Stored) else None
        if plan.save and plan.record is not None:
            if self._seen.held:
                await self.lease.save(release=not memory.timed)
            elif seen is not None:
                # It is held by us from an earlier visit, and there is nothing left to do.
                self.lease.saved, self.lease.record = seen.text, plan.record
                await self.lease.save(release=True)
            self._memory = memory = memory.but(known=True, text=self.lease.saved, last=None)
        elif seen is not None and seen.text:
            memory = memory.but(known=True, text=seen.text)
        record = plan.record or (seen.record if seen is not None else None)
        if record is not None:
            self._followed.heard.show_cards(self._entry, record)
            ended = plan.drop and record.done and plan.save
            self._report.messages(record, ended=ended, claimed=self._claimed, told=self._told)
        return msgspec.structs.replace(plan, memory=memory)

    def _official(self, record: Record) -> dict[str, str]:
        request = self._seen.request
        return official_fields(request if isinstance(request, AccessRequest) else None, record)


def _kept(entry: Entry, memory: Memory) -> Stored | Unreadable | Unknown | None:
    """The record as last known, without asking for it."""
    text = memory.text if memory.known else entry.offered
    entry.offered = None
    return stored(text) if text else UNASKED


def _is_wedge(one: Stored) -> bool:
    """Whether the official plugin began to announce it, and may have posted or not."""
    return not one.text and not one.record.posts


def _needs_mattermost(plan: Plan) -> bool:
    look = plan.look
    wants = look.targets or look.evidence or look.nudge or look.places or look.cards
    return bool(wants or plan.take or plan.actions)
