from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import Golden


def told(folder: Path, *read: object, anew: bool = False) -> str:
    table = Golden(folder / "table.txt", "a test", folder)
    table(*read)
    table.judge(anew=anew)
    return (folder / "table.txt").read_text()


def test_a_sentence_that_changed_fails(tmp_path: Path) -> None:
    """One that only tells of another run's port, id or folder does not."""
    written = told(tmp_path, f"{tmp_path}/a at 127.0.0.1:1234, not 127.0.0.1:99", ["b" * 26], anew=True)
    assert written == "== a test\n<folder>/a at 127.0.0.1:<port 1>, not 127.0.0.1:<port 2>\n<id 1>\n"
    told(tmp_path, f"{tmp_path}/a at 127.0.0.1:5678, not 127.0.0.1:98", ["c" * 26])
    for wrong in (f"{tmp_path}/a at 127.0.0.1:1, not 127.0.0.1:1", f"{tmp_path}/b at 127.0.0.1:1, not 127.0.0.1:2"):
        with pytest.raises(AssertionError):
            told(tmp_path, wrong, ["c" * 26])


def test_nothing_is_something_to_read(tmp_path: Path) -> None:
    told(tmp_path, ["a sentence"], anew=True)
    with pytest.raises(AssertionError):
        told(tmp_path, [])
