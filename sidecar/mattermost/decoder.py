"""A JSON decoder that fails in one way only."""

from __future__ import annotations

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
