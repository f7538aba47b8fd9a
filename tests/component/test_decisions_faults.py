"""Decisions while something fails: an answer that cannot be given, reactions that cannot be read, a race."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grpc
import trio

from sidecar.followed import DIRECT_MESSAGES
from sidecar.model import Threshold
from sidecar.simulator.mattermost import Answer, Request
from tests.deciding import (
    ALICE,
    APPROVE,
    BOB,
    IVAN,
    LISTENING,
    POLICY,
    SWEEPING,
    ask,
    deciding,
    linked,
    listening,
    says,
    submitted,
)  # fmt: skip
from tests.world import running, world

POSTS = "/api/v4/posts"
REACTIONS = "/api/v4/posts/ids/reactions"
# As while Mattermost's database fails; nothing is carried out.
EXPIRED = Answer(401, {"id": "api.context.session_expired.app_error"})


async def test_an_answer_that_was_not_given_is_given_after_a_restart(tmp_path: Path) -> None:
    """Judged, but the person could not be told before the end."""
    with trio.fail_after(20):
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
    with trio.fail_after(15):
        async with deciding(tmp_path, "plugin", reviews__policy=POLICY) as here:
            here.auth.add_role("chat", review_roles=["dbadmin"])
            here.auth.add_user("access-plugin", ["access-plugin", "chat"])
            here.auth.add_role("devops", request_roles=["dbadmin"], thresholds=[Threshold(approve=1, deny=1)])
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
    with trio.fail_after(20):
        async with deciding(tmp_path, reviewers__bob=BOB) as here:
            request_id, _ = await ask(here)
            channel = here.chat.open_direct(here.bob, here.bot)
            read: Counter[str] = Counter()

            def taken_back(request: Request) -> bool:
                """The first read understands it, the second one is to judge it."""
                post = here.chat.all_posts[request.args[0]]
                read[post.id] += 1
                if read[post.id] == 2 and post.user_id == here.bob.id:
                    here.chat.delete(here.bob, post)
                return False

            here.chat.fail(method="GET", path="/api/v4/posts/{post_id}", where=taken_back, times=None)
            for _ in range(DIRECT_MESSAGES):
                said = here.chat.post(here.bob, channel, f"approve {request_id}")
                await here.chat.wait_for(lambda one=said: bool(one.delete_at))  # type: ignore[misc]
            here.chat.clear_faults()
            assert "Done" in await says(here, here.alice, f"approve {request_id}")
            assert submitted(here) == [(ALICE, "APPROVED")]


async def test_reactions_that_cannot_be_read_do_not_keep_cards_untrue(tmp_path: Path) -> None:
    with trio.fail_after(10):
        async with deciding(tmp_path) as here:
            request_id, card = await ask(here)
            broken = Answer(500, {"id": "app.reaction.bulk_get_for_post_ids.app_error", "status_code": 500})
            fault = here.chat.fail(answer=broken, method="POST", path=REACTIONS, times=None)
            here.chat.react(here.alice, card, APPROVE)
            await here.chat.wait_for(lambda: fault.hits >= 2)
            here.auth.review(request_id, IVAN, "DENIED", "no")
            await here.told([request_id], "DENIED")


async def test_first_replies_do_not_race_each_other(tmp_path: Path) -> None:
    """The answer to Alice and the line about her review, in a thread that has no reply yet."""
    with trio.fail_after(10):
        async with deciding(tmp_path) as here:
            request_id, card = await ask(here)
            here.chat.processing = 0.1
            here.chat.react(here.alice, card, APPROVE)
            await here.chat.wait_for(lambda: len(here.replies(card)) == 2)
            await here.released(request_id)
            assert here.chat.calls["POST", POSTS] == 3, "one of them was made again"


async def test_an_auth_service_without_the_answer_is_asked_again(tmp_path: Path) -> None:
    """Mode "reviewer": Teleport did not answer, and it did not carry it out."""
    with trio.fail_after(15):
        async with deciding(tmp_path) as here:
            request_id, card = await ask(here)
            here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode.UNAVAILABLE, "transport is closing", times=1)
            here.chat.react(here.alice, card, APPROVE)
            await here.chat.wait_for(lambda: any("Done" in one for one in here.replies(card)))
            assert len(here.auth.request(request_id).reviews) == 1  # type: ignore[union-attr]
