"""The whole sidecar by both ways, to the Auth Service itself and through a Proxy: rotation and outages included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from sidecar import check
from sidecar.config import Config
from sidecar.simulator.teleport.proxy import ProxyServer
from sidecar.simulator.teleport.roles import RULE
from tests.deciding import APPROVE, LISTENING, card_of, linked, listening
from tests.world import QUICK, World, reloading, running, world

TIMES = replace(QUICK, call=0.05)
WAYS = pytest.mark.parametrize("way", ["direct", "proxy"])


class Way:
    """One of the two, with what may break on it."""

    def __init__(self, here: World, proxy: ProxyServer, nursery: trio.Nursery, name: str) -> None:
        self.here, self.proxy, self.name = here, proxy, name
        self.ca_file = here.folder / "proxy-ca.pem"
        self.ca_file.write_bytes(proxy.ca_pem)
        self._nursery = nursery

    def config(self, **changes: str) -> Config:
        if self.name == "proxy":
            changes |= {"teleport__addr": self.proxy.addr, "teleport__proxy_ca_file": str(self.ca_file)}
        return self.here.config(**changes)

    async def connections(self, count: int) -> None:
        """Wait until the Proxy holds so many."""
        while self.proxy.connections != count:  # noqa: ASYNC110 - sockets tell nobody
            await trio.sleep(0.01)

    async def down(self, leg: str) -> None:
        if leg == "auth":
            await trio.to_thread.run_sync(self.here.auth.stop)
            return
        if leg == "proxy":
            self.proxy.stop()
        self.proxy.refusing = leg == "refusing"
        self.proxy.cut()

    async def up(self, leg: str) -> None:
        if leg == "auth":
            self.here.auth.start()
        elif leg == "proxy":
            await self._nursery.start(self.proxy.serve)
        self.proxy.refusing = False

    async def announced(self) -> str:
        (request_id,) = self.here.ask()
        await self.here.told([request_id])
        await self.here.released(request_id)
        return request_id


@asynccontextmanager
async def way_to(folder: Path, name: str, **proxy: str) -> AsyncIterator[Way]:
    with trio.fail_after(30):
        async with world(folder, version="18.0.0") as here, trio.open_nursery() as nursery:
            server = ProxyServer(lambda: here.auth.addr, **proxy)  # type: ignore[arg-type]
            await nursery.start(server.serve)
            yield Way(here, server, nursery, name)
            nursery.cancel_scope.cancel()


@WAYS
async def test_the_way_is_found_out_and_told(tmp_path: Path, way: str) -> None:
    async with way_to(tmp_path, way) as there, running(there.config(), times=TIMES) as sidecar:
        await there.announced()
        await there.here.lines.heard("link.ready", link="mattermost")
        body = await sidecar.readiness()
        assert body["ready"]
        assert body["links"]["teleport"]["way"] == way
        assert "way" not in body["links"]["mattermost"]
        assert bool(there.proxy.connections) == (way == "proxy")


@WAYS
async def test_new_credentials_and_a_new_configuration(tmp_path: Path, way: str) -> None:
    async with way_to(tmp_path, way) as there:
        async with reloading(there.here, there.config(), times=TIMES) as sidecar:
            await there.announced()
            there.here.auth.write_credentials(tmp_path, "access-plugin")
            await there.here.lines.heard("credentials.replaced")
            await there.announced()
            await sidecar.reload(there.config(rules__mode="off"))
            await there.here.lines.heard("link.ready", 2, link="teleport")
            await there.announced()
            if way == "proxy":
                # The connection of now alone: those of before are gone, at both ends.
                await there.connections(1)
        await there.connections(0)


@WAYS
async def test_an_identity_file_is_all_that_it_takes(tmp_path: Path, way: str) -> None:
    async with way_to(tmp_path, way) as there:
        files, identity = there.here.credentials, tmp_path / "auth.pem"

        def issue() -> None:
            there.here.auth.write_credentials(tmp_path, "access-plugin")
            part = tmp_path / "auth.pem.new"
            part.write_bytes(files.key.read_bytes() + files.crt.read_bytes() + files.cas.read_bytes())
            part.rename(identity)

        issue()
        async with running(replace_identity(there.config(), identity), times=TIMES):
            await there.announced()
            issue()
            await there.here.lines.heard("credentials.replaced")
            await there.announced()


def replace_identity(config: Config, identity: Path) -> Config:
    nowhere = Path("/nonexistent")
    teleport = replace(config.teleport, identity=identity, client_crt=nowhere, client_key=nowhere, root_cas=nowhere)
    return replace(config, teleport=teleport)


LEGS = [
    ("direct", "auth", "Nothing is listening"),
    ("proxy", "auth", "does not reach its Auth Service"),
    ("proxy", "proxy", "It is the address of a Proxy"),
    ("proxy", "refusing", "It is the address of a Proxy"),
    ("proxy", "cut", ""),
]


@pytest.mark.parametrize(("way", "leg", "words"), LEGS)
async def test_an_outage_of_either_leg_is_survived_and_named(tmp_path: Path, way: str, leg: str, words: str) -> None:
    """Nothing is lost: what was asked meanwhile is told afterwards, once."""
    async with way_to(tmp_path, way) as there, running(there.config(), times=TIMES) as sidecar:
        before = await there.announced()
        await there.down(leg)
        await there.here.lines.heard("link.lost", link="teleport")
        while words not in (await sidecar.readiness())["links"]["teleport"]["detail"]:  # noqa: ASYNC110 - nobody is told
            await trio.sleep(0.02)
        meanwhile = there.here.ask(3)
        await there.up(leg)
        await there.here.told([before, *meanwhile])
        await there.here.lines.heard("link.ready", 2, link="teleport")
        for request_id in meanwhile:
            await there.here.released(request_id)
        assert not there.here.lines.of("link.refused")


@WAYS
async def test_reviewers_go_the_same_way(tmp_path: Path, way: str) -> None:
    """Their connections are lost and made anew, too."""
    async with way_to(tmp_path, way) as there:
        here = there.here
        async with running(there.config(**linked(here)), times=LISTENING):
            await listening(here)
            for lost in (False, True):
                request_id = await there.announced()
                passed = there.proxy.passed
                for person in (here.alice, here.ivan):
                    here.chat.react(person, card_of(here, request_id), APPROVE)
                await here.told([request_id], "APPROVED")
                await here.released(request_id)
                if way == "proxy":
                    assert there.proxy.passed == passed + 2
                if not lost:
                    there.proxy.cut()
                    await here.recorded(lambda: here.auth.watchers == 0 or way == "direct")
                    await here.watched()


async def test_links_lead_to_the_proxy_s_own_public_address(tmp_path: Path) -> None:
    public = "teleport.example.com:443"
    async with way_to(tmp_path, "proxy", public_addr=public) as there, running(there.config(), times=TIMES):
        request_id = await there.announced()
        (card,) = there.here.cards()
        assert f"https://{public}/web/requests/{request_id}" in str(card.props)


async def test_what_ends_tls_before_the_proxy_is_a_refusal_with_the_ways_out(tmp_path: Path) -> None:
    async with way_to(tmp_path, "proxy", kind="load_balancer") as there, running(there.config(), times=TIMES):
        line = await there.here.lines.heard("link.refused", link="teleport")
        assert "something before it ends TLS and strips ALPN" in line["detail"]
        assert "Let it pass TCP through (layer 4)" in line["detail"]


@WAYS
async def test_check_tells_the_way_and_each_hop(tmp_path: Path, way: str) -> None:
    async with way_to(tmp_path, way) as there:
        findings, _ = await check.run(there.config(**linked(there.here)))
        by_id = {one.id: one for one in findings}
        assert not [one for one in findings if one.status == "failure"]
        assert ("teleport.proxy" in by_id) == (way == "proxy")
        reached = "through the Proxy: TCP with the Proxy" if way == "proxy" else "directly: TCP with the Auth Service"
        assert by_id["teleport.way"].message.startswith(f"The Auth Service is reached {reached} took ")
        assert by_id["reviewer.rights"].status == "ok"
        await there.connections(0)


@WAYS
async def test_who_is_told_is_asked_by_the_same_way(tmp_path: Path, way: str) -> None:
    async with way_to(tmp_path, way) as there:
        there.here.auth.add_rule("all", "true", ["ops/dba"])
        there.here.auth.add_role("access-plugin", rules={RULE: ("list", "read")})
        findings, _ = await check.who_is_told(there.config(), ("dbadmin",), "")
    assert [(one.subject, one.message) for one in findings] == [("ops/dba", 'the access monitoring rule "all".')]
