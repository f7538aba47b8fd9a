"""Long work in the loop, cut into slices so that everybody else has a turn in between."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from typing import TypeVar

import trio

T = TypeVar("T")

SLICE_SECONDS = 0.01


async def sliced(items: Iterable[T]) -> AsyncGenerator[T, None]:
    """Give the items; others run whenever making and using them has taken a slice."""
    began = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - began > SLICE_SECONDS:
            await trio.lowlevel.checkpoint()
            began = time.perf_counter()
