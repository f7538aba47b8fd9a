"""Watches of the stand-in Auth Service: one bounded queue for each, and every way in which a watch ends.

Facts: lib/services/fanout.go (7, 12: queue of 64, "buffer overflow", "watcher closed"), fanoutv2.go (16, 18).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import grpc

from sidecar.model import AccessRequest
from sidecar.simulator.faults import CUT, Refusal
from sidecar.simulator.teleport.roles import REQUEST

Ending = Literal["closed", "overflow", "ok", "unavailable"]

_ENDINGS: dict[Ending, Refusal | None] = {
    "closed": Refusal(grpc.StatusCode.UNKNOWN, "watcher closed"),
    "overflow": Refusal(grpc.StatusCode.INVALID_ARGUMENT, "buffer overflow"),
    "ok": None,
    "unavailable": Refusal(grpc.StatusCode.UNAVAILABLE, CUT),
}


@dataclass(frozen=True)
class Interest:
    """What a watcher asked for: exact name, and filters that only PUTs obey."""

    name: str = ""
    id: str = ""
    user: str = ""
    state: str = ""
    kind: str = REQUEST

    def wants(self, name: str, request: AccessRequest | None) -> bool:
        """Judge a PUT (with its request) or a DELETE (without)."""
        if self.name and self.name != name:
            return False
        if request is None:
            return True
        wanted = ((self.id, request.id), (self.user, request.user), (self.state, request.state))
        return all(not asked or asked == is_ for asked, is_ in wanted)


class Watcher:
    """One open watch. Iterating yields encoded events until the watch ends; raises Refusal unless it ends cleanly."""

    def __init__(self, user: str, interests: tuple[Interest, ...], capacity: int) -> None:
        self.user = user
        self.stalled = False
        self._interests = interests
        self._capacity = capacity
        self._queue: deque[tuple[float, bytes]] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._ending: Refusal | None = None

    def offer(self, due: float, event: bytes, name: str, request: AccessRequest | None, kind: str = REQUEST) -> bool:
        """Queue an event that reaches the client at `due`; False when the queue is full."""
        if self.stalled or not any(
            interest.kind == kind and interest.wants(name, request) for interest in self._interests
        ):
            return True
        return self.force(due, event)

    def force(self, due: float, event: bytes) -> bool:
        """Queue any bytes, past all filters; False when the queue is full."""
        with self._changed:
            if len(self._queue) >= self._capacity:
                return False
            self._queue.append((due, event))
            self._changed.notify()
        return True

    def end(self, how: Ending) -> None:
        """End the watch; what is still queued is lost, as on a real server."""
        with self._changed:
            if not self._ended:
                self._ended, self._ending = True, _ENDINGS[how]
                self._changed.notify()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._queue)
                if self._ended:
                    break
                due, event = self._queue.popleft()
                self._changed.wait_for(lambda: self._ended, max(0.0, due - time.monotonic()))
            yield event
        if self._ending is not None:
            raise self._ending


class Fanout:
    """All open watches. Its caller holds the backend's lock, so that events keep the order of the writes."""

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []

    def publish(
        self, due: float, event: bytes, name: str, request: AccessRequest | None, overflow: Ending, kind: str
    ) -> None:
        """Give an event to everyone who wants it; who is too far behind loses the watch."""
        for watcher in self.watchers:
            if not watcher.offer(due, event, name, request, kind):
                watcher.end(overflow)

    def close(self, how: Ending) -> int:
        """End every watch; says how many."""
        if how not in get_args(Ending):
            raise ValueError(f"no such ending: {how}")
        for watcher in self.watchers:
            watcher.end(how)
        return len(self.watchers)
