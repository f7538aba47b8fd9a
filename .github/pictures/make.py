"""Make the pictures of the pages: `.venv/bin/python .github/pictures/make.py`, from the root of the repository.

flow.svg is drawn here. demo.svg and demo-end.svg are a real run of `sidecar demo` in a terminal of its own, from escape
codes to SVG. page.png and page-direct.png are the page of `sidecar demo --keep` in Chromium, with the real sidecar
behind it. memory.svg is what the soak measured: `SIDECAR_SOAK_DATA=.github/pictures/memory.json make soak`. All but the
first differ at each run (times, ids), so nothing compares them. dashboard.png is a picture of Grafana, taken by hand.
"""

# ruff: noqa: INP001, S606 - a script, which starts a program of this repository

from __future__ import annotations

import json
import os
import pty
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from fcntl import ioctl
from html import escape
from pathlib import Path
from termios import TIOCSWINSZ
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import trio  # noqa: E402

from sidecar.simulator.demo.screen import width  # noqa: E402 - the repository's own, whatever is installed
from tests.chromium import Tab, open_tab  # noqa: E402
from tests.theatre import Theatre, theatre  # noqa: E402

COLUMNS = 92
CELL, ROW, PAD, BAR = 8.4, 19, 16, 30
PAPER, INK, FAINT = "#0f1720", "#d7dde4", "#7d8b99"
NAMED = {"31": "#ff7b72", "32": "#3fb950", "36": "#79c0ff"}
MONO = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
SANS = "-apple-system,'Segoe UI',Helvetica,Arial,'DejaVu Sans',sans-serif"


class Run(NamedTuple):
    """Characters in one style, from a column on."""

    column: int
    text: str
    style: str


def play() -> str:
    """Run the demo in a pseudo terminal, without pauses; returns what it wrote."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"COLORTERM": "truecolor", "TERM": "xterm-256color"}
        os.chdir(ROOT)
        code = "import sys; from sidecar.simulator.demo.play import main; sys.exit(main(False, pace=0.0))"
        os.execv(sys.executable, [sys.executable, "-c", code])
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    written = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not data:
            break
        written += data
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        sys.exit(f"{written.decode()}\nthe demo ended with {status}")
    return written.decode()


def runs(line: str) -> Iterator[Run]:
    """Split a line at its escape codes."""
    column, style = 0, ""
    for part in re.split("(\x1b\\[[0-9;]*m)", line):
        if part.startswith("\x1b"):
            style = part[2:-1].removeprefix("0")
        elif part:
            yield Run(column, part, style)
            column += width(part)


def terminal(lines: list[str], caption: str) -> str:
    """Draw lines as a window."""
    wide, high = COLUMNS * CELL + 2 * PAD, len(lines) * ROW + BAR + 2 * PAD
    body: list[str] = []
    for number, line in enumerate(lines):
        top = BAR + PAD + number * ROW
        for run in runs(line):
            body += strokes(run, top)
    dots = "".join(
        f'<circle cx="{18 + 18 * index}" cy="{BAR / 2:g}" r="5.5" fill="{colour}"/>'
        for index, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}" width="{wide:g}" height="{high:g}"'
        f' font-family="{MONO}" font-size="14" role="img" aria-label="{escape(caption)}">\n'
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>\n{dots}\n'
        f'<text x="{wide / 2:g}" y="20" fill="{FAINT}" text-anchor="middle" font-size="13">{escape(caption)}</text>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def strokes(run: Run, top: float) -> Iterator[str]:
    """Draw a run: lines and bars as shapes, which meet at every font, and words as text of exactly their columns."""
    column = run.column
    for part in re.findall("[─═]+|[│┌└▌]|[^─═│┌└▌]+", run.text):
        left, taken = PAD + column * CELL, width(part)
        middle, colour = top + ROW / 2, ink(run.style)
        column += taken
        if part == "▌":
            yield f'<rect x="{left:.1f}" y="{top}" width="4" height="{ROW}" fill="{colour}"/>'
        elif part[0] in "─═│┌└":
            yield f'<path d="{stroke(part, left, top, middle, taken)}" fill="none" stroke="{colour}" opacity=".6"/>'
        elif part.strip():
            start = left + CELL * (len(part) - len(part.lstrip()))
            words = part.strip()
            bold = ' font-weight="bold"' if run.style == "1" else ""
            line = ' text-decoration="underline"' if run.style == "4" else ""
            yield (
                f'<text x="{start:.1f}" y="{top + 14}" fill="{colour}"{bold}{line}'
                f' textLength="{width(words) * CELL:.1f}" lengthAdjust="spacingAndGlyphs">{escape(words)}</text>'
            )


def stroke(part: str, left: float, top: float, middle: float, taken: int) -> str:
    """Return the path of a box-drawing character."""
    centre, right, bottom = left + CELL / 2, left + taken * CELL, top + ROW
    match part[0]:
        case "│":
            return f"M{centre:.1f} {top}V{bottom}"
        case "┌":
            return f"M{right:.1f} {middle}H{centre:.1f}V{bottom}"
        case "└":
            return f"M{centre:.1f} {top}V{middle}H{right:.1f}"
        case "═":
            return f"M{left:.1f} {middle - 1.5}H{right:.1f}M{left:.1f} {middle + 1.5}H{right:.1f}"
        case _:
            return f"M{left:.1f} {middle}H{right:.1f}"


def ink(style: str) -> str:
    """Return the colour of a style."""
    if style.startswith("38;2;"):
        red, green, blue = (int(part) for part in style.split(";")[2:])
        return f"#{red:02x}{green:02x}{blue:02x}"
    return FAINT if style == "2" else NAMED.get(style, INK)


def box(left: int, title: str, lines: list[str], fill: str, edge: str) -> str:
    middle = left + 95
    head = f'<text x="{middle}" y="88" text-anchor="middle" font-weight="bold" font-size="16">{title}</text>'
    text = "".join(note(middle, 112 + 20 * number, line) for number, line in enumerate(lines) if line)
    return f'<rect x="{left}" y="60" width="190" height="170" rx="10" fill="{fill}" stroke="{edge}"/>{head}{text}'


def arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="#5a6877" stroke-width="1.6" marker-end="url(#tip)"/>'


def note(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="middle">{escape(text)}</text>'


def person(x: int, y: int, name: str) -> str:
    shape = f'<circle cx="{x}" cy="{y}" r="9"/><path d="M{x - 16} {y + 30}a16 16 0 0 1 32 0z"/>'
    return f'<g fill="#5a6877">{shape}</g><g font-weight="bold">{note(x, y + 50, name)}</g>'


BOXES = (
    (
        130,
        "Teleport",
        "#eef3ff",
        "#9db4e8",
        "Auth Service||access requests,|and in their plugin data|the sidecar's record",
    ),
    (455, "sidecar", "#fff6e0", "#e3bf62", "dials out only||compares what should be|posted with what is,|acts, saves"),
    (
        780,
        "Mattermost",
        "#e9f7f0",
        "#86c9a8",
        "~access-requests|one card for each request,|kept up to date;|replies",
    ),
)
ARROWS = (
    (323, 112, 452, "requests, reviews"),
    (452, 157, 323, "approve, deny"),
    (452, 202, 323, "its record"),
    (648, 112, 777, "cards, answers"),
    (777, 157, 648, "reactions, replies"),
    (777, 202, 648, "direct messages"),
    (66, 125, 127, "asks"),
    (974, 90, 1030, "tells"),
    (1030, 118, 974, "decides"),
    (974, 180, 1030, "tells"),
    (1030, 208, 974, "decides"),
)
NOTES = (
    (388, 226, "gRPC, mutual TLS"),
    (712, 226, "websocket, REST"),
    (775, 288, "or in Teleport: the card has the link, or the tsh commands"),
    (550, 364, "Prometheus, probes"),
    (644, 330, "/metrics /healthz /readyz"),
)
PATHS = ("M1055 236V300H225V234", "M550 345V234")


def flow() -> str:
    """Draw what goes from whom to whom; every connection between machines is opened by the sidecar."""
    parts = [box(left, title, lines.split("|"), fill, edge) for left, title, fill, edge, lines in BOXES]
    parts += [arrow(f"M{start} {y}H{end}") + note((start + end) / 2, y - 8, text) for start, y, end, text in ARROWS]
    parts += [arrow(path) for path in PATHS]
    parts += [note(x, y, text) for x, y, text in NOTES]
    parts += [person(45, 110, "Bob"), person(1055, 75, "Alice"), person(1055, 167, "Ivan")]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 40 1100 340" width="1100" height="340" role="img"'
        f' font-family="{SANS}" font-size="13" fill="#33404d" aria-label="Who talks to whom">\n'
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
        ' orient="auto"><path d="M0 0L10 5L0 10z" fill="#5a6877"/></marker></defs>\n'
        '<rect y="40" width="1100" height="340" rx="8" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


# The frame of the curve, and what its axes reach to.
WIDE, HIGH, LEFT, TOP = 760.0, 230.0, 60.0, 60.0
MOST_MB = 100


def memory(curve: list[dict[str, float]]) -> str:
    """Draw resident memory over the requests that have come and gone, with the limit that the design sets."""
    most = curve[-1]["requests"]
    points = [(LEFT + WIDE * one["requests"] / most, height(one["rss_mb"])) for one in curve]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts = [
        f'<path d="M{LEFT} {height(mb):g}h{WIDE}" stroke="#e3e8ee"/>'
        f'<text x="{LEFT - 8}" y="{height(mb) + 4:g}" text-anchor="end">{mb} MB</text>'
        for mb in range(0, MOST_MB + 1, 20)
    ]
    parts += [note(LEFT + WIDE * part / 5, TOP + HIGH + 20, f"{most * part / 5:,.0f}") for part in range(6)]
    last, warm = curve[-1], curve[len(curve) // 10]
    minutes = (last["seconds"] - curve[0]["seconds"]) / 60
    caption = f"Resident memory while {most:,.0f} requests come and go in {minutes:.0f} minutes"
    facts = (
        f"after a tenth of them and at the end: memory {warm['rss_mb']:.1f} and {last['rss_mb']:.1f} MB,"
        f" threads {warm['threads']:.0f} and {last['threads']:.0f},"
        f" descriptors {warm['descriptors']:.0f} and {last['descriptors']:.0f}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 330" width="860" height="330" role="img"'
        f' font-family="{SANS}" font-size="12" fill="#33404d" aria-label="{escape(caption)}">\n'
        '<rect width="860" height="330" rx="8" fill="#ffffff"/>\n'
        f'<g font-weight="bold">{note(430, 22, caption)}</g>\n{note(430, 40, facts)}\n'
        + "\n".join(parts)
        + f'\n<path d="{line}" fill="none" stroke="#1c58d9" stroke-width="2"/>\n</svg>\n'
    )


def height(megabytes: float) -> float:
    return TOP + HIGH * (1 - megabytes / MOST_MB)


async def photograph(folder: Path) -> None:
    """Take the pictures of the page, as Alice and Ivan see it."""
    with tempfile.TemporaryDirectory() as files, trio.fail_after(120):
        async with theatre(Path(files)) as here, open_tab(WIDE_PAGE, 1000) as tab:
            await tab.open(f"{here.page}#alice/channel")
            (folder / "page.png").write_bytes(await approved(here, tab))
            (folder / "page-narrow.png").write_bytes(await still(tab, 900, wide=390))
            await tab.size(WIDE_PAGE, 1000)
            (folder / "page-direct.png").write_bytes(await denied(here, tab))


WIDE_PAGE = 1200
LAST = "#posts article:last-child"


async def approved(here: Theatre, tab: Tab) -> bytes:
    """Alice reacts, Ivan replies."""
    here.stage.auth.create_request("bob@example.com", ["dbadmin"], reason="fix the replication lag on db-7")
    await tab.click(f"{LAST} [data-emoji=white_check_mark]")
    await tab.until(f"document.querySelector('{LAST}').innerText.includes('counts (1 of 2), as alice@example.com')")
    await tab.click("#people a[href^='#ivan']")
    await tab.until("document.getElementById('posts').dataset.of === 'ivan/channel'")
    await tab.type(f"{LAST} form.answer input", "approve because the change is announced")
    await tab.until(f"document.querySelector('{LAST}').innerText.includes('The request is now APPROVED.')")
    return await still(tab, 640)


async def denied(here: Theatre, tab: Tab) -> bytes:
    """Ivan asks the bot for its list and denies by direct message."""
    request_id = here.stage.auth.create_request("bob@example.com", ["dbadmin"], reason="just curious")
    await here.stage.chat.wait_for(lambda: here.stage.cards(request_id))
    await tab.click("#places a[href$=direct]")
    await tab.until("document.getElementById('posts').dataset.of === 'ivan/direct'")
    await tab.type("#write input", "list")
    await tab.until(f"document.querySelector('{LAST}')?.innerText.includes('asks for')")
    await tab.type("#write input", f"deny {request_id} curiosity is no reason")
    await tab.until(f"document.querySelector('{LAST}').innerText.includes('counts, as ivan@example.com')")
    return await still(tab, 410)


async def still(tab: Tab, height: int, *, wide: int = WIDE_PAGE) -> bytes:
    """Take a picture without a cursor in it."""
    await tab.run("document.activeElement.blur()")
    await tab.size(wide, height)
    await tab.run("document.getElementById('posts').scrollTop = 0")
    return await tab.picture()


def main() -> None:
    folder = Path(__file__).parent
    trio.run(photograph, folder)
    (folder / "flow.svg").write_text(flow())
    (folder / "memory.svg").write_text(memory(json.loads((folder / "memory.json").read_text())))
    lines = play().replace("\r", "").rstrip("\n").split("\n")
    cut = next(number for number, line in enumerate(lines) if "while the sidecar is down" in line)
    (folder / "demo.svg").write_text(terminal(lines[: cut - 1], "make demo"))
    (folder / "demo-end.svg").write_text(terminal(lines[cut:], "make demo, continued"))


if __name__ == "__main__":
    main()
