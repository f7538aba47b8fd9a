"""House rules that a linter does not know."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

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
    ".py",
    ".pyi",
    ".proto",
    ".toml",
    ".md",
    ".yml",
    ".yaml",
    ".lock",
    ".sh",
    ".service",
    "Makefile",
    "Containerfile",
)


def handlers(tree: ast.Module) -> list[tuple[ast.ExceptHandler, set[str]]]:
    """Return every `except` with the names it catches; "" for a bare one."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            names = ast.walk(node.type) if node.type else ()
            found.append((node, {name.id for name in names if isinstance(name, ast.Name)} or {""}))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_nothing_catches_everything(name: str) -> None:
    broad = [handler for handler, names in handlers(MODULES[name]) if names & {"", "Exception"}]
    assert len(broad) <= CATCH_ALL.get(name, 0), f"line {', '.join(str(handler.lineno) for handler in broad)}"


@pytest.mark.parametrize("name", MODULES)
def test_who_catches_a_cancellation_lets_it_go_on(name: str) -> None:
    for handler, names in handlers(MODULES[name]):
        if names & {"BaseException", "Cancelled"}:
            assert any(isinstance(node, ast.Raise) for node in ast.walk(handler)), f"line {handler.lineno}"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith(BLOCKING_IS_FINE)])
def test_nothing_blocks_the_loop(name: str) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)}
    assert not calls & {"time.sleep", "sleep", "input", "subprocess.run", "subprocess.check_output", "os.system"}


@pytest.mark.parametrize("name", modules("tests"))
def test_tests_wait_for_events_not_for_time(name: str) -> None:
    calls = [node for node in ast.walk(modules("tests")[name]) if isinstance(node, ast.Call)]
    assert not [node.lineno for node in calls if ast.unparse(node.func) == "time.sleep"]


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
