"""The full list of requests, and of what was posted for them: what the watch did not tell."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import trio

from sidecar.errors import LinkError, LinkLost
from sidecar.once import Once
from sidecar.sliced import sliced

if TYPE_CHECKING:
    from sidecar.reconcile.followed import Followed
    from sidecar.teleport.client import AuthClient
    from sidecar.times import Times

log = logging.getLogger(__name__)

# How a call fails whose connection is gone.
UNREACHABLE = frozenset({"unavailable", "away"})


class Listing:
    """Lists at most so often; what a list shows as new is noted as unheard until the watch tells of it, too."""

    def __init__(self, followed: Followed, times: Times) -> None:
        self._followed = followed
        self._times = times
        self._listed_at = -math.inf
        self._records_at = -math.inf
        self._unheard: set[str] = set()
        self._once = Once()

    def heard(self, request_id: str) -> None:
        """The watch told of this request."""
        self._unheard.discard(request_id)

    async def take(self, client: AuthClient) -> None:
        """Look at every request that Teleport has."""
        await trio.sleep_until(max(self._listed_at + self._times.list_at_most_every, trio.current_time()))
        self._listed_at = trio.current_time()
        self._followed.begin_list()
        if self._listed_at - self._records_at >= self._times.records_every:
            await self._know_records(client)
        count = 0
        self._unheard = set()
        try:
            async with client.list_requests() as requests:
                async for request in requests:
                    count += 1
                    if self._followed.look(request):
                        self._unheard.add(request.id)
        except LinkError as exc:
            if exc.reason != "too_large":
                raise
            # The watch still tells what is new, and timers look at what is followed by id.
            if self._once.news("large"):
                log.warning("list.too_large", extra={"detail": exc.detail})
            return
        self._once.forget("large")
        if not self._followed.end_list(count) and self._once.news("empty"):
            # The server hides requests from a role without the verb `list` instead of saying so.
            log.warning(
                "list.empty",
                extra={"detail": 'Teleport lists no access request although some are open: does our role have the '
                       'verb "list" on "access_request"?'},
            )  # fmt: skip

    async def _know_records(self, client: AuthClient) -> None:
        try:
            async for data in sliced(await client.list_plugin_data()):
                self._followed.know(data)
        except LinkError as exc:
            if exc.reason in UNREACHABLE:
                raise
            # Requests that ended while nobody watched stay open in Mattermost; everything else works.
            log.warning("records.refused", extra={"detail": exc.detail})
        self._records_at = trio.current_time()

    async def expect_events(self) -> None:
        """What a list has shown as new, the watch must deliver too; one that does not has stopped silently."""
        await trio.sleep(self._times.silent)
        if missed := {request_id for request_id in self._unheard if request_id in self._followed}:
            raise LinkLost("teleport", "silent", f"the watch delivered nothing of {len(missed)} changed requests")
