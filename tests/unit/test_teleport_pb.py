"""The generated code is what teleport.proto says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FOLDER = Path("sidecar/teleport/pb")


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pb")
    plugin = Path(sys.executable).with_name("protoc-gen-mypy")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"--plugin=protoc-gen-mypy={plugin}"),
            *("-I.", f"--python_out={out}", f"--mypy_out=quiet:{out}", str(_FOLDER / "teleport.proto")),
        ],
        cwd=_ROOT,
        check=True,
    )
    return out / _FOLDER


def _without_versions(code: str) -> str:
    """Which release generated it does not matter."""
    return re.sub(r"(Version: [\d.]+|    \d+,\n)", "", code)


@pytest.mark.parametrize("name", ["teleport_pb2.py", "teleport_pb2.pyi"])
def test_checked_in_code_is_fresh(regenerated: Path, name: str) -> None:
    fresh = (regenerated / name).read_text()
    assert _without_versions((_ROOT / _FOLDER / name).read_text()) == _without_versions(fresh)


def test_no_service_code() -> None:
    """It would pin grpcio to the release that generated it."""
    assert not list((_ROOT / _FOLDER).glob("*_grpc.py"))
