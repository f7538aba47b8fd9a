"""What compose/ promises: nothing public but the metrics, no right that is not needed, no secret in a file."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.config import load as load_config
from tests.tree import ROOT
from tests.yaml_files import load, load_all

FOLDER = ROOT / "compose"
ALL = load("compose/compose.yaml")
SERVICES: dict[str, dict[str, Any]] = ALL["services"]
SIDECARS = {"compose.yaml": SERVICES["sidecar"], "beside.yaml": load("compose/beside.yaml")["services"]["sidecar"]}
ONE_SHOTS = {"teleport-setup", "mattermost-setup"}
FOREIGN = {"teleport", "mattermost"}  # images of others, with their own idea of a user
# Keys that say where a secret lies; and a token that is a name, for Kubernetes vouches for who comes with it.
NAMES = ("secretName", "SecretName", "SecretPath", "FromSecret")
JOIN_TOKEN = "mattermost-bot"
REVIEWERS = '\n[reviewers]\nalice = { id = "qr3azbgeipd3tn99i78geigkpa", user = "alice@example.com" }\n'


@pytest.mark.parametrize("service", SIDECARS.values(), ids=SIDECARS)
def test_the_sidecar_may_do_nothing(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["mem_limit"] == "128m"
    assert not service.keys() & {"privileged", "cap_add", "devices", "ports", "pid", "ipc", "environment", "env_file"}
    assert all(volume.endswith(":ro") for volume in service["volumes"])


@pytest.mark.parametrize("service", SIDECARS.values(), ids=SIDECARS)
def test_the_sidecar_is_watched_by_what_it_runs_with(service: dict[str, Any]) -> None:
    """A health check that reads another configuration would ask at another address."""
    test = service["healthcheck"]["test"]
    assert test[:5] == ["CMD", "python", "-m", "sidecar", "health"]
    assert test[5:] == service["command"][1:]
    assert service["restart"] == "unless-stopped"


def test_the_sidecar_shares_the_auth_services_network() -> None:
    assert SIDECARS["compose.yaml"]["network_mode"] == "service:teleport"
    assert SIDECARS["beside.yaml"]["network_mode"] == "${TELEPORT_NETWORK:-host}"
    assert load("compose/teleport/teleport.yaml")["auth_service"]["listen_addr"] == "127.0.0.1:3025"
    assert SERVICES["teleport"]["ports"] == ["127.0.0.1:9464:9464"]


def test_nothing_listens_to_the_world() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in FOREIGN])
def test_who_needs_no_right_has_none(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == (["CHOWN"] if name in ONE_SHOTS else [])
    assert (service["user"] == "0:0") == (name in ONE_SHOTS)


def test_what_runs_is_watched_and_what_depends_waits() -> None:
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) != (name in ONE_SHOTS), name
        assert service.get("restart") == (None if name in ONE_SHOTS else "unless-stopped"), name
        for other, how in service.get("depends_on", {}).items():
            done = other in ONE_SHOTS
            assert how["condition"] == ("service_completed_successfully" if done else "service_healthy")
    assert SERVICES["sidecar"]["depends_on"].keys() == {"teleport", *ONE_SHOTS}


def test_every_volume_and_every_file_that_is_mounted_exists() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in ALL["volumes"], (name, volume)


def test_only_the_sidecar_and_who_makes_them_see_the_credentials() -> None:
    seen = {
        name
        for name, service in SERVICES.items()
        if any(volume.startswith("credentials:") for volume in service.get("volumes", []))
    }
    assert seen == {"sidecar", *ONE_SHOTS}


def settings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text below a value, with the key it stands at."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from settings(below, str(key))
    elif isinstance(value, list):
        for below in value:
            yield from settings(below, name)
    elif isinstance(value, str):
        yield name, value


def test_no_secret_stands_in_a_file() -> None:
    """Passwords and tokens are invented by the set-up and live in volumes; a file may say where, not what."""
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert "PRIVATE KEY" not in text
        assert not re.search(r"\b(?=[a-z]*\d)[a-z0-9]{26}\b|\b[0-9a-f]{32,}\b", text), f"{path.name}: a token?"
        name = str(path.relative_to(ROOT))
        found = load_all(name) if path.suffix in {".yaml", ".yml"} and path.parent.name != "templates" else []
        found += [tomllib.loads(text)] if path.suffix == ".toml" else []
        for key, value in settings(found):
            if re.search(r"(?i)password|passwd|token|secret|credential", key) and not key.endswith(NAMES):
                assert value.startswith("/") or value in {"", JOIN_TOKEN}, f"{path.name}: {key}"
    assert len(files) > 10


@pytest.mark.parametrize("script", sorted(FOLDER.rglob("*.sh")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_scripts_are_posix_and_stop_at_the_first_failure(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in text
    assert "\numask 077\n" in text
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_agrees() -> None:
    subprocess.run(["shellcheck", "--shell=sh", *sorted(FOLDER.rglob("*.sh"))], check=True)


@pytest.mark.parametrize("edition", ["enterprise", "community"])
def test_the_configuration_that_the_setup_puts_together_is_valid(edition: str, tmp_path: Path) -> None:
    parts = [(FOLDER / f"sidecar/{name}.toml").read_text() for name in ("sidecar", f"reviews-{edition}")]
    assembled = tmp_path / "sidecar.toml"
    assembled.write_text("".join(parts) + REVIEWERS)
    config = load_config(assembled, {}, {})
    assert config.teleport.addr == "localhost:3025"
    assert config.endpoints.address == ("0.0.0.0", 9464)
    assert config.reviews.submit_as == {"enterprise": "reviewer", "community": "state"}[edition]
    assert not [notice for notice in config.notices if "reviewers" in notice]


@pytest.mark.parametrize("edition", ["enterprise", "community"])
def test_the_roles_are_the_guides(edition: str) -> None:
    """Two of `reviewer` for `dbadmin`, by Teleport or by the policy; the plugin's rights are those of its mode."""
    documents = load_all(f"compose/teleport/roles-{edition}.yaml")
    roles = {one["metadata"]["name"]: one["spec"]["allow"] for one in documents}
    assert roles.keys() == {"reviewer", "devops", "access-plugin"}
    asks = roles["devops"]["request"]
    requests, data = roles["access-plugin"]["rules"]
    assert data == {"resources": ["access_plugin_data"], "verbs": ["list", "read", "update"]}
    if edition == "enterprise":
        assert asks["thresholds"] == [{"approve": 2, "deny": 1}]
        assert roles["reviewer"]["review_requests"] == {"roles": ["dbadmin"]}
        assert requests["verbs"] == ["list", "read"]
    else:
        assert asks == {"roles": ["dbadmin"]}
        assert requests["verbs"] == ["list", "read", "update"]


def test_every_role_that_a_person_has_is_made() -> None:
    people = load_all("compose/teleport/people.yaml")
    made = {one["metadata"]["name"] for one in people if one["kind"] == "role"}
    made |= {one["metadata"]["name"] for one in load_all("compose/teleport/roles-community.yaml")}
    users = {one["metadata"]["name"]: one["spec"]["roles"] for one in people if one["kind"] == "user"}
    assert users.keys() == {"alice@example.com", "ivan@example.com", "bob@example.com", "access-plugin"}
    assert {role for roles in users.values() for role in roles} <= made


class TestKubernetes:
    """The patch for the Auth Service's pod."""

    config_map, deployment = load_all("compose/kubernetes.yaml")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    def test_a_sidecar_never_takes_teleport_out_of_its_service(self) -> None:
        assert self.container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert not self.container.keys() & {"readinessProbe", "startupProbe"}

    def test_it_may_do_nothing(self) -> None:
        context = self.container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "env" not in self.container

    def test_renewed_secrets_reach_it(self) -> None:
        """A subPath keeps the file of the day the container started."""
        mounts = self.container["volumeMounts"]
        assert all(mount["readOnly"] and "subPath" not in mount for mount in mounts)
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in self.pod["volumes"]}
        (secrets,) = (volume["secret"] for volume in self.pod["volumes"] if "secret" in volume)
        assert not secrets["defaultMode"] & 0o007

    def test_its_configuration_is_valid_and_is_where_it_looks(self, tmp_path: Path) -> None:
        (name,) = self.config_map["data"]
        (tmp_path / name).write_text(self.config_map["data"][name])
        config = load_config(tmp_path / name, {}, {})
        folders = {mount["mountPath"] for mount in self.container["volumeMounts"]}
        assert self.container["args"] == ["run", "--config", f"/etc/sidecar/{name}"]
        files = (config.teleport.client_crt, config.teleport.client_key, config.teleport.root_cas)
        assert {str(path.parent) for path in [*files, config.mattermost.token_file] if path} <= folders
        assert config.endpoints.address[1] == self.container["ports"][0]["containerPort"]
