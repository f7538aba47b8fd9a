"""How a decision reaches Teleport, by `reviews.submit_as`; every way refuses what it cannot do honestly."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from sidecar.decisions.expressions import STATES
from sidecar.errors import LinkLost, LinkRefused, ReviewRejected
from sidecar.model import PENDING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.decisions.expressions import Mode, Verdict
    from sidecar.model import AccessRequest, Ping
    from sidecar.reconcile.ports import Teleport

# The first version in which a plugin may submit a person's review (upstream RFD 0250).
ON_BEHALF_SINCE = (18, 11)

Submit: TypeAlias = "Callable[..., Awaitable[AccessRequest]]"


class Submitter:
    """`own_user` is the Teleport user of our certificate, `as_reviewer` submits by a reviewer's own credentials."""

    def __init__(self, mode: Mode, own: Teleport, own_user: Callable[[], str], as_reviewer: Submit | None) -> None:
        self._mode = mode
        self._own = own
        self._own_user = own_user
        self._as_reviewer = as_reviewer

    async def review(self, verdict: Verdict, request: AccessRequest) -> AccessRequest:
        """One person's own review. Raises ReviewRejected, RequestGone, LinkError."""
        user, state, reason = verdict.person.teleport_user, STATES[verdict.expression.verb], verdict.expression.reason
        if self._mode == "reviewer" and self._as_reviewer is not None:
            cluster = self._own.info.cluster if self._own.info is not None else ""
            return await self._as_reviewer(user, request.id, state, reason, cluster=cluster)
        if self._mode == "on_behalf":
            refusal = on_behalf_refusal(self._own.info)
            if refusal:
                raise ReviewRejected("not_allowed", refusal)
            return await self._as_self(request, user, state, reason, on_behalf_by=self._own_user())
        raise ReviewRejected("other", "decisions are not submitted in this mode")

    async def resolve(self, request: AccessRequest, state: str, reason: str, voters: tuple[str, ...]) -> AccessRequest:
        """One submission for a quorum, as ourselves; done already counts as done. Raises like `review`."""
        own_user = self._own_user()
        if self._mode == "plugin":
            return await self._resolve_as_plugin(request, own_user, state, reason)
        refusal = state_refusal(self._own.info, request)
        if refusal:
            raise ReviewRejected("unsafe_state", refusal)
        try:
            await self._own.set_state(request.id, state, reason, f"mattermost:{','.join(voters)}"[:500])
        except LinkRefused as exc:
            raise ReviewRejected("not_allowed", exc.detail) from exc
        except LinkLost as exc:
            return await self._read_back(request.id, exc, lambda now: now.state == state)
        return await self._own.get_request(request.id) or request

    async def _resolve_as_plugin(self, request: AccessRequest, own_user: str, state: str, reason: str) -> AccessRequest:
        def reviewed(now: AccessRequest) -> bool:
            ours = {review.proposed_state for review in now.reviews if review.author == own_user}
            if ours - {state}:
                raise ReviewRejected("opposite", "the sidecar's own review says the opposite")
            return bool(ours)

        if reviewed(request):
            return request
        try:
            return await self._as_self(request, own_user, state, reason)
        except LinkLost as exc:
            return await self._read_back(request.id, exc, reviewed)

    async def _read_back(self, request_id: str, lost: LinkLost, done: Callable[[AccessRequest], bool]) -> AccessRequest:
        """Return the request if the submission whose answer was lost was carried out; else raise `lost`."""
        if lost.ambiguous:
            await self._own.ready()
            now = await self._own.get_request(request_id)
            if now is not None and done(now):
                return now
        raise lost

    async def _as_self(
        self, request: AccessRequest, author: str, state: str, reason: str, *, on_behalf_by: str = ""
    ) -> AccessRequest:
        try:
            return await self._own.submit_review(request.id, author, state, reason, on_behalf_by=on_behalf_by)
        except LinkRefused as exc:
            raise ReviewRejected("not_allowed", exc.detail) from exc


def on_behalf_refusal(info: Ping | None) -> str:
    """Why a review cannot be submitted for somebody on this server, "" where it can."""
    version = info.server_version if info is not None else ""
    numbers = version.removeprefix("v").partition("-")[0].split(".")
    try:
        known = (int(numbers[0]), int(numbers[1]))
    except (ValueError, IndexError):
        return f"the Auth Service does not say a version that can be read ({version[:20]!r})"
    if known < ON_BEHALF_SINCE:
        return f'submit_as = "on_behalf" needs Teleport 18.11, this is {version[:20]}'
    return ""


def state_refusal(info: Ping | None, request: AccessRequest) -> str:
    """Why the state must not be set past Teleport's reviews, "" where there are none to go past.

    Only on the edition without reviews (Ping feature 7 false, no paid entitlement enabled), only for a request with the
    default threshold that every edition makes, and never for one that is decided.
    """
    if info is None:
        return "the Auth Service has not said yet what it is"
    if info.advanced_workflows or info.paid_entitlement:
        return "this cluster has access reviews of its own"
    match request.thresholds:
        case (threshold,) if (threshold.approve, threshold.deny, threshold.filter) == (1, 1, ""):
            return "" if request.state == PENDING else f"the request is already {request.state}"
    return "this request has thresholds of its own"
