"""What the log and the metrics say of one visit. Reasons that people wrote are not among it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sidecar.decisions.actions import Resolve
from sidecar.decisions.expressions import DONE, STATES
from sidecar.errors import ReviewRejected

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.decisions.actions import Submit
    from sidecar.decisions.record import Record, Slot
    from sidecar.decisions.seen import Outcome
    from sidecar.decisions.settle import Result
    from sidecar.errors import PostRejected
    from sidecar.metrics import Metrics

log = logging.getLogger(__name__)


class Report:
    """Says it of the request `request_id`."""

    def __init__(self, request_id: str, metrics: Metrics) -> None:
        self._id = request_id
        self._metrics = metrics

    def trouble(self, detail: str, *, untouchable: bool = False) -> None:
        """Why this request cannot go on; `untouchable` where that is its record."""
        log.warning(
            "record.untouchable" if untouchable else "request.stuck", extra={"request_id": self._id, "detail": detail}
        )

    def unproven(self, cards: int) -> None:
        """So many posts that the record names as cards are none."""
        if cards:
            self._metrics.records_unproven_total.inc(cards)
            log.warning("record.unproven", extra={"request_id": self._id, "cards": cards})

    def messages(self, record: Record, *, ended: bool, claimed: bool, told: bool) -> None:
        """What became of a request's messages, for whoever asks at night whether anybody was told."""
        if ended:
            event = "request.ended"
        elif claimed:
            event = "request.announced"
            self._metrics.reviewers_left_out_total.inc(record.left)
            if not any(slot.k == "card" and slot.s != "failed" for slot in record.posts):
                log.warning("request.unasked", extra={"request_id": self._id})
        elif told:
            event = "request.updated"
        else:
            return
        posted = [slot.k for slot in record.posts if slot.s == "posted"]
        log.info(
            event,
            extra={
                "request_id": self._id,
                "request_state": record.seen[0],
                "reviews": record.seen[1],
                "told": len(posted),
                "untold": len(record.posts) - len(posted),
                # None: only the requester knows of it, or nobody.
                "reviewers_told": posted.count("card"),
                "reviewers_left_out": record.left,
            },
        )

    def decisions(self, outcomes: Iterable[Outcome]) -> None:
        """One audit line for each decision and each refusal."""
        for one in outcomes:
            done = one.outcome in DONE
            if not done:
                self._metrics.decisions_refused_total.labels(one.outcome).inc()
            expression = one.verdict.expression
            log.info(
                "decision.taken" if done else "decision.refused",
                extra={
                    "request_id": self._id,
                    "request_state": one.state,
                    "user_id": expression.user_id,
                    "reviewer": one.verdict.person.teleport_user,
                    "proposed_state": STATES.get(expression.verb, ""),
                    "way": expression.way,
                    "post_id": expression.post_id,
                    "outcome" if done else "reason": one.outcome,
                },
            )

    def submission(self, action: Submit | Resolve, result: Result) -> None:
        """Count a review that was submitted or tried."""
        state = action.state if isinstance(action, Resolve) else STATES[action.verdict.expression.verb]
        if result.error is None:
            self._metrics.reviews_total.labels(state, "submitted").inc()
        elif isinstance(result.error, ReviewRejected):
            self._metrics.reviews_total.labels(state, result.error.reason).inc()

    def rejected(self, slot: Slot, error: PostRejected) -> None:
        """Mattermost refused this recipient."""
        log.warning(
            "recipient.rejected",
            extra={
                "request_id": self._id,
                "recipient": slot.r,
                "status": error.status,
                "error_id": error.error_id,
                "slot_status": slot.s,
            },
        )

    def count(self, kind: str, outcome: str) -> None:
        """Count a post that was made, changed, found or deleted, or was to be."""
        if kind == "duplicate":
            self._metrics.duplicates_repaired_total.inc()
        elif kind == "update":
            self._metrics.updates_total.labels(outcome=outcome).inc()
        else:
            self._metrics.posts_total.labels(kind=kind, outcome=outcome).inc()
