"""The metrics, each family once, on a registry of their own.

Rule: labels are closed sets that our code spells out; never an id, a name or a text.
"""

from __future__ import annotations

import platform

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from sidecar import __version__

_PREFIX = "teleport_mattermost"
# From a look-up on the loopback to the deadlines of 5 s (gRPC) and 10 s (REST).
_CALL_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Up to the minute that a look-up in a busy channel or a limiter may take.
_RECONCILE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)

LINKS = ("teleport", "mattermost")


class Metrics:
    """All families; `generate` is the page that Prometheus reads."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        # A second series beside each counter, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._links()
        self._work()
        self._calls()
        for link in LINKS:
            self.link_up.labels(link).set(0)
        self.build_info.labels(__version__, platform.python_version()).set(1)

    def generate(self) -> bytes:
        """Return the text exposition (version 0.0.4)."""
        return generate_latest(self.registry)

    def observe_rest(self, method: str, outcome: str, seconds: float) -> None:
        """Count a finished call to Mattermost."""
        self.rest_request_seconds.labels(method, outcome).observe(seconds)

    def observe_grpc(self, method: str, outcome: str, seconds: float) -> None:
        """Count a finished call to Teleport."""
        self.grpc_request_seconds.labels(method, outcome).observe(seconds)

    def _links(self) -> None:
        self.link_up = self._gauge("link_up", "1 while the link works and most writes reach it, else 0", "link")
        self.link_reconnects_total = self._counter("link_reconnects_total", "Times a link was lost", "link", "reason")
        self.events_total = self._counter("events_total", "Events received", "link", "kind")
        self.last_event_timestamp_seconds = self._gauge(
            "last_event_timestamp_seconds", "When the last event came, in Unix time", "link"
        )
        self.certificate_expiry_seconds = self._gauge(
            "certificate_expiry_seconds",
            "Seconds until the certificate expires; of the reviewers', the soonest",
            "identity",
        )
        self.loop_lag_seconds = self._gauge("loop_lag_seconds", "How late the event loop ran its last timer")
        self.log_lines_lost_total = self._counter("log_lines_lost_total", "Log lines that nobody was there to read")
        self.build_info = self._gauge("build_info", "Always 1; the labels tell the version", "version", "python")

    def _work(self) -> None:
        self.reconcile_seconds = self._histogram(
            "reconcile_seconds", "Time to bring one access request's messages to the truth", _RECONCILE_BUCKETS
        )
        self.backlog_requests = self._gauge("backlog_requests", "Access requests that wait for a worker or a server")
        self.open_requests = self._gauge("open_requests", "Access requests that are followed")
        self.requests_stuck = self._gauge("requests_stuck", "Access requests whose last tries all failed")
        self.posts_total = self._counter("posts_total", "Posts made or tried", "kind", "outcome")
        self.updates_total = self._counter("updates_total", "Posts brought up to date or tried", "outcome")
        self.duplicates_repaired_total = self._counter("duplicates_repaired_total", "Second posts found and deleted")
        self.posts_skipped_total = self._counter("posts_skipped_total", "Posts in Mattermost that cannot be read")
        self.recipients_failed = self._gauge(
            "recipients_failed", "Configured recipients that cannot be reached now", "reason"
        )
        self.reviewers_left_out_total = self._counter(
            "reviewers_left_out_total", "Suggested reviewers who were too many to be told"
        )
        self.rules = self._gauge("rules", "Access monitoring rules of Teleport that name our plugin", "state")
        self.records_unproven_total = self._counter(
            "records_unproven_total", "Posts that a record names as a card and that are none"
        )
        self.reviews_total = self._counter("reviews_total", "Reviews submitted or tried", "proposed_state", "outcome")
        self.decisions_refused_total = self._counter(
            "decisions_refused_total", "Decisions from Mattermost that were not carried out", "reason"
        )

    def _calls(self) -> None:
        labels = ("method", "outcome")
        self.rest_request_seconds = self._histogram(
            "rest_request_seconds", "Time of a call to Mattermost", _CALL_BUCKETS, *labels
        )
        self.grpc_request_seconds = self._histogram(
            "grpc_request_seconds", "Time of a call to Teleport", _CALL_BUCKETS, *labels
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", text, labels, registry=self.registry, buckets=buckets)
