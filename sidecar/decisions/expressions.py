"""What people ask for in Mattermost, who they are, and by which rules that counts: the values that are judged. Pure.

An expression is a reaction, a reply or a direct message that asks for a decision, or looks as if it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from sidecar.config import Policy
from sidecar.model import APPROVED, DENIED
from sidecar.text.command import Decision, Malformed, NearMiss, NotACommand, is_near_emoji, parse_thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sidecar.decisions.record import Slot
    from sidecar.model import Post, Reaction
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


def speaks(expression: Expression, rules: Rules) -> bool:
    """Whether this says what its author wants: one that lacks a required reason was no decision."""
    return not expression.flaw and not lacks_reason(expression, rules)


def lacks_reason(expression: Expression, rules: Rules) -> bool:
    return not expression.reason and rules.require_reason in (expression.verb, "both")
