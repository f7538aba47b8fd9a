"""The decision grammar: a reply or a direct message to a command, parsed and not judged.

One rule: anchored. A decision is the ASCII verb at the very first character and then exactly what the grammar allows.
What starts with a verb and does not fit is `Malformed` and gets the grammar as its answer; all else is talk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from sidecar.text.neutral import clean

Verb = Literal["approve", "deny"]

THREAD_GRAMMAR = "Reply with exactly `approve`, `approve because REASON`, `deny` or `deny because REASON`."
DIRECT_GRAMMAR = (
    "Write exactly `approve ID`, `deny ID`, `approve ID REASON`, `deny ID REASON`, `list`, `show ID` or `help`."
)

# What Teleport 12+ accepts (lib/services/access_request.go).
REASON_BYTES = 4096

_ID = r"(?P<id>[0-9A-Fa-f][0-9A-Fa-f-]{6,62}[0-9A-Fa-f])"
# Under re.ASCII neither whitespace nor case folding reaches beyond ASCII (the long s is no "s").
_FLAGS = re.ASCII | re.IGNORECASE | re.DOTALL
_THREAD = re.compile(r"(?:(?:\s+because|:)\s+(?P<reason>\S.*))?", _FLAGS)
_DIRECT = re.compile(rf"[ \t]+{_ID}(?:\s+(?:because\s+)?(?P<reason>\S.*))?", _FLAGS)
_SHOW = re.compile(rf"[ \t]+{_ID}", _FLAGS)
_SHORT = 8
_SPACES = " \t\r\n"


class Decision(msgspec.Struct, frozen=True):
    """What a person asks for. `id` is as typed (see `match_id`) and "" in a thread, where the card tells it."""

    verb: Verb
    reason: str = ""
    id: str = ""


class List(msgspec.Struct, frozen=True):
    """Show the open requests."""


class Show(msgspec.Struct, frozen=True):
    """Show one request; `id` is as typed."""

    id: str


class Help(msgspec.Struct, frozen=True):
    """Say what can be written here."""


class Malformed(msgspec.Struct, frozen=True):
    """It starts with a command word and does not fit: answer with the grammar, decide nothing."""


class NotACommand(msgspec.Struct, frozen=True):
    """Talk among people."""


class Unknown(msgspec.Struct, frozen=True):
    """No request has this id."""


class Ambiguous(msgspec.Struct, frozen=True):
    """More than one request ends like this."""


def parse_thread(
    text: str, *, approve_words: tuple[str, ...] = ("approve",), deny_words: tuple[str, ...] = ("deny",)
) -> Decision | Malformed | NotACommand:
    """Parse a reply in a card's thread: `verb`, `verb because REASON` or `verb: REASON`."""
    verb, rest = _first_word(text, approve_words, deny_words)
    if verb is None:
        return NotACommand()
    return _decision(verb, _THREAD.fullmatch(rest))


def parse_direct(
    text: str, *, approve_words: tuple[str, ...] = ("approve",), deny_words: tuple[str, ...] = ("deny",)
) -> Decision | List | Show | Help | Malformed | NotACommand:
    """Parse a direct message: `verb ID`, `verb ID REASON`, `list`, `show ID` or `help`."""
    verb, rest = _first_word(text, approve_words, deny_words)
    if verb is not None:
        return _decision(verb, _DIRECT.fullmatch(rest))
    for word in ("list", "show", "help"):
        if _starts_with(text, word):
            return _plain_command(word, text[len(word) :].rstrip(_SPACES))
    return NotACommand()


def match_id(token: str, ids: Iterable[str], *, whole: bool = False) -> str | Unknown | Ambiguous:
    """Find the one id that `token` means: the whole id, or its last 8 or more hex digits (dashes do not count).

    `whole` where only the whole id counts.
    """
    known = set(ids)
    tail = token.lower().replace("-", "")
    exact = [request_id for request_id in known if request_id.lower() == token.lower()]
    if not exact and not whole and re.fullmatch(rf"[0-9a-f]{{{_SHORT},}}", tail):
        exact = [request_id for request_id in known if request_id.lower().replace("-", "").endswith(tail)]
    if not exact:
        return Unknown()
    return exact[0] if len(exact) == 1 else Ambiguous()


def short_id(request_id: str) -> str:
    """Return the last 8 hex digits, as a card shows them; the whole id where it does not end so."""
    tail = request_id[-_SHORT:]
    return tail if re.fullmatch(rf"[0-9a-fA-F]{{{_SHORT}}}", tail) else request_id


def _first_word(text: str, approve: tuple[str, ...], deny: tuple[str, ...]) -> tuple[Verb | None, str]:
    verbs: list[tuple[str, Verb]] = [(word, "approve") for word in approve] + [(word, "deny") for word in deny]
    for word, verb in verbs:
        if _starts_with(text, word):
            return verb, text[len(word) :].rstrip(_SPACES)
    return None, ""


def _starts_with(text: str, word: str) -> bool:
    # isascii first: casefold turns the long s and the Kelvin sign into ASCII letters.
    start, following = text[: len(word)], text[len(word) : len(word) + 1]
    return start.isascii() and start.lower() == word.lower() and not (following.isalnum() or following == "_")


def _decision(verb: Verb, match: re.Match[str] | None) -> Decision | Malformed:
    if match is None:
        return Malformed()
    found = match.groupdict()
    request_id = found.get("id") or ""
    if request_id and not _is_id(request_id):
        return Malformed()
    reason = clean(found["reason"] or "").strip().encode()[:REASON_BYTES].decode(errors="ignore").rstrip()
    if found["reason"] and not reason:
        return Malformed()
    return Decision(verb, reason, request_id)


def _plain_command(word: str, rest: str) -> List | Show | Help | Malformed:
    if word == "show":
        match = _SHOW.fullmatch(rest)
        return Show(match["id"]) if match and _is_id(match["id"]) else Malformed()
    if rest:
        return Malformed()
    return List() if word == "list" else Help()


def _is_id(token: str) -> bool:
    return len(token.replace("-", "")) >= _SHORT
