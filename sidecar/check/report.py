"""What a check found, for people and for scripts, and how checks run side by side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec
import trio

from sidecar.teleport.findings import Finding, teller

_WORDS = {"ok": "ok", "warning": "warning", "failure": "FAILURE"}
_INDENT = " " * 8
# Where nothing better can be said.
TELEPORT_LOG = "Look at the log of the Auth Service."
MATTERMOST_LOG = "Run the check again; look at the log of Mattermost."


found = teller("sidecar.check")


def ok(id: str, subject: str, message: str) -> Finding:
    """All is well."""
    return Finding(id, "ok", subject, message)


def warning(id: str, subject: str, message: str, fix: str = "") -> Finding:
    """Something deserves a look; the sidecar works."""
    return Finding(id, "warning", subject, message, fix)


def failure(id: str, subject: str, message: str, fix: str) -> Finding:
    """Something that was configured does not work."""
    return Finding(id, "failure", subject, message, fix)


def passed(findings: Sequence[Finding]) -> bool:
    """Whether there is no failure."""
    return all(finding.status != "failure" for finding in findings)


def to_lines(finding: Finding) -> list[str]:
    """One line, and the fix indented below it. Peers chose some of the words, so nothing may move the cursor."""
    message = " ".join(finding.message.split())
    fix = [f"{_INDENT}{line}" for line in finding.fix.splitlines()]
    return [_printable(line) for line in (f"{_WORDS[finding.status]:<8}{finding.subject}: {message}", *fix)]


def to_json(findings: Sequence[Finding]) -> str:
    """`{"ok", "checks": [{"id", "status", "subject", "message", "fix"}]}`."""
    return msgspec.json.format(msgspec.json.encode({"ok": passed(findings), "checks": findings}), indent=2).decode()


def to_summary(findings: Sequence[Finding]) -> str:
    """The last line: how much of what, and what that means."""
    number = {status: sum(finding.status == status for finding in findings) for status in _WORDS}
    counts = f"{number['ok']} ok, {count(number['warning'], 'warning')}, {count(number['failure'], 'failure')}"
    if number["failure"]:
        return f"{counts}: mend what is marked FAILURE and check again."
    return f"{counts}: the sidecar can run."


def sentence(words: str) -> str:
    """Words of an error as a sentence; a name at the beginning keeps its spelling."""
    first, space, rest = words.partition(" ")
    capital = first[:1].upper() + first[1:] if first.isalpha() else first
    return f"{capital}{space}{rest}{'' if words.endswith(('.', '?')) else '.'}"


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


class Step(NamedTuple):
    """A check that asks a peer, and what to say when the peer keeps silent."""

    run: Callable[[], Awaitable[list[Finding]]]
    late: Finding


async def side_by_side(steps: Sequence[Step], seconds: float) -> list[Finding]:
    """Run all steps at once, each for at most `seconds`; what they found, in the order of the steps."""
    found: list[list[Finding]] = [[step.late] for step in steps]

    async def one(place: int) -> None:
        with trio.move_on_after(seconds):
            found[place] = await steps[place].run()

    async with trio.open_nursery() as nursery:
        for place in range(len(steps)):
            nursery.start_soon(one, place)
    return [finding for findings in found for finding in findings]
