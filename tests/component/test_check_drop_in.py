"""The official plugin's files of every era work as they are: read, and checked against both simulators."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar import check
from sidecar.config import load
from tests.world import World

DATA = Path(__file__).parents[1] / "unit" / "testdata"

# The keys of each that lost their meaning.
ERAS = {
    "official-v0.toml": ("teleport.auth_server", "http", "mattermost.secret", "storage"),
    "official-v9.toml": ("teleport.auth_server",),
    "official-v18.toml": ("teleport.refresh_identity", "teleport.refresh_identity_interval"),
}


def moved(text: str, here: World) -> str:
    """The same file with the addresses and paths of this world: values change, no key does."""
    identity = here.folder / "identity"
    identity.touch(mode=0o600)
    files = here.credentials
    identity.write_bytes(b"".join(part.read_bytes() for part in (files.key, files.crt, files.cas)))
    plugin = "/var/lib/teleport/plugins/mattermost"
    for old, new in {
        '"auth.example.com:3025"': f'"{here.auth.addr}"',
        '"localhost:3025"': f'"{here.auth.addr}"',
        '"https://mattermost.example.com/"': f'"{here.chat.url}/"',
        '"https://mattermost.example.com"': f'"{here.chat.url}"',
        f"{plugin}/auth.crt": str(files.crt),
        f"{plugin}/auth.key": str(files.key),
        f"{plugin}/auth.cas": str(files.cas),
        f"{plugin}/auth_id": str(identity),
        f"{plugin}/identity": str(identity),
        "/run/secrets/mattermost-token": str(here.token_file),
        "not-a-real-token": here.bot.token,
    }.items():
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("era", ERAS)
async def test_a_file_of_the_official_plugin_passes(tmp_path: Path, here: World, era: str) -> None:
    """Warnings for the keys that lost their meaning, a line each, and nothing that fails."""
    dba = here.chat.add_team("dba", members=[here.bot])
    here.chat.add_channel(dba, "requests", members=[here.bot])
    here.chat.add_channel(here.team, "requests", members=[here.bot])
    path = tmp_path / era
    path.write_text(moved((DATA / era).read_text(), here))
    findings, _ = await check.run(load(path))
    assert [one for one in findings if one.status == "failure"] == []
    posts = {one.subject for one in findings if one.id == "recipient"}
    assert posts >= {"ops/access-requests"}
    told = {one.subject for one in findings if one.id == "config.notice"}
    assert told >= set(ERAS[era])


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(("client.pem", "client.key", "cas.pem"), id="v0-defaults"),
        pytest.param(("tlscert", "key", "teleport-host-ca.crt"), id="tbot"),
    ],
)
async def test_files_may_have_any_name(tmp_path: Path, here: World, files: tuple[str, str, str]) -> None:
    """What tbot and older versions call the three files are ordinary paths."""
    given = here.credentials
    named = [
        source.rename(tmp_path / name) for source, name in zip((given.crt, given.key, given.cas), files, strict=True)
    ]
    config = here.config(
        teleport__client_crt=str(named[0]), teleport__client_key=str(named[1]), teleport__root_cas=str(named[2])
    )
    findings, _ = await check.run(config)
    assert "teleport.rights.watch" in [one.id for one in findings if one.status == "ok"]
