"""Who asks for what, in a few words: the same in messages, replies and answers.

One rule: an untrusted name stands in a code span, or bare where it is nothing but a plain word or an address.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sidecar.text.neutral import code_span, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.model import AccessRequest

# Runes of a name where there is room for it, and always of the one who asks: who it is must not be cut away.
NAME = 160
# Roles that are named where there is room for a line, and characters of a reason there.
ROLES = 3
REASON = 120

# No mention (an `@` behind a letter is none), no Markdown, and no link but that of an address.
_BARE = re.compile(r"(?!www\.)[0-9A-Za-z]+(?:[._-][0-9A-Za-z]+)*(?:@[0-9A-Za-z]+(?:[.-][0-9A-Za-z]+)*)?", re.IGNORECASE)


def count(number: int, word: str) -> str:
    """A number of things."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def bare(name: str, limit: int = NAME) -> str:
    """A name within a sentence; in a code span where anything in it could be more than a name."""
    return name if len(name) < limit and _BARE.fullmatch(name) else code_span(name, limit) or "somebody"


def wanted(request: AccessRequest, show: Callable[[str], str] = bare) -> str:
    """What is asked for: the first roles and how many more, or the number of resources."""
    if not request.roles:
        return count(len(request.resources), "resource")
    named = ", ".join(show(role or "(empty)") for role in request.roles[:ROLES])
    return named + (f" and {len(request.roles) - ROLES} more" if len(request.roles) > ROLES else "")


def about(request: AccessRequest) -> str:
    """The request as a reply names it."""
    return f"{bare(request.user)}'s request for {wanted(request)}"


def asks(request: AccessRequest) -> str:
    """The request as a message begins, on one line."""
    head = f"{_span(request.user) or 'Somebody'} asks for {wanted(request, _span)}"
    reason = short_reason(request)
    return f"{head}: {code_span(reason, 8 * REASON)}" if reason else head


def short_reason(request: AccessRequest) -> str:
    """The beginning of the reason, on one line."""
    line = one_line(request.reason, 8 * REASON)
    return line if len(line) <= REASON else line[:REASON].rstrip() + "…"


def _span(name: str) -> str:
    return code_span(name, NAME)
