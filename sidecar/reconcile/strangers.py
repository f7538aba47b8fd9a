"""Answering people without a link, who say something on a card right now.

Nothing of it is on record, so that nobody can fill that, or make us write to Teleport, by talking.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from sidecar.decisions.answers import render_answer
from sidecar.decisions.deliberate import answer_id
from sidecar.decisions.expressions import STATES, Expression, Verdict
from sidecar.decisions.proof import MAX_ATTEMPTS, is_ours, keys
from sidecar.decisions.record import post_key
from sidecar.errors import LinkError, PostRejected
from sidecar.model import AccessRequest
from sidecar.once import Once

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.decisions.expressions import Person
    from sidecar.decisions.record import Record
    from sidecar.decisions.seen import Context
    from sidecar.metrics import Metrics
    from sidecar.reconcile.ports import Mattermost

log = logging.getLogger(__name__)

# How often one of them is answered, and for how long it is tried.
AGAIN_SECONDS = 3600.0
ANSWER_SECONDS = 30.0
# How often what one of them says on a card begins a look, as long as there was nothing to answer.
LOOK_SECONDS = 5.0


class Strangers:
    """Answers each of them once an hour, and logs them as often. `find` says who they are."""

    def __init__(self, mattermost: Mattermost, find: Callable[[str], Awaitable[Person]], metrics: Metrics) -> None:
        self._mattermost = mattermost
        self._find = find
        self._metrics = metrics
        self._told = Once(every=AGAIN_SECONDS)
        self._looked = Once(every=LOOK_SECONDS)

    def news(self, one: Expression) -> bool:
        """Whether this person is to be answered; it counts as done then."""
        return self._told.news(one.user_id, now=trio.current_time())

    def worth_a_look(self, user_id: str) -> bool:
        """Whether anything may come of what this person, who has no link, says on a card now."""
        now = trio.current_time()
        return self._told.due(user_id, now=now) and self._looked.news(user_id, now=now)

    async def answer(self, one: Expression, record: Record | None, context: Context) -> None:
        """Say that this changes nothing, unless another replica has done so already."""
        with trio.move_on_after(ANSWER_SECONDS):
            try:
                await self._answer(one, record, context)
            except (LinkError, PostRejected) as exc:
                log.debug("stranger.not_answered", extra={"user_id": one.user_id, "detail": str(exc)})

    async def _answer(self, one: Expression, record: Record | None, context: Context) -> None:
        person = await self._find(one.user_id)
        reason = person.problem or ("" if person.teleport_user else "unmapped")
        if not reason or record is None:
            return
        self._metrics.decisions_refused_total.labels(reason).inc()
        log.info(
            "decision.refused",
            extra={
                "request_id": context.request_id,
                "request_state": record.seen[0],
                "user_id": one.user_id,
                "reviewer": "",
                "proposed_state": STATES.get(one.verb, ""),
                "way": one.way,
                "post_id": one.post_id,
                "reason": reason,
            },
        )
        draft = render_answer(
            Verdict(one, reason, person), reason, AccessRequest(id=context.request_id, user="", state=record.seen[0])
        )
        which = answer_id(one)
        known = keys(record, "answer", one.channel_id, which, 0)
        if draft is None or any(
            is_ours(post, known, one.channel_id, context.bot_id) for post in await self._mattermost.thread(one.root_id)
        ):
            return
        for attempt in range(MAX_ATTEMPTS):
            key = post_key(record.seed, "answer", one.channel_id, which, attempt)
            tm: dict[str, object] = {
                "v": 1,
                "id": context.request_id,
                "k": key,
                "q": record.q,
                "c": context.options.cluster,
            }
            made = await self._mattermost.create_post(one.channel_id, draft, key=key, tm=tm, root_id=one.root_id)
            if is_ours(made, frozenset((key,)), one.channel_id, context.bot_id):
                self._metrics.posts_total.labels(kind="answer", outcome="ok").inc()
                return
