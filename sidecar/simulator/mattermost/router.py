"""From a method and a path to a route: a tree of path segments, where a literal beats a brace."""

from __future__ import annotations

from typing import Any

from sidecar.simulator.mattermost.http import Request


class Router:
    def __init__(self, routes: list[tuple[str, str, Any]]) -> None:
        self._roots: dict[str, dict[str, Any]] = {}
        for method, template, handler in routes:
            node = self._roots.setdefault(method, {})
            for part in template.strip("/").split("/"):
                node = node.setdefault("{}" if part.startswith("{") else part, {})
            node["//"] = (template, handler)

    def find(self, request: Request) -> Any:  # noqa: ANN401 - whatever was registered
        """The handler, or None; fills in `request.template` and `request.args`."""
        found = _walk(self._roots.get(request.method, {}), request.segments(), ())
        if found is None:
            return None
        request.template, handler, request.args = found
        return handler


def _walk(node: dict[str, Any], parts: list[str], args: tuple[str, ...]) -> tuple[str, Any, tuple[str, ...]] | None:
    if not parts:
        return (*node["//"], args) if "//" in node else None
    head, rest = parts[0], parts[1:]
    if head in node and (found := _walk(node[head], rest, args)):
        return found
    return _walk(node["{}"], rest, (*args, head)) if "{}" in node else None
