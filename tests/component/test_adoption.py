"""Coming from the official plugin, going back to it, and meeting a newer sidecar's records."""

from __future__ import annotations

import json

from tests.world import QUICK, World, field, running


async def test_cards_of_the_official_plugin_are_taken_over(here: World) -> None:
    """No second card: its own post becomes ours, and follows the request from now on."""
    (request_id,) = here.ask()
    post = here.chat.post(here.bot, here.channel, f"You have a new Role Request: {request_id}")
    fields = {"user": "bob@example.com", "roles": "dbadmin", "messages": f"{here.channel.id}/{post.id}"}
    here.auth.write_plugin_data(request_id, fields)
    async with running(here.config(), times=QUICK):
        await here.chat.wait_for(lambda: "attachments" in post.props)
        here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
        here.auth.review(request_id, "ivan@example.com", "DENIED", "no")
        await here.told([request_id], "DENIED")
        data = await here.released(request_id)
    assert here.cards() == [post]
    assert post.message.endswith(f"asks for `dbadmin`\nAccess request {request_id}")
    assert len(here.replies(post)) == 2
    assert data["messages"] == fields["messages"]
    assert (data["resolution"], data["reviews_count"]) == ("DENIED", "2")


async def test_a_claim_of_the_official_plugin_without_messages(here: World) -> None:
    """It died between its claim and its record: what it posted is found by the request id, else it is posted now."""
    posted, unposted = here.ask(2)
    theirs = here.chat.post(here.bot, here.channel, f"You have a new Role Request: {posted}")
    here.chat.post(here.alice, here.channel, f"what is {unposted}?")
    for request_id in (posted, unposted):
        here.auth.write_plugin_data(request_id, {"user": "bob@example.com", "roles": "dbadmin"})
    async with running(here.config(), times=QUICK):
        await here.chat.wait_for(lambda: "attachments" in theirs.props and len(here.cards()) == 2)
        await here.told([posted, unposted])
        await here.released(posted)
        await here.released(unposted)
    assert here.cards()[0] == theirs


async def test_the_official_plugin_could_go_on_from_what_we_leave(here: World) -> None:
    """Its own keys stand beside ours, as it writes them."""
    async with running(here.config(), times=QUICK):
        (request_id,) = here.ask(reason="fix it")
        await here.told([request_id])
        data = await here.released(request_id)
        del data["tm"]
        assert data == {
            "user": "bob@example.com",
            "roles": "dbadmin",
            "request_reason": "fix it",
            "messages": f"{here.channel.id}/{here.cards()[0].id}",
        }
        here.auth.review(request_id, "alice@example.com", "APPROVED")
        here.auth.review(request_id, "ivan@example.com", "APPROVED", "go")
        await here.told([request_id], "APPROVED")
        data = await here.released(request_id)
        assert (data["reviews_count"], data["resolution"], data["resolve_reason"]) == ("2", "APPROVED", "go")


async def test_a_newer_sidecars_record_is_left_alone(here: World) -> None:
    """Never overwritten, whatever happens to the request; said once for each run; the others go on."""
    newer = json.dumps({"v": 2, "n": 1, "posts": {}})
    (theirs,) = here.ask()
    here.auth.write_plugin_data(theirs, {"tm": newer, "messages": "a/b"})
    async with running(here.config(), times=QUICK) as sidecar:
        (ours,) = here.ask()
        await here.told([ours])
        here.auth.review(theirs, "alice@example.com", "APPROVED")
        here.auth.set_state(theirs, "DENIED")
        here.auth.set_state(ours, "DENIED")
        await here.told([ours], "DENIED")
        await here.lines.heard("record.untouchable")
        here.auth.delete_request(theirs)
        here.auth.delete_request(ours)
        await here.recorded(lambda: '"done":true' in here.auth.plugin_data(ours)["tm"])
        while True:
            if not (await sidecar.metrics())["open_requests"]:
                break
        (warning,) = here.lines.of("record.untouchable")
        assert "newer sidecar" in warning["detail"]
    assert here.auth.plugin_data(theirs) == {"tm": newer, "messages": "a/b"}
    assert here.states().keys() == {ours}


async def test_a_damaged_record_is_left_alone(here: World) -> None:
    """What cannot be read may be anybody's."""
    (theirs,) = here.ask()
    here.auth.write_plugin_data(theirs, {"tm": '{"v":1,"posts":[['})
    async with running(here.config(), times=QUICK):
        (ours,) = here.ask()
        await here.told([ours])
        await here.lines.heard("record.untouchable", request_id=theirs)
    assert here.auth.plugin_data(theirs) == {"tm": '{"v":1,"posts":[['}
    assert field(here.cards()[0], "State").endswith("PENDING")
