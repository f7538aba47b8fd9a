"""What every test may use: nothing here knows a room of the sidecar."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import hypothesis
import pytest
import trustme

# Read once, when grpcio is imported; its own lines are no part of a test's output.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# The machine decides how long an example takes, so no deadline. `make fuzz` runs the same properties for longer.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("fuzz", deadline=None, print_blob=True, max_examples=20_000)
hypothesis.settings.load_profile("default")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test run itself was told, such as SIDECAR_SEEDS, is no setting of the sidecars in it."""
    for name in [name for name in os.environ if name.startswith("SIDECAR_")]:
        monkeypatch.delenv(name)


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
    root.handlers[:] = handlers
    root.setLevel(level)
