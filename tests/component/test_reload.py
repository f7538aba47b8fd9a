"""SIGHUP: the new configuration counts for everything, and touches only what it changes. Nothing owed is forgotten."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import trio

from sidecar.config import Config
from sidecar.errors import ConfigError
from sidecar.simulator.mattermost.server import MattermostServer
from sidecar.simulator.teleport.auth import AuthServer
from tests.deciding import ALICE, APPROVE, IVAN, LISTENING, linked, listening, submitted
from tests.teleport_peer import descriptors
from tests.world import QUICK, Reloading, World, reloading, world

POSTS = "/api/v4/posts"


async def announced(here: World) -> str:
    """A request with its card in the usual channel, and nobody holding its record."""
    (request_id,) = here.ask()
    await here.told([request_id])
    await here.released(request_id)
    return request_id


def connected(here: World) -> Counter[str]:
    """How often each link was made."""
    return Counter(line["link"] for line in here.lines.of("link.ready"))


async def test_an_unchanged_configuration_touches_nothing(tmp_path: Path) -> None:
    """No link, no watch, no look at any request."""
    async with world(tmp_path) as here:
        config = here.config(**linked(here))
        async with reloading(here, config) as sidecar:
            await announced(here)
            await listening(here)
            (socket,) = here.chat.hub.sockets_of(here.bot.id)
            looks = await visits(sidecar)
            await sidecar.reload()
            await sidecar.reload(here.config(**linked(here)))
            assert connected(here) == {"teleport": 1, "mattermost": 1}
            assert here.chat.hub.sockets_of(here.bot.id) == [socket]
            assert await visits(sidecar) == looks
            await announced(here)


async def visits(sidecar: Reloading) -> float:
    return (await sidecar.metrics())["reconcile_seconds_count"]


async def test_other_recipients_are_told_of_what_is_open(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        other = here.chat.add_channel(here.team, "dba", members=(here.bot,))
        async with reloading(here, here.config()) as sidecar:
            first = await announced(here)
            await sidecar.reload(here.config(mattermost__recipients='["ops/dba"]'))
            await here.told([first], channel=other)
            here.auth.set_state(first, "DENIED")
            await here.told([first], "DENIED", channel=other)
            await here.told([first], "DENIED")
            (second,) = here.ask()
            await here.told([second], channel=other)
            assert here.states() == {first: ["DENIED"]}
            assert connected(here) == {"teleport": 1, "mattermost": 1}


@pytest.mark.parametrize("what", ["url", "token", "limits"])
async def test_other_settings_of_mattermost_connect_it_alone(tmp_path: Path, what: str) -> None:
    """Its websocket too; the card of before is still ours."""
    async with world(tmp_path) as here:
        changes = linked(here)
        async with reloading(here, here.config(**changes)) as sidecar:
            first = await announced(here)
            await listening(here)
            old = here.bot.token
            if what == "url":
                changes["mattermost__url"] = here.chat.url.replace("127.0.0.1", "localhost")
            elif what == "limits":
                changes["mattermost__max_connections"] = "3"
            else:
                other = tmp_path / "other"
                other.write_text(here.chat.new_token(here.bot))
                changes["mattermost__token_file"] = str(other)
            await sidecar.reload(here.config(**changes))
            await here.lines.heard("link.ready", 2, link="mattermost")
            if what == "token":
                here.chat.disable_token(here.bot, old)
            here.auth.set_state(first, "APPROVED")
            await here.told([first], "APPROVED")
            await announced(here)
            assert connected(here) == {"teleport": 1, "mattermost": 2}
            assert not here.lines.problems


async def test_another_mattermost_has_other_channels(tmp_path: Path) -> None:
    """What was known of names was true of the first."""
    async with world(tmp_path) as here, trio.open_nursery() as nursery:
        chat = MattermostServer("5.37.0")
        await nursery.start(chat.serve)
        bot = chat.add_bot("teleport")
        channel = chat.add_channel(chat.add_team("ops", members=[bot]), "access-requests", members=[bot])
        token = tmp_path / "there"
        token.write_text(bot.token)
        async with reloading(here, here.config()) as sidecar:
            first = await announced(here)
            await sidecar.reload(here.config(mattermost__url=chat.url, mattermost__token_file=str(token)))
            (second,) = here.ask()
            await chat.wait_for(lambda: any(post.props["tm"]["id"] == second for post in chat.posts(channel)))
            assert here.states() == {first: ["PENDING"]}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["addr", "credentials", "rules"])
async def test_other_settings_of_teleport_connect_it_alone(tmp_path: Path, what: str) -> None:
    """What is followed stays followed."""
    async with world(tmp_path) as here, reloading(here, here.config()) as sidecar:
        first = await announced(here)
        changes = {
            "addr": {"teleport__addr": here.auth.addr.replace("127.0.0.1", "localhost")},
            "rules": {"rules__mode": "off"},
        }
        if what == "credentials":
            (tmp_path / "moved").mkdir()
            files = here.auth.write_credentials(tmp_path / "moved", "access-plugin")
            changes[what] = {
                "teleport__client_crt": str(files.crt),
                "teleport__client_key": str(files.key),
                "teleport__root_cas": str(files.cas),
            }
        await sidecar.reload(here.config(**changes[what]))
        await here.lines.heard("link.ready", 2, link="teleport")
        here.auth.set_state(first, "APPROVED")
        await here.told([first], "APPROVED")
        await announced(here)
        assert connected(here) == {"teleport": 2, "mattermost": 1}
        assert not here.lines.problems


async def test_another_cluster_has_other_requests(tmp_path: Path) -> None:
    """Those of the first are not over because the second does not know them."""
    async with world(tmp_path) as here:
        with AuthServer.dual_authorization(cluster="other.example") as there:
            async with reloading(here, here.config()) as sidecar:
                first = await announced(here)
                await sidecar.reload(here.config_at(there))
                second = there.create_request("bob@example.com", ["dbadmin"])
                await here.told([first, second])
                assert (await sidecar.metrics())["open_requests"] == 1
                await sidecar.reload(here.config())
                here.auth.set_state(first, "DENIED")
                await here.told([first], "DENIED")
                await here.told([second])


async def test_other_reviewers_decide(tmp_path: Path) -> None:
    """Alice alone at first; then Ivan, too, and what he says counts from then on. The websocket stays."""
    async with world(tmp_path) as here:
        changes = linked(here)
        alone = {key: value for key, value in changes.items() if key != "reviewers__ivan"}
        async with reloading(here, here.config(**alone), times=LISTENING) as sidecar:
            await listening(here)
            request_id = await announced(here)
            await sidecar.reload(here.config(**changes))
            await new_rules(here, 1)
            here.chat.react(here.ivan, here.cards()[0], APPROVE)
            await here.recorded(lambda: submitted(here) == [(IVAN, "APPROVED")])
            await here.lines.heard("request.updated", 2)
            await sidecar.reload(here.config(**changes, reviews__approve='["thumbsup"]'))
            await new_rules(here, 3)
            here.chat.react(here.alice, here.cards()[0], "thumbsup")
            await here.recorded(lambda: submitted(here)[1:] == [(ALICE, "APPROVED")])
            await here.told([request_id], "APPROVED")
            assert connected(here) == {"teleport": 1, "mattermost": 1}


async def new_rules(here: World, updates: int) -> None:
    """Return when the card bears the rules of now: nobody speaks before they do."""
    await here.lines.heard("request.updated", updates)
    # Mattermost's clock is known to half a second.
    here.chat.clock_offset += 1.0


async def test_people_are_listened_to_when_decisions_are_turned_on(tmp_path: Path) -> None:
    """And no longer when they are turned off."""
    async with world(tmp_path) as here, reloading(here, here.config(), times=LISTENING) as sidecar:
        await announced(here)
        assert not here.chat.hub.sockets_of(here.bot.id)
        await sidecar.reload(here.config(**linked(here)))
        await listening(here)
        await new_rules(here, 1)
        here.chat.react(here.ivan, here.cards()[0], APPROVE)
        await here.recorded(lambda: submitted(here) == [(IVAN, "APPROVED")])
        await sidecar.reload(here.config())
        await here.chat.wait_for(lambda: not here.chat.hub.sockets_of(here.bot.id))
        await announced(here)


async def test_a_broken_file_keeps_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Reloading) -> Config:
        raise ConfigError(["mattermost.url: is missing"])

    async with world(tmp_path) as here, reloading(here, here.config()) as sidecar:
        await announced(here)
        monkeypatch.setattr(Reloading, "config", property(broken), raising=False)
        os.kill(os.getpid(), signal.SIGHUP)
        await here.lines.heard("config.kept")
        await announced(here)
        assert connected(here) == {"teleport": 1, "mattermost": 1}
        assert not here.lines.of("config.reloaded")
        del sidecar


async def test_a_visit_under_way_is_finished_first(tmp_path: Path) -> None:
    """Its post is one, and on record, before the other configuration counts."""
    async with world(tmp_path) as here:
        other = here.chat.add_channel(here.team, "dba", members=(here.bot,))
        async with reloading(here, here.config()) as sidecar:
            await announced(here)
            here.chat.late(0.5, method="POST", path=POSTS)
            (request_id,) = here.ask()
            await here.told([request_id])
            await sidecar.reload(here.config(mattermost__recipients='["ops/dba"]', mattermost__max_connections="3"))
            await here.told([request_id], channel=other)
            await here.released(request_id)
            here.auth.set_state(request_id, "DENIED")
            await here.told([request_id], "DENIED")
            assert not here.lines.problems


async def test_a_visit_that_hangs_is_cut_and_made_again(tmp_path: Path) -> None:
    """The post was made, and its answer never came: it is found, not repeated."""
    times = msgspec.structs.replace(QUICK, drain=0.2)
    async with world(tmp_path) as here, reloading(here, here.config(), times=times) as sidecar:
        await announced(here)
        here.chat.hang(when="after", method="POST", path=POSTS)
        (request_id,) = here.ask()
        await here.told([request_id])
        await sidecar.reload(here.config(messages__time_zone="Europe/Berlin"))
        await here.released(request_id)
        here.auth.set_state(request_id, "DENIED")
        await here.told([request_id], "DENIED")


async def test_a_stop_ends_a_reload(tmp_path: Path) -> None:
    """What is being written is finished and recorded; nothing begins anew."""
    async with world(tmp_path) as here:
        async with reloading(here, here.config()) as sidecar:
            await announced(here)
            here.chat.late(0.5, method="POST", path=POSTS)
            (request_id,) = here.ask()
            await here.told([request_id])
            sidecar.config = here.config(mattermost__max_connections="3")
            os.kill(os.getpid(), signal.SIGHUP)
            await here.recorded(lambda: bool(here.auth.plugin_data(request_id)))
        assert here.lines.of("process.stopped", complete=True)
        assert not here.lines.of("config.reloaded")
        assert '"owner":""' in here.auth.plugin_data(request_id)["tm"]


async def test_what_is_owed_is_told_after_all(tmp_path: Path) -> None:
    """Read PENDING, resolved while Mattermost was away, then SIGHUP: whoever was to be told still is."""
    async with world(tmp_path) as here, reloading(here, here.config()) as sidecar:
        await announced(here)
        await here.chat.down("503")
        await here.lines.heard("link.lost", link="mattermost")
        (owed,) = here.ask()
        await here.recorded(lambda: here.auth.watchers == 1)
        while (await sidecar.metrics())["open_requests"] < 2:  # noqa: ASYNC110 - scrapes tell nobody
            await trio.sleep(0.01)
        here.auth.set_state(owed, "APPROVED")
        await sidecar.reload(here.config(teleport__addr=here.auth.addr.replace("127.0.0.1", "localhost")))
        await here.lines.heard("link.ready", 2, link="teleport")
        await here.chat.up()
        await here.told([owed], "APPROVED")


@pytest.mark.patience(60)
async def test_fifty_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    """Each makes both links and the workers anew."""
    async with world(tmp_path) as here, reloading(here, here.config(**linked(here))) as sidecar:
        first = await announced(here)
        files = 0
        for number in range(50):
            changes = linked(here) | {"mattermost__max_connections": str(5 + number % 2)}
            changes["teleport__addr"] = here.auth.addr.replace("127.0.0.1", ("localhost", "127.0.0.1")[number % 2])
            await sidecar.reload(here.config(**changes))
            for link in ("teleport", "mattermost"):
                await here.lines.heard("link.ready", number + 2, link=link)
            await here.chat.wait_for(lambda: len(here.chat.hub.sockets_of(here.bot.id)) == 1)
            await here.recorded(lambda: here.auth.watchers == 1)
            files = max(files, descriptors()) if number < 10 else files
        await here.told([first])
        await announced(here)
        # grpcio's core closes its sockets in threads of its own.
        while descriptors() > files:  # noqa: ASYNC110
            await trio.sleep(0.01)
