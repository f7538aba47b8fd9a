"""How long the sidecar waits for what. One value, so that a test can live through an hour in a second.

All are seconds. What follows from a lease stands in `lease`, what one call may take in the two adapters.
"""

from __future__ import annotations

import random

import msgspec


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """The defaults are those of the design, sections 3 and 4."""

    # The watch: to INIT, between two pings, and how long one may take.
    init: float = 15.0
    ping_every: float = 15.0
    ping_limit: float = 5.0
    # A watch that silently stopped delivering is found by a full list this often, jittered (P7).
    list_every: float = 300.0
    list_at_most_every: float = 1.0
    # How long the watch may take to deliver what a list has already shown.
    silent: float = 30.0
    # How far a list may be behind the watch: newer servers answer it from a cache.
    list_lag: float = 30.0
    # Listing all plugin data finds records whose request is gone; it is the widest read, so it is rarer.
    records_every: float = 600.0

    # Mattermost: between two questions who we are, and while it is away and work waits.
    ask_every: float = 15.0
    ask_limit: float = 12.0
    probe: float = 2.0

    # Reading again what the websocket may have missed: how often, and the pause after each call (2 a second at most).
    sweep_every: float = 60.0
    sweep_pace: float = 0.5
    # What was read of a decision is read again before it is submitted, where it is older than this.
    evidence: float = 2.0
    # To the websocket's hello, between two JSON pings, and how long an answer may take.
    hello: float = 10.0
    socket_ping_every: float = 15.0
    socket_ping_limit: float = 10.0
    # How often the settings that make identities trustworthy are read again.
    identity_every: float = 600.0

    # A link whose peer has not answered for this long does not work, whatever it said last.
    stale: float = 30.0
    # A link that lived this long was healthy: the next wait starts from the beginning.
    healthy: float = 10.0
    refused_retry: float = 60.0
    file_poll: float = 2.0

    # A request counts as gone by its expiry only this long after it, and after a get by id found nothing; its card says
    # EXPIRED this long after it.
    expiry_grace: float = 60.0
    expired: float = 30.0
    # How long a request must be missing from every list where the rights may narrow lists.
    absent: float = 300.0
    # Recipients that fail are tried again after the first, then twice that, up to the most.
    retry_first: float = 60.0
    retry_most: float = 3600.0
    # A name that leads nowhere is looked up again after this.
    unknown_recipient: float = 30.0
    # How often the operators' recipients are all looked at: whether they are deactivated, archived, or back.
    recipients_every: float = 60.0
    # After a failed link. The breaker paces the whole; this only keeps one bad request from spinning.
    failure_first: float = 0.5
    failure_most: float = 60.0
    # A post whose first try got no answer is looked for once more after this: Mattermost may have carried out both.
    verify: float = 35.0

    # How long a call on a connection that was replaced may still take.
    call: float = 15.0
    # How often the end of our certificates is looked at.
    expiry_every: float = 60.0

    # From SIGTERM to the end of what is being written; containers are usually killed after 10 s.
    drain: float = 8.0

    def wait(self, failures: int, *, link: bool) -> float:
        """Seconds to wait after so many failures before this one; a link is tried again sooner than anything else."""
        if link:
            return doubled(self.failure_first, self.failure_most, failures)
        return doubled(self.retry_first, self.retry_most, failures)


USUAL = Times()


def doubled(first: float, most: float, failures: int) -> float:
    """Return the seconds to wait after so many failures before this one: `first`, then twice that, up to `most`."""
    return min(first * 2.0 ** min(failures, 64), most)  # far above 64 the power would no longer be a float


def jittered(seconds: float) -> float:
    """Return a random share of `seconds` between a tenth and all, so that many who wait do not come back at once."""
    return seconds * random.uniform(0.1, 1.0)  # noqa: S311 - jitter, not a secret


class Backoff:
    """Waits that double from `first` to `most` seconds, each jittered."""

    def __init__(self, first: float, most: float) -> None:
        self._first, self._most = first, most
        self.failures = 0

    def reset(self) -> None:
        """Start again from `first`."""
        self.failures = 0

    def take(self) -> float:
        """Return the seconds to wait now, and count one more failure."""
        wait = doubled(self._first, self._most, self.failures)
        self.failures += 1
        return jittered(wait)
