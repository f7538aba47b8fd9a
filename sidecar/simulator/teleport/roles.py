"""Users, roles, and what they allow: Teleport's RBAC as far as access requests and plugin data need it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import grpc

from sidecar.model import AccessRequest, Review, Threshold
from sidecar.simulator.faults import Refusal

REQUEST = "access_request"
PLUGIN_DATA = "access_plugin_data"
RULE = "access_monitoring_rule"

DEFAULT_THRESHOLD = Threshold(name="default", approve=1, deny=1)

_CONTAINS = re.compile(r'\s*(!?)\s*contains\(\s*(reviewer|request)\.roles\s*,\s*"([^"]*)"\s*\)\s*')


@dataclass(frozen=True)
class Role:
    """The allow block of a role. Names of roles and users may be globs; `rules` maps a resource to verbs."""

    name: str
    request_roles: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    suggested_reviewers: tuple[str, ...] = ()
    review_roles: tuple[str, ...] = ()
    submit_for_users: tuple[str, ...] = ()
    rules: Mapping[str, frozenset[str]] = field(default_factory=dict)
    deny_rules: Mapping[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class User:
    """A user; single sign-on ones get no certificates by `tctl auth sign`, bots need no second factor."""

    name: str
    roles: tuple[str, ...]
    sso: bool = False
    bot: bool = False
    traits: tuple[tuple[str, tuple[str, ...]], ...] = ()


def allows(roles: Iterable[Role], resource: str, verb: str) -> bool:
    """Say whether one role grants the verb and none denies it."""
    held = tuple(roles)
    return not denies(held, resource, verb) and any(verb in role.rules.get(resource, ()) for role in held)


def denies(roles: Iterable[Role], resource: str, verb: str) -> bool:
    """Say whether a role denies the verb explicitly."""
    return any(verb in role.deny_rules.get(resource, ()) for role in roles)


def require(roles: Iterable[Role], resource: str, verb: str) -> None:
    """Refuse in Teleport's words."""
    if not allows(roles, resource, verb):
        raise denied(f'access denied to perform action "{verb}" on "{resource}"')


def denied(details: str) -> Refusal:
    """Build the commonest refusal."""
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, details)


def invalid(details: str) -> Refusal:
    """Build the answer to a bad argument."""
    return Refusal(grpc.StatusCode.INVALID_ARGUMENT, details)


def matches(patterns: Iterable[str], name: str) -> bool:
    """Match a name against literals and globs, as role matchers do."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def may_review(user: str, roles: Iterable[Role], request: AccessRequest) -> bool:
    """Nobody reviews their own request; every requested role must be covered."""
    patterns = [pattern for role in roles for pattern in role.review_roles]
    return user != request.user and all(matches(patterns, role) for role in request.roles)


def thresholds_for(
    user: str, roles: Iterable[Role], requested: Iterable[str]
) -> tuple[tuple[Threshold, ...], tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]]:
    """Collect the thresholds of a new request and, for each role, the index sets that must each be met.

    One set comes from each of the requester's roles that allow the requested role (thresholdCollector in
    lib/services/access_request.go). Raises Refusal for a role that nobody may request.
    """
    held = tuple(roles)
    collected: list[Threshold] = []
    mapping = []
    for wanted in sorted(set(requested)):
        allowing = [role for role in held if matches(role.request_roles, wanted)]
        sets = [[_index(collected, each) for each in role.thresholds or (DEFAULT_THRESHOLD,)] for role in allowing]
        if not sets:
            raise invalid(f'user "{user}" can not request role "{wanted}"')
        mapping.append((wanted, tuple(tuple(each) for each in sets)))
    return tuple(collected), tuple(mapping)


def filter_matches(text: str, reviewer_roles: Iterable[str], request_roles: Iterable[str]) -> bool:
    """Evaluate a threshold's filter. Known: contains(reviewer.roles|request.roles, "x") with !, && and ||.

    Raises:
        ValueError: the filter says more than that.

    """
    values = {"reviewer": set(reviewer_roles), "request": set(request_roles)}
    return not text or any(all(_term(term, values) for term in side.split("&&")) for side in text.split("||"))


def resolution(request: AccessRequest, reviews: Iterable[tuple[Review, tuple[int, ...]]]) -> str | None:
    """Decide by the reviews and the thresholds each counts toward; None while nothing is decided.

    calculateReviewBasedResolution in lib/services/access_request.go.
    """
    counts = [{"APPROVED": 0, "DENIED": 0} for _ in request.thresholds]
    for review, indexes in reviews:
        for index in indexes:
            counts[index][review.proposed_state] += 1
    pairs = list(zip(request.thresholds, counts, strict=True))
    if any(threshold.deny and count["DENIED"] >= threshold.deny for threshold, count in pairs):
        return "DENIED"
    approving = {
        index
        for index, (threshold, count) in enumerate(pairs)
        if threshold.approve and count["APPROVED"] >= threshold.approve
    }
    sets = dict(request.role_thresholds)
    if all(role in sets and all(approving.intersection(each) for each in sets[role]) for role in request.roles):
        return "APPROVED"
    return None


def _index(collected: list[Threshold], threshold: Threshold) -> int:
    if threshold not in collected:
        collected.append(threshold)
    return collected.index(threshold)


def _term(text: str, values: Mapping[str, set[str]]) -> bool:
    found = _CONTAINS.fullmatch(text)
    if found is None:
        raise ValueError(f"unsupported filter: {text}")
    negated, variable, role = found.groups()
    return (role in values[variable]) is not bool(negated)
