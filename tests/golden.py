"""Sentences that an operator reads, whole, in a file beside the data: tests/data/sentences/, one section a test.

`pytest -n0 --golden` writes the sections of the tests it runs anew; read the difference before you commit it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "data" / "sentences"
# What differs from run to run. Each has a number, so that one is not taken for the other.
_PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+|(?<=localhost:)\d{5}")
_ID = re.compile(r"\b[a-z0-9]{26}\b")


class Golden:
    """What a test read, held against what the file says."""

    def __init__(self, file: Path, section: str, folder: Path) -> None:
        self.told: list[str] = []
        self._file = file
        self._section = section
        self._folder = folder

    def __call__(self, *read: Any) -> None:
        """Add sentences; findings and lists of them are told line by line."""
        for one in read:
            if isinstance(one, list | tuple) and not hasattr(one, "_fields"):
                self(*one or ["(nothing)"])
            elif hasattr(one, "message"):
                self.told.append(f"{one.status} {one.id} {one.subject}: {one.message}")
                self.told += [f"  {line}" for line in one.fix.splitlines()]
            else:
                self.told += str(one).splitlines()

    def judge(self, *, anew: bool) -> None:
        """Compare, or write; a test that was skipped has read nothing."""
        if not self.told:
            return
        text = "\n".join(self.told).replace(str(self._folder), "<folder>")
        for pattern, name in ((_PORT, "port"), (_ID, "id")):
            seen: list[str] = []

            def numbered(match: re.Match[str], seen: list[str] = seen, name: str = name) -> str:
                seen.extend({match[0]} - set(seen))
                return f"<{name} {seen.index(match[0]) + 1}>"

            text = pattern.sub(numbered, text)
        sections = self._read()
        if anew:
            sections[self._section] = text
            written = (f"== {name}\n{body}\n" for name, body in sorted(sections.items()))
            self._file.write_text("\n".join(written))
        assert text == sections.get(self._section), f"{self._file.name}, == {self._section}"

    def _read(self) -> dict[str, str]:
        found = self._file.read_text() if self._file.exists() else ""
        parts = (part.partition("\n") for part in re.split(r"^== ", found, flags=re.MULTILINE)[1:])
        return {name: body.strip("\n") for name, _, body in parts}


def of(request: pytest.FixtureRequest, folder: Path) -> Golden:
    """The section of a test in the file of its module."""
    return Golden(FOLDER / f"{request.path.stem.removeprefix('test_')}.txt", request.node.name, folder)
