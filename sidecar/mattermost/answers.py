"""What an HTTP answer means: pure, from status and headers to an error of ours.

Statuses are those of reference Mattermost 5.37 to 11 (`model.AppError`), and of the proxies in front of it.
"""

from __future__ import annotations

import functools
import math
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from sidecar.errors import LinkLost, LinkRefused, PostRejected, SidecarError

PENDING_ID: Final = "api.post.deduplicate_create_post.pending"
NO_SUCH_ROUTE: Final = "api.context.404.app_error"

# Retry-After of Mattermost's own limiter is a second or two; no proxy may silence us for longer than this.
_LONGEST_PAUSE: Final = 60.0
_HOST_CHARS: Final = 255


def is_ok(status: int) -> bool:
    """Whether the call was carried out: success codes are not uniform, so any 2xx."""
    return 200 <= status < 300


def outcome(status: int) -> str:
    """Name the outcome of an answered request, as a metric label."""
    if is_ok(status):
        return "ok"
    if status == 429:
        return "rate_limited"
    if status == 401 or status < 400:
        return "refused"
    return "rejected" if status < 500 else "server_error"


def refusal(status: int, error_id: str, location: str, *, write: bool) -> SidecarError:
    """Return the error for any status outside 2xx and 429.

    Only what Mattermost itself says proves anything: a 404 of a proxy must not pass for "this post is gone".
    """
    said = f"{status} {error_id}".rstrip()
    if status == 401:
        return LinkRefused(
            "mattermost",
            "token",
            f"the bot token is not accepted ({said}): enable the bot, or put a new token into mattermost.token_file",
        )
    if status < 400:
        detail = f"{status} redirects to {_origin(location)}: set mattermost.url to the address of Mattermost itself"
        return LinkRefused("mattermost", "redirect", detail)
    if status == 404 and error_id in {"", NO_SUCH_ROUTE}:
        reason = "unknown_route" if error_id else "not_mattermost"
        return LinkLost("mattermost", reason, f"{said}: no Mattermost API answers here; check mattermost.url")
    if error_id == PENDING_ID or (status == 501 and error_id) or (status < 500 and status not in {408, 425}):
        return PostRejected(status, error_id)
    return LinkLost("mattermost", "server_error", f"the server answered {said}", ambiguous=write)


def _origin(location: str) -> str:
    """Scheme and host of a Location header, "elsewhere" where it holds none: the rest may be secret, or anything."""
    try:
        where = urlsplit(location)
    except ValueError:
        return "elsewhere"
    host = where.netloc.rpartition("@")[2]
    return f"{where.scheme}://{host[:_HOST_CHARS]}" if host else "elsewhere"


def wants_tls(status: int, body: bytes) -> bool:
    """Whether a port that speaks TLS answers to plain HTTP: the sentences of Go, nginx and Apache."""
    said = (
        b"HTTP request to an HTTPS server",
        b"HTTP request was sent to HTTPS port",
        b"to an SSL-enabled server port",
    )
    return status == 400 and any(words in body for words in said)


def retry_after(values: list[str], now: float) -> float:
    """Seconds to wait after a 429, from every Retry-After header (they come doubled); 1 where none makes sense.

    `now` is Unix seconds, for the HTTP-date form that some proxies use.
    """
    parts = [part.strip() for value in values for part in value.split(",")]
    found = [float(part) for part in parts if part.isdecimal()]
    found += [at - now for value in values if (at := server_time(value)) is not None]
    return min(max([1.0, *found]), _LONGEST_PAUSE)


@functools.lru_cache(maxsize=8)
def server_time(date: str) -> float | None:
    """Unix seconds of a Date header; None where it is no date. The answers of one second bear the same one."""
    try:
        when = parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return when if math.isfinite(when) else None
