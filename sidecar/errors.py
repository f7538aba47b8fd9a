"""The errors of the sidecar, named by what the caller does next.

SidecarError
├── ConfigError      problems: a list of sentences; printed as a list, exit code 2
├── LinkError        link: "teleport" or "mattermost"
│   ├── LinkLost     the peer is away: wait, try again, look before repeating a write
│   ├── LinkRefused  the peer said no to who we are: not ready, slow retry, at once when a credential file changes
│   └── LinkGarbled  the peer broke the protocol: count, reconnect
│       └── UnreadableAnswer  one answer is too large or nested too deep: ask for less, or go on without it
├── Conflict         plugin data changed under us: read again, decide again
├── PluginDataTooLarge  what was to be saved exceeds Teleport's limit; nothing was written
├── RequestGone      Teleport no longer has the access request
├── RecipientError   this recipient cannot be reached; the others can
├── PostRejected     Mattermost refused this one write and stored nothing
└── ReviewRejected   Teleport refused this one review
"""

from __future__ import annotations

from typing import Literal

LinkName = Literal["teleport", "mattermost"]


class SidecarError(Exception):
    """Base of every error that the sidecar raises on purpose."""


class ConfigError(SidecarError):
    """The configuration cannot be used; `problems` holds one sentence for each thing to mend."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class LinkError(SidecarError):
    """A link failed. `reason` is a closed set (a metric label), `detail` a sentence without secrets."""

    def __init__(self, link: LinkName, reason: str, detail: str) -> None:
        super().__init__(f"{link}: {detail}")
        self.link: LinkName = link
        self.reason = reason
        self.detail = detail


class LinkLost(LinkError):
    """The peer is away.

    `ambiguous` is true when a write may have been carried out all the same (timeout, reset after sending, 5xx).
    """

    def __init__(self, link: LinkName, reason: str, detail: str, *, ambiguous: bool = False) -> None:
        super().__init__(link, reason, detail)
        self.ambiguous = ambiguous


class LinkRefused(LinkError):
    """The peer knows us and says no: bad token, denied watch, expired certificate."""


class LinkGarbled(LinkError):
    """The peer broke the protocol: a message that cannot be decoded, no INIT, no hello."""


class UnreadableAnswer(LinkGarbled):
    """One answer was not taken in, for it is "too_large" or "too_deep"; the link is well. `head` is its beginning."""

    def __init__(self, link: LinkName, reason: str, detail: str, head: bytes = b"") -> None:
        super().__init__(link, reason, detail)
        self.head = head


class Conflict(SidecarError):
    """A compare-and-swap found other data than expected; nothing was written."""


class PluginDataTooLarge(SidecarError):
    """Teleport refused plugin data for its size (1 MB of JSON for all plugins together); nothing was written."""


class RequestGone(SidecarError):
    """Teleport no longer has the access request that the call named."""


class RecipientError(SidecarError):
    """A recipient cannot be reached now. `reason` is a closed set (a metric label), `detail` says what to do."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class PostRejected(SidecarError):
    """Mattermost refused one write, and provably stored nothing.

    `status` is the HTTP status, `error_id` Mattermost's own error id ("" where the body had none).
    """

    def __init__(self, status: int, error_id: str) -> None:
        super().__init__(f"Mattermost answered {status} {error_id}".rstrip())
        self.status = status
        self.error_id = error_id


class ReviewRejected(SidecarError):
    """Teleport refused one review. `reason` is a closed set (a metric label), `detail` is Teleport's own sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
