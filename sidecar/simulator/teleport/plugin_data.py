"""Plugin data: a flat map for each plugin and request, changed by compare-and-swap.

Facts: lib/services/local/plugin_data.go (16), dynamic_access.go (7). The caller holds the backend's lock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import grpc

from sidecar.model import AccessRequest
from sidecar.simulator.faults import Refusal
from sidecar.simulator.teleport.codec import StoredPluginData
from sidecar.simulator.teleport.roles import invalid

SIZE_LIMIT = 1_000_000
# It outlives the access by an hour; fixed by the first write.
EXTRA_SECONDS = 3600.0


class PluginDataStore:
    """All plugin data by request id."""

    def __init__(self, unknown: str) -> None:
        """`unknown` are the words for a request that is not there."""
        self._unknown = unknown
        self._objects: dict[str, StoredPluginData] = {}

    def find(self, now: float, request_id: str = "", plugin: str = "") -> list[StoredPluginData]:
        """Give what is alive, by id order; `plugin` selects objects that hold its entry, with everybody's entries."""
        names = [request_id] if request_id else sorted(self._objects)
        held = [self._objects[name] for name in names if name in self._objects]
        return [each for each in held if each.expires > now and (not plugin or plugin in each.entries)]

    def update(
        self,
        now: float,
        serial: int,
        request_id: str,
        request: AccessRequest | None,
        plugin: str,
        changes: tuple[Mapping[str, str], Mapping[str, str]],
    ) -> None:
        """Apply `(set, expect)`; "" deletes or expects absence. `request` is needed for the first write only.

        Raises:
            Refusal: the request is unknown, an expectation is not met, or the object grows too large.

        """
        new, expect = changes
        stored = next(iter(self.find(now, request_id)), None)
        if stored is None:
            stored = self._first(request_id, request)
        data = dict(stored.entries.get(plugin, {}))
        for key, value in expect.items():
            if data.get(key, "") != value:
                details = f'expectations not met for field "{key}"'
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, details)
        data.update(new)
        data = {key: value for key, value in data.items() if value}
        entries = {**stored.entries, plugin: data} if data else _without(stored.entries, plugin)
        if _size(entries) > SIZE_LIMIT:
            raise invalid("plugin data size limit exceeded")
        self._objects[request_id] = StoredPluginData(request_id, entries, stored.expires, serial)

    def _first(self, request_id: str, request: AccessRequest | None) -> StoredPluginData:
        if request is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, self._unknown.format(request_id))
        return StoredPluginData(request_id, {}, (request.access_until or 0.0) + EXTRA_SECONDS, 0)


def _without(entries: Mapping[str, Mapping[str, str]], plugin: str) -> dict[str, Mapping[str, str]]:
    return {name: data for name, data in entries.items() if name != plugin}


def _size(entries: Mapping[str, Mapping[str, str]]) -> int:
    """Size of the object's JSON, near enough; exact work only where the limit is in sight."""
    rough = sum(len(key) + len(value) for data in entries.values() for key, value in data.items())
    if rough * 6 < SIZE_LIMIT:
        return rough
    text = json.dumps({name: {"data": data} for name, data in entries.items()}, ensure_ascii=False)
    # Go's encoder escapes these three
    return len(text.encode("utf-8", "replace")) + 5 * sum(text.count(sign) for sign in "<>&")
