"""Reading what the websocket missed: how many calls, how far apart, what one bad channel costs. A clock that jumps."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter

import msgspec
import pytest
import trio
from trio.testing import MockClock

from sidecar.decisions.expressions import Rules
from sidecar.decisions.record import Record, Slot
from sidecar.decisions.routing import Routes
from sidecar.errors import LinkLost, PostRejected, UnreadableAnswer
from sidecar.intake.sweep import Sweeper
from sidecar.metrics import Metrics
from sidecar.model import AccessRequest, Post, Reaction, User
from sidecar.reconcile.followed import Followed
from sidecar.text.fields import TextOptions
from sidecar.times import USUAL

FORBIDDEN = PostRejected(403, "api.context.permissions.app_error")
TOO_LARGE = UnreadableAnswer("mattermost", "too_large", "4 MiB")
NOW = int(time.time() * 1000)


class Place(msgspec.Struct):
    """A channel, in the words of Mattermost's answer."""

    id: str
    type: str
    posts: list[Post] = []
    name: str = "alice__bot"

    @property
    def last_post_at(self) -> int:
        return max((post.create_at for post in self.posts), default=0)


class Chat:
    """Mattermost 11 in memory. `failing` holds how each channel or card fails, `calls` when each call was made."""

    bot: User | None = User("bot")

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self.reacted: dict[str, list[Reaction]] = {}
        self.failing: dict[str, Exception] = {}
        self.calls: list[tuple[float, str]] = []
        self.listed: list[Place] | None = None

    def place(self, name: str, kind: str = "O") -> Place:
        return self.places.setdefault(name, Place(name, kind))

    def say(self, channel: str, user: str, **changes: object) -> Post:
        post = Post(f"{channel}-{len(self.place(channel).posts)}", channel, user, NOW + len(self.place(channel).posts))
        self.places[channel].posts.insert(0, msgspec.structs.replace(post, **changes))
        return self.places[channel].posts[0]

    def made(self) -> Counter[str]:
        """What was called since the last time."""
        made = Counter(what for _, what in self.calls)
        self.calls.clear()
        return made

    async def _call(self, what: str, *subjects: str) -> None:
        self.calls.append((trio.current_time(), what))
        await trio.lowlevel.checkpoint()
        for one in subjects:
            if one in self.failing:
                raise self.failing[one]

    async def reactions_at_once(self, post_ids: list[str]) -> dict[str, list[Reaction]]:
        assert len(post_ids) <= 100
        await self._call("reactions", *post_ids, *(post.rpartition("-")[0] for post in post_ids))
        return {post: self.reacted[post] for post in post_ids if post in self.reacted}

    async def channel_posts(self, channel_id: str, page: int = 0, per_page: int = 200) -> list[Post]:
        await self._call(f"posts {channel_id}", f"posts of {channel_id}")
        return self.places[channel_id].posts[page * per_page : (page + 1) * per_page]

    async def my_channels(self) -> list[Place]:
        await self._call("channels", "channels")
        return list(self.places.values()) if self.listed is None else self.listed

    async def direct_channel(self, user_id: str, _: str) -> str:
        await self._call(f"open {user_id}", user_id)
        return f"direct {user_id}"


class World:
    """A sweeper over `chat`; `taken` are the direct messages it took, `heard` the cards it pointed at."""

    def __init__(self) -> None:
        self.chat = Chat()
        self.followed = Followed(Routes(roles={}))
        self.metrics = Metrics()
        self.taken: list[str] = []
        self.suspicions = 0
        self.sweeper = Sweeper(
            self.chat,  # type: ignore[arg-type]
            self.followed.heard,
            Rules(mode="reviewer", linked={"alice": "alice@example.com", "ivan": "ivan@example.com"}),
            self._take,
            self.metrics,
            options=TextOptions,
            linked=lambda user: user not in {"bot", "stranger"},
            known=trio.lowlevel.checkpoint,
            suspect=self._suspect,
            times=USUAL,
        )

    async def _take(self, post: Post, _: list[Post]) -> None:
        await trio.lowlevel.checkpoint()
        if post.message == "bug":
            raise ZeroDivisionError
        self.taken.append(post.id)

    def _suspect(self) -> None:
        self.suspicions += 1

    def card(self, *channels: str) -> list[str]:
        """Post a request's cards and follow it."""
        posts = [self.chat.say(channel, "bot") for channel in channels]
        request_id = f"request of {posts[0].id}"
        self.followed.look(AccessRequest(id=request_id, user="bob", state="PENDING"))
        entry = self.followed.get(request_id)
        assert entry is not None
        slots = tuple(Slot(post.channel_id, c=post.channel_id, p=post.id, s="posted") for post in posts)
        self.followed.heard.show_cards(entry, Record("seed", "", 0, 0, ("PENDING", 0), slots))
        entry.hinted = False
        return [post.id for post in posts]

    def react(self, card: str) -> None:
        self.chat.reacted[card] = [Reaction("alice", card, "white_check_mark", NOW)]

    def heard(self, card: str) -> bool:
        entry = self.followed.get(f"request of {card}")
        assert entry is not None
        return entry.hinted

    async def swept(self) -> Counter[str]:
        """Sweep once; the calls that it cost."""
        await self.sweeper.sweep()
        return self.chat.made()


@pytest.fixture
def here() -> World:
    return World()


async def test_calls_are_paced_and_their_number_grows_with_the_cards(autojump_clock: MockClock, here: World) -> None:
    for _ in range(250):
        here.card("ops")
    await here.sweeper.sweep()
    assert all(later - earlier >= USUAL.sweep_pace for (earlier, _), (later, _) in itertools.pairwise(here.chat.calls))
    assert here.chat.made() == {"channels": 1, "reactions": 3, "posts ops": 2}
    # Nothing is new: no channel needs a call of its own.
    assert await here.swept() == {"channels": 1, "reactions": 3}


async def test_a_channel_that_cannot_be_read_costs_little_and_is_asked_for_rarely(
    autojump_clock: MockClock, here: World
) -> None:
    cards = [here.card("ops", "dba")[0] for _ in range(200)]
    here.chat.failing = {"dba": FORBIDDEN, "posts of dba": FORBIDDEN}
    here.react(cards[7])
    first = await here.swept()
    assert first["reactions"] <= 8
    assert first["posts dba"] == 1
    assert here.heard(cards[7])
    assert await here.swept() == {"channels": 1, "reactions": 2}
    spent: Counter[str] = Counter()
    for _ in range(60):  # an hour
        await trio.sleep(55)
        spent += await here.swept()
    assert spent["posts dba"] <= 7
    assert spent["reactions"] <= 60 * 2 + 7 * 14
    here.chat.failing.clear()
    await trio.sleep(USUAL.retry_most)
    assert (await here.swept())["reactions"] >= 4


async def test_one_card_that_cannot_be_read_hides_no_other(autojump_clock: MockClock, here: World) -> None:
    """Such as one that somebody deleted."""
    cards = [card for _ in range(100) for card in here.card("ops")]
    here.chat.failing = {cards[40]: FORBIDDEN}
    for card in cards:
        here.react(card)
    for _ in range(3):
        await here.swept()
        await trio.sleep(60)
    assert [card for card in cards if not here.heard(card)] == [cards[40]]
    assert (await here.swept())["reactions"] <= 2


@pytest.mark.parametrize("failure", [FORBIDDEN, TOO_LARGE, LinkLost("mattermost", "timeout", ""), ZeroDivisionError()])
async def test_what_fails_for_one_channel_ends_neither_the_sweep_nor_the_link(
    autojump_clock: MockClock, here: World, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    (card,) = here.card("ops")
    (other,) = here.card("dba")
    here.chat.say("ops", "alice", root_id=card)
    here.chat.say("dba", "alice", root_id=other)
    here.chat.failing = {"posts of ops": failure}
    await here.swept()
    assert here.heard(other)
    assert here.suspicions == isinstance(failure, LinkLost)
    bugs = [line for line in caplog.records if line.getMessage() == "sweep.bug"]
    assert len(bugs) == isinstance(failure, ZeroDivisionError)
    assert here.metrics.events_total.labels("mattermost", "bug")._value.get() == len(bugs)
    here.chat.failing.clear()
    await trio.sleep(61)
    await here.swept()
    assert here.heard(card)


@pytest.mark.parametrize("failure", [FORBIDDEN, TOO_LARGE, LinkLost("mattermost", "timeout", "")])
async def test_without_the_list_of_channels_cards_are_looked_at_all_the_same(
    autojump_clock: MockClock, here: World, failure: Exception
) -> None:
    (card,) = here.card("ops")
    (other,) = here.card("dba")
    here.react(card)
    here.chat.say("dba", "alice", root_id=other)
    here.chat.failing = {"channels": failure}
    await here.swept()
    assert here.heard(card)
    assert here.heard(other)


async def test_channels_take_turns(autojump_clock: MockClock, here: World) -> None:
    """Whoever writes two thousand direct messages makes others wait for a page, not for all of them."""
    for number in range(2000):
        here.chat.say("mallory", "mallory", message=f"approve {number}")
    here.chat.place("mallory").type = here.chat.place("alice", "D").type
    here.chat.say("alice", "alice", message="list")
    await here.swept()
    assert here.taken.index("alice-0") <= 10
    assert len(here.taken) == 2001


async def test_what_was_skipped_is_passed_and_read_again_rarely(autojump_clock: MockClock, here: World) -> None:
    """Ninety posts that cannot be read cost a call each where they are read."""
    here.chat.place("mallory", "D")
    for _ in range(90):
        here.chat.say("mallory", "mallory", skipped=True)
    assert (await here.swept())["posts mallory"] == 2
    assert "posts mallory" not in await here.swept()
    asked = 0
    for _ in range(60):
        await trio.sleep(60)
        here.chat.say("mallory", "mallory", message="help")
        asked += (await here.swept())["posts mallory"]
    assert asked <= 2 * 7
    assert here.taken


async def test_a_post_that_became_visible_late_is_found(autojump_clock: MockClock, here: World) -> None:
    """Posts of one moment are stored one after the other; the channel's time stands still by then."""
    (card,) = here.card("ops")
    await here.swept()
    here.chat.say("ops", "bob")
    await here.swept()
    late = msgspec.structs.replace(here.chat.places["ops"].posts[0], id="late", user_id="alice", root_id=card)
    here.chat.places["ops"].posts.insert(1, late)
    await here.swept()
    assert here.heard(card)


async def test_a_bug_over_one_message_leaves_the_other_channels(
    autojump_clock: MockClock, here: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    here.chat.place("mallory", "D")
    here.chat.place("alice", "D")
    here.chat.say("mallory", "mallory", message="bug")
    here.chat.say("alice", "alice", message="list")
    await here.swept()
    assert here.taken == ["alice-0"]
    assert [line.getMessage() for line in caplog.records] == ["sweep.bug"]


@pytest.mark.parametrize("requests", [100, 1000, 6000])
async def test_the_first_look_at_many_cards_costs_two_calls_for_a_hundred(
    autojump_clock: MockClock, here: World, requests: int
) -> None:
    """In one channel; the page that one look starts with, and the list of channels, come once."""
    cards = [card for _ in range(requests) for card in here.card("ops")]
    here.chat.say("ops", "alice", root_id=cards[7])
    made = await here.swept()
    assert sum(made.values()) <= 2 + 2 * requests / 100
    assert [card for card in cards if here.heard(card)] == [cards[7]]
    assert sum((await here.swept()).values()) <= 2 + requests / 100


async def test_what_strangers_say_is_not_even_read(autojump_clock: MockClock, here: World) -> None:
    """The sweep answers nobody without a link."""
    (card,) = here.card("ops")
    here.chat.say("hers", "stranger", message="help")
    here.chat.place("hers").type, here.chat.place("hers").name = "D", "bot__stranger"
    await here.swept()
    for n in range(5):
        here.chat.say("ops", "stranger", root_id=card)
        here.chat.reacted[card] = [Reaction("stranger", card, "white_check_mark", NOW + n)]
        assert (await here.swept()).keys() == {"channels", "reactions", "posts ops"}
    assert (here.heard(card), here.taken) == (False, [])
    here.chat.say("ops", "alice", root_id=card)
    await here.swept()
    assert here.heard(card)


async def test_a_bot_on_no_team_finds_direct_messages_all_the_same(autojump_clock: MockClock, here: World) -> None:
    """5.x lists channels team by team: such a bot is told of none."""
    for user in ("alice", "ivan"):
        here.chat.say(f"direct {user}", user, message="approve it")
    here.chat.listed = []
    made = await here.swept()
    assert (made["open alice"], made["open ivan"]) == (1, 1)
    assert sorted(here.taken) == ["direct alice-0", "direct ivan-0"]
    assert not {"open alice", "open ivan"} & (await here.swept()).keys()
