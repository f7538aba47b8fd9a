"""From what stands in Mattermost to what is decided. Pure: what was read goes in, verdicts come out.

An expression is a reaction, a reply or a direct message that asks for a decision. It is judged once; the verdict stands
in the record's ledger, so that no sweep, restart or replica judges or answers it again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import msgspec

from sidecar.config import Policy
from sidecar.model import APPROVED, DENIED, PENDING
from sidecar.text.command import Decision, Malformed, NearMiss, NotACommand, is_near_emoji, parse_thread
from sidecar.text.names import bare

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidecar.decisions.record import Slot
    from sidecar.model import AccessRequest, Post, Reaction
    from sidecar.text.command import Verb

Way = Literal["reaction", "reply", "direct"]
Mode = Literal["none", "reviewer", "plugin", "on_behalf", "state"]
LedgerEntry = tuple[str, str, str, int, str]

# Properties that any of the ways to post in somebody's name leaves behind (mattermost-server app/webhook.go,
# app/command.go, v11 app/post.go). They are reasons to refuse; their absence proves nothing.
FORGED = frozenset({
    "from_webhook", "from_bot", "from_plugin", "from_oauth_app", "override_username", "override_icon_url",
    "override_icon_emoji", "webhook_display_name", "ai_generated_by",
})  # fmt: skip

# One person's verdicts in one ledger; who goes on after that is not heard on this request.
MOST_BY_ONE = 20
# All together: 100 KB of the 1 MB that Teleport stores. Whoever has not spoken yet has as much room again.
MOST_BY_ALL = 1000
# The ledger's word for "whatever this person said until then".
ANYTHING = "*"
# What only looks like a decision: its author is told how to decide, once.
HINT = "hint"

STATES: Mapping[str, str] = {"approve": APPROVED, "deny": DENIED}


class Expression(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody asks for a decision.

    `at` is Mattermost's time in milliseconds, `flaw` a refusal that the post itself earns, `verb` "?" where the words
    do not fit the grammar.
    """

    user_id: str
    verb: Verb | Literal["?"]
    way: Way
    post_id: str
    at: int
    channel_id: str
    root_id: str = ""
    reason: str = ""
    flaw: str = ""

    @property
    def source(self) -> str:
        """How the ledger names the post."""
        return f"{self.way}|{self.post_id}"


class Person(msgspec.Struct, frozen=True):
    """Who a Mattermost user is on Teleport; `problem` says why they are nobody.

    `username` is for addressing them and proves nothing. `also` are the other Teleport users that share an account with
    this one, by the operator's tables: they are one head, and their requests are this person's own.
    """

    user_id: str
    teleport_user: str = ""
    problem: str = ""
    username: str = ""
    also: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """All Teleport users that this person may be, without case: for excluding alone."""
        return frozenset(user.casefold() for user in (self.teleport_user, *self.also) if user)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator allows; `policies` by role, "*" for the rest; `linked` the Teleport user of each account."""

    mode: Mode = "none"
    ways: tuple[Way, ...] = ("reaction", "reply", "direct")
    approve: tuple[str, ...] = ("white_check_mark",)
    deny: tuple[str, ...] = ("x",)
    # Emoji by which a reviewer says "I am on it".
    looking: tuple[str, ...] = ()
    require_reason: Literal["none", "approve", "deny", "both"] = "none"
    policies: dict[str, Policy] = {}
    linked: dict[str, str] = {}

    @property
    def by_quorum(self) -> bool:
        """Whether the sidecar counts heads itself and submits once."""
        return self.mode in ("plugin", "state")


class Verdict(msgspec.Struct, frozen=True):
    """What becomes of one expression: "accepted", or the reason of its refusal."""

    expression: Expression
    outcome: str
    person: Person


ACCEPTED = "accepted"
# Outcomes under which an expression goes on counting towards a quorum.
COUNTED = "counted"
SUBMITTED = "submitted"
# Outcomes of what was carried out; all others are refusals.
DONE = frozenset({SUBMITTED, COUNTED, "on_record"})


def key_of(expression: Expression) -> tuple[str, str, str, int]:
    """What makes it the same expression: who, what, where and when."""
    return expression.user_id, expression.verb, expression.source, expression.at


def read_reactions(slot: Slot, reactions: Iterable[Reaction], rules: Rules, bot_id: str) -> list[Expression]:
    """The decisions among the reactions that stand on a card now."""
    if "reaction" not in rules.ways:
        return []
    verbs: dict[str, Verb] = {**dict.fromkeys(rules.approve, "approve"), **dict.fromkeys(rules.deny, "deny")}

    def flaw(reaction: Reaction) -> str:
        return "remote" if reaction.remote_id else "" if reaction.emoji_name in verbs else HINT

    return [
        Expression(
            user_id=reaction.user_id,
            verb=verbs.get(reaction.emoji_name, "?"),
            way="reaction",
            post_id=slot.p,
            at=reaction.update_at,
            channel_id=slot.c,
            root_id=slot.p,
            flaw=flaw(reaction),
        )
        for reaction in reactions
        if (reaction.emoji_name in verbs or (is_near_emoji(reaction.emoji_name) and not reaction.remote_id))
        and reaction.emoji_name not in rules.looking
        and reaction.user_id != bot_id
        and reaction.post_id == slot.p
        and not reaction.delete_at
    ]


def read_thread(slot: Slot, posts: Iterable[Post], rules: Rules, bot_id: str) -> list[Expression]:
    """The decisions among the replies to a card; talk is left out."""
    found = []
    posts = list(posts)
    root = next((post for post in posts if post.id == slot.p), None)
    if root is None or "reply" not in rules.ways:
        return []
    for post in posts:
        if post.user_id == bot_id or post.root_id != slot.p or post.channel_id != slot.c or post.delete_at:
            continue
        command = parse_thread(post.message)
        if not isinstance(command, NotACommand) and not (isinstance(command, NearMiss) and find_flaw(post)):
            late = post.create_at < root.create_at
            found.append(express(post, "reply", command, root_id=slot.p, flaw="forged" if late else ""))
    return found


def express(
    post: Post, way: Way, command: Decision | Malformed | NearMiss, *, root_id: str = "", flaw: str = ""
) -> Expression:
    """A post that was parsed, with the flaw that it bears itself."""
    unfit = "" if isinstance(command, Decision) else HINT if isinstance(command, NearMiss) else "malformed"
    return Expression(
        user_id=post.user_id,
        verb=command.verb if isinstance(command, Decision) else "?",
        way=way,
        post_id=post.id,
        at=post.create_at,
        channel_id=post.channel_id,
        root_id=root_id,
        reason=command.reason if isinstance(command, Decision) else "",
        flaw=flaw or find_flaw(post) or unfit,
    )


def find_flaw(post: Post) -> str:
    """Why a post is not a plain, unedited one that a person typed: "" where nothing speaks against it."""
    if post.skipped or post.props & FORGED or post.type or post.original_id or post.delete_at:
        return "forged"
    if post.remote_id:
        return "remote"
    return "edited" if post.edit_at else ""


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
        if person is not None and not person.problem and person.teleport_user and _speaks(expression, rules):
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


def _speaks(expression: Expression, rules: Rules) -> bool:
    """Whether this says what its author wants: one that lacks a required reason was no decision."""
    return not expression.flaw and not _lacks_reason(expression, rules)


def _lacks_reason(expression: Expression, rules: Rules) -> bool:
    return not expression.reason and rules.require_reason in (expression.verb, "both")


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
        "reason_required" if _lacks_reason(expression, rules) else "",
        "" if _may_decide(person, request, rules) else "not_reviewer",
    )
    return next(filter(None, checks), "")


def _asked(person: Person, request: AccessRequest, rules: Rules, asker: frozenset[str]) -> bool:
    """Whether the request is this person's own: by a name, by the account, or by a Teleport user that shares it."""
    shared = {rules.linked.get(account, "").casefold() for account in asker}
    return person.user_id in asker or bool(person.names & {request.user.casefold(), *shared})


def _takes_anybody(request: AccessRequest) -> bool:
    """Whether our own review and somebody's on Teleport would add up: one person could give both."""
    return any(not one.filter and max(one.approve, one.deny) > 1 for one in request.thresholds)


def reviewed_by(person: Person, request: AccessRequest) -> list[str]:
    """What this person's reviews in Teleport propose; whoever reviewed there is no head here."""
    return [review.proposed_state for review in request.reviews if review.author.casefold() in person.names]


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


def _may_decide(person: Person, request: AccessRequest, rules: Rules) -> bool:
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
        if person is None or person.problem or not person.teleport_user or not _speaks(one, rules):
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
