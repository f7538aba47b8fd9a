"""Faults on demand: the next requests that match are failed, cut, hung or answered late; and the rate limiter."""

from __future__ import annotations

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Literal, TypedDict, Unpack

import msgspec

from sidecar.simulator.mattermost.http import Answer, Request

When = Literal["before", "after"]
Kind = Literal["fail", "cut", "hang", "late"]


def proxy_answer(status: int) -> Answer:
    """What a reverse proxy answers when Mattermost is away: HTML."""
    page = f"<html>\r\n<head><title>{status}</title></head>\r\n<body>nginx</body>\r\n</html>\r\n"
    return Answer(status, page)


class Match(TypedDict, total=False):
    """Which requests a fault strikes.

    `path`: a full path, a glob ("/api/v4/posts*") or a route template ("/api/v4/posts/{post_id}/patch").
    `times`: how often (1; None: until `stop`). `skip`: so many matching ones pass first. `where`: asks the request.
    """

    method: str
    path: str
    times: int | None
    skip: int
    where: Callable[[Request], bool]


class Fault(msgspec.Struct, kw_only=True):
    """One rule in force; `hits` is how often it struck."""

    kind: Kind
    match: Match
    when: When = "before"
    seconds: float = 0.0
    answer: Answer | None = None
    hits: int = 0
    left: int | None = 1
    skip: int = 0

    def stop(self) -> None:
        self.left = 0

    def strikes(self, request: Request) -> bool:
        """Whether this request is struck; counts it if so."""
        if self.left == 0 or not self._matches(request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits += 1
        if self.left is not None:
            self.left -= 1
        return True

    def _matches(self, request: Request) -> bool:
        path = self.match.get("path", "*")
        return (
            self.match.get("method", request.method) == request.method
            and (path == request.template or fnmatchcase(request.path, path))
            and ("where" not in self.match or self.match["where"](request))
        )


class Faults:
    """The rules in force; of those that match a request the one made first strikes."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def fault_for(self, request: Request) -> Fault | None:
        for fault in self._faults:
            if fault.strikes(request):
                return fault
        return None

    def fail(self, *, answer: Answer | None = None, **match: Unpack[Match]) -> Fault:
        """Answer so instead of carrying the request out; without `answer` the HTML 502 of a proxy."""
        return self._add(Fault(kind="fail", match=match, answer=answer or proxy_answer(502)))

    def cut(self, *, when: When = "before", **match: Unpack[Match]) -> Fault:
        """Close the connection without an answer, before or after the request was carried out."""
        return self._add(Fault(kind="cut", match=match, when=when))

    def hang(self, *, when: When = "before", **match: Unpack[Match]) -> Fault:
        """Never answer, before or after the request was carried out; ends when the client goes away."""
        return self._add(Fault(kind="hang", match=match, when=when))

    def late(self, seconds: float, *, when: When = "after", **match: Unpack[Match]) -> Fault:
        """Wait before or after the request is carried out; it is carried out even if the client has gone by then."""
        return self._add(Fault(kind="late", match=match, when=when, seconds=seconds))

    def clear_faults(self) -> None:
        for fault in self._faults:
            fault.stop()
        self._faults.clear()

    def _add(self, fault: Fault) -> Fault:
        path = fault.match.get("path", "*")
        if path[:1] not in ("/", "*"):
            raise ValueError(f"{path!r} can match nothing: a path starts with a slash")
        fault.left = fault.match.get("times", 1)
        fault.skip = fault.match.get("skip", 0)
        self._faults = [old for old in self._faults if old.left != 0]
        self._faults.append(fault)
        return fault


class RateLimiter:
    """The bucket of Mattermost's limiter (GCRA, github.com/throttled): `burst` + 1 at once, then `per_second`."""

    def __init__(self, per_second: float, burst: int, *, vary_by_user: bool = False) -> None:
        self.step = 1 / per_second
        self.limit = burst + 1
        self.vary_by_user = vary_by_user
        self._arrival: dict[str, float] = {}

    def take(self, key: str, now: float) -> tuple[bool, tuple[tuple[str, str], ...]]:
        """Whether a request of `key` may pass at `now`, and the headers that say so (doubled when varying by user)."""
        window = self.step * self.limit
        ahead = max(self._arrival.get(key, 0.0) - now, 0.0)
        wait = ahead + self.step - window
        if wait > 1e-9:  # a hair of rounding is no reason to refuse
            return False, (("Retry-After", _up(wait)), *self._headers(0, ahead))
        ahead += self.step
        self._arrival[key] = now + ahead
        headers = self._headers(int((window - ahead) / self.step + 1e-9), ahead)
        return True, headers * 2 if self.vary_by_user else headers

    def _headers(self, left: int, reset: float) -> tuple[tuple[str, str], ...]:
        return (
            ("X-RateLimit-Limit", str(self.limit)),
            ("X-RateLimit-Remaining", str(left)),
            ("X-RateLimit-Reset", _up(reset)),
        )


def _up(seconds: float) -> str:
    return str(max(1, math.ceil(seconds)))
