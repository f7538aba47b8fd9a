"""What is known of one followed request between two visits.

Every field has one writer: *facts* come from Teleport, *hints* from Mattermost, the *memory* is the worker's.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

import trio

from sidecar.decisions.seen import Facts, Memory
from sidecar.model import PENDING, Version
from sidecar.reconcile.lease import boottime

if TYPE_CHECKING:
    from sidecar.decisions.expressions import Expression
    from sidecar.decisions.record import Record
    from sidecar.model import AccessRequest

# Longer records are read again instead of being kept: a followed request costs at most 2 KB.
KEEP_RECORD_LENGTH = 600
# People who are looked up beside what they said, so that a decision waits for one read less.
MOST_SPEAKERS = 4

_FRESH = Memory()


class Entry:
    """A followed request; small, because there may be 50,000."""

    __slots__ = (
        "absent_since", "cards", "created", "digest", "direct", "expires", "gone", "hinted", "id", "mark", "memory",
        "offered", "own", "party", "pending_since", "request", "retry", "since", "speakers", "version",
    )  # fmt: skip

    def __init__(self, request_id: str) -> None:
        self.id = request_id
        # -- facts: what Teleport said
        # The last version that came with an event or a list, where it is kept until a worker takes it.
        self.request: AccessRequest | None = None
        # When it was made; another request under the same id was made later.
        self.created = 0.0
        # The highest version seen, and a hash of all that was seen in it.
        self.version = Version(-1, 0)
        self.digest = 0
        self.party = ""
        # Unix seconds.
        self.expires = math.inf
        # trio's time when it was first read, if it was PENDING then.
        self.pending_since = math.inf
        # A DELETE event proves that it is gone; absence from a list (since when) must be confirmed by id.
        self.gone = False
        self.absent_since = math.inf
        # The number of the last full list that held it, and since when it is followed, by CLOCK_BOOTTIME.
        self.mark = 0
        self.since = boottime()
        # The text of its record as a listing showed it; "" for one that is read again.
        self.offered: str | None = None
        # -- hints: somebody may have said something, these people it seems; and direct messages that name it
        self.hinted = False
        self.speakers: tuple[str, ...] = ()
        self.direct: tuple[Expression, ...] = ()
        # A recipient of it is back: what failed is due now.
        self.retry = False
        # -- its worker's: what it remembers; and where the request can be seen, card posts and their channels in turn
        self.memory = _FRESH
        self.cards: tuple[str, ...] = ()
        self.own = ""

    @property
    def channels(self) -> tuple[str, ...]:
        """Where it can be seen."""
        return (*dict.fromkeys(self.cards[1::2]), *([self.own] if self.own else []))

    @property
    def facts(self) -> Facts:
        """What Teleport said, but for the request itself."""
        return Facts(self.gone, self.absent_since, self.pending_since, self.version)

    def learn(self, request: AccessRequest) -> None:
        """Note that Teleport has this version, which is no older one; also one that was read by id."""
        if (request.created or 0.0) > self.created:
            # Before 16, clients choose ids; nothing that was seen of the former one is about this one.
            self.created = request.created or 0.0
            self.gone, self.pending_since, self.version = False, math.inf, Version(-1, 0)
        if self.version.rank < 0 and request.state == PENDING:
            # Not younger than it says, and not older than now by a clock that is behind Teleport's.
            age = time.time() - request.created if request.created is not None else 0.0
            self.pending_since = trio.current_time() - max(age, 0.0)
        self.version, self.digest = request.version, hash(request)
        self.absent_since = math.inf
        self.party = sys.intern(request.user)
        self.expires = math.inf if request.expires is None else request.expires

    def unseen(self, record: Record) -> int:
        """How many of its cards only this record tells of."""
        told = set(self.memory.told)
        return sum(hash(slot.p) not in told for slot in record.posts if slot.s == "posted")

    def outdates(self, request: AccessRequest) -> bool:
        """Whether more than this version is known, or it is one of a former request under the same id."""
        return ((request.created or 0.0), request.version) < (self.created, self.version)

    def over_in(self, grace: float) -> float:
        """Seconds from now until it should be over, with so many more; never where Teleport set no expiry."""
        return self.expires + grace - time.time()

    def take_request(self) -> AccessRequest | None:
        """What the last event brought; None where nothing waits, or what is known is newer: then it is read by id.

        A read by id may overtake the events. The newest of them is no news then, and the one before must not count.
        """
        request, self.request = self.request, None
        return request if request is not None and request.version >= self.version else None

    def hear(self, user_id: str) -> None:
        """Somebody may have said something, it seems this user; "" where nobody knows."""
        self.hinted = True
        if user_id and user_id not in self.speakers:
            self.speakers = (*self.speakers[-MOST_SPEAKERS + 1 :], user_id)

    def remember(self) -> Memory:
        """Take the hints into the memory, for the visit that begins."""
        memory = self.memory
        if self.retry:
            memory = memory.but(retries=0)
        if self.offered == "":
            self.offered, memory = None, memory.but(known=True)
        if self.hinted:
            direct = (*memory.direct, *(one for one in self.direct if one not in memory.direct))
            memory = memory.but(listen=True, speakers=self.speakers, direct=direct)
        self.retry, self.hinted, self.speakers, self.direct = False, False, (), ()
        self.memory = memory
        return memory

    def keep(self, memory: Memory) -> None:
        """What the worker remembers until its next visit; a long record is read again instead of being kept."""
        if memory.text is not None and len(memory.text) > KEEP_RECORD_LENGTH:
            memory = memory.but(text=None)
        self.memory = memory

    def rest(self) -> None:
        """Nothing has to be looked at for long: a long record that a listing showed is read again, too."""
        if self.offered and len(self.offered) > KEEP_RECORD_LENGTH:
            self.offered = ""
