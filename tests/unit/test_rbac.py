"""The roles for Teleport: nothing more than each way needs, and a file that tctl 7 and 16 take as it is."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from sidecar.rbac import render, render_bot, render_example
from tests.tree import ROOT
from tests.yaml_files import parse_all

MODES = ("none", "reviewer", "plugin", "on_behalf", "state")


def documents(mode: str) -> dict[str, str]:
    return split(render(mode)) | split(render_example(mode))


def split(page: str) -> dict[str, str]:
    """Name -> YAML without comments, of "role" and "user" documents alike."""
    text = "\n".join(line for line in page.splitlines() if not line.lstrip().startswith("#"))
    found = {}
    for document in text.split("---\n"):
        kind, name = re.findall(r"^kind: (\w+)$|^  name: (\S+)$", document, re.MULTILINE)
        found[f"{kind[0]} {name[1]}"] = document
    return found


@pytest.mark.parametrize("mode", MODES)
def test_each_document_is_whole_and_none_is_empty(mode: str) -> None:
    """Tctl refuses a file with a document of comments alone. What is the sidecar's own is no example, nor about."""
    assert list(split(render(mode))) == ["role access-plugin", "user access-plugin"]
    expected = ["role example-dbadmin", "role example-requester"]
    assert list(split(render_example(mode))) == expected + (["role example-reviewer"] if mode != "state" else [])
    for page in (render(mode), render_example(mode), render_bot()):
        assert not page.startswith("---")
        assert "---\n#\n" not in page


def test_the_readme_shows_the_rules_that_are_printed() -> None:
    (shown,) = re.findall(r"^```yaml\n(rules:\n.*?)```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    role, _ = parse_all(render("none"))
    assert parse_all(shown) == [{"rules": role["spec"]["allow"]["rules"]}]


def test_a_bot_holds_the_sidecars_role() -> None:
    bot = split(render_bot())
    assert list(bot) == ["role access-plugin", "bot mattermost"]
    assert bot["role access-plugin"] == split(render("none"))["role access-plugin"]
    assert "roles: [access-plugin]" in bot["bot mattermost"]
    assert bot["bot mattermost"].strip() in (ROOT / "compose/tbot/bot.yaml").read_text()


@pytest.mark.parametrize("mode", MODES)
def test_no_role_opens_what_it_does_not_mention(mode: str) -> None:
    """A role of version v3 without these lines may reach every app, cluster and database."""
    for name, document in documents(mode).items():
        if name.startswith("role "):
            assert "version: v3" in document
            for labels in ("app_labels", "kubernetes_labels", "db_labels"):
                assert f"\n    {labels}: {{none: none}}" in document


@pytest.mark.parametrize("mode", MODES)
def test_the_sidecar_s_own_role_has_what_the_mode_needs_and_no_more(mode: str) -> None:
    own = documents(mode)["role access-plugin"]
    assert ("verbs: [list, read, update]\n      - resources: [access_plugin_data]" in own) is (mode == "state")
    assert "- resources: [access_request]" in own
    assert "- resources: [access_plugin_data]\n        verbs: [list, read, update]" in own
    assert ("review_requests:\n      roles: [example-dbadmin]" in own) is (mode == "plugin")
    assert ("submit_for_users:" in own) is (mode == "on_behalf")
    assert "logins" not in own


@pytest.mark.parametrize("mode", MODES)
def test_the_rights_for_rules_and_for_traits_each_stand_behind_a_comment(mode: str) -> None:
    """So that who does not want one of them sees what to take away, and what that costs."""
    lines = render(mode).splitlines()
    for resources, words in (("[access_monitoring_rule]", "monitoring rules"), ("[user, user_login_state]", "traits")):
        (place,) = [number for number, line in enumerate(lines) if line.endswith(f"- resources: {resources}")]
        assert lines[place - 1].lstrip().startswith("# ")
        assert words in lines[place - 1]


@pytest.mark.parametrize("mode", MODES)
def test_two_people_must_agree(mode: str) -> None:
    """The community edition has neither thresholds nor reviews in its roles: there the sidecar's policy counts."""
    asks = documents(mode)["role example-requester"]
    assert ("approve: 2\n          deny: 1" in asks) is (mode != "state")
    assert ("""filter: 'contains(reviewer.roles, "access-plugin")'""" in asks) is (mode == "plugin")
    assert ("reviewers = " in render(mode)) is (mode in {"plugin", "state"})


@pytest.mark.parametrize("mode", MODES)
def test_commands(mode: str) -> None:
    text = render(mode)
    assert "#   tctl auth sign --format=tls --user=access-plugin --ttl=8760h --out=auth\n" in text
    assert ("--user=alice@example.com" in text) is (mode == "reviewer")
    assert "kubectl create secret generic teleport-mattermost " in text
    # a key of a Secret may hold letters, digits, dots, dashes and underscores
    assert all(re.fullmatch(r"[\w.-]+", key) for key in re.findall(r"--from-file=([^=\s]+)=", text))
    assert max(map(len, (text + render_example(mode) + render_bot()).splitlines())) <= 120


def test_the_init_container_makes_of_a_mounted_secret_what_the_sidecar_accepts(tmp_path: Path) -> None:
    """A Secret's files are links into a folder that is swapped, and a group may read them."""
    swapped, secret, reviewers = tmp_path / "secret" / "..data", tmp_path / "secret", tmp_path / "reviewers"
    swapped.mkdir(parents=True)
    reviewers.mkdir()
    for name in ("alice@example.com.crt", "alice@example.com.key"):
        (swapped / name).write_text(name)
        (swapped / name).chmod(0o440)
        (secret / name).symlink_to(f"..data/{name}")
    found = re.search(r'command: \[sh, -c, "(.*)"\]', render("reviewer"))
    assert found is not None
    command = found[1].replace("/secret/", f"{secret}/").replace("/reviewers/", f"{reviewers}/")
    subprocess.run(["/bin/sh", "-c", command], check=True)
    copies = sorted(reviewers.iterdir())
    assert [one.read_text() for one in copies] == ["alice@example.com.crt", "alice@example.com.key"]
    assert {stat.S_IMODE(one.lstat().st_mode) for one in copies} == {0o600}
