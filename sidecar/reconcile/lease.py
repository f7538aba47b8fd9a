"""Holding an access request's record: who may write to Mattermost for it, and how progress is saved.

A hold is a lease kept in the record itself. Nobody's wall clock is compared with anybody else's: the holder trusts its
own boot-time clock for how long it may write, and another process takes over only after it has itself watched the same
record for longer than that.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from sidecar.decisions.record import CLAIM_EXPECTS, KEY, Record, Slot, encode
from sidecar.errors import Conflict, LinkLost, SidecarError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class PluginDataStore(Protocol):
    """Where records are kept: compare-and-swap on one plugin's entry."""

    async def read_plugin_data(self, request_id: str) -> dict[str, str]: ...

    async def update_plugin_data(self, request_id: str, put: dict[str, str], expect: dict[str, str]) -> None: ...

    async def ready(self) -> None:
        """Return when the store can be reached; the caller owns the deadline."""
        ...


class LeaseLost(SidecarError):
    """The record is no longer ours to act on: somebody else changed it, or the lease ran out unrenewed."""


def boottime() -> float:
    """Seconds since boot, counting suspended time: a lease must not outlive a laptop's or a VM's sleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseTimes(msgspec.Struct, frozen=True):
    """A lease and what is derived from it.

    With the usual 30 s: renewed each 10 s, no write in the last 10 s, and 5 s of grace before another takes over.
    """

    lease_s: int = 30

    @property
    def renew_seconds(self) -> float:
        return self.lease_s / 3

    @property
    def margin_seconds(self) -> float:
        return self.lease_s / 3

    def takeover_seconds(self, record: Record) -> float:
        """How long the same record must have been watched before its holder counts as dead."""
        return record.lease_s * (1 + 1 / 6)


class Hold:
    """The right to write for one request, and the record as it grows. Made by `claim` or `acquire`."""

    def __init__(
        self,
        store: PluginDataStore,
        request_id: str,
        owner: str,
        times: LeaseTimes,
        *,
        record: Record,
        saved: str,
        official: Callable[[Record], dict[str, str]],
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._clock = clock
        self.request_id = request_id
        self.record = record
        # The exact text that Teleport holds: the next save expects it.
        self.saved = saved
        self._store = store
        self._owner = owner
        self._times = times
        # The official plugin's keys, written in the same save.
        self.official = official
        self._valid_until = 0.0
        self._lock = trio.Lock()

    @property
    def valid(self) -> bool:
        """Whether a write may still be started."""
        return self._clock() < self._valid_until - self._times.margin_seconds

    def update(self, position: int, slot: Slot) -> None:
        """Note progress; it is saved by the next `save`."""
        posts = list(self.record.posts)
        posts[position] = slot
        self.record = msgspec.structs.replace(self.record, posts=tuple(posts))

    async def claim(self) -> None:
        """Make the record where there is none. Raises Conflict (somebody has one), RequestGone, LinkLost."""
        await self._write(self.record, CLAIM_EXPECTS, {})

    async def save(self, *, release: bool = False) -> None:
        """Write the progress down, and give the hold up where `release` says so.

        Raises LeaseLost when the record changed under us.
        """
        async with self._lock:
            record = msgspec.structs.replace(
                self.record,
                n=self.record.n + 1,
                owner="" if release else self._owner,
                lease_s=self._times.lease_s,
            )
            try:
                await self._write(record, {KEY: self.saved}, self.official(record))
            except Conflict as exc:
                self._valid_until = 0.0
                raise LeaseLost(self.request_id) from exc

    @asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        """Save each third of a lease while the body runs. A lost lease shows as `valid` false, not as an error."""
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
            with trio.move_on_after(self._times.renew_seconds):
                await over.wait()
                return
            try:
                await self.save()
            except SidecarError:
                # Whatever it is, the save at the end of the work meets it again.
                return

    async def _write(self, record: Record, expect: dict[str, str], official: dict[str, str]) -> None:
        """One compare-and-swap; an answer that was lost is decided by reading back."""
        text = encode(record)
        doubtful = False
        first = self._clock()
        while True:
            started = self._clock()
            try:
                await self._store.update_plugin_data(self.request_id, {KEY: text, **official}, expect)
            except LinkLost:
                doubtful = True
                await self._store.ready()
                if not await self._landed(text, expect):
                    continue
                started = first
            except Conflict:
                # What is in the way may be our own earlier write, carried out late.
                if not doubtful or not await self._landed(text, expect):
                    raise
                # Others may have seen it since then.
                started = first
            self.record = msgspec.structs.replace(self.record, n=record.n, owner=record.owner, lease_s=record.lease_s)
            self.saved = text
            self._valid_until = started + self._times.lease_s
            return

    async def _landed(self, text: str, expect: dict[str, str]) -> bool:
        """Whether the write that got no answer was carried out. Raises Conflict when something else was."""
        while True:
            try:
                found = await self._store.read_plugin_data(self.request_id)
            except LinkLost:
                await self._store.ready()
                continue
            if found.get(KEY, "") == text:
                return True
            if all(found.get(key, "") == value for key, value in expect.items()):
                return False
            raise Conflict(self.request_id)
