"""Remembering a bounded number of things, and saying each thing once.

Rule: the oldest entry makes room, so that nobody outside can make memory grow by talking.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

MOST = 1000


class Bounded(OrderedDict[K, V]):
    """A dictionary of at most `most` keys; setting a key makes it the newest, and the oldest is dropped."""

    def __init__(self, most: int = MOST) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)


class Once:
    """Whether there is news about a subject: a state other than the one last told, or the same after `every` seconds.

    It keeps no clock: where `every` counts, the caller passes `now`.
    """

    def __init__(self, most: int = MOST, *, every: float = math.inf) -> None:
        self._every = every
        self._told: Bounded[Hashable, tuple[object, float]] = Bounded(most)

    def news(self, subject: Hashable = None, state: object = None, *, now: float = 0.0) -> bool:
        """Return whether this is to be said now, and take it as said."""
        due = self.due(subject, state, now=now)
        if due:
            self._told[subject] = (state, now)
        return due

    def due(self, subject: Hashable = None, state: object = None, *, now: float = 0.0) -> bool:
        """Return whether this would be news."""
        told = self._told.get(subject)
        return told is None or told[0] != state or now - told[1] >= self._every

    def forget(self, subject: Hashable = None) -> bool:
        """The matter has ended: the next time is news again. Return whether anything had been said of it."""
        return self._told.pop(subject, None) is not None

    def clear(self) -> None:
        """Forget every subject."""
        self._told.clear()
