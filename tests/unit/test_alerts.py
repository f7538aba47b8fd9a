"""Alerts and dashboard speak of metrics, labels and reasons that exist; Prometheus's own tool agrees where it is."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.metrics import Metrics
from tests.tree import ROOT, modules
from tests.yaml_files import load

RULES = ROOT / "compose/prometheus"
TARGET_LABELS = {"job", "instance"}


def alerts() -> list[dict[str, Any]]:
    (group,) = load("compose/prometheus/alerts.yml")["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((ROOT / "compose/grafana/dashboards/sidecar.json").read_text())
    return board


def expressions() -> Iterator[tuple[str, str]]:
    """Where from, and every PromQL expression that we ship."""
    for alert in alerts():
        yield alert["alert"], alert["expr"]
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    yield "annotation", board["annotations"]["list"][0]["expr"]


def known() -> dict[str, set[str]]:
    """The name of each sample that can be on our page, with the labels it has."""
    metrics = Metrics()
    names: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        labels = getattr(getattr(metrics, attribute(family.name, family.type), None), "_labelnames", ())
        endings = {"histogram": ["_bucket", "_count", "_sum"], "counter": ["_total"]}.get(family.type, [""])
        for ending in endings:
            names[family.name + ending] = {*labels, *({"le"} if ending == "_bucket" else ())}
    return names


def attribute(name: str, kind: str) -> str:
    return name.removeprefix("teleport_mattermost_") + ("_total" if kind == "counter" else "")


KNOWN = known()


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_metric_and_label_exists(where: str, expression: str) -> None:
    used = re.findall(r"\b((?:teleport_mattermost|process)_\w+)(?:\{([^}]*)\})?", expression)
    assert used
    for name, selector in used:
        assert name in KNOWN
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) <= KNOWN[name] | TARGET_LABELS
    allowed = set().union(*(KNOWN[name] for name, _ in used)) | TARGET_LABELS
    for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= allowed


def test_every_metric_is_looked_at() -> None:
    """A family that neither wakes anybody nor is on the dashboard need not be measured."""
    shipped = " ".join(expression for _, expression in expressions())
    ours = {name for name in KNOWN if name.startswith("teleport_") and not name.endswith(("_sum", "_bucket", "_count"))}
    assert not [name for name in ours if name not in shipped]


def refusals() -> set[str]:
    """The reasons of every `LinkRefused(link, reason, ...)` in the source."""
    found = set()
    for name, tree in modules().items():
        if name.startswith("sidecar.simulator"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "LinkRefused" and len(node.args) > 1:
                reason = node.args[1]
                found.add(reason.value if isinstance(reason, ast.Constant) else "")
    return {str(reason) for reason in found if reason}


def test_the_alert_on_refusals_knows_every_reason() -> None:
    (alert,) = (alert for alert in alerts() if alert["alert"] == "LinkRefused")
    (listed,) = re.findall(r'reason=~"([^"]*)"', alert["expr"])
    # Said by a status code of Teleport: sidecar/teleport/status.py.
    assert set(listed.split("|")) == refusals() | {"unimplemented", "invalid_argument"}
    assert listed == "|".join(sorted(listed.split("|")))


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"warning", "critical"}
    assert len(alert["annotations"]["summary"]) <= 90
    assert alert["annotations"]["description"].endswith(".")
    names = set().union(*(KNOWN[name] for name in re.findall(r"teleport_mattermost_\w+", alert["expr"])))
    for label in re.findall(r"\$labels\.(\w+)", str(alert["annotations"])):
        assert label in names | TARGET_LABELS


def test_every_alert_has_a_test_that_lets_it_speak_and_one_that_keeps_it_silent() -> None:
    cases = [case for test in load("compose/prometheus/alerts_test.yml")["tests"] for case in test["alert_rule_test"]]
    names = {alert["alert"] for alert in alerts()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_panels_lie_beside_each_other() -> None:
    """A dashboard that was edited by hand: unique ids, nothing overlaps, nothing is wider than the screen."""
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: package prometheus)")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("test", "rules", "alerts_year_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: package prometheus)")
def test_promtool_can_read_the_dashboard(tmp_path: Path) -> None:
    """Every expression as a rule, with Grafana's variables filled in."""
    filled = [text.replace("$__rate_interval", "1m").replace("$instance", ".*") for _, text in expressions()]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(filled)]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", "rules.json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
