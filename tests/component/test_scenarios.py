"""The scenarios that also run on real servers (integration/), here on the simulators."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.decisions import a_policy_of_two, two_reactions_approve
from integration.scenarios import (
    SCENARIOS,
    auth_service_restarted,
    credentials_renewed,
    proxy_restarted,
    routed_by_rule,
)
from integration.simulated import simulated_chat, simulated_cluster
from integration.stage import Scenario, open_stage

DIRECT = [one for one in SCENARIOS if one not in (proxy_restarted, routed_by_rule)]
# Where the way matters.
THROUGH_PROXY = (
    *(proxy_restarted, auth_service_restarted, credentials_renewed),
    *(routed_by_rule, two_reactions_approve, a_policy_of_two),
)


def name_of(scenario: Scenario) -> str:
    return str(scenario.__name__)


@pytest.mark.parametrize("version", ["7.0.0-dev", "16.0.0-dev"])
@pytest.mark.parametrize("scenario", DIRECT, ids=name_of)
async def test_scenario(scenario: Scenario, version: str, tmp_path: Path) -> None:
    """What people see is the same whatever the servers are; each scenario says what."""
    async with (
        simulated_cluster(tmp_path, version) as cluster,
        simulated_chat() as chat,
        open_stage(cluster, chat, tmp_path) as stage,
    ):
        await scenario(stage)


@pytest.mark.parametrize("scenario", THROUGH_PROXY, ids=name_of)
async def test_scenario_through_a_proxy(scenario: Scenario, tmp_path: Path) -> None:
    """An identity file and the Proxy's address are all that the sidecar has."""
    async with (
        simulated_cluster(tmp_path, "18.0.0", through_proxy=True) as cluster,
        simulated_chat() as chat,
        open_stage(cluster, chat, tmp_path) as stage,
    ):
        await scenario(stage)
