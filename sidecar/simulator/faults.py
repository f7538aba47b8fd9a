"""What may go wrong in the stand-in Auth Service, on demand.

One rule: a fault acts on calls that arrive after it was ordered. Everything that waits ends with the call (the client
gave up), with `release`, or with the server.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import grpc

# What grpcio says when the server's process dies or the connection is cut (seen on 7.0.0-dev).
CUT = "Stream removed (Socket closed)"


class Refusal(Exception):
    """A call ends with this gRPC status; raised by the in-process methods too."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code
        self.details = details


@dataclass(frozen=True)
class Fault:
    """One order for one call: wait, then refuse, before or after it was carried out; or answer other bytes."""

    executed: bool = False
    seconds: float = 0.0
    refusal: Refusal | None = None
    answer: bytes | list[bytes] | None = None


class Waiting:
    """One call that can be woken: by its end, by the server's end, or by `Faults.release`.

    `on_end` registers a callback for the end of the call and says False when it is over already (grpc's add_callback).
    """

    def __init__(self, on_end: Callable[[Callable[[], None]], bool]) -> None:
        self._on_end = on_end
        self._woken = threading.Condition()
        self._registered = False
        self.ended = False

    def end(self) -> None:
        """Wake it for good."""
        with self._woken:
            self.ended = True
            self._woken.notify_all()

    def look_again(self) -> None:
        """Wake it to see whether it may go on."""
        with self._woken:
            self._woken.notify_all()

    def wait_until(self, done: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for a condition or some seconds; raises Refusal when the call ended meanwhile."""
        if not self._registered:
            self._registered = True
            if not self._on_end(self.end):
                self.ended = True
        with self._woken:
            self._woken.wait_for(lambda: self.ended or done(), seconds)
            if self.ended:
                raise Refusal(grpc.StatusCode.UNAVAILABLE, CUT)


class Faults:
    """The orders that stand. Method names are bare ("UpdatePluginData"); `latency` is a round trip, in seconds."""

    def __init__(self) -> None:
        self.latency = 0.0
        self._lock = threading.Lock()
        self._orders: dict[str, deque[Fault]] = defaultdict(deque)
        self._hung: set[str] = set()
        self._calls: set[Waiting] = set()

    def fail(self, method: str, code: grpc.StatusCode, details: str = "", *, times: int = 1) -> None:
        """Refuse the next calls without carrying them out."""
        self._order(method, Fault(refusal=Refusal(code, details)), times)

    def lose_answer(self, method: str, *, times: int = 1) -> None:
        """Carry the next calls out, then cut them: the client cannot know."""
        self._order(method, Fault(executed=True, refusal=Refusal(grpc.StatusCode.UNAVAILABLE, CUT)), times)

    def delay(self, method: str, seconds: float, *, times: int = 1, executed: bool = False) -> None:
        """Let the next calls wait, before they are carried out or (`executed`) before they are answered."""
        self._order(method, Fault(executed=executed, seconds=seconds), times)

    def garble(self, method: str, answer: bytes | list[bytes], *, times: int = 1) -> None:
        """Carry the next calls out and answer these bytes (a list for GetAccessRequestsV2: its messages)."""
        self._order(method, Fault(answer=answer), times)

    def hang(self, *methods: str) -> None:
        """Answer these methods no more; without names nothing at all, events of open watches included."""
        with self._lock:
            self._hung.update(methods or {"*"})

    def release(self) -> None:
        """End every hang; waiting calls go on."""
        with self._lock:
            self._hung.clear()
            calls = list(self._calls)
        for call in calls:
            call.look_again()

    def clear(self) -> None:
        """Forget all orders, the latency included."""
        with self._lock:
            self._orders.clear()
            self.latency = 0.0
        self.release()

    # What the server asks.

    def enter(self, on_end: Callable[[Callable[[], None]], bool]) -> Waiting:
        """Begin a call."""
        call = Waiting(on_end)
        with self._lock:
            self._calls.add(call)
        return call

    def leave(self, call: Waiting) -> None:
        """End a call."""
        with self._lock:
            self._calls.discard(call)

    def end_calls(self) -> None:
        """Wake everything that waits: the server stops."""
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.end()

    def take(self, method: str) -> Fault:
        """Take the order for a call that just arrived."""
        with self._lock:
            orders = self._orders.get(method)
            return orders.popleft() if orders else Fault()

    def apply(self, method: str, call: Waiting, fault: Fault, *, executed: bool) -> None:
        """Stand on one side of carrying the call out: hang, half the latency, the order where it is for this side."""
        self.pause(call, method)
        ordered = fault.executed is executed
        pause = self.latency / 2 + (fault.seconds if ordered else 0.0)
        if pause:
            call.wait_until(lambda: False, pause)
        if ordered and fault.refusal is not None:
            raise fault.refusal

    def pause(self, call: Waiting, method: str = "*") -> None:
        """Wait while this method, or everything, hangs."""
        if self._hung:
            call.wait_until(lambda: self._hung.isdisjoint({"*", method}))

    def due(self) -> float:
        """When an event that happens now reaches the client, on the monotonic clock."""
        return time.monotonic() + self.latency / 2

    def _order(self, method: str, fault: Fault, times: int) -> None:
        with self._lock:
            self._orders[method].extend([fault] * times)
