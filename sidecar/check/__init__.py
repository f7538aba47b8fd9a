"""`sidecar check`: everything that can be known before `run`, each with its fix.

Files first, then both peers at once, and all of it although something failed: one run names everything. It leaves
nothing behind but what a look-up of a person makes in Mattermost, an empty direct channel that nobody sees.
"""

from __future__ import annotations

import trio

from sidecar.check.auth import check_teleport
from sidecar.check.chat import check_mattermost
from sidecar.check.local import check_local
from sidecar.check.report import failure, passed, to_json, to_lines, to_summary
from sidecar.check.reviewers import Account, to_toml
from sidecar.check.rules import ByRules, who_is_told
from sidecar.config import Config
from sidecar.teleport.findings import Finding

__all__ = [
    "Account", "Finding", "failure", "passed", "run", "to_json", "to_lines", "to_summary", "to_toml", "who_is_told",
]  # fmt: skip


async def run(config: Config, *, send_test: str = "") -> tuple[list[Finding], list[Account]]:
    """Check everything, within about 30 s even where every peer hangs; return the findings and the reviewers.

    `send_test` names a recipient that gets one message. Raises ConfigError for a proxy in the environment that cannot
    be used.
    """
    teleport: list[Finding] = []
    mattermost: list[Finding] = []
    accounts: list[Account] = []
    findings, by_rules = check_local(config), ByRules()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(check_teleport, config, teleport, by_rules)
        nursery.start_soon(check_mattermost, config, mattermost, accounts, send_test, by_rules)
    return [*findings, *teleport, *mattermost], accounts
