"""Hostile text made harmless: no mention, no markdown, no link, no invisible character, bounded length.

One rule: untrusted text reaches Mattermost only inside a code span or a fence made here (an escaped `@` still
notifies), or through `plain` where nothing is parsed. Lengths are counted as Go's encoding/json counts, because
Mattermost 5.37 limits the JSON of a post's properties to 8,000 runes.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import accumulate, takewhile

# Nothing behind this is looked at; normalising unbounded text can be slow. Teleport 12+ keeps reasons to 4,096 bytes.
_SCANNED = 8192
# A reason is not a wall: more lines than this push the card off the screen.
_LINES = 40
# More marks on one letter only serve to draw over the neighbours.
_MARKS = 4

_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Shown as nothing, although Unicode calls them letters or marks.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# Mattermost's web client turns U+2424 into a line break, also inside code; U+2800 is a blank.
_BLANKS = "\t\u2424\u2800"
_UNKNOWN = "\ufffd"
_LONG_RUN = re.compile("`{8,}")

_SIX = re.compile("[<>&\x00-\x08\x0b\x0c\x0e-\x1f\u2028\u2029\ud800-\udfff]")
_TWO = re.compile('["\\\\\n\r\t]')
# An `@` that follows an ASCII letter or digit starts no mention, on the server or in the web client.
_MENTION = re.compile("(?<![0-9A-Za-z])@")


def go_json_runes(value: object) -> int:
    """Length in runes of `value` as Go's encoding/json writes it; never less than the truth for the values we send.

    `<`, `>`, `&`, U+2028, U+2029, control characters and invalid text take 6, an astral character 1.
    """
    match value:
        case None | True:
            return 4
        case False:
            return 5
        case str():
            return 2 + len(value) + 5 * len(_SIX.findall(value)) + len(_TWO.findall(value))
        case int() | float():
            return len(str(value))
        case dict():
            return 1 + max(1, sum(go_json_runes(k) + go_json_runes(v) + 2 for k, v in value.items()))
        case list() | tuple():
            return 1 + max(1, sum(go_json_runes(item) + 1 for item in value))
        case _:
            raise TypeError(type(value).__name__)


def clean(text: str, *, mark: str = "") -> str:
    """Normalise to NFC without control, invisible or direction characters; line breaks become a plain newline.

    Such characters become `mark`: "" in prose, something visible in names, so that no name passes for another one.
    """
    text = _BREAKS.sub("\n", text[:_SCANNED])
    if text.isascii() and text.isprintable():
        return text
    kept: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in {"Mn", "Me"} else 0
        if category == "Zs" or character in _BLANKS:
            kept.append(" ")
        elif category in {"Cs", "Co", "Cn"}:
            kept.append(_UNKNOWN)
        elif character != "\n" and (category in {"Cc", "Cf"} or marks > _MARKS or _INVISIBLE.match(character)):
            kept.append(mark)
        else:
            kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def cut(text: str, limit: int) -> str:
    """Return the start of `text` that takes at most `limit` runes in Go's JSON, with "…" where it was cut."""
    if go_json_runes(text) - 2 <= limit:
        return text
    totals = accumulate(go_json_runes(character) - 2 for character in text)
    fitting = sum(1 for _ in takewhile(lambda total: total < limit, totals))
    return text[:fitting].rstrip() + "…"


def one_line(text: str, limit: int) -> str:
    """Clean `text` to one line without backticks; what cannot be seen is shown as U+FFFD."""
    # Only blanks and composed letters take less room shown than read; so this much is enough, and cheap.
    head = text[: 4 * limit]
    # Backticks go last: NFC makes one out of U+1FEF.
    line = " ".join(clean(head, mark=_UNKNOWN).replace("`", "'").split())
    return cut(line if len(head) == len(text) else line + "…", limit)


def code_span(text: str, limit: int) -> str:
    """Wrap a single-line value in a code span of at most `limit` runes; "" for an empty one."""
    return f"`{one_line(text, limit - 2) or _UNKNOWN}`" if text else ""


def fenced(text: str, limit: int) -> str:
    """Put prose in a fenced block of its own, the text within `limit` runes; a cut is said below. "" when empty.

    The fence is longer than any run of backticks inside: the server and the web client close a fence differently, and
    agree on this one only.
    """
    body = _LONG_RUN.sub("`" * 8, clean(text).strip())
    if not body:
        return ""
    shown = cut("\n".join(body.split("\n")[:_LINES]), limit)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    note = f"\n… cut: {len(text)} characters in all" if shown != body or len(text) > _SCANNED else ""
    return f"{fence}\n{shown}\n{fence}{note}"


def plain(text: str, limit: int) -> str:
    """Make one line for places that Mattermost shows as plain text, harmless also where a client parses them."""
    line = _MENTION.sub("(at)", one_line(text, limit))
    return cut(line.replace("://", ": //").replace("](", "] ("), limit)
