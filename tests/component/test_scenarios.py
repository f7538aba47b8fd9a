"""The scenarios that also run on real servers (integration/), here on the simulators."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.scenarios import SCENARIOS
from integration.simulated import simulated_chat, simulated_cluster
from integration.stage import Scenario, open_stage


@pytest.mark.parametrize("version", ["7.0.0-dev", "16.0.0-dev"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.__name__))
async def test_scenario(scenario: Scenario, version: str, tmp_path: Path) -> None:
    """What people see is the same whatever the servers are; each scenario says what."""
    async with (
        simulated_cluster(tmp_path, version) as cluster,
        simulated_chat() as chat,
        open_stage(cluster, chat, tmp_path) as stage,
    ):
        await scenario(stage)
