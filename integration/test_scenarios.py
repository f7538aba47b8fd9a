"""The scenarios on real servers: `python -m pytest integration`. Each way that has no server is skipped with a line."""

from __future__ import annotations

import pytest
import trio

from integration.scenarios import SCENARIOS
from integration.stage import Scenario, Stage


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("playable")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.__name__))
async def test_scenario(scenario: Scenario, stage: Stage) -> None:
    """What people see is the same whatever the servers are; each scenario says what."""
    with trio.fail_after(180):  # on a busy machine
        await scenario(stage)
