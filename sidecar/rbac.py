"""The Teleport roles, users and commands that each way of submitting reviews needs, as `sidecar configure` prints them.

They stand in rbac.txt: a section for each page; lines between "@plugin state" and "@" are for these modes alone. Role
version v3 is the one that every Teleport from 7 on reads. It opens all apps, clusters and databases to a role that does
not mention them, and `none: none` matches nothing (lib/services/role.go, api/types/role.go).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources


def render(mode: str) -> str:
    """One file for `tctl create`: the sidecar's own role and user. Everything that is no YAML stands in comments."""
    return "".join(_lines("own", mode))


def render_example(mode: str) -> str:
    """One file for `tctl create`: dual authorization as in Teleport's guide, under names that nobody has yet."""
    return "".join(_lines("example", mode))


def render_bot() -> str:
    """One file for `tctl create`: the role, and a bot that holds it, so that tbot renews the sidecar's certificates."""
    return "".join(_lines("bot", "none"))


def _lines(page: str, mode: str) -> Iterator[str]:
    # No separator after the comments: tctl takes a document of comments alone for one without a kind.
    text = resources.files("sidecar").joinpath("rbac.txt").read_text(encoding="utf-8")
    wanted = True
    for line in text.partition(f"== {page}\n")[2].partition("== ")[0].splitlines(keepends=True):
        if line.startswith("@"):
            wanted = line == "@\n" or mode in line[1:].split()
        elif wanted:
            yield line.replace("<mode>", mode)
