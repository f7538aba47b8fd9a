"""Nobody grants here what the card cannot show: constraints, and what this version cannot read."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from sidecar.model import Resource
from tests.deciding import APPROVE, ask, deciding, refused, submitted
from tests.world import field

NODE = Resource("example.com", "node", "db1", "", "logins", ("root",))
STRANGE = Resource("example.com", "node", "db2", unreadable=True)


async def test_a_constraint_that_can_be_read_is_shown_and_decided(tmp_path: Path) -> None:
    """The approval covers these logins alone, and who approves sees so."""
    with trio.fail_after(10):
        async with deciding(tmp_path, version="18.0.0") as here:
            _, card = await ask(here, resources=[NODE])
            assert field(card, "Resources") == "1 resource:\n`node`: `db1` (only the logins `root`)"
            here.chat.react(here.alice, card, APPROVE)
            await here.recorded(lambda: bool(submitted(here)))
            assert submitted(here) == [("alice@example.com", "APPROVED")]


@pytest.mark.parametrize(
    ("what", "changes", "shown"),
    [
        ("unreadable", {"resources": (NODE, STRANGE)}, "narrowed in a way this sidecar cannot show"),
        ("unknown_kind", {"kind": "KIND 7"}, "A kind of request that this sidecar does not know."),
        ("long_term", {"kind": "LONG_TERM"}, "A long-term request."),
    ],
)
async def test_what_cannot_be_shown_is_decided_on_teleport_only(
    tmp_path: Path, what: str, changes: dict[str, object], shown: str
) -> None:
    """The card says so, and so does the answer to who tries."""
    with trio.fail_after(10):
        async with deciding(tmp_path, version="18.0.0") as here:
            _, card = await ask(here, **changes)
            assert shown in field(card, "Decide")
            here.chat.react(here.alice, card, APPROVE)
            await refused(here, what, here.alice)
            assert not submitted(here)
