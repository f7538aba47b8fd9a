"""What a check says before it asks anybody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sidecar.check import to_lines
from sidecar.check.local import check_local
from sidecar.config import Config, load
from sidecar.simulator.teleport.pki import ClusterPki
from sidecar.teleport.findings import Finding
from tests.golden import Golden

pki = ClusterPki()


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    files = pki.write_credentials(tmp_path, "access-plugin", ["access-plugin"])
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("secret-token\n")
    return {
        "teleport.client_crt": str(files.crt),
        "teleport.client_key": str(files.key),
        "teleport.root_cas": str(files.cas),
        "mattermost.url": "https://mattermost.example.com",
        "mattermost.token_file": str(token),
        "mattermost.recipients": "ops/requests",
    }


def config(settings: dict[str, str], **flags: str) -> Config:
    return load(None, {}, settings | {name.replace("__", "."): text for name, text in flags.items()})


def wrong(config: Config) -> list[Finding]:
    return [one for one in check_local(config) if one.status != "ok"]


def test_all_is_well(settings: dict[str, str]) -> None:
    assert [one.id for one in check_local(config(settings))] == ["teleport.file"] * 3 + ["mattermost.token.file"]


NEW_TOKEN = (
    "        In Mattermost, Integrations > Bot Accounts, create a token of the bot and write it into this file alone."
)
UNREADABLE = (
    "        Correct mattermost.token_file, or give the file to the user that runs the sidecar, for example with chown."
)


@pytest.mark.parametrize(
    ("content", "said", "fix"),
    [
        (b"", "is empty", NEW_TOKEN),
        (b" \n", "is empty", NEW_TOKEN),
        (b"\xff", "holds no token", NEW_TOKEN),
        (b"two\nlines", "holds characters that no token has", NEW_TOKEN),
        (None, "cannot be read: No such file or directory", UNREADABLE),
    ],
)
def test_the_token_file(settings: dict[str, str], content: bytes | None, said: str, fix: str) -> None:
    path = Path(settings["mattermost.token_file"])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    (finding,) = wrong(config(settings))
    assert finding.id == "mattermost.token.file"
    assert to_lines(finding) == [f"FAILURE mattermost.token_file: {path} {said}.", fix]


def test_a_folder_for_the_token_file(settings: dict[str, str], tmp_path: Path, golden: Golden) -> None:
    (finding,) = wrong(config(settings, mattermost__token_file=str(tmp_path)))
    golden(to_lines(finding))


def test_a_token_in_the_configuration_is_a_notice(settings: dict[str, str], golden: Golden) -> None:
    del settings["mattermost.token_file"]
    (finding,) = wrong(config(settings, mattermost__token="secret-token"))
    golden(finding)


@pytest.mark.parametrize("content", [None, b"", b"\xff no PEM"])
def test_an_authority_that_cannot_be_used(settings: dict[str, str], tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    (finding,) = wrong(config(settings, mattermost__ca_file=str(path)))
    assert (finding.id, finding.subject) == ("mattermost.ca_file", "mattermost.ca_file")
    assert finding.message.startswith(f"{path} cannot be used: ")


def test_files_of_the_endpoints(settings: dict[str, str], tmp_path: Path, golden: Golden) -> None:
    (tmp_path / "tls.crt").touch()
    (tmp_path / "tls.key").touch()
    (tmp_path / "scrape").write_text("")
    found = wrong(
        config(
            settings,
            endpoints__tls_crt=str(tmp_path / "tls.crt"),
            endpoints__tls_key=str(tmp_path / "tls.key"),
            endpoints__bearer_token_file=str(tmp_path / "scrape"),
        )
    )
    golden([one.message for one in found])


ALICE = '{ id = "p8c3tyf1wbbyjkyqkyhmsbg3se", user = "alice" }'


def policy(settings: dict[str, str], *, reviewers: str, approvals: int, **flags: str) -> list[tuple[str, str]]:
    text = f"{{ dbadmin = {{ reviewers = [{reviewers}], approvals = {approvals}, denials = 1 }} }}"
    given = config(settings, reviews__submit_as="plugin", reviews__policy=text, **flags)
    return [(one.id, one.message) for one in check_local(given) if one.id.startswith("reviews")]


def test_a_policy_that_can_be_met(settings: dict[str, str]) -> None:
    people = {"reviewers__alice": ALICE, "reviewers__ivan": '{ id = "qr3azbgeipd3tn99i78geigkpa", user = "ivan" }'}
    assert policy(settings, reviewers='"alice", "ivan"', approvals=2, **people) == [
        ("reviews.policy", "It takes 2 approvals or 1 denial of 2 who are known.")
    ]


def test_a_policy_that_can_never_be_met(settings: dict[str, str]) -> None:
    """Nobody would learn it before a request waits for ever."""
    assert policy(settings, reviewers='"alice", "ivan"', approvals=2, reviewers__alice=ALICE) == [
        ("reviews.policy.unreachable", "It needs 2 approvals, but only 1 of its reviewers can be recognised.")
    ]


def test_a_policy_with_somebody_unknown(settings: dict[str, str]) -> None:
    assert policy(settings, reviewers='"alice", "ivan"', approvals=1, reviewers__alice=ALICE) == [
        (
            "reviews.policy.unknown_reviewer",
            "ivan: not in [reviewers], so no Mattermost user can be recognised as them.",
        )
    ]


def test_by_email_only_addresses_are_anybody(settings: dict[str, str]) -> None:
    assert policy(settings, reviewers='"alice@example.com", "ivan"', approvals=1, reviews__identity="email") == [
        (
            "reviews.policy.unknown_reviewer",
            "ivan: not an email address, so no Mattermost user can be recognised as them.",
        )
    ]


def test_an_announced_role_without_a_policy(settings: dict[str, str]) -> None:
    found = policy(
        settings, reviewers='"alice"', approvals=1, reviewers__alice=ALICE, role_to_recipients__editor="ops/editors"
    )
    assert found[1] == (
        "reviews.policy.missing",
        "Requests for editor are announced, but no policy says who approves them.",
    )


def test_a_key_of_another_certificate_for_the_endpoints(settings: dict[str, str], tmp_path: Path) -> None:
    """`run` would refuse to start with it."""
    other = pki.write_credentials(tmp_path, "somebody", ["somebody"], name="other")
    pair = {"endpoints__tls_crt": settings["teleport.client_crt"], "endpoints__tls_key": str(other.key)}
    (finding,) = wrong(config(settings, **pair))
    assert (finding.id, finding.status) == ("endpoints.file", "failure")
    assert finding.message.endswith(f" and {other.key} cannot be used: the key is not the certificate's.")
    pair["endpoints__tls_key"] = settings["teleport.client_key"]
    assert not wrong(config(settings, **pair))


def test_endpoints_for_everybody(settings: dict[str, str], golden: Golden) -> None:
    (finding,) = wrong(config(settings, endpoints__listen=":9464"))
    golden(to_lines(finding))


@pytest.mark.parametrize(
    "keys",
    [
        "teleport.client_crt",
        "teleport.client_key",
        "teleport.root_cas",
        "teleport.identity",
        "mattermost.token_file",
        "mattermost.ca_file",
        "endpoints.bearer_token_file",
        "endpoints.tls_crt endpoints.tls_key",
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_file_that_may_never_end_is_named_and_not_read(
    settings: dict[str, str], tmp_path: Path, keys: str, kind: str
) -> None:
    """`run` reads these anew all the time, where whatever waits stops everything."""
    path = tmp_path / "pipe" if kind == "pipe" else Path("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    if keys == "teleport.identity":
        settings = {name: text for name, text in settings.items() if not name.startswith("teleport.")}
    (finding,) = wrong(config(settings | dict.fromkeys(keys.split(), str(path))))
    assert finding.status == "failure"
    assert str(path) in finding.message
    assert "it is a pipe or a device, not a file" in finding.message
