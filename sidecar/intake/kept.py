"""The credentials and the token that worked last, for when their files do not; they outlive a reload."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sidecar.mattermost.auth import Token
from sidecar.teleport.identity import credential_files

if TYPE_CHECKING:
    from sidecar.config.sections import MattermostConfig, TeleportConfig
    from sidecar.errors import LinkError

log = logging.getLogger(__name__)


class Proven:
    """The credentials that worked last, and the state that their files had by then; outlives the link."""

    def __init__(self) -> None:
        self.credentials: object = None
        self.files: list[object] = []
        self._told: tuple[list[object], str] | None = None

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


class Kept:
    """One of each; another server or other files in the configuration start with none."""

    def __init__(self) -> None:
        self._proven: tuple[object, Proven] = (None, Proven())
        self._token: tuple[object, Token] | None = None

    def proven(self, settings: TeleportConfig) -> Proven:
        """The credentials that the Auth Service took last."""
        place = (settings.addr, credential_files(settings))
        if self._proven[0] != place:
            self._proven = (place, Proven())
        return self._proven[1]

    def token(self, settings: MattermostConfig) -> Token:
        """What reads the bot token, and remembers the one that Mattermost took last."""
        place = (settings.url, settings.token_file)
        if self._token is None or self._token[0] != place or settings.token_file is None:
            self._token = (place, Token(settings.read_token, f"mattermost.token_file: {settings.token_file}"))
        return self._token[1]
