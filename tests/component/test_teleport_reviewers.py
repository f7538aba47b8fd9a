"""Reviewers' own credentials: held to what they claim each time they are used, and gone when their files are."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio

from sidecar.errors import LinkLost, ReviewRejected
from sidecar.simulator.auth import AuthServer
from sidecar.simulator.pki import ClusterPki
from sidecar.teleport import reviewers as module
from sidecar.teleport.reviewers import Reviewers, open_reviewers

ALICE, IVAN = "alice@example.com", "ivan@example.com"
CLUSTER = "example.com"


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


@asynccontextmanager
async def room(folder: Path) -> AsyncIterator[Room]:
    with AuthServer.dual_authorization() as auth:
        inside = folder / "reviewers"
        inside.mkdir()
        files = auth.write_credentials(folder, "access-plugin")
        async with open_reviewers(
            inside,
            auth.addr,
            files.cas,
            server_name="teleport.cluster.local",
            observe=lambda _method, _outcome, _seconds: None,
        ) as pool:
            here = Room(auth, inside, pool)
            here.write()
            yield here


def nobody(here: Room) -> None:
    (here.folder / f"{ALICE}.key").unlink()


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


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nobody, "there are no credentials for"),
        (somebody_else, "is not alice@example.com's"),
        (another_cluster, "another cluster"),
        (readable_by_others, "its mode must be 0600"),
        (a_foreign_key, "do not belong together"),
        (garbled, "cannot be read"),
    ],
)
@pytest.mark.parametrize("used_before", [False, True])
async def test_credentials_that_do_not_serve(
    tmp_path: Path,
    spoil: Callable[[Room], None],
    words: str,
    used_before: bool,  # noqa: FBT001
) -> None:
    """Also where the connection made of their predecessors is still open."""
    with trio.fail_after(10):
        async with room(tmp_path) as here:
            if used_before:
                await here.approve()
            spoil(here)
            with pytest.raises(ReviewRejected, match=words) as refused:
                await here.approve()
            assert refused.value.reason == "credential"
            assert len(here.auth.submissions) == used_before


async def test_the_certificates_that_can_be_read(tmp_path: Path) -> None:
    """Their ends are watched, each by its reviewer."""
    with trio.fail_after(10):
        async with room(tmp_path) as here:
            here.write(IVAN)
            garbled(here)
            assert list(here.pool.certificates()) == [IVAN]


async def test_a_certificate_that_ends_while_its_connection_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(10):
        async with room(tmp_path) as here:
            await here.approve()
            monkeypatch.setattr(time, "time", lambda: 1e12)
            with pytest.raises(ReviewRejected, match="has expired"):
                await here.approve()


async def test_a_replaced_file_opens_a_new_connection(tmp_path: Path) -> None:
    """The second review is Teleport's to refuse: it is asked."""
    with trio.fail_after(10):
        async with room(tmp_path) as here:
            assert await here.approve() == 1
            here.write()
            with pytest.raises(ReviewRejected) as refused:
                await here.approve()
            assert refused.value.reason == "duplicate"


@pytest.mark.parametrize("name", ["../auth", "", ".hidden", "a/b", "a\x00b", "x" * 300])
async def test_a_user_name_never_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with trio.fail_after(10):
        async with room(tmp_path) as here:
            with pytest.raises(ReviewRejected, match="cannot have a file"):
                await here.approve(name)


async def test_connections_are_bounded_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once open one each; beyond the bound the one unused for longest makes room, in use or not."""
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    users = [f"reviewer{number}@example.com" for number in range(5)]
    with trio.fail_after(10):
        async with room(tmp_path) as here:
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
async def test_a_teleport_that_is_away_is_no_refusal(tmp_path: Path, code: str) -> None:
    """It is tried again by whoever asked."""
    with trio.fail_after(10):
        async with room(tmp_path) as here:
            here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode[code], "away")
            with pytest.raises(LinkLost):
                await here.approve()
            assert await here.approve() == 1
