"""Everything that the questions of `decide` may ask about, and what follows from it at once. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from sidecar.decisions.proof import asked
from sidecar.decisions.record import Record, Stored
from sidecar.decisions.seen import Context, Facts, Memory, Now, Seen
from sidecar.model import EXPIRED, PENDING, AccessRequest, state_rank

# How many leases the same record must have been watched before its holder counts as dead: 35 s for one of 30.
TAKEOVER = 1 + 1 / 6
GONE = state_rank(EXPIRED)


class View(NamedTuple):
    """Everything that a question may ask about."""

    seen: Seen
    facts: Facts
    memory: Memory
    context: Context
    now: Now

    @property
    def request(self) -> AccessRequest | None:
        """The request as far as it is known."""
        request = self.seen.request
        return request if isinstance(request, AccessRequest) else None

    @property
    def record(self) -> Record | None:
        """The record as far as it is known."""
        stored = self.seen.stored
        return stored.record if isinstance(stored, Stored) else None

    @property
    def pending(self) -> bool:
        """Whether it may still be decided."""
        return self.request is not None and self.request.state == PENDING and not self.gone

    @property
    def gone(self) -> bool:
        """Whether Teleport provably has the request no more."""
        return self.facts.gone or (self.seen.request is None and _proven_absent(self))

    @property
    def another(self) -> bool:
        """Whether the record belongs to another request that had that id (before 16, clients could choose it)."""
        record = self.record
        return self.request is not None and record is not None and record.q not in ("", asked(self.request))

    @property
    def ends(self) -> bool:
        """Whether the request that the record is about is over for good."""
        return self.gone or self.another

    @property
    def wanted(self) -> AccessRequest | None:
        """The request that the record is about, unless that is over for good."""
        return None if self.ends else self.request

    @property
    def chat_ms(self) -> int:
        """Now by Mattermost's clock, in milliseconds, or a second before: that clock is known to half of one."""
        return int((self.now.wall + self.now.offset - 1) * 1000)

    @property
    def proven(self) -> bool:
        """Whether every card is still as this process last wrote or read it, under the rules of now."""
        memory = self.memory
        held = memory.text is not None and not memory.doubts and not memory.touched
        return held and memory.proven == self.context.rules_digest != ""

    @property
    def retry_failed(self) -> bool:
        """Whether recipients that failed are due again."""
        return not self.memory.retries or self.now.mono >= self.memory.retry_at

    @property
    def expired_by_clock(self) -> bool:
        """Whether it should be over: newer servers go on listing a request for a while after its expiry.

        It is shown as EXPIRED then, and not seen as such.
        """
        request = self.request
        return (
            request is not None
            and request.state == PENDING
            and request.expires is not None
            and self.teleport_time >= request.expires + self.context.times.expired
        )

    @property
    def clocks(self) -> tuple[float, float, float]:
        """Unix seconds by our clock, by Mattermost's, and the least that Teleport's can show."""
        return self.now.wall, self.now.wall + self.now.offset, self.now.teleport

    @property
    def teleport_time(self) -> float:
        """Unix seconds, as far as Teleport's clock is known: what two of three clocks have reached."""
        return sorted(self.clocks)[1]

    @property
    def age(self) -> float:
        """How long the request waits, in seconds: the shorter of what the process and Mattermost's clock have seen.

        So no clock that jumps ahead brings anything on early.
        """
        known, request = self.now.mono - self.facts.pending_since, self.request
        if request is None or request.created is None:
            return known
        return min(known, self.now.wall + self.now.offset - request.created)

    @property
    def expiry_at(self) -> float:
        """When (trio's clock) the request should be over; later where it is over already."""
        expires, times = None, self.context.times
        if self.request is not None:
            expires = self.request.expires
        elif self.record is not None:
            expires = float(self.record.exp)
        if expires is None or self.gone:
            return math.inf
        moments = [times.expiry_grace] if not self.pending else [times.expired, times.expiry_grace]
        left = [left for grace in moments if (left := expires + grace - self.teleport_time) > 0]
        return self.now.mono + min(left, default=times.expiry_grace)


def _proven_absent(view: View) -> bool:
    """Absent from a complete list and by id, or past its expiry and absent by id.

    In mode `plugin` the right to review narrows what our role is shown: there it must be missing for a while.
    """
    record, context = view.record, view.context
    if record is None:
        return False
    if view.teleport_time >= record.exp + context.times.expiry_grace:
        return True
    absent_for = view.now.mono - view.facts.absent_since
    return absent_for >= (context.times.absent if context.rules.mode == "plugin" else 0.0)
