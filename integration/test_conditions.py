"""The conditions of access monitoring rules that the tests hold to be Teleport's: what a real server takes, and not.

It says nothing of what they decide: a rule is evaluated by whoever reads it.
"""

from __future__ import annotations

import json
import secrets

import pytest

from integration.conftest import Servers
from integration.teleport import TctlError
from tests.unit.test_conditions import BEYOND, CONDITIONS


def test_a_real_teleport_takes_what_is_evaluated_here(servers: Servers) -> None:
    """And refuses the few that are evaluated although it does not take them."""
    cluster = servers.cluster
    if cluster is None or cluster.no_rules:
        pytest.skip("no Teleport with access monitoring rules" if cluster is None else cluster.no_rules)
    tag, refused = secrets.token_hex(3), []
    for number, (condition, _) in enumerate([*CONDITIONS, *BEYOND]):
        name = f"check-{tag}-{number}"
        try:
            cluster.create_rule(name, condition, "nobody", "nobody")
        except TctlError as exc:
            refused.append((condition, str(exc)))
        else:
            cluster.delete_rule(name)
    assert [condition for condition, _ in refused] == [condition for condition, _ in BEYOND], json.dumps(refused)
