"""The store of the stand-in Auth Service: requests, who watches them, and time.

One rule: one lock for everything, and every write tells the watches before it lets go, so that events keep the order of
the writes. Every change also wakes `wait_for`.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from sidecar.model import AccessRequest
from sidecar.simulator.faults import Faults
from sidecar.simulator.teleport.codec import StoredRequest, encode_delete, encode_request
from sidecar.simulator.teleport.profile import Profile
from sidecar.simulator.teleport.reviews import is_poisoned
from sidecar.simulator.teleport.roles import REQUEST, invalid
from sidecar.simulator.teleport.watch import Ending, Fanout, Watcher
from sidecar.teleport.pb import teleport_pb2 as pb


class Store:
    """All requests by id. `changed` is the lock; hold it to read several things at one moment."""

    def __init__(self, version: str, *, watch_buffer: int | None = None) -> None:
        self.profile = Profile.of(version)
        self.faults = Faults()
        # Seconds for which a request stays as it was after its expiry, until its DELETE.
        self.expired_seconds = self.profile.expired_seconds
        # Seconds by which the DELETE of an expired request is late (DynamoDB: hours); reads hide it at once.
        self.delete_lag = 0.0
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        self._due = threading.Condition(lock)
        self._fanout = Fanout()
        self._watch_buffer = watch_buffer
        self._serial = 0
        self._requests: dict[str, StoredRequest] = {}
        self._encoded: dict[str, tuple[int, str, bytes]] = {}
        self._expiries: list[tuple[float, str]] = []
        self._cached: dict[str, StoredRequest] | None = None

    def live(self, request_id: str) -> StoredRequest | None:
        """Give the request unless it is gone or expired."""
        stored = self._requests.get(request_id)
        return None if stored is None or self._is_over(stored) else stored

    def scan(self, request_id: str = "", *, cached: bool = False) -> list[StoredRequest]:
        """Read one, or all by id as a backend's range does; `cached` is what a list without an id sees.

        Raises Refusal for a poisoned one before 16.
        """
        with self.changed:
            table = self._cached if cached and not request_id and self._cached is not None else self._requests
            names = [request_id] if request_id else sorted(table)
            found = [table[name] for name in names if name in table and not self._is_over(table[name])]
        sound = [stored for stored in found if not is_poisoned(stored.request)]
        if len(sound) < len(found) and not self.profile.skips_poison:
            raise invalid("pending requests cannot include resolve reason")
        return sound

    def encoded(self, stored: StoredRequest) -> bytes:
        """Encode for the wire, once for each write."""
        request_id = stored.request.id
        kept = self._encoded.get(request_id)
        if kept is None or kept[:2] != (stored.serial, self.profile.version):
            kept = (stored.serial, self.profile.version, encode_request(stored, self.profile).SerializeToString())
            self._encoded[request_id] = kept
        return kept[2]

    def store(self, stored: StoredRequest) -> StoredRequest:
        """Write a request, with a new serial, and tell the watches."""
        stored = replace(stored, serial=self.next_serial())
        request = stored.request
        self._requests[request.id] = stored
        if request.expires is not None:
            heapq.heappush(self._expiries, (request.expires, request.id))
            if self._expiries[0][1] == request.id:
                self._due.notify_all()
        if self._fanout.watchers:
            event = pb.Event(Type=pb.PUT, AccessRequest=pb.AccessRequestV3.FromString(self.encoded(stored)))
            self.publish(event.SerializeToString(), request.id, request)
        self.changed.notify_all()
        return stored

    def remove(self, request_id: str) -> None:
        """Delete a request and tell the watches its name."""
        del self._requests[request_id]
        self._encoded.pop(request_id, None)
        self.publish(encode_delete(request_id).SerializeToString(), request_id, None)
        self.changed.notify_all()

    def next_serial(self) -> int:
        """Count writes as Teleport 7 does: by nanoseconds, never twice the same."""
        self._serial = max(self._serial + 1, time.time_ns())
        return self._serial

    # Lists and watches

    def freeze_list_cache(self) -> None:
        """Let lists without an id show the state of now until `thaw_list_cache` (15 and newer; older read through)."""
        with self.changed:
            if self.profile.list_is_cached:
                self._cached = dict(self._requests)

    def thaw_list_cache(self) -> None:
        """Let lists be current again."""
        with self.changed:
            self._cached = None

    @contextmanager
    def watching(self, watcher: Watcher) -> Iterator[None]:
        """Let a watcher receive events for the time of the body."""
        with self.changed:
            self._fanout.watchers.append(watcher)
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self._fanout.watchers.remove(watcher)
                self.changed.notify_all()

    @property
    def watch_buffer(self) -> int:
        """How many events a watcher may be behind; the constructor's, else the version's."""
        return self._watch_buffer or self.profile.watch_buffer

    @property
    def watchers(self) -> int:
        """How many watches are open (INIT sent or about to be)."""
        with self.changed:
            return len(self._fanout.watchers)

    def close_watchers(self, how: Ending | None = None) -> int:
        """End every open watch, by default as this version does, and say how many there were."""
        with self.changed:
            return self._fanout.close(how or ("ok" if self.profile.watch_ends_ok else "closed"))

    def stall_watchers(self) -> int:
        """Let open watches stay open and receive nothing any more; new ones work. Says how many."""
        with self.changed:
            for watcher in self._fanout.watchers:
                watcher.stalled = True
            return len(self._fanout.watchers)

    def inject(self, event: bytes) -> None:
        """Send raw bytes as an event to every open watch, past all filters."""
        with self.changed:
            for watcher in self._fanout.watchers:
                watcher.force(self.faults.due(), event)

    # Time

    def wait_for(self, predicate: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until a predicate over this object holds; it is asked again at each change, under the lock.

        Raises:
            TimeoutError: it did not hold within so many seconds.

        """
        with self.changed:
            if not self.changed.wait_for(predicate, seconds):
                raise TimeoutError(f"not so within {seconds} s")

    def expire_until(self, stopped: Callable[[], bool]) -> None:
        """Delete requests as they expire; runs until `stopped`, which is asked after `wake_expiry`."""
        with self.changed:
            while not stopped():
                now = time.time()
                lag = max(self.delete_lag, self.expired_seconds)
                while self._expiries and self._expiries[0][0] + lag <= now:
                    _, request_id = heapq.heappop(self._expiries)
                    stored = self._requests.get(request_id)
                    if stored and self._is_over(stored):
                        self.remove(request_id)
                self._due.wait(self._expiries[0][0] + lag - now if self._expiries else None)

    def wake_expiry(self) -> None:
        """Let `expire_until` look at its stop."""
        with self.changed:
            self._due.notify_all()

    def publish(self, event: bytes, name: str, request: AccessRequest | None, kind: str = REQUEST) -> None:
        """Tell the watches that want it; the caller holds the lock."""
        overflow: Ending = "ok" if self.profile.watch_ends_ok else "overflow"
        self._fanout.publish(self.faults.due(), event, name, request, overflow, kind)

    def _is_over(self, stored: StoredRequest) -> bool:
        expires = stored.request.expires
        return expires is not None and expires + self.expired_seconds <= time.time()
