"""The decision grammar: a reply or a direct message to a command, parsed and not judged.

One rule: anchored. A decision is the ASCII verb at the very first character and then exactly what the grammar allows.
What starts with a verb and does not fit is `Malformed` and gets the grammar as its answer, and so does a `NearMiss`,
which only looks as if somebody wanted to decide; all else is talk. Nothing is ever guessed.
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
# What only looks like a decision is short, has its verb near the beginning, or is an answer of a few words.
_LONGEST_HINT = 120
_VERB_WITHIN = 3
_MOST_WORDS = 8
_SHORT_ANSWER = 4
_FORMS = frozenset(
    (
        "approve", "approves", "approved", "approving", "approval", "deny", "denies", "denied", "denying", "denial",
        "reject", "rejects", "rejected", "decline", "declined", "refuse", "refused",
    )
)  # fmt: skip
_ANSWERS = frozenset(
    (
        "yes", "y", "yep", "yeah", "ok", "okay", "k", "sure", "fine", "fine by me", "lgtm", "looks good", "go ahead",
        "looks good to me", "ack", "+1", "1", "ship it", "do it", "agreed", "accept", "accepted", "granted", "grant",
        "no", "n", "nope", "nack", "nak", "-1", "no way", "not ok", "yes please", "ok for me", "ok from me",
    )
)  # fmt: skip
_SIGNS = frozenset(
    (
        "👍", "👎", "✅", "❌", "✔", "☑", "🆗", "👌", "✖", "🚫", "⛔", ":+1:", ":-1:", ":thumbsup:", ":thumbsdown:",
        ":white_check_mark:", ":x:", ":ok:", ":ok_hand:", ":heavy_check_mark:", ":ballot_box_with_check:",
        ":negative_squared_cross_mark:", ":no_entry:", ":no_entry_sign:",
    )
)  # fmt: skip
_NEAR_EMOJI = frozenset(sign.strip(":") for sign in _SIGNS if sign.startswith(":"))
_GREETINGS = frozenset((word,) for word in ("hello", "hi", "hey", "?", "??", "start", "commands", "usage", "moin"))
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


class NearMiss(msgspec.Struct, frozen=True):
    """It looks as if a decision was meant; `id` is what looks like one, as typed."""

    id: str = ""


class NotACommand(msgspec.Struct, frozen=True):
    """Talk among people."""


class Unknown(msgspec.Struct, frozen=True):
    """No request has this id."""


class Ambiguous(msgspec.Struct, frozen=True):
    """More than one request ends like this."""


def parse_thread(text: str) -> Decision | Malformed | NearMiss | NotACommand:
    """Parse a reply in a card's thread: `verb`, `verb because REASON` or `verb: REASON`."""
    verb, rest = _first_word(text)
    if verb is None:
        return _near(text)
    return _decision(verb, _THREAD.fullmatch(rest))


def parse_direct(text: str) -> Decision | List | Show | Help | Malformed | NearMiss | NotACommand:
    """Parse a direct message: `verb ID`, `verb ID REASON`, `list`, `show ID` or `help`; a greeting asks for help."""
    verb, rest = _first_word(text)
    if verb is not None:
        return _decision(verb, _DIRECT.fullmatch(rest))
    for word in ("list", "show", "help"):
        if _starts_with(text, word):
            return _plain_command(word, text[len(word) :].rstrip(_SPACES))
    return Help() if _words(text) in _GREETINGS else _near(text)


def thread_grammar(approve: str, deny: str, ways: tuple[str, ...]) -> str:
    """How to decide where the card is."""
    react = f"eact to the card with :{approve}: or :{deny}:."
    if "reply" not in ways and "reaction" in ways:
        return f"R{react}"
    return f"{THREAD_GRAMMAR} Or r{react}" if "reaction" in ways else THREAD_GRAMMAR


def direct_grammar(request_id: str, *, whole: bool) -> str:
    """How to decide about this request in a direct message."""
    name = request_id if whole else short_id(request_id)
    if not re.fullmatch("[0-9A-Za-z-]{1,64}", name):
        return DIRECT_GRAMMAR
    return f"Write exactly `approve {name}`, `deny {name}`, `approve {name} REASON` or `deny {name} REASON`."


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


def is_near_emoji(name: str) -> bool:
    """Whether a reaction with this emoji looks like a decision; a thumb has many colours."""
    return re.sub("_(?:light|medium_light|medium|medium_dark|dark)_skin_tone$", "", name) in _NEAR_EMOJI


def _near(text: str) -> NearMiss | NotACommand:
    """Whether a short message looks as if it was meant to decide. A question is none."""
    plain = text[:_LONGEST_HINT].strip().casefold()
    # People without a keyboard for it: a thumb, a tick, a cross.
    signs = {*re.findall(r":[a-z0-9_+-]+:", plain), *plain} & _SIGNS
    words = _words(text)
    if not words:
        return NearMiss() if signs else NotACommand()
    if len(text) > _LONGEST_HINT or plain.endswith("?"):
        return NotACommand()
    ids = [word for word in words if re.fullmatch(_ID, word) and _is_id(word) and re.search("[0-9]", word)]
    said = [word for word in words if word not in ids]
    first = said[:_VERB_WITHIN]
    meant = (len(said) <= _MOST_WORDS and any(_is_verb(word) for word in first)) or (
        len(said) <= _SHORT_ANSWER and " ".join(said) in _ANSWERS
    )
    meant = meant or bool(ids and said and said[0] in _ANSWERS) or bool(signs and len(said) <= 1)
    return NearMiss(ids[0] if ids else "") if meant else NotACommand()


def _words(text: str) -> tuple[str, ...]:
    """The words without what people put around them, the bot's name and emoji."""
    plain = re.sub(r":[a-z0-9_+-]+:", " ", text[: 2 * _LONGEST_HINT].casefold())
    words = (word.strip("*_~`'\".,;:!()[]<>#/\u2026\u201c\u201d\u2018\u2019") for word in plain.split())
    return tuple(word for word in words if word and not word.startswith("@") and (word[0].isalnum() or word in _ANSWERS
                 or word.startswith("?")))  # fmt: skip


def _is_verb(word: str) -> bool:
    """A verb in one of its forms, or one letter away from it."""
    return word in _FORMS or any(_is_typo(word, verb) for verb in ("approve", "approved", "deny", "denied"))


def _is_typo(word: str, verb: str) -> bool:
    """Whether one letter is missing, too many, another one, or two have changed places."""
    if abs(len(word) - len(verb)) > 1 or word[:1] != verb[0]:
        return False
    start = next((n for n, (one, other) in enumerate(zip(word, verb, strict=False)) if one != other), len(verb))
    rest, wanted = word[start:], verb[start:]
    swapped = rest[:2] == wanted[:2][::-1] and rest[2:] == wanted[2:]
    return swapped or rest[1:] == wanted or rest == wanted[1:] or rest[1:] == wanted[1:]


def _first_word(text: str) -> tuple[Verb | None, str]:
    verbs: tuple[Verb, ...] = ("approve", "deny")
    verb = next((verb for verb in verbs if _starts_with(text, verb)), None)
    return verb, text[len(verb or "") :].rstrip(_SPACES)


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
