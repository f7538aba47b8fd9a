"""Read what a look must know, side by side. What cannot be had is `Unknown` with its reason and hides nothing else."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from sidecar.decisions import expressions
from sidecar.decisions import judge as judging
from sidecar.decisions.actions import Place
from sidecar.decisions.expressions import Expression, Person
from sidecar.decisions.record import KEY, Record, Slot, Stored, Unreadable, adopt, decode
from sidecar.decisions.reminders import Nudge, asked, is_reminded
from sidecar.decisions.seen import Context, Evidence, Look, Memory, Seen, Unknown
from sidecar.errors import LinkError, LinkLost, PostRejected, SidecarError
from sidecar.once import Bounded, Once
from sidecar.reconcile.resolve import Chosen
from sidecar.reconcile.side_by_side import outcomes
from sidecar.text.command import Decision, NearMiss, parse_direct

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sidecar.metrics import Metrics
    from sidecar.model import AccessRequest, Post
    from sidecar.reconcile.people import People
    from sidecar.reconcile.ports import Mattermost, Teleport
    from sidecar.reconcile.resolve import Resolver

log = logging.getLogger(__name__)

PAGE = 200
# 5,000 posts in one look; the next one goes on from there.
MAX_PAGES = 25
# Posts are looked for from this long before the claim, and longer where nobody knows by whose clock that is told.
LOOKUP_MARGIN_SECONDS, UNKNOWN_CLOCK_SECONDS = 600, 3600
# A post that was just made may be missing on a replica: it gets this long before it counts as deleted.
CARD_RETRY_SECONDS = (0.5, 1.5)
# How Mattermost may fail to give one thread or post while it works for the others.
FOR_ONE = frozenset({"server_error", "not_mattermost", "unknown_route", "too_large", "too_deep", "timeout"})


class Observer:
    """Reads for one look after another; `people` says who somebody is, and which account a Teleport user has."""

    def __init__(
        self,
        teleport: Teleport,
        mattermost: Mattermost,
        resolver: Resolver,
        people: People,
        metrics: Metrics,
    ) -> None:
        self._teleport = teleport
        self._mattermost = mattermost
        self._resolver = resolver
        self._who = people
        self._metrics = metrics
        # Posts that only pretend to be a person's.
        self._said = Once()
        # Where a look-up in a busy channel goes on: (channel, seed) -> next page, and our posts so far.
        self._cursors: Bounded[tuple[str, str], tuple[int, list[Post]]] = Bounded()

    async def look(self, look: Look, seen: Seen, memory: Memory, context: Context) -> Seen:
        """What was seen, with all that `look` asks for."""
        record = seen.stored.record if isinstance(seen.stored, Stored) else None
        jobs = self._jobs(look, seen, memory, context, record)
        places = list(look.places)
        cards = list(look.cards)
        roots = list(look.words)
        reads: list[Callable[[], Awaitable[object]]] = [*jobs.values()]
        reads += [partial(self._place, place, record, context) for place in places]
        reads += [partial(self._card, post_id) for post_id in cards]
        reads += [partial(self._words, place, context) for place in roots]
        began = trio.current_time()
        found = await outcomes(reads)
        values = [Unknown(one) if isinstance(one, SidecarError) else one for one in found]
        changes: dict[str, object] = dict(zip(jobs, values, strict=False))
        rest = values[len(jobs) :]
        if isinstance(chosen := changes.get("targets"), Chosen):
            changes |= chosen._asdict()
        if look.request:
            changes["by_id"] = True
        if look.evidence:
            changes["readings"] = seen.readings + 1
        evidence = changes.get("evidence")
        read = evidence.cards if isinstance(evidence, Evidence) else {}
        changes["posts"] = {**seen.posts, **dict(zip(places, rest, strict=False))}
        changes["read_at"] = {**seen.read_at, **dict.fromkeys(places, began)}
        changes["cards"] = {**seen.cards, **read, **dict(zip(cards, rest[len(places) :], strict=False))}
        words = rest[len(places) + len(cards) :]
        changes["words"] = {**seen.words, **{place.root_id: said for place, said in zip(roots, words, strict=True)}}
        return seen.but(**changes, error=seen.error or _worst(found))

    def _jobs(
        self, look: Look, seen: Seen, memory: Memory, context: Context, record: Record | None
    ) -> dict[str, Callable[[], Awaitable[object]]]:
        """What reads each part of `Seen` that was asked for."""
        jobs: dict[str, Callable[[], Awaitable[object]]] = {}
        request = seen.request if not isinstance(seen.request, Unknown) else None
        if look.request:
            jobs["request"] = partial(self._teleport.get_request, context.request_id)
        if look.record:
            jobs["stored"] = partial(self._record, request, context)
        if look.targets and request is not None:
            jobs["targets"] = partial(self._resolver.targets, request)
        if look.who:
            jobs["who"] = partial(self._who.find_requester, context.requester)
        if look.evidence and record is not None:
            jobs["evidence"] = partial(self._evidence, record, memory, context)
        if look.nudge and record is not None and request is not None:
            jobs["nudge"] = partial(self._nudge, record, request, context)
        return jobs

    async def _nudge(self, record: Record, request: AccessRequest, context: Context) -> Nudge:
        """Whether somebody who is linked is on it, and the accounts of those who were asked."""
        emoji, cards = context.rules.looking, [slot.p for slot in record.posts if is_reminded(slot)]
        standing = await self._mattermost.reactions(cards) if emoji and cards else {}
        users = {
            one.user_id
            for found in standing.values()
            for one in found
            if one.emoji_name in emoji and one.user_id != context.bot_id and not one.delete_at
        }
        people = [await self._who.judge(user_id) for user_id in sorted(users)]
        accounts = await self._who.find_accounts(asked(request, context.rules))
        return Nudge(any(not person.problem for person in people), accounts)

    async def _record(self, request: AccessRequest | None, context: Context) -> Stored | Unreadable | None:
        """The record as Teleport has it; None where nothing was ever posted."""
        data = await self._teleport.read_plugin_data(context.request_id)
        if KEY in data:
            return stored(data[KEY])
        # The official plugin claims a request by its `user` key before it posts; without `messages` it may have posted
        # or not.
        if not data.get("messages") and not data.get("user"):
            return None
        created = request.created if request and request.created else time.time()
        expires = request.expires if request and request.expires else created
        record = adopt(data, seed=context.seed, owner="", at=int(created), exp=int(expires), lease_s=context.lease_s)
        log.info("request.adopted", extra={"request_id": context.request_id, "posts": len(record.posts)})
        return Stored(record, "")

    # -- posts -------------------------------------------------------------------------------------------------------

    async def _card(self, post_id: str) -> Post | None:
        for pause in (*CARD_RETRY_SECONDS, None):
            post = await self._mattermost.get_post(post_id)
            if post is not None or pause is None:
                return post
            await trio.sleep(pause)
        return None

    async def _place(self, place: Place, record: Record | None, context: Context) -> tuple[Post, ...]:
        if place.root_id:
            return tuple(await self._mattermost.thread(place.root_id))
        return await self._channel(place.channel_id, record, context)

    async def _channel(self, channel_id: str, record: Record | None, context: Context) -> tuple[Post, ...]:
        """Our posts in a channel since the claim; what is too much for one look is continued by the next."""
        oldest = _claimed(record, self._mattermost.clock_offset) * 1000
        cursor = (channel_id, record.seed if record is not None else "")
        first, ours = self._cursors.pop(cursor, (0, []))
        for page in range(first, first + MAX_PAGES):
            posts = await self._mattermost.channel_posts(channel_id, page)
            ours += [post for post in posts if post.user_id == context.bot_id]
            if len(posts) < PAGE or posts[-1].create_at < oldest:
                return tuple(ours)
        # What came in meanwhile has pushed posts on to the next page: one page is read again.
        self._cursors[cursor] = (first + MAX_PAGES - 1, ours)
        detail = f"the newest {PAGE * (first + MAX_PAGES)} posts of channel {channel_id} do not reach back far enough"
        raise LinkLost("mattermost", "busy_channel", detail)

    async def _words(self, place: Place, context: Context) -> tuple[tuple[Expression, Person], ...]:
        """What people with a link say on a second card."""
        slot = Slot(r="", c=place.channel_id, p=place.root_id)
        said = [*await self._reactions([slot], context), *await self._replies(slot, context, {})]
        found = [(one, await self._who.judge(one.user_id)) for one in said if not one.flaw]
        return tuple((one, person) for one, person in found if person.teleport_user)

    # -- what people say ---------------------------------------------------------------------------------------------

    async def _evidence(self, record: Record, memory: Memory, context: Context) -> Evidence:
        """All that stands for a decision now, and who said it.

        People whom an event has named are looked up beside that, which proves nothing.
        """
        rules = context.rules
        at = trio.current_time()
        people: dict[str, Person] = {}
        cards = [slot for slot in record.posts if slot.k == "card" and slot.p and slot.s == "posted"]
        roots: dict[str, Post] = {}
        jobs: list[Callable[[], Awaitable[list[Expression]]]] = []
        if cards and "reaction" in rules.ways:
            jobs.append(partial(self._reactions, cards, context))
        read = self._replies if "reply" in rules.ways else self._root
        jobs += [partial(read, slot, context, roots) for slot in cards]
        jobs += [partial(self._message, one) for one in memory.direct]
        jobs += [partial(self._meet, user_id, people) for user_id in memory.speakers]
        who: list[str | None] = []
        jobs.append(partial(self._ask_for_requester, context.requester, who))
        shared: set[str] = set()
        jobs += [partial(self._is_shared, channel_id, shared) for channel_id in {slot.c for slot in cards}]
        standing: list[Expression] = []
        unread: list[str] = []
        failure: SidecarError | None = None
        for result in await outcomes(jobs):
            if not isinstance(result, SidecarError):
                standing += result
            elif isinstance(result, PostRejected) or (isinstance(result, LinkError) and result.reason in FOR_ONE):
                unread.append(str(result))
                failure = failure if isinstance(result, PostRejected) else result
            else:
                raise result
        standing = [
            msgspec.structs.replace(one, flaw=one.flaw or "shared_channel") if one.channel_id in shared else one
            for one in standing
        ]
        genuine = [one for one in standing if one.flaw != "forged" or self._say(one)]
        fresh = judging.unjudged(genuine, record.dec)
        users = {one.user_id for one in (genuine if rules.by_quorum and fresh else fresh)}
        for met in await outcomes([partial(self._meet, user_id, people) for user_id in users - people.keys()]):
            if isinstance(met, SidecarError):
                raise met
        return Evidence(
            at=at, standing=tuple(genuine), people=people, unread=tuple(unread), error=failure, cards=roots, who=who[0]
        )

    async def _ask_for_requester(self, user: str, who: list[str | None]) -> list[Expression]:
        who.append(await self._who.find_requester(user))
        return []

    async def _is_shared(self, channel_id: str, shared: set[str]) -> list[Expression]:
        """Another Mattermost server says who reacts there, and its administrators what they say."""
        if await self._mattermost.shared(channel_id):
            shared.add(channel_id)
        return []

    async def _meet(self, user_id: str, people: dict[str, Person]) -> list[Expression]:
        people[user_id] = await self._who.judge(user_id)
        return []

    async def _reactions(self, cards: list[Slot], context: Context) -> list[Expression]:
        by_post = await self._mattermost.reactions([slot.p for slot in cards])
        return [
            one
            for slot in cards
            for one in expressions.read_reactions(slot, by_post.get(slot.p, ()), context.rules, context.bot_id)
        ]

    async def _replies(self, slot: Slot, context: Context, roots: dict[str, Post]) -> list[Expression]:
        posts = await self._mattermost.thread(slot.p)
        roots.update({post.id: post for post in posts if post.id == slot.p})
        return expressions.read_thread(slot, posts, context.rules, context.bot_id)

    async def _root(self, slot: Slot, _: Context, roots: dict[str, Post]) -> list[Expression]:
        post = await self._mattermost.get_post(slot.p)
        if post is not None:
            roots[post.id] = post
        return []

    async def _message(self, expression: Expression) -> list[Expression]:
        """A direct message that was heard before: it must still be there, unchanged."""
        try:
            post = await self._mattermost.get_post(expression.post_id)
        except PostRejected:
            return []
        command = parse_direct(post.message) if post is not None else None
        if post is None or not isinstance(command, Decision | NearMiss):
            return []
        unheard = expression.flaw if expression.flaw == "unheard" else ""
        now = expressions.express(post, "direct", command, flaw=expressions.find_flaw(post) or unheard)
        same = expressions.key_of(now) == expressions.key_of(expression) and now.flaw == expression.flaw
        return [now] if same else []

    def _say(self, expression: Expression) -> bool:
        """Log a forged post once. It is nobody's decision, so it leaves nothing in the ledger."""
        if self._said.news(expression.source):
            self._metrics.decisions_refused_total.labels("forged").inc()
            log.info(
                "decision.refused",
                extra={"user_id": expression.user_id, "post_id": expression.post_id, "reason": "forged"},
            )
        return False


def stored(text: str) -> Stored | Unreadable:
    """A record from its text."""
    record = decode(text)
    return record if isinstance(record, Unreadable) else Stored(record, text)


def _claimed(record: Record | None, offset: float) -> float:
    """From when on, by Mattermost's clock, there may be posts of ours; `offset` is that clock minus our own."""
    if record is None:
        return time.time() + offset - LOOKUP_MARGIN_SECONDS
    if record.off is None:
        return record.at + min(offset, 0.0) - UNKNOWN_CLOCK_SECONDS
    return record.at + record.off - LOOKUP_MARGIN_SECONDS


def _worst(found: Sequence[object]) -> SidecarError | None:
    """Why this look must be repeated, if it must: a link's failure first."""
    failures = [one for one in found if isinstance(one, SidecarError) and not isinstance(one, PostRejected)]
    failures.sort(key=lambda exc: not isinstance(exc, LinkError))
    return failures[0] if failures else None
