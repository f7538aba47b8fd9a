"""How we introduce ourselves: the bot token on its way into a header, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidecar import __version__
from sidecar.errors import LinkRefused

USER_AGENT: Final = f"teleport-mattermost-sidecar/{__version__}"


def bearer(token: Callable[[], str]) -> str:
    """Return the Authorization header of the token as it is now.

    Raises LinkRefused for a token that no header can hold; h11 would quote it in its own error.
    """
    try:
        value = token()
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or "it is no text"
        raise LinkRefused("mattermost", "token", f"the bot token cannot be read: {why}") from None
    if not (value.isascii() and value.isprintable()) or " " in value or not value:
        raise LinkRefused("mattermost", "token", "the bot token is empty or holds characters that no token has")
    return f"Bearer {value}"
