"""What must not decide: every way in which a reaction, a reply or a message is not its supposed author's decision.

Each attack is made on real sockets; then Ivan denies, which is judged after all that stands already, and Teleport must
have heard of nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from sidecar.decisions.record import decode, post_key
from sidecar.simulator.mattermost.server import Post, User
from tests.deciding import (
    ALICE,
    APPROVE,
    BOB,
    DENY,
    LISTENING,
    POLICY,
    SWEEPING,
    ask,
    deciding,
    linked,
    listening,
    mallory,
    only_ivan_counts,
    refused,
    says,
    submitted,
    tells,
    user_id,
    write_reviewers,
)
from tests.world import World, running, world

# What was read is old soon.
DOUBTING = msgspec.structs.replace(LISTENING, evidence=1.0)

THREAD, PERSON = "/api/v4/posts/{post_id}/thread", "/api/v4/users/{user_id}"

Attack = Callable[[World, Post], User]


def by_a_bot(here: World, card: Post) -> User:
    bot = here.chat.add_bot("helper")
    here.chat.join_team(here.team, bot)
    here.chat.join(here.channel, bot)
    here.chat.react(bot, card, APPROVE)
    return bot


def by_a_deactivated_user(here: World, card: Post) -> User:
    here.chat.react(here.alice, card, APPROVE)
    here.chat.deactivate(here.alice)
    return here.alice


def by_a_guest(here: World, card: Post) -> User:
    here.chat.set_roles(here.alice, "system_guest")
    here.chat.react(here.alice, card, APPROVE)
    return here.alice


def by_a_remote_user(here: World, card: Post) -> User:
    here.alice.remote_id = "another-server"
    here.chat.react(here.alice, card, APPROVE)
    return here.alice


def through_a_remote_server(here: World, card: Post) -> User:
    here.chat.react(here.alice, card, APPROVE, remote_id="another-server")
    return here.alice


def by_somebody_unlinked(here: World, card: Post) -> User:
    stranger = mallory(here)
    here.chat.react(stranger, card, APPROVE)
    return stranger


def by_the_requester(here: World, card: Post) -> User:
    here.chat.react(here.bob, card, APPROVE)
    return here.bob


def by_somebody_with_alices_old_name(here: World, card: Post) -> User:
    impostor = mallory(here)
    here.chat.rename(here.alice, "alice2")
    here.chat.rename(impostor, "alice")
    here.chat.react(impostor, card, APPROVE)
    return impostor


def with_both_emoji(here: World, card: Post) -> User:
    here.chat.react(here.alice, card, APPROVE)
    here.chat.react(here.alice, card, DENY)
    return here.alice


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (by_a_bot, "bot"),
        (by_a_deactivated_user, "deactivated"),
        (by_a_guest, "guest"),
        (by_a_remote_user, "remote"),
        (through_a_remote_server, "remote"),
        (by_somebody_unlinked, "unmapped"),
        (by_the_requester, "own_request"),
        (by_somebody_with_alices_old_name, "unmapped"),
        (with_both_emoji, "conflict"),
    ],
)
@pytest.mark.parametrize("chat_version", ["5.37.0", "11.0.0"])
async def test_a_reaction_that_is_no_decision(tmp_path: Path, attack: Attack, reason: str, chat_version: str) -> None:
    """Whoever stands behind it, and whatever the server says of them."""
    async with deciding(tmp_path, chat_version=chat_version, reviewers__bob=BOB) as here:
        _, card = await ask(here)
        author = attack(here, card)
        await refused(here, reason, author)
        await only_ivan_counts(here, card)


FORGED = (
    "from_webhook", "from_bot", "from_plugin", "from_oauth_app", "override_username", "override_icon_url",
    "override_icon_emoji", "webhook_display_name", "ai_generated_by",
)  # fmt: skip


async def test_replies_with_the_marks_of_a_machine(tmp_path: Path) -> None:
    """A webhook's owner wrote nothing; and whoever sets such a mark himself only harms himself."""
    async with deciding(tmp_path) as here:
        _, card = await ask(here)
        for mark in FORGED:
            props = {mark: "true"}
            here.chat.post(here.alice, here.channel, "approve", root_id=card.id, props=props)
        here.chat.post(here.alice, here.channel, "approve", root_id=card.id, type="custom_poll")
        here.chat.post(here.alice, here.channel, "approve", root_id=card.id, type="me")
        here.chat.post_as_webhook(here.alice, here.channel, "approve", username="ivan")
        await refused(here, "forged", here.alice, len(FORGED) + 2)
        await only_ivan_counts(here, card)


async def test_replies_that_were_edited(tmp_path: Path) -> None:
    """By the author or by an administrator: nobody can tell which."""
    async with deciding(tmp_path) as here:
        _, card = await ask(here)
        admin = mallory(here, "admin", roles="system_user system_admin", id=user_id("admin"))
        mine = here.chat.post(here.alice, here.channel, "looking at it", root_id=card.id)
        here.chat.edit(here.alice, mine, "approve")
        await refused(here, "edited", here.alice)
        # The server has told of the reply's first text alone, so somebody must make us look.
        other = here.chat.post(here.alice, here.channel, "hm", root_id=card.id)
        here.chat.edit(admin, other, "approve because I say so")
        await refused(here, "edited", here.alice, 2)
        await only_ivan_counts(here, card)


async def test_replies_elsewhere(tmp_path: Path) -> None:
    """In another channel, below a copy of the card, below somebody's post, and not below anything."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        other = here.chat.add_channel(here.team, "elsewhere", members=(here.alice, here.ivan, here.bot))
        stranger = mallory(here)
        for author, channel in ((stranger, here.channel), (here.ivan, other)):
            copy = here.chat.post(author, channel, card.message, props=card.props)
            here.chat.post(here.alice, channel, "approve", root_id=copy.id)
            here.chat.react(here.alice, copy, APPROVE)
            here.chat.post(here.alice, channel, f"approve {request_id}")
            here.chat.post(here.alice, channel, "approve")
        await only_ivan_counts(here, card)


async def test_the_card_of_another_request_and_of_a_resolved_one(tmp_path: Path) -> None:
    """What is said below a card is about its request alone; a resolved one takes no more reviews."""
    async with deciding(tmp_path) as here:
        first_id, first = await ask(here)
        here.auth.set_state(first_id, "DENIED")
        await here.told([first_id], "DENIED")
        _, second = await ask(here)
        here.chat.post(here.alice, here.channel, "approve", root_id=first.id)
        here.chat.react(here.alice, first, APPROVE)
        await refused(here, "resolved", here.alice, 2)
        await only_ivan_counts(here, second)


async def test_a_reaction_that_was_taken_back(tmp_path: Path) -> None:
    """Only what stands when it is read again counts."""
    async with deciding(tmp_path) as here:
        _, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        here.chat.unreact(here.alice, card, APPROVE)
        taken_back = here.chat.post(here.alice, here.channel, "approve", root_id=card.id)
        here.chat.delete(here.alice, taken_back)
        await only_ivan_counts(here, card)


async def test_a_reaction_that_is_taken_back_while_teleport_is_slow(tmp_path: Path) -> None:
    """What was read before a long wait is read again after it."""
    async with deciding(tmp_path, times=DOUBTING) as here:
        _, card = await ask(here)
        here.auth.faults.delay("UpdatePluginData", 1.5)
        updates = here.auth.calls["UpdatePluginData"]
        here.chat.react(here.alice, card, APPROVE)
        await here.recorded(lambda: here.auth.calls["UpdatePluginData"] > updates)
        here.chat.unreact(here.alice, card, APPROVE)
        await only_ivan_counts(here, card)


@pytest.mark.parametrize(
    "text", ["approve? not sure", "approved", "i approve", "approve it", "*approve*", "approve\u200b"]
)
async def test_words_that_are_no_decision(tmp_path: Path, text: str) -> None:
    """The grammar is anchored: what only looks like a decision is none."""
    async with deciding(tmp_path) as here:
        _, card = await ask(here)
        here.chat.post(here.alice, here.channel, text, root_id=card.id)
        await only_ivan_counts(here, card)


async def test_a_pending_id_that_somebody_else_used(tmp_path: Path) -> None:
    """Whoever guesses the ids of our answers can delay them by a try, not swallow them."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        stranger = mallory(here)
        record = decode((await here.released(request_id))["tm"])
        reaction = here.chat.react(stranger, card, APPROVE)
        identity = f"{stranger.id}:approve:reaction|{card.id}:{reaction.update_at}"
        key = post_key(record.seed, "answer", here.channel.id, identity, 0)  # type: ignore[union-attr]
        here.chat.post(stranger, here.channel, "never mind", root_id=card.id, pending_post_id=key)
        await here.chat.wait_for(lambda: any("not linked" in text for text in here.replies(card)))
        await only_ivan_counts(here, card)


async def test_direct_messages_of_strangers(tmp_path: Path) -> None:
    """One fixed sentence an hour, the same for every question, and nothing of it about requests."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        guest = mallory(here, "guest", roles="system_guest")
        for person in (mallory(here), guest):
            said = await says(here, person, "list")
            assert "linked" in said
            assert request_id[-8:] not in said
            for message in (f"show {request_id}", f"approve {request_id}", "help", "show ffffffff"):
                here.chat.post(person, here.chat.open_direct(person, here.bot), message)
            # Whoever asks later is answered later.
            assert "As it is now" in await says(here, here.alice, f"show {request_id}")
            assert len(tells(here, person)) == 1
            assert len(here.lines.of("direct.refused", user_id=person.id)) == 1
        await only_ivan_counts(here, card)
        assert not decode((await here.released(request_id))["tm"]).dec[1:]  # type: ignore[union-attr]


async def test_a_colleague_sees_only_what_is_before_them(tmp_path: Path) -> None:
    """A linked reviewer outside the card's channel learns nothing: an id that exists reads like one that does not."""
    async with deciding(tmp_path, reviewers__carol="carol@example.com") as here:
        carol = here.chat.add_user("carol", id=user_id("carol"))
        request_id, card = await ask(here)
        assert "No open request" in await says(here, carol, "list")
        unknown = await says(here, carol, "show ffffffff")
        for message in (f"show {request_id}", f"approve {request_id}", f"deny {request_id[-8:]} why not"):
            assert await says(here, carol, message) == unknown
        here.chat.join(here.channel, carol)
        await only_ivan_counts(here, card)


async def test_a_direct_message_that_is_not_between_the_two(tmp_path: Path) -> None:
    """An administrator in Alice's direct channel, a group, and a webhook that is aimed at it."""
    async with deciding(tmp_path, reviewers__admin="admin@example.com") as here:
        request_id, card = await ask(here)
        admin = mallory(here, "admin", roles="system_user system_admin", id=user_id("admin"))
        direct = here.chat.open_direct(here.alice, here.bot)
        here.chat.post(admin, direct, f"approve {request_id}")
        here.chat.post_as_webhook(here.alice, direct, f"approve {request_id}")
        here.chat.post_as_webhook(here.alice, direct, "list")
        group = here.chat.add_group(here.alice, here.ivan, here.bot)
        here.chat.post(here.alice, group, f"approve {request_id}")
        await refused(here, "forged", here.alice)
        await here.lines.heard("direct.refused", user_id=here.alice.id, reason="forged")
        assert not tells(here, here.alice)
        await only_ivan_counts(here, card)


async def test_an_id_that_two_requests_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form decides nothing then; the whole id does."""
    ids = [f"{front}1111-2222-4333-8444-5555deadbeef" for front in ("aaaa", "bbbb")]
    async with deciding(tmp_path, version="16.0.0-dev") as here:
        new_ids = iter(ids)
        monkeypatch.setattr(type(here.auth.profile), "new_id", lambda _: next(new_ids))
        for _ in ids:
            await ask(here)
        assert "More than one" in await says(here, here.alice, "approve deadbeef")
        assert "More than one" in await says(here, here.alice, "show deadbeef")
        assert not submitted(here)
        assert "counts (" in await says(here, here.alice, f"approve {ids[1]} because it is the second")
        assert submitted(here) == [(ALICE, "APPROVED")]
        assert not here.auth.request(ids[0]).reviews  # type: ignore[union-attr]


async def test_two_accounts_of_one_teleport_user(tmp_path: Path) -> None:
    """They are one head in a quorum of two."""
    async with deciding(tmp_path, "state", reviews__policy=POLICY, reviewers__alice2=ALICE) as here:
        here.auth.advanced_workflows = False
        second = mallory(here, "alice2", id=user_id("alice2"))
        _, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        here.chat.react(second, card, APPROVE)
        here.chat.post(second, here.channel, "approve because twice", root_id=card.id)
        await here.lines.heard("decision.taken", 3, outcome="counted")
        await here.chat.wait_for(lambda: any("counts (1 of 2), as" in text for text in here.replies(card)))
        assert not here.auth.state_changes


async def test_what_was_refused_before_its_author_was_linked_stays_refused(tmp_path: Path) -> None:
    """The operator links somebody and restarts: only what they say from then on counts, however they said it.

    Nothing of it is on record before: the rules that a card bears tell since when words on it count.
    """
    mallorys = "mallory@example.com"
    async with world(tmp_path) as here:
        stranger = mallory(here)
        async with running(here.config(**linked(here)), times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            here.chat.react(stranger, card, APPROVE)
            here.chat.post(stranger, here.channel, "approve", root_id=card.id)
            here.chat.post(stranger, here.chat.open_direct(stranger, here.bot), f"approve {request_id}")
            await refused(here, "unmapped", stranger)
            await here.lines.heard("direct.refused", user_id=stranger.id)
            await here.released(request_id)
            assert stranger.id not in here.auth.plugin_data(request_id)["tm"]
        here.auth.add_user(mallorys, ["reviewer"])
        write_reviewers(here, mallorys)
        async with running(here.config(**linked(here, reviewers__mallory=mallorys)), times=SWEEPING):
            await refused(here, "stale", stranger, 2)
            await here.released(request_id)
            assert not submitted(here)
            here.chat.unreact(stranger, card, APPROVE)
            here.chat.react(stranger, card, APPROVE)
            await here.lines.heard("decision.taken", user_id=stranger.id)
            assert submitted(here) == [(mallorys, "APPROVED")]


async def test_what_was_refused_for_its_authors_state_stays_refused(tmp_path: Path) -> None:
    """Who was a guest and is none any more says it again; a restart forgets nothing."""
    async with world(tmp_path) as here:
        config = here.config(**linked(here))
        here.chat.set_roles(here.alice, "system_guest")
        async with running(config, times=LISTENING):
            await listening(here)
            request_id, card = await ask(here)
            reaction = here.chat.react(here.alice, card, APPROVE)
            await refused(here, "guest", here.alice)
            covered = f'["{here.alice.id}","*","*",{reaction.update_at},"guest"]'
            await here.recorded(lambda: covered in here.auth.plugin_data(request_id)["tm"])
            await here.released(request_id)
        here.chat.set_roles(here.alice, "system_user")
        async with running(config, times=SWEEPING):
            await only_ivan_counts(here, card)


async def test_an_address_that_moved_on_a_server_that_verifies_none(tmp_path: Path) -> None:
    """Identity by address is refused as long as anybody may give themselves any address."""
    async with deciding(tmp_path, reviews__identity="email") as here:
        _, card = await ask(here)
        here.chat.change_email(here.alice, "alice@elsewhere.example")
        impostor = mallory(here)
        here.chat.change_email(impostor, ALICE)
        here.chat.react(impostor, card, APPROVE)
        await refused(here, "identity_unsafe", impostor)
        assert here.lines.of("identity.unsafe")
        assert not submitted(here)


async def test_ten_thousand_events_of_noise(tmp_path: Path) -> None:
    """Reactions and replies to posts of no concern cost no call, and the decision in their midst is found."""
    async with deciding(tmp_path) as here:
        _, card = await ask(here)
        talk = here.chat.post(here.bob, here.channel, "lunch?")
        await here.chat.wait_for(lambda: here.chat.calls["GET", "/api/v4/channels/{channel_id}"])
        calls = here.chat.calls.total()
        for number in range(10_000):
            if number == 5_000:
                here.chat.react(here.alice, card, APPROVE)
            here.chat.react(here.bob, talk, "tada")
            if number % 100 == 0:
                # The simulator, as the real server, drops a socket that is 256 events behind.
                await trio.testing.wait_all_tasks_blocked(0.001)
        await here.lines.heard("decision.taken", user_id=here.alice.id)
        assert here.chat.calls.total() - calls < 30


async def test_a_stranger_who_reacts_for_ever(tmp_path: Path) -> None:
    """The first word costs a look; whatever comes in the hour after it costs nothing at all."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        stranger = mallory(here)
        here.chat.react(stranger, card, APPROVE)
        await refused(here, "unmapped", stranger)
        await here.chat.wait_for(lambda: any("not linked" in text for text in here.replies(card)))
        await here.released(request_id)
        written, calls = here.auth.calls["UpdatePluginData"], here.chat.calls.total()
        for turn in range(200):
            here.chat.react(stranger, card, APPROVE if turn % 2 else DENY)
            here.chat.post(stranger, here.channel, f"approve because {turn}", root_id=card.id)
            await trio.testing.wait_all_tasks_blocked(0.001)
        assert here.auth.calls["UpdatePluginData"] == written
        assert here.chat.calls.total() - calls < 10
        await only_ivan_counts(here, card)
        await here.shows("DENIED")
        assert stranger.id not in (await here.released(request_id))["tm"]
        assert len(here.lines.of("decision.refused", user_id=stranger.id)) == 1
        assert sum("not linked" in text for text in here.replies(card)) == 1
