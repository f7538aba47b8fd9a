"""Who is told about an access request. Pure: names only, nothing is looked up."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import msgspec

from sidecar.decisions.conditions import Condition, NotEvaluable, facts_of, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sidecar.config import Config
    from sidecar.decisions.record import Kind
    from sidecar.model import AccessRequest, MonitoringRule

RuleMode = Literal["replace", "add", "off"]

_BY_REQUESTER = "a suggested reviewer"
_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """The routing part of the configuration, by plain names.

    `roles` maps a role, a pattern of roles ("prod-*") or "*" to recipient names; `reviewers` and `requesters` map a
    Teleport user to the name of a direct recipient.
    """

    roles: dict[str, tuple[str, ...]]
    suggested_reviewers: Literal["off", "mapped", "email"] = "email"
    # A requester may name anybody: so many who exist are told.
    max_suggested: int = 20
    reviewers: dict[str, str] = {}
    requesters: dict[str, str] = {}
    notify_requester: bool = True

    @property
    def configured(self) -> frozenset[str]:
        """The names that the operator wrote down; all others are what a requester says or is called."""
        return frozenset((*(name for names in self.roles.values() for name in names), *self.requesters.values()))


class Ruled(msgspec.Struct, frozen=True):
    """A rule that names our plugin, with its condition, or with why that cannot be evaluated."""

    name: str
    recipients: tuple[str, ...]
    condition: Condition | None = None
    problem: str = ""


class RuleBook(msgspec.Struct, frozen=True):
    """The rules of now. `replace` says whether those that hold replace the configuration's recipients.

    Where Teleport may have told of some rules only, they must not: who is named in another one would be forgotten.
    Where rules are or were `used`, requests that were announced keep the recipients that they had then.
    """

    rules: tuple[Ruled, ...] = ()
    replace: bool = False
    used: bool = False

    @property
    def needs_traits(self) -> bool:
        """Whether somebody must ask for the traits of the user."""
        return any(rule.condition is not None and rule.condition.needs_traits for rule in self.rules)

    @property
    def recipients(self) -> frozenset[str]:
        """The names that operators wrote into rules."""
        return frozenset(name for rule in self.rules for name in rule.recipients)


class Named(msgspec.Struct, frozen=True):
    """A recipient by name, with what it is to get; `suggested`: the requester named it, and nothing else does."""

    name: str
    kind: Kind = "card"
    suggested: bool = False


def routes_of(config: Config) -> Routes:
    """The routing part of the configuration."""
    return Routes(
        roles=dict(config.role_to_recipients),
        suggested_reviewers=config.mattermost.suggested_reviewers,
        max_suggested=config.mattermost.max_suggested_reviewers,
        reviewers={one.user: f"user:{one.id}" if one.id else f"@{name}" for name, one in config.reviewers.items()},
        requesters=config.requester_recipients(),
        notify_requester=config.mattermost.notify_requester,
    )


def is_email(text: str) -> bool:
    """Whether Mattermost could know a user by this address; stricter than the RFCs on purpose."""
    return len(text) <= 254 and _EMAIL.fullmatch(text) is not None


def read_rule(rule: MonitoringRule, plugin: str) -> Ruled | None:
    """Understand a rule; None where it does not tell `plugin` of access requests."""
    if rule.plugin != plugin or "access_request" not in rule.subjects:
        return None
    if rule.unreadable:
        return Ruled(rule.name, rule.recipients, None, "it has a field that this sidecar does not know")
    try:
        return Ruled(rule.name, rule.recipients, parse(rule.condition))
    except NotEvaluable as exc:
        return Ruled(rule.name, rule.recipients, None, f"its condition cannot be evaluated: {exc}")


def route(
    request: AccessRequest,
    routes: Routes,
    book: RuleBook = RuleBook(),  # noqa: B008 - a frozen value
    traits: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Named, ...]:
    """The recipients of a request in a stable order, without repeats by name; suggested reviewers, however many.

    `traits` are the requester's, None where they are not known: then rules that ask for them cannot be evaluated.
    """
    told = explain(request, routes, book, traits)
    return tuple(Named(name, kind, why == _BY_REQUESTER) for name, (kind, why) in told.items())


def explain(
    request: AccessRequest,
    routes: Routes,
    book: RuleBook = RuleBook(),  # noqa: B008 - a frozen value
    traits: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, tuple[Kind, str]]:
    """The same, name by name, each with the line or the rule that names it.

    Rules that hold replace the configuration's recipients and the suggested reviewers, as in the official plugin. One
    that cannot be evaluated removes nobody: its recipients are told, and those of the configuration, too.
    """
    by_rules, certain = _by_rules(request, book, traits)
    told: dict[str, tuple[Kind, str]] = {}
    if not (by_rules and certain and book.replace):
        for name, why in (*_by_roles(request, routes), *_suggested(request, routes)):
            told.setdefault(name, ("card", why))
    for name, why in by_rules.items():
        told.setdefault(name, ("card", why))
    if routes.notify_requester and (requester := _direct(request.user, routes.requesters)):
        told.setdefault(requester, ("requester", "the requester"))
    return told


def entry_for(role: str, roles: Mapping[str, tuple[str, ...]]) -> str | None:
    """The key of role_to_recipients that a role takes: its own, the longest pattern that fits, "*", or none."""
    if role in roles:
        return role
    fitting = [key for key in roles if "*" in key and _pattern(key).fullmatch(role)]
    return min(fitting, key=lambda key: (-len(key), key), default=None)


def _by_rules(
    request: AccessRequest, book: RuleBook, traits: Mapping[str, tuple[str, ...]] | None
) -> tuple[dict[str, str], bool]:
    """The names in rules that hold or may hold, and whether all rules could be evaluated."""
    names: dict[str, str] = {}
    if not book.rules:
        return names, True
    facts = facts_of(request, traits or {})
    certain = True
    for rule in book.rules:
        condition = rule.condition
        if condition is None or (condition.needs_traits and traits is None):
            certain = False
            why = f'the access monitoring rule "{rule.name}", which cannot be evaluated'
        elif condition.holds(facts):
            why = f'the access monitoring rule "{rule.name}"'
        else:
            continue
        for name in rule.recipients:
            names.setdefault(name, why)
    return names, certain


def _by_roles(request: AccessRequest, routes: Routes) -> Iterator[tuple[str, str]]:
    """A request without roles goes to "*", although the official plugin would tell nobody about it."""
    for role in request.roles or ("*",):
        key = entry_for(role, routes.roles)
        if key is not None:
            yield from ((name, f'role_to_recipients."{key}"') for name in routes.roles[key])


def _suggested(request: AccessRequest, routes: Routes) -> list[tuple[str, str]]:
    if routes.suggested_reviewers == "off":
        return []
    by_email = routes.suggested_reviewers == "email"
    found: dict[str, str] = {}
    for user in request.suggested_reviewers:
        name = routes.reviewers.get(user) or (user if by_email and is_email(user) else "")
        if name:
            found.setdefault(name, _BY_REQUESTER)
    return list(found.items())


def _direct(user: str, mapped: dict[str, str]) -> str:
    return mapped.get(user) or (user if is_email(user) else "")


@lru_cache(maxsize=1024)
def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, key.split("*"))), re.DOTALL)
