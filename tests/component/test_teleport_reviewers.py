"""Reviewers' own credentials: held to what they claim each time they are used, and gone when their files are."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio

from sidecar.errors import LinkLost, ReviewRejected
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.teleport.pki import ClusterPki
from sidecar.teleport import reviewers as module
from sidecar.teleport.client import open_client
from sidecar.teleport.pb import teleport_pb2 as pb
from sidecar.teleport.reviewers import Reviewers, open_reviewers

ALICE, IVAN = "alice@example.com", "ivan@example.com"
CLUSTER = "example.com"


def told(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [record.__dict__ for record in caplog.records if record.getMessage() == event]


class Room:
    def __init__(self, auth: AuthServer, folder: Path, pool: Reviewers) -> None:
        self.auth = auth
        self.folder = folder
        self.pool = pool
        self.request_id = auth.create_request("bob@example.com", ["dbadmin"])

    def write(self, user: str = ALICE, *, name: str = "", pki: ClusterPki | None = None) -> None:
        issuer = pki or self.auth.pki
        files = issuer.write_credentials(self.folder.parent, user, ["reviewer"], name=name or user)
        for path in (files.crt, files.key):
            path.rename(self.folder / path.name)

    async def approve(self, user: str = ALICE) -> int:
        request = await self.pool.submit(user, self.request_id, "APPROVED", "", cluster=CLUSTER)
        return len(request.reviews)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Room]:
    with AuthServer.dual_authorization() as auth:
        inside = tmp_path / "reviewers"
        inside.mkdir()
        files = auth.write_credentials(tmp_path, "access-plugin", name="access-plugin")
        async with open_reviewers(inside, files.cas, partial(open_client, auth.addr)) as pool:
            one = Room(auth, inside, pool)
            one.write()
            yield one


def somebody_else(here: Room) -> None:
    here.write(IVAN, name=ALICE)


def another_cluster(here: Room) -> None:
    here.write(pki=ClusterPki("other.example"))


def readable_by_others(here: Room) -> None:
    (here.folder / f"{ALICE}.key").chmod(0o640)


def a_foreign_key(here: Room) -> None:
    here.write(IVAN)
    (here.folder / f"{IVAN}.key").rename(here.folder / f"{ALICE}.key")


def garbled(here: Room) -> None:
    (here.folder / f"{ALICE}.crt").write_bytes(b"\xff\x00")


def half_written(here: Room) -> None:
    crt = here.folder / f"{ALICE}.crt"
    crt.write_bytes(crt.read_bytes()[:300])


def damaged(here: Room) -> None:
    crt = here.folder / f"{ALICE}.crt"
    crt.write_bytes(crt.read_bytes()[:300] + b"\n-----END CERTIFICATE-----\n")


def without_authorities(here: Room) -> None:
    (here.folder.parent / "access-plugin.cas").write_bytes(b"")


BROKEN = [
    (somebody_else, "is not alice@example.com's"),
    (another_cluster, "another cluster"),
    (readable_by_others, "its mode must be 0600"),
    (a_foreign_key, "do not belong together"),
    (garbled, "holds no PEM block CERTIFICATE"),
    (half_written, "holds no PEM block CERTIFICATE"),
    (damaged, "the certificate in alice@example.com.crt cannot be read"),
    (without_authorities, "access-plugin.cas is empty"),
]


async def test_a_server_of_another_cluster_gets_no_review(here: Room) -> None:
    """However often it is tried: that there is a connection proves nothing."""
    other = pb.PingResponse(ClusterName=b"other.example").SerializeToString()
    here.auth.faults.garble("Ping", other, times=2)
    for _ in range(2):
        with pytest.raises(ReviewRejected) as refused:
            await here.approve()
        assert refused.value.reason == "credential"
    assert not here.auth.submissions
    assert await here.approve() == 1


@pytest.mark.parametrize(("spoil", "words"), BROKEN)
async def test_credentials_that_do_not_serve(
    here: Room, caplog: pytest.LogCaptureFixture, spoil: Callable[[Room], None], words: str
) -> None:
    """One warning for each state of the files names them."""
    spoil(here)
    for _ in range(2):
        with pytest.raises(ReviewRejected, match=r"credentials|certificate|mode") as refused:
            await here.approve()
        assert refused.value.reason == "credential"
    assert not here.auth.submissions
    (line,) = told(caplog, "credentials.unusable")
    assert line["reviewer"] == ALICE
    assert line["detail"].startswith(f"{here.folder / ALICE}.crt, {ALICE}.key: ")
    assert re.search(words, line["detail"])
    (here.folder / f"{ALICE}.crt").write_bytes(b"")
    with pytest.raises(ReviewRejected):
        await here.approve()
    assert len(told(caplog, "credentials.unusable")) == 2


@pytest.mark.parametrize(("spoil", "words"), BROKEN)
async def test_broken_files_keep_the_open_connection(
    here: Room, caplog: pytest.LogCaptureFixture, spoil: Callable[[Room], None], words: str
) -> None:
    """One warning, and the next review is Alice's as the one before."""
    await here.approve()
    spoil(here)
    for _ in range(2):
        here.request_id = here.auth.create_request("bob@example.com", ["dbadmin"])
        assert await here.approve() == 1
    (line,) = told(caplog, "credentials.kept")
    assert (line["reviewer"], line["reason"]) == (ALICE, "credential")
    assert re.search(words, line["detail"])
    assert line["detail"].startswith(f"{here.folder / ALICE}.crt, {ALICE}.key: ")
    assert not told(caplog, "credentials.unusable")


@pytest.mark.parametrize("suffix", ["crt", "key"])
@pytest.mark.parametrize("used_before", [False, True])
async def test_a_removed_file_ends_an_identity(here: Room, suffix: str, *, used_before: bool) -> None:
    if used_before:
        await here.approve()
    (here.folder / f"{ALICE}.{suffix}").unlink()
    with pytest.raises(ReviewRejected, match="there are no credentials for") as refused:
        await here.approve()
    assert refused.value.reason == "credential"
    assert len(here.auth.submissions) == used_before
    # The connection of before is gone for good.
    (here.folder / f"{ALICE}.{suffix}").write_bytes(b"")
    with pytest.raises(ReviewRejected, match="cannot be read"):
        await here.approve()


async def test_who_never_had_files_is_no_broken_reviewer(here: Room, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ReviewRejected, match="there are no credentials for"):
        await here.approve(IVAN)
    assert [line.getMessage() for line in caplog.records if line.levelno > 20] in ([], ["identities.missing"])


@pytest.mark.parametrize("how", ["missing", "empty", "a file"])
async def test_a_folder_without_reviewers_is_told_of_at_the_start(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "reviewers"
    if how == "empty":
        folder.mkdir()
    elif how == "a file":
        folder.touch()
    async with open_reviewers(folder, tmp_path, lambda _: nullcontext()) as pool:  # type: ignore[arg-type, return-value]
        assert pool.certificates() == {}
    (line,) = [one.__dict__ for one in caplog.records if one.getMessage() == "identities.missing"]
    assert str(folder) in line["detail"]


async def test_credentials_that_teleport_refuses_are_told_of(here: Room, caplog: pytest.LogCaptureFixture) -> None:
    here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode.UNAUTHENTICATED, "no", times=2)
    for _ in range(2):
        with pytest.raises(ReviewRejected, match="does not accept"):
            await here.approve()
    (line,) = told(caplog, "credentials.unusable")
    assert line["reviewer"] == ALICE


async def test_a_swapped_folder_of_links_opens_a_new_connection(here: Room) -> None:
    """As Kubernetes updates a mounted secret."""
    names = [f"{ALICE}.crt", f"{ALICE}.key"]
    for version in ("first", "second"):
        (here.folder / version).mkdir()
        here.write()
        for name in names:
            (here.folder / name).rename(here.folder / version / name)
    (here.folder / "..data").symlink_to("first")
    for name in names:
        (here.folder / name).symlink_to(f"..data/{name}")
    await here.approve()
    before = here.pool._open[ALICE].client
    (here.folder / "..new").symlink_to("second")
    (here.folder / "..new").rename(here.folder / "..data")
    here.request_id = here.auth.create_request("bob@example.com", ["dbadmin"])
    assert await here.approve() == 1
    assert here.pool._open[ALICE].client is not before


async def test_the_certificates_that_can_be_read(here: Room) -> None:
    """Their ends are watched, each by its reviewer."""
    here.write(IVAN)
    garbled(here)
    assert list(here.pool.certificates()) == [IVAN]


async def test_a_certificate_that_ends_while_its_connection_is_open(
    here: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.approve()
    monkeypatch.setattr(time, "time", lambda: 1e12)
    with pytest.raises(ReviewRejected, match="has expired"):
        await here.approve()


async def test_a_replaced_file_opens_a_new_connection(here: Room) -> None:
    """The second review is Teleport's to refuse: it is asked."""
    assert await here.approve() == 1
    here.write()
    with pytest.raises(ReviewRejected) as refused:
        await here.approve()
    assert refused.value.reason == "duplicate"


@pytest.mark.parametrize("name", ["../auth", "", ".hidden", "a/b", "a\x00b", "x" * 300])
async def test_a_user_name_never_leaves_the_folder(here: Room, name: str) -> None:
    with pytest.raises(ReviewRejected, match="cannot have a file"):
        await here.approve(name)


async def test_connections_are_bounded_and_shared(here: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once open one each; beyond the bound the one unused for longest makes room, in use or not."""
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    users = [f"reviewer{number}@example.com" for number in range(5)]
    for user in users:
        here.auth.add_user(user, ["reviewer"])
        here.write(user)
    here.auth.faults.hang("SubmitAccessReview")
    refused = []

    async def approve(user: str) -> None:
        try:
            await here.approve(user)
        except ReviewRejected as exc:
            refused.append(exc.reason)

    async with trio.open_nursery() as nursery:
        for user in users * 2:
            nursery.start_soon(approve, user)
        await trio.to_thread.run_sync(
            here.auth.wait_for, lambda: here.auth.calls["SubmitAccessReview"] == len(users) * 2
        )
        assert len(here.pool._open) == 2
        here.auth.faults.release()
    assert refused == ["duplicate"] * len(users)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED"])
async def test_a_teleport_that_is_away_is_no_refusal(here: Room, code: str) -> None:
    """It is tried again by whoever asked."""
    here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode[code], "away")
    with pytest.raises(LinkLost):
        await here.approve()
    assert await here.approve() == 1
