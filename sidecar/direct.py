"""Direct messages to the bot: `list`, `show`, `help`, and decisions with an id.

Only people who pass the identity checks are answered, and only about requests whose card they can see. An id that does
not exist and one that they cannot see get the same words.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from sidecar import text
from sidecar.command import (
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
from sidecar.errors import PostRejected
from sidecar.judge import express, find_flaw
from sidecar.model import PENDING, Draft
from sidecar.neutral import code_span

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.followed import Followed
    from sidecar.judge import Person, Rules
    from sidecar.model import AccessRequest, Post
    from sidecar.text import TextOptions

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

STRANGER_SECONDS = 3600.0
# A list names at most so many requests, the newest ones.
LISTED = 20
# What is remembered of posts that were answered, of channels, of memberships and of strangers: bounded, since all of
# it can be made by anybody.
REMEMBERED = 1000
MEMBER_SECONDS = 60.0

_UNKNOWN = "There is no open request with this id that you can see. `list` shows those that you can."
_AMBIGUOUS = "More than one request ends like this. Write more of the id."
_STRANGER = "I only talk about access requests with people whom my operator has linked to Teleport."
_NONE = "No open request is waiting where you can see it."


class ChannelFacts(Protocol):
    """What tells a direct channel."""

    @property
    def type(self) -> str: ...

    @property
    def name(self) -> str: ...


class Mattermost(Protocol):
    """The calls that direct messages need."""

    async def get_post(self, post_id: str) -> Post | None: ...

    async def channel(self, channel_id: str) -> ChannelFacts | None: ...

    async def member(self, channel_id: str, user_id: str = "me") -> bool: ...

    async def create_post(
        self, channel_id: str, draft: Draft, *, key: str, tm: dict[str, object], root_id: str = ""
    ) -> Post: ...


class Direct:
    """Answers direct messages. `secret` makes the keys of answers, equal in every replica and unknown to others."""

    def __init__(
        self,
        mattermost: Mattermost,
        followed: Followed,
        get_request: Callable[[str], Awaitable[AccessRequest | None]],
        find: Callable[[str], Awaitable[Person]],
        rules: Rules,
        options: Callable[[], TextOptions],
        *,
        bot_id: Callable[[], str],
        secret: Callable[[], str],
    ) -> None:
        self._mattermost = mattermost
        self._followed = followed
        self._get_request = get_request
        self._find = find
        self._rules = rules
        self._options = options
        self._bot_id = bot_id
        self._secret = secret
        # Older questions are not answered: nobody waits for them any more. In Mattermost's milliseconds.
        self.answer_since: float = math.inf
        self._answered: OrderedDict[str, None] = OrderedDict()
        self._direct: OrderedDict[str, str] = OrderedDict()
        self._members: OrderedDict[tuple[str, str], tuple[float, bool]] = OrderedDict()
        self._strangers: OrderedDict[str, float] = OrderedDict()

    async def hint(self, post_id: str, channel_id: str) -> None:
        """Somebody posted outside a thread: read it, if it was to us. Raises LinkError."""
        if await self._pair(channel_id):
            post = await self._mattermost.get_post(post_id)
            if post is not None:
                await self.take(post)

    async def take(self, post: Post) -> None:
        """Act on one post of a direct channel, once. Raises LinkError."""
        if post.user_id == self._bot_id() or post.root_id or post.id in self._answered:
            return
        command = parse_direct(post.message)
        if isinstance(command, NotACommand) or not await self._is_between_us(post):
            return
        if isinstance(command, Decision) and await self._decide(post, command):
            self._done(post)
            return
        if find_flaw(post) or post.create_at < self.answer_since:
            return
        self._done(post)
        await self._reply(post, await self._answer(post, command))

    async def _decide(self, post: Post, command: Decision) -> bool:
        """Hand a decision about a known, visible request to its worker; False where there is no such request."""
        if self._rules.mode == "none" or "direct" not in self._rules.ways:
            return False
        person = await self._find(post.user_id)
        if person.problem:
            return False
        request_id = match_id(command.id, self._followed.open_requests())
        if not isinstance(request_id, str) or not await self._sees(post, request_id):
            return False
        self._followed.tell(request_id, express(post, "direct", command))
        return True

    async def _answer(self, post: Post, command: Decision | List | Show | Help | Malformed) -> Draft | None:
        person = await self._find(post.user_id)
        if person.problem:
            log.info("direct.refused", extra={"user_id": post.user_id, "reason": person.problem})
            return Draft(_STRANGER) if self._may_greet(person) else None
        match command:
            case List():
                return Draft(await self._list(post))
            case Show() | Decision():
                return await self._show(post, command)
            case _:
                return Draft(self._help())

    async def _list(self, post: Post) -> str:
        lines: list[str] = []
        for request_id in list(self._followed.open_requests())[::-1]:
            if len(lines) == LISTED:
                lines.append("… and more.")
                break
            if await self._sees(post, request_id) and (request := await self._get_request(request_id)) is not None:
                lines.append(_line(request))
        return "\n".join(lines) or _NONE

    async def _show(self, post: Post, command: Show | Decision) -> Draft:
        request_id = match_id(command.id, self._followed.open_requests())
        if isinstance(request_id, Ambiguous):
            # Only about those that this person can see; else it would tell of others.
            visible = [one for one in self._followed.open_requests() if await self._sees(post, one)]
            request_id = match_id(command.id, visible)
            if isinstance(request_id, Ambiguous):
                return Draft(_AMBIGUOUS)
        if isinstance(request_id, Unknown) or not await self._sees(post, request_id):
            return Draft(_UNKNOWN)
        if isinstance(command, Decision):
            return Draft("Decisions by direct message are off.")
        request = await self._get_request(request_id)
        if request is None or request.state != PENDING:
            return Draft(_UNKNOWN)
        return text.render_card(request, options=self._options())

    def _help(self) -> str:
        if self._rules.mode == "none":
            return "Write exactly `list`, `show ID` or `help`."
        return DIRECT_GRAMMAR

    # -- who and what ------------------------------------------------------------------------------------------------

    async def _is_between_us(self, post: Post) -> bool:
        """A direct channel's name is its two user ids: the author must be the other one."""
        return await self._pair(post.channel_id) == "__".join(sorted((self._bot_id(), post.user_id)))

    async def _pair(self, channel_id: str) -> str:
        """The name of a direct channel, "" for every other kind; neither ever changes."""
        if channel_id not in self._direct:
            try:
                channel = await self._mattermost.channel(channel_id)
            except PostRejected:
                channel = None
            _keep(self._direct, channel_id, channel.name if channel is not None and channel.type == "D" else "")
        return self._direct[channel_id]

    async def _sees(self, post: Post, request_id: str) -> bool:
        """Whether the author has a card of this request before them: here, or in a channel that they are in."""
        for channel_id in self._followed.open_requests().get(request_id, ()):
            if channel_id == post.channel_id or await self._is_member(channel_id, post.user_id):
                return True
        return False

    async def _is_member(self, channel_id: str, user_id: str) -> bool:
        until, known = self._members.get((channel_id, user_id), (0.0, False))
        if trio.current_time() >= until:
            known = await self._mattermost.member(channel_id, user_id)
            _keep(self._members, (channel_id, user_id), (trio.current_time() + MEMBER_SECONDS, known))
        return known

    def _may_greet(self, person: Person) -> bool:
        if person.problem in ("bot", "deactivated", "remote", "unknown"):
            return False
        if trio.current_time() < self._strangers.get(person.user_id, -math.inf):
            return False
        _keep(self._strangers, person.user_id, trio.current_time() + STRANGER_SECONDS)
        return True

    def _done(self, post: Post) -> None:
        _keep(self._answered, post.id, None)

    async def _reply(self, post: Post, draft: Draft | None) -> None:
        if draft is None:
            return
        key = hmac.new(self._secret().encode(), f"direct|{post.id}".encode(), hashlib.sha256).hexdigest()[:22]
        tm: dict[str, object] = {"v": 1, "id": "", "k": key, "n": 0, "state": ""}
        try:
            await self._mattermost.create_post(post.channel_id, draft, key=key, tm=tm)
        except PostRejected as exc:
            log.info("answer.rejected", extra={"post_id": post.id, "status": exc.status})


def _keep(remembered: OrderedDict[K, V], key: K, value: V) -> None:
    remembered[key] = value
    remembered.move_to_end(key)
    if len(remembered) > REMEMBERED:
        remembered.popitem(last=False)


def _line(request: AccessRequest) -> str:
    roles = ", ".join(code_span(role, 60) for role in request.roles[:5]) or "resources"
    return f"`{short_id(request.id)}` {code_span(request.user, 60)} asks for {roles}"
