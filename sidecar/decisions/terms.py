"""What the configuration says of decisions and of texts, as the rest of this folder takes it. Pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sidecar.decisions.expressions import Rules
from sidecar.text.fields import TextOptions

if TYPE_CHECKING:
    from sidecar.config import Config
    from sidecar.model import Ping


def rules_of(config: Config) -> Rules:
    """What the configuration says of decisions."""
    reviews = config.reviews
    return Rules(
        mode=reviews.submit_as,
        # Where nobody decides, there are still questions to answer.
        ways=tuple(way for way in reviews.ways if reviews.submit_as != "none" or way == "direct"),
        approve=reviews.approve,
        deny=reviews.deny,
        require_reason=reviews.require_reason,
        looking=reviews.looking,
        policies=reviews.policy,
        linked={one.id: one.user for one in config.reviewers.values() if one.id},
    )


def digest_of(config: Config) -> str:
    """What the rules come to by which people decide: where they change, words from before do not count."""
    reviews = config.reviews
    linked = sorted(f"{one.id}={one.user}" for one in config.reviewers.values())
    parts = [reviews.submit_as, *reviews.ways, "", *reviews.approve, "", *reviews.deny, reviews.identity, *linked]
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]


def options_of(config: Config, rules: Rules, info: Ping | None, proxy_addr: str) -> TextOptions:
    """How messages look, by what Teleport and a Proxy on the way say of themselves.

    Without reviews on the server, its page has no buttons, so that a link to it is of no use.
    """
    web_url = config.teleport.web_url
    if not web_url and info is not None and (proxy := proxy_addr or info.proxy_public_addr):
        web_url = f"https://{proxy}"
    has_reviews = info is not None and (info.advanced_workflows or info.paid_entitlement)
    return TextOptions(
        cluster=info.cluster if info is not None else "",
        web_url=web_url,
        reviews_supported=bool(config.teleport.web_url) or has_reviews,
        time_zone=config.messages.time_zone or None,
        ways=rules.ways if rules.mode != "none" else (),
        approve_emoji=rules.approve[0],
        deny_emoji=rules.deny[0],
        require_reason=rules.require_reason,
        # This mode is for the edition without reviews alone.
        commands=rules.mode != "state",
        whole_ids=info is not None and info.major < 16,
    )
