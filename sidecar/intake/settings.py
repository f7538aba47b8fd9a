"""What of the configuration each link is made by, and whether people are listened to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sidecar.intake.keep import signature
from sidecar.mattermost.auth import Token

if TYPE_CHECKING:
    from sidecar.config import Config

# One answer of Mattermost, and the share of a lease that it may take: a write must end before the lease does.
REQUEST_SECONDS = 10.0


def link_settings(config: Config) -> dict[str, object]:
    """What each link is made by: where it changes, the link is made anew. The content of an authority file counts."""
    teleport, mattermost = config.teleport, config.mattermost
    return {
        "teleport": (msgspec.structs.replace(teleport, web_url="", lease=0.0), config.rules),
        "mattermost": (
            token_place(config),
            signature([mattermost.ca_file] if mattermost.ca_file else []),
            (mattermost.ca_file, mattermost.max_connections, mattermost.max_posts_per_second, request_seconds(config)),
            listens(config),
        ),
    }


def token_place(config: Config) -> object:
    """Where our token is shown, and where it is: one that worked elsewhere is of no use."""
    settings = config.mattermost
    return settings.url, settings.token_file, settings.token.reveal() if settings.token is not None else ""


def token(config: Config) -> Token:
    """What reads the bot token, and remembers the one that Mattermost took last."""
    return Token(config.mattermost.read_token, f"mattermost.token_file: {config.mattermost.token_file}")


def request_seconds(config: Config) -> float:
    """How long one answer of Mattermost may take."""
    return min(REQUEST_SECONDS, config.teleport.lease / 3)


def listens(config: Config) -> bool:
    """Whether somebody may say something to us in Mattermost: without that, there is no websocket."""
    reviews = config.reviews
    return reviews.submit_as != "none" or (bool(config.reviewers) and "direct" in reviews.ways)
