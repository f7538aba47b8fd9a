"""What workers ask of Teleport and write there, over the connection that the link holds at that moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sidecar.decisions.record import KEY
from sidecar.errors import Conflict, LinkLost, LinkRefused, RequestGone

if TYPE_CHECKING:
    from sidecar.intake.keep import LinkStatus
    from sidecar.model import AccessRequest, Ping
    from sidecar.teleport.client import AuthClient

# No request has this id.
NOBODY = "00000000-0000-0000-0000-000000000000"


class Store:
    """Its calls fail with LinkLost while there is no connection. `info` is the last Ping's answer."""

    def __init__(self, status: LinkStatus) -> None:
        self._status = status
        self._client: AuthClient | None = None
        self._connected = trio.Event()
        self.info: Ping | None = None
        # Whether our role may write records, as far as the last write told.
        self.writable = True

    def open(self, client: AuthClient, info: Ping) -> None:
        """Use this connection from now on."""
        self.info = info
        self._client = client
        self.writable = True
        self._connected.set()

    def close(self) -> None:
        """There is no connection any more."""
        self._client = None
        self._connected = trio.Event()

    async def ready(self) -> None:
        """Return when there is a connection to try; never at once after a failure on it."""
        await trio.sleep(0.1)
        await self._connected.wait()

    async def get_request(self, request_id: str) -> AccessRequest | None:
        return await self._current().get_request(request_id)

    async def read_plugin_data(self, request_id: str) -> dict[str, str]:
        return await self._current().read_plugin_data(request_id)

    async def update_plugin_data(self, request_id: str, put: dict[str, str], expect: dict[str, str]) -> None:
        client = self._current()
        try:
            with self._status.writing():
                await client.update_plugin_data(request_id, put, expect)
        except LinkRefused as exc:
            # The watch works all the same, but without a record nothing can be told once.
            self.writable = False
            self._status.failed(exc)
            raise
        if not self.writable:
            self.writable = True
            if self._status.state == "refused":
                self._status.ready()

    async def ask_to_write(self) -> None:
        """A write that changes nothing, and is refused for as long as our role may not write."""
        try:
            await self._current().update_plugin_data(NOBODY, {KEY: "-"}, {KEY: "-"})
        except LinkRefused:
            return
        except (Conflict, RequestGone):
            pass
        self.writable = True

    async def submit_review(
        self, request_id: str, author: str, proposed_state: str, reason: str, *, on_behalf_by: str = ""
    ) -> AccessRequest:
        client = self._current()
        with self._status.writing():
            return await client.submit_review(request_id, author, proposed_state, reason, on_behalf_by=on_behalf_by)

    async def set_state(self, request_id: str, state: str, reason: str, delegator: str) -> None:
        client = self._current()
        with self._status.writing():
            await client.set_state(request_id, state, reason, delegator)

    def _current(self) -> AuthClient:
        if self._client is None:
            raise LinkLost("teleport", "away", "there is no connection to the Auth Service")
        return self._client
