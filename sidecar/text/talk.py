"""What the bot says in a direct message beside answers to decisions: the list of open requests, and its help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.model import APPROVED
from sidecar.text.command import short_id
from sidecar.text.fields import approvals_needed
from sidecar.text.names import asks
from sidecar.text.neutral import code_span

if TYPE_CHECKING:
    from sidecar.model import AccessRequest

NONE_OPEN = "No open request is waiting where you can see it."
_ASK = "`list`: the open requests that you can see"


def render_line(request: AccessRequest, *, whole: bool, now: float, card: str) -> str:
    """One open request: what it is, since when it waits, what is missing, and where its card is ("" for nowhere)."""
    facts = [_age(now - request.created)] if request.created is not None else []
    needed, given = approvals_needed(request), sum(one.proposed_state == APPROVED for one in request.reviews)
    if needed > 1:
        facts.append(f"{given} of {needed} approvals")
    if card:
        facts.append(f"[card]({card})")
    name = code_span(request.id if whole else short_id(request.id), 70)
    return f"- {name} {asks(request)}" + (f" ({', '.join(facts)})" if facts else "")


def render_help(request_id: str, *, decides: bool, whole: bool) -> str:
    """What can be written, with the id of a request that the reader sees, or one like it."""
    name = code_span(request_id if whole else short_id(request_id), 70).strip("`")
    lines = ["I understand these lines, and nothing else:", _ASK, f"`show {name}`: one of them as a card"]
    if decides:
        lines += [
            f"`approve {name}`, or with a reason `approve {name} the change is announced`",
            f"`deny {name}`, or with a reason `deny {name} not on a Friday`",
        ]
    return "\n- ".join([*lines, "`help`: this"])


def _age(seconds: float) -> str:
    minutes = max(0, int(seconds // 60))
    for unit, length in (("d", 1440), ("h", 60)):
        if minutes >= length:
            return f"waiting for {minutes // length} {unit}"
    return f"waiting for {minutes} min"
