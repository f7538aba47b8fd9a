"""Dashboards and alerts are written against these names."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from sidecar.metrics import Metrics

FAMILIES = {
    "link_up": ("gauge", ("link",)),
    "link_reconnects": ("counter", ("link", "reason")),
    "events": ("counter", ("link", "kind")),
    "reconcile_seconds": ("histogram", ()),
    "backlog_requests": ("gauge", ()),
    "open_requests": ("gauge", ()),
    "requests_stuck": ("gauge", ()),
    "posts": ("counter", ("kind", "outcome")),
    "updates": ("counter", ("outcome",)),
    "duplicates_repaired": ("counter", ()),
    "posts_skipped": ("counter", ()),
    "records_unproven": ("counter", ()),
    "recipients_failed": ("gauge", ("reason",)),
    "reviewers_left_out": ("counter", ()),
    "rules": ("gauge", ("state",)),
    "rest_request_seconds": ("histogram", ("method", "outcome")),
    "grpc_request_seconds": ("histogram", ("method", "outcome")),
    "reviews": ("counter", ("proposed_state", "outcome")),
    "decisions_refused": ("counter", ("reason",)),
    "certificate_expiry_seconds": ("gauge", ("identity",)),
    "last_event_timestamp_seconds": ("gauge", ("link",)),
    "loop_lag_seconds": ("gauge", ()),
    "log_lines_lost": ("counter", ()),
    "build_info": ("gauge", ("version", "python")),
}


def test_names_kinds_and_labels() -> None:
    ours = {
        family.name.removeprefix("teleport_mattermost_"): family.type
        for family in Metrics().registry.collect()
        if not family.name.startswith("process_")
    }
    assert ours == {name: kind for name, (kind, _) in FAMILIES.items()}
    metrics = Metrics()
    for name, (kind, labels) in FAMILIES.items():
        attribute = getattr(metrics, f"{name}_total" if kind == "counter" else name)
        assert attribute._labelnames == labels


def test_every_family_keeps_prometheus_rules() -> None:
    """What `promtool check metrics` looks at: a help text, a legal name, _total on counters and on nothing else."""
    for family in Metrics().registry.collect():
        assert family.documentation
        assert re.fullmatch(r"[a-z][a-z0-9_]*", family.name)
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_info_info", "_milliseconds"))


def test_the_page_can_be_read_and_has_the_process() -> None:
    metrics = Metrics()
    metrics.events_total.labels("teleport", "put").inc()
    metrics.observe_rest("create_post", "ok", 0.02)
    metrics.observe_grpc("Ping", "ok", 0.002)
    page = metrics.generate().decode()
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["teleport_mattermost_link_up", ("teleport",)] == 0
    assert samples["teleport_mattermost_events_total", ("put", "teleport")] == 1
    assert samples["teleport_mattermost_rest_request_seconds_count", ("create_post", "ok")] == 1
    assert samples["teleport_mattermost_grpc_request_seconds_sum", ("Ping", "ok")] == 0.002
    assert ("process_resident_memory_bytes", ()) in samples
    assert "_created" not in page


def test_each_run_counts_for_itself() -> None:
    first, second = Metrics(), Metrics()
    first.duplicates_repaired_total.inc()
    assert b"teleport_mattermost_duplicates_repaired_total 0.0" in second.generate()
