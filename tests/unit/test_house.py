"""House rules that a linter does not know."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter

from tests.tree import ROOT, modules

MODULES = modules()

# The places that may catch everything: the last line of the process, and the boundaries around one request's look, one
# link's attempt and one step of a sweep, so that what nobody foresaw takes neither the others nor the process down.
CATCH_ALL = {"sidecar.cli": 1, "sidecar.reconcile.controller": 1, "sidecar.intake.keep": 1, "sidecar.intake.sweep": 1}
# It runs its own thread, as a server of grpcio does.
BLOCKING_IS_FINE = "sidecar.simulator"

# Letters in brackets, so that this file does not find itself.
FORBIDDEN = re.compile(
    r"\b(TO[D]O|FIX[M]E|X[X]X|HA[C]K)\b|/w[o]rk/|/f[a]rm/|/t[m]p/|/ho[m]e/|/ro[o]t/"
    r"|\biss[u]e [#0-9]|\bthis se[s]sion\b|pypi\.o[r]g|python[h]osted"
)
TEXTS = (
    *(".py", ".pyi", ".proto", ".toml", ".md", ".yml", ".yaml", ".lock", ".sh", ".service"),
    *("Makefile", "Containerfile", "pre-commit"),
)
HANDLERS = [
    (name, node, {one.id for one in ast.walk(node.type) if isinstance(one, ast.Name)} if node.type else {""})
    for name, tree in MODULES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.ExceptHandler)
]


def calls(tree: ast.Module) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_nothing_catches_everything() -> None:
    broad = Counter(name for name, _, caught in HANDLERS if caught & {"", "Exception"})
    assert broad == Counter(CATCH_ALL)


def test_who_catches_a_cancellation_lets_it_go_on() -> None:
    for name, handler, caught in HANDLERS:
        if caught & {"BaseException", "Cancelled"}:
            assert any(isinstance(node, ast.Raise) for node in ast.walk(handler)), f"{name}, line {handler.lineno}"


def test_nothing_blocks_the_loop() -> None:
    blocking = {"time.sleep", "sleep", "input", "subprocess.run", "subprocess.check_output", "os.system"}
    assert not [name for name in MODULES if not name.startswith(BLOCKING_IS_FINE) and blocking & calls(MODULES[name])]


def test_tests_wait_for_events_not_for_time() -> None:
    assert not [name for name, tree in modules("tests").items() if "time.sleep" in calls(tree)]


def test_make_help_tells_of_every_target() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    told = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets is not None
    assert {line.split()[0] for line in told.splitlines()} == set(targets[1].split())


def test_the_texts_of_the_repository_speak_of_the_product_alone() -> None:
    files = [
        path
        for folder in ("sidecar", "tests", "integration", "compose", ".ci", ".github", "docs")
        for path in (ROOT / folder).rglob("*")
    ]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in [*files, *ROOT.iterdir()]
        if path.is_file() and path.name.endswith(TEXTS)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)
