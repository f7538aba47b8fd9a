"""What can be said of the image and of the workflows without an engine; test_image.py says the rest."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.tree import ROOT
from tests.yaml_files import load

TEXT = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", "")
LINES = [line.strip() for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]
BUILD, RUNTIME = (
    LINES[start:end]
    for starts in [[n for n, line in enumerate(LINES) if line.startswith("FROM ")]]
    for start, end in zip(starts, [*starts[1:], len(LINES)], strict=True)
)
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def test_the_base_can_be_chosen() -> None:
    assert LINES[0].startswith("ARG BASE_IMAGE=")
    assert BUILD[0] == "FROM ${BASE_IMAGE} AS build"
    assert RUNTIME[0] == "FROM ${RUNTIME_IMAGE}"


def test_nothing_is_installed_that_is_not_locked() -> None:
    (install,) = (line for line in LINES if "pip install" in line)
    assert "--require-hashes" in install
    assert "-r /build/requirements.lock" in install
    assert "--only-binary=:all:" in install
    assert "http" not in TEXT
    assert not re.search(r"apt|apk|curl|index-url", TEXT)


@pytest.mark.parametrize("instruction", ["RUN", "CMD", "ENTRYPOINT"])
def test_the_runtime_stage_needs_no_shell(instruction: str) -> None:
    commands = [line.removeprefix(instruction) for line in RUNTIME if line.startswith(instruction)]
    assert commands
    for command in commands:
        assert json.loads(command)[:1] in (["python"], ["run"])


def test_it_runs_as_a_number_and_is_watched() -> None:
    assert "USER 65532:65532" in RUNTIME
    (check,) = (line for line in RUNTIME if line.startswith("HEALTHCHECK"))
    assert check.endswith('CMD ["python", "-m", "sidecar", "health"]')
    copied = [line for line in RUNTIME if line.startswith("COPY")]
    assert all(line.startswith("COPY --from=build /opt/") for line in copied)


def test_the_context_holds_only_what_is_copied() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    sources = {line.split()[1] for line in BUILD if line.startswith("COPY")}
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == sources


# Only a tag may publish, and only what its job makes.
RELEASE = {
    "packages": {"contents": "write", "id-token": "write", "attestations": "write"},
    "release-image": {"contents": "read", "packages": "write"},
}


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(name, job) for path in WORKFLOWS for name, job in load(str(path.relative_to(ROOT)))["jobs"].items()]


@pytest.mark.parametrize(("name", "job"), jobs())
def test_a_workflow_can_only_read_and_ends(name: str, job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 60, name
    assert job.get("permissions", {}) == RELEASE.get(name, {})
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), "pin the commit; a tag can move"
        assert "${{" not in step.get("run", ""), "what a contributor writes must not become a command"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: str(path.name))
def test_a_workflow_has_no_rights_to_lose(path: Any) -> None:
    assert load(str(path.relative_to(ROOT)))["permissions"] == {"contents": "read"}
