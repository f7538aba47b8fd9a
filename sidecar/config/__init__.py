"""The configuration: `load` reads it, `Config` is what it reads.

Rule: every problem is told at once, by the name of its setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sidecar.config.checks import find_bare_names, find_notices, find_problems
from sidecar.config.layers import gather
from sidecar.config.sections import Config, MattermostConfig, Policy, Reviewer, ReviewsConfig, Sections, TeleportConfig
from sidecar.config.values import Names, Problems, Secret, read_struct
from sidecar.errors import ConfigError

__all__ = [
    "Config",
    "MattermostConfig",
    "Policy",
    "Reviewer",
    "ReviewsConfig",
    "Secret",
    "TeleportConfig",
    "load",
    "redacted",
]

_MAPS = frozenset({"role_to_recipients", "reviewers", "requesters"})


def load(
    path: Path | None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    *,
    pinning: bool = False,
) -> Config:
    """Read the settings: `flags` ("section.key" to text) beat `environment` (SIDECAR_SECTION__KEY) beats the file.

    With `pinning`, reviewers without an id are a notice, for `check --pin` to find their ids. Raises ConfigError with
    every problem found.
    """
    source = gather(path, environment or {}, flags or {}, _MAPS, _settings())
    problems: Problems = {}
    given = read_struct(Sections, source.tables, "", problems)
    sections = _normalise(given, source.notices)
    bare = () if pinning else find_bare_names(sections)
    for name, sentence in (*find_problems(sections, source.tables), *bare):
        if not any(f"{name}.".startswith(f"{known}.") for known in problems):  # what a default stood in for is no news
            problems[name] = sentence
    told = source.problems + [f"{name}: {sentence}" for name, sentence in problems.items()]
    if told:
        raise ConfigError(told)
    notices = (*source.notices, *find_notices(sections))
    return Config(**{name: getattr(sections, name) for name in Sections.__struct_fields__}, notices=notices)


def redacted(config: Config) -> dict[str, Any]:
    """Return the effective settings as plain tables for the log; secrets are ***."""
    tables: dict[str, Any] = msgspec.to_builtins(config, enc_hook=str)
    del tables["notices"]
    return tables


def _settings() -> list[str]:
    """Every setting that a variable can give, as "section.key"; of a table with free keys the table."""
    names: list[str] = []
    for section in msgspec.structs.fields(Sections):
        if section.name in _MAPS:
            names.append(section.name)
        else:
            names += [f"{section.name}.{key}" for key in section.type.__struct_fields__]
    return names


def _normalise(given: Sections, notices: list[str]) -> Sections:
    """Reduce spellings that mean the same to one."""
    routes = {role: _tidy(names) for role, names in given.role_to_recipients.items()}
    if given.mattermost.recipients:
        if routes:
            notices.append('mattermost.recipients: read as the "*" entry of role_to_recipients')
        routes["*"] = _tidy(given.mattermost.recipients)
    replace = msgspec.structs.replace
    return replace(
        given,
        role_to_recipients=routes,
        teleport=replace(
            given.teleport,
            web_url=given.teleport.web_url.rstrip("/"),
            ca_pin=tuple(pin.lower() for pin in given.teleport.ca_pin),
        ),
        mattermost=replace(given.mattermost, url=given.mattermost.url.rstrip("/")),
        reviews=replace(
            given.reviews,
            approve=tuple(emoji.strip(":") for emoji in given.reviews.approve),
            deny=tuple(emoji.strip(":") for emoji in given.reviews.deny),
            looking=tuple(emoji.strip(":") for emoji in given.reviews.looking),
        ),
        reviewers={name.removeprefix("@").lower(): reviewer for name, reviewer in given.reviewers.items()},
    )


def _tidy(names: Names) -> Names:
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
