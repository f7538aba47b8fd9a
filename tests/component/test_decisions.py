"""Alice and Ivan decide in Mattermost: each way to say it, each way to carry it to Teleport, each fault between."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

import grpc
import pytest
import trio

from sidecar.decisions.record import decode
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
    refused,
    says,
    submitted,
    tells,
    write_reviewers,
)
from tests.world import World, field, process, running


async def answered(here: World, request_id: str, words: str, count: int = 1) -> None:
    """Return when so many answers in the card's thread hold these words."""
    card = card_of(here, request_id)
    await here.chat.wait_for(lambda: sum(words in text for text in here.replies(card)) >= count)


# -- ways --------------------------------------------------------------------------------------------------------------


async def test_two_reactions_by_two_people_approve(tmp_path: Path) -> None:
    """One of them alone does not; each is answered by name, and the card shows how far it is."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        await answered(
            here, request_id, f"@alice Your approval of {BOB}'s request for dbadmin counts (1 of 2), as {ALICE}."
        )
        await here.chat.wait_for(lambda: "1 of 2" in field(here.cards()[0], "Reviews"))
        assert field(here.cards()[0], "State") == "⏳ PENDING"
        here.chat.react(here.ivan, card, APPROVE)
        await here.told([request_id], "APPROVED")
        await answered(here, request_id, "The request is now APPROVED.")
        await here.released(request_id)
        assert here.replies(card) == [
            f"@alice Your approval of {BOB}'s request for dbadmin counts (1 of 2), as {ALICE}.",
            (
                f"@ivan Your approval of {BOB}'s request for dbadmin counts (2 of 2), as {IVAN}."
                " The request is now APPROVED."
            ),
        ]
        await here.lines.heard("decision.taken", 2)
        # A cross of the bot's own would look like a denial.
        await here.chat.wait_for(lambda: {user for user, _ in card.reactions} == {here.alice.id, here.ivan.id})
    assert submitted(here) == [(ALICE, "APPROVED"), (IVAN, "APPROVED")]


async def test_a_reply_carries_its_reason_and_a_denial_decides_alone(tmp_path: Path) -> None:
    """The reason reaches Teleport as it was written; it is in no log line."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.chat.post(here.alice, here.channel, "Deny because not on a Friday", root_id=card.id)
        await here.told([request_id], "DENIED")
        await here.lines.heard("decision.taken", way="reply", outcome="submitted", reviewer=ALICE)
        ((_, submission),) = here.auth.submissions
        assert (submission.author, submission.reason) == (ALICE, "not on a Friday")
        assert not [line for line in here.lines.of("decision.taken") if "Friday" in str(line)]


async def test_a_direct_message_names_the_whole_id_where_ids_are_used_again(tmp_path: Path) -> None:
    """Servers before 16 let the client choose it: what ends alike may be another request by now."""
    async with deciding(tmp_path) as here:
        request_id, _ = await ask(here)
        assert "write the whole id" in await says(here, here.alice, f"approve {request_id[-8:]}")
        assert not submitted(here)
        assert "counts (1 of 2)" in await says(here, here.alice, f"approve {request_id}")


async def test_a_direct_message_decides_and_is_answered_there(tmp_path: Path) -> None:
    """By the last digits of the id; `list` and `show` tell what there is."""
    async with deciding(tmp_path, version="16.0.0-dev") as here:
        request_id, _ = await ask(here)
        short = request_id[-8:]
        assert short in await says(here, here.alice, "list")
        assert request_id in await says(here, here.alice, f"show {short}")
        assert f"`approve {short}`" in await says(here, here.alice, "help")
        assert f"`approve {short}`" in await says(here, here.alice, "approve")
        assert "counts (1 of 2)" in await says(here, here.alice, f"approve {short} looks right")
        ((_, submission),) = here.auth.submissions
        assert (submission.author, submission.reason) == (ALICE, "looks right")
        here.chat.post(here.alice, here.chat.open_direct(here.alice, here.bot), "thank you")
        assert "already reviewed" in await says(here, here.alice, f"deny {short} changed my mind")


async def test_a_required_reason_must_be_given(tmp_path: Path) -> None:
    """A bare reaction is answered with the grammar; the reply with a reason then counts, whichever way it goes."""
    async with deciding(tmp_path, reviews__require_reason="both") as here:
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        await answered(here, request_id, "A reason is required")
        here.chat.post(here.alice, here.channel, "deny: too broad", root_id=card.id)
        await here.told([request_id], "DENIED")
        assert submitted(here) == [(ALICE, "DENIED")]


async def test_words_that_nearly_fit_are_answered_with_the_grammar(tmp_path: Path) -> None:
    """Once for each message; talk is not answered at all."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.chat.post(here.alice, here.channel, "is this about the billing database?", root_id=card.id)
        here.chat.post(here.alice, here.channel, "approve? not sure", root_id=card.id)
        await answered(
            here, request_id, "@alice About bob@example.com's request for dbadmin: Reply with exactly `approve`"
        )
        await here.released(request_id)
        assert sum("Reply with" in text for text in here.replies(card)) == 1
        assert not submitted(here)


# -- modes -------------------------------------------------------------------------------------------------------------


async def test_a_quorum_submits_one_review_as_the_plugin(tmp_path: Path) -> None:
    """Its reason names the people and what they said."""
    async with deciding(tmp_path, "plugin", reviews__policy=POLICY) as here:
        let_the_plugin_decide(here)
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        await answered(
            here, request_id, f"@alice Your approval of {BOB}'s request for dbadmin counts (1 of 2), as {ALICE}."
        )
        assert not submitted(here)
        told = await says(here, here.ivan, f"approve {request_id} go ahead")
        assert f"counts (2 of 2), as {IVAN}. The request is now APPROVED." in told
        await here.told([request_id], "APPROVED")
        await here.released(request_id)
        # Its own review has no reply, and Ivan's answer stands elsewhere.
        (_, end) = here.replies(card)
        assert end.startswith(f"{BOB}'s request for dbadmin is now APPROVED.\n")
        ((_, submission),) = here.auth.submissions
        assert submission.author == "access-plugin"
        assert submission.reason == f"Decided in Mattermost by {ALICE}, {IVAN}: go ahead"


async def test_the_state_is_set_only_where_teleport_has_no_reviews(here: World) -> None:
    """On the community edition a quorum of two sets it once; the delegator names them."""
    here.auth.advanced_workflows = False
    rules = {"access_request": ("list", "read", "update"), "access_plugin_data": ("update",)}
    here.auth.add_role("access-plugin", rules=rules)
    here.auth.add_role("devops", request_roles=["dbadmin"])
    async with running(here.config(**linked(here, "state", reviews__policy=POLICY)), times=LISTENING):
        await listening(here)
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        await answered(here, request_id, "counts (1 of 2)")
        here.chat.react(here.ivan, card, APPROVE)
        await here.told([request_id], "APPROVED")
        await here.released(request_id)
        # The deciding answer tells the end.
        assert [" is now APPROVED." in told for told in here.replies(card)] == [False, True]
        ((_, change),) = here.auth.state_changes
        assert change.delegator == f"mattermost:{ALICE},{IVAN}"


@pytest.mark.parametrize("how", ["reviews exist", "thresholds of its own"])
async def test_the_state_is_never_set_past_teleports_own_reviews(here: World, how: str) -> None:
    """Not where the edition has them, and not for a request that asks for more than the default."""
    here.auth.advanced_workflows = how == "reviews exist"
    if here.auth.advanced_workflows:
        here.auth.add_role("devops", request_roles=["dbadmin"])
    async with running(here.config(**linked(here, "state", reviews__policy=POLICY)), times=LISTENING):
        await listening(here)
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        here.chat.react(here.ivan, card, APPROVE)
        await answered(here, request_id, "may not set the state")
        await here.lines.heard("decision.refused", reason="unsafe_state")
        assert not here.auth.state_changes


@pytest.mark.parametrize(("version", "accepted"), [("18.10.0", False), ("18.11.0", True)])
async def test_on_behalf_needs_18_11(tmp_path: Path, version: str, accepted: bool) -> None:  # noqa: FBT001
    """Before it the server would refuse, or worse; from it on the review bears both names."""
    async with deciding(tmp_path, "on_behalf", version=version) as here:
        rules = {"access_request": ("list", "read"), "access_plugin_data": ("update",)}
        here.auth.add_role("access-plugin", rules=rules, submit_for_users=["*"])
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        await answered(here, request_id, "counts (1 of 2)" if accepted else "needs Teleport 18.11")
        assert submitted(here) == ([(ALICE, "APPROVED")] if accepted else [])
        for _, submission in here.auth.submissions:
            assert (submission.submitted_by, submission.on_behalf) == ("access-plugin", True)


# -- what Teleport says to it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "details", "reason", "sentence"),
    [
        (
            "ALREADY_EXISTS",
            'user "alice@example.com" has already reviewed this request',
            "duplicate",
            "already reviewed",
        ),
        ("PERMISSION_DENIED", "the access request has been already approved", "resolved", "already resolved"),
        ("PERMISSION_DENIED", 'user "alice@example.com" cannot review request', "not_allowed", "cannot review request"),
        ("PERMISSION_DENIED", "admin-level API request requires MFA verification", "mfa_required", "security key"),
        ("UNAUTHENTICATED", "expired certificate", "credential", "does not accept"),
    ],
)
async def test_each_refusal_of_teleport_has_its_sentence(
    tmp_path: Path, code: str, details: str, reason: str, sentence: str
) -> None:
    """And its label; nothing is tried twice."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode[code], details)
        here.chat.react(here.alice, card, APPROVE)
        await answered(here, request_id, sentence)
        await here.lines.heard("decision.refused", reason=reason, user_id=here.alice.id)
        await here.released(request_id)
        assert here.auth.calls["SubmitAccessReview"] == 1


async def test_a_reviewer_without_usable_credentials_is_told(tmp_path: Path) -> None:
    """A removed file ends that identity at once; the other one goes on."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        (tmp_path / "reviewers" / f"{ALICE}.crt").unlink()
        here.chat.react(here.alice, card, APPROVE)
        await answered(here, request_id, "there are no credentials for")
        await here.lines.heard("decision.refused", reason="credential")
        here.chat.react(here.ivan, card, DENY)
        await here.told([request_id], "DENIED")
        write_reviewers(here, ALICE)
        assert submitted(here) == [(IVAN, "DENIED")]


# -- at most once, and not never ---------------------------------------------------------------------------------------


async def test_a_review_whose_answer_was_lost_is_submitted_once(tmp_path: Path) -> None:
    """It is read back, and the reply that tells of it is the answer."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.auth.faults.lose_answer("SubmitAccessReview")
        here.chat.react(here.alice, card, APPROVE)
        await answered(here, request_id, "@alice Your approval")
        await here.released(request_id)
        assert submitted(here) == [(ALICE, "APPROVED")]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_answer_whose_post_was_cut_is_given_once(tmp_path: Path, when: str) -> None:
    """Whether Mattermost had stored it or not."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.chat.cut(when=when, method="POST", path="/api/v4/posts", where=lambda one: b"counts" in one.body)  # type: ignore[arg-type]
        here.chat.react(here.alice, card, APPROVE)
        await answered(here, request_id, "counts (1 of 2)")
        await here.released(request_id)
        assert len(here.replies(card)) == 1
        assert submitted(here) == [(ALICE, "APPROVED")]


@pytest.mark.parametrize("moment", ["submitted", "answered"])
async def test_a_kill_between_submitting_and_recording(here: World, moment: str) -> None:
    """The next process finds the review in Teleport, and the answer in the thread where there is one."""
    settings = here.settings(**linked(here), teleport__lease="1s")
    with process(settings):
        await listening_process(here)
        request_id, card = await ask(here)
        if moment == "submitted":
            here.auth.faults.delay("SubmitAccessReview", 60.0, executed=True)
        else:
            # The record is taken, and then no longer written.
            here.auth.faults.delay("UpdatePluginData", 0.0)
            here.auth.faults.delay("UpdatePluginData", 60.0)
        here.chat.react(here.alice, card, APPROVE)
        if moment == "submitted":
            await here.recorded(lambda: bool(here.auth.request(request_id).reviews))  # type: ignore[union-attr]
        else:
            await answered(here, request_id, "counts (")
    here.auth.faults.clear()
    with process(settings):
        await answered(here, request_id, "@alice")
        record = await here.released(request_id)
    assert [entry[4] for entry in decode(record["tm"]).dec] == ["on_record"]  # type: ignore[union-attr]
    assert submitted(here) == [(ALICE, "APPROVED")]
    assert sum("@alice" in text for text in here.replies(card)) == 1


async def listening_process(here: World) -> None:
    await here.watched()
    await here.chat.wait_for(lambda: here.chat.hub.sockets_of(here.bot.id))


async def test_two_replicas_submit_and_answer_once(here: World) -> None:
    """Both hear of everything at the same moment."""
    config = here.config(**linked(here))
    async with running(config, times=LISTENING), running(config, times=LISTENING):
        await listening(here, 2)
        request_id, card = await ask(here)
        here.chat.react(here.alice, card, APPROVE)
        here.chat.post(here.ivan, here.channel, "approve because both of us", root_id=card.id)
        await says(here, here.alice, f"approve {request_id}")
        await here.told([request_id], "APPROVED")
        await here.released(request_id)
        assert sorted(Counter(submitted(here)).items()) == [((ALICE, "APPROVED"), 1), ((IVAN, "APPROVED"), 1)]
        for name in ("alice", "ivan"):
            assert sum(f"@{name}" in text for text in here.replies(card)) == 1
        assert len(tells(here, here.alice)) == 1


@pytest.mark.parametrize("chat_version", ["5.37.0", "11.0.0"])
@pytest.mark.parametrize("way", ["reaction", "reply", "direct"])
async def test_a_lost_event_is_found_by_the_sweep(tmp_path: Path, way: str, chat_version: str) -> None:
    """Whatever the websocket did not say is derived from REST alone."""
    async with deciding(tmp_path, times=SWEEPING, chat_version=chat_version) as here:
        request_id, card = await ask(here)
        here.chat.hub.lose = 1
        if way == "reaction":
            here.chat.react(here.alice, card, APPROVE)
        elif way == "reply":
            here.chat.post(here.alice, here.channel, "approve", root_id=card.id)
        else:
            direct = here.chat.open_direct(here.alice, here.bot)
            here.chat.hub.lose = 1
            here.chat.post(here.alice, direct, f"approve {request_id}")
            # Nobody can tell it from an import: it must be said again.
            await refused(here, "unheard", here.alice)
            await here.chat.wait_for(lambda: any("say it again" in one.message for one in tells(here, here.alice)))
            here.chat.post(here.alice, direct, f"approve {request_id}")
        await here.lines.heard("decision.taken", way=way)
        assert submitted(here) == [(ALICE, "APPROVED")]


async def test_what_was_decided_while_nobody_listened_is_found_behind_much_talk(here: World) -> None:
    """The first sweep reads as far back as the oldest open card, and a direct channel with a card in it, too."""
    recipients = '["ops/access-requests", "@alice"]'
    config = here.config(**linked(here, mattermost__recipients=recipients))
    async with running(config, times=LISTENING):
        await listening(here)
        request_id, card = await ask(here)
        other_id, _ = await ask(here)
        await here.chat.wait_for(lambda: len(tells(here, here.alice)) == 2)
        await here.released(other_id)
    here.chat.post(here.ivan, here.channel, "deny because of the talk below", root_id=card.id)
    direct = here.chat.open_direct(here.alice, here.bot)
    here.chat.post(here.alice, direct, f"approve {other_id}")
    for number in range(450):
        here.chat.post(here.bob, here.channel, f"talk {number}")
    async with running(config, times=LISTENING):
        await here.told([request_id], "DENIED")
        await here.lines.heard("decision.refused", way="direct", request_id=other_id, reason="unheard")
    assert submitted(here) == [(IVAN, "DENIED")]


async def test_one_reviewer_whom_teleport_does_not_answer_holds_up_nobody(tmp_path: Path) -> None:
    """Ivan's denial decides although Alice's connection fails each time."""
    async with deciding(tmp_path) as here:
        request_id, card = await ask(here)
        here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode.UNAVAILABLE, "away")
        here.chat.react(here.alice, card, APPROVE).update_at -= 5  # surely the first to be judged
        here.chat.react(here.ivan, card, DENY)
        await here.told([request_id], "DENIED")
        await here.lines.heard("decision.refused", reason="resolved", user_id=here.alice.id)
        assert submitted(here) == [(IVAN, "DENIED")]


# -- what it costs -----------------------------------------------------------------------------------------------------


async def test_a_reaction_costs_one_read_and_two_calls_in_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reactions, thread, person and requester at once; the record and the request at once; then the review."""
    round_trip = 0.05
    async with deciding(tmp_path) as here:
        for _ in range(2):  # warm: connections, recipients, the reviewers' own channels
            request_id, card = await ask(here)
            for person in (here.alice, here.ivan):
                here.chat.react(person, card, APPROVE)
            await here.told([request_id], "APPROVED")
            await here.released(request_id)
        cards = [(await ask(here)) for _ in range(8)]
        await here.chat.wait_for(lambda: all(len(card.reactions) == 2 for _, card in cards))
        here.chat.latency = here.auth.faults.latency = round_trip
        times = []
        for request_id, card in cards:
            rest, calls = here.chat.calls.copy(), here.auth.calls.copy()
            number = len(here.auth.submissions)
            started = trio.current_time()
            here.chat.react(here.alice, card, APPROVE)
            await here.recorded(lambda number=number: len(here.auth.submissions) > number)  # type: ignore[misc]
            times.append(trio.current_time() - started)
            spent = {path.removeprefix("/api/v4"): n for (_, path), n in (here.chat.calls - rest).items()}
            # What follows the review (answers, the card) may have begun by now.
            reads = {path: spent.get(path, 0) for path in spent if path != "/posts" and "patch" not in path}
            assert reads == {
                "/posts/ids/reactions": 1,
                "/posts/{post_id}/thread": 1,
                "/users/{user_id}": 1,
                "/users/email/{email}": 1,
            }
            made = here.auth.calls - calls
            assert made["GetAccessRequests"] <= 2
            assert made["SubmitAccessReview"] == 1
            await here.released(request_id)
            await answered(here, request_id, "counts (")
            await here.released(request_id)
    # The event takes half a round trip to us, the review half of one to Teleport.
    with capsys.disabled():
        median = statistics.median(times) / round_trip
        print(f"\nreaction to submitted review: p50 {median:.2f} round trips of {round_trip * 1000:.0f} ms")
