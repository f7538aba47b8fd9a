"""From plain tables to typed values, driven by the types alone; every problem is collected, none is raised.

Rule: knows kinds of values, not a single setting.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

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
    """A text that does not get into a log or an exception by accident."""

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
    kinds = {field.name: _without_none(field.type) for field in msgspec.structs.fields(kind)}

    def kind_of(key: str) -> Any:  # noqa: ANN401 - a type expression has no type of its own
        if key in kinds:
            return kinds[key]
        # Old names lead to what they are called now.
        known = dict.fromkeys(kinds) | getattr(kind, "old", {})
        close = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
        raise _WrongError(f"unknown key, did you mean {known[close[0]] or close[0]}?" if close else "unknown key")

    return kind(**_read_table(kind_of, table, name, problems))


def _read_table(kind_of: Callable[[str], Any], table: object, name: str, problems: Problems) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if not isinstance(table, dict):
        problems[name] = "must be a table of keys, not a value"
        return values
    for key, raw in table.items():
        place = f"{name}.{key}" if name else key
        try:
            values[key] = _read(kind_of(key), raw, place, problems)
        except _WrongError as exc:
            problems[place] = str(exc)
    return values


def _without_none(kind: Any) -> Any:  # noqa: ANN401 - as above
    given = [one for one in get_args(kind) if one is not NoneType]
    return given[0] if NoneType in get_args(kind) else kind


def _read(kind: Any, raw: object, name: str, problems: Problems) -> Any:  # noqa: ANN401 - as above
    if isinstance(raw, Text):
        raw = _from_text(kind, raw)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        alone = getattr(kind, "alone", None)  # the key that a lone text stands for
        return read_struct(kind, {alone: raw} if alone and isinstance(raw, str) else raw, name, problems)
    if get_origin(kind) is dict:
        return _read_table(lambda _: get_args(kind)[1], raw, name, problems)
    if get_origin(kind) is tuple:
        return _read_list(get_args(kind)[0], raw, name, problems)
    return _read_value(kind, raw)


def _read_value(kind: Any, raw: object) -> Any:  # noqa: ANN401 - as above
    if kind == Seconds:
        return _read_seconds(raw)
    if isinstance(raw, str) and get_origin(kind) is Literal:
        # A word in any case, as the official plugin takes its severities.
        raw = {choice.lower(): choice for choice in get_args(kind)}.get(raw.lower(), raw)
    if isinstance(raw, str) and kind in (Path, Secret):
        return kind(raw)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError:
        given = "" if kind is Secret else f", not {_shown(raw)}"
        raise _WrongError(f"must be {_expected(kind)}{given}") from None


def _expected(kind: Any) -> str:  # noqa: ANN401 - as above
    """Name a kind of value in the words of somebody who writes the file."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is not Annotated:
        return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text in quotes")
    plain, meta = get_args(kind)
    upper = f" to {meta.le:g}" if meta.le is not None else " upwards"
    return f"{_expected(plain)} from {meta.ge:g}{upper}"


def _read_list(kind: Any, raw: object, name: str, problems: Problems) -> tuple[Any, ...]:  # noqa: ANN401 - as above
    """One value may stand alone."""
    items = []
    for number, item in enumerate(raw if isinstance(raw, list) else [raw], 1):
        try:
            items.append(_read(kind, item, name, problems))
        except _WrongError as exc:
            raise _WrongError(f"{exc} (item {number})" if isinstance(raw, list) else str(exc)) from None
    return tuple(items)


def _read_seconds(raw: object) -> float:
    if isinstance(raw, str):
        with suppress(ValueError):
            return parse_duration(raw)
    raise _WrongError(f'must be a duration such as "90s", "10m" or "1h30m", not {_shown(raw)}')


def _shown(raw: object) -> str:
    """A wrong value as it was written, cut: it may be anything."""
    return textwrap.shorten(json.dumps(raw, default=str, ensure_ascii=False), 60, placeholder="…")


def _from_text(kind: Any, text: Text) -> object:  # noqa: ANN401 - as above
    """Read a value out of the text of a variable or a flag: plain words as they are, anything else as TOML."""
    if kind in (str, Path, Secret, Seconds) or get_origin(kind) is Literal:
        return str(text)
    if get_origin(kind) is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return str(text)
    except RecursionError:
        raise _WrongError("is nested too deeply") from None
