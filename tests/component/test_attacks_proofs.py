"""What proves nothing: records, properties, names and old words that others may write, in a whole sidecar.

Each is done to a request that Bob asks for; nothing may reach Teleport but what people decide about that very request.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.model import APPROVED, DENIED, Threshold
from sidecar.simulator.mattermost.server import Post
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
    card_of,
    deciding,
    let_the_plugin_decide,
    linked,
    listening,
    mallory,
    only_ivan_counts,
    refused,
    submitted,
    user_id,
    write_reviewers,
)
from tests.world import QUICK, World, running, world

CAROL = "carol@example.com"
QUORUM = {"reviews__policy": POLICY}


def rewrite(here: World, request_id: str, slot: dict[str, Any] | None = None, **fields: Any) -> None:
    """Somebody who may update plugin data writes what suits them into a record, and into its first slot."""
    record = json.loads(here.auth.plugin_data(request_id)["tm"])
    record |= {"n": record["n"] + 1} | fields
    record["posts"][0] |= slot or {}
    here.auth.write_plugin_data(request_id, {"tm": json.dumps(record, sort_keys=True, separators=(",", ":"))})


async def announced(here: World, config: Any, times: Any = LISTENING) -> tuple[str, Post]:
    """A request that a sidecar by this configuration told of, and stopped."""
    async with running(config, times=times):
        await here.watched()
        return await ask(here)


# -- a record that others may write  -----------------------------------------------------------------------------------


@pytest.mark.parametrize("claims", ["a post that never was", "somebody's post", "another request's card"])
async def test_a_planted_record_does_not_hide_a_request(claims: str, tmp_path: Path) -> None:
    """It says that everybody was told; its posts are read once, and none is this request's card."""
    async with world(tmp_path) as here:
        other, card = await announced(here, here.config(), QUICK)
        (request_id,) = here.ask(reason="unseen")
        post = here.chat.post(here.alice, here.channel, "lunch?")
        named = {"a post that never was": "x" * 26, "somebody's post": post.id, "another request's card": card.id}
        here.auth.write_plugin_data(request_id, {"tm": here.auth.plugin_data(other)["tm"]})
        rewrite(here, request_id, {"p": named[claims]}, seed="A" * 22, q="")
        async with running(here.config(), times=QUICK):
            await here.told([other, request_id])
            await here.lines.heard("record.unproven", request_id=request_id, level=0)


async def test_a_record_that_names_another_requests_card(tmp_path: Path) -> None:
    """Two people approved that one; nobody approved this one."""
    async with world(tmp_path) as here:
        config = here.config(**linked(here))
        async with running(config, times=LISTENING):
            await listening(here)
            innocent, card = await ask(here)
            for person in (here.alice, here.ivan):
                here.chat.react(person, card, APPROVE)
            await here.told([innocent], "APPROVED")
            request_id, mine = await ask(here)
        before = len(here.auth.submissions)
        rewrite(here, request_id, {"p": card.id, "since": 0})
        async with running(config, times=SWEEPING):
            await here.lines.heard("record.unproven", request_id=request_id, level=0)
            here.chat.post(here.ivan, here.channel, "deny: no", root_id=mine.id)
            await here.recorded(lambda: len(here.auth.submissions) > before)
        assert submitted(here)[before:] == [(IVAN, "DENIED")]


async def test_a_record_that_names_a_post_of_our_bots_that_a_webhook_made(tmp_path: Path) -> None:
    """It bears a copy of the card's properties, and Alice's mark below it says nothing about the card."""
    async with world(tmp_path) as here:
        config = here.config(**linked(here))
        request_id, card = await announced(here, config)
        copy = here.chat.post(here.bot, here.channel, "Cake?", props={**card.props, "from_webhook": "true"})
        here.chat.react(here.alice, copy, APPROVE)
        rewrite(here, request_id, {"p": copy.id})
        async with running(config, times=SWEEPING):
            await here.lines.heard("record.unproven", request_id=request_id, level=0)
            await only_ivan_counts(here, card)


async def test_votes_that_a_ledger_says_were_counted(tmp_path: Path) -> None:
    """A vote is a standing expression; a row in the ledger can only take away."""
    async with world(tmp_path) as here:
        let_the_plugin_decide(here)
        config = here.config(**linked(here, "plugin", **QUORUM))
        request_id, card = await announced(here, config)
        row = [here.alice.id, "approve", f"reaction|{card.id}", 9, "counted"]
        rewrite(here, request_id, dec=[row], owner="", who=here.bob.id)
        async with running(config, times=SWEEPING):
            here.chat.react(here.ivan, card, APPROVE)
            await here.lines.heard("decision.taken", outcome="counted", user_id=here.ivan.id)
            await here.released(request_id)
        assert not here.auth.submissions


async def test_what_stands_on_the_official_plugins_post_decides_nothing(tmp_path: Path) -> None:
    """It was given before decisions meant anything, and anybody may plant the key that makes us adopt a post."""
    async with world(tmp_path) as here:
        (request_id,) = here.ask()
        post = here.chat.post(here.bot, here.channel, f"You have a new Role Request: {request_id}")
        fields = {"user": BOB, "roles": "dbadmin", "messages": f"{here.channel.id}/{post.id}"}
        here.auth.write_plugin_data(request_id, fields)
        for person in (here.alice, here.ivan):
            here.chat.react(person, post, APPROVE)
        async with running(here.config(**linked(here)), times=SWEEPING):
            await here.chat.wait_for(lambda: "attachments" in post.props)
            await here.released(request_id)
            _, card = await ask(here)
            await only_ivan_counts(here, card)


# -- another request, and words of before  -----------------------------------------------------------------------------


async def test_an_id_that_is_used_again_inherits_no_vote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers before 16 let clients choose it: the record of the former one lives on, and Alice's approval with it."""
    async with world(tmp_path) as here:
        let_the_plugin_decide(here)
        config = here.config(**linked(here, "plugin", **QUORUM))
        monkeypatch.setattr(type(here.auth.profile), "new_id", lambda _: "aaaa1111-2222-4333-8444-5555deadbeef")
        async with running(config, times=LISTENING):
            await listening(here)
            request_id, former = await ask(here)
            here.chat.react(here.alice, former, APPROVE)
            await here.lines.heard("decision.taken", outcome="counted")
            await here.released(request_id)
        here.auth.delete_request(request_id)
        here.ask(reason="something else")
        async with running(config, times=SWEEPING):
            await here.chat.wait_for(lambda: len(here.cards()) == 2)
            card = here.cards()[1]
            here.chat.react(here.ivan, card, APPROVE)
            await here.lines.heard("decision.taken", outcome="counted", user_id=here.ivan.id)
            assert not here.auth.submissions
            here.chat.react(here.alice, card, APPROVE)
            await here.lines.heard("decision.taken", 2, outcome="counted", user_id=here.alice.id)
            assert [one.proposed_state for _, one in here.auth.submissions] == [APPROVED]


@pytest.mark.parametrize("before", [{"reviews__submit_as": "none"}, {"reviews__approve": '["+1"]'}])
async def test_words_from_before_they_meant_anything(before: dict[str, str], tmp_path: Path) -> None:
    """The reaction was only talk, or another emoji than the operator's; it counts when it is given again."""
    async with world(tmp_path) as here:
        settings = linked(here)
        async with running(here.config(**settings | before), times=QUICK):
            await here.watched()
            _, card = await ask(here)
            here.chat.react(here.alice, card, APPROVE)
        async with running(here.config(**settings), times=SWEEPING):
            await refused(here, "stale", here.alice)
            assert not submitted(here)
            here.chat.unreact(here.alice, card, APPROVE)
            here.chat.react(here.alice, card, APPROVE)
            await here.lines.heard("decision.taken", user_id=here.alice.id)
        assert submitted(here) == [(ALICE, APPROVED)]


# -- one person, many names  -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "renamed"),
    [({"mattermost__notify_requester": "true"}, False), ({"requesters__bob@example.com": "@bob"}, True)],
)
async def test_the_requester_as_another_teleport_user(changes: dict[str, str], renamed: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """The account that asks may not decide, whatever it is linked to, or called by the time it votes."""
    async with world(tmp_path) as here:
        here.auth.add_user("bob-reviewer", ["reviewer"])
        config = here.config(**linked(here, reviewers__bob="bob-reviewer") | changes)
        write_reviewers(here, "bob-reviewer")
        async with running(config, times=LISTENING):
            await listening(here)
            _, card = await ask(here)
            if renamed:
                here.chat.rename(here.bob, "robert")
            here.chat.react(here.bob, card, APPROVE)
            await refused(here, "own_request", here.bob)
            await only_ivan_counts(here, card)


async def test_somebody_linked_to_the_teleport_user_of_the_account_that_asks(tmp_path: Path) -> None:
    """Bob's account is linked to bob-reviewer, and so is Mallory's: what is one Teleport user is one head."""
    async with world(tmp_path) as here:
        here.auth.add_user("bob-reviewer", ["reviewer"])
        stranger = mallory(here, id=user_id("mallory"))
        write_reviewers(here, "bob-reviewer")
        people = {"reviewers__bob": "bob-reviewer", "reviewers__mallory": "bob-reviewer"}
        async with running(here.config(**linked(here, **people)), times=LISTENING):
            await listening(here)
            _, card = await ask(here)
            here.chat.react(stranger, card, APPROVE)
            await refused(here, "own_request", stranger)
            await only_ivan_counts(here, card)


async def test_an_account_that_reviewed_and_was_linked_anew(tmp_path: Path) -> None:
    """It reviewed as Alice; a second review as Carol would be a second head for one person."""
    async with world(tmp_path) as here:
        here.auth.add_user(CAROL, ["reviewer"])
        async with running(here.config(**linked(here)), times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            here.chat.react(here.alice, card, APPROVE)
            await here.lines.heard("decision.taken", user_id=here.alice.id)
            await here.released(request_id)
        write_reviewers(here, CAROL)
        async with running(here.config(**linked(here, reviewers__alice=CAROL)), times=SWEEPING):
            here.chat.post(here.alice, here.channel, "approve because I am Carol now", root_id=card.id)
            await here.lines.heard("decision.refused", user_id=here.alice.id)
            await here.released(request_id)
            here.chat.post(here.alice, here.channel, "approve", root_id=card.id)
            await refused(here, "another_name", here.alice)
        assert submitted(here) == [(ALICE, APPROVED)]


async def test_teleport_users_that_share_an_account_are_one_head(tmp_path: Path) -> None:
    """The table of requesters gives Carol's requests to Alice's account, so both are one person."""
    policy = POLICY.replace(IVAN, CAROL)
    async with world(tmp_path) as here:
        let_the_plugin_decide(here)
        here.auth.add_user(CAROL, ["reviewer"])
        carol = mallory(here, "carol", id=user_id("carol"))
        changes = {"requesters__carol@example.com": f'{{ id = "{here.alice.id}" }}', "reviews__policy": policy}
        config = here.config(**linked(here, "plugin", reviewers__carol=CAROL) | changes)
        async with running(config, times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            here.chat.react(here.alice, card, APPROVE)
            here.chat.react(carol, card, APPROVE)
            await here.lines.heard("decision.taken", 2, outcome="counted")
            await here.released(request_id)
        assert not here.auth.submissions


async def test_an_unfiltered_threshold_of_two_is_not_met_by_chat_and_web(tmp_path: Path) -> None:
    """Our own review would be one of two, and the same person's on the web page the other."""
    async with world(tmp_path) as here:
        let_the_plugin_decide(here)
        here.auth.add_role("devops", request_roles=["dbadmin"], thresholds=[Threshold(approve=2, deny=1)])
        async with running(here.config(**linked(here, "plugin", **QUORUM)), times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            for person in (here.alice, here.ivan):
                here.chat.react(person, card, APPROVE)
                await refused(here, "unfiltered", person)
            await here.released(request_id)
        assert not here.auth.submissions


async def test_who_reviewed_on_teleport_is_no_head_of_the_policy(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        let_the_plugin_decide(here)
        thresholds = [Threshold(approve=2, deny=2, filter='contains(reviewer.roles, "chat")')]
        here.auth.add_role("devops", request_roles=["dbadmin"], thresholds=thresholds)
        async with running(here.config(**linked(here, "plugin", **QUORUM)), times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            here.auth.review(request_id, ALICE, APPROVED)
            await here.chat.wait_for(lambda: card.props["tm"]["n"] == 1)
            before = len(here.auth.submissions)
            for person in (here.alice, here.ivan):
                here.chat.react(person, card, APPROVE)
            await here.lines.heard("decision.taken", outcome="on_record", user_id=here.alice.id)
            await here.lines.heard("decision.taken", outcome="counted", user_id=here.ivan.id)
            await here.released(request_id)
        assert not [one for _, one in here.auth.submissions[before:] if one.author == "access-plugin"]


# -- half readings, and somebody else's words  -------------------------------------------------------------------------


async def test_a_denial_that_could_not_be_read_stands_against_the_approval(tmp_path: Path) -> None:
    """Alice approved on one card and denies in the thread of the other one, which Mattermost does not give."""
    async with world(tmp_path) as here:
        people = (here.alice, here.ivan, here.bob, here.bot)
        second = here.chat.add_channel(here.team, "second", members=people)
        names = '["ops/access-requests", "ops/second"]'
        async with running(here.config(**linked(here, mattermost__recipients=names)), times=SWEEPING):
            await listening(here)
            (request_id,) = here.ask()
            await here.told([request_id])
            await here.told([request_id], channel=second)
            await here.released(request_id)
            card, other = card_of(here, request_id), card_of(here, request_id, second)
            here.chat.fail(method="GET", path=f"/api/v4/posts/{other.id}/thread")
            here.chat.post(here.alice, second, "deny", root_id=other.id)
            here.chat.react(here.alice, card, APPROVE)
            reads = here.chat.calls["POST", "/api/v4/posts/ids/reactions"]
            await here.chat.wait_for(lambda: here.chat.calls["POST", "/api/v4/posts/ids/reactions"] > reads + 6)
            assert not submitted(here)
            here.chat.clear_faults()
            await refused(here, "conflict", here.alice, 2)
        assert not submitted(here)


async def test_a_direct_message_that_an_administrator_imported(tmp_path: Path) -> None:
    """An import makes posts of any author and date, and no event tells of them: it is to be said again."""
    async with deciding(tmp_path, times=SWEEPING) as here:
        request_id, card = await ask(here)
        direct = here.chat.open_direct(here.alice, here.bot)
        publish, here.chat.publish_posted = here.chat.publish_posted, lambda *_: None  # type: ignore[method-assign]
        here.chat.post(here.alice, direct, f"approve {request_id}")
        here.chat.publish_posted = publish  # type: ignore[method-assign]
        await refused(here, "unheard", here.alice)
        await only_ivan_counts(here, card)


async def test_a_channel_in_which_another_server_has_a_part(tmp_path: Path) -> None:
    """Its administrators say who reacts there: nothing on that card decides, and people are told where they may."""
    async with world(tmp_path) as here:
        here.channel.shared = True
        async with running(here.config(**linked(here)), times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            here.chat.react(here.alice, card, APPROVE)
            here.chat.post(here.ivan, here.channel, "deny: no", root_id=card.id)
            await refused(here, "shared_channel", here.alice)
            await refused(here, "shared_channel", here.ivan)
            await here.chat.wait_for(lambda: any("Another Mattermost server" in one for one in here.replies(card)))
            assert not submitted(here)
            here.chat.post(here.ivan, here.chat.open_direct(here.ivan, here.bot), f"deny {request_id} no")
            await here.lines.heard("decision.taken", user_id=here.ivan.id)
        assert submitted(here) == [(IVAN, DENIED)]


async def test_a_vote_by_direct_message_that_a_restart_uncounted(tmp_path: Path) -> None:
    """Nobody hears it live any more, so its author is asked, once, to say it again."""
    async with world(tmp_path) as here:
        let_the_plugin_decide(here)
        config = here.config(**linked(here, "plugin", **QUORUM))
        async with running(config, times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            direct = here.chat.open_direct(here.alice, here.bot)
            here.chat.post(here.alice, direct, f"approve {request_id}")
            await here.lines.heard("decision.taken", outcome="counted")
            await here.released(request_id)
        async with running(config, times=SWEEPING):
            await refused(here, "unheard", here.alice)
            here.chat.react(here.ivan, card, APPROVE)
            await here.lines.heard("decision.taken", outcome="counted", user_id=here.ivan.id)
            assert not here.auth.submissions
            here.chat.post(here.alice, direct, f"approve {request_id}")
            await here.recorded(lambda: bool(here.auth.submissions))
        assert len(here.lines.of("decision.refused", reason="unheard")) == 1


async def test_words_on_a_second_card_are_asked_for_again(tmp_path: Path) -> None:
    """Two stood for a moment; the younger one goes, and Alice's denial with it."""
    async with world(tmp_path) as here:
        config = here.config(**linked(here))
        request_id, card = await announced(here, config)
        second = here.chat.post(here.bot, here.channel, card.message, props=card.props)
        here.chat.react(here.alice, second, DENY)
        rewrite(here, request_id, {"p": "", "s": "waiting"})
        async with running(config, times=LISTENING):
            await here.chat.wait_for(lambda: bool(second.delete_at))
            await here.chat.wait_for(lambda: any("say it again here" in one for one in here.replies(card)))
            assert not submitted(here)
            await only_ivan_counts(here, card)
