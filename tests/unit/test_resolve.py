"""Recipients while everything is being ended: what may be asked in that very moment."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from sidecar.decisions.routing import Routes, RuleBook
from sidecar.metrics import Metrics
from sidecar.model import AccessRequest
from sidecar.reconcile.resolve import Resolver
from sidecar.times import USUAL


class Silent:
    """A Mattermost that never answers."""

    async def resolve(self, _: str) -> Any:
        await trio.sleep_forever()

    async def refresh(self, _: object) -> None:
        await trio.lowlevel.checkpoint()


async def no_rules(_: AccessRequest) -> tuple[RuleBook, None]:
    await trio.lowlevel.checkpoint()
    return RuleBook(), None


@pytest.mark.parametrize("ended", [False, True])
async def test_who_is_asked_for_after_the_end_is_owed(ended: bool) -> None:  # noqa: FBT001
    """A worker that is about to be ended, too, must not fall over it: that would end the process with a bug."""
    resolver = Resolver(
        Silent(), Routes(roles={"*": ("ops/x",)}), no_rules, Metrics(), print, print, lambda: None, USUAL
    )
    request = AccessRequest(id="a", user="bob", state="PENDING", roles=("dba",))
    async with trio.open_nursery() as nursery:
        await nursery.start(resolver.run)
        if not ended:
            assert [one.owed for one in (await resolver.targets(request)).targets] == [True]
        nursery.cancel_scope.cancel()
    if ended:
        (target,) = (await resolver.targets(request)).targets
        assert (target.name, target.channel_id, target.owed) == ("ops/x", "", True)
