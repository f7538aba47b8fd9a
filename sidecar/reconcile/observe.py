"""A decision in Mattermost, judged and carried to Teleport.

Two steps, so that a lease is held only while something is done: `hear` reads what stands in Mattermost and finds what
no verdict covers yet; `settle` judges it against the request as it is now, submits, and says what to answer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import trio

from sidecar.decisions import judge as judging
from sidecar.decisions.answers import render_answer
from sidecar.decisions.judge import ACCEPTED, COUNTED, STATES, Expression, LedgerEntry, Person, Rules, Verdict
from sidecar.errors import LinkError, LinkLost, PostRejected, ReviewRejected
from sidecar.model import PENDING
from sidecar.text.command import Decision, parse_direct

if TYPE_CHECKING:
    from sidecar.decisions.record import Record, Slot
    from sidecar.metrics import Metrics
    from sidecar.model import AccessRequest, Draft, Post, Reaction

log = logging.getLogger(__name__)

T = TypeVar("T")

# Refusals that one person hears once for a request: more often would only be noise in the thread.
_ONCE = frozenset({"unmapped", "guest", "renamed", "address_moved", "identity_unsafe", "edited", "not_reviewer"})
_REASON_BYTES = 4096


class Reading(Protocol):
    """What is read of Mattermost."""

    async def reactions(self, post_ids: list[str]) -> dict[str, list[Reaction]]: ...

    async def thread(self, post_id: str) -> list[Post]: ...

    async def get_post(self, post_id: str) -> Post | None: ...


class Submitting(Protocol):
    """How a review or a state reaches Teleport; see `sidecar.reconcile.submit`."""

    async def review(self, user: str, request: AccessRequest, state: str, reason: str) -> AccessRequest: ...

    async def resolve(
        self, request: AccessRequest, state: str, reason: str, voters: tuple[str, ...]
    ) -> AccessRequest: ...


class Heard(NamedTuple):
    """What stands in Mattermost for one request, what of it is new, and since when we know (trio's clock)."""

    fresh: list[Expression]
    standing: list[Expression]
    people: dict[str, Person]
    at: float


class Answer(NamedTuple):
    """A post for one person: where it goes, and what makes it unique."""

    channel_id: str
    root_id: str
    identity: str
    draft: Draft
    # What the ledger says of it.
    entry: LedgerEntry


class Settled(NamedTuple):
    """What came of it: the request as Teleport has it now, the new ledger, the answers to give.

    `lost` is why some of it has no verdict yet and must be heard again.
    """

    request: AccessRequest
    ledger: tuple[LedgerEntry, ...]
    answers: list[Answer]
    lost: LinkLost | None = None


class Reviews:
    """Hears and settles. `find` says who a Mattermost user is, `bot_id` who we are."""

    def __init__(
        self,
        reading: Reading,
        find: Callable[[str], Awaitable[Person]],
        submitting: Submitting,
        rules: Rules,
        metrics: Metrics,
        bot_id: Callable[[], str],
    ) -> None:
        self._reading = reading
        self._find = find
        self._submitting = submitting
        self._rules = rules
        self._metrics = metrics
        self._bot_id = bot_id
        # Posts that only pretend to be a person's, said once each; bounded, for anybody can make more.
        self._said: dict[str, None] = {}

    async def hear(self, record: Record, direct: Iterable[Expression], speakers: Iterable[str] = ()) -> Heard | None:
        """Read reactions and replies of all cards; None where every one has its verdict. Raises LinkError.

        `speakers` are looked up beside that: an event has named them, which proves nothing.
        """
        at = trio.current_time()
        people: dict[str, Person] = {}
        standing = await self._standing(record, judging.unjudged(direct, record.dec), speakers, people)
        genuine = [one for one in standing if one.flaw != "forged" or self._say(one)]
        fresh = judging.unjudged(genuine, record.dec)
        if not fresh:
            return None
        users = {one.user_id for one in (standing if self._rules.by_quorum else fresh)}
        await gather([partial(self._meet, user_id, people) for user_id in users - people.keys()])
        fresh = judging.with_room(fresh, people, record.dec)
        return Heard(fresh, standing, people, at) if fresh else None

    async def settle(self, heard: Heard, request: AccessRequest, record: Record, guard: Callable[[], None]) -> Settled:
        """Judge, submit, and say what to write down and to answer. Raises LinkError and RequestGone.

        `guard` raises where we may no longer act for this request; it is asked before each submission.
        """
        verdicts = judging.judge(heard.fresh, heard.standing, heard.people, request, self._rules)
        outcomes: list[tuple[Verdict, str, str]] = []
        lost: LinkLost | None = None
        for verdict in verdicts:
            outcome, detail = verdict.outcome, ""
            if outcome == ACCEPTED and not self._rules.by_quorum:
                if request.state == PENDING:
                    guard()
                    try:
                        request, outcome, detail = await self._submit(verdict, request)
                    except LinkLost as exc:
                        # One reviewer's connection must not keep the others waiting; whether it was submitted all the
                        # same is read when this one is heard again.
                        lost = exc
                        continue
                else:
                    # The one before it decided. Older servers would take this one silently, to no effect.
                    outcome = "resolved"
            outcomes.append((verdict, outcome, detail))
        if self._rules.by_quorum:
            request, outcomes = await self._count_heads(heard, request, record, verdicts, guard)
        for verdict, outcome, _ in outcomes:
            self._account(verdict, outcome, request)
        return Settled(request, _ledger(record.dec, outcomes), _answers(record.dec, outcomes, request), lost)

    # -- hearing -----------------------------------------------------------------------------------------------------

    async def _standing(
        self, record: Record, direct: Iterable[Expression], speakers: Iterable[str], people: dict[str, Person]
    ) -> list[Expression]:
        """All that stands for a decision now, read at once; who the speakers are is put into `people`."""
        cards = [slot for slot in record.posts if slot.k == "card" and slot.p and slot.s == "posted"]
        jobs: list[Callable[[], Awaitable[list[Expression]]]] = []
        if cards and "reaction" in self._rules.ways:
            jobs.append(partial(self._reactions, cards))
        if "reply" in self._rules.ways:
            jobs += [partial(self._replies, slot) for slot in cards]
        messages = {one.post_id: one for one in (*self._counted_direct(record), *direct)}
        jobs += [partial(self._message, one) for one in messages.values()]
        jobs += [partial(self._meet, user_id, people) for user_id in speakers]
        return [expression for found in await gather(jobs) for expression in found]

    async def _meet(self, user_id: str, people: dict[str, Person]) -> list[Expression]:
        people[user_id] = await self._find(user_id)
        return []

    async def _reactions(self, cards: list[Slot]) -> list[Expression]:
        by_post = await self._reading.reactions([slot.p for slot in cards])
        bot_id = self._bot_id()
        return [
            one for slot in cards for one in judging.read_reactions(slot, by_post.get(slot.p, ()), self._rules, bot_id)
        ]

    async def _replies(self, slot: Slot) -> list[Expression]:
        try:
            posts = await self._reading.thread(slot.p)
        except PostRejected:
            return []
        return judging.read_thread(slot, posts, self._rules, self._bot_id())

    async def _message(self, expression: Expression) -> list[Expression]:
        """A direct message that was heard, or judged, before: it must still be there, unchanged."""
        try:
            post = await self._reading.get_post(expression.post_id)
        except PostRejected:
            return []
        command = parse_direct(post.message) if post is not None else None
        if post is None or not isinstance(command, Decision):
            return []
        now = judging.express(post, "direct", command)
        same = judging.key_of(now) == judging.key_of(expression) and now.flaw == expression.flaw
        return [now] if same else []

    def _counted_direct(self, record: Record) -> list[Expression]:
        """The direct messages that count towards a quorum: the ledger says all of them that matters."""
        if not self._rules.by_quorum:
            return []
        return [
            Expression(
                user_id=user_id,
                verb="approve" if verb == "approve" else "deny",
                way="direct",
                post_id=source.partition("|")[2],
                at=at,
                channel_id="",
            )
            for user_id, verb, source, at, outcome in record.dec
            if source.startswith("direct|") and outcome == COUNTED and verb in STATES
        ]

    def _say(self, expression: Expression) -> bool:
        """Log a forged post once. It is nobody's decision, so it leaves nothing in the ledger."""
        if expression.source not in self._said:
            if len(self._said) >= 1000:
                self._said.pop(next(iter(self._said)))
            self._said[expression.source] = None
            self._metrics.decisions_refused_total.labels("forged").inc()
            log.info(
                "decision.refused",
                extra={"user_id": expression.user_id, "post_id": expression.post_id, "reason": "forged"},
            )
        return False

    # -- settling ----------------------------------------------------------------------------------------------------

    async def _submit(self, verdict: Verdict, request: AccessRequest) -> tuple[AccessRequest, str, str]:
        """One person's own review: (request now, outcome, Teleport's sentence)."""
        state = STATES[verdict.expression.verb]
        user = verdict.person.teleport_user
        try:
            after = await self._submitting.review(user, request, state, verdict.expression.reason)
        except ReviewRejected as exc:
            self._metrics.reviews_total.labels(state, exc.reason).inc()
            return request, exc.reason, exc.detail
        self._metrics.reviews_total.labels(state, "submitted").inc()
        return after, "submitted", ""

    async def _count_heads(
        self,
        heard: Heard,
        request: AccessRequest,
        record: Record,
        verdicts: list[Verdict],
        guard: Callable[[], None],
    ) -> tuple[AccessRequest, list[tuple[Verdict, str, str]]]:
        """The policy's quorum: one submission once it is met."""
        votes = judging.votes(heard.standing, record.dec, verdicts, heard.people, self._rules)
        state = judging.tally(request, votes, self._rules)
        refusal, detail = "", judging.progress(request, votes, self._rules)
        if state and any(verdict.outcome == ACCEPTED for verdict in verdicts):
            guard()
            agreed = tuple(sorted(user for user, verb in votes.items() if STATES[verb] == state))
            try:
                request = await self._submitting.resolve(request, state, _reason(agreed, heard), agreed)
                self._metrics.reviews_total.labels(state, "submitted").inc()
            except ReviewRejected as exc:
                self._metrics.reviews_total.labels(state, exc.reason).inc()
                refusal, detail = exc.reason, exc.detail
        accepted = refusal or COUNTED
        return request, [
            (verdict, accepted, detail) if verdict.outcome == ACCEPTED else (verdict, verdict.outcome, "")
            for verdict in verdicts
        ]

    def _account(self, verdict: Verdict, outcome: str, request: AccessRequest) -> None:
        """One audit line for each decision and each refusal; reasons that people wrote are not in it."""
        done = outcome in judging.DONE
        if not done:
            self._metrics.decisions_refused_total.labels(outcome).inc()
        expression = verdict.expression
        log.info(
            "decision.taken" if done else "decision.refused",
            extra={
                "request_id": request.id,
                "request_state": request.state,
                "user_id": expression.user_id,
                "reviewer": verdict.person.teleport_user,
                "proposed_state": STATES.get(expression.verb, ""),
                "way": expression.way,
                "post_id": expression.post_id,
                "outcome" if done else "reason": outcome,
            },
        )


def _ledger(old: tuple[LedgerEntry, ...], outcomes: list[tuple[Verdict, str, str]]) -> tuple[LedgerEntry, ...]:
    ledger = {entry[:3]: entry for entry in old}
    for verdict, outcome, _ in outcomes:
        entry = judging.entry_for(verdict, outcome)
        ledger[entry[:3]] = entry
    return tuple(ledger.values())


def _answers(
    old: tuple[LedgerEntry, ...], outcomes: list[tuple[Verdict, str, str]], request: AccessRequest
) -> list[Answer]:
    told = {(entry[0], entry[4]) for entry in old}
    answers = []
    for verdict, outcome, detail in outcomes:
        one = verdict.expression
        if outcome in _ONCE and (one.user_id, outcome) in told:
            continue
        told.add((one.user_id, outcome))
        draft = render_answer(verdict, outcome, request, detail)
        if draft is not None:
            identity = f"{one.user_id}:{one.verb}:{one.source}:{one.at}"
            answers.append(Answer(one.channel_id, one.root_id, identity, draft, judging.entry_for(verdict, outcome)))
    return answers


def _reason(agreed: tuple[str, ...], heard: Heard) -> str:
    """The names first: they are what must not be cut away."""
    said = [
        one.reason
        for one in heard.standing
        if one.reason and (person := heard.people.get(one.user_id)) is not None and person.teleport_user in agreed
    ]
    text = f"Decided in Mattermost by {', '.join(agreed)}" + (f": {'; '.join(said)}" if said else "")
    return text.encode()[:_REASON_BYTES].decode(errors="ignore")


async def gather(jobs: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run reads at once and return what they read, in order. The first failure is raised when all have ended."""
    results: dict[int, T] = {}
    failures: list[LinkError | PostRejected] = []

    async def run(number: int, job: Callable[[], Awaitable[T]]) -> None:
        try:
            results[number] = await job()
        except (LinkError, PostRejected) as exc:
            failures.append(exc)

    async with trio.open_nursery() as nursery:
        for number, job in enumerate(jobs):
            nursery.start_soon(run, number, job, name="review.read")
    if failures:
        raise failures[0]
    return [results[number] for number in range(len(jobs))]
