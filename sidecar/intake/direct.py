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
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from sidecar.decisions.judge import express, find_flaw
from sidecar.errors import LinkError, PostRejected
from sidecar.model import PENDING, Draft
from sidecar.reconcile.side_by_side import gather
from sidecar.text import card as text
from sidecar.text.command import (
    DIRECT_GRAMMAR,
    Ambiguous,
    Decision,
    Help,
    List,
    Malformed,
    NotACommand,
    Show,
    Unknown,
    match_id,
    parse_direct,
    short_id,
)
from sidecar.text.neutral import code_span
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

K = TypeVar("K")
V = TypeVar("V")
Command = Decision | List | Show | Help | Malformed

STRANGER_SECONDS = 3600.0
# Their messages are read together.
PATIENCE_SECONDS = 2.0
# Questions asked shortly before the start are still answered; nobody waits for an answer to older ones.
QUESTION_SECONDS = 60.0
# A list names at most so many requests, the newest ones.
LISTED = 20
# What is remembered of posts that were answered, of channels, of memberships and of strangers: bounded, since all of
# it can be made by anybody.
REMEMBERED = 1000
MEMBER_SECONDS = 60.0
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
_NONE = "No open request is waiting where you can see it."
_OFF = "Decisions by direct message are off."
_SNAPSHOT = "As it is now; this copy does not change, and nothing said on it decides."
_AWAY = "Teleport does not answer right now. Please ask again later."


class Direct:
    """Answers direct messages. `secret` makes the keys of answers, equal in every replica and unknown to others."""

    def __init__(  # noqa: PLR0913 - what each message needs
        self,
        mattermost: MattermostClient,
        followed: Heard,
        get_request: Callable[[str], Awaitable[AccessRequest | None]],
        find: Callable[[str], Awaitable[Person]],
        rules: Rules,
        options: Callable[[], TextOptions],
        *,
        bot_id: Callable[[], str],
        secret: Callable[[], str],
        times: Times,
    ) -> None:
        self._mattermost = mattermost
        self._followed = followed
        self._get_request = get_request
        self._find = find
        self.rules = rules
        self._options = options
        self._bot_id = bot_id
        self._secret = secret
        self._times = times
        self._started = time.time()
        # Posts of which the websocket told: an import by an administrator makes others, dated at will.
        self._live: OrderedDict[str, None] = OrderedDict()
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._taken: OrderedDict[str, None] = OrderedDict()
        self._pairs: OrderedDict[str, str] = OrderedDict()
        self._members: OrderedDict[tuple[str, str], tuple[float, bool]] = OrderedDict()
        self._strangers: OrderedDict[str, float] = OrderedDict()

    def hint(self, channel_id: str, post_id: str, *, stranger: str = "") -> None:
        """Somebody posts outside a thread right now: the channel is read, if it is ours.

        A `stranger` by this id waits, and nothing is read for one who was answered within the hour.
        """
        if "direct" not in self.rules.ways or self._pairs.get(channel_id) == "":
            return
        if not stranger:
            _keep(self._live, post_id, None)
            self._followed.queue.add(KEY + channel_id)
        elif trio.current_time() >= self._strangers.get(stranger, -math.inf):
            self._followed.queue.add_at(KEY + channel_id, trio.current_time() + PATIENCE_SECONDS)

    async def visit(self, key: str) -> None:
        """Answer what has no answer yet in a direct channel; what fails is tried again, less and less often."""
        channel_id = key.removeprefix(KEY)
        try:
            if await self._pair(channel_id):
                posts = await self._mattermost.channel_posts(channel_id, 0, LOOK_BACK)
                for post in reversed(posts):
                    await self.take(post, posts)
        except LinkError as exc:
            failures = self._failures.get(key, 0)
            log.debug("direct.postponed", extra={"channel_id": channel_id, "reason": exc.reason})
            _keep(self._failures, key, failures + 1)
            times = self._times
            wait = doubled(times.failure_first, times.failure_most, failures)
            self._followed.queue.add_at(key, trio.current_time() + wait)
        except PostRejected as exc:
            log.debug("direct.rejected", extra={"channel_id": channel_id, "status": exc.status})
        else:
            self._failures.pop(key, None)

    async def take(self, post: Post, around: Sequence[Post] = ()) -> None:
        """Act on one post of a direct channel, once; `around` is what else was read there.

        Raises LinkError, and may be tried again then.
        """
        if post.user_id == self._bot_id() or post.root_id or post.id in self._taken:
            return
        command = parse_direct(post.message)
        if isinstance(command, NotACommand) or self._answered(post, around):
            return
        _keep(self._taken, post.id, None)
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
        if not await self._is_between_us(post) or (old and not decides):
            return True
        requests = self._followed.open_requests()
        if old and isinstance(command, Decision) and not isinstance(match_id(command.id, requests), str):
            return True
        person = await self._find(post.user_id)
        flaw = find_flaw(post)
        if person.problem or (flaw and not decides):
            await self._refuse(post, person, flaw, silent=old)
        elif isinstance(command, Decision) and decides:
            return await self._decide(post, command, requests, old=old)
        else:
            await self._reply(post, await self._answer(post, command, requests))
        return True

    async def _refuse(self, post: Post, person: Person, flaw: str, *, silent: bool) -> None:
        """Say so once an hour: in the log, and to people who could mean it."""
        if trio.current_time() < self._strangers.get(person.user_id, -math.inf):
            return
        _keep(self._strangers, person.user_id, trio.current_time() + STRANGER_SECONDS)
        reason = flaw or person.problem
        log.info("direct.refused", extra={"user_id": person.user_id, "post_id": post.id, "reason": reason})
        if not flaw and not silent and person.problem not in ("bot", "deactivated", "remote", "unknown"):
            await self._reply(post, Draft(_STRANGER))

    async def _decide(
        self, post: Post, command: Decision, requests: Mapping[str, tuple[str, ...]], *, old: bool
    ) -> bool:
        """Hand a decision about one visible request to its worker; False where that has no room."""
        found = match_id(command.id, requests, whole=self._options().whole_ids)
        if isinstance(found, str) and await self._sees(post, requests[found]):
            flaw = "" if post.id in self._live else "unheard"
            return self._followed.tell(found, express(post, "direct", command, flaw=find_flaw(post) or flaw))
        if not old:
            ambiguous = isinstance(found, Ambiguous) and await self._visible(post, command.id, requests)
            known = isinstance(match_id(command.id, await self._visible(post, command.id, requests)), str)
            await self._reply(post, Draft(_WHOLE if known else _AMBIGUOUS if ambiguous else _UNKNOWN))
        return True

    async def _answer(self, post: Post, command: Command, requests: Mapping[str, tuple[str, ...]]) -> Draft:
        try:
            match command:
                case List():
                    return Draft(await self._list(post, requests))
                case Show():
                    return await self._show(post, command, requests)
                case Decision():
                    return Draft(_OFF)
                case _:
                    return Draft(self._help())
        except LinkError as exc:
            if exc.link == "mattermost":
                raise
            return Draft(_AWAY)

    async def _list(self, post: Post, requests: Mapping[str, tuple[str, ...]]) -> str:
        visible: list[str] = []
        for request_id, channels in reversed(list(requests.items())):
            if len(visible) <= LISTED and await self._sees(post, channels):
                visible.append(request_id)
        found = await gather([partial(self._get_request, request_id) for request_id in visible[:LISTED]])
        whole = self._options().whole_ids
        lines = [_line(request, whole=whole) for request in found if request is not None and request.state == PENDING]
        if len(visible) > LISTED:
            lines.append("… and more.")
        return "\n".join(lines) or _NONE

    async def _show(self, post: Post, command: Show, requests: Mapping[str, tuple[str, ...]]) -> Draft:
        found = match_id(command.id, await self._visible(post, command.id, requests))
        if isinstance(found, Ambiguous):
            return Draft(_AMBIGUOUS)
        request = await self._get_request(found) if not isinstance(found, Unknown) else None
        if request is None or request.state != PENDING:
            return Draft(_UNKNOWN)
        # Nobody decides on it, so it invites nobody to.
        card = text.render_card(request, options=msgspec.structs.replace(self._options(), ways=()))
        return msgspec.structs.replace(card, message=f"{_SNAPSHOT}\n{card.message}")

    async def _visible(self, post: Post, token: str, requests: Mapping[str, tuple[str, ...]]) -> list[str]:
        """The requests that this id could mean, of those that the author can see: of others nothing must be told."""
        meant = [one for one in requests if match_id(token, (one,)) == one]
        return [one for one in meant if await self._sees(post, requests[one])]

    def _help(self) -> str:
        if self.rules.mode == "none":
            return "Write exactly `list`, `show ID` or `help`."
        return DIRECT_GRAMMAR

    # -- who and what ------------------------------------------------------------------------------------------------

    async def _is_between_us(self, post: Post) -> bool:
        """A direct channel's name is its two user ids: the author must be the other one."""
        return await self._pair(post.channel_id) == self._name_of(post.user_id)

    def _name_of(self, user_id: str) -> str:
        return "__".join(sorted((self._bot_id(), user_id)))

    async def _pair(self, channel_id: str) -> str:
        """The name of a direct channel, "" for every other kind; neither ever changes."""
        if channel_id not in self._pairs:
            try:
                channel = await self._mattermost.channel(channel_id)
            except PostRejected:
                channel = None
            if channel is None:
                return ""
            _keep(self._pairs, channel_id, channel.name if channel.type == "D" else "")
        return self._pairs[channel_id]

    async def _sees(self, post: Post, channels: tuple[str, ...]) -> bool:
        """Whether the author has this card before them: here, or in a channel that they are in."""
        if post.channel_id in channels:
            return True
        for channel_id in channels:
            # Other people's direct channels are not asked for members.
            if not await self._pair(channel_id) and await self._is_member(channel_id, post.user_id):
                return True
        return False

    async def _is_member(self, channel_id: str, user_id: str) -> bool:
        until, known = self._members.get((channel_id, user_id), (-math.inf, False))
        if trio.current_time() >= until:
            try:
                known = await self._mattermost.member(channel_id, user_id)
            except PostRejected:
                known = False
            _keep(self._members, (channel_id, user_id), (trio.current_time() + MEMBER_SECONDS, known))
        return known

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


def _keep(remembered: OrderedDict[K, V], key: K, value: V) -> None:
    remembered[key] = value
    remembered.move_to_end(key)
    if len(remembered) > REMEMBERED:
        remembered.popitem(last=False)


def _line(request: AccessRequest, *, whole: bool) -> str:
    roles = ", ".join(code_span(role, 60) for role in request.roles[:5]) or "resources"
    name = request.id if whole else short_id(request.id)
    return f"{code_span(name, 60)} {code_span(request.user, 60)} asks for {roles}"
