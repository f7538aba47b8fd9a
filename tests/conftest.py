"""What every test may use: nothing here knows a room of the sidecar."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from inspect import iscoroutinefunction
from pathlib import Path

import hypothesis
import pytest
import trustme

from tests.golden import Golden
from tests.golden import of as golden_table
from tests.patience import within_patience

# Read once, when grpcio is imported; its own lines are no part of a test's output.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# The machine decides how long an example takes, so no deadline. `make fuzz` runs the same properties for longer.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=20_000)
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every async test on the real clock its deadline, so that none needs to set one."""
    for item in items:
        if not isinstance(item, pytest.Function) or not iscoroutinefunction(item.obj):
            continue
        if {"autojump_clock", "mock_clock"} & set(item.fixturenames) or item.get_closest_marker("soak"):
            continue
        marker = item.get_closest_marker("patience")
        item.obj = within_patience(item.obj, *(marker.args if marker else ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Half characters, which some tests log, cannot be sent to where the results are gathered."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test run itself was told, such as SIDECAR_SEEDS, is no setting of the sidecars in it."""
    for name in [name for name in os.environ if name.startswith("SIDECAR_")]:
        monkeypatch.delenv(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the sentences in tests/data/sentences anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Golden]:
    """Take what a test read, and hold it against its section of tests/data/sentences at the end."""
    table = golden_table(request, tmp_path)
    yield table
    table.judge(anew=request.config.getoption("--golden"))


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Return a certificate authority for listeners of tests."""
    return trustme.CA()


@pytest.fixture
def clean_log() -> Iterator[logging.Logger]:
    """Give the root logger to a test that sets it up, and put it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
