"""Read YAML files. The parser comes with the linters, under one of two names: the second on Python 3.13."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from tests.tree import ROOT


def load_all(path: str) -> list[Any]:
    """Every document of a file, named from the repository's root."""
    return parse_all((ROOT / path).read_text(encoding="utf-8"))


def parse_all(text: str) -> list[Any]:
    """Every document of a text."""
    yaml = importlib.import_module("yaml" if importlib.util.find_spec("yaml") else "yaml_ft")
    return [document for document in yaml.safe_load_all(text) if document is not None]


def load(path: str) -> Any:
    """The only document of a file."""
    (document,) = load_all(path)
    return document
