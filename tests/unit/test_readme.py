"""The pages are the reference: their tables say what the code says, no more and no less."""

from __future__ import annotations

import argparse
import ast
import enum
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from sidecar import cli, errors
from sidecar.config.sections import Policy, Sections
from sidecar.config.values import Seconds, parse_duration
from sidecar.decisions.answers import _SENTENCES as SENTENCES
from sidecar.metrics import Metrics
from sidecar.model import AccessRequest, Resource, Review, Threshold
from sidecar.reconcile.resolve import REASONS
from sidecar.text import card as text
from tests.tree import ROOT, modules
from tests.unit.test_imports import ALLOWED, GROUND

README = "README.md"
MIGRATION = "compose/MIGRATION.md"
REVIEWERS = "compose/REVIEWERS.md"
SECURITY = "compose/SECURITY.md"
MONITORING = "compose/prometheus/README.md"
HOW = "sidecar/README.md"
SETTINGS = "sidecar/config/README.md"
TESTS = "tests/README.md"

FOLDERS_WITH_PAGES = ("compose", "sidecar", "tests", "integration", ".github")
# Every page by its path.
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for found in (ROOT.glob("*.md"), *((ROOT / folder).rglob("*.md") for folder in FOLDERS_WITH_PAGES))
    for path in sorted(found)
}


def section(page: str, heading: str) -> str:
    """Return what stands below a heading, up to the next one of any level."""
    _, found, rest = f"\n{PAGES[page]}".partition(f"\n{heading}\n")
    assert found, f"{page} has no {heading}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(page: str, heading: str, first: str) -> list[list[str]]:
    """Return the rows of the table below a heading whose first column is called `first`."""
    lines = section(page, heading).splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(f"| {first} |")), None)
    assert start is not None, f"{page}, {heading} has no table of {first}"
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def assert_equal(listed: set[str], real: set[str]) -> None:
    missing, wrong = sorted(real - listed), sorted(listed - real)
    assert (missing, wrong) == ([], []), f"the page lacks {missing} and invents {wrong}"


def code(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


class Default(enum.Enum):
    """A key without a default."""

    NONE = "none"


def written(cell: str, kind: Any) -> object:
    """Read a default as it stands in the table."""
    if cell == "none":
        return Default.NONE
    value = tomllib.loads(f"value = {code(cell)[0]}")["value"]
    return parse_duration(value) if kind == Seconds else value


def effective(field: msgspec.structs.FieldInfo) -> object:
    default = field.default
    if default is msgspec.NODEFAULT:
        default = field.default_factory() if callable(field.default_factory) else None
    if isinstance(default, tuple):
        default = list(default)
    return Default.NONE if default is None else msgspec.to_builtins(default, enc_hook=str)


def keys(kind: type[msgspec.Struct]) -> Iterator[msgspec.structs.FieldInfo]:
    for field in msgspec.structs.fields(kind):
        if not isinstance(field.default, dict) and field.name != "policy":
            yield field


TABLES = {
    field.name: field.type
    for field in msgspec.structs.fields(Sections)
    if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
}


@pytest.mark.parametrize("name", TABLES)
def test_every_key_is_listed_with_its_default(name: str) -> None:
    rows = {code(row[0])[0]: row for row in table(SETTINGS, f"### `[{name}]`", "Key")}
    fields = {field.name: field for field in keys(TABLES[name])}
    if name == "reviews":
        fields |= {f"policy.ROLE.{field.name}": field for field in keys(Policy)}
    assert sorted(rows) == sorted(fields)
    for key, field in fields.items():
        assert written(rows[key][1], field.type) == effective(field), key
        assert rows[key][2].endswith("."), key


def test_every_section_has_its_place() -> None:
    described = re.findall(r"`\[(\w+)\]`", "".join(re.findall("^### .*$", PAGES[SETTINGS], flags=re.MULTILINE)))
    assert sorted(described) == sorted(Sections.__struct_fields__)


def test_the_smallest_file_is_one(tmp_path: Path) -> None:
    from sidecar.config import load

    path = tmp_path / "file.toml"
    smallest, roles = re.findall("```toml\n(.*?)```", section(README, "## Configure"), flags=re.DOTALL)
    path.write_text(smallest)
    assert load(path).mattermost.recipients == ("ops/access-requests",)
    path.write_text(
        "".join(line for line in smallest.splitlines(keepends=True) if not line.startswith("recipients")) + roles
    )
    assert load(path).role_to_recipients["dbadmin"] == ("dba/requests", "alice@example.com")


def test_the_metrics_are_listed_with_their_labels() -> None:
    listed = [(code(row[0])[0], row[1], tuple(code(row[2]))) for row in table(MONITORING, "## Metrics", "Name")]
    families = [
        (
            f"{one._name.removeprefix('teleport_mattermost_')}{'_total' * (one._type == 'counter')}",
            one._type,
            one._labelnames,
        )
        for one in vars(Metrics()).values()
        if hasattr(one, "_labelnames")
    ]
    assert sorted(listed) == sorted(families)


def values(label: str, metric: str) -> set[str]:
    """The values of a label that the table names, for one metric."""
    (row,) = [
        row for row in table(MONITORING, "## Metrics", "Label") if code(row[0]) == [label] and metric in code(row[1])
    ]
    return set(code(row[2]))


def constants(callee: str, place: int) -> set[str]:
    """The texts that the code gives to calls of this name at this place."""
    trees = [tree for name, tree in modules().items() if not name.startswith("sidecar.simulator")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [call.args[place] for call in calls if ast.unparse(call.func) == callee and len(call.args) > place]
    return {one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def test_every_label_has_its_values_listed() -> None:
    rows = {
        (code(row[0])[0], name) for row in table(MONITORING, "## Metrics", "Label") for name in code(row[1]) or ["all"]
    }
    for row in table(MONITORING, "## Metrics", "Name"):
        for label in code(row[2]) if "build_info" not in row[0] else ():
            assert (label, code(row[0])[0]) in rows or (label, "all") in rows, row


def test_the_values_of_labels_are_those_of_the_code() -> None:
    reasons = constants("LinkLost", 1) | constants("LinkRefused", 1) | constants("LinkGarbled", 1)
    # By the status of an answer: sidecar/mattermost/answers.py and sidecar/teleport/status.py.
    computed = {"not_mattermost", "unknown_route", "invalid_argument", "unimplemented", "unavailable"}
    assert_equal(values("reason", "link_reconnects_total"), reasons | computed)
    assert_equal(values("reason", "recipients_failed"), {*REASONS, "too_many"})
    outcomes = constants("ReviewRejected", 0) | {"submitted", "duplicate", "resolved", "mfa_required"}
    assert_equal(values("outcome", "reviews_total"), outcomes)
    posts = constants("self._count", 1) | constants("self._report.count", 1)
    posts -= {"gone", "repaired"}
    assert_equal(values("outcome", "posts_total"), posts)
    assert set(SENTENCES) <= values("reason", "decisions_refused_total") | outcomes


def test_the_metrics_of_the_process_are_listed() -> None:
    listed = set(re.findall("`(process_[a-z_]+)`", section(MONITORING, "## Metrics")))
    page = Metrics().generate().decode()
    assert_equal(listed, set(re.findall("^(process_[a-z_]+) ", page, flags=re.MULTILINE)))


def test_the_commands_are_listed() -> None:
    listed = [code(row[0])[0].removeprefix("sidecar ") for row in table(README, "## Operate", "Command")]
    parser = cli._parser()
    (commands,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    assert_equal(set(listed), set(commands.choices))


def test_the_ways_to_submit_are_listed() -> None:
    listed = [code(row[0])[0].strip('"') for row in table(README, "## Decisions in Mattermost", "`submit_as`")]
    assert tuple(listed) == cli.MODES
    stolen = {code(row[1])[0].strip('"') for row in table(SECURITY, "## Who can do what", "Stolen") if code(row[1])}
    assert stolen == set(cli.MODES)


@pytest.mark.parametrize(
    "example", re.findall("```toml\n(.*?)```", section(README, "## Decisions in Mattermost"), flags=re.DOTALL)
)
def test_the_examples_of_decisions_are_valid(tmp_path: Path, example: str) -> None:
    from sidecar.config import load

    smallest = re.findall("```toml\n(.*?)```", section(README, "## Configure"), flags=re.DOTALL)[0]
    path = tmp_path / "file.toml"
    path.write_text(smallest + example)
    assert load(path).reviews.submit_as != "none"


def test_the_flags_of_check_are_listed() -> None:
    listed = {code(row[0])[0].split()[0] for row in table(README, "## Check", "Flag")}
    parser = cli._parser()
    (commands,) = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    flags = {flag for one in commands.choices["check"]._actions for flag in one.option_strings if flag.startswith("--")}
    assert_equal(listed, flags - {"--help", "--config", "--set"})


def test_the_answers_are_in_their_own_words() -> None:
    """What reviewers are told to expect is what they are told."""
    files = ("sidecar/decisions/answers.py", "sidecar/text/replies.py")
    source = " ".join(" ".join((ROOT / file).read_text() for file in files).split())
    rows = table(REVIEWERS, "## What the answers mean", "Answer")
    assert [row[0] for row in rows if row[0] not in source] == []


def test_the_alerts_are_listed_with_their_severity() -> None:
    rules = (ROOT / "compose/prometheus/alerts.yml").read_text()
    real = re.findall(r"- alert: (\w+).*?severity: (\w+)", rules, flags=re.DOTALL)
    assert [(code(row[0])[0], row[1]) for row in table(MONITORING, "## Alerts", "Alert")] == real


def test_symptoms_are_in_the_words_of_the_log() -> None:
    """An operator searches for what is written there."""
    source = "".join((ROOT / "sidecar/teleport" / name).read_text() for name in ("certificates.py", "findings.txt"))
    symptoms = [one for row in table(README, "## Troubleshooting", "What you see") for one in code(row[0])]
    said = [one for one in symptoms if one.startswith("x509: ")]
    assert len(said) == 3
    for one in said:
        assert one.partition(" auth1")[0].replace("127.0.0.1", "{host}") in source
    assert {one for one in symptoms if re.fullmatch(r"[a-z]+\.[a-z_]+", one)} <= set(events())


def test_the_exit_codes_are_listed() -> None:
    listed = {int(number) for row in table(README, "### Exit codes", "Code") for number in re.findall(r"\d+", row[0])}
    assert listed == {cli.OK, cli.BUG, cli.USAGE, cli.FAILURE, cli.INTERRUPTED, 128 + 15}


def test_the_endpoints_are_listed() -> None:
    listed = {code(row[0])[0] for row in table(MONITORING, "## Endpoints", "Path")}
    paths = {
        node.value.decode()
        for node in ast.walk(modules()["sidecar.endpoints"])
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and node.value.startswith(b"/")
    }
    assert listed == paths


LEVELS = {"info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR"}


class Logged(NamedTuple):
    """What the code logs of one event above DEBUG."""

    levels: set[str]
    fields: set[str]


def events() -> dict[str, Logged]:
    """Every event that the code logs above DEBUG."""
    found: dict[str, Logged] = {}
    trees = {name: tree for name, tree in modules().items() if not name.startswith("sidecar.simulator")}
    for node in (one for tree in trees.values() for one in ast.walk(tree) if isinstance(one, ast.Call)):
        logger, _, method = ast.unparse(node.func).rpartition(".")
        if logger not in {"log", "logger"} or method not in {*LEVELS, "log"}:
            continue
        names = node.args[1] if method == "log" else node.args[0]
        # What `log.log` computes is for the reader of the code; the table says it in words.
        level = {LEVELS[method]} if method in LEVELS else set()
        for event in words(names) or REQUEST_EVENTS:
            one = found.setdefault(event, Logged(set(), set()))
            one.levels.update(level)
            one.fields.update(fields(node))
    return found


# `Report.messages` is given these.
REQUEST_EVENTS = {"request.announced", "request.updated", "request.ended"}


def words(node: ast.AST) -> set[str]:
    return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def fields(call: ast.Call) -> Iterator[str]:
    """The keys of `extra`."""
    for extra in (one.value for one in call.keywords if one.arg == "extra"):
        assert isinstance(extra, ast.Dict), ast.unparse(extra)
        for key in extra.keys:
            assert key is not None, ast.unparse(extra)
            if isinstance(key, ast.IfExp):
                yield from words(key.body) | words(key.orelse)
            else:
                yield from words(key)


def test_the_log_events_are_listed_with_their_levels_and_fields() -> None:
    listed = {code(row[0])[0]: row for row in table(MONITORING, "## Log", "Event")}
    found = events()
    assert_equal(set(listed), set(found))
    for event, logged in found.items():
        assert logged.levels <= set(re.findall("[A-Z]{4,}", listed[event][1])), event
        assert logged.fields == set(code(listed[event][2])), event


def test_the_states_are_listed_with_their_colours() -> None:
    listed = {code(row[0])[0]: code(row[1])[0] for row in table(REVIEWERS, "## What a card shows", "State")}
    request = AccessRequest(id="1", user="bob", state="PENDING")
    options = text.TextOptions()
    shown = {
        state: (text.render_card(request, options=options, state=state).attachment or {})["color"] for state in listed
    }
    assert listed == shown
    assert set(listed) == {"PENDING", "APPROVED", "DENIED", "PROMOTED", "EXPIRED", "REMOVED"}


def test_the_fields_are_listed_in_their_order() -> None:
    request = AccessRequest(
        id="0e7a",
        user="bob",
        state="PENDING",
        roles=("a", "b", "c", "d"),
        kind="SHORT_TERM",
        reason="why" * 50,
        resolve_reason="because",
        created=1e9,
        expires=1e9,
        access_until=2e9,
        thresholds=(Threshold(approve=2, deny=1),),
        reviews=(Review("alice", "APPROVED"),),
        resources=(Resource("c", "node", "n"),),
    )
    attachment = text.render_card(request, options=text.TextOptions(cluster="example.com")).attachment or {}
    fields = attachment["fields"]
    assert isinstance(fields, list)
    assert [code(row[0])[0] for row in table(REVIEWERS, "## What a card shows", "Field")] == [
        field["title"] for field in fields
    ]


def test_the_error_tree_is_the_code_s() -> None:
    assert errors.__doc__ is not None
    tree = errors.__doc__[errors.__doc__.index("SidecarError") :].strip()
    assert f"```\n{tree}\n```" in section(HOW, "## Errors")


FOLDERS = table(HOW, "## Folders", "Folder or module")


def test_the_folders_are_listed() -> None:
    listed = {name.partition(".")[0] for row in FOLDERS for name in code(row[0])}
    folders = {name.split(".")[1] for name in modules() if name.count(".") >= 1} - {"__main__"}
    assert_equal(listed, folders)


def test_the_folders_are_listed_with_what_they_may_import() -> None:
    listed = {
        name: {*code(row[2]), *(GROUND.split() if "the ground" in row[2] else ())}
        for row in FOLDERS
        for name in code(row[0])
    }
    allowed = {name: set(row.split()) for names, row in ALLOWED.items() for name in names.split()}
    assert listed == {name: row for name, row in allowed.items() if name != "__main__"}


def test_the_make_targets_are_listed() -> None:
    listed = [code(row[0])[0].removeprefix("make ") for row in table(TESTS, "## Targets", "Command")]
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert_equal(set(listed), {name for line in targets for name in line.split()})


def test_what_is_said_to_be_shown_by_a_test_is() -> None:
    """Each row of the comparison names a scenario or a test file that is there."""
    scenarios = re.findall(r"^async def (\w+)\(stage", (ROOT / "integration/scenarios.py").read_text(), re.MULTILINE)
    files = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    for row in table(MIGRATION, "## What is different, and why", "What happens"):
        assert code(row[3]), row[0]
        assert set(code(row[3])) <= {*scenarios, *files}, row[0]


def test_each_attack_is_made_by_a_test() -> None:
    made = {
        name for page in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", page.read_text())
    }
    rows = table(SECURITY, "## What was tried", "Attack")
    assert all(code(test) for _, test in rows)
    named = set(re.findall(r"`(test_\w+)`", section(SECURITY, "## What was tried")))
    assert named <= made, f"no test is called {sorted(named - made)}"
    proofs = (ROOT / "tests/component/test_attacks_proofs.py").read_text()
    assert set(re.findall(r"def (test_\w+)", proofs)) <= named


def links(page: str) -> list[str]:
    """Return the targets of a page's links and pictures that stay in the repository."""
    return [target for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if not target.startswith("https://")]


def anchors(page: str) -> set[str]:
    """Return the fragments under which GitHub shows the headings of a page."""
    headings = re.findall("^#+ (.*)$", PAGES[page], flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_inside_the_repository_leads_somewhere(page: str) -> None:
    for target in links(page):
        path, _, fragment = target.partition("#")
        there = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert there.exists(), target
        assert not fragment or fragment in anchors(str(there.relative_to(ROOT))), target


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    named = [one for one in code(PAGES[page]) if re.fullmatch(r"(?:tests|integration|sidecar|compose)/[\w/.-]+", one)]
    assert [one for one in named if not (ROOT / one).exists()] == []


def test_the_first_page_is_short_and_leads_to_all_others() -> None:
    assert len(PAGES[README].splitlines()) < 350
    assert_equal(set(links(README)) & PAGES.keys(), PAGES.keys() - {README})
    listed = re.findall(r"^- \[(.+?)\]", section(README, "## Contents"), flags=re.MULTILINE)
    assert listed == [one for one in re.findall("^## (.*)$", PAGES[README], flags=re.MULTILINE) if one != "Contents"]
