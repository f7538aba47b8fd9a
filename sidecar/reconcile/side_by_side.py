"""Run jobs at once, and end when all have ended: one job's failure never cuts another's work."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from sidecar.errors import SidecarError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")


async def outcomes(jobs: Sequence[Callable[[], Awaitable[T]]]) -> list[T | SidecarError]:
    """What each job returned, or the error of ours that it raised, in order."""
    if not jobs:
        return []
    results: dict[int, T | SidecarError] = {}

    async def run(number: int, job: Callable[[], Awaitable[T]]) -> None:
        try:
            results[number] = await job()
        except SidecarError as exc:
            results[number] = exc

    if len(jobs) == 1:
        await run(0, jobs[0])
    else:
        async with trio.open_nursery() as nursery:
            for number, job in enumerate(jobs):
                nursery.start_soon(run, number, job, name="reconcile.job")
    return [results[number] for number in range(len(jobs))]


async def gather(jobs: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """What each job returned, in order. The first failure is raised when all have ended."""
    found: list[T] = []
    for result in await outcomes(jobs):
        if isinstance(result, SidecarError):
            raise result
        found.append(result)
    return found
