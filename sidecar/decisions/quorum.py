"""The policy's count: who may decide, what each head stands for, and whether that is enough. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.decisions.expressions import ACCEPTED, COUNTED, Rules, key_of, speaks
from sidecar.model import APPROVED, DENIED
from sidecar.text.names import bare

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidecar.config import Policy
    from sidecar.decisions.expressions import Expression, LedgerEntry, Person, Verdict
    from sidecar.model import AccessRequest


def reviewed_by(person: Person, request: AccessRequest) -> list[str]:
    """What this person's reviews in Teleport propose; whoever reviewed there is no head here."""
    return [review.proposed_state for review in request.reviews if review.author.casefold() in person.names]


def may_decide(person: Person, request: AccessRequest, rules: Rules) -> bool:
    return not rules.by_quorum or person.teleport_user in deciders(request, rules)


def _policy(role: str, rules: Rules) -> Policy | None:
    return rules.policies.get(role) or rules.policies.get("*")


def tally(request: AccessRequest, votes: Mapping[str, str], rules: Rules) -> str:
    """The state that the policy's quorum asks for, "" while there is none. `votes`: Teleport user -> verb.

    Every role needs its own approvals; one role's denials are enough. A role without a policy is never approved.
    """
    approved = True
    for role in request.roles or ("*",):
        policy = _policy(role, rules)
        if policy is None:
            approved = False
            continue
        approvals, denials = _heads(request, votes, policy)
        if denials >= policy.denials:
            return DENIED
        approved = approved and approvals >= policy.approvals
    return APPROVED if approved else ""


def progress(request: AccessRequest, votes: Mapping[str, str], rules: Rules, verb: str) -> str:
    """How far the quorum for this verb is: "1 of 2", by role where several count apart."""
    lines = {}
    for role in request.roles or ("*",):
        policy = _policy(role, rules)
        if policy is not None:
            approvals, denials = _heads(request, votes, policy)
            given, needed = (denials, policy.denials) if verb == "deny" else (approvals, policy.approvals)
            lines[role] = f"{given} of {needed}"
    if len(set(lines.values())) == 1:
        return next(iter(lines.values()))
    return ", ".join(f"{line} for {bare(role)}" for role, line in lines.items())


def deciders(request: AccessRequest, rules: Rules) -> tuple[str, ...]:
    """Whom the policy names for what is asked for, without the requester; nobody where no policy decides."""
    if not rules.by_quorum:
        return ()
    policies = [policy for role in request.roles or ("*",) if (policy := _policy(role, rules)) is not None]
    names = dict.fromkeys(name for policy in policies for name in policy.reviewers)
    return tuple(name for name in names if name.casefold() != request.user.casefold())


def _heads(request: AccessRequest, votes: Mapping[str, str], policy: Policy) -> tuple[int, int]:
    """How many of the policy's people approve and deny; the requester is none of them."""
    requester = request.user.casefold()
    heard = [verb for user, verb in votes.items() if user in policy.reviewers and user.casefold() != requester]
    return heard.count("approve"), heard.count("deny")


def counted(ledger: tuple[LedgerEntry, ...], verdicts: Iterable[Verdict]) -> frozenset[tuple[str, str, str, int]]:
    """What was accepted before or just now; it counts while it stands."""
    before = {entry[:4] for entry in ledger if entry[4] == COUNTED}
    return frozenset(before | {key_of(one.expression) for one in verdicts if one.outcome == ACCEPTED})


def votes(
    standing: Iterable[Expression],
    ledger: tuple[LedgerEntry, ...],
    verdicts: Iterable[Verdict],
    people: Mapping[str, Person],
    rules: Rules,
    request: AccessRequest,
) -> dict[str, str]:
    """What each head stands for now: accepted before or just now, still there, of one mind, and not on Teleport.

    Teleport users that share an account are one head, which bears the first of their names.
    """
    keys = counted(ledger, verdicts)
    heads: list[tuple[frozenset[str], set[str], set[str]]] = []
    for one in standing:
        person = people.get(one.user_id)
        if person is None or person.problem or not person.teleport_user or not speaks(one, rules):
            continue
        # A contradiction counts against even where it was itself refused.
        counts = key_of(one) in keys and not reviewed_by(person, request)
        said: set[str] = {one.verb}
        head = (person.names, said, {person.teleport_user} if counts else set())
        for same in [other for other in heads if other[0] & head[0]]:
            heads.remove(same)
            head = (head[0] | same[0], head[1] | same[1], head[2] | same[2])
        heads.append(head)
    return {min(users): next(iter(verbs)) for _, verbs, users in heads if users and len(verbs) == 1}
