"""How we introduce ourselves: the bot token on its way into a header, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from sidecar import __version__
from sidecar.errors import LinkRefused

log = logging.getLogger(__name__)

USER_AGENT: Final = f"teleport-mattermost-sidecar/{__version__}"


class Token:
    """The bot token as its file has it now; where that one does not serve, the last one that Mattermost accepted."""

    def __init__(self, read: Callable[[], str], source: str = "the bot token") -> None:
        """`source` is what a warning names: the file."""
        self._read = read
        self._source = source
        self._accepted = ""
        # What is wrong with the file, and was told of: the token in it, or a sentence.
        self._wrong = ""

    def __call__(self) -> str:
        """Return the token to use now. Raises LinkRefused where there is none."""
        try:
            token = _valid(self._read)
        except LinkRefused as exc:
            if not self._accepted:
                raise
            self._keep(exc.detail, exc.detail)
            return self._accepted
        if token == self._wrong:
            return self._accepted
        self._wrong = ""
        return token

    def accepted(self, token: str) -> None:
        """Mattermost has just taken us for who we are by this token."""
        self._accepted = token

    def refused(self, token: str) -> bool:
        """Mattermost does not accept this token; whether there is another one to try."""
        try:
            current = _valid(self._read)
        except LinkRefused:
            return self._accepted not in ("", token)
        if token == self._accepted:
            # What the file holds gets another chance, and nothing to fall back on.
            self._accepted = self._wrong = ""
        elif token == current and self._accepted:
            self._keep(token, "Mattermost does not accept this token")
            return True
        return token != current

    def _keep(self, wrong: str, detail: str) -> None:
        if wrong != self._wrong:
            self._wrong = wrong
            where = "" if detail.startswith(self._source) else f"{self._source}: "
            log.warning("credentials.kept", extra={"reason": "token", "detail": where + detail})


def bearer(token: Callable[[], str]) -> str:
    """Return the Authorization header of the token as it is now. Raises LinkRefused like `Token`."""
    return f"Bearer {_valid(token)}"


def _valid(token: Callable[[], str]) -> str:
    """Refuse a token that no header can hold; h11 would quote it in its own error."""
    try:
        value = token()
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or "it is no text"
        raise LinkRefused("mattermost", "token", f"the bot token cannot be read: {why}") from None
    if not (value.isascii() and value.isprintable()) or " " in value or not value:
        raise LinkRefused("mattermost", "token", "the bot token is empty or holds characters that no token has")
    return value
