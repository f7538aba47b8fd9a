"""Every way in which Mattermost fails a write: it is made good when Mattermost is back, and never made twice."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Literal

import grpc
import msgspec
import pytest
import trio

from sidecar.simulator.mattermost.server import Answer, Request, proxy_answer
from tests.world import QUICK, Running, World, field, running, world

POSTS = "/api/v4/posts"
PATCH = "/api/v4/posts/{post_id}/patch"


async def reviewed_and_denied(here: World, ids: list[str]) -> None:
    """Alice agrees, Ivan denies; every card and thread says so, once, and nobody holds a record any more."""
    for request_id in ids:
        here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
        here.auth.review(request_id, "ivan@example.com", "DENIED", "no")
    await here.told(ids, "DENIED")
    cards = [card for card in here.cards() if card.props["tm"]["id"] in ids]
    await here.chat.wait_for(lambda: all(len(here.replies(card)) >= 2 for card in cards))
    for request_id in ids:
        await here.released(request_id)
    assert [len(here.replies(card)) for card in cards] == [2] * len(ids)


@pytest.mark.parametrize("how", ["503", "refuse"])
async def test_requests_made_while_mattermost_is_away(how: Literal["503", "refuse"], tmp_path: Path) -> None:
    """200 requests wait; all are told after it returns, none twice; said once, and not ready meanwhile."""
    async with world(tmp_path, watch_buffer=1000) as here, running(here.config(), times=QUICK) as sidecar:
        await here.lines.heard("link.ready", link="mattermost")
        await here.lines.heard("link.ready", link="teleport")
        await here.chat.down(how)
        ids = here.ask(200)
        await here.lines.heard("link.lost", link="mattermost")
        body = await sidecar.readiness()
        assert (body["ready"], body["links"]["mattermost"]["state"]) == (False, "lost")
        assert body["links"]["teleport"]["state"] == "ready"
        began = trio.current_time()
        await here.chat.up()
        await here.chat.wait_for(lambda: len(here.channel.posts) >= len(ids))
        print(f"200 waiting requests told {trio.current_time() - began:.2f} s after the return")
        await here.told(ids)
        await here.lines.heard("link.ready", 2, link="mattermost")
        assert (await sidecar.readiness())["ready"]
        assert here.lines.problems == ["link.lost"]


@pytest.mark.parametrize("how", ["cut before", "cut after", "hang", "stored, then hang", "502", "500", "html", "429"])
@pytest.mark.parametrize("path", [POSTS, PATCH])
async def test_a_write_that_fails_is_made_good_once(how: str, path: str, here: World) -> None:
    """Refused, cut off, unanswered, or carried out without an answer: for cards, patches and replies alike."""
    faults = {"method": "PUT" if path == PATCH else "POST", "path": path, "times": 3}
    # A request may take a third of the lease.
    async with running(here.config(teleport__lease="2s"), times=QUICK):
        await here.lines.heard("link.ready", link="mattermost")
        match how:
            case "cut before" | "cut after":
                here.chat.cut(when="after" if how == "cut after" else "before", **faults)  # type: ignore[arg-type]
            case "hang" | "stored, then hang":
                here.chat.hang(when="before" if how == "hang" else "after", **faults)  # type: ignore[arg-type]
            case "502":
                here.chat.fail(**faults)  # type: ignore[arg-type]
            case "500":
                here.chat.fail(answer=Answer(500, {"id": "app.post.save.app_error"}), **faults)  # type: ignore[arg-type]
            case "html":
                here.chat.fail(answer=Answer(200, proxy_answer(502).body), **faults)  # type: ignore[arg-type]
            case "429":
                limited = Answer(429, b"limit exceeded\n", (("Retry-After", "1"),))
                here.chat.fail(answer=limited, **faults)  # type: ignore[arg-type]
        ids = here.ask(5)
        await here.told(ids)
        await reviewed_and_denied(here, ids)
        assert "request.bug" not in here.lines.problems


async def test_the_rate_limiter_slows_and_loses_nothing(here: World) -> None:
    """With the limiter on, bursts wait as long as Retry-After says."""
    times = msgspec.structs.replace(QUICK, ask_limit=10.0)
    here.chat.rate_limit(per_second=40, burst=20)
    async with running(here.config(), times=times):
        ids = here.ask(60)
        await here.told(ids)
        await reviewed_and_denied(here, ids[:5])
        assert here.lines.of("rest.paused")
        assert not here.lines.of("link.lost", link="mattermost")


async def test_a_first_try_that_is_carried_out_after_the_second_is_repaired(here: World) -> None:
    """Two nodes, no common memory of pending ids: the look afterwards keeps the older card and deletes the younger."""
    async with running(here.config(teleport__lease="2s"), times=QUICK) as sidecar:
        await here.lines.heard("link.ready", link="mattermost")
        here.chat.late(1.2, method="POST", path=POSTS, when="before")
        (request_id,) = here.ask()
        await here.chat.wait_for(lambda: len(here.cards()) == 1)
        here.chat.pending.forget()
        await here.chat.wait_for(lambda: len(here.cards()) == 2)
        older = here.cards()[0]
        await here.chat.wait_for(lambda: len(here.cards()) == 1)
        await here.released(request_id)
        assert here.cards() == [older]
        assert (await sidecar.metrics())["duplicates_repaired_total"] == 1
        await here.told([request_id])
        here.auth.set_state(request_id, "DENIED")
        await here.told([request_id], "DENIED")


@pytest.mark.parametrize("what", ["card", "reply"])
async def test_an_answer_that_is_lost_before_a_long_outage(what: str, here: World) -> None:
    """The post was made; by the time that Mattermost is back it has forgotten the pending id, and we have not."""
    # The look afterwards is due at once: the doubt is as old as it needs to be.
    times = msgspec.structs.replace(QUICK, verify=0.0)
    async with running(here.config(), times=times) as sidecar:
        await here.lines.heard("link.ready", link="mattermost")
        request_id = here.ask()[0] if what == "reply" else ""
        if request_id:
            await here.told([request_id])
            await here.released(request_id)
        cut = here.chat.cut(method="POST", path=POSTS, when="after")
        here.chat.fail(answer=Answer(503), times=None, where=lambda _: bool(cut.hits))
        if request_id:
            here.auth.review(request_id, "alice@example.com", "APPROVED")
        else:
            (request_id,) = here.ask()
        await here.lines.heard("link.lost", link="mattermost")
        here.chat.pending.forget()
        here.chat.clear_faults()
        await here.recorded(lambda: '"owner":""' in here.auth.plugin_data(request_id).get("tm", ""))
        here.auth.set_state(request_id, "DENIED")
        await here.told([request_id], "DENIED")
        await here.released(request_id)
        made = Counter((post.root_id, post.message) for post in here.chat.all_posts.values() if not post.original_id)
        assert set(made.values()) == {1}
        assert (await sidecar.metrics())["duplicates_repaired_total"] == 0


async def test_a_lease_that_was_lost_while_posting(here: World) -> None:
    """Somebody else held the record and gave it up: what we made by then is on no record, and is found."""
    async with running(here.config(), times=QUICK) as sidecar:
        await here.lines.heard("link.ready", link="mattermost")
        late = here.chat.late(0.3, method="POST", path=POSTS)
        (request_id,) = here.ask()
        await here.chat.wait_for(lambda: bool(late.hits and here.cards()))
        record = json.loads(here.auth.plugin_data(request_id)["tm"])
        record |= {"n": record["n"] + 1, "owner": ""}
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        here.auth.write_plugin_data(request_id, {"tm": text})
        here.chat.pending.forget()
        await here.recorded(lambda: json.loads(here.auth.plugin_data(request_id)["tm"])["n"] > record["n"])
        await here.released(request_id)
        here.auth.set_state(request_id, "DENIED")
        await here.told([request_id], "DENIED")
        assert len(here.channel.posts) == 2
        assert (await sidecar.metrics())["duplicates_repaired_total"] == 0


async def test_somebody_else_took_our_pending_id(tmp_path: Path) -> None:
    """Mattermost answers 201 with their post: it is not ours, and ours is made under another key."""

    def alice_was_first(request: Request) -> bool:
        key = json.loads(request.body)["pending_post_id"]
        if not theirs:
            theirs.append(here.chat.post(here.alice, here.channel, "mine", pending_post_id=key))
        return False

    theirs: list[object] = []
    async with world(tmp_path) as here, running(here.config(), times=QUICK):
        here.chat.fail(method="POST", path=POSTS, times=None, where=alice_was_first)
        (request_id,) = here.ask()
        await here.told([request_id])
        data = await here.released(request_id)
        here.auth.set_state(request_id, "DENIED")
        await here.told([request_id], "DENIED")
        (slot,) = json.loads(data["tm"])["posts"]
        assert (slot["a"], slot["p"]) == (1, here.cards()[0].id)
        assert theirs[0] in here.chat.posts(here.channel)


async def test_recipients_that_fail_stop_nobody_and_are_told_once_they_can_be(here: World) -> None:
    """A typo, an archived channel, one without the bot, a deactivated person: each named once, with the reason."""
    names = ["ops/typo", "ops/archived", "ops/private", "zoe@example.com", "ops/access-requests", "bob@example.com"]
    people = (here.alice, here.bot)
    here.chat.archive(here.chat.add_channel(here.team, "archived", members=people))
    private = here.chat.add_channel(here.team, "private", private=True, members=[here.alice])
    zoe = here.chat.add_user("zoe", email="zoe@example.com")
    here.chat.deactivate(zoe)
    async with running(here.config(mattermost__recipients=json.dumps(names)), times=QUICK) as sidecar:
        (request_id,) = here.ask()
        await here.told([request_id])
        await here.released(request_id)
        failed = {line["recipient"]: line["reason"] for line in here.lines.of("recipient.failed")}
        assert failed == {
            "ops/typo": "not_found",
            "ops/archived": "archived",
            "ops/private": "not_found",
            "zoe@example.com": "deactivated",
        }
        metrics = await sidecar.metrics()
        assert metrics['recipients_failed{reason="not_found"}'] == 2
        here.chat.join(private, here.bot)
        here.chat.activate(zoe)
        await here.told([request_id], channel=private)
        await here.told([request_id], channel=here.chat.open_direct(here.bot, zoe))
        assert len(here.lines.of("recipient.failed")) == 4


async def test_a_reviewer_whom_nobody_knows_wakes_no_operator(here: World) -> None:
    """A requester may suggest anybody; what the operator did not write is said, and no alert fires for it."""
    async with running(here.config(), times=QUICK) as sidecar:
        (request_id,) = here.ask(suggested_reviewers=("nobody@example.com",))
        await here.told([request_id])
        await here.released(request_id)
        said = await here.lines.heard("recipient.failed", recipient="nobody@example.com")
        assert said["levelno"] == logging.INFO
        assert (await sidecar.metrics())['recipients_failed{reason="not_found"}'] == 0


@pytest.mark.parametrize(("invented", "real", "told", "left_out"), [(20, 5, 5, 0), (2, 8, 4, 4), (0, 9, 4, 5)])
async def test_the_limit_of_suggested_reviewers_counts_people_who_exist(
    invented: int, real: int, told: int, left_out: int, here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invented names shut nobody out, and who was left out stands on the card, in the log and in a metric."""
    # The log counts once; who is found later, as by a slow machine, is told later.
    monkeypatch.setattr("sidecar.reconcile.resolve.PATIENCE_SECONDS", 10.0)
    most = "20" if invented == 20 else "4"
    people = [here.chat.add_user(f"real{n}", email=f"real{n}@example.com") for n in range(real)]
    for one in people:
        here.chat.join_team(here.team, one)
    config = here.config(mattermost__max_suggested_reviewers=most)
    async with running(config, times=QUICK) as sidecar:
        names = [f"nobody{n}@example.org" for n in range(invented)] + [one.email for one in people]
        (request_id,) = here.ask(suggested_reviewers=names)
        await here.told([request_id])
        await here.released(request_id)
        said = await here.lines.heard("request.announced", request_id=request_id)
        assert (said["reviewers_told"], said["reviewers_left_out"]) == (1 + told, left_out)
        directs = [here.chat.open_direct(here.bot, one) for one in people]
        assert [len(here.cards(one)) for one in directs] == [1] * told + [0] * (real - told)
        for card in (here.cards()[0], here.cards(directs[0])[0]):
            assert (f"and {left_out} more" in field(card, "Decide")) is bool(left_out)
            assert "more" not in field(card, "Decide") or left_out
        assert (await sidecar.metrics())["reviewers_left_out_total"] == left_out
        # What the card says stays, whatever is looked at again.
        here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
        await here.chat.wait_for(lambda: "approval" in field(here.cards()[0], "Reviews"))
        assert (f"and {left_out} more" in field(here.cards()[0], "Decide")) is bool(left_out)


async def test_a_request_that_no_reviewer_was_told_of_says_so(here: World) -> None:
    config = here.config(mattermost__recipients='["ops/typo"]', mattermost__notify_requester="true")
    async with running(config, times=QUICK):
        (request_id,) = here.ask()
        said = await here.lines.heard("request.announced", request_id=request_id)
        assert (said["told"], said["untold"], said["reviewers_told"]) == (1, 1, 0)


async def test_more_recipients_than_a_record_holds(here: World) -> None:
    """Said once and counted while the request is open, the others are told; nothing is left of it afterwards."""
    users = [here.chat.add_user(f"user{number}") for number in range(400)]
    names = json.dumps([user.email for user in users])
    async with running(here.config(mattermost__recipients=names), times=QUICK) as sidecar:
        (request_id, _) = here.ask(2)
        await here.released(request_id)
        refused = (await here.lines.heard("recipients.too_many", request_id=request_id))["refused"]

        def told() -> int:
            return sum(bool(here.cards(here.chat.open_direct(here.bot, user))) for user in users)

        # Names that are found late are told when they are.
        await here.chat.wait_for(lambda: told() == 400 - refused)
        await here.released(request_id)
        here.auth.review(request_id, "alice@example.com", "APPROVED")
        await here.recorded(lambda: '"seen":["PENDING",1]' in here.auth.plugin_data(request_id)["tm"])
        await here.released(request_id)
        here.auth.delete_request(request_id)
        await here.recorded(lambda: '"done":true' in here.auth.plugin_data(request_id)["tm"])
        assert len(here.lines.of("recipients.too_many", request_id=request_id)) == 1
        assert (await sidecar.metrics())['recipients_failed{reason="too_many"}'] == refused


async def test_a_membership_lost_at_run_time(here: World) -> None:
    """PATCH says 403: told with the fix, the others are served, and the card becomes true when the bot is back."""
    names = '["ops/access-requests", "ops/second"]'
    second = here.chat.add_channel(here.team, "second", private=True, members=[here.alice, here.bot])
    async with running(here.config(mattermost__recipients=names), times=QUICK):
        (old,) = here.ask()
        await here.told([old], channel=second)
        await here.released(old)
        here.chat.leave(second, here.bot)
        here.auth.set_state(old, "DENIED")
        await here.told([old], "DENIED")
        rejected = await here.lines.heard("recipient.rejected")
        assert (rejected["recipient"], rejected["status"]) == ("ops/second", 403)
        (new,) = here.ask()
        await here.told([new])
        await here.lines.heard("recipient.failed", recipient="ops/second")
        here.chat.join(second, here.bot)
        await here.told([old], "DENIED", channel=second)
        await here.told([new], channel=second)


async def test_a_card_that_somebody_deleted_is_never_posted_again(here: World) -> None:
    """A moderator's word is final for that recipient; the other one goes on."""
    names = '["ops/access-requests", "alice@example.com"]'
    admin = here.chat.add_user("root", roles="system_user system_admin")
    async with running(here.config(mattermost__recipients=names), times=QUICK):
        (request_id,) = here.ask()
        direct = here.chat.open_direct(here.bot, here.alice)
        await here.told([request_id])
        await here.told([request_id], channel=direct)
        await here.released(request_id)
        here.chat.delete(admin, here.cards()[0])
        here.auth.review(request_id, "alice@example.com", "APPROVED")
        here.auth.review(request_id, "ivan@example.com", "APPROVED")
        await here.told([request_id], "APPROVED", channel=direct)
        data = await here.released(request_id)
        (slot, _) = json.loads(data["tm"])["posts"]
        assert slot["s"] == "gone"
        assert here.cards() == []
        (other,) = here.ask()
        await here.told([other])


async def test_a_token_revoked_at_run_time_and_replaced(here: World) -> None:
    """One error with the fix, no retries in a loop, and at work again as soon as the file holds a good token."""
    async with running(here.config(), times=QUICK) as sidecar:
        await here.lines.heard("link.ready", link="mattermost")
        here.chat.disable_token(here.bot)
        ids = here.ask(3)
        refused = await here.lines.heard("link.refused", link="mattermost")
        assert refused["levelno"] == logging.ERROR
        body = await sidecar.readiness()
        assert (body["ready"], body["links"]["mattermost"]["state"]) == (False, "refused")
        assert here.cards() == []
        here.token_file.write_text(here.chat.new_token(here.bot))
        await here.told(ids)
        assert len(here.lines.of("link.refused")) == 1


@pytest.mark.parametrize("status", [400, 403])
async def test_a_proxy_that_refuses_does_not_end_the_process(status: int, here: World) -> None:
    """Said as a refusal, and over when the proxy lets us through."""
    times = msgspec.structs.replace(QUICK, refused_retry=0.1)
    here.chat.fail(answer=proxy_answer(status), path="/api/v4/users/me", times=3)
    (request_id,) = here.ask()
    async with running(here.config(), times=times):
        await here.told([request_id])
        assert len(here.lines.of("link.refused", link="mattermost", reason="rejected")) >= 1


async def test_the_token_of_another_bot(here: World) -> None:
    """What was looked up as the first bot is forgotten; its direct channels are not those of the second."""
    config = here.config(mattermost__recipients='["alice@example.com"]')
    async with running(config, times=QUICK):
        first = here.ask()
        await here.told(first, channel=here.chat.open_direct(here.bot, here.alice))
        here.chat.disable_token(here.bot)
        await here.lines.heard("link.refused", link="mattermost")
        here.bot = here.chat.add_bot("second")
        here.token_file.write_text(here.bot.token)
        await here.lines.heard("link.ready", 2, link="mattermost")
        second = here.ask()
        await here.told(second, channel=here.chat.open_direct(here.bot, here.alice))


async def test_what_waits_for_its_turn_is_not_sent_after_the_lease(here: World) -> None:
    """Posts queue behind the pace while records cannot be renewed: what has not been sent by then waits for a lease."""
    users = [here.chat.add_user(f"user{number}") for number in range(12)]
    names = json.dumps([user.email for user in users])
    config = here.config(teleport__lease="1s", mattermost__recipients=names, mattermost__max_posts_per_second="4")
    async with running(config, times=QUICK):
        directs = [here.chat.open_direct(here.bot, user) for user in users]
        hung = here.chat.late(0.0, method="POST", path=POSTS)
        (request_id,) = here.ask()
        await here.chat.wait_for(lambda: hung.hits)
        here.auth.faults.hang("UpdatePluginData")
        # The claim, a renewal that hangs until its deadline, and the next try: all posts have had their turn.
        await here.recorded(lambda: here.auth.calls["UpdatePluginData"] >= 3)
        assert here.chat.calls["POST", POSTS] <= 8
        here.auth.faults.release()
        await here.chat.wait_for(lambda: all(here.cards(direct) for direct in directs))
        await here.released(request_id)
        assert [len(here.cards(direct)) for direct in directs] == [1] * 12


async def test_a_slow_mattermost_does_not_outlive_the_lease(here: World) -> None:
    """Posts wait longer for their turn than a lease lasts; renewed meanwhile, none is sent without a valid one."""
    times = msgspec.structs.replace(QUICK, ask_every=60.0)
    users = [here.chat.add_user(f"user{number}") for number in range(30)]
    names = json.dumps([f"user{number}@example.com" for number in range(30)])
    config = here.config(teleport__lease="1s", mattermost__recipients=names, mattermost__max_posts_per_second="8")
    async with running(config, times=times):
        (request_id,) = here.ask()
        directs = [here.chat.open_direct(here.bot, user) for user in users]
        await here.chat.wait_for(lambda: all(len(here.cards(direct)) == 1 for direct in directs))
        await here.released(request_id)
        assert field(here.cards(directs[0])[0], "State").endswith("PENDING")
        assert here.auth.calls["UpdatePluginData"] > 4


async def test_one_recipient_that_cannot_be_looked_up_does_not_stop_the_others(here: World) -> None:
    """P1: told of at once are those who can be, and the last one as soon as Mattermost knows him again."""
    broken = Answer(500, {"id": "app.user.get_by_username.app_error", "status_code": 500})
    here.chat.fail(answer=broken, path="/api/v4/users/username/ivan", times=None)
    config = here.config(mattermost__recipients='["ops/access-requests", "@ivan"]')
    async with running(config, times=QUICK) as sidecar:
        (request_id,) = here.ask()
        await here.told([request_id])
        assert (await here.lines.heard("recipient.failed"))["reason"] == "unanswered"
        assert (await sidecar.metrics())['recipients_failed{reason="unanswered"}'] == 1
        here.chat.clear_faults()
        await here.told([request_id], channel=here.chat.open_direct(here.ivan, here.bot))
        await here.released(request_id)
        assert (await sidecar.metrics())['recipients_failed{reason="unanswered"}'] == 0


@pytest.mark.parametrize("how", ["cut", "hang"])
@pytest.mark.parametrize("who", ["operator", "requester"])
async def test_a_look_up_that_breaks_off_or_hangs_costs_its_own_name_alone(
    how: str, who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever named it: the channel is told at once, the name is counted and told of once, and tried again."""
    monkeypatch.setattr("sidecar.reconcile.resolve.BROKEN_SECONDS", 0.3)
    monkeypatch.setattr("sidecar.mattermost.recipients._LOOK_UP_SECONDS", 0.8)
    ivan = "ivan@example.com"
    async with world(tmp_path) as here:
        getattr(here.chat, how)(
            path="/api/v4/users/email/*", times=None, where=lambda one: b"ivan" in one.path.encode()
        )
        recipients = ["ops/access-requests", ivan] if who == "operator" else ["ops/access-requests"]
        async with running(here.config(mattermost__recipients=json.dumps(recipients)), times=QUICK) as sidecar:
            await here.lines.heard("link.ready", link="mattermost")
            (request_id,) = here.ask(suggested_reviewers=[ivan])
            with trio.fail_after(3.0):
                await here.told([request_id])
            said = await here.lines.heard("recipient.failed", recipient=ivan)
            assert (said["reason"], said["levelno"] == logging.WARNING) == ("unanswered", who == "operator")
            reason = "unanswered" if who == "operator" else "suggested"
            assert (await sidecar.metrics())[f'recipients_failed{{reason="{reason}"}}'] == 1
            (other,) = here.ask()
            await here.told([other])
            here.chat.clear_faults()
            await here.told([request_id], channel=here.chat.open_direct(here.ivan, here.bot))
            assert len(here.lines.of("recipient.failed")) == 1
            assert (await sidecar.metrics())[f'recipients_failed{{reason="{reason}"}}'] == 0
            assert (await sidecar.readiness())["ready"]


async def test_a_recipient_that_is_lost_is_counted_without_any_request(here: World) -> None:
    """A post to a deactivated person or into an archived team is taken, and nobody reads it."""
    times = msgspec.structs.replace(QUICK, recipients_every=0.2)
    old = here.chat.add_team("old", members=[here.bot])
    here.chat.add_channel(old, "requests", members=[here.bot])
    config = here.config(mattermost__recipients='["ops/access-requests", "@ivan", "old/requests"]')
    async with running(config, times=times) as sidecar:
        (request_id,) = here.ask()
        await here.told([request_id])
        await here.released(request_id)
        here.chat.deactivate(here.ivan)
        here.chat.archive_team(old)
        await here.lines.heard("recipient.failed", recipient="@ivan", reason="deactivated")
        await here.lines.heard("recipient.failed", recipient="old/requests", reason="archived")
        metrics = await sidecar.metrics()
        assert metrics['recipients_failed{reason="deactivated"}'] == 1
        assert metrics['recipients_failed{reason="archived"}'] == 1
        here.chat.activate(here.ivan)
        here.chat.unarchive_team(old)
        failed = [f'recipients_failed{{reason="{reason}"}}' for reason in ("deactivated", "archived")]
        while metrics[failed[0]] or metrics[failed[1]]:
            metrics = await sidecar.metrics()
        assert here.lines.problems == ["recipient.failed"] * 2


async def test_a_reply_that_was_not_made_is_made_after_a_restart(here: World) -> None:
    (request_id,) = here.ask()
    here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
    async with running(here.config(), times=QUICK):
        # Nothing is carried out: as while Mattermost's database fails.
        expired = Answer(401, {"id": "api.context.session_expired.app_error"})
        here.chat.fail(answer=expired, method="POST", path=POSTS, skip=1, times=None)
        await here.told([request_id])
        await here.released(request_id)
    here.chat.clear_faults()
    (card,) = here.cards()
    assert here.replies(card) == []
    async with running(here.config(), times=QUICK):
        await here.chat.wait_for(lambda: len(here.replies(card)) == 1)


async def events(sidecar: Running, count: int) -> None:
    """Return when so many events of the watch were taken."""
    while (await sidecar.metrics()).get('events_total{kind="put",link="teleport"}', 0) < count:
        pass


@pytest.mark.parametrize("delay", ["0s", "1h"])
async def test_resolved_while_mattermost_is_away(delay: str, here: World) -> None:
    """P1: it was PENDING when first read. Not where it was resolved before anybody was to be told."""
    async with running(here.config(announce__delay=delay), times=QUICK) as sidecar:
        await here.lines.heard("link.ready", link="mattermost")
        await here.lines.heard("link.ready", link="teleport")
        await here.chat.down("refuse")
        await here.lines.heard("link.lost", link="mattermost")
        request_id, waiting = here.ask(2)
        await events(sidecar, 2)
        here.auth.review(request_id, "ivan@example.com", "DENIED", "no")
        await events(sidecar, 3)
        await here.chat.up()
        if delay == "0s":
            await here.told([waiting])
            await here.told([request_id], "DENIED")
            assert here.replies(here.cards()[0]) == here.replies(here.cards()[1]) == []
    assert len(here.cards()) == (2 if delay == "0s" else 0)


async def test_one_name_without_an_answer_stops_neither_others_nor_its_own_request(here: World) -> None:
    """It is no failure of the link: nobody waits for the link to be tried, and a save that fails is soon repeated."""
    times = msgspec.structs.replace(QUICK, probe=3600.0, failure_first=0.1, failure_most=3600.0)
    broken = Answer(500, {"id": "app.user.get_by_email.app_error", "status_code": 500})
    fault = here.chat.fail(answer=broken, method="GET", path="/api/v4/users/email/*", times=None)
    async with running(here.config(), times=times):
        await here.lines.heard("link.ready", link="mattermost")
        (request_id,) = here.ask(suggested_reviewers=["broken@example.com"])
        await here.told([request_id])
        await here.chat.wait_for(lambda: fault.hits >= 6)
        await here.told(here.ask())
        await here.released(request_id)
        here.auth.faults.fail("UpdatePluginData", grpc.StatusCode.UNAVAILABLE, "transport is closing")
        here.auth.review(request_id, "alice@example.com", "DENIED", "no")
        await here.told([request_id], "DENIED")
