"""The world that most tests here begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.world import World, world


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[World]:
    """Both servers, running, with a configuration for a sidecar."""
    async with world(tmp_path) as one:
        yield one
