"""Holding an access request's record: who may write to Mattermost for it, and how progress is saved.

The lease is kept in the record itself. Nobody's wall clock is compared with anybody else's: the holder trusts its own
boot-time clock for how long it may write, and another process takes over only after it has itself watched the same
record for longer than that.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from sidecar.decisions.record import CLAIM_EXPECTS, KEY, Record, Stored, encode
from sidecar.errors import Conflict, LinkLost, SidecarError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sidecar.reconcile.ports import Teleport

# How often a write without an answer is tried again before it is put off.
MOST_TRIES = 3


class LeaseLost(SidecarError):
    """The record is no longer ours to act on: somebody else changed it, or the lease ran out unrenewed."""


def boottime() -> float:
    """Seconds since boot, counting suspended time: a lease must not outlive a laptop's or a VM's sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The right to write for one request, and the record as it grows.

    With the usual 30 s it is renewed each 10 s, and no write begins in the last 10 s. `official` gives the official
    plugin's keys, which are written in the same save.
    """

    def __init__(
        self,
        teleport: Teleport,
        request_id: str,
        owner: str,
        lease_s: int,
        official: Callable[[Record], dict[str, str]],
        *,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.request_id = request_id
        # What Teleport holds, and how it goes on.
        self.saved = ""
        self._record: Record | None = None
        self.held = False
        self._teleport = teleport
        self._owner = owner
        self._lease_s = lease_s
        self._official = official
        self._clock = clock
        self._valid_until = 0.0
        self._lock = trio.Lock()

    @property
    def record(self) -> Record:
        """The record as it grows; only while it is held."""
        if self._record is None:
            raise LeaseLost(self.request_id)
        return self._record

    @record.setter
    def record(self, record: Record) -> None:
        self._record = record

    @property
    def valid(self) -> bool:
        """Whether a write may still be started."""
        return self._clock() < self._valid_until - self._lease_s / 3

    def require(self) -> None:
        """Raise LeaseLost where no write may be started any more; asked directly before each."""
        if not self.valid:
            raise LeaseLost(self.request_id)

    async def take(self, record: Record, stored: Stored | None) -> None:
        """Make the record where there is none, or take the one that is stored.

        Raises Conflict (somebody made one meanwhile), LeaseLost (somebody changed it), RequestGone, LinkError.
        """
        if stored is None:
            await self._write(record, CLAIM_EXPECTS, {})
        else:
            self.saved = stored.text
            self._record = record
            await self.save()
        self.held = True

    async def save(self, *, release: bool = False, renewal: bool = False) -> None:
        """Write the progress down, and give the record up where `release` says so. Raises LeaseLost, LinkError."""
        async with self._lock:
            if renewal and not self.held:
                return  # given up while this waited for its turn
            record = msgspec.structs.replace(
                self.record,
                n=self.record.n + 1,
                owner="" if release else self._owner,
                lease_s=self._lease_s,
            )
            try:
                await self._write(record, {KEY: self.saved}, self._official(record))
            except Conflict as exc:
                self._valid_until = 0.0
                raise LeaseLost(self.request_id) from exc
            self.held = self.held and not release

    @asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        """Save each third of a lease while it is held and the body runs.

        A lost lease shows as `valid` false, not as an error.
        """
        failure: SidecarError | None = None
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew, over, name="lease.renew")
            try:
                yield
            except SidecarError as exc:
                # Out of the nursery alone: it would come as a group.
                failure = exc
            # Not cancelled: a save that is broken off may be carried out all the same, and the next one would take it
            # for somebody else's.
            over.set()
        if failure is not None:
            raise failure

    async def _renew(self, over: trio.Event) -> None:
        while True:
            with trio.move_on_after(self._lease_s / 3):
                await over.wait()
                return
            try:
                await self.save(renewal=True)
            except SidecarError:
                # Whatever it is, the save at the end of the work meets it again.
                return

    async def _write(self, record: Record, expect: dict[str, str], official: dict[str, str]) -> None:
        """One compare-and-swap; an answer that was lost is decided by reading back."""
        text = encode(record)
        doubtful = False
        first = self._clock()
        for tries in range(MOST_TRIES):
            started = self._clock()
            try:
                await self._teleport.update_plugin_data(self.request_id, {KEY: text, **official}, expect)
            except LinkLost:
                doubtful = True
                if tries + 1 == MOST_TRIES:
                    raise
                await self._ready()
                if not await self._landed(text, expect):
                    continue
                started = first
            except Conflict:
                # What is in the way may be our own earlier write, carried out late.
                if not doubtful or not await self._landed(text, expect):
                    raise
                # Others may have seen it since then.
                started = first
            now = record if self._record is None else self._record
            self._record = msgspec.structs.replace(now, n=record.n, owner=record.owner, lease_s=record.lease_s)
            self.saved = text
            self._valid_until = started + self._lease_s
            return

    async def _ready(self) -> None:
        """Wait for a connection, for no longer than a lease: who waits holds a worker."""
        with trio.move_on_after(self._lease_s) as scope:
            await self._teleport.ready()
        if scope.cancelled_caught:
            raise LinkLost("teleport", "away", "there was no connection to the Auth Service", ambiguous=True)

    async def _landed(self, text: str, expect: dict[str, str]) -> bool:
        """Whether the write that got no answer was carried out. Raises Conflict when something else was."""
        for tries in range(MOST_TRIES):
            try:
                found = await self._teleport.read_plugin_data(self.request_id)
            except LinkLost:
                if tries + 1 == MOST_TRIES:
                    raise
                await self._ready()
                continue
            if found.get(KEY, "") == text:
                return True
            if all(found.get(key, "") == value for key, value in expect.items()):
                return False
            raise Conflict(self.request_id)
        raise AssertionError("unreachable")
