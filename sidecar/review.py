"""A decision in Mattermost, judged and carried to Teleport.

Two steps, so that a lease is held only while something is done: `hear` reads what stands in Mattermost and finds what
no verdict covers yet; `settle` judges it against the request as it is now, submits, and says what to answer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from sidecar import judge as judging
from sidecar.answers import render_answer
from sidecar.errors import LinkError, PostRejected, ReviewRejected
from sidecar.judge import ACCEPTED, COUNTED, STATES, Expression, LedgerEntry, Person, Rules, Verdict
from sidecar.model import PENDING

if TYPE_CHECKING:
    from sidecar.metrics import Metrics
    from sidecar.model import AccessRequest, Draft, Post, Reaction
    from sidecar.record import Record, Slot

log = logging.getLogger(__name__)

# Refusals that one person hears once for a request: more often would only be noise in the thread.
_ONCE = frozenset({"unmapped", "guest", "renamed", "address_moved", "identity_unsafe", "edited", "not_reviewer"})
_REASON_BYTES = 4096


class Reading(Protocol):
    """What is read of Mattermost."""

    async def reactions(self, post_ids: list[str]) -> dict[str, list[Reaction]]: ...

    async def thread(self, post_id: str) -> list[Post]: ...

    async def get_post(self, post_id: str) -> Post | None: ...


class Submitting(Protocol):
    """How a review or a state reaches Teleport; see `sidecar.submit`."""

    async def review(self, user: str, request: AccessRequest, state: str, reason: str) -> AccessRequest: ...

    async def resolve(
        self, request: AccessRequest, state: str, reason: str, voters: tuple[str, ...]
    ) -> AccessRequest: ...


class Heard(NamedTuple):
    """What stands in Mattermost for one request, and what of it is new."""

    fresh: list[Expression]
    standing: list[Expression]
    people: dict[str, Person]


class Answer(NamedTuple):
    """A post for one person: where it goes, and what makes it unique."""

    channel_id: str
    root_id: str
    identity: str
    draft: Draft


class Settled(NamedTuple):
    """What came of it: the request as Teleport has it now, the new ledger, the answers to give."""

    request: AccessRequest
    ledger: tuple[LedgerEntry, ...]
    answers: list[Answer]


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

    async def hear(self, record: Record, direct: Iterable[Expression]) -> Heard | None:
        """Read reactions and replies of all cards; None where every one has its verdict. Raises LinkError."""
        standing = await self._standing(record)
        standing += [expression for expression in direct if not await self._void(expression)]
        standing += await self._counted_direct(record, standing)
        genuine = [one for one in standing if one.flaw != "forged" or self._say(one)]
        fresh = judging.unjudged(genuine, record.dec)
        if not fresh:
            return None
        users = {one.user_id for one in (standing if self._rules.by_quorum else fresh)}
        people: dict[str, Person] = {}

        async def find(user_id: str) -> None:
            people[user_id] = await self._find(user_id)

        await gather([partial(find, user_id) for user_id in users])
        return Heard(fresh, standing, people)

    async def settle(self, heard: Heard, request: AccessRequest, record: Record) -> Settled:
        """Judge, submit, and say what to write down and to answer. Raises LinkError and RequestGone."""
        verdicts = judging.judge(heard.fresh, heard.standing, heard.people, request, self._rules)
        outcomes: list[tuple[Verdict, str, str]] = []
        for verdict in verdicts:
            outcome, detail = verdict.outcome, ""
            if outcome == ACCEPTED and not self._rules.by_quorum:
                if request.state == PENDING:
                    request, outcome, detail = await self._submit(verdict, request)
                else:
                    # The one before it decided. Older servers would take this one silently, to no effect.
                    outcome = "resolved"
            outcomes.append((verdict, outcome, detail))
        if self._rules.by_quorum:
            request, outcomes = await self._count_heads(heard, request, record, verdicts)
        for verdict, outcome, _ in outcomes:
            self._account(verdict, outcome, request)
        return Settled(request, _ledger(record.dec, outcomes), _answers(record.dec, outcomes, request))

    # -- hearing -----------------------------------------------------------------------------------------------------

    async def _standing(self, record: Record) -> list[Expression]:
        cards = [slot for slot in record.posts if slot.k == "card" and slot.p and slot.s == "posted"]
        found: list[Expression] = []
        bot_id = self._bot_id()

        async def reactions() -> None:
            by_post = await self._reading.reactions([slot.p for slot in cards])
            for slot in cards:
                found.extend(judging.read_reactions(slot, by_post.get(slot.p, ()), self._rules, bot_id))

        async def replies(slot: Slot) -> None:
            try:
                posts = await self._reading.thread(slot.p)
            except PostRejected:
                return
            found.extend(judging.read_thread(slot, posts, self._rules, bot_id))

        jobs: list[Callable[[], Awaitable[None]]] = []
        if cards and "reaction" in self._rules.ways:
            jobs.append(reactions)
        if "reply" in self._rules.ways:
            jobs += [partial(replies, slot) for slot in cards]
        await gather(jobs)
        return found

    async def _void(self, expression: Expression) -> bool:
        """Whether a direct message that was heard before is gone or changed by now."""
        post = await self._reading.get_post(expression.post_id)
        return (
            post is None or bool(post.delete_at) or judging.find_flaw(post) != expression.flaw.replace("malformed", "")
        )

    async def _counted_direct(self, record: Record, known: list[Expression]) -> list[Expression]:
        """Direct messages that count towards a quorum, read again: they must still be there, unchanged."""
        if not self._rules.by_quorum:
            return []
        ids = {one.post_id for one in known}
        found = []
        for user_id, verb, source, at, outcome in record.dec:
            way, _, post_id = source.partition("|")
            if way != "direct" or outcome != COUNTED or post_id in ids or verb not in STATES:
                continue
            post = await self._reading.get_post(post_id)
            if post is not None and post.user_id == user_id and not judging.find_flaw(post):
                found.append(
                    Expression(
                        user_id=user_id,
                        verb="approve" if verb == "approve" else "deny",
                        way="direct",
                        post_id=post_id,
                        at=at,
                        channel_id=post.channel_id,
                    )
                )
        return found

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
        self, heard: Heard, request: AccessRequest, record: Record, verdicts: list[Verdict]
    ) -> tuple[AccessRequest, list[tuple[Verdict, str, str]]]:
        """The policy's quorum: one submission once it is met."""
        votes = judging.votes(heard.standing, record.dec, verdicts, heard.people)
        state = judging.tally(request, votes, self._rules)
        refusal, detail = "", ""
        if state and any(verdict.outcome == ACCEPTED for verdict in verdicts):
            agreed = tuple(sorted(user for user, verb in votes.items() if STATES[verb] == state))
            try:
                request = await self._submitting.resolve(request, state, _reason(agreed, heard), agreed)
                self._metrics.reviews_total.labels(state, "submitted").inc()
            except ReviewRejected as exc:
                self._metrics.reviews_total.labels(state, exc.reason).inc()
                refusal, detail = exc.reason, exc.detail
        accepted = refusal or COUNTED
        return request, [
            (verdict, accepted if verdict.outcome == ACCEPTED else verdict.outcome, detail) for verdict in verdicts
        ]

    def _account(self, verdict: Verdict, outcome: str, request: AccessRequest) -> None:
        """One audit line for each decision and each refusal; reasons that people wrote are not in it."""
        done = outcome in ("submitted", COUNTED, "on_record")
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
        one = verdict.expression
        ledger[one.user_id, one.verb, one.source] = (one.user_id, one.verb, one.source, one.at, outcome)
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
            answers.append(Answer(one.channel_id, one.root_id, identity, draft))
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


async def gather(jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run reads at once. The first failure is raised as it is, when all have ended."""
    failures: list[LinkError | PostRejected] = []

    async def run(job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except (LinkError, PostRejected) as exc:
            failures.append(exc)

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(run, job, name="review.read")
    if failures:
        raise failures[0]
