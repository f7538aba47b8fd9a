"""JSON decoders that fail in one way only."""

from __future__ import annotations

import re
from typing import Final, Generic, TypeVar, cast

import msgspec

from sidecar.errors import LinkGarbled, UnreadableAnswer

T = TypeVar("T")
# How much of an answer that cannot be read as a whole is kept: enough for the fields that come first.
HEAD_BYTES: Final = 1024


class Decoder(Generic[T]):
    """A msgspec decoder that says LinkGarbled, or UnreadableAnswer where the body nests deeper than it follows.

    Properties of posts are any user's to choose: declare what is needed of them, so that the rest is skipped in C, for
    a price that depends on its length alone.
    """

    def __init__(self, kind: object, what: str) -> None:
        self._decoder = cast("msgspec.json.Decoder[T]", msgspec.json.Decoder(kind))
        self._what = what

    def __call__(self, body: bytes | str | msgspec.Raw) -> T:
        try:
            return self._decoder.decode(body)
        # Their texts may quote the body. ValueError: msgspec's own errors, and UnicodeDecodeError.
        except ValueError:
            raise LinkGarbled("mattermost", "body", f"{self._what} cannot be decoded") from None
        except RecursionError:
            head = (body.encode(errors="replace") if isinstance(body, str) else bytes(body))[:HEAD_BYTES]
            raise UnreadableAnswer("mattermost", "too_deep", f"{self._what} is nested too deep", head) from None


# A whole string, a brace, or the beginning of a string that goes on in the next piece.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}"]', re.DOTALL)
_NOTHING_ELSE: Final = re.compile(rb"\s*(?:\[[\s,]*\]|null)\s*")
_MAX_ITEM_BYTES: Final = 256 * 1024
_MAX_ITEMS: Final = 200_000


class Items(Generic[T]):
    """A list of objects, decoded one by one as it arrives: it may be longer than what is taken in at once."""

    def __init__(self, item: Decoder[T]) -> None:
        self.found: list[T] = []
        self._item = item
        self._data = bytearray()
        # What stands outside of the objects, where in the data to go on, and how deep that is.
        self._outside = b""
        self._at = 0
        self._depth = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece."""
        self._data += data
        begun = 0
        for token in _TOKEN.finditer(self._data, self._at):
            if token[0] == b'"':
                break
            self._at = token.end()
            self._depth += (token[0] == b"{") - (token[0] == b"}")
            if token[0] == b"{" and self._depth == 1:
                self._outside += self._data[begun : self._at - 1]
                begun = self._at - 1
            elif token[0] == b"}" and not self._depth:
                self.found.append(self._item(bytes(self._data[begun : self._at])))
                begun = self._at
        del self._data[:begun]
        self._at -= begun
        if len(self._data) > _MAX_ITEM_BYTES or len(self._outside) > _MAX_ITEMS:
            detail = f"a list has more than {_MAX_ITEMS} items, or one of more than {_MAX_ITEM_BYTES} bytes"
            raise UnreadableAnswer("mattermost", "too_large", detail)

    def end(self) -> list[T]:
        """Return all; raises LinkGarbled where it was no list of objects."""
        if not _NOTHING_ELSE.fullmatch(self._outside + self._data):
            raise LinkGarbled("mattermost", "body", "a list cannot be decoded")
        return self.found
