"""Where settings come from: a TOML file, the environment, flags; and the official plugin's files of every era.

Rule: the outcome is plain tables, which `values.py` turns into values. A later layer beats an earlier one, key by key.
Key names and what they meant: teleport-plugins v0.1.0 to v13, teleport v13 to v18 `integrations/access/mattermost`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from sidecar.errors import ConfigError
from sidecar.files import plain

ENVIRONMENT_PREFIX = "SIDECAR_"
# What Kubernetes tells each container of a Service whose name begins with "sidecar"; nobody can take it back.
_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_[A-Z]+(_PROTO|_PORT|_ADDR)?)?$")

Tables = dict[str, Any]


class Text(str):
    """A value from the environment or a flag: its type is still to be read out of the text."""

    __slots__ = ()


class Source(msgspec.Struct):
    """Everything that was given, and what is to be reported about it."""

    tables: Tables
    problems: list[str]
    notices: list[str]


# Keys without a meaning here: the official plugin's, and one that this sidecar had. "section.*" is a whole table.
_DEAD = {
    "http.*": "the sidecar takes no calls from Mattermost, so there is no listener to configure",
    "storage.*": "the sidecar keeps nothing on disk; its state is in Teleport plugin data",
    "mattermost.secret": "there are no buttons to sign",
    "reviews.require_ids": "wherever decisions are on, [reviewers] is by id",
    "teleport.refresh_identity": "credential files are always watched",
    "teleport.refresh_identity_interval": "credential files are always watched",
    "log.output": "the log goes to standard error",
}

# A later layer that gives one of a pair takes the other one back, so that a flag can beat the file.
_RIVALS = {
    "mattermost.token": ("mattermost.token_file",),
    "mattermost.token_file": ("mattermost.token",),
    "teleport.addr": ("teleport.auth_server",),
    "teleport.identity": ("teleport.client_crt", "teleport.client_key", "teleport.root_cas"),
    "teleport.client_crt": ("teleport.identity",),
    "teleport.client_key": ("teleport.identity",),
    "teleport.root_cas": ("teleport.identity",),
}


def gather(
    path: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, str],
    maps: frozenset[str],
    known: Sequence[str] = (),
) -> Source:
    """Read every layer. `flags` are "section.key" to text; `maps` are the tables whose keys are free.

    `known` are the settings as "section.key", to suggest one for a variable that is none.

    Raises ConfigError when the file itself cannot be read or is not TOML.
    """
    source = Source(tables=_read(path) if path else {}, problems=[], notices=[])
    for name, text in sorted(environment.items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        section, separator, key = name.removeprefix(ENVIRONMENT_PREFIX).partition("__")
        section = section.lower()
        if separator:
            _put(source, f"{section}.{key if section in maps else key.lower()}", text)
        elif section in maps:
            source.tables[section] = Text(text)
        elif not _KUBERNETES.search(name):
            source.problems.append(f"{name}: unknown variable{_suggestion(name, known)}")
    for name, text in flags.items():
        _put(source, name, text)
    _drop_empty(source, maps)
    _translate(source)
    return source


def _suggestion(name: str, known: Sequence[str]) -> str:
    variables = [ENVIRONMENT_PREFIX + setting.upper().replace(".", "__") for setting in known]
    close = difflib.get_close_matches(name.upper(), variables, n=1, cutoff=0.8)
    return f", did you mean {close[0]}?" if close else ", write it as SIDECAR_SECTION__KEY"


def _read(path: Path) -> Tables:
    try:
        return tomllib.loads(plain(path).read_bytes().decode("utf-8-sig"))
    except OSError as exc:
        raise ConfigError([f"{path}: cannot be read: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError([f"{path}: is not TOML: {exc}"]) from exc
    except RecursionError as exc:
        raise ConfigError([f"{path}: is nested too deeply"]) from exc


def _put(source: Source, name: str, text: str) -> None:
    section, _, key = name.partition(".")
    table = source.tables.setdefault(section, {})
    if not key or not isinstance(table, dict):
        source.problems.append(f"{name}: expected section.key")
        return
    table[key] = Text(text)
    for rival in _RIVALS.get(name, ()):
        table.pop(rival.partition(".")[2], None)


def _drop_empty(source: Source, maps: frozenset[str]) -> None:
    """An empty string means "not given", as it does in the official plugin."""
    for section, table in source.tables.items():
        if isinstance(table, dict) and section not in maps:
            source.tables[section] = {key: value for key, value in table.items() if value != ""}


def _translate(source: Source) -> None:
    """Turn the official plugin's keys into ours, with a notice for each that changed its meaning or lost it."""
    for name, why in _DEAD.items():
        section, _, key = name.partition(".")
        table = source.tables.get(section)
        found = section in source.tables if key == "*" else isinstance(table, dict) and key in table
        if found:
            owner, dead = (source.tables, section) if key == "*" else (source.tables[section], key)
            del owner[dead]
            source.notices.append(f"{name.removesuffix('.*')}: ignored, {why}")
    teleport, mattermost = (source.tables.get(section) for section in ("teleport", "mattermost"))
    if isinstance(teleport, dict):
        _translate_address(teleport, source)
    if isinstance(mattermost, dict):
        _translate_token(mattermost)
        _translate_channel(mattermost, source)


def _translate_address(teleport: Tables, source: Source) -> None:
    if "auth_server" not in teleport:
        return
    old = teleport.pop("auth_server")
    if "addr" in teleport:
        source.notices.append("teleport.auth_server: ignored, teleport.addr is given")
    else:
        teleport["addr"] = old
        source.notices.append("teleport.auth_server: old name, write teleport.addr")


def _translate_token(mattermost: Tables) -> None:
    """A token that starts with "/" is the path of a file that holds it."""
    token = mattermost.get("token")
    if isinstance(token, str) and token.startswith("/") and "token_file" not in mattermost:
        mattermost["token_file"] = mattermost.pop("token")


def _translate_channel(mattermost: Tables, source: Source) -> None:
    """`team` and `channel`: the one recipient of versions before 6.1, a leftover in the files of later ones."""
    legacy = {key: mattermost.pop(key) for key in ("team", "channel") if key in mattermost}
    if not legacy:
        return
    if "recipients" in mattermost or "role_to_recipients" in source.tables:
        source.notices.append(f"mattermost.{', mattermost.'.join(legacy)}: ignored, recipients are given")
    elif len(legacy) == 1 or not all(isinstance(part, str) for part in legacy.values()):
        source.problems.append('mattermost.team, mattermost.channel: give recipients = ["team/channel"] instead')
    else:
        mattermost["recipients"] = ["{team}/{channel}".format(**legacy)]
        source.notices.append(f"mattermost.team, mattermost.channel: read as recipients = {mattermost['recipients']}")
