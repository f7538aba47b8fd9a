"""The credentials that worked last, for when their files do not; they outlive a reload."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.errors import LinkError

log = logging.getLogger(__name__)


class Proven:
    """The credentials that worked last, and the state that their files had by then; outlives the link."""

    def __init__(self) -> None:
        self.credentials: object = None
        self.files: list[object] = []
        self._told: tuple[list[object], str] | None = None

    def forget(self) -> None:
        """They are shown elsewhere now, or others are."""
        self.credentials = self._told = None

    def take(self, credentials: object, files: list[object]) -> None:
        """A connection with these works; where they are those of before, the files still wait to be mended."""
        if credentials is not self.credentials:
            self.credentials, self.files, self._told = credentials, files, None

    def tell_kept(self, files: list[object], exc: LinkError) -> None:
        """Say why the files are not used, once for each state of them."""
        news = (files, exc.reason)
        if self._told != news:
            self._told = news
            log.warning("credentials.kept", extra={"reason": exc.reason, "detail": exc.detail})
