"""Whether it makes sense to turn to Mattermost now: its link decides, nothing else does.

While the link is down nothing is claimed, read or posted: requests are parked, and looked at again when it is back.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Gate:
    """Open while the link is up. `wake` takes a parked key when it opens, `wrote` counts writes. Starts closed."""

    def __init__(self, wake: Callable[[str], None], wrote: Callable[..., None]) -> None:
        self._wake = wake
        self._count = wrote
        self._open = False
        self._draining = False
        self._writers = 0
        self._parked: dict[str, None] = {}
        self._idle = trio.Event()
        self._suspicion = trio.Event()

    @property
    def open(self) -> bool:
        """Whether work that needs Mattermost may begin."""
        return self._open and not self._draining

    @property
    def parked(self) -> int:
        """How many requests wait for the link."""
        return len(self._parked)

    def park(self, key: str) -> None:
        """Look at this request again when the gate opens."""
        self._parked[key] = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Somebody holds a record meanwhile, which `drained` waits for."""
        self._writers += 1
        try:
            yield
        finally:
            self._writers -= 1
            if not self._writers:
                self._idle.set()

    def admit(self) -> None:
        """The link is up."""
        self._open = True
        parked, self._parked = self._parked, {}
        for key in parked:
            self._wake(key)

    def close(self) -> None:
        """The link is lost."""
        self._open = False

    def wrote(self, *, failed: bool) -> None:
        """A write has ended; one that failed by the link's fault raises a suspicion."""
        self._count(failed=failed)
        if failed:
            self.suspect()

    def suspect(self) -> None:
        """A call failed by Mattermost's fault: the link should be asked now whether it is still up."""
        self._suspicion.set()

    async def suspected(self) -> None:
        """Return when somebody has a suspicion, which is over by then."""
        await self._suspicion.wait()
        self._suspicion = trio.Event()

    async def drained(self) -> None:
        """Let nobody begin any more, until `reopen`; return when those who write have finished."""
        self._draining = True
        while self._writers:
            self._idle = trio.Event()
            await self._idle.wait()

    def reopen(self) -> None:
        """Work may begin again, once the link is up."""
        self._draining = False
        if self._open:
            self.admit()
