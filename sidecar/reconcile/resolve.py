"""Which recipients a request has, and which of them cannot be reached: said once, and counted.

Every name is looked up by itself, in the background: one that hangs or fails costs nobody else anything.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from sidecar.decisions.routing import Named, Routes, RuleBook, route
from sidecar.decisions.seen import Target
from sidecar.errors import LinkError, LinkLost, PostRejected, RecipientError
from sidecar.once import Bounded

if TYPE_CHECKING:
    from sidecar.metrics import Metrics
    from sidecar.model import AccessRequest, Destination
    from sidecar.times import Times

Ruling = Callable[["AccessRequest"], Awaitable[tuple[RuleBook, Mapping[str, tuple[str, ...]] | None]]]

log = logging.getLogger(__name__)

# Why a recipient cannot be reached (the label of a metric); "suggested" counts the names that requesters gave.
REASONS = (
    "not_found", "not_member", "archived", "deactivated", "forbidden", "ambiguous", "invalid", "unanswered",
    "suggested", "too_many",
)  # fmt: skip

# A look waits this long for look-ups that have just begun; what is not known by then is told when it is.
PATIENCE_SECONDS = 0.5
UNREACHABLE_MOST = 10_000
# A name whose look-ups fail for so long, while Mattermost's link is up, is to blame itself.
BROKEN_SECONDS = 5.0


# So many names that a requester gave are looked up, whether or not they exist.
SUGGESTED_MOST = 100


class Recipients(Protocol):
    """Where a name leads, remembered; `resolve` ends within seconds."""

    async def resolve(self, name: str) -> Destination: ...

    async def refresh(self, names: Iterable[str]) -> None: ...


class Chosen(NamedTuple):
    """Who is to be told, and how many suggested reviewers are not, for there are too many of them."""

    targets: tuple[Target, ...]
    left_out: int = 0


class _Flight:
    """One look-up under way, and the requests that want its answer."""

    def __init__(self) -> None:
        self.since = trio.current_time()
        self.landed = trio.Event()
        self.result: str | LinkError | RecipientError = ""
        # Why it failed, where that may be the link's fault.
        self.broken: LinkError | None = None
        self.wanted_by: set[str] = set()


class Resolver:
    """Looks names up for requests; `wake` takes a request whose name was found, `retry` one whose recipient is back.

    `suspect` has Mattermost's link asked whether it is up: a look-up that fails may say that, or be about one name.
    """

    def __init__(
        self,
        recipients: Recipients,
        routes: Routes,
        ruling: Ruling,
        metrics: Metrics,
        wake: Callable[[str], None],
        retry: Callable[[str], None],
        suspect: Callable[[], None],
        times: Times,
    ) -> None:
        self._recipients = recipients
        self._routes = routes
        self._ruling = ruling
        # The names that operators wrote into rules.
        self._ruled: frozenset[str] = frozenset()
        self._metrics = metrics
        self._wake = wake
        self._retry = retry
        self._suspect = suspect
        self._times = times
        self._nursery: trio.Nursery | None = None
        self._flights: dict[str, _Flight] = {}
        # Names whose look-up Mattermost did not answer, and when (trio's clock) they are asked for again.
        self._unanswered: Bounded[str, float] = Bounded(UNREACHABLE_MOST)
        # Names whose look-ups fail, and since when.
        self._broken: Bounded[str, float] = Bounded(UNREACHABLE_MOST)
        # recipient name -> why it cannot be reached now; bounded, for requesters name reviewers as they like
        self._unreachable: Bounded[str, str] = Bounded(UNREACHABLE_MOST)
        self._too_many: dict[str, int] = {}
        # (name, request): operators' recipients that could not be told of this request
        self._lost: Bounded[tuple[str, str], None] = Bounded(UNREACHABLE_MOST)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look names up until cancelled."""
        # What was true of names by another configuration is no longer.
        self._count()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await trio.sleep(self._times.recipients_every)
                    await self._look_at_all()
            finally:
                # Who asks while all is being ended is not answered any more.
                self._nursery = None

    async def targets(self, request: AccessRequest) -> Chosen:
        """All recipients; one that cannot be reached is without a channel, one that is not known yet is owed.

        Raises LinkError where all look-ups failed: it may be that Mattermost as a whole does not answer.
        """
        book, traits = await self._ruling(request)
        self._ruled = book.recipients
        named = dict.fromkeys(route(request, self._routes, book, traits))
        suggested = [one for one in named if one.suggested]
        most = self._routes.max_suggested
        patience = trio.current_time() + PATIENCE_SECONDS
        first = [*(one for one in named if not one.suggested), *suggested[:most]]
        flights = await self._flown(first, request.id, patience)
        asked = min(len(suggested), most)
        while missing := most - sum(_may_exist(flights[one]) for one in suggested[:asked]):
            more = suggested[asked : min(asked + max(missing, asked), SUGGESTED_MOST)]
            if not more:
                break
            flights |= await self._flown(more, request.id, patience)
            asked += len(more)
        broken = [flight.broken for flight in flights.values() if flight is not None and flight.broken is not None]
        if broken and len(broken) == len(flights):
            # One instance for each who asks: a traceback belongs to one task.
            raise LinkLost(broken[0].link, broken[0].reason, broken[0].detail)
        existing = [one for one in suggested[:asked] if _may_exist(flights[one])]
        missed = [one for one in suggested[:asked] if not _may_exist(flights[one])]
        chosen = [*(one for one in named if not one.suggested), *existing[:most], *missed[:most]]
        for one in chosen:
            if (flight := flights[one]) is not None and isinstance(flight.result, RecipientError):
                self.lost(one.name, request.id)
        left_out = len(suggested) - len(existing[:most]) - len(missed)
        return Chosen(tuple(self._target(one, flights[one]) for one in chosen), left_out)

    async def _flown(self, named: list[Named], request_id: str, patience: float) -> dict[Named, _Flight | None]:
        """The look-ups of these names, side by side; one that takes until `patience` (trio's clock) is still under way.

        So is one that others have waited for.
        """
        flights = {one: self._fly(one.name, request_id) for one in named}
        for flight in flights.values():
            if flight is not None and not flight.landed.is_set():
                with trio.move_on_at(min(flight.since + PATIENCE_SECONDS, patience)):
                    await flight.landed.wait()
        return flights

    def lost(self, name: str, request_id: str) -> None:
        """A recipient could not be told of this request: it is tried again as soon as it is seen to be back."""
        if name in self._routes.configured | self._ruled:
            self._lost[name, request_id] = None

    def too_many(self, request_id: str, refused: int) -> None:
        """So many recipients of this request have no room in its record; said once."""
        if refused == self._too_many.get(request_id, 0):
            return
        if refused:
            log.warning("recipients.too_many", extra={"request_id": request_id, "refused": refused})
            self._too_many[request_id] = refused
        else:
            self._too_many.pop(request_id, None)
        self._count()

    async def _look_at_all(self) -> None:
        """Whether the operators' recipients are still there, or there again, with or without a request."""
        names = self._routes.configured | self._ruled
        try:
            await self._recipients.refresh(names)
        except (LinkError, PostRejected) as exc:
            log.debug("recipients.postponed", extra={"link": "mattermost", "detail": str(exc)})
            if isinstance(exc, LinkError):
                return
        for name in names:
            self._fly(name)

    def _target(self, named: Named, flight: _Flight | None) -> Target:
        if flight is None or not flight.landed.is_set() or isinstance(flight.result, LinkError):
            return Target(named.name, named.kind, "", owed=True)
        channel = flight.result if isinstance(flight.result, str) else ""
        return Target(named.name, named.kind, channel)

    def _fly(self, name: str, request_id: str = "") -> _Flight | None:
        """The look-up of this name, begun where none is under way; None where it is too early to ask again."""
        flight = self._flights.get(name)
        if flight is None:
            if trio.current_time() < self._unanswered.get(name, 0.0) or self._nursery is None:
                return None
            flight = self._flights[name] = _Flight()
            self._nursery.start_soon(self._look_up, name, flight, name="resolve.name")
        if request_id:
            flight.wanted_by.add(request_id)
        return flight

    async def _look_up(self, name: str, flight: _Flight) -> None:
        try:
            flight.result = (await self._recipients.resolve(name)).channel_id
        except RecipientError as exc:
            flight.result = exc
            self._broken.pop(name, None)
            self._fail(name, exc.reason, exc.detail)
        except LinkError as exc:
            flight.result = exc
            self._suspect()
            if self._is_to_blame(name, flight.since):
                self._postpone(name, exc)
            else:
                flight.broken = exc
        else:
            self._succeed(name)
        finally:
            del self._flights[name]
            late = trio.current_time() > flight.since + PATIENCE_SECONDS
            flight.landed.set()
        if flight.broken is not None:
            await trio.sleep(BROKEN_SECONDS)
        if late or flight.broken is not None:
            for request_id in flight.wanted_by:
                self._wake(request_id)

    def _is_to_blame(self, name: str, since: float) -> bool:
        """Whether look-ups of this name have failed for long; by then a link that is down was found out."""
        return trio.current_time() - self._broken.setdefault(name, since) >= BROKEN_SECONDS

    def _postpone(self, name: str, exc: LinkError) -> None:
        self._unanswered[name] = trio.current_time() + self._times.retry_first
        self._fail(name, "unanswered", f"{exc.detail}; it is asked again")

    def _fail(self, name: str, reason: str, detail: str) -> None:
        if self._unreachable.get(name) == reason:
            return
        self._unreachable[name] = reason
        log.log(
            # Nobody can mend what a requester wrote.
            logging.WARNING if name in self._routes.configured | self._ruled else logging.INFO,
            "recipient.failed",
            extra={"recipient": name, "reason": reason, "detail": detail},
        )
        self._count()

    def _succeed(self, name: str) -> None:
        self._unanswered.pop(name, None)
        self._broken.pop(name, None)
        if self._unreachable.pop(name, None) is not None:
            self._count()
            for key in [key for key in self._lost if key[0] == name]:
                del self._lost[key]
                self._retry(key[1])

    def _count(self) -> None:
        configured = self._routes.configured | self._ruled
        counts = Counter(reason if name in configured else "suggested" for name, reason in self._unreachable.items())
        counts["too_many"] = sum(self._too_many.values())
        for reason in REASONS:
            self._metrics.recipients_failed.labels(reason=reason).set(counts[reason])


def _may_exist(flight: _Flight | None) -> bool:
    """Whether this is a person or channel, as far as is known; one that is not answered for long counts as none."""
    return flight is not None and (not flight.landed.is_set() or isinstance(flight.result, str))
