"""A JSON decoder that fails in one way only, and that no user of Mattermost can trip."""

from __future__ import annotations

import re
from typing import Annotated, Final, Generic, TypeVar, cast

import msgspec

from sidecar.errors import LinkGarbled

T = TypeVar("T")
Id = Annotated[str, msgspec.Meta(min_length=1)]

# Deeper nesting than this is cut out of a body that overflows the decoder. Mattermost's own objects are 5 deep.
_DEPTH: Final = 64
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|[^"\[\]{}]+', re.DOTALL)


class Decoder(Generic[T]):
    """A msgspec decoder that says LinkGarbled, and survives a post whose props nest thousands deep."""

    def __init__(self, kind: object, what: str) -> None:
        self._decoder = cast("msgspec.json.Decoder[T]", msgspec.json.Decoder(kind))
        self._what = what

    def __call__(self, body: bytes | str | msgspec.Raw) -> T:
        try:
            try:
                return self._decoder.decode(body)
            except RecursionError:
                raw = body.encode() if isinstance(body, str) else bytes(body)
                return self._decoder.decode(_pruned(raw))
        # ValueError: msgspec's own errors, and UnicodeDecodeError. Their texts may quote the body.
        except (ValueError, RecursionError):
            raise LinkGarbled("mattermost", "body", f"{self._what} cannot be decoded") from None


def _pruned(body: bytes) -> bytes:
    kept = []
    depth = 0
    for match in _TOKEN.finditer(body):
        token = match.group()
        if token in {b"[", b"{"}:
            depth += 1
            kept.append(token if depth <= _DEPTH else b"null" if depth == _DEPTH + 1 else b"")
        elif token in {b"]", b"}"}:
            kept.append(token if depth <= _DEPTH else b"")
            depth -= 1
        elif depth <= _DEPTH:
            kept.append(token)
    return b"".join(kept)
