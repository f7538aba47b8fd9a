"""Order of versions, and what it takes before a request counts as gone."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST
from sidecar.teleport.pb import teleport_pb2 as pb
from tests.world import QUICK, World, running, world

LISTING = msgspec.structs.replace(QUICK, list_every=0.3, silent=0.1)


async def listed(here: World, times: int = 2) -> None:
    """Return after so many more full lists."""
    method = "GetAccessRequests" if here.auth.profile.major < 14 else "GetAccessRequestsV2"
    wanted = here.auth.calls[method] + times
    await here.recorded(lambda: here.auth.calls[method] >= wanted)


def put_event(here: World, request_id: str) -> bytes:
    """The watch's event for the request as it is now."""
    stored = here.auth.live(request_id)
    assert stored is not None
    request = pb.AccessRequestV3.FromString(here.auth.encoded(stored))
    return pb.Event(Type=pb.PUT, AccessRequest=request).SerializeToString()


async def test_a_stale_list_changes_nothing(tmp_path: Path) -> None:
    """Lists of newer servers come from a cache: older versions and missing requests in it prove nothing."""
    async with world(tmp_path, version="16.0.0-dev") as here:
        async with running(here.config(), times=LISTING):
            (known,) = here.ask()
            await here.told([known])
            await here.released(known)
            here.auth.freeze_list_cache()
            here.auth.set_state(known, "APPROVED")
            (unlisted,) = here.ask()
            await here.told([known], "APPROVED")
            await here.told([unlisted])
            await here.released(unlisted)
            await listed(here)
        async with running(here.config(), times=LISTING):
            await listed(here)
            await here.told([known], "APPROVED")
            await here.told([unlisted])
            here.auth.thaw_list_cache()
            await listed(here)
        await here.told([known], "APPROVED")
        await here.told([unlisted])
        assert len(here.replies(here.cards()[0])) == 1
        assert not here.lines.problems


async def test_replayed_events_of_the_past_change_nothing(here: World) -> None:
    """An older version that arrives late is recognised by its rank and its reviews."""
    async with running(here.config(), times=QUICK):
        (request_id,) = here.ask()
        past = [put_event(here, request_id)]
        await here.told([request_id])
        here.auth.review(request_id, "alice@example.com", "APPROVED", "fine")
        past.append(put_event(here, request_id))
        here.auth.review(request_id, "ivan@example.com", "DENIED", "no")
        await here.told([request_id], "DENIED")
        await here.released(request_id)
        for event in past:
            here.auth.inject(event)
        (last,) = here.ask()
        await here.told([last])
        await here.released(last)
        await here.told([request_id], "DENIED")
        assert len(here.replies(here.cards()[0])) == 2


async def test_an_approval_may_be_taken_back(here: World) -> None:
    """APPROVED -> DENIED is legal, and both are told; the way back is not, and would be older."""
    async with running(here.config(), times=QUICK):
        (request_id,) = here.ask()
        await here.told([request_id])
        here.auth.set_state(request_id, "APPROVED", "yes")
        await here.told([request_id], "APPROVED")
        here.auth.set_state(request_id, "DENIED", "no, after all")
        await here.told([request_id], "DENIED")
        await here.released(request_id)
        said = here.replies(here.cards()[0])
        assert [line.partition("\n")[0] for line in said] == [
            f"bob@example.com's request for dbadmin is now {state}." for state in ("APPROVED", "DENIED")
        ]


async def test_expiry_is_noticed_without_any_event(here: World) -> None:
    """Where the backend deletes late, the time that passed and an empty get by id are the proof."""
    async with running(here.config(), times=QUICK):
        here.auth.delete_lag = 3600.0
        (expires,) = here.ask(expires_in=1.2)
        (waits,) = here.ask()
        await here.told([expires, waits])
        await here.told([expires], "EXPIRED")
        await here.told([waits])


async def test_a_removal_that_no_event_told_is_found_by_a_list(here: World) -> None:
    """Absent from a list that held another request, and not found by id: removed."""
    async with running(here.config(), times=LISTING):
        removed, waits = here.ask(2)
        await here.told([removed, waits])
        await here.released(removed)
        here.auth.stall_watchers()
        here.auth.delete_request(removed)
        await here.told([removed], "REMOVED")
        await here.told([waits])


async def test_a_role_without_list_concludes_nothing_and_says_so_once(here: World) -> None:
    """The server hides requests instead of refusing: an empty list ends no card, and names the verb."""
    async with running(here.config(), times=LISTING):
        ids = here.ask(3)
        await here.told(ids)
        for request_id in ids:
            await here.released(request_id)
        here.auth.add_role("access-plugin", rules={REQUEST: ("read",), PLUGIN_DATA: ("list", "read", "update")})
        await listed(here, 4)
        await here.told(ids)
        (warning,) = here.lines.of("list.empty")
        assert 'verb "list"' in warning["detail"]
    # A cold start without the verb: neither the record nor the newest posts lead to a false end.
    async with running(here.config(), times=LISTING):
        await listed(here, 3)
    await here.told(ids)
    assert not here.lines.of("orphan.closed")
    assert here.lines.problems == ["list.empty", "list.empty"]


async def test_a_role_that_never_had_list_is_found_out_by_the_first_request(here: World) -> None:
    """Nothing is on record and the list is empty, as on a quiet day; then the watch tells of a request."""
    here.auth.add_role("access-plugin", rules={REQUEST: ("read",), PLUGIN_DATA: ("list", "read", "update")})
    async with running(here.config(), times=LISTING):
        await listed(here, 3)
        assert here.lines.problems == []
        await here.told(here.ask())
        warning = await here.lines.heard("list.empty")
        assert warning["levelname"] == "WARNING"
        assert warning["detail"] == (
            'Teleport lists no access request although some are open: does our role have the verb "list" on '
            '"access_request"?'
        )


async def test_an_empty_list_is_no_warning_where_nothing_should_be_in_it(here: World) -> None:
    """All that was followed has ended: silence."""
    async with running(here.config(), times=LISTING):
        here.auth.delete_lag = 3600.0
        (request_id,) = here.ask(expires_in=1.2)
        await here.told([request_id])
        await here.recorded(lambda: here.auth.request(request_id) is None or here.auth.live(request_id) is None)
        await here.told([request_id], "EXPIRED")
        await listed(here)
        assert not here.lines.problems


async def test_what_was_resolved_before_anybody_announced_it_is_told_to_nobody(here: World) -> None:
    """An automatic approval must not ping; unless the operator wants to hear of it, and then once."""
    (approved,) = here.ask()
    here.auth.set_state(approved, "APPROVED", "by a rule")
    async with running(here.config(), times=QUICK):
        (waits,) = here.ask()
        await here.told([waits])
        assert here.states().keys() == {waits}
    async with running(here.config(announce__resolved="true"), times=QUICK):
        await here.told([approved], "APPROVED")
        await here.released(approved)
    async with running(here.config(announce__resolved="true"), times=QUICK):
        await here.lines.heard("link.ready", 3, link="teleport")
    await here.told([approved], "APPROVED")
    assert [len(here.replies(card)) for card in here.cards()] == [0, 0]
