"""Each way of installing: what its files promise, read as their own tools read them where those are there."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sidecar import __version__
from sidecar.config import Config
from sidecar.config import load as load_config
from tests.tree import ROOT
from tests.yaml_files import load, load_all, parse_all

COMPOSE = ROOT / "compose"
UNITS = sorted((COMPOSE / "systemd").glob("*.service"))
CHART = COMPOSE / "helm/teleport-mattermost-sidecar"
IMAGE = f"registry.example.com/teleport-mattermost-sidecar:{__version__}"


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not shutil.which(tool), reason=f"{tool} is not installed")


# -- systemd -----------------------------------------------------------------------------------------------------------


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_speaks_the_protocol_and_keeps_what_is_wrong_from_looping() -> None:
    unit = settings(COMPOSE / "systemd/teleport-mattermost-sidecar.service")
    assert unit["Type"] == ["notify"]
    assert unit["WatchdogSec"] == ["60"]
    assert unit["ExecReload"] == ["/bin/sh -c 'kill -HUP $MAINPID'"]
    assert unit["RestartPreventExitStatus"] == ["2"]
    assert "LoadCredential" not in unit, "a copy of the start never hears of a renewal"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_a_unit_may_do_nothing(unit: Path) -> None:
    found = settings(unit)
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["User"] == found["Group"] != ["root"]
    assert not found.keys() & {"ReadWritePaths", "AmbientCapabilities", "Environment", "EnvironmentFile"}


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_systemd_finds_nothing_wrong_and_little_exposed(unit: Path, tmp_path: Path) -> None:
    """In a copy whose programs exist here; 10 is a unit without any protection."""
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    verify = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    if "Failed to initialize manager" in verify.stderr:
        pytest.skip("systemd cannot look at units here")
    assert (verify.returncode, verify.stdout + verify.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(copy)]
    subprocess.run(command, capture_output=True, check=True)


def test_the_units_configuration_is_valid_and_lies_where_the_unit_looks() -> None:
    config = load_config(COMPOSE / "systemd/sidecar.toml", {}, {})
    (start,) = settings(COMPOSE / "systemd/teleport-mattermost-sidecar.service")["ExecStart"]
    folder = Path(start.split()[-1]).parent
    files = [config.teleport.client_crt, config.teleport.client_key, config.teleport.root_cas]
    assert {path.parent for path in [*files, config.mattermost.token_file] if path} == {folder}
    assert config.notices == ()


# -- tbot and Terraform ------------------------------------------------------------------------------------------------


def test_both_forms_of_credentials_lie_where_tbot_writes_them(tmp_path: Path) -> None:
    text = (COMPOSE / "tbot/folder.yaml").read_text()
    (service,) = load("compose/tbot/folder.yaml")["services"]
    folder = service["destination"]["path"]
    lines = re.findall(r"^# {3}(\w+ = .*)$", text, flags=re.MULTILINE)
    assert [line.split(" = ")[1].strip('"') for line in lines] == [
        f"{folder}/{name}" for name in ("identity", "tlscert", "key", "teleport-host-ca.crt")
    ]
    rest = '[mattermost]\nurl = "https://mattermost.example.com"\ntoken_file = "/t"\nrecipients = ["a/b"]\n'
    for form in (lines[:1], lines[1:]):
        (tmp_path / "sidecar.toml").write_text("\n".join(["[teleport]", *form, rest]))
        load_config(tmp_path / "sidecar.toml", {}, {})
    assert lines[0] in (COMPOSE / "systemd/sidecar.toml").read_text()


def test_tbot_s_unit_configuration_and_readers_fit() -> None:
    unit = settings(COMPOSE / "systemd/teleport-mattermost-tbot.service")
    config = load("compose/tbot/folder.yaml")
    assert unit["StateDirectory"] == [Path(config["storage"]["path"]).parent.name]
    (start,) = unit["ExecStart"]
    assert Path(start.split()[-1]).parent == Path(config["onboarding"]["token"]).parent
    (reader,) = config["services"][0]["destination"]["readers"]
    assert [reader["user"]] == settings(COMPOSE / "systemd/teleport-mattermost-sidecar.service")["User"]


def test_the_bot_its_token_and_who_joins_with_it_bear_the_same_names() -> None:
    bot, token = load("compose/tbot/bot.yaml"), load("compose/tbot/token-kubernetes.yaml")
    values, terraform = load("compose/tbot/kubernetes-secret.yaml"), (COMPOSE / "terraform/main.tf").read_text()
    (rule,) = token["spec"]["kubernetes"]["allow"]
    assert token["spec"]["bot_name"] == bot["metadata"]["name"]
    assert values["token"] == token["metadata"]["name"]
    assert rule["service_account"] == f"teleport:{values['serviceAccount']['name']}"
    for name in (bot["metadata"]["name"], token["metadata"]["name"], rule["service_account"], *bot["spec"]["roles"]):
        assert f'"{name}"' in terraform
    assert 'verbs = ["list", "read"]' in terraform
    assert 'verbs = ["list", "read", "update"]' in terraform


@needs("terraform")
def test_terraform_reads_the_file() -> None:
    command = ["terraform", "fmt", "-check", str(COMPOSE / "terraform")]
    subprocess.run(command, check=True, capture_output=True)


# -- Kubernetes --------------------------------------------------------------------------------------------------------


def test_one_image_and_one_version_everywhere() -> None:
    named = set()
    for path in [*COMPOSE.rglob("*.yaml"), ROOT / "Makefile"]:
        named |= set(re.findall(r"[\w.]+/teleport-mattermost-sidecar:[\w.$()-]+", path.read_text()))
    assert named == {IMAGE, IMAGE.replace(__version__, "$(VERSION)")}
    chart, values = load(f"{CHART.relative_to(ROOT)}/Chart.yaml"), load(f"{CHART.relative_to(ROOT)}/values.yaml")
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert values["image"]["repository"] == IMAGE.rpartition(":")[0]


def test_the_values_of_teleports_chart_add_the_container_of_the_patch() -> None:
    auth = load("compose/helm/teleport-cluster-values.yaml")["auth"]
    _, deployment = load_all("compose/kubernetes.yaml")
    pod = deployment["spec"]["template"]["spec"]
    assert auth["extraContainers"] == pod["containers"]
    assert auth["extraVolumes"] == pod["volumes"]


def render(*more: str) -> list[Any]:
    values = ["--values", str(CHART / "example-values.yaml")]
    command = ["helm", "template", "sidecar", str(CHART), *values, *more]
    return parse_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def configuration(documents: list[Any], folder: Path) -> Config:
    (data,) = (one["data"] for one in documents if one["kind"] == "ConfigMap")
    path = folder / "sidecar.toml"
    path.write_text(data["sidecar.toml"])
    return load_config(path, {}, {})


@needs("helm")
class TestChart:
    def test_lint(self) -> None:
        command = ["helm", "lint", "--strict", str(CHART), "--values", str(CHART / "example-values.yaml")]
        subprocess.run(command, check=True, capture_output=True)

    def test_its_configuration_is_valid_and_is_where_the_pod_mounts(self, tmp_path: Path) -> None:
        documents = render("--set", "mattermost.caFromSecret=authority")
        config = configuration(documents, tmp_path)
        (pod,) = (one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment")
        (container,) = pod["containers"]
        folders = {mount["mountPath"] for mount in container["volumeMounts"]}
        files = [config.teleport.identity, config.mattermost.token_file, config.mattermost.ca_file]
        assert {str(path.parent) for path in files if path} <= folders
        assert all(mount["readOnly"] and "subPath" not in mount for mount in container["volumeMounts"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["image"] == IMAGE
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert config.endpoints.address[1] == container["ports"][0]["containerPort"]

    def test_no_value_ends_the_text_it_stands_in(self, tmp_path: Path) -> None:
        """A role may bear any name, and a quote in it opens no other table."""
        values = tmp_path / "values.yaml"
        hostile = 'db"\n[reviews]\nsubmit_as = "state'
        values.write_text('roleToRecipients:\n  "db\\"\\n[reviews]\\nsubmit_as = \\"state": ["ops/x"]\n')
        config = configuration(render("--values", str(values)), tmp_path)
        assert config.role_to_recipients[hostile] == ("ops/x",)
        assert config.reviews.submit_as == "none"

    def test_three_files_a_token_and_more_of_the_configuration(self, tmp_path: Path) -> None:
        extra = tmp_path / "extra.toml"
        extra.write_text('[announce]\ndelay = "5s"\n')
        given = ["teleport.identitySecretPath=", "mattermost.tokenFromSecret=", "mattermost.token=secret-of-a-trial"]
        documents = render(*(part for one in given for part in ("--set", one)), "--set-file", f"extraConfig={extra}")
        config = configuration(documents, tmp_path)
        assert config.teleport.identity is None
        assert config.announce.delay == 5
        (secret,) = (one for one in documents if one["kind"] == "Secret")
        assert secret["stringData"] == {"token": "secret-of-a-trial"}

    def test_prometheus_finds_the_port(self) -> None:
        documents = render("--set", "podMonitor.enabled=true")
        (monitor,) = (one["spec"] for one in documents if one["kind"] == "PodMonitor")
        (template,) = (one["spec"]["template"] for one in documents if one["kind"] == "Deployment")
        (port,) = template["spec"]["containers"][0]["ports"]
        assert monitor["podMetricsEndpoints"][0]["port"] == port["name"]
        assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()

    @pytest.mark.parametrize(
        "name", ["teleport.address", "teleport.identitySecretName", "mattermost.url", "mattermost.tokenFromSecret"]
    )
    def test_what_is_missing_is_named(self, name: str) -> None:
        with pytest.raises(subprocess.CalledProcessError) as failed:
            render("--set", f"{name}=")
        assert f"{name} is missing" in failed.value.stderr


# -- packages ----------------------------------------------------------------------------------------------------------


def test_no_hint_names_a_package_of_an_index_that_is_not_ours() -> None:
    """Nothing is published, so anybody could take the name, and be installed by whoever types what we say."""
    paths = [ROOT / "README.md", *ROOT.glob("compose/**/*.md"), *ROOT.glob("sidecar/**/*.py")]
    for path in paths:
        assert not re.search(
            r"(?:pip|pipx|uv tool) install [^\n`]*\bteleport-mattermost-sidecar\b(?!\.)", path.read_text()
        ), path


def test_the_lock_holds_what_the_project_asks_for() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
    assert {re.split(r"[<>=]", one)[0] for one in wanted} <= locked
