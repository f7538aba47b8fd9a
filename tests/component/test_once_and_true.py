"""P1 to P4 where things are late, paused, behind, archived or narrowed: once and true all the same."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sidecar.reconcile.observe import MAX_PAGES, PAGE
from sidecar.simulator.mattermost.server import Channel
from tests.deciding import ALICE, IVAN, LISTENING, POLICY, card_of, linked, listening
from tests.world import QUICK, ROOT, World, field, killed, running, world

POSTS = "/api/v4/posts"

# Who is killed closes nothing; as a process it would not need to.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect what the killed leave behind here, where it is expected."""
    yield
    gc.collect()


# -- a holder that was overtaken -------------------------------------------------------------------------------------

# A sidecar on a machine whose clocks stop with it, as in a paused VM: its lease is not over when it goes on.
PAUSABLE = """
import sys, threading, time
import sidecar.reconcile.lease
from sidecar.cli import main

class Guest:
    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME
    now = 0.0
    @classmethod
    def clock_gettime(cls, _):
        return cls.now

def tick():
    while True:
        time.sleep(0.01)
        Guest.now += 0.01

threading.Thread(target=tick, daemon=True).start()
sidecar.reconcile.lease.time = Guest
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def pausable(settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-c", PAUSABLE, "run", *flags]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


async def test_who_was_overtaken_in_a_pause_repairs_what_both_posted(tmp_path: Path) -> None:
    """It is stopped in the middle of an announcement, another one announces the rest, and then it goes on."""
    async with world(tmp_path) as here:
        people = (here.alice, here.ivan, here.bob, here.bot)
        channels = [here.chat.add_channel(here.team, f"c{n}", members=people) for n in range(16)]
        recipients = json.dumps([f"ops/c{n}" for n in range(16)])
        settings = {"teleport__lease": "1s", "mattermost__recipients": recipients}
        slow = here.settings(**settings, mattermost__max_posts_per_second="8")

        def cards() -> list[int]:
            return [len(here.cards(channel)) for channel in channels]

        with pausable(slow) as paused:
            await here.watched()
            (request_id,) = here.ask()
            await here.chat.wait_for(lambda: sum(cards()) >= 6)
            paused.send_signal(signal.SIGSTOP)
            async with running(here.config(**settings), times=QUICK):
                await here.chat.wait_for(lambda: all(cards()))
                await here.released(request_id)
                here.chat.pending.forget()
                # It must not find its own text: that it lost the record it learns by its next save.
                made = here.chat.calls["POST", POSTS]
                paused.send_signal(signal.SIGCONT)
                here.auth.review(request_id, ALICE, "DENIED", "no")
                for channel in channels:
                    await here.chat.wait_for(
                        lambda channel=channel: here.states(channel) == {request_id: ["DENIED"]}  # type: ignore[misc]
                    )
                print(f"{here.chat.calls['POST', POSTS] - made} posts by both after the pause")
                await here.released(request_id)
                assert cards() == [1] * len(channels)


# -- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [720.0, -720.0])
async def test_a_claim_by_another_clock_is_looked_for_in_time(ahead: float, tmp_path: Path) -> None:
    """The claimer's clock differs from Mattermost's by twelve minutes; by who reads, all clocks agree."""
    async with world(tmp_path) as here:
        here.chat.clock_offset = -ahead
        async with killed(here.config(teleport__lease="1s"), times=QUICK):
            await here.lines.heard("link.ready", link="mattermost")
            made = here.chat.hang(when="after", method="POST", path=POSTS)
            (request_id,) = here.ask()
            await here.chat.wait_for(lambda: made.hits >= 1 and len(here.cards()) == 1)
        here.chat.clear_faults()
        here.chat.pending.forget()
        here.chat.clock_offset = 0.0
        for number in range(PAGE + 10):
            here.chat.post(here.bob, here.channel, f"talk {number}")
        async with running(here.config(teleport__lease="1s"), times=QUICK):
            await here.recorded(lambda: '"s":"posted"' in here.auth.plugin_data(request_id)["tm"])
            await here.released(request_id)
        assert len(here.cards()) == 1


# -- late ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("end", ["denied", "removed"])
async def test_a_post_that_comes_after_all_looks_is_found_by_the_next(
    end: str,
    restarted: bool,  # noqa: FBT001 - a table
    tmp_path: Path,
) -> None:
    """P2: nobody knows how late a write may be. The next change finds it, also for whoever comes next."""
    async with world(tmp_path) as here:
        config = here.config(teleport__lease="2s")
        late = here.chat.late(4.0, when="before", method="POST", path=POSTS)
        async with running(config, times=QUICK):
            (request_id,) = here.ask()
            await here.told([request_id])
            await here.recorded(lambda: '"s":"posted"' in here.auth.plugin_data(request_id)["tm"])
            await here.released(request_id)
            here.chat.pending.forget()
            await here.chat.wait_for(lambda: len(here.cards()) == 2)
            assert late.hits == 1
            if not restarted:
                await only_one_shows(here, request_id, end)
        if restarted:
            async with running(config, times=QUICK):
                await only_one_shows(here, request_id, end)


async def only_one_shows(here: World, request_id: str, end: str) -> None:
    # From an empty list nothing is concluded.
    (other,) = here.ask()
    if end == "denied":
        here.auth.review(request_id, ALICE, "DENIED", "no")
    else:
        here.auth.delete_request(request_id)
    await here.chat.wait_for(lambda: here.states() == {request_id: [end.upper()], other: ["PENDING"]})
    await here.released(request_id)


async def test_a_busy_channel_costs_time_and_not_the_announcement(tmp_path: Path) -> None:
    """P1: more was posted since the claim than one look reads."""
    async with world(tmp_path) as here:
        config = here.config(teleport__lease="1s")
        async with killed(config, times=QUICK):
            await here.lines.heard("link.ready", link="mattermost")
            hung = here.chat.hang(when="before", method="POST", path=POSTS, times=None)
            (request_id,) = here.ask()
            await here.chat.wait_for(lambda: hung.hits >= 1)
        here.chat.clear_faults()
        for number in range(PAGE * MAX_PAGES + 1):
            here.chat.post(here.bob, here.channel, f"talk {number}")
        async with running(config, times=QUICK):
            await here.told([request_id])
            await here.released(request_id)
            reads = here.chat.calls["GET", "/api/v4/channels/{channel_id}/posts"]
            (new,) = here.ask()
            await here.told([new])
            # To announce costs no reading.
            assert here.chat.calls["GET", "/api/v4/channels/{channel_id}/posts"] == reads


# -- states that are not final ---------------------------------------------------------------------------------------


async def test_an_archived_channel_that_is_restored_becomes_true(tmp_path: Path) -> None:
    """In mode none, where no event tells: what was decided, what still waits, and what was asked meanwhile."""
    times = msgspec.structs.replace(QUICK, recipients_every=0.2, retry_first=60.0, retry_most=3600.0)
    async with world(tmp_path) as here, running(here.config(), times=times):
        decided, waits, removed = here.ask(3)
        await here.told([decided, waits, removed])
        for request_id in (decided, waits, removed):
            await here.released(request_id)
        here.chat.archive(here.channel)
        here.auth.review(decided, ALICE, "DENIED", "no")
        here.auth.delete_request(removed)
        await here.lines.heard("recipient.rejected", 2)
        await here.lines.heard("recipient.failed", reason="archived")
        (asked,) = here.ask()
        await here.lines.heard("request.announced", request_id=asked)
        here.chat.unarchive(here.channel)
        await here.told([decided], "DENIED")
        await here.told([removed], "REMOVED")
        await here.told([waits, asked])


@pytest.mark.parametrize("recipients", [1, 12])
async def test_a_reason_that_is_corrected_is_shown(recipients: int, tmp_path: Path) -> None:
    """DENIED again, with another reason: no new version. A record of many recipients is not kept in memory."""
    async with world(tmp_path) as here:
        people = (here.alice, here.bot)
        channels: list[Channel] = [here.channel]
        channels += [here.chat.add_channel(here.team, f"c{n}", members=people) for n in range(recipients - 1)]
        names = json.dumps([f"ops/{channel.name}" for channel in channels])
        async with running(here.config(mattermost__recipients=names), times=QUICK):
            (request_id,) = here.ask()
            await here.told([request_id], channel=channels[-1])
            await here.released(request_id)
            for reason in ("ask Carol first", "never: see incident 42"):
                here.auth.set_state(request_id, "DENIED", reason)
                for channel in channels:
                    await here.chat.wait_for(
                        lambda channel=channel, reason=reason: (  # type: ignore[misc]
                            reason in field(card_of(here, request_id, channel), "Resolution")
                        )
                    )


# -- narrowed --------------------------------------------------------------------------------------------------------


async def test_a_narrowed_list_ends_nothing_and_what_seemed_done_is_taken_back(tmp_path: Path) -> None:
    """In mode plugin Teleport shows a role without `list` what it may review: other requests are missing, by id too."""
    rules = {"access_request": ("list", "read"), "access_plugin_data": ("list", "read", "update")}
    narrow = rules | {"access_request": ("read",)}
    async with world(tmp_path) as here:
        here.auth.add_role("access-plugin", rules=rules, review_roles=["dbadmin"])
        here.auth.add_role("dev")
        here.auth.add_role("devops", request_roles=["dbadmin", "dev"])
        config = here.config(**linked(here, "plugin", reviews__policy=POLICY))

        async def live(absent: float, until: str) -> None:
            times = msgspec.structs.replace(LISTENING, list_every=0.1, silent=0.1, absent=absent)
            async with running(config, times=times):
                await listening(here)
                if not here.cards():
                    ids.extend([*here.ask(), here.auth.create_request("bob@example.com", ["dev"])])
                    await here.told(ids)
                    await here.released(ids[1])
                here.auth.add_role("access-plugin", rules=narrow, review_roles=["dbadmin"])
                lists = here.auth.calls["GetAccessRequests"]
                await here.recorded(lambda: here.auth.calls["GetAccessRequests"] >= lists + 8)
                await here.told(ids[1:], until)
                here.auth.add_role("access-plugin", rules=rules, review_roles=["dbadmin"])
                await here.told(ids)

        ids: list[str] = []
        await live(300.0, "PENDING")
        # Where it lasts, it ends; and the request is seen alive after all.
        await live(0.3, "REMOVED")


# -- left over -------------------------------------------------------------------------------------------------------


async def test_what_a_later_version_wrote_stays(tmp_path: Path) -> None:
    """Unknown keys of the record and of its slots are in the next save."""
    async with world(tmp_path) as here:
        async with running(here.config(), times=QUICK):
            (request_id,) = here.ask()
            before = (await here.released(request_id))["tm"]
            record = json.loads(before)
        record |= {"later": {"x": [1, "é"]}}
        record["posts"][0] |= {"mood": "fine"}
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        here.auth.write_plugin_data(request_id, {"tm": text}, {"tm": before})
        async with running(here.config(), times=QUICK):
            here.auth.review(request_id, IVAN, "APPROVED", "fine")
            await here.recorded(lambda: '"rep":[1]' in here.auth.plugin_data(request_id)["tm"])
            kept = json.loads((await here.released(request_id))["tm"])
        assert (kept["later"], kept["posts"][0]["mood"]) == ({"x": [1, "é"]}, "fine")


# -- expired and still listed ----------------------------------------------------------------------------------------


async def test_what_has_expired_says_so_while_teleport_lists_it(tmp_path: Path) -> None:
    """Teleport 17 and newer go on for 90 s. It may be decided in that time, and that is shown."""
    times = msgspec.structs.replace(QUICK, expired=0.5, expiry_grace=60.0)
    async with world(tmp_path, version="18.0.0", chat_version="11.0.0") as here, running(here.config(), times=times):
        expires, decided = here.ask(2, expires_in=1.5)
        (waits,) = here.ask()
        await here.told([expires, decided, waits])
        await here.told([expires, decided], "EXPIRED")
        assert here.auth.request(expires).state == "PENDING"  # type: ignore[union-attr]
        here.auth.set_state(decided, "APPROVED", "just in time")
        await here.told([decided], "APPROVED")
        here.auth.delete_request(expires)
        await here.recorded(lambda: '"done":true' in here.auth.plugin_data(expires)["tm"])
        await here.told([expires], "EXPIRED")
        await here.told([waits])
        assert not here.replies(card_of(here, waits))
