"""From what stands in Mattermost to what is decided. Pure: what was read goes in, verdicts come out.

An expression is judged once; the verdict stands in the record's ledger, so that no sweep, restart or replica judges or
answers it again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from sidecar.decisions.expressions import (
    ACCEPTED,
    COUNTED,
    HINT,
    STATES,
    SUBMITTED,
    Expression,
    LedgerEntry,
    Person,
    Rules,
    Verdict,
    key_of,
    lacks_reason,
    speaks,
)
from sidecar.decisions.quorum import may_decide, reviewed_by
from sidecar.model import PENDING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidecar.model import AccessRequest

# One person's verdicts in one ledger; who goes on after that is not heard on this request.
MOST_BY_ONE = 20
# All together: 100 KB of the 1 MB that Teleport stores. Whoever has not spoken yet has as much room again.
MOST_BY_ALL = 1000
# The ledger's word for "whatever this person said until then".
ANYTHING = "*"


def unjudged(expressions: Iterable[Expression], ledger: tuple[LedgerEntry, ...]) -> list[Expression]:
    """The expressions that no verdict covers yet, oldest first.

    So is a direct message that counted and is not known from its event any more: its author is asked to say it again.
    """
    judged: dict[tuple[str, str, str], int] = {}
    counted = {entry[:4] for entry in ledger if entry[4] == COUNTED}
    for user_id, verb, source, at, _ in ledger:
        key = (user_id, verb, source)
        judged[key] = max(at, judged.get(key, 0))
    hinted = {entry[0] for entry in ledger if entry[4] == HINT}
    fresh = []
    for expression in sorted(set(expressions), key=_order):
        if expression.flaw == HINT:
            if expression.user_id in hinted:
                continue
            hinted.add(expression.user_id)
        known = judged.get((expression.user_id, expression.verb, expression.source), -1)
        refused_until = judged.get((expression.user_id, ANYTHING, ANYTHING), -1)
        lost = expression.flaw == "unheard" and key_of(expression) in counted
        if lost or expression.at > max(known, refused_until):
            fresh.append(expression)
    return fresh


def with_room(
    fresh: Iterable[Expression], people: Mapping[str, Person], ledger: tuple[LedgerEntry, ...]
) -> list[Expression]:
    """Leave out people without a link, who leave nothing in the ledger, and what the ledger has no room for."""
    known = {entry[:3] for entry in ledger}
    by_user = Counter(entry[0] for entry in ledger)
    kept = []
    for one in fresh:
        person = people.get(one.user_id)
        if person is None or not person.teleport_user:
            continue
        mine, most = by_user[one.user_id], MOST_BY_ALL if by_user[one.user_id] else 2 * MOST_BY_ALL
        if (one.user_id, one.verb, one.source) in known:
            kept.append(one)
        elif mine < MOST_BY_ONE and by_user.total() < most:
            kept.append(one)
            by_user[one.user_id] += 1
    return kept


def entry_for(verdict: Verdict, outcome: str) -> LedgerEntry:
    """What the ledger remembers: of who is no reviewer now only until when all that they said is refused."""
    one = verdict.expression
    if verdict.person.problem:
        return (one.user_id, ANYTHING, ANYTHING, one.at, outcome)
    if outcome == HINT:
        return (one.user_id, "?", ANYTHING, one.at, outcome)
    return (one.user_id, one.verb, one.source, one.at, outcome)


def judge(
    fresh: Iterable[Expression],
    standing: Iterable[Expression],
    people: Mapping[str, Person],
    request: AccessRequest,
    rules: Rules,
    asker: frozenset[str] | None = frozenset(),
    ledger: tuple[LedgerEntry, ...] = (),
    heads: tuple[tuple[str, str], ...] = (),
) -> list[Verdict]:
    """A verdict for each fresh expression. `standing` are all that were read, judged before or not.

    `asker` are the accounts that may be the requester's, None where nobody can tell; `heads` says as whom an account
    reviews.
    """
    verbs: dict[str, set[str]] = {}
    for expression in standing:
        person = people.get(expression.user_id)
        if person is not None and not person.problem and person.teleport_user and speaks(expression, rules):
            verbs.setdefault(person.teleport_user, set()).add(expression.verb)
    verdicts = []
    accepted: set[str] = set()
    for expression in sorted(fresh, key=_order):
        person = people.get(expression.user_id, Person(expression.user_id, problem="unknown"))
        outcome = _refusal(expression, person, request, rules, verbs.get(person.teleport_user, set()), asker)
        outcome = outcome or _renamed(person, ledger, heads)
        if not outcome and not rules.by_quorum and person.teleport_user in accepted:
            outcome = "duplicate"
        if not outcome:
            accepted.add(person.teleport_user)
        verdicts.append(Verdict(expression, outcome or ACCEPTED, person))
    return verdicts


def _order(expression: Expression) -> tuple[object, ...]:
    return expression.at, expression.post_id, *msgspec.structs.astuple(expression)


def _refusal(
    expression: Expression,
    person: Person,
    request: AccessRequest,
    rules: Rules,
    verbs: set[str],
    asker: frozenset[str] | None,
) -> str:
    """The first reason to refuse, in an order that tells nothing to whom nothing is to be told."""
    if expression.flaw in ("malformed", HINT) and not person.problem:
        return expression.flaw
    checks = (
        expression.flaw if expression.flaw != "malformed" else "",
        person.problem or ("" if person.teleport_user else "unmapped"),
        "own_request" if _asked(person, request, rules, asker or frozenset()) else "",
        "requester_unknown" if asker is None else "",
        request.teleport_only,
        "unfiltered" if rules.mode == "plugin" and _takes_anybody(request) else "",
        _reviewed(expression, person, request),
        "resolved" if request.state != PENDING else "",
        "conflict" if len(verbs) > 1 else "",
        "reason_required" if lacks_reason(expression, rules) else "",
        "" if may_decide(person, request, rules) else "not_reviewer",
    )
    return next(filter(None, checks), "")


def _asked(person: Person, request: AccessRequest, rules: Rules, asker: frozenset[str]) -> bool:
    """Whether the request is this person's own: by a name, by the account, or by a Teleport user that shares it."""
    shared = {rules.linked.get(account, "").casefold() for account in asker}
    return person.user_id in asker or bool(person.names & {request.user.casefold(), *shared})


def _takes_anybody(request: AccessRequest) -> bool:
    """Whether our own review and somebody's on Teleport would add up: one person could give both."""
    return any(not one.filter and max(one.approve, one.deny) > 1 for one in request.thresholds)


def _reviewed(expression: Expression, person: Person, request: AccessRequest) -> str:
    """Whether this person's review already stands in Teleport: the same verdict, or another one."""
    states = reviewed_by(person, request)
    if not states:
        return ""
    return "on_record" if states == [STATES.get(expression.verb)] else "duplicate"


def _renamed(person: Person, ledger: tuple[LedgerEntry, ...], heads: tuple[tuple[str, str], ...]) -> str:
    """One account is one head: whether a review was submitted for this one under another name."""
    names = {name for account, name in heads if account == person.user_id}
    before = any(entry[0] == person.user_id and entry[4] == SUBMITTED for entry in ledger)
    other = names - {person.teleport_user} or (before and not names)
    return "another_name" if other else ""
