"""Two small things that trio-websocket and nurseries lack."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import trio


class WatchedStream(trio.abc.Stream):
    """A stream that tells when it ended, by whichever side."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.on_end: Callable[[], object] | None = None

    def _end(self) -> None:
        if self.on_end is not None:
            self.on_end()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self._end()
        return data

    async def aclose(self) -> None:
        self._end()
        await self._stream.aclose()


def raise_single(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise what the body or the connect raised as itself: the nursery is our affair, not the caller's."""
    others = [exc for exc in group.exceptions if not isinstance(exc, trio.Cancelled)]
    if len(others) != 1:
        raise group
    context = others[0].__context__
    try:
        raise others[0]
    finally:
        others[0].__context__ = context
        del others
