"""One call for many who ask for one thing each at the same moment."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import trio

from sidecar.errors import LinkError, PostRejected

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST: Final = 100
_SECONDS: Final = 2.0


class _Group(Generic[T]):
    def __init__(self) -> None:
        self.keys: list[str] = []
        self.found: dict[str, T] | None = None
        self.done = trio.Event()


class Batch(Generic[T]):
    """Asks for what is wanted at one moment by `many`; for fewer than `least`, and where `many` fails, by `one`.

    `many` may leave things out: those are asked for by `one` where `complete` is false, and are None where it is true.
    """

    def __init__(
        self,
        one: Callable[[str], Awaitable[T | None]],
        many: Callable[[list[str]], Awaitable[dict[str, T]]],
        *,
        least: int,
        complete: bool,
    ) -> None:
        self._one = one
        self._many = many
        self._least = least
        self._complete = complete
        self._group: _Group[T] | None = None

    async def ask(self, key: str) -> T | None:
        """Return what there is under this key; None for nothing. Raises what `one` raises."""
        group = self._group
        if group is None or len(group.keys) == _MOST:
            self._group = group = _Group()
            group.keys.append(key)
            await self._lead(group)
        else:
            group.keys.append(key)
            await group.done.wait()
        if group.found is not None and (key in group.found or self._complete):
            return group.found.get(key)
        return await self._one(key)

    async def _lead(self, group: _Group[T]) -> None:
        """Call for all who join at once; one who is cancelled meanwhile leaves the others to ask for themselves."""
        try:
            # Those that one event wakes run in any order: the first round wakes them all, in the second all have asked.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            if self._group is group:
                self._group = None
            if len(group.keys) >= self._least:
                with trio.move_on_after(_SECONDS):
                    group.found = await self._many(group.keys)
        except (LinkError, PostRejected) as exc:
            log.debug("batch.failed", extra={"link": "mattermost", "detail": str(exc)})
        finally:
            if self._group is group:
                self._group = None
            group.done.set()
