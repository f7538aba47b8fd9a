"""From plain tables to typed values, driven by the types alone; every problem is collected, none is raised.

Rule: knows kinds of values, not a single setting.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from sidecar.config.layers import Text

# A number of seconds, written as "10m", "90s", "1h30m".
Seconds = Annotated[float, "seconds"]
# A list of names; one name may stand alone.
Names = tuple[str, ...]
# The name of a setting ("section.key") to the one sentence about it.
Problems = dict[str, str]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+|0")
_PART = re.compile(r"([\d.]+)(ms|s|m|h|d)")

S = TypeVar("S", bound=msgspec.Struct)


class Secret:
    """A text that neither a log nor an exception shows by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "***"

    def reveal(self) -> str:
        """Return the text itself, for the one place that needs it."""
        return self._text


class _WrongError(Exception):
    """What is wrong with a value, as the rest of a sentence."""


def parse_duration(text: str) -> float:
    """Seconds of "1h30m", "90s", "0". Raises ValueError."""
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def split_address(address: str) -> tuple[str, int] | None:
    """Split "host:port", "[::1]:port" or ":port" (every interface, host ""); None where it is neither."""
    host, separator, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return None
    if (":" in bare and host != f"[{bare}]") or re.search(r"[\s/@]", host):
        return None
    return bare, int(port)


def read_struct(kind: type[S], table: object, name: str, problems: Problems) -> S:
    """Build a `kind` from a table. What is wrong goes into `problems`, and its key keeps the default."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    if not isinstance(table, dict):
        problems[name] = "is a table of keys, not a value"
        table = {}
    values: dict[str, Any] = {}
    for key, raw in table.items():
        place = f"{name}.{key}" if name else key
        if key not in fields:
            problems[place] = "unknown key" + _suggestion(key, dict.fromkeys(fields) | getattr(kind, "old", {}))
            continue
        try:
            values[key] = _read(_without_none(fields[key]), raw, place, problems)
        except _WrongError as exc:
            problems[place] = str(exc)
    return kind(**values)


def _without_none(field: FieldInfo) -> Any:  # noqa: ANN401 - a type expression has no type of its own
    alternatives = [kind for kind in get_args(field.type) if kind is not NoneType]
    return alternatives[0] if NoneType in get_args(field.type) else field.type


def _suggestion(key: str, known: Mapping[str, str | None]) -> str:
    """`known` are the keys, and old ones with what they are called now."""
    close = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
    return f", did you mean {known[close[0]] or close[0]}?" if close else ""


def _read(kind: Any, raw: object, name: str, problems: Problems) -> Any:  # noqa: ANN401 - as above
    if isinstance(raw, Text):
        raw = _from_text(kind, raw)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        alone = getattr(kind, "alone", None)  # the key that a lone text stands for
        return read_struct(kind, {alone: raw} if alone and isinstance(raw, str) else raw, name, problems)
    if get_origin(kind) is dict:
        return _read_map(get_args(kind)[1], raw, name, problems)
    if get_origin(kind) is Literal:
        return _read_choice(get_args(kind), raw)
    if kind == Seconds:
        return _read_seconds(raw)
    if kind == Names and isinstance(raw, str):
        return (raw,)
    try:
        return msgspec.convert(raw, kind, dec_hook=_read_wrapped)
    except msgspec.ValidationError as exc:
        sentence, _, place = str(exc).partition(" - at ")
        item = re.search(r"\d+", place)
        raise _WrongError(sentence.lower() + (f" as item {int(item[0]) + 1}" if item else "")) from None


def _read_map(kind: Any, raw: object, name: str, problems: Problems) -> dict[str, Any]:  # noqa: ANN401 - as above
    if not isinstance(raw, dict):
        raise _WrongError("is a table of keys, not a value")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        place = f"{name}.{key}"
        try:
            values[key] = _read(kind, value, place, problems)
        except _WrongError as exc:
            problems[place] = str(exc)
    return values


def _read_choice(choices: tuple[str, ...], raw: object) -> str:
    """A choice is a word in any case, as the official plugin takes its severities."""
    for choice in choices:
        if isinstance(raw, str) and raw.lower() == choice.lower():
            return choice
    raise _WrongError(f"is one of {', '.join(choices)}, not {_shown(raw)}")


def _read_seconds(raw: object) -> float:
    if isinstance(raw, str):
        try:
            return parse_duration(raw)
        except ValueError:
            pass
    raise _WrongError(f'is a duration, such as "90s", "10m" or "1h30m", not {_shown(raw)}')


def _shown(raw: object) -> str:
    """A wrong value as TOML has it, cut: it may be anything, a whole file among it."""
    return textwrap.shorten(json.dumps(raw, default=str, ensure_ascii=False), 60, placeholder="…")


def _read_wrapped(kind: type, raw: object) -> object:
    if not isinstance(raw, str):
        raise _WrongError(f"expected `str`, got `{type(raw).__name__}`")
    return kind(raw)


def _from_text(kind: Any, text: Text) -> object:  # noqa: ANN401 - as above
    """Read a value out of the text of a variable or a flag: plain words as they are, anything else as TOML."""
    if kind in (str, Path, Secret, Seconds) or get_origin(kind) is Literal:
        return str(text)
    if kind == Names and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return str(text)
