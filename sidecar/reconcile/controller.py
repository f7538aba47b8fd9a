"""Bring the messages of one access request to what it says: load, plan, act, record.

A step may fail anywhere. What it leaves behind is in the record, and the next look carries on from there.
"""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import trio

from sidecar.decisions import plan as planning
from sidecar.decisions.judge import DONE, key_of, unjudged
from sidecar.decisions.record import KEY, Record, Stored, Unreadable, adopt, decode, new_seed, official_fields
from sidecar.decisions.routing import Routes
from sidecar.errors import Conflict, LinkError, PostRejected, RequestGone, SidecarError
from sidecar.model import PENDING
from sidecar.reconcile.apply import Deliverer, Doubts
from sidecar.reconcile.lease import Hold, LeaseLost, LeaseTimes, PluginDataStore, boottime
from sidecar.reconcile.resolve import Reach, Ruling
from sidecar.times import USUAL, Times

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sidecar.decisions.plan import Plan, Target
    from sidecar.metrics import Metrics
    from sidecar.model import AccessRequest, Destination
    from sidecar.reconcile.apply import Posts
    from sidecar.reconcile.breaker import Breaker
    from sidecar.reconcile.followed import Entry, Followed
    from sidecar.reconcile.observe import Answer, Heard, Reviews, Settled
    from sidecar.text.card import TextOptions

log = logging.getLogger(__name__)


class Store(PluginDataStore, Protocol):
    """What reconciling needs of Teleport."""

    async def get_request(self, request_id: str) -> AccessRequest | None: ...


class Chat(NamedTuple):
    """The Mattermost side: `resolve` finds recipients and remembers them until `forget`, `bot_id` says who we are."""

    posts: Posts
    resolve: Callable[[str], Awaitable[Destination]]
    forget: Callable[[str], None]
    breaker: Breaker
    bot_id: Callable[[], str]
    # None where decisions are not taken from Mattermost.
    reviews: Reviews | None = None
    seeds: tuple[str, ...] = ()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the configuration that reconciling needs."""

    routes: Routes
    ruling: Ruling
    lease: LeaseTimes = LeaseTimes()
    announce_resolved: bool = False
    announce_delay_seconds: float = 0.0
    workers: int = 64
    times: Times = USUAL


class Untouchable(SidecarError):
    """A record that this sidecar must not write."""


class Reconciler:
    """Makes messages true. `options` is asked for each time: what Teleport says of itself may change."""

    def __init__(
        self,
        followed: Followed,
        store: Store,
        chat: Chat,
        settings: Settings,
        metrics: Metrics,
        options: Callable[[], TextOptions],
    ) -> None:
        self._followed = followed
        self._store = store
        self._chat = chat
        self._settings = settings
        self._times = settings.times
        self._metrics = metrics
        self._options = options
        self._owner = uuid.uuid4().hex
        self._reach = Reach(chat.resolve, settings.routes, settings.ruling, metrics)
        # request -> how many recipients its record had no room for
        self._refused: dict[str, int] = {}
        # Asked by each scrape: while a peer is away no look ends, and a number set at the end of one would stand still.
        metrics.backlog_requests.set_function(lambda: followed.backlog + chat.breaker.waiting)
        metrics.open_requests.set_function(lambda: len(followed))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled: at most `workers` requests at once."""
        limit = trio.CapacityLimiter(self._settings.workers)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._followed.run_timers, name="reconcile.timers")
            task_status.started()
            while True:
                token = object()
                await limit.acquire_on_behalf_of(token)
                entry = await self._followed.next()
                nursery.start_soon(self._visit, entry, limit, token, name="reconcile.worker")

    async def _visit(self, entry: Entry, limit: trio.CapacityLimiter, token: object) -> None:
        started = time.perf_counter()
        try:
            await self._guard(entry)
        finally:
            limit.release_on_behalf_of(token)
            self._followed.release(entry)
            self._metrics.reconcile_seconds.observe(time.perf_counter() - started)
            if entry.id not in self._followed or not self._refused.get(entry.id):
                self._refused.pop(entry.id, None)
            self._metrics.recipients_failed.labels(reason="too_many").set(sum(self._refused.values()))

    async def _guard(self, entry: Entry) -> None:
        """One look; whatever fails leaves the request to be looked at again."""
        try:
            await self._look(entry)
        except RequestGone:
            self._followed.drop(entry)
        except SidecarError as exc:
            self._put_off(entry, exc)
        except Exception:
            # One poisoned request must neither take the others down nor be tried in a loop.
            log.exception("request.bug", extra={"request_id": entry.id})
            self._metrics.events_total.labels(link="teleport", kind="bug").inc()
            self._postpone(entry, self._times.retry_first, self._times.retry_most)
        else:
            entry.failures = 0

    def _put_off(self, entry: Entry, exc: SidecarError) -> None:
        """Say what must be said, and choose when to look again."""
        if isinstance(exc, Untouchable):
            if not entry.silent:
                log.warning("record.untouchable", extra={"request_id": entry.id, "detail": str(exc)})
            entry.silent = True
            return
        first, most = self._times.failure_first, self._times.failure_most
        if isinstance(exc, LeaseLost | Conflict):
            entry.forget_text()
        elif isinstance(exc, LinkError):
            log.debug("request.postponed", extra={"request_id": entry.id, "link": exc.link, "reason": exc.reason})
        else:
            # A channel too busy to look through, a record that Teleport does not take: no use in hurrying.
            first, most = self._times.retry_first, self._times.retry_most
            if not entry.failures:
                log.warning("request.stuck", extra={"request_id": entry.id, "detail": str(exc)})
        self._postpone(entry, first, most)

    def _postpone(self, entry: Entry, first: float, most: float) -> None:
        self._followed.wake_in(entry, min(first * 2**entry.failures, most))
        entry.failures = min(entry.failures + 1, 20)

    # -- one look ----------------------------------------------------------------------------------------------------

    async def _look(self, entry: Entry) -> None:
        request = entry.take_request()
        if entry.gone and entry.silent:
            self._followed.drop(entry)
            return
        if entry.gone:
            await self._end(entry)
            return
        early: list[Heard] = []
        try:
            if request is None:
                request = await self._read(entry, early)
            await self._look_at(entry, request, early)
        finally:
            if early:
                # Heard, but nothing came of it: it must be heard again.
                entry.heard = False

    async def _look_at(self, entry: Entry, request: AccessRequest | None, early: list[Heard]) -> None:
        if request is None:
            await self._missing(entry)
        elif request.dry_run:
            self._followed.drop(entry)
        elif request.version >= entry.version:
            entry.absent = False
            entry.version, entry.digest = request.version, hash(request)
            wait = self._announce_wait(entry, request)
            if wait > 0:
                self._followed.wake_in(entry, wait)
            else:
                await self._converge(entry, request, early)

    async def _read(self, entry: Entry, early: list[Heard]) -> AccessRequest | None:
        """The request by id; what was said about it is read meanwhile, for a person waits for an answer."""
        found: list[AccessRequest | None] = []

        async def read() -> None:
            found.append(await self._store.get_request(entry.id))

        async def hear() -> None:
            record = decode(entry.text) if entry.text is not None and self._chat.breaker.open else None
            try:
                heard = await self._hear(entry, record) if isinstance(record, Record) else None
            except (LinkError, PostRejected):
                return  # asked again where a card that is due does not wait for it
            if heard is not None:
                early.append(heard)

        await _all([read] if entry.heard else [read, hear])
        return found[0]

    def _announce_wait(self, entry: Entry, request: AccessRequest) -> float:
        """Seconds to wait before announcing, so that a request that is approved at once wakes nobody."""
        delay = self._settings.announce_delay_seconds
        if not delay or entry.known or request.state != PENDING:
            return 0.0
        # Whichever says that it is over: the wall clock may be behind Teleport's, and a restart knows only that one.
        known = trio.current_time() - entry.pending_since
        return min((request.created or 0.0) + delay - time.time(), delay - known)

    def _owed(self, entry: Entry) -> bool:
        """Whether a request that nobody was told of before it was resolved is announced all the same (P1)."""
        if self._settings.announce_resolved:
            return True
        return not entry.silent and trio.current_time() - entry.pending_since >= self._settings.announce_delay_seconds

    async def _missing(self, entry: Entry) -> None:
        """A get by id found nothing. That alone is no proof: without the right to list it looks the same."""
        if entry.silent:
            self._followed.drop(entry)
            return
        stored = await self._stored(entry)
        left = self._followed.expiry_check(stored.record.exp) if stored is not None else 0.0
        if entry.absent or (stored is not None and left <= 0):
            entry.gone = True
            await self._end(entry)
        elif stored is not None:
            self._followed.wake_in(entry, left)
        else:
            self._followed.drop(entry)

    async def _converge(self, entry: Entry, request: AccessRequest, early: list[Heard]) -> None:
        stored: Stored | None = None
        if entry.known or request.state != PENDING:
            stored = await self._stored(entry, request)
            if stored is None and request.state != PENDING and not self._owed(entry):
                entry.silent = True
                self._followed.wake_at_expiry(entry, request.expires)
                return
        if stored is not None:
            if stored.record.done:
                self._followed.drop(entry)
                return
            if not self._may_take(entry, stored.record):
                return
        trouble: SidecarError | None = None
        async with self._chat.breaker.writing():
            if not entry.dirty:  # else something newer came while we waited for our turn
                trouble = await self._act(entry, request, stored, early)
        if trouble is None:
            entry.troubles = 0
        else:
            self._look_again(entry, trouble)

    def _look_again(self, entry: Entry, trouble: SidecarError) -> None:
        """All else is done: neither other requests nor a failure of this one's own writes wait for the sake of this."""
        log.debug("request.postponed", extra={"request_id": entry.id, "detail": str(trouble)})
        first, most = self._times.failure_first, self._times.failure_most
        if not isinstance(trouble, LinkError):
            first, most = self._times.retry_first, self._times.retry_most
            if not entry.troubles:
                log.warning("request.stuck", extra={"request_id": entry.id, "detail": str(trouble)})
        self._followed.wake_in(entry, min(first * 2**entry.troubles, most))
        entry.troubles = min(entry.troubles + 1, 20)

    async def _act(
        self, entry: Entry, request: AccessRequest, stored: Stored | None, early: list[Heard]
    ) -> SidecarError | None:
        """Do all that can be done; return what could not be read, and must be read again."""
        record = self._new_record(request) if stored is None else stored.record
        targets, trouble = await self._reach.targets(request, record)
        step = self._plan(entry, request, record, targets, announce=stored is None)
        if step.stale:
            # Another process has acted on more than we were told; its look was later than ours.
            return None
        entry.answers = _untold(entry.answers, record)
        doubts = entry.doubts
        verify = doubts is not None and (doubts.inherited or doubts.ripe(trio.current_time() - self._times.verify))
        idle = not step.work and step.record.posts == record.posts and record.owner in ("", self._owner)
        idle = idle and not verify and not entry.answers
        heard: Heard | None = None
        try:
            heard = early.pop() if early else await self._hear(entry, record)
        except (LinkError, PostRejected) as exc:
            if idle:
                raise
            # What people said can wait; a card that is untrue, a doubt and an answer that is owed cannot.
            trouble = exc
        if idle and heard is None:
            self._rest(entry, request, record)
        elif not await self._act_on(entry, request, stored, step, targets, heard):
            return None
        return trouble

    async def _act_on(
        self,
        entry: Entry,
        request: AccessRequest,
        stored: Stored | None,
        step: Plan,
        targets: tuple[Target, ...],
        heard: Heard | None,
    ) -> bool:
        """Claim or take the record and do what is due; False where somebody else has claimed it meanwhile."""
        hold = self._hold(entry, step.record, stored, request)
        if stored is None:
            try:
                await hold.claim()
            except Conflict:
                entry.known = entry.dirty = True
                return False
            entry.doubts = Doubts(cards=False, replies=False)
            await self._work(entry, hold, request, step, targets)
        elif heard is None:
            await self._take(entry, hold, stored.record)
            await self._work(entry, hold, request, step, targets)
        else:
            await self._decide(entry, hold, stored.record, targets, heard)
        return True

    async def _hear(self, entry: Entry, record: Record) -> Heard | None:
        """Decisions that nobody has judged yet; only looked for after a hint that there are some."""
        reviews = self._chat.reviews
        if reviews is None or entry.heard:
            return None
        entry.heard = True
        asked = entry.direct
        speakers, entry.speakers = entry.speakers, ()
        try:
            heard = await reviews.hear(_told(record, entry.answers), asked, speakers)
        except BaseException:
            entry.heard = False
            raise
        # What was taken back, or has its verdict, needs no room any more.
        fresh = {key_of(one) for one in heard.fresh} if heard is not None else set()
        entry.direct = tuple(one for one in entry.direct if one not in asked or key_of(one) in fresh)
        return heard

    async def _decide(
        self, entry: Entry, hold: Hold, record: Record, targets: tuple[Target, ...], heard: Heard
    ) -> None:
        """Judge and submit what was heard, holding the record, against the request as the backend has it."""
        reviews = self._chat.reviews
        if reviews is None:
            return
        try:
            settled = await self._settle(entry, hold, record, heard, reviews)
            if settled is None:
                # Taken back meanwhile, or the request is gone; whether for good is for the next look to prove.
                await hold.save(release=not entry.doubts)
                entry.remember(hold.saved)
                self._postpone(entry, self._times.failure_first, self._times.failure_most)
                return
            request = settled.request
            entry.version, entry.digest = request.version, hash(request)
            entry.answers = tuple({one.identity: one for one in (*entry.answers, *settled.answers)}.values())
            step = self._plan(entry, request, msgspec.structs.replace(hold.record, dec=settled.ledger), targets)
            hold.record = step.record
            hold.official = partial(official_fields, request)
            await self._work(entry, hold, request, step, targets)
            entry.direct = tuple(unjudged(entry.direct, settled.ledger))
        except BaseException:
            entry.heard = False
            if hold.saved:
                entry.remember(hold.saved)
            raise
        if settled.lost is not None:
            entry.heard = False
            raise settled.lost

    async def _settle(self, entry: Entry, hold: Hold, record: Record, heard: Heard, reviews: Reviews) -> Settled | None:
        """Take the record, read the request, and judge; None where there is nothing to judge any more."""
        now: list[AccessRequest | None] = []

        async def read() -> None:
            now.append(await self._store.get_request(entry.id))

        await _all([partial(self._take, entry, hold, record), read])
        again: Heard | None = heard
        while again is not None and hold.valid and trio.current_time() - again.at > self._times.hearsay:
            # Taking it took long: what was said may be taken back, and somebody else may have decided.
            again = await reviews.hear(_told(hold.record, entry.answers), entry.direct)
            now.clear()
            await read()
        if again is None or now[0] is None:
            return None

        def guard() -> None:
            if not hold.valid:
                raise LeaseLost(entry.id)

        try:
            async with hold.renewing():
                return await reviews.settle(again, now[0], _told(hold.record, entry.answers), guard)
        except RequestGone:
            return None

    async def _take(self, entry: Entry, hold: Hold, record: Record) -> None:
        """Acquire a record that exists; what its last holder may have left unrecorded becomes a doubt."""
        foreign = record.owner not in ("", self._owner)
        if entry.doubts is None:
            entry.doubts = Doubts(cards=True, replies=foreign)
        if foreign:
            entry.doubts.cards = entry.doubts.replies = entry.doubts.inherited = True
        entry.foreign = None
        await hold.save()

    async def _work(
        self,
        entry: Entry,
        hold: Hold,
        request: AccessRequest,
        step: Plan,
        targets: tuple[Target, ...],
    ) -> None:
        """Act until nothing newer is known, then write down what was done."""
        event = "request.updated" if entry.known else "request.announced"
        changed = bool(step.work)
        entry.known = True
        deliverer = self._deliverer(entry, hold)

        async def answer(one: Answer) -> None:
            await deliverer.answer(one.channel_id, one.root_id, one.identity, one.draft)
            entry.answers = tuple(other for other in entry.answers if other is not one)
            hold.record = _told(hold.record, (one,))

        async with self._recording(entry, hold):
            while True:
                answers = [partial(answer, one) for one in entry.answers]
                # On record only what was told, too: whoever comes after us judges the rest again, and tells.
                hold.record = _owing(hold.record, entry.answers)
                await _all([*answers, *(partial(deliverer.deliver, work) for work in step.work)])
                self._followed.show_cards(entry, hold.record)
                for slot in hold.record.posts:
                    if slot.s == "failed" and slot.c:
                        self._chat.forget(slot.r)
                entry.touched = frozenset()
                newer = entry.request
                if newer is None or entry.gone or newer.version < request.version:
                    break
                request, entry.request, entry.dirty = newer, None, False
                step = self._plan(entry, request, hold.record, targets)
                changed = changed or bool(step.work)
                hold.record = step.record
                hold.official = partial(official_fields, request)
            if await deliverer.verify(trio.current_time() - self._times.verify):
                entry.dirty = True
        if changed or event == "request.announced":
            self._say(event, hold.record, entry.id)
        self._rest(entry, request, hold.record)

    def _say(self, event: str, record: Record, request_id: str) -> None:
        """What became of a request's messages, for whoever asks at night whether anybody was told."""
        told = sum(1 for slot in record.posts if slot.s == "posted")
        log.info(
            event,
            extra={
                "request_id": request_id,
                "request_state": record.seen[0],
                "reviews": record.seen[1],
                "told": told,
                "untold": len(record.posts) - told,
            },
        )

    @asynccontextmanager
    async def _recording(self, entry: Entry, hold: Hold) -> AsyncIterator[None]:
        """Renew the hold while the body acts, then save what it did and give the hold up.

        With doubts left the hold is only let lapse, so that whoever comes next looks before posting.
        """
        saved = False
        try:
            try:
                async with hold.renewing():
                    yield
            except LeaseLost:
                raise
            except SidecarError:
                await hold.save(release=not entry.doubts)
                saved = True
                raise
            await hold.save(release=not entry.doubts)
            saved = True
        finally:
            if saved:
                entry.remember(hold.saved)
            else:
                # What we did since the last save is on no record, and somebody else's may have crossed with it.
                entry.forget_text()
                entry.touched = frozenset(slot.c for slot in hold.record.posts if slot.p)
                if entry.doubts is not None:
                    entry.doubts.cards = entry.doubts.replies = True

    def _rest(self, entry: Entry, request: AccessRequest, record: Record) -> None:
        """Set the next look, where nothing has to happen now."""
        now = trio.current_time()
        self._followed.show_cards(entry, record)
        self._followed.wake_at_expiry(entry, request.expires)
        if any(planning.unfinished(slot, pending=request.state == PENDING) for slot in record.posts):
            if now >= entry.retry_at or not entry.retries:
                entry.retry_at = now + min(self._times.retry_first * 2**entry.retries, self._times.retry_most)
                entry.retries = min(entry.retries + 1, 10)
            self._followed.wake_in(entry, entry.retry_at - now)
        if entry.doubts:
            self._followed.wake_in(entry, self._times.verify)

    async def _end(self, entry: Entry) -> None:
        """Teleport no longer has the request: its cards say so, and it is followed no longer."""
        stored = await self._stored(entry)
        if stored is None or stored.record.done:
            self._followed.drop(entry)
            return
        record = stored.record
        if not self._may_take(entry, record):
            return
        closing = planning.closing(record, time.time())
        if not closing.positions and not entry.doubts and record.owner in ("", self._owner):
            await self._hold(entry, msgspec.structs.replace(record, done=True), stored).save(release=True)
            self._say("request.ended", record, entry.id)
            self._followed.drop(entry)
            return
        async with self._chat.breaker.writing():
            hold = self._hold(entry, msgspec.structs.replace(record, seen=(closing.state, record.seen[1])), stored)
            await self._take(entry, hold, record)
            deliverer = self._deliverer(entry, hold)
            async with self._recording(entry, hold):
                await _all([partial(deliverer.close, n, closing.state) for n in closing.positions])
                if await deliverer.verify(trio.current_time() - self._times.verify):
                    entry.dirty = True
                if not entry.doubts:
                    hold.record = planning.closed(hold.record)
        if hold.record.done:
            self._say("request.ended", hold.record, entry.id)
            self._followed.drop(entry)
        elif entry.doubts:
            self._followed.wake_in(entry, self._times.verify)
        else:
            # Somebody may have thrown us out of the channel: less and less often, until the record is gone too.
            self._followed.wake_in(entry, min(self._times.retry_first * 2**entry.retries, self._times.retry_most))
            entry.retries = min(entry.retries + 1, 10)

    # -- pieces ------------------------------------------------------------------------------------------------------

    async def _stored(self, entry: Entry, request: AccessRequest | None = None) -> Stored | None:
        """The record as last known, or as Teleport has it; None where nothing was ever posted.

        Raises Untouchable for a record that is not ours to change.
        """
        text = entry.text
        if text is None:
            data = await self._store.read_plugin_data(entry.id)
            if KEY not in data:
                return self._adopted(entry, data, request)
            text = data[KEY]
            entry.remember(text)
        record = decode(text)
        if isinstance(record, Unreadable):
            raise Untouchable(record.why)
        return Stored(record, text)

    def _adopted(self, entry: Entry, data: dict[str, str], request: AccessRequest | None) -> Stored | None:
        """A record for what the official plugin announced, or began to announce.

        That plugin claims a request by its `user` key before it posts; without `messages` it may have posted or not,
        so our bot's posts are searched for the request id before anything is made.
        """
        if not data.get("messages") and not data.get("user"):
            return None
        created = request.created if request and request.created else time.time()
        expires = request.expires if request and request.expires else created
        record = adopt(
            data, seed=new_seed(), owner="", at=int(created), exp=int(expires), lease_s=self._settings.lease.lease_s
        )
        entry.doubts = Doubts(cards=True, replies=False, mentions=not record.posts)
        log.info("request.adopted", extra={"request_id": entry.id, "posts": len(record.posts)})
        return Stored(record, "")

    def _may_take(self, entry: Entry, record: Record) -> bool:
        """Whether the record is free, ours, or its holder has been seen dead; else look again later."""
        if record.owner in ("", self._owner):
            return True
        now = boottime()
        if entry.foreign is None or entry.foreign[0] != record.n:
            entry.foreign = (record.n, now)
        left = entry.foreign[1] + self._settings.lease.takeover_seconds(record) - now
        if left <= 0:
            return True
        entry.forget_text()
        self._followed.wake_in(entry, min(left + 0.05, record.lease_s / 3))
        return False

    def _new_record(self, request: AccessRequest) -> Record:
        now = int(time.time())
        return Record(
            seed=new_seed(),
            owner=self._owner,
            at=now,
            exp=int(request.expires or now),
            lease_s=self._settings.lease.lease_s,
            seen=(request.state, len(request.reviews)),
            posts=(),
        )

    def _hold(self, entry: Entry, record: Record, stored: Stored | None, request: AccessRequest | None = None) -> Hold:
        return Hold(
            self._store,
            entry.id,
            self._owner,
            self._settings.lease,
            record=record,
            saved=stored.text if stored is not None else "",
            official=partial(official_fields, request),
        )

    def _deliverer(self, entry: Entry, hold: Hold) -> Deliverer:
        if entry.doubts is None:
            entry.doubts = Doubts(cards=True, replies=True)
        return Deliverer(
            self._chat.posts,
            self._chat.bot_id(),
            hold,
            entry.doubts,
            count=self._count,
            placed=lambda: self._followed.show_cards(entry, hold.record),
            seeds=self._chat.seeds,
            superseded=lambda: (
                not entry.gone and entry.request is not None and entry.request.version > hold.record.version
            ),
        )

    def _plan(
        self,
        entry: Entry,
        request: AccessRequest,
        record: Record,
        targets: tuple[Target, ...],
        *,
        announce: bool = False,
    ) -> Plan:
        step = planning.plan(
            request,
            record,
            targets,
            self._options(),
            retry_failed=not entry.retries or trio.current_time() >= entry.retry_at,
            announce=announce,
            touched=entry.touched,
        )
        if step.refused and step.refused != self._refused.get(entry.id):
            log.warning("recipients.too_many", extra={"request_id": entry.id, "refused": step.refused})
        self._refused[entry.id] = step.refused
        return step

    def _count(self, kind: str, outcome: str) -> None:
        if kind == "duplicate":
            self._metrics.duplicates_repaired_total.inc()
        elif kind == "update":
            self._metrics.updates_total.labels(outcome=outcome).inc()
        else:
            self._metrics.posts_total.labels(kind=kind, outcome=outcome).inc()


def _told(record: Record, answers: tuple[Answer, ...]) -> Record:
    """The record with the verdicts behind these answers in its ledger."""
    ledger = {entry[:3]: entry for entry in record.dec}
    for one in answers:
        known = ledger.get(one.entry[:3])
        if known is None or known[3] <= one.entry[3]:
            # Else it is about something older than what was judged since.
            ledger[one.entry[:3]] = one.entry
    return msgspec.structs.replace(record, dec=tuple(ledger.values()))


def _untold(answers: tuple[Answer, ...], record: Record) -> tuple[Answer, ...]:
    """The answers without those that another holder has given meanwhile: what is told is on record."""
    told = {entry[:4] for entry in record.dec}
    return tuple(one for one in answers if _stays(one, record) or one.entry[:4] not in told)


def _stays(one: Answer, record: Record) -> bool:
    """Whether the verdict is on record untold: what decided would be taken for something that came too late."""
    return one.entry[4] in DONE and record.seen[0] != PENDING


def _owing(record: Record, answers: tuple[Answer, ...]) -> Record:
    """The record without them."""
    owed = {one.entry for one in answers if not _stays(one, record)}
    return msgspec.structs.replace(record, dec=tuple(entry for entry in record.dec if entry not in owed))


async def _all(jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run all jobs to their end, then raise the first failure: one recipient's failure never cuts another's write."""
    failures: list[SidecarError] = []

    async def run(job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except SidecarError as exc:
            failures.append(exc)

    if len(jobs) == 1:
        await jobs[0]()
        return
    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(run, job, name="reconcile.recipient")
    if failures:
        raise failures[0]
