"""How far back a channel is read for posts of ours, and what is read again of what was said."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from sidecar.decisions.actions import Place
from sidecar.decisions.expressions import Expression, Person
from sidecar.decisions.record import Record, Stored
from sidecar.decisions.seen import Context, Evidence, Look, Memory, Seen, Unknown
from sidecar.metrics import Metrics
from sidecar.model import Post
from sidecar.reconcile.observe import MAX_PAGES, PAGE, Observer

# The claim was made at this second of our clock.
CLAIMED = 100_000
OPS = Place("ops")


class Channel:
    """A channel of posts by anybody, newest first."""

    def __init__(self, clock_offset: float = 0.0) -> None:
        self.clock_offset = clock_offset
        self.posts: list[Post] = []
        self.reads = 0

    def put(self, at: float, user_id: str = "eve", count: int = 1) -> None:
        made = [Post(f"post{len(self.posts) + n}", "ops", user_id, create_at=int(at * 1000)) for n in range(count)]
        self.posts[:0] = made

    async def get_post(self, post_id: str) -> Post | None:
        await trio.lowlevel.checkpoint()
        return next((post for post in self.posts if post.id == post_id), None)

    async def channel_posts(self, channel_id: str, page: int = 0, per_page: int = PAGE) -> list[Post]:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        return self.posts[page * per_page : (page + 1) * per_page]


class Colleagues:
    """Nobody is linked, and the requester has no account."""

    async def judge(self, user_id: str) -> Person:
        await trio.lowlevel.checkpoint()
        return Person(user_id)

    async def find_requester(self, _: str) -> str:
        await trio.lowlevel.checkpoint()
        return ""


def observer(channel: Channel) -> Observer:
    nothing: Any = None
    return Observer(nothing, channel, nothing, Colleagues(), Metrics())  # type: ignore[arg-type]


async def read(observer: Observer, off: int | None = 0) -> Seen:
    record = Record(seed="s", owner="me", at=CLAIMED, exp=CLAIMED, seen=("PENDING", 0), posts=(), off=off)
    seen = Seen(stored=Stored(record, "x"))
    return await observer.look(Look(places=frozenset({OPS})), seen, Memory(), Context(bot_id="bot"))


@pytest.mark.parametrize("flaw", ["", "unheard"])
async def test_a_direct_message_stays_as_it_was_heard_or_not(flaw: str) -> None:
    """It is read again; that alone is no proof that its author wrote it just now."""
    channel = Channel()
    channel.posts = [Post("dm1", "dm", "a", create_at=5, message="approve abcd1234")]
    said = Expression(user_id="a", verb="approve", way="direct", post_id="dm1", at=5, channel_id="dm", flaw=flaw)
    record = Record(seed="s", owner="me", at=CLAIMED, exp=CLAIMED, seen=("PENDING", 0), posts=())
    one = observer(channel)
    for message, edit_at, left in (("approve abcd1234", 0, (said,)), ("approve abcd1234", 9, ()), ("hello", 0, ())):
        channel.posts[0] = msgspec.structs.replace(channel.posts[0], message=message, edit_at=edit_at)
        look = Look(evidence=True)
        seen = await one.look(look, Seen(stored=Stored(record, "x")), Memory(direct=(said,)), Context(bot_id="bot"))
        assert isinstance(seen.evidence, Evidence)
        assert seen.evidence.standing == left


@pytest.mark.parametrize(
    ("off", "offset", "before", "reads", "found"),
    [
        # Ten minutes before the claim, whatever the clock of who reads.
        (0, 0.0, 3600, 1, 1),
        (0, 7200.0, 3600, 1, 1),
        (0, 0.0, 300, 6, 2),
        # The clock of who claimed it was an hour ahead of Mattermost's.
        (-3600, 0.0, 3600, 6, 2),
        # The version before did not say: an hour, and by the clock that is further back.
        (None, 0.0, 3500, 6, 2),
        (None, 7200.0, 3500, 6, 2),
        (None, -3600.0, 7100, 6, 2),
        (None, 0.0, 3700, 1, 1),
    ],
)
async def test_a_look_up_reads_back_to_the_claim_and_no_further(
    off: int | None, offset: float, before: int, reads: int, found: int
) -> None:
    channel = Channel(offset)
    channel.put(CLAIMED - before, "bot")
    channel.put(CLAIMED - before, count=5 * PAGE)
    channel.put(CLAIMED + min(off or 0, 0), "bot")
    began = trio.current_time()
    seen = await read(observer(channel), off)
    assert began <= seen.read_at[OPS] <= trio.current_time()
    posts = seen.posts[OPS]
    assert not isinstance(posts, Unknown)
    assert (channel.reads, len(posts), seen.error) == (reads, found, None)


async def test_a_busy_channel_proves_nothing_until_the_next_look_has_gone_on() -> None:
    """It costs time, never the announcement."""
    channel = Channel()
    channel.put(CLAIMED, "bot")
    channel.put(CLAIMED + 1, count=PAGE * MAX_PAGES)
    one = observer(channel)
    seen = await read(one)
    assert isinstance(seen.posts[OPS], Unknown)
    assert seen.error is not None
    assert channel.reads == MAX_PAGES
    seen = await read(one)
    assert seen.posts[OPS] == (channel.posts[-1],)
    assert channel.reads == MAX_PAGES + 2
