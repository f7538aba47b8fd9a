"""What a review and a set state make of a request: pure, in Teleport's order of checks and in its words.

Facts: lib/services/access_request.go and lib/services/local/dynamic_access.go, 7.0 to 18.0.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace

import grpc
import msgspec

from sidecar.model import AccessRequest, Review
from sidecar.simulator.faults import Refusal
from sidecar.simulator.teleport.codec import Ballot, StoredRequest
from sidecar.simulator.teleport.profile import Profile
from sidecar.simulator.teleport.roles import Role, denied, filter_matches, invalid, may_review, resolution

REASON_LIMIT = 4096


@dataclass(frozen=True)
class Submission:
    """A review as it arrived; `created` None is year 1."""

    request_id: str
    author: str
    proposed_state: str
    reason: str = ""
    created: float | None = None
    roles: tuple[str, ...] = ()
    annotated: bool = False
    submitted_by: str = ""
    on_behalf: bool = False


@dataclass(frozen=True)
class StateChange:
    """A SetAccessRequestState as it arrived."""

    request_id: str
    state: str
    reason: str = ""
    delegator: str = ""
    annotations: tuple[tuple[str, tuple[str, ...]], ...] = ()
    roles: tuple[str, ...] = ()


def with_review(
    stored: StoredRequest, submission: Submission, reviewer_roles: Collection[Role], profile: Profile
) -> StoredRequest:
    """Add a review and what it resolves. Raises Refusal for each reason that Teleport has (checks 8 to 14)."""
    request = stored.request
    _check_review(request, submission, reviewer_roles, profile)
    created = submission.created
    if created is None and profile.stamps_reviews:
        created = time.time()
    review = Review(submission.author, submission.proposed_state, submission.reason, created)
    names = [role.name for role in reviewer_roles]
    indexes = tuple(
        index
        for index, threshold in enumerate(request.thresholds)
        if filter_matches(threshold.filter, names, request.roles)
    )
    ballots = (*stored.ballots, Ballot(indexes, submission.submitted_by, submission.on_behalf))
    reviews = (*request.reviews, review)
    state = None
    if request.state == "PENDING":
        state = resolution(request, zip(reviews, (ballot.indexes for ballot in ballots), strict=True))
    request = msgspec.structs.replace(request, reviews=reviews)
    if state is not None:
        # Only the review that resolves hands its reason on to the request, and only a request's reasons are limited.
        check_reason(submission.reason, "access request resolve reason", profile)
        request = _resolved(request, state, submission.reason)
    return replace(stored, request=request, ballots=ballots)


def with_state(stored: StoredRequest, change: StateChange) -> StoredRequest:
    """Set the state, whatever the thresholds say. Raises Refusal for an illegal transition."""
    request = stored.request
    if request.state == "DENIED" and change.state != "DENIED":
        raise invalid(f'cannot set request-state "{change.state}" (already denied)')
    for role in change.roles:
        if role not in request.roles:
            raise invalid(f'role "{role}" not in original request, overrides must be a subset of original role list')
    request = _resolved(request, change.state, change.reason or request.resolve_reason)
    if change.roles:
        request = msgspec.structs.replace(request, roles=change.roles)
    return replace(stored, request=request, annotations=change.annotations or stored.annotations)


def check_state_change(change: StateChange, profile: Profile) -> None:
    """Judge the arguments alone, before any look-up."""
    if change.state == "NONE":
        raise invalid("missing request state")
    if change.state == "PROMOTED" and profile.major >= 15:
        raise invalid("state promoted can be only set when promoting to access list")
    if change.roles and change.state != "APPROVED":
        raise invalid(f"cannot override roles when setting state: {change.state}")
    check_reason(change.reason, "access request resolve reason", profile)


def check_reason(reason: str, what: str, profile: Profile) -> None:
    """Enforce the limit that 12 brought."""
    if profile.limits_reasons and len(reason.encode("utf-8", "surrogateescape")) > REASON_LIMIT:
        raise invalid(f"{what} is too long, max {REASON_LIMIT} bytes")


def is_poisoned(request: AccessRequest) -> bool:
    """A pending request with a resolve reason can be stored, and then fails every read of it."""
    return request.state == "PENDING" and bool(request.resolve_reason)


def _check_review(
    request: AccessRequest, submission: Submission, reviewer_roles: Collection[Role], profile: Profile
) -> None:
    author = submission.author
    if not may_review(author, reviewer_roles, request):
        raise denied(f'user "{author}" cannot review request "{request.id}"')
    if submission.proposed_state not in {"APPROVED", "DENIED"}:
        state = submission.proposed_state
        # A state that came after 12 has no name there.
        told = "4" if state == "PROMOTED" and not profile.knows_promoted else state
        raise invalid(f"invalid state proposal: {told} (expected approval/denial)")
    if not request.thresholds:
        raise invalid("request is uninitialized or does not support reviews")
    if any(review.author == author for review in request.reviews):
        raise Refusal(profile.duplicate_review, f'user "{author}" has already reviewed this request')
    if submission.roles and len(submission.roles) < len(request.roles):
        raise _unsupported("role subselection is not yet supported in reviews, try omitting role list")
    if submission.annotated:
        raise _unsupported("annotations are not yet supported in reviews, try omitting annotations field")
    if profile.refuses_late_reviews and request.state != "PENDING":
        raise denied(f"the access request has been already {request.state.lower()}")


def _resolved(request: AccessRequest, state: str, reason: str) -> AccessRequest:
    # on approval the object lives as long as the access that it grants
    expires = request.access_until if state == "APPROVED" else request.expires
    return msgspec.structs.replace(request, state=state, resolve_reason=reason, expires=expires)


def _unsupported(details: str) -> Refusal:
    return Refusal(grpc.StatusCode.UNIMPLEMENTED, details)
