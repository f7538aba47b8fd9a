"""The demo's screen: words and Mattermost cards on a terminal.

Rule: it draws what it is given. Colours only where they are wanted, and nothing is wider than `width`.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import trio

BOLD, DIM, CODE, LINK, GOOD, BAD = "1", "2", "36", "4", "32", "31"
_WIDEST = 96
_LABEL = 13
# A reader's pace: seconds to find the place, and for each word.
_LOOK_SECONDS, _WORD_SECONDS = 0.3, 0.085
# The only emoji by name in what the sidecar writes.
EMOJI = {"white_check_mark": "✅", "x": "❌"}
_INLINE = re.compile(r"`(?P<code>[^`]+)`|\[(?P<text>[^\]]+)\]\((?P<url>[^)]+)\)|\*\*(?P<bold>[^*]+)\*\*")


class Span(NamedTuple):
    """A piece of a line in one style."""

    text: str
    style: str = ""


Line = list[Span]


class Screen:
    """Prints a story; waits for the reader where `pace` is above 0 (1 is an ordinary reader)."""

    def __init__(self, *, columns: int, colour: bool, true_colour: bool, pace: float) -> None:
        self.width = max(60, min(columns, _WIDEST))
        self._colour = colour
        self._true_colour = true_colour
        self._pace = pace

    async def read(self, text: str = "", *, seconds: float = 0.0) -> None:
        """Leave the reader the time for `text`, and `seconds` more."""
        words = len(text.split())
        if self._pace:
            await trio.sleep(self._pace * (seconds + (_LOOK_SECONDS + _WORD_SECONDS * words if words else 0)))

    def title(self, text: str) -> None:
        """Begin."""
        self._print([Span(text, BOLD)])
        self._print([Span("═" * self.width, DIM)])

    def act(self, number: int, text: str) -> None:
        """Begin an act."""
        head = f"── {number} ── "
        rule = "─" * (self.width - width(head) - width(text) - 1)
        self._print([])
        self._print([Span(head, DIM), Span(text, BOLD), Span(f" {rule}", DIM)])

    async def say(self, text: str) -> None:
        """Tell something, in as many lines as it takes."""
        for line in wrap(spans(text), self.width - 2):
            self._print([Span("  "), *line])
        await self.read(text)

    async def command(self, who: str, text: str) -> None:
        """Show what somebody types."""
        self._print([Span(f"  {who}", BOLD), Span(" $ ", DIM), Span(text, CODE)])
        await self.read(text)

    async def gesture(self, who: str, text: str) -> None:
        """Show what somebody does in Mattermost."""
        for line in wrap([Span(who, BOLD), *spans(f" {text}")], self.width - 2):
            self._print([Span("  "), *line])
        await self.read(text)

    def done(self, text: str) -> None:
        """Tell what was seen to be so."""
        first, *others = wrap(spans(text), self.width - 4)
        self._print([Span("  "), Span("✓ ", GOOD), *first])
        for line in others:
            self._print([Span("    "), *line])

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Show a table of two columns."""
        for label, value in rows:
            head = label
            for line in wrap(spans(value), self.width - 34):
                self._print([Span("  "), Span(f"{head:<32}", DIM), *line])
                head = ""

    async def post(
        self,
        place: str,
        message: str,
        attachment: dict[str, Any],
        *,
        fields: Sequence[str] = (),
        replies: Sequence[str] = (),
    ) -> None:
        """Show a post as people see it; `fields` limits the card to these titles, `replies` is its thread."""
        lines = list(self._post(place, message, attachment, fields, replies))
        for line in lines:
            self._print(line)
        await self.read(" ".join(span.text for line in lines for span in line[1:]), seconds=0.5)

    def _post(
        self,
        place: str,
        message: str,
        attachment: dict[str, Any],
        fields: Sequence[str],
        replies: Sequence[str],
    ) -> Iterator[Line]:
        bar = self._bar(str(attachment.get("color", "")))
        yield [Span("  ┌ ", DIM), Span(place, DIM)]
        author = [Span("teleport", BOLD), Span(" BOT  ", DIM)]
        for index, words in enumerate(message.split("\n") if message else ()):
            yield [Span("  │ ", DIM), *(author if index == 0 else [Span(" " * measure(author))]), *spans(words)]
        for line in self._card(attachment, fields):
            yield [Span("  │ ", DIM), bar, Span(" "), *line]
        for reply in replies:
            for index, line in enumerate(_block(reply, self.width - 8)):
                yield [Span("  │ ", DIM), Span("  ↳ " if index == 0 else "    ", DIM), *line]
        yield [Span("  └", DIM)]

    def _card(self, attachment: dict[str, Any], wanted: Sequence[str]) -> Iterator[Line]:
        room = self.width - 6
        if attachment.get("pretext") and not wanted:
            yield from wrap(spans(str(attachment["pretext"])), room)
        waiting: Line = []
        for field in attachment.get("fields") or ():
            if wanted and field["title"] not in wanted:
                continue
            lines = list(_field(field["title"], str(field["value"]), room))
            if waiting and field["short"] and len(lines) == 1 and measure(lines[0]) <= room - room // 2:
                yield [*_padded(waiting, room // 2), *lines[0]]
                waiting = []
                continue
            if waiting:
                yield waiting
                waiting = []
            if field["short"] and len(lines) == 1 and measure(lines[0]) < room // 2:
                waiting = lines[0]
            else:
                yield from lines
        if waiting:
            yield waiting

    def _bar(self, colour: str) -> Span:
        """The bar at the left of an attachment, in its colour."""
        if not re.fullmatch("#[0-9a-f]{6}", colour):
            return Span("▌", DIM)
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        if self._true_colour:
            return Span("▌", f"38;2;{red};{green};{blue}")
        cube = 16 + 36 * round(red / 51) + 6 * round(green / 51) + round(blue / 51)
        return Span("▌", f"38;5;{cube}")

    def _print(self, line: Line) -> None:
        pieces = [(style, "".join(span.text for span in same)) for style, same in groupby(line, lambda one: one.style)]
        text = "".join(f"\x1b[{style}m{text}\x1b[0m" if self._colour and style else text for style, text in pieces)
        sys.stdout.write(f"{text.rstrip()}\n")
        sys.stdout.flush()


def width(text: str) -> int:
    """How many columns a text takes."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def measure(line: Line) -> int:
    return sum(width(span.text) for span in line)


def spans(text: str) -> Line:
    """Read the little markdown that the sidecar writes: code spans, links, bold, emoji."""
    for name, emoji in EMOJI.items():
        text = text.replace(f":{name}:", emoji)
    found: Line = []
    end = 0
    for match in _INLINE.finditer(text):
        found.append(Span(text[end : match.start()]))
        end = match.end()
        if match["code"]:
            found.append(Span(match["code"], CODE))
        elif match["bold"]:
            found.append(Span(match["bold"], BOLD))
        else:
            found += [Span(match["text"], LINK), Span(f" ({urlsplit(match['url']).netloc})", DIM)]
    return [span for span in (*found, Span(text[end:])) if span.text]


def wrap(line: Line, room: int) -> list[Line]:
    """Break a line between words; a word that is too long is broken where the room ends."""
    lines: list[Line] = [[]]
    for span in line:
        for word in re.findall(r"\s+|\S+", span.text):
            for piece in _pieces(word, room):
                if measure(lines[-1]) + width(piece) > room:
                    lines.append([])
                if lines[-1] or not piece.isspace():
                    lines[-1].append(Span(piece, span.style))
    return lines


def _pieces(word: str, room: int) -> list[str]:
    return [word[at : at + room] for at in range(0, len(word), room)]


def _padded(line: Line, room: int) -> Line:
    return [*line, Span(" " * (room - measure(line)))]


def _field(title: str, value: str, room: int) -> Iterator[Line]:
    head = title
    for line in _block(value, room - _LABEL):
        yield [Span(f"{head:<{_LABEL}}", BOLD), *line]
        head = ""


def _block(text: str, room: int) -> Iterator[Line]:
    """The lines of a text; those between fences as they are."""
    fence = ""
    for line in text.split("\n"):
        ticks = re.fullmatch("`{3,}", line)
        if ticks and fence in ("", line):
            fence = "" if fence else line
        elif fence:
            yield from wrap([Span(line, CODE)], room)
        elif line:
            yield from wrap(spans(line), room)
