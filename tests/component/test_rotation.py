"""Credentials and tokens that change while the sidecar runs: no restart, no event lost, and bad ones change nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import msgspec
import pytest
import trio
import trustme

from sidecar.config import load
from sidecar.simulator.teleport.pki import ClusterPki
from sidecar.teleport.x509 import read_certificate
from sidecar.times import Times
from tests.world import World, process, reloading, running, world

PARTS = (".crt", ".key", ".cas")
FAST = Times(file_poll=0.02, expiry_every=0.05, call=0.05)


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == event]


async def said(caplog: pytest.LogCaptureFixture, event: str) -> logging.LogRecord:
    """Return the first line with this event, when there is one."""
    while not (found := lines(caplog, event)):  # noqa: ASYNC110 - the log tells nobody
        await trio.sleep(0.01)
    return found[0]


def write_expired(here: World, folder: Path) -> None:
    """Put credentials in place that ended a day ago."""
    now = datetime.now(UTC)
    begin, end = now - timedelta(days=9), now - timedelta(days=1)
    here.auth.pki.write_credentials(folder, "access-plugin", ["access-plugin"], not_before=begin, not_after=end)


async def announced(here: World) -> str:
    """Make a request and return its id once it is announced and its record is free."""
    request_id = here.auth.create_request("bob@example.com", ["dbadmin"])
    await here.chat.wait_for(lambda: request_id in here.states())
    await here.released(request_id)
    return request_id


async def test_new_credentials_are_taken_before_the_old_are_let_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The new watch stands before the old one ends, and requests made meanwhile are announced once."""
    caplog.set_level(logging.INFO)
    async with world(tmp_path) as here, running(here.config(), times=FAST):
        await here.recorded(lambda: here.auth.watchers > 0)
        watches = here.auth.calls["WatchEvents"]
        here.auth.write_credentials(tmp_path, "access-plugin")
        made = [here.auth.create_request("bob@example.com", ["dbadmin"]) for _ in range(20)]
        await said(caplog, "credentials.replaced")
        made += [here.auth.create_request("bob@example.com", ["dbadmin"]) for _ in range(20)]
        await here.shows("PENDING", 40)
        assert here.auth.calls["WatchEvents"] > watches
        for request_id in made:
            await here.released(request_id)
        assert {request_id: ["PENDING"] for request_id in made} == here.states()


async def test_a_swapped_folder_of_links_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Kubernetes updates a mounted secret: the files are links into a folder that is replaced by renaming."""
    caplog.set_level(logging.INFO)
    async with world(tmp_path) as here:
        mount = tmp_path / "mount"
        mount.mkdir()
        (mount / "first").mkdir()
        here.auth.write_credentials(mount / "first", "access-plugin")
        (mount / "..data").symlink_to("first")
        for name in ("auth.crt", "auth.key", "auth.cas"):
            (mount / name).symlink_to(f"..data/{name}")
        paths = {f"teleport__{key}": str(mount / name) for key, name in NAMES.items()}
        async with running(here.config(**paths), times=FAST):
            await announced(here)
            (mount / "second").mkdir()
            here.auth.write_credentials(mount / "second", "access-plugin")
            swap(mount, "second")
            await said(caplog, "credentials.replaced")
            await announced(here)


NAMES = {"client_crt": "auth.crt", "client_key": "auth.key", "root_cas": "auth.cas"}


@pytest.mark.parametrize("damage", ["half", "other key", "expired", "empty"])
async def test_bad_credentials_keep_the_old_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    """One warning says what is wrong; the link stays; good ones are taken afterwards."""
    caplog.set_level(logging.INFO)
    async with world(tmp_path) as here, running(here.config(), times=FAST) as sidecar:
        await announced(here)
        spoil(here, tmp_path, damage)
        kept = await said(caplog, "credentials.kept")
        assert kept.levelno == logging.WARNING
        assert (await sidecar.readiness())["ready"]
        await announced(here)
        here.auth.write_credentials(tmp_path, "access-plugin")
        await said(caplog, "credentials.replaced")
        await announced(here)


async def test_the_end_of_a_certificate_is_a_metric_and_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For one of a year a warning from 14 days, an error from one day, each once."""
    caplog.set_level(logging.INFO)
    async with world(tmp_path) as here:
        soon = datetime.now(UTC) + timedelta(days=10)
        begin = soon - timedelta(days=365)
        here.auth.pki.write_credentials(tmp_path, "access-plugin", ["access-plugin"], not_before=begin, not_after=soon)
        async with running(here.config(), times=FAST) as sidecar:
            await announced(here)
            record = await said(caplog, "certificate.expires")
            assert record.levelno == logging.WARNING
            assert "--user=access-plugin --ttl=8760h --out=auth" in record.detail  # type: ignore[attr-defined]
            left = (await sidecar.metrics())['certificate_expiry_seconds{identity="main"}']
            assert 9.9 * 86400 < left <= 10 * 86400
        caplog.clear()
        tomorrow = datetime.now(UTC) + timedelta(hours=12)
        here.auth.pki.write_credentials(
            tmp_path, "access-plugin", ["access-plugin"], not_before=begin, not_after=tomorrow
        )
        async with running(here.config(), times=FAST):
            await announced(here)
            assert (await said(caplog, "certificate.expires")).levelno == logging.ERROR
        assert len(lines(caplog, "certificate.expires")) == 1


async def test_the_end_is_a_metric_while_the_auth_service_is_away(
    here: World, caplog: pytest.LogCaptureFixture
) -> None:
    here.auth.stop()
    async with running(here.config(), times=FAST) as sidecar:
        await said(caplog, "link.lost")
        left = (await sidecar.metrics())['certificate_expiry_seconds{identity="main"}']
        assert 11.9 * 3600 < left <= 12 * 3600


async def test_a_certificate_that_is_not_taken_does_not_hide_the_end_of_the_one_in_use(
    tmp_path: Path, here: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(here.config(), times=FAST) as sidecar:
        await announced(here)
        write_expired(here, tmp_path)
        await said(caplog, "credentials.kept")
        assert (await sidecar.metrics())['certificate_expiry_seconds{identity="main"}'] > 0


async def test_an_expired_certificate_is_survived(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The process waits, says it once with the fix, and goes on as soon as there is a good one."""
    caplog.set_level(logging.INFO)
    async with world(tmp_path) as here:
        write_expired(here, tmp_path)
        waiting = here.auth.create_request("bob@example.com", ["dbadmin"])
        async with running(here.config(), times=FAST) as sidecar:
            refused = await said(caplog, "link.refused")
            assert refused.levelno == logging.ERROR
            assert "expired" in refused.detail  # type: ignore[attr-defined]
            assert "tctl auth sign" in refused.detail  # type: ignore[attr-defined]
            body = await sidecar.readiness()
            assert body["links"]["teleport"]["state"] == "refused"
            assert (await sidecar.metrics())['certificate_expiry_seconds{identity="main"}'] < 0
            here.auth.write_credentials(tmp_path, "access-plugin")
            await here.chat.wait_for(lambda: waiting in here.states())
        assert len(lines(caplog, "link.refused")) == 1


async def test_an_expired_identity_file_is_spoken_of_as_one_file(tmp_path: Path, here: World) -> None:
    """Both lines that name what to do name the command that makes such a file."""
    write_expired(here, tmp_path)
    identity = tmp_path / "auth.pem"
    parts = (here.credentials.key, here.credentials.crt, here.credentials.cas)
    identity.write_bytes(b"".join(part.read_bytes() for part in parts))
    settings = {name: value for name, value in here.settings().items() if not value.endswith(PARTS)}
    config = load(None, {}, settings | {"teleport.identity": str(identity)})
    async with running(config, times=FAST):
        refused = await here.lines.heard("link.refused")
        expires = await here.lines.heard("certificate.expires")
    ended = datetime.fromtimestamp(read_certificate(here.credentials.crt.read_bytes()).not_after, UTC)
    sign = (
        "Sign new credentials on the Auth Service host and put the identity file in place: "
        "tctl auth sign --format=file --user=access-plugin --ttl=8760h --out=identity"
    )
    assert expires["detail"] == sign
    assert refused["detail"] == (f"Our certificate expired on {ended:%Y-%m-%d %H:%M:%S} UTC, 24 hours ago. {sign}")


async def test_a_rotated_bot_token_is_used_at_once(here: World) -> None:
    """The old one may be revoked as soon as the file holds the new one."""
    async with running(here.config(), times=FAST):
        await announced(here)
        old = here.token_file.read_text()
        here.token_file.write_text(here.chat.new_token(here.bot))
        here.chat.disable_token(here.bot, old)
        await announced(here)


@pytest.mark.parametrize("again", ["restart", "hangup"])
@pytest.mark.parametrize("damage", ["half", "other key", "expired", "empty", "missing", "other cluster", "other user"])
async def test_a_new_connection_goes_on_with_the_credentials_that_worked(
    tmp_path: Path, here: World, again: str, damage: str
) -> None:
    """Also after the Auth Service restarted, and after a SIGHUP; good files are taken afterwards."""
    async with reloading(here, here.config(), times=FAST) as sidecar:
        await announced(here)
        spoil(here, tmp_path, damage)
        await here.lines.heard("credentials.kept")
        if again == "restart":
            await trio.to_thread.run_sync(here.auth.restart)
        else:
            await sidecar.reload(here.config(rules__mode="off"))
        await here.lines.heard("link.ready", 2, link="teleport")
        await announced(here)
        assert (await sidecar.readiness())["ready"]
        # The certificate in use counts.
        assert (await sidecar.metrics())['certificate_expiry_seconds{identity="main"}'] > 0
        # The link has told of these files already.
        assert len(here.lines.of("credentials.kept")) == 1
        assert not here.lines.of("link.refused")
        here.auth.write_credentials(tmp_path, "access-plugin")
        await here.lines.heard("credentials.replaced")
        await announced(here)


async def test_files_that_break_while_the_link_is_away_are_told_of_once(tmp_path: Path, here: World) -> None:
    async with running(here.config(), times=FAST):
        await announced(here)
        here.auth.stop()
        await here.lines.heard("link.lost", link="teleport")
        spoil(here, tmp_path, "other key")
        for count in (2, 3):
            here.auth.start()
            await here.lines.heard("link.ready", count, link="teleport")
            here.auth.stop()
            await here.lines.heard("link.lost", count, link="teleport")
        (line,) = here.lines.of("credentials.kept")
        assert line["reason"] == "tls"
        assert "The key is not the one of the certificate" in line["detail"]


async def test_new_files_are_tried_again_when_it_was_not_their_fault(tmp_path: Path, here: World) -> None:
    times = msgspec.structs.replace(FAST, refused_retry=0.2)
    async with running(here.config(), times=times):
        await announced(here)
        here.auth.faults.fail("Ping", grpc.StatusCode.UNAVAILABLE, "away", times=2)
        here.auth.write_credentials(tmp_path, "access-plugin")
        await here.lines.heard("credentials.replaced")
        (line,) = here.lines.of("credentials.kept")
        assert line["reason"] == "unavailable"


async def test_kept_credentials_serve_until_their_own_end(tmp_path: Path, here: World) -> None:
    """What is said then is what is wrong with the files; good ones end the wait."""
    soon = datetime.now(UTC) + timedelta(seconds=5)
    here.auth.pki.write_credentials(tmp_path, "access-plugin", ["access-plugin"], not_after=soon)
    async with running(here.config(), times=FAST):
        await here.lines.heard("link.ready", link="teleport")
        spoil(here, tmp_path, "half")
        await here.lines.heard("credentials.kept")
        here.auth.stop()
        assert "/auth.crt holds no" in (await here.lines.heard("link.refused"))["detail"]
        assert datetime.now(UTC) > soon - timedelta(seconds=1)
        here.auth.start()
        waiting = here.ask()
        here.auth.write_credentials(tmp_path, "access-plugin")
        await here.told(waiting)


def spoil(here: World, folder: Path, damage: str) -> None:
    crt, key = here.credentials.crt, here.credentials.key
    match damage:
        case "half":
            crt.write_bytes(crt.read_bytes()[:300])
        case "empty":
            key.write_bytes(b"")
        case "missing":
            key.unlink()
        case "other key":
            shutil.copy(here.auth.write_credentials(folder, "access-plugin", name="other").key, key)
        case "expired":
            write_expired(here, folder)
        case "other user":
            here.auth.write_credentials(folder, "bob@example.com")
        case "other cluster":
            ClusterPki("other.example").write_credentials(folder, "access-plugin", ["access-plugin"])


async def test_an_identity_file_is_rotated_and_kept(tmp_path: Path) -> None:
    """The one file in place of the three, behind the links of a mounted secret."""

    def issue(version: str) -> None:
        files = here.auth.write_credentials(tmp_path / version, "access-plugin")
        parts = [path.read_bytes() for path in (files.key, files.crt, files.cas)]
        (tmp_path / version / "auth.pem").write_bytes(b"".join(parts))

    async with world(tmp_path) as here:
        for version in ("first", "third"):
            issue(version)
        (tmp_path / "second").mkdir()
        (tmp_path / "second" / "auth.pem").write_bytes((tmp_path / "first" / "auth.pem").read_bytes()[:300])
        (tmp_path / "..data").symlink_to("first")
        (tmp_path / "auth.pem").symlink_to("..data/auth.pem")
        flags = {key: value for key, value in here.settings().items() if not key.startswith("teleport.")}
        flags |= {"teleport.addr": here.auth.addr, "teleport.identity": str(tmp_path / "auth.pem")}
        async with running(load(None, {}, flags), times=FAST):
            await announced(here)
            swap(tmp_path, "second")
            await here.lines.heard("credentials.kept")
            await trio.to_thread.run_sync(here.auth.restart)
            await here.lines.heard("link.ready", 2, link="teleport")
            await announced(here)
            swap(tmp_path, "third")
            await here.lines.heard("credentials.replaced")
            await announced(here)


def swap(folder: Path, version: str) -> None:
    """Let `..data` lead to another folder, as Kubernetes does."""
    (folder / "..new").symlink_to(version)
    (folder / "..new").rename(folder / "..data")


@pytest.mark.parametrize("again", ["goes on", "restart", "hangup"])
@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"two words", b"wrong", None])
async def test_a_token_file_that_does_not_serve_keeps_the_old_token(
    here: World, content: bytes | None, again: str
) -> None:
    """One warning names the file; the link stays, and a good token is taken at once."""
    async with reloading(here, here.config(reviewers__alice="alice@example.com"), times=FAST) as sidecar:
        await announced(here)
        if content is None:
            here.token_file.unlink()
        else:
            here.token_file.write_bytes(content)
        await announced(here)
        if again == "restart":
            await here.chat.restart()
            await here.lines.heard("link.ready", 2, link="mattermost")
        elif again == "hangup":
            # The link is made anew; what was accepted for this server and file still is.
            await sidecar.reload(
                here.config(reviewers__alice="alice@example.com", mattermost__max_posts_per_second="999")
            )
            await here.lines.heard("link.ready", 2, link="mattermost")
        await announced(here)
        assert (await sidecar.readiness())["ready"]
        (line,) = here.lines.of("credentials.kept")
        assert line["reason"] == "token"
        assert line["detail"].startswith(f"mattermost.token_file: {here.token_file}")
        assert line["detail"].count(str(here.token_file)) == 1
        assert not here.lines.of("link.refused")
        old = here.bot.token
        here.token_file.write_text(here.chat.new_token(here.bot))
        here.chat.disable_token(here.bot, old)
        await announced(here)
        # Another time is another state of the file.
        here.token_file.write_bytes(b"")
        await announced(here)
        assert len(here.lines.of("credentials.kept")) == 2


async def test_a_kept_token_that_is_revoked_is_refused(here: World) -> None:
    async with running(here.config(), times=FAST):
        await announced(here)
        here.token_file.write_text("wrong")
        await announced(here)
        here.chat.disable_token(here.bot)
        here.ask()
        assert (await here.lines.heard("link.refused"))["reason"] == "token"
        waiting = here.ask()
        here.token_file.write_text(here.chat.new_token(here.bot))
        await here.told(waiting)


async def test_a_swapped_token_file_is_used_at_once(tmp_path: Path, here: World) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    here.token_file.rename(tmp_path / "first" / "token")
    (tmp_path / "..data").symlink_to("first")
    here.token_file.symlink_to("..data/token")
    async with running(here.config(), times=FAST):
        await announced(here)
        old = here.bot.token
        (tmp_path / "second" / "token").write_text(here.chat.new_token(here.bot))
        swap(tmp_path, "second")
        here.chat.disable_token(here.bot, old)
        await announced(here)
        assert not here.lines.of("credentials.kept")


async def test_sighup_takes_the_new_configuration(tmp_path: Path, here: World) -> None:
    """Other recipients from then on, nothing announced twice; a broken file changes nothing."""
    other = here.chat.add_channel(here.team, "dba", members=(here.bot,))
    file = tmp_path / "sidecar.toml"
    settings = here.settings()
    del settings["mattermost.recipients"]
    file.write_text('mattermost.recipients = ["ops/access-requests"]\n')
    with process(settings, "--config", str(file)) as child:
        first = await announced(here)
        file.write_text("mattermost.recipients = [\n")
        os.kill(child.pid, signal.SIGHUP)
        second = await announced(here)
        file.write_text('mattermost.recipients = ["ops/dba"]\n')
        os.kill(child.pid, signal.SIGHUP)
        await here.chat.wait_for(lambda: set(here.states(other)) == {first, second})
        third = here.auth.create_request("bob@example.com", ["dbadmin"])
        await here.chat.wait_for(lambda: third in here.states(other))
        child.terminate()
        assert await trio.to_thread.run_sync(child.wait) == 0
    assert here.states() == {first: ["PENDING"], second: ["PENDING"]}


async def heard(child: subprocess.Popen[str], event: str) -> dict[str, object]:
    """Return the next line of the process with this event."""
    assert child.stderr is not None
    while text := await trio.to_thread.run_sync(child.stderr.readline):
        line: dict[str, object] = json.loads(text)
        if line["event"] == event:
            return line
    raise AssertionError(f"it ended without {event}")


async def test_sighup_with_an_authority_that_cannot_be_used_changes_nothing(tmp_path: Path, here: World) -> None:
    file = tmp_path / "sidecar.toml"
    file.write_text('log.format = "json"\n')
    with process(here.settings(), "--config", str(file)) as child:
        await announced(here)
        file.write_text('log.format = "json"\nlog.severity = "ERROR"\nmattermost.ca_file = "/nowhere.pem"\n')
        os.kill(child.pid, signal.SIGHUP)
        kept = await heard(child, "config.kept")
        assert "/nowhere.pem" in str(kept["problems"])
        await announced(here)


async def test_sighup_is_told_what_it_took_and_what_needs_a_restart(tmp_path: Path, ca: trustme.CA) -> None:
    """The log follows its own section, the endpoints show the certificate of now, and stay where they are."""
    crt, key, authority = tmp_path / "ep.crt", tmp_path / "ep.key", tmp_path / "ep.ca"
    ca.cert_pem.write_to_path(authority)

    def issue(name: str) -> str:
        made = ca.issue_cert("127.0.0.1", common_name=name)
        made.private_key_pem.write_to_path(key)
        crt.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        return name

    def shown(address: str) -> str:
        host, _, port = address.rpartition(":")
        return ssl.get_server_certificate((host, int(port)), ca_certs=str(authority))

    async with world(tmp_path) as here:
        issue("first")
        file = tmp_path / "sidecar.toml"
        base = f'log.format = "json"\nendpoints.tls_crt = "{crt}"\nendpoints.tls_key = "{key}"\n'
        settings = here.settings()
        del settings["endpoints.listen"]
        first = base + 'endpoints.listen = "127.0.0.1:0"\n'
        file.write_text(first)
        with process(settings, "--config", str(file)) as child:
            address = str((await heard(child, "endpoints.listening"))["address"])
            await heard(child, "link.ready")
            before = await trio.to_thread.run_sync(shown, address)
            issue("second")
            file.write_text(base + 'endpoints.listen = "127.0.0.1:1"\n')
            for _ in range(2):
                os.kill(child.pid, signal.SIGHUP)
                assert "127.0.0.1:1" in str((await heard(child, "config.read"))["config"])
                await heard(child, "config.unchangeable")
                await heard(child, "config.reloaded")
            assert await trio.to_thread.run_sync(shown, address) != before
            file.write_text(first + 'log.severity = "WARNING"\n')
            os.kill(child.pid, signal.SIGHUP)
            await announced(here)
            child.terminate()
            assert child.stderr is not None
            rest = await trio.to_thread.run_sync(child.stderr.read)
            assert "config.unchangeable" not in rest
            assert "config.reloaded" not in rest
