"""Who may import whom: folders, one way down. A folder without a row has no place in the house yet."""

from __future__ import annotations

import ast
import graphlib

from tests.tree import imported, modules, room_of, when_loaded

GROUND = "model errors times once sliced files log metrics"
PURE = "decisions text"

# A folder or a module of the top level -> what it may import beside itself.
ALLOWED = {
    "errors times once sliced log metrics rbac model notify": "",
    "files": "errors",
    "text": "model",
    "config teleport mattermost endpoints": GROUND,
    "decisions": "text config model errors times",
    "reconcile": f"{PURE} config {GROUND}",
    "intake": f"reconcile {PURE} config teleport mattermost {GROUND}",
    "check": f"{PURE} reconcile config teleport mattermost {GROUND}",
    "app assembly": f"assembly notify intake reconcile {PURE} config teleport mattermost endpoints {GROUND}",
    "cli health": f"health app check config notify rbac simulator {GROUND}",
    "__main__": "cli",
    # The demo starts the sidecar itself beside the stand-ins.
    "simulator": "model teleport.pb",
    "simulator.demo": "app check cli config errors log model",
}

# A library -> the only rooms that speak it, so that replacing it is a change to them alone.
SPEAKERS = {
    "grpc": "teleport.bridge simulator",
    "google": "teleport simulator",
    "httpx": "mattermost.client mattermost.transport",
    "httpcore": "",
    "trio_websocket": "mattermost.events",
    "wsproto": "mattermost.events simulator",
    "h11": "endpoints mattermost.transport mattermost.events simulator",
    "prometheus_client": "metrics",
    # The log: a reader that does not read holds up whoever writes to it, and that must not be the loop.
    "threading": "teleport.bridge log simulator",
    "argparse": "cli simulator",
    "cryptography": "simulator",
    "asyncio": "",
    "requests": "",
}

NOT_PURE = {"trio", "time", "logging", "os", "socket", "threading", "random"}

MODULES = modules()
NAMES = [name for name in MODULES if name != "sidecar"]
IMPORTED = {name: set(imported(MODULES[name])) for name in NAMES}
LIBRARIES = {name: {one.partition(".")[0] for one in IMPORTED[name]} for name in NAMES}


def short(name: str) -> str:
    return name.removeprefix("sidecar.")


def within(name: str, rooms: str) -> bool:
    """Say whether a module is one of the rooms or lies in one of the folders."""
    return any(name == room or name.startswith(f"{room}.") for room in rooms.split())


def row(name: str) -> str | None:
    """Return what a module may import by the most exact row, its own folder among it."""
    rows = [(room, allowed) for rooms, allowed in ALLOWED.items() for room in rooms.split() if within(name, room)]
    found = max(rows, key=lambda one: len(one[0]), default=None)
    return None if found is None else f"{found[1]} {name.partition('.')[0]}"


def test_a_room_imports_what_its_row_allows() -> None:
    missing = [name for name in NAMES if row(short(name)) is None]
    assert not missing, "a room without a row: decide who may import what, and write it down"
    wrong = [
        f"{name} imports {one}"
        for name in NAMES
        for one in {room_of(one, MODULES) for one in IMPORTED[name] if one.partition(".")[0] == "sidecar"}
        if one != "sidecar" and not within(short(one), row(short(name)) or "")
    ]
    assert not wrong


def test_imports_are_absolute() -> None:
    assert not [name for name in NAMES if "." in IMPORTED[name]]


def test_a_library_is_spoken_in_its_own_room() -> None:
    wrong = [
        f"{name} imports {library}"
        for name in NAMES
        for library in LIBRARIES[name] & SPEAKERS.keys()
        if not within(short(name), SPEAKERS[library])
    ]
    assert not wrong


def test_a_decision_needs_no_clock_and_no_loop() -> None:
    pure = [name for name in NAMES if within(short(name), PURE)]
    assert not [name for name in pure if NOT_PURE & LIBRARIES[name]]
    waits = (ast.AsyncFunctionDef, ast.Await)
    assert not [name for name in pure if any(isinstance(node, waits) for node in ast.walk(MODULES[name]))]


def test_there_are_no_cycles() -> None:
    """Imports inside of functions and for type checking do not count: they are not run at import."""
    graph = {
        name: {room_of(one, MODULES) for one in imported(when_loaded(tree)) if one.startswith("sidecar.")} - {name}
        for name, tree in MODULES.items()
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())
