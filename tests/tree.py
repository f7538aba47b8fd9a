"""The source as syntax trees, for the tests that keep the house in order."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


@functools.cache
def modules(folder: str = "sidecar") -> dict[str, ast.Module]:
    """Return dotted name to tree of every module below a folder, generated ones excepted."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text())
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.name.endswith("_pb2.py")
    }


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the absolute names of everything imported anywhere below a node; "." for a relative import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ("." if node.level else f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str, known: dict[str, ast.Module]) -> str:
    """Return the module that an imported name stands for: sidecar.errors for sidecar.errors.LinkLost."""
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name


def when_loaded(tree: ast.Module) -> ast.Module:
    """Return the statements that run when the module is imported: no function bodies, no TYPE_CHECKING blocks."""
    kept = ast.parse("")
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        kept.body.append(statement)
    return kept
