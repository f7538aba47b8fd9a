"""Which recipients a request has, and which of them cannot be reached: said once, and counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import trio

from sidecar.decisions.plan import Target
from sidecar.decisions.routing import Named, Routes, RuleBook, route
from sidecar.errors import LinkError, LinkLost, RecipientError, SidecarError

if TYPE_CHECKING:
    from sidecar.decisions.record import Record
    from sidecar.metrics import Metrics
    from sidecar.model import AccessRequest, Destination

Ruling = Callable[["AccessRequest"], Awaitable[tuple[RuleBook, Mapping[str, tuple[str, ...]] | None]]]

log = logging.getLogger(__name__)

# Why a recipient cannot be reached (the label of a metric).
REASONS = ("not_found", "not_member", "archived", "deactivated", "forbidden", "ambiguous", "invalid", "unanswered")
# How Mattermost may fail to look up one name while it works for the others.
FOR_ONE = ("server_error", "not_mattermost", "unknown_route")

MAX_UNREACHABLE = 10_000


class Reach:
    """`resolve` finds the channel of a name, and remembers what it found."""

    def __init__(
        self, resolve: Callable[[str], Awaitable[Destination]], routes: Routes, ruling: Ruling, metrics: Metrics
    ) -> None:
        self._resolve = resolve
        self._routes = routes
        self._ruling = ruling
        # What operators wrote into rules.
        self._ruled: frozenset[str] = frozenset()
        self._metrics = metrics
        # recipient name -> why it cannot be reached now; bounded, for requesters name reviewers as they like
        self._unreachable: dict[str, str] = {}

    async def targets(self, request: AccessRequest, record: Record) -> tuple[tuple[Target, ...], SidecarError | None]:
        """Return all recipients, looked up at once; one that cannot be reached stays without a channel.

        Also why Mattermost did not say of some of them, to be raised when the others are told. Raises LinkError.
        """
        book, traits = await self._ruling(request)
        self._ruled = book.recipients
        named = route(request, self._routes, book, traits)
        if book.used and record.posts:
            told = {(slot.r, slot.k) for slot in record.posts}
            named = tuple(one for one in named if (one.name, one.kind) in told)
        channels: dict[Named, str] = dict.fromkeys(named, "")
        lost: dict[Named, LinkError] = {}

        async with trio.open_nursery() as nursery:
            for recipient in named:
                nursery.start_soon(self._look_up, recipient, channels, lost, name="reach.recipient")
        for exc in lost.values():
            if len(lost) == len(named) or not _for_one(exc):
                raise exc
        for recipient, exc in lost.items():
            self._fail(recipient.name, "unanswered", f"{exc.detail}; it is asked again")
        targets = (Target(one.name, one.kind, channels[one], owed=one in lost) for one in named)
        return tuple(targets), next(iter(lost.values()), None)

    async def _look_up(self, recipient: Named, channels: dict[Named, str], lost: dict[Named, LinkError]) -> None:
        try:
            channels[recipient] = (await self._resolve(recipient.name)).channel_id
        except RecipientError as exc:
            self._fail(recipient.name, exc.reason, exc.detail)
        except LinkError as exc:
            lost[recipient] = exc
        else:
            self._succeed(recipient.name)

    def _fail(self, name: str, reason: str, detail: str) -> None:
        if self._unreachable.get(name) == reason:
            return
        if len(self._unreachable) >= MAX_UNREACHABLE:
            del self._unreachable[next(iter(self._unreachable))]
        self._unreachable[name] = reason
        log.log(
            # Nobody can mend what a requester wrote.
            logging.WARNING if name in self._routes.configured | self._ruled else logging.INFO,
            "recipient.failed",
            extra={"recipient": name, "reason": reason, "detail": detail},
        )
        self._count()

    def _succeed(self, name: str) -> None:
        if self._unreachable.pop(name, None) is not None:
            self._count()

    def _count(self) -> None:
        configured = self._routes.configured | self._ruled
        counts = Counter(reason for name, reason in self._unreachable.items() if name in configured)
        for reason in REASONS:
            self._metrics.recipients_failed.labels(reason=reason).set(counts[reason])


def _for_one(exc: LinkError) -> bool:
    """Whether this may be said of one name, and the link be well."""
    return isinstance(exc, LinkLost) and exc.reason in FOR_ONE
