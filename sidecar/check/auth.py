"""The Auth Service: reach it, then ask everything that `run` will ask, without leaving a trace in it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from sidecar.check import decisions, rights, rules
from sidecar.check.report import TELEPORT_LOG, Step, failure, sentence, side_by_side, warning
from sidecar.check.rights import Answers
from sidecar.config import Config
from sidecar.errors import Conflict, LinkError, LinkRefused, RequestGone
from sidecar.teleport.client import AuthClient, Credentials
from sidecar.teleport.connect import Connector
from sidecar.teleport.findings import Finding
from sidecar.teleport.identity import load_credentials
from sidecar.teleport.x509 import read_certificate

_STEP_SECONDS = 3.0
_CALL_SECONDS = 7.0

Ask = Callable[[AuthClient, Answers], Awaitable[None]]


async def check_teleport(config: Config, findings: list[Finding], by_rules: rules.ByRules) -> None:
    """Add what is found to `findings`; takes at most about 27 s, 50 s with a Proxy that is silent at each step.

    Whom access monitoring rules name is known at the end, whatever happened.
    """
    try:
        await _check_teleport(config, findings, by_rules)
    finally:
        by_rules.known.set()


async def _check_teleport(config: Config, findings: list[Finding], by_rules: rules.ByRules) -> None:
    addr = config.teleport.addr
    try:
        credentials = load_credentials(config.teleport)
    except LinkRefused:
        # Which file it is has been said.
        findings.append(_unchecked(addr, "our credentials cannot be read: the connection, our rights, plugin data"))
        return
    teleport = config.teleport
    # By the cluster's own name also where verify = "hostname": what that finds has been said.
    async with trio.open_nursery() as nursery:
        connector = Connector(nursery, addr, plugin_name=teleport.plugin_name, proxy_ca_file=teleport.proxy_ca_file)
        await _look(connector, credentials, config, findings, by_rules)
        nursery.cancel_scope.cancel()


async def _look(
    connector: Connector,
    credentials: Credentials,
    config: Config,
    findings: list[Finding],
    by_rules: rules.ByRules,
) -> None:
    addr, verify = config.teleport.addr, config.teleport.verify
    findings += await connector.preflight(credentials, verify=verify, now=time.time(), step_seconds=_STEP_SECONDS)
    if findings[-1].id != "teleport.client":
        findings.append(_unchecked(addr, "the Auth Service cannot be used: its version, our rights, plugin data"))
        return
    try:
        async with connector.open(credentials) as client:
            await _ask_all(client, connector, credentials, config, findings, by_rules)
    except LinkError as exc:
        findings.append(failure(f"teleport.connection.{exc.reason}", addr, sentence(exc.detail), TELEPORT_LOG))


async def _ask_all(
    client: AuthClient,
    connector: Connector,
    credentials: Credentials,
    config: Config,
    findings: list[Finding],
    by_rules: rules.ByRules,
) -> None:
    addr = config.teleport.addr
    ours, roles = read_certificate(credentials.certificate), tuple(config.role_to_recipients)
    answers = Answers(addr, ours, config.teleport.plugin_name, roles)
    findings += await _ask(client, answers)
    findings += rights.judge(answers, time.time())
    if answers.info is None:
        if config.reviews.submit_as != "none":
            findings.append(_unchecked(addr, "Teleport did not say what it is: whether we may submit reviews"))
        return
    findings += await decisions.check_decisions(client, connector, config, answers.info, credentials)
    findings += await rules.check_rules(client, config, by_rules)


def _unchecked(addr: str, what: str) -> Finding:
    return warning("teleport.unchecked", addr, f"Not checked, because {what}.")


async def _ask(client: AuthClient, answers: Answers) -> list[Finding]:
    """Fill `answers`, all at once; return only what failed."""
    asked: tuple[tuple[str, str, Ask], ...] = (
        ("teleport.ping", "Ping was not answered", _ping),
        ("teleport.rights.watch", "The watch of access requests did not begin", _watch),
        ("teleport.rights.list", "The list of access requests did not come", _list),
        ("teleport.plugin_data", "Plugin data did not come", _records),
        ("teleport.rights.plugin_data", "The update of plugin data was not answered", _update),
    )
    steps = []
    for id, silence, ask in asked:
        late = failure(f"{id}.timeout", answers.addr, f"{silence} within {_CALL_SECONDS:g} s.", TELEPORT_LOG)
        steps.append(Step(partial(_told, id, ask, client, answers), late))
    return await side_by_side(steps, _CALL_SECONDS)


async def _told(id: str, ask: Ask, client: AuthClient, answers: Answers) -> list[Finding]:
    """Denials are judged together, for one may explain another."""
    try:
        await ask(client, answers)
    except LinkError as exc:
        if exc.reason == "denied" and rights.is_denial(exc.detail):
            answers.denials[id] = exc.detail
            return []
        if exc.reason == "user_deleted":
            answers.user_deleted = True
            return []
        return [failure(f"{id}.{exc.reason}", answers.addr, sentence(exc.detail), TELEPORT_LOG)]
    return []


async def _ping(client: AuthClient, answers: Answers) -> None:
    answers.info = await client.ping()


async def _watch(client: AuthClient, answers: Answers) -> None:
    async with client.watch():
        answers.watched = True


async def _list(client: AuthClient, answers: Answers) -> None:
    async with client.list_requests() as requests:
        answers.requests = [request async for request in requests]


async def _records(client: AuthClient, answers: Answers) -> None:
    answers.records = list(await client.list_plugin_data())


async def _update(client: AuthClient, answers: Answers) -> None:
    # Nobody has this request, and if somebody had, no record says "probe": it cannot be carried out.
    try:
        await client.update_plugin_data(str(uuid.uuid4()), {"tm": ""}, {"tm": "probe"})
    except (RequestGone, Conflict):
        answers.may_update = True
