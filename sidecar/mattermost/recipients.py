"""Recipient names -> destinations: `team/channel`, `~channel`, `@username`, an email address, a channel id.

A name that cannot be reached is remembered too, but for a short time: somebody is just inviting the bot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
import trio

from sidecar.errors import LinkError, LinkLost, PostRejected, RecipientError
from sidecar.mattermost.api import MattermostClient
from sidecar.mattermost.lookup import Lookup
from sidecar.model import Destination

_KNOWN_SECONDS: Final = 600.0
# For one name, whatever becomes of the others.
_LOOK_UP_SECONDS: Final = 5.0
# Requesters name suggested reviewers, so what we remember of names has a bound.
_MAX_NAMES: Final = 10_000


class _Found(msgspec.Struct):
    until: float
    destination: Destination | None = None
    reason: str = ""
    detail: str = ""


class _Flight:
    """One look-up under way, for all who ask for that name meanwhile."""

    def __init__(self) -> None:
        self.landed = trio.Event()
        self.error: LinkError | None = None


class Recipients:
    """Resolves names by REST and remembers the answers."""

    def __init__(self, client: MattermostClient, *, unknown_seconds: float = 30.0) -> None:
        self._unknown_seconds = unknown_seconds
        self._lookup = Lookup(client)
        self._found: dict[str, _Found] = {}
        self._flights: dict[str, _Flight] = {}

    async def resolve(self, name: str) -> Destination:
        """Return where posts for this name go.

        Raises RecipientError with reason invalid, not_found, not_member, archived, deactivated, forbidden or ambiguous,
        and LinkError where Mattermost cannot be asked, or does not answer about this name within 5 s.
        """
        key = _key(name)
        while True:
            found = self._found.get(key)
            if found is not None and trio.current_time() < found.until:
                return _answer(found)
            flight = self._flights.get(key)
            if flight is None:
                await self._fly(key)
                continue
            await flight.landed.wait()
            if flight.error is not None:
                # Not one try more for each who waited. One instance for each: a traceback belongs to one task.
                raise type(flight.error)(flight.error.link, flight.error.reason, flight.error.detail)

    def forget(self, name: str) -> None:
        """Ask again the next time: a post to this name was refused."""
        self._found.pop(_key(name), None)

    async def refresh(self, names: Iterable[str]) -> None:
        """Look at the people and channels that these names led to, all at once; what is not well is asked for again.

        Raises LinkError and PostRejected.
        """
        known = {key: found.destination for key in map(_key, names) if (found := self._found.get(key)) is not None}
        people = {to.user_id for to in known.values() if to is not None and to.user_id}
        well = await self._lookup.well(people)
        for key, to in known.items():
            if to is not None and (to.user_id or to.channel_id) not in well:
                self._found.pop(key, None)

    def clear(self) -> None:
        """Forget everything: the token may be another bot's."""
        self._found.clear()

    async def _fly(self, key: str) -> None:
        flight = self._flights[key] = _Flight()
        try:
            self._remember(key, await self._look_up(key))
        except LinkError as exc:
            flight.error = exc
            raise
        finally:
            del self._flights[key]
            flight.landed.set()

    def _remember(self, key: str, found: _Found) -> None:
        self._found.pop(key, None)
        while len(self._found) >= _MAX_NAMES:
            del self._found[next(iter(self._found))]
        self._found[key] = found

    async def _look_up(self, key: str) -> _Found:
        with trio.move_on_after(_LOOK_UP_SECONDS):
            return await self._find(key)
        raise LinkLost("mattermost", "timeout", f"{key}: the look-up was not answered within {_LOOK_UP_SECONDS:g} s")

    async def _find(self, key: str) -> _Found:
        try:
            destination = await self._lookup.find(key)
        except RecipientError as exc:
            return _Found(trio.current_time() + self._unknown_seconds, None, exc.reason, exc.detail)
        except PostRejected as exc:
            detail = f"{key}: Mattermost answered {exc.status} {exc.error_id}".rstrip()
            reason = "forbidden" if exc.status == 403 else "invalid"
            return _Found(trio.current_time() + self._unknown_seconds, None, reason, detail)
        return _Found(trio.current_time() + _KNOWN_SECONDS, destination)


def _key(name: str) -> str:
    return " ".join(name.split()).lower()


def _answer(found: _Found) -> Destination:
    if found.destination is None:
        raise RecipientError(found.reason, found.detail)
    return found.destination
