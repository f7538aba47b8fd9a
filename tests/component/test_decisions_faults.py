"""Decisions while something fails: an answer that cannot be given, reactions that cannot be read, a race."""

from __future__ import annotations

from pathlib import Path

import grpc
import msgspec

from sidecar.reconcile.heard import DIRECT_MESSAGES
from sidecar.simulator.mattermost.server import Answer, Request
from sidecar.simulator.teleport.auth import AuthServer
from tests.deciding import (
    ALICE,
    APPROVE,
    BOB,
    DENY,
    IVAN,
    LISTENING,
    POLICY,
    SWEEPING,
    ask,
    deciding,
    let_the_plugin_decide,
    linked,
    listening,
    only_ivan_counts,
    refused,
    says,
    submitted,
    tells,
)  # fmt: skip
from tests.world import running, world

POSTS = "/api/v4/posts"
REACTIONS = "/api/v4/posts/ids/reactions"
# As while Mattermost's database fails; nothing is carried out.
EXPIRED = Answer(401, {"id": "api.context.session_expired.app_error"})


async def test_an_answer_that_was_not_given_is_given_after_a_restart(tmp_path: Path) -> None:
    """Judged, but the person could not be told before the end."""
    async with world(tmp_path) as here:
        config = here.config(**linked(here, reviewers__bob=BOB))
        async with running(config, times=LISTENING):
            await listening(here)
            _, card = await ask(here)
            fault = here.chat.fail(answer=EXPIRED, method="POST", path=POSTS, times=None)
            here.chat.react(here.bob, card, APPROVE)
            await here.lines.heard("decision.refused", reason="own_request")
            await here.chat.wait_for(lambda: fault.hits >= 3)
        here.chat.clear_faults()
        async with running(config, times=SWEEPING):
            await here.chat.wait_for(lambda: any("own request" in one for one in here.replies(card)))
        assert len(here.replies(card)) == 1


async def test_a_quorum_whose_answer_is_lost_is_not_refused(tmp_path: Path) -> None:
    """What was carried out is told as carried out."""
    async with deciding(tmp_path, "plugin", reviews__policy=POLICY) as here:
        let_the_plugin_decide(here)
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        await here.lines.heard("decision.taken", user_id=here.alice.id)
        await here.released(request_id)
        here.auth.faults.lose_answer("SubmitAccessReview")
        here.chat.react(here.ivan, card, APPROVE)
        await here.lines.heard("decision.taken", user_id=here.ivan.id)
        await here.chat.wait_for(lambda: any("@ivan" in one for one in here.replies(card)))
        assert here.auth.request(request_id).state == "APPROVED"  # type: ignore[union-attr]
        assert not here.lines.of("decision.refused")


async def test_messages_that_were_taken_back_do_not_fill_the_room(tmp_path: Path) -> None:
    """Bob deletes what he said before it is judged, again and again; Alice is heard after him."""
    async with deciding(tmp_path, reviewers__bob=BOB) as here:
        request_id, _ = await ask(here)
        channel = here.chat.open_direct(here.bob, here.bot)

        def taken_back(request: Request) -> bool:
            """The channel was read and it was understood; this is to judge it."""
            post = here.chat.all_posts[request.args[0]]
            if post.user_id == here.bob.id and not post.delete_at:
                here.chat.delete(here.bob, post)
            return False

        here.chat.fail(method="GET", path="/api/v4/posts/{post_id}", where=taken_back, times=None)
        for _ in range(DIRECT_MESSAGES):
            said = here.chat.post(here.bob, channel, f"approve {request_id}")
            await here.chat.wait_for(lambda one=said: bool(one.delete_at))  # type: ignore[misc]
        here.chat.clear_faults()
        assert "counts (" in await says(here, here.alice, f"approve {request_id}")
        assert submitted(here) == [(ALICE, "APPROVED")]


async def test_reactions_that_cannot_be_read_do_not_keep_cards_untrue(tmp_path: Path) -> None:
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        broken = Answer(500, {"id": "app.reaction.bulk_get_for_post_ids.app_error", "status_code": 500})
        fault = here.chat.fail(answer=broken, method="POST", path=REACTIONS, times=None)
        here.chat.react(here.alice, card, APPROVE)
        await here.chat.wait_for(lambda: fault.hits >= 2)
        here.auth.review(request_id, IVAN, "DENIED", "no")
        await here.told([request_id], "DENIED")


async def test_first_replies_do_not_race_each_other(tmp_path: Path) -> None:
    """What Bob is told, and the line about Alice's review, in a thread that has no reply yet."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.chat.processing = 0.1
        here.chat.react(here.bob, card, APPROVE)
        here.chat.react(here.alice, card, APPROVE)
        await here.chat.wait_for(lambda: len(here.replies(card)) == 2)
        await here.released(request_id)
        assert here.chat.calls["POST", POSTS] == 3, "one of them was made again"


async def test_an_auth_service_without_the_answer_is_asked_again(tmp_path: Path) -> None:
    """Mode "reviewer": Teleport did not answer, and it did not carry it out."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode.UNAVAILABLE, "transport is closing", times=1)
        here.chat.react(here.alice, card, APPROVE)
        await here.chat.wait_for(lambda: any("counts (" in one for one in here.replies(card)))
        assert len(here.auth.request(request_id).reviews) == 1  # type: ignore[union-attr]


async def test_reactions_that_cannot_be_read_do_not_hold_the_record(tmp_path: Path) -> None:
    """A doubt is looked into, and the record given up, although decisions cannot be read."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        broken = Answer(500, {"id": "app.reaction.bulk_get_for_post_ids.app_error", "status_code": 500})
        fault = here.chat.fail(answer=broken, method="POST", path=REACTIONS, times=None)
        here.chat.cut(when="after", method="POST", path=POSTS)
        here.auth.review(request_id, IVAN, "APPROVED", "yes")
        here.chat.react(here.alice, card, APPROVE)
        await here.chat.wait_for(lambda: fault.hits >= 2 and len(here.replies(card)) == 1)
        await here.released(request_id)


async def test_what_is_taken_back_during_the_second_reading_is_not_submitted(tmp_path: Path) -> None:
    """P5: both readings are slow; Alice takes it back before it would be submitted."""
    async with deciding(tmp_path, times=msgspec.structs.replace(LISTENING, evidence=1.0)) as here:
        _, card = await ask(here)
        slow = here.chat.late(2.0, when="before", method="GET", path="/api/v4/posts/*/thread", times=2)
        here.chat.react(here.alice, card, APPROVE)
        await here.chat.wait_for(lambda: slow.hits == 2 and here.chat.calls["POST", REACTIONS] >= 2)
        here.chat.unreact(here.alice, card, APPROVE)
        await only_ivan_counts(here, card)


async def test_a_vote_that_decided_is_not_refused_after_a_restart(tmp_path: Path) -> None:
    """Ivan's vote met the quorum; he could not be told before the end."""
    async with world(tmp_path) as here:
        let_the_plugin_decide(here)
        config = here.config(**linked(here, "plugin", reviews__policy=POLICY))
        async with running(config, times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            here.chat.react(here.alice, card, APPROVE)
            await here.lines.heard("decision.taken", user_id=here.alice.id)
            await here.chat.wait_for(lambda: len(here.replies(card)) == 1)
            await here.released(request_id)
            fault = here.chat.fail(
                answer=EXPIRED, method="POST", path=POSTS, times=None, where=lambda one: b"@ivan" in one.body
            )
            here.chat.react(here.ivan, card, APPROVE)
            await here.lines.heard("decision.taken", user_id=here.ivan.id)
            await here.chat.wait_for(lambda: fault.hits >= 3)
        here.chat.clear_faults()
        assert here.auth.request(request_id).state == "APPROVED"  # type: ignore[union-attr]
        async with running(config, times=SWEEPING):
            await listening(here)
            # Alice makes it listen to the card again.
            here.chat.react(here.alice, card, DENY)
            await here.lines.heard("decision.refused", user_id=here.alice.id)
            await here.released(request_id)
        assert not here.lines.of("decision.refused", user_id=here.ivan.id)


async def test_a_decision_is_heard_although_another_clusters_sidecar_knew_no_such_request(tmp_path: Path) -> None:
    """Two clusters, one bot: what the one has answered while the other was down does not count as its answer."""
    async with world(tmp_path) as here:
        ours = here.config(**linked(here))
        async with running(ours, times=SWEEPING):
            await listening(here)
            request_id, _ = await ask(here)
        with AuthServer.dual_authorization("other.example") as other:
            theirs = here.config_at(other, **linked(here))
            async with running(theirs, times=SWEEPING):
                assert "no open request" in await says(here, here.alice, f"approve {request_id}")
        async with running(ours, times=SWEEPING):
            await refused(here, "unheard", here.alice)
            await here.chat.wait_for(lambda: any("say it again" in one.message for one in tells(here, here.alice)))
