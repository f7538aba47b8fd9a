"""Direct messages to the bot: `list`, `show`, `help`, and decisions with an id.

Only people who pass the identity checks are answered, and only about requests whose card they can see. An id that does
not exist and one that they cannot see get the same words.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import trio

from sidecar.decisions.judge import express, find_flaw
from sidecar.errors import LinkError, LinkLost, PostRejected
from sidecar.intake.sight import Sight, remember
from sidecar.model import PENDING, Draft
from sidecar.reconcile.side_by_side import gather
from sidecar.text import card as text
from sidecar.text.command import (
    Ambiguous,
    Decision,
    Help,
    List,
    Malformed,
    NearMiss,
    NotACommand,
    Show,
    Unknown,
    match_id,
    parse_direct,
)
from sidecar.text.talk import NONE_OPEN, render_help, render_line
from sidecar.times import doubled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sidecar.decisions.judge import Person, Rules
    from sidecar.mattermost.client import MattermostClient
    from sidecar.model import AccessRequest, Post
    from sidecar.reconcile.heard import Heard
    from sidecar.text.card import TextOptions
    from sidecar.times import Times

log = logging.getLogger(__name__)

Command = Decision | List | Show | Help | Malformed | NearMiss

# Strangers, and words that only look like a decision about nothing in particular, are answered so seldom.
SELDOM_SECONDS = 3600.0
# Strangers' messages are read together.
PATIENCE_SECONDS = 2.0
# Questions asked shortly before the start are still answered; nobody waits for an answer to older ones.
QUESTION_SECONDS = 60.0
# A list names at most so many requests, the newest ones.
LISTED = 20
# How far back a visit to a channel reads; whoever writes more at once hears of the rest at the next sweep.
LOOK_BACK = 30
# Where the keys of direct channels lie in the queue, beside requests' ids.
KEY = "direct:"
# Somebody may have used our pending_post_id first; then we are given their post.
ATTEMPTS = 3

_UNKNOWN = "There is no open request with this id that you can see. `list` shows those that you can."
_AMBIGUOUS = "More than one request ends like this. Write more of the id."
_WHOLE = "On this Teleport an id may be used again, so please write the whole id. `list` shows it."
_STRANGER = "I only talk about access requests with people whom my operator has linked to Teleport."
_OFF = "Decisions by direct message are off."
_SNAPSHOT = "As it is now; this copy does not change, and nothing said on it decides."
# What an example names where its reader sees no request.
_EXAMPLE = "0193523a-2c9e-7d5c-9a3b-1f2e3d4c5b6a"


class Asked(NamedTuple):
    """What is asked of Teleport, and whether it answers: where it does not, what is not known may exist."""

    get_request: Callable[[str], Awaitable[AccessRequest | None]]
    answers: Callable[[], bool]


class Direct:
    """Answers direct messages. `secret` makes the keys of answers, equal in every replica and unknown to others."""

    def __init__(  # noqa: PLR0913 - what each message needs
        self,
        mattermost: MattermostClient,
        followed: Heard,
        teleport: Asked,
        find: Callable[[str], Awaitable[Person]],
        rules: Rules,
        options: Callable[[], TextOptions],
        *,
        bot_id: Callable[[], str],
        secret: Callable[[], str],
        url: Callable[[], str],
        times: Times,
    ) -> None:
        self._mattermost = mattermost
        self._followed = followed
        self._teleport = teleport
        self._find = find
        self.rules = rules
        self._options = options
        self._bot_id = bot_id
        self._secret = secret
        self._url = url
        self._times = times
        self._sight = Sight(mattermost, bot_id)
        self._started = time.time()
        # Posts of which the websocket told: an import by an administrator makes others, dated at will.
        self._live: OrderedDict[str, None] = OrderedDict()
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._taken: OrderedDict[str, None] = OrderedDict()
        # Whom nothing but a hint may be told again, and when (trio's clock).
        self._seldom: OrderedDict[str, float] = OrderedDict()

    def hint(self, channel_id: str, post_id: str, *, stranger: str = "") -> None:
        """Somebody posts outside a thread right now: the channel is read, if it is ours.

        A `stranger` by this id waits, and nothing is read for one who was answered within the hour.
        """
        if "direct" not in self.rules.ways or not self._sight.may_be_direct(channel_id):
            return
        if not stranger:
            remember(self._live, post_id, None)
            self._followed.queue.add(KEY + channel_id)
        elif trio.current_time() >= self._seldom.get(stranger, -math.inf):
            self._followed.queue.add_at(KEY + channel_id, trio.current_time() + PATIENCE_SECONDS)

    async def visit(self, key: str) -> None:
        """Answer what has no answer yet in a direct channel; what fails is tried again, less and less often."""
        channel_id = key.removeprefix(KEY)
        try:
            if await self._sight.pair(channel_id):
                posts = await self._mattermost.channel_posts(channel_id, 0, LOOK_BACK)
                for post in reversed(posts):
                    await self._take_once(post, posts)
        except LinkError as exc:
            self._postpone(key, exc)
        except PostRejected as exc:
            log.debug("direct.rejected", extra={"channel_id": channel_id, "status": exc.status})
        else:
            self._failures.pop(key, None)

    def _postpone(self, key: str, exc: LinkError) -> None:
        failures = self._failures.get(key, 0)
        log.debug("direct.postponed", extra={"channel_id": key.removeprefix(KEY), "reason": exc.reason})
        remember(self._failures, key, failures + 1)
        wait = doubled(self._times.failure_first, self._times.failure_most, failures)
        self._followed.queue.add_at(key, trio.current_time() + wait)

    async def take(self, post: Post, around: Sequence[Post] = ()) -> None:
        """Act on one post that a sweep found; what Teleport must say for it is asked for again later.

        Raises LinkError of Mattermost, and may be tried again then.
        """
        try:
            await self._take_once(post, around)
        except LinkError as exc:
            if exc.link == "mattermost":
                raise
            self._postpone(KEY + post.channel_id, exc)

    async def _take_once(self, post: Post, around: Sequence[Post]) -> None:
        """Act on one post of a direct channel, once; `around` is what else was read there."""
        if post.user_id == self._bot_id() or post.root_id or post.id in self._taken:
            return
        command = parse_direct(post.message)
        if isinstance(command, NotACommand) or self._answered(post, around):
            return
        remember(self._taken, post.id, None)
        try:
            taken = await self._take(post, command)
        except BaseException:
            self._taken.pop(post.id, None)
            raise
        if not taken:
            self._taken.pop(post.id, None)

    async def _take(self, post: Post, command: Command) -> bool:
        """False where it must be taken again later."""
        decides = isinstance(command, Decision) and self.rules.mode != "none"
        old = post.create_at < (self._started - QUESTION_SECONDS + self._mattermost.clock_offset) * 1000
        if not await self._sight.is_between_us(post) or (old and not decides):
            return True
        requests = self._followed.open_requests()
        if old and isinstance(command, Decision) and not isinstance(match_id(command.id, requests), str):
            return True
        person = await self._find(post.user_id)
        flaw = find_flaw(post)
        if person.problem or (flaw and not decides):
            await self._refuse(post, person, flaw, silent=old)
        elif decides or isinstance(command, NearMiss):
            return await self._pass_on(post, command, old=old)
        else:
            await self._reply(post, await self._answer(post, command, requests))
        return True

    async def _refuse(self, post: Post, person: Person, flaw: str, *, silent: bool) -> None:
        """Say so once an hour: in the log, and to people who could mean it."""
        if not self._may_repeat(person.user_id):
            return
        reason = flaw or person.problem
        log.info("direct.refused", extra={"user_id": person.user_id, "post_id": post.id, "reason": reason})
        if not flaw and not silent and person.problem not in ("bot", "deactivated", "remote", "unknown"):
            await self._reply(post, Draft(_STRANGER))

    def _may_repeat(self, who: str) -> bool:
        if trio.current_time() < self._seldom.get(who, -math.inf):
            return False
        remember(self._seldom, who, trio.current_time() + SELDOM_SECONDS)
        return True

    async def _pass_on(self, post: Post, command: Command, *, old: bool) -> bool:
        """Hand words about one visible request to its worker; False where that has no room.

        Also about one that was decided: its worker knows what became of it.
        """
        if isinstance(command, Decision | NearMiss) and command.id and self.rules.mode != "none":
            for requests in (self._followed.open_requests(), self._followed.open_requests(decided=True)):
                # A hint decides nothing, so the end of an id is always enough for one.
                whole = self._options().whole_ids and isinstance(command, Decision)
                found = match_id(command.id, requests, whole=whole)
                if isinstance(found, str) and await self._sight.sees(post, requests[found]):
                    flaw = find_flaw(post) or ("" if post.id in self._live else "unheard")
                    flaw = "" if isinstance(command, NearMiss) else flaw
                    return self._followed.tell(found, express(post, "direct", command, flaw=flaw))
        if isinstance(command, NearMiss):
            if self._may_repeat(f"hint {post.user_id}"):
                await self._reply(post, Draft(await self._help(post)))
        elif isinstance(command, Decision) and not old:
            await self._reply(post, Draft(await self._not_found(post, command.id)))
        return True

    async def _not_found(self, post: Post, token: str) -> str:
        """Why an id leads to no request. Raises LinkLost where Teleport may know one that is not known here."""
        requests = self._followed.open_requests()
        visible = await self._sight.visible(post, token, requests)
        if not visible and not self._teleport.answers():
            raise LinkLost("teleport", "away", "a request that nobody knows here is asked about")
        if isinstance(match_id(token, visible), str):
            return _WHOLE
        whole = self._options().whole_ids
        return _AMBIGUOUS if visible and isinstance(match_id(token, requests, whole=whole), Ambiguous) else _UNKNOWN

    async def _answer(self, post: Post, command: Command, requests: Mapping[str, tuple[str, ...]]) -> Draft:
        """Raises LinkError: what Teleport does not answer now is answered when it is back."""
        match command:
            case List():
                return Draft(await self._list(post, requests))
            case Show():
                return await self._show(post, command, requests)
            case Decision():
                return Draft(_OFF)
            case _:
                return Draft(await self._help(post))

    async def _list(self, post: Post, requests: Mapping[str, tuple[str, ...]]) -> str:
        visible = await self._first_visible(post, requests, LISTED + 1)
        found = await gather([partial(self._teleport.get_request, request_id) for request_id in visible[:LISTED]])
        if not visible and not self._teleport.answers():
            raise LinkLost("teleport", "away", "a list is asked for")
        whole, now = self._options().whole_ids, time.time()
        lines = [
            render_line(request, whole=whole, now=now, card=await self._card_of(post, request.id))
            for request in found
            if request is not None and request.state == PENDING
        ]
        if len(visible) > LISTED:
            lines.append("… and more.")
        return "\n".join(lines) or NONE_OPEN

    async def _first_visible(self, post: Post, requests: Mapping[str, tuple[str, ...]], most: int) -> list[str]:
        """The newest ones that the author can see."""
        visible: list[str] = []
        for request_id, channels in reversed(list(requests.items())):
            if len(visible) < most and await self._sight.sees(post, channels):
                visible.append(request_id)
        return visible

    async def _card_of(self, post: Post, request_id: str) -> str:
        """The address of a card that the author can see; Mattermost finds the team."""
        for card, channel_id in self._followed.cards_of(request_id):
            if await self._sight.sees(post, (channel_id,)):
                return f"{self._url()}/_redirect/pl/{card}"
        return ""

    async def _show(self, post: Post, command: Show, requests: Mapping[str, tuple[str, ...]]) -> Draft:
        found = match_id(command.id, await self._sight.visible(post, command.id, requests))
        if isinstance(found, Ambiguous):
            return Draft(_AMBIGUOUS)
        request = await self._teleport.get_request(found) if not isinstance(found, Unknown) else None
        if request is None or request.state != PENDING:
            if not self._teleport.answers():
                raise LinkLost("teleport", "away", "a request is asked for")
            return Draft(_UNKNOWN)
        # Nobody decides on it, so it invites nobody to.
        card = text.render_card(request, options=msgspec.structs.replace(self._options(), ways=()))
        return msgspec.structs.replace(card, message=f"{_SNAPSHOT}\n{card.message}")

    async def _help(self, post: Post) -> str:
        visible = await self._first_visible(post, self._followed.open_requests(), 1)
        name = (*visible, _EXAMPLE)[0]
        return render_help(name, decides=self.rules.mode != "none", whole=self._options().whole_ids)

    # -- answers -----------------------------------------------------------------------------------------------------

    def _keys(self, post: Post) -> list[str]:
        """What marks our answer to this post; the first one that nobody else has used counts.

        Another cluster's sidecar may share the bot: what it answers is not our answer.
        """
        secret = self._secret().encode()
        cluster = self._options().cluster
        texts = [f"direct|{cluster}|{post.id}|{attempt}".encode() for attempt in range(ATTEMPTS)]
        return [hmac.new(secret, one, hashlib.sha256).hexdigest()[:22] for one in texts]

    def _answered(self, post: Post, around: Sequence[Post]) -> bool:
        bot_id = self._bot_id()
        answers = {one.key for one in around if one.user_id == bot_id and one.key}
        return bool(answers) and not answers.isdisjoint(self._keys(post))

    async def _reply(self, post: Post, draft: Draft) -> None:
        """Answer once: another replica, or we before a restart, may have done so already."""
        try:
            if self._answered(post, await self._mattermost.channel_posts(post.channel_id, 0, LOOK_BACK)):
                return
            for key in self._keys(post):
                tm: dict[str, object] = {"v": 1, "id": "", "k": key, "n": 0, "state": ""}
                made = await self._mattermost.create_post(post.channel_id, draft, key=key, tm=tm)
                if made.user_id == self._bot_id() and made.key == key:
                    return
        except PostRejected as exc:
            log.info("answer.rejected", extra={"post_id": post.id, "status": exc.status})
