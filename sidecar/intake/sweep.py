"""What the websocket may have missed, found by reading: reactions on open cards, replies, direct messages.

Runs after each connect and then each minute, slowly, so that a decision is found whatever happened to its event. It
only says where to look; what stands there is read again by the worker.

Rule: a step is one call. Channels take turns, and what cannot be read costs itself alone and is asked for rarely.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeAlias

import trio

from sidecar.decisions.seen import Context
from sidecar.errors import LinkError, PostRejected, SidecarError, UnreadableAnswer
from sidecar.intake.stretch import Stretch
from sidecar.times import doubled

if TYPE_CHECKING:
    from sidecar.decisions.expressions import Rules
    from sidecar.mattermost.client import MattermostClient
    from sidecar.metrics import Metrics
    from sidecar.model import Post
    from sidecar.reconcile.heard import Heard
    from sidecar.text.fields import TextOptions
    from sidecar.times import Times

log = logging.getLogger(__name__)

REACTIONS_AT_ONCE = 100
# Posts of one moment may become visible one after the other.
OVERLAP_MS = 10_000
# Direct messages that are taken before another channel has its turn.
COMMANDS_AT_ONCE = 10
# Cards that could not be read, of which each sweep tries so many again.
CARDS_APART = 10
# Teleport 16 and newer keep a request pending for 7 days at most; a day more for clocks.
LONGEST_PENDING_SECONDS = 8 * 86400
# Where nobody decides, only fresh questions are worth a look back.
QUESTION_SECONDS = 60


class _Step(NamedTuple):
    """One call, about `subject`, which is put off where it fails; it returns the steps that follow from it."""

    subject: str
    take: Callable[[], Awaitable[Sequence[_Step]]]
    # Whether a page of posts is read, for which reactions do not wait, nor it for them.
    page: bool = False


_Steps: TypeAlias = Sequence[_Step]


class Sweeper:
    """`take` takes a post of a direct channel that may be a command, and what was read around it.

    `linked` says of a user's id whether anything may come of what that person says. `known` returns once the cards are
    known; `suspect` is called where the link may be at fault.
    """

    def __init__(  # noqa: PLR0913 - what every look needs
        self,
        reading: MattermostClient,
        followed: Heard,
        rules: Rules,
        take: Callable[[Post, list[Post]], Awaitable[None]],
        metrics: Metrics,
        *,
        options: Callable[[], TextOptions],
        linked: Callable[[str], bool],
        known: Callable[[], Awaitable[None]],
        suspect: Callable[[], None],
        times: Times,
    ) -> None:
        self._reading = reading
        self._followed = followed
        self.rules = rules
        self._take = take
        self._metrics = metrics
        self._options = options
        self._linked = linked
        followed.swept = "reply" in rules.ways
        self._known = known
        self._suspect = suspect
        self._times = times
        # card post -> channel, the other way round, and the direct channels; as of the last plan
        self._cards: dict[str, str] = {}
        self._in_channel: dict[str, set[str]] = {}
        self._direct: set[str] = set()
        # linked user -> direct channel, where Mattermost lists none
        self._opened: dict[str, str] = {}
        # card post -> what stood on it at the last look
        self._reactions: dict[str, int] = {}
        # channel -> up to when its posts were read; and the cards that were met on the way
        self._read_until: dict[str, int] = {}
        self._met: set[str] = set()
        # Channels where the last look found news, and more may have become visible since.
        self._lively: set[str] = set()
        # What could not be read -> how often in a row, and when to try again (trio's clock).
        self._off: dict[str, tuple[int, float]] = {}

    async def run(self) -> NoReturn:
        """Sweep as soon as there is something to sweep, then again and again."""
        await self._known()
        # What failed because the link did is due again.
        self._off.clear()
        while True:
            await self.sweep()
            await trio.sleep(self._times.sweep_every)

    async def sweep(self) -> None:
        """Look everywhere once. Nothing that goes wrong in it ends it."""
        queues = deque([_Step("", self._plan)]), deque[_Step]()
        while any(queues):
            for queue in filter(None, queues):
                for step in await self._taken(queue.popleft()):
                    # At the end: whoever has much to be read waits for the others after each page.
                    queues[step.page].append(step)
                await trio.sleep(self._times.sweep_pace)

    async def _taken(self, step: _Step) -> _Steps:
        try:
            return await step.take()
        except SidecarError as exc:
            log.debug("sweep.put_off", extra={"subject": step.subject, "detail": str(exc)})
            self._put_off(step.subject)
            self._doubt(exc)
        except Exception:
            log.exception("sweep.bug", extra={"subject": step.subject})
            self._metrics.events_total.labels("mattermost", "bug").inc()
            self._put_off(step.subject)
        return []

    # -- what to look at ---------------------------------------------------------------------------------------------

    async def _plan(self) -> _Steps:
        """One call for all channels: most have nothing new, and need none of their own."""
        self._cards = cards = self._followed.open_cards()
        in_channel: defaultdict[str, set[str]] = defaultdict(set)
        for card, channel_id in cards.items():
            in_channel[channel_id].add(card)
        self._in_channel = in_channel
        last = await self._last_posts()
        replies = in_channel.keys() if "reply" in self.rules.ways else set()
        places = dict.fromkeys((*replies, *self._direct))
        self._met &= cards.keys()
        self._lively &= places.keys()
        self._read_until = {one: at for one, at in self._read_until.items() if one in places}
        known = (cards, in_channel, places)
        self._off = {one: off for one, off in self._off.items() if any(one.removeprefix("+") in some for some in known)}
        steps = self._plan_reactions() if "reaction" in self.rules.ways else []
        back = LONGEST_PENDING_SECONDS if self.rules.mode != "none" else QUESTION_SECONDS
        oldest = (time.time() - back) * 1000
        for one in filter(self._due, places):
            news = in_channel[one] - self._met if one in replies else set()
            seen = self._read_until.get(one, oldest)
            # A channel that is not listed, such as one that we were removed from, cannot tell.
            if news or one in self._lively or last.get(one, math.inf if one in replies else 0) > seen:
                # Where there was no look before: as far back as the cards stand, in direct channels further.
                until = seen if one in self._read_until or one in self._direct else math.inf
                stretch = Stretch(one, until - OVERLAP_MS, news, direct=one in self._direct)
                steps.append(_Step(one, partial(self._read, stretch), page=True))
        return steps

    async def _last_posts(self) -> dict[str, int]:
        """When something was last posted, by channel; {} where that cannot be had, and all else goes on."""
        try:
            channels = list(await self._reading.my_channels())
            wanted = not channels and "direct" in self.rules.ways
            opened = await self._open_direct() if wanted else {}
        except SidecarError as exc:
            # Such as a bot that is in no channel yet, or one that is in too many.
            log.debug("sweep.put_off", extra={"subject": "channels", "detail": str(exc)})
            self._doubt(exc)
            return {}
        direct = {one.id for one in channels if one.type == "D" and any(map(self._linked, one.name.split("__")))}
        self._direct = {*direct, *opened} if "direct" in self.rules.ways else set()
        return opened or {one.id: one.last_post_at for one in channels}

    async def _open_direct(self) -> dict[str, int]:
        """A bot on no team of a 5.x is told of no channel: those of linked people are opened, to nobody's notice."""
        for user_id in self.rules.linked.keys() - self._opened.keys():
            self._opened[user_id] = await self._reading.direct_channel(user_id, self._bot_id)
            await trio.sleep(self._times.sweep_pace)
        # When something was posted there is not told either.
        return dict.fromkeys(self._opened.values(), 2**53)

    @property
    def _bot_id(self) -> str:
        return self._reading.bot.id if self._reading.bot is not None else ""

    def _doubt(self, exc: SidecarError) -> None:
        if isinstance(exc, LinkError) and not isinstance(exc, UnreadableAnswer):
            self._suspect()

    def _due(self, subject: str) -> bool:
        return trio.current_time() >= self._off.get(subject, (0, -math.inf))[1]

    def _put_off(self, subject: str) -> None:
        failures, _ = self._off.get(subject, (0, 0.0))
        wait = doubled(self._times.retry_first, self._times.retry_most, failures)
        self._off[subject] = failures + 1, trio.current_time() + wait

    # -- reactions ---------------------------------------------------------------------------------------------------

    def _plan_reactions(self) -> list[_Step]:
        """Many cards in one call; those of one channel together, for mostly a channel cannot be read as a whole."""
        self._reactions = {post: known for post, known in self._reactions.items() if post in self._cards}
        posts = [
            post
            for channel_id, cards in self._in_channel.items()
            if self._due(f"+{channel_id}")
            for post in cards
            if post not in self._off
        ]
        batches = [posts[start : start + REACTIONS_AT_ONCE] for start in range(0, len(posts), REACTIONS_AT_ONCE)]
        apart = [[post] for post in self._off if post in self._cards and self._due(post)]
        return [self._look_at(batch) for batch in (*batches, *apart[:CARDS_APART])]

    def _look_at(self, posts: list[str]) -> _Step:
        return _Step(posts[0] if len(posts) == 1 else "", partial(self._read_reactions, posts))

    async def _read_reactions(self, posts: list[str]) -> _Steps:
        """From v11 on the whole call is refused for one card that cannot be read, and a page may be too large."""
        try:
            found = await self._reading.reactions_at_once(posts)
        except (PostRejected, UnreadableAnswer):
            if len(posts) == 1:
                raise
            return self._apart(posts)
        wanted = {*self.rules.approve, *self.rules.deny}
        bot_id = self._bot_id
        for post_id in posts:
            self._off.pop(post_id, None)
            self._off.pop(f"+{self._cards[post_id]}", None)
            relevant = frozenset(
                (one.user_id, one.emoji_name, one.update_at)
                for one in found.get(post_id, ())
                if one.emoji_name in wanted
                and one.user_id != bot_id
                and not one.delete_at
                and self._linked(one.user_id)
            )
            if relevant and self._reactions.get(post_id) != hash(relevant):
                self._reactions[post_id] = hash(relevant)
                self._followed.hear(post_id)
        return []

    def _apart(self, posts: list[str]) -> _Steps:
        """Each channel by itself; of one channel a single card first, which tells whether any can be read."""
        channels = list(dict.fromkeys(self._cards[post] for post in posts))
        if len(channels) > 1:
            first = set(channels[: len(channels) // 2])
            here = [post for post in posts if self._cards[post] in first]
            there = [post for post in posts if self._cards[post] not in first]
            return [self._look_at(here), self._look_at(there)]
        return [_Step(f"+{channels[0]}", partial(self._probe, posts))]

    async def _probe(self, posts: list[str]) -> _Steps:
        """Raises where the first card cannot be read: the channel is put off then, with all the others in it."""
        try:
            await self._read_reactions(posts[:1])
        except (PostRejected, UnreadableAnswer):
            # It may be this card alone: asked for by itself from now on.
            self._put_off(posts[0])
            raise
        rest = posts[1:]
        middle = (len(rest) + 1) // 2
        return [self._look_at(half) for half in (rest[:middle], rest[middle:]) if half]

    # -- posts -------------------------------------------------------------------------------------------------------

    async def _read(self, stretch: Stretch) -> _Steps:
        """Read one page of what others posted since the last look."""
        posts = await self._reading.channel_posts(stretch.channel_id, stretch.page)
        over = stretch.over(posts)
        self._followed.see(posts, Context(bot_id=self._bot_id, options=self._options()))
        self._hear(stretch, posts)
        if not over:
            if stretch.page < stretch.most:
                return [_Step(stretch.channel_id, partial(self._read, stretch), page=True)]
            for card in stretch.unmet:
                self._followed.hear(card)
        return await self._take_next(stretch)

    def _hear(self, stretch: Stretch, posts: list[Post]) -> None:
        """Look at the cards that were replied to; keep the direct messages, the oldest first."""
        bot_id = self._bot_id
        for post in posts:
            if post.user_id == bot_id:
                if stretch.direct and post.key:
                    stretch.ours.append(post)
            elif not self._linked(post.user_id):
                continue
            elif post.root_id in self._cards:
                if post.create_at >= stretch.until or post.root_id in stretch.cards:
                    self._followed.hear(post.root_id)
            elif stretch.direct and not post.root_id and not post.skipped and post.create_at >= stretch.until:
                stretch.commands.appendleft(post)

    async def _take_next(self, stretch: Stretch) -> _Steps:
        """Take a few direct messages; when all are taken, the channel is read up to here, what was skipped with it."""
        channel_id = stretch.channel_id
        for _ in range(min(COMMANDS_AT_ONCE, len(stretch.commands))):
            await self._take(stretch.commands.popleft(), stretch.ours)
        if stretch.commands:
            return [_Step(channel_id, partial(self._take_next, stretch), page=True)]
        before = self._read_until.get(channel_id)
        self._read_until[channel_id] = max(before or 0, stretch.newest)
        self._lively.discard(channel_id)
        if before is not None and stretch.newest > before:
            self._lively.add(channel_id)
        self._met |= stretch.cards
        if channel_id not in self._in_channel and stretch.skipped:
            # To read it is dear, post by post; the websocket tells of what is said there.
            self._put_off(channel_id)
        else:
            self._off.pop(channel_id, None)
        return []
