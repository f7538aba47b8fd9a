"""Who is told of what: the access monitoring rules that Teleport lets us read, and the recipients of each role."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import trio

from sidecar.check.report import count, found, sentence
from sidecar.check.reviewers import Account
from sidecar.config import Config
from sidecar.decisions.routing import Routes, RuleBook, Ruled, entry_for, explain, read_rule, routes_of
from sidecar.errors import LinkError, LinkRefused
from sidecar.model import PENDING, AccessRequest, MonitoringRule
from sidecar.teleport.client import AuthClient
from sidecar.teleport.connect import Connector
from sidecar.teleport.findings import Finding, shown
from sidecar.teleport.identity import load_credentials

_SECONDS = 3.0

Traits = Mapping[str, tuple[str, ...]]


class Read(NamedTuple):
    """What Teleport said of the rules; `problem` is why it did not say all."""

    rules: tuple[Ruled, ...] = ()
    problem: str = ""
    absent: bool = False


class ByRules:
    """Whom rules name and the configuration does not, each with the rules; `known` once Teleport was asked."""

    def __init__(self) -> None:
        self.known = trio.Event()
        self.names: dict[str, list[str]] = {}

    def add(self, config: Config, rules: Iterable[Ruled]) -> None:
        configured = routes_of(config).configured
        for rule in rules:
            for name in rule.recipients:
                if name not in configured:
                    self.names.setdefault(name, []).append(rule.name)


async def check_rules(client: AuthClient, config: Config, by_rules: ByRules) -> list[Finding]:
    """The rules, what each that cannot be evaluated lacks, and who is told for each role; takes at most about 3 s."""
    findings: list[Finding] = []
    read, roles = Read(problem="no answer in time"), None
    with trio.move_on_after(_SECONDS):
        read = await read_rules(client, config)
        by_rules.add(config, read.rules)
        findings += _about_rules(config, read)
        findings += await _about_traits(client, config, read.rules)
        roles = await _roles(client)
    return [*findings, *_about_roles(config, read, roles)]


async def read_rules(client: AuthClient, config: Config) -> Read:
    """All rules that name our plugin."""
    if config.rules.mode == "off":
        return Read()
    rules: list[MonitoringRule] = []
    token, problem = "", ""
    try:
        while True:
            page, token = await client.list_rules(token)
            rules += page
            if not token:
                break
    except LinkError as exc:
        if exc.reason == "unimplemented":
            return Read(absent=True)
        problem = exc.detail
    read = (read_rule(rule, config.teleport.plugin_name) for rule in sorted(rules, key=lambda rule: rule.name))
    return Read(tuple(one for one in read if one is not None), problem)


async def who_is_told(config: Config, roles: tuple[str, ...], user: str) -> tuple[list[Finding], list[Account]]:
    """Whom a request of `user` for these roles would be told to, each with the rule or the line that names them."""
    read, traits = Read(problem="Teleport did not answer in time"), None
    with trio.move_on_after(2 * _SECONDS):
        async with trio.open_nursery() as nursery:
            read, traits = await _ask(nursery, config, user)
            nursery.cancel_scope.cancel()
    told = _told(config, read, roles, user, traits)
    findings = [found("told", name, why=why) for name, (_, why) in told.items()] or [
        found("told.nobody", shown(*roles))
    ]
    if read.problem:
        findings.append(found("told.rules", config.teleport.addr, problem=sentence(read.problem)))
    return findings, []


async def _ask(nursery: trio.Nursery, config: Config, user: str) -> tuple[Read, Traits | None]:
    """What Teleport says of the rules and of the user, by the way that leads to it."""
    teleport, proxy_ca_file = config.teleport, config.teleport.proxy_ca_file
    connector = Connector(nursery, teleport.addr, plugin_name=teleport.plugin_name, proxy_ca_file=proxy_ca_file)
    try:
        credentials = load_credentials(teleport)
        # Only for the way: what else is wrong, `sidecar check` says.
        await connector.preflight(credentials, verify="cluster", now=time.time(), step_seconds=_SECONDS)
        async with connector.open(credentials) as client:
            read = await read_rules(client, config)
            return read, await _traits(client, user) if user and _needs_traits(read.rules) else None
    except LinkError as exc:
        return Read(problem=exc.detail), None


async def _traits(client: AuthClient, user: str) -> Traits | None:
    try:
        return await client.user_traits(user)
    except LinkError:
        return None


async def _roles(client: AuthClient) -> list[str] | None:
    try:
        return await client.list_roles()
    except LinkError:
        return None


def _needs_traits(rules: Iterable[Ruled]) -> bool:
    return RuleBook(tuple(rules)).needs_traits


def _told(
    config: Config, read: Read, roles: tuple[str, ...], user: str, traits: Traits | None
) -> dict[str, tuple[str, str]]:
    book = RuleBook(read.rules, replace=config.rules.mode == "replace" and not read.problem)
    routes: Routes = routes_of(config)
    return dict(explain(AccessRequest(id="", user=user, state=PENDING, roles=roles), routes, book, traits))


def _about_rules(config: Config, read: Read) -> list[Finding]:
    name, mode = config.teleport.plugin_name, config.rules.mode
    if mode == "off":
        return [found("teleport.rules+off", name)]
    if read.absent:
        return [found("teleport.rules+absent", name)]
    # Who has no rules needs no right to read them.
    findings = [
        found("teleport.rules+unread", name, problem=sentence(read.problem))
        if read.problem
        else found("teleport.rules", name, rules=count(len(read.rules), "access monitoring rule"), mode=mode)
    ]
    unclear = (rule for rule in read.rules if rule.condition is None)
    return findings + [found("teleport.rules.not_evaluable", rule.name, problem=rule.problem) for rule in unclear]


async def _about_traits(client: AuthClient, config: Config, rules: tuple[Ruled, ...]) -> list[Finding]:
    if not _needs_traits(rules):
        return []
    try:
        # Nobody bears this name: what is asked is the right.
        await client.user_traits(f"nobody-{uuid.uuid4()}")
    except LinkRefused as exc:
        if exc.reason != "denied":
            return []
        return [found("teleport.rules.traits", config.teleport.plugin_name, problem=sentence(exc.detail))]
    except LinkError:
        pass
    return []


def _about_roles(config: Config, read: Read, roles: list[str] | None) -> list[Finding]:
    if roles is None:
        return [found("routes", config.teleport.plugin_name)]
    findings, table = [], routes_of(config).roles
    for role in sorted(roles):
        told = _told(config, read, (role,), "", None)
        if told:
            names = ", ".join(f"{name} ({why})" for name, (_, why) in told.items())
            findings.append(found("routes.role", role, names=names))
    nobody = [role for role in sorted(roles) if entry_for(role, table) is None]
    if nobody:
        number = count(len(nobody), "role")
        findings.append(found("routes.unmatched", "role_to_recipients", number=number, roles=shown(*nobody)))
    return findings
