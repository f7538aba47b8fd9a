"""Mattermost: reach it, then look at the bot, the settings, every recipient and every reviewer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

import msgspec
import trio

from sidecar.check.recipients import check_recipient, check_requester, send_test
from sidecar.check.report import MATTERMOST_LOG, Step, failure, found, sentence, side_by_side, warning
from sidecar.check.reviewers import Account, check_reviewer, judge_identity
from sidecar.check.rules import ByRules
from sidecar.config import Config
from sidecar.decisions.routing import is_email
from sidecar.errors import ConfigError, LinkError, LinkGarbled, LinkLost, LinkRefused, PostRejected
from sidecar.files import trusting
from sidecar.mattermost.client import MattermostClient, open_client
from sidecar.mattermost.recipients import Recipients
from sidecar.model import User
from sidecar.teleport.findings import Finding, shown

_REQUEST_SECONDS = 5.0
_SECONDS = 15.0
_SKEW_SECONDS = 60.0
_OLDEST = (5, 37)
# System roles that permit no more than membership does.
_PLAIN = frozenset({"system_user", "system_guest"})

_FIXES = {
    "dns": "Correct mattermost.url, or the name servers of this machine.",
    "unreachable": "Is Mattermost running, and is mattermost.url right? Look at routes, firewalls and proxy variables.",
    "timeout": "A firewall may drop the packets, or Mattermost hangs; is mattermost.url right?",
    "proxy": "Look at HTTPS_PROXY, HTTP_PROXY and NO_PROXY in the environment of the sidecar.",
    "redirect": "Set mattermost.url to the address that it redirects to.",
    "not_mattermost": "Set mattermost.url to the address of Mattermost, with its path where it has one.",
    "unknown_route": "Set mattermost.url to the address of Mattermost, with its path where it has one.",
    "https": "Where the system does not know the authority of its certificate, mattermost.ca_file names it.",
    "tls": "Set mattermost.url to a name that the certificate bears, or mattermost.ca_file to its authority.",
}


async def check_mattermost(
    config: Config, findings: list[Finding], accounts: list[Account], recipient: str, by_rules: ByRules
) -> None:
    """Add what is found to `findings`, and each reviewer's account to `accounts`; takes at most about 25 s.

    `recipient` gets a test message, unless it is "". Whom rules alone name comes last, once it is known.
    """
    settings = config.mattermost
    try:
        context = trusting("mattermost.ca_file", settings.ca_file)
    except ConfigError:
        context = None  # which has been said
    async with open_client(
        settings.url,
        partial(_token, config),
        ssl_context=context,
        max_connections=settings.max_connections,
        max_posts_per_second=100.0,
        request_seconds=_REQUEST_SECONDS,
    ) as client:
        bot = await _meet(client, config, findings)
        if bot is None:
            what = "Mattermost did not say who we are: its settings, the recipients, the reviewers"
            findings.append(warning("mattermost.unchecked", settings.url, f"Not checked, because {what}."))
            return
        findings += _judge_bot(bot)
        findings += _judge_clock(client, settings.url)
        recipients = Recipients(client)
        with trio.move_on_after(_REQUEST_SECONDS), suppress(LinkError, PostRejected):
            # Only a list of the teams shows that one is archived.
            await recipients.refresh(())
        findings += await side_by_side([*_steps(client, recipients, config, accounts, recipient, bot)], _SECONDS)
        await by_rules.known.wait()
        named = [_named(client, recipients, name, rules, bot) for name, rules in by_rules.names.items()]
        findings += await side_by_side(named, _SECONDS)


def _token(config: Config) -> str:
    """The token; where there is none to use, anything: whether Mattermost can be reached is checked all the same."""
    try:
        return config.mattermost.read_token()
    except LinkRefused:
        return "none"


async def _meet(client: MattermostClient, config: Config, findings: list[Finding]) -> User | None:
    url = config.mattermost.url
    try:
        bot = await client.me()
    except LinkError as exc:
        if exc.reason != "token":
            findings.append(_unreached(url, exc))
            return None
        findings.append(found("mattermost.reach", url))
        if _token(config) != "none":
            subject = str(config.mattermost.token_file or "mattermost.token")
            setting = "the file of mattermost.token_file" if config.mattermost.token_file else "mattermost.token"
            kind = "refused" if re.fullmatch(r"[a-z0-9]{26}", _token(config)) else "no_token"
            findings.append(found(f"mattermost.token.refused+{kind}", subject, setting=setting))
        return None
    except PostRejected as exc:
        findings.append(found("mattermost.reach.rejected", url, status=exc.status, error=exc.error_id))
        return None
    findings.append(found("mattermost.reach", url))
    return bot


def _unreached(url: str, exc: LinkError) -> Finding:
    if isinstance(exc, LinkGarbled):
        return found("mattermost.reach.garbled", url, detail=exc.detail)
    fix = _FIXES.get(exc.reason, "Look at the log of Mattermost, and of what stands before it.")
    if exc.reason == "tls" and isinstance(exc, LinkLost):  # no certificate was seen
        fix = "Without TLS the token travels in the clear: best let Mattermost, or a proxy before it, speak TLS."
    elif exc.reason == "reset" and url.startswith("http:"):
        fix = "Does that port speak TLS? Then mattermost.url begins with https://."
    return failure(f"mattermost.reach.{exc.reason}", url, sentence(exc.detail), fix)


def _judge_bot(bot: User) -> Iterator[Finding]:
    subject = f"@{bot.username}"
    yield found("mattermost.bot" if bot.is_bot else "mattermost.bot.person", subject)
    if extra := [role for role in bot.roles.split() if role not in _PLAIN]:
        yield found("mattermost.bot.roles", subject, roles=", ".join(extra))


def _judge_clock(client: MattermostClient, url: str) -> Iterator[Finding]:
    offset = client.clock_offset
    if abs(offset) > _SKEW_SECONDS:
        where = "ahead of" if offset > 0 else "behind"
        yield found("mattermost.clock+differs", url, seconds=abs(offset), where=where)
    else:
        yield found("mattermost.clock", url, seconds=_SKEW_SECONDS)


def _late(id: str, subject: str) -> Finding:
    return failure(f"{id}.timeout", subject, f"Mattermost did not answer within {_SECONDS:g} s.", MATTERMOST_LOG)


def _named(client: MattermostClient, recipients: Recipients, name: str, rules: Sequence[str], bot: User) -> Step:
    """Check a recipient that only these rules name."""
    whose = f"Named by the access monitoring rule {shown(*rules)}."

    async def run() -> list[Finding]:
        found = await check_recipient(client, recipients, name, bot, "recipient.by_rule")
        return [msgspec.structs.replace(one, message=f"{one.message} {whose}") for one in found]

    return Step(run, _late("recipient.by_rule", name))


def _steps(
    client: MattermostClient,
    recipients: Recipients,
    config: Config,
    accounts: list[Account],
    recipient: str,
    bot: User,
) -> Iterator[Step]:
    url = config.mattermost.url

    yield Step(partial(_settings, client, config), _late("mattermost.settings", url))
    for name in dict.fromkeys(name for names in config.role_to_recipients.values() for name in names):
        yield Step(partial(check_recipient, client, recipients, name, bot), _late("recipient", name))
    if config.mattermost.notify_requester:
        for names in _requesters(config):
            yield Step(partial(check_requester, client, recipients, names, bot), _late("requester", names[0]))
    for name, reviewer in config.reviewers.items():
        account = Account(name, reviewer.user, reviewer.id)
        accounts.append(account)
        yield Step(partial(check_reviewer, client, account), _late("reviewer.account", f"@{name}"))
    if recipient:
        yield Step(partial(send_test, client, recipients, recipient, url), _late("mattermost.send_test", recipient))


def _requesters(config: Config) -> Iterator[tuple[str, ...]]:
    """For each line of [requesters], the recipients that it can mean."""
    for left, right in config.requesters.items():
        yield tuple(filter(None, dict.fromkeys(map(config.requester_recipient, (left, right.name)))))


async def _settings(client: MattermostClient, config: Config) -> list[Finding]:
    url = config.mattermost.url
    try:
        settings = await client.config()
    except (LinkError, PostRejected) as exc:
        return [found("mattermost.settings", url, error=exc)]
    return [*_version(url, settings), *_people(config, settings), *judge_identity(config, settings)]


def _version(url: str, settings: dict[str, str]) -> Iterator[Finding]:
    version = settings.get("Version", "")
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        yield found("mattermost.version.unknown", url)
    else:
        old = (int(match[1]), int(match[2])) < _OLDEST
        yield found("mattermost.version.old" if old else "mattermost.version", url, version=version)


def _people(config: Config, settings: dict[str, str]) -> Iterator[Finding]:
    """The two settings that keep direct messages from people, where direct messages are wanted."""
    mattermost, url = config.mattermost, config.mattermost.url
    names = {name for names in config.role_to_recipients.values() for name in names}
    by_email = mattermost.suggested_reviewers == "email" or mattermost.notify_requester
    if settings.get("ShowEmailAddress") != "true" and (by_email or any(map(is_email, names))):
        yield found("mattermost.email_addresses", url)
    direct = mattermost.suggested_reviewers != "off" or mattermost.notify_requester
    if settings.get("RestrictDirectMessage") == "team" and (direct or any("@" in name for name in names)):
        yield found("mattermost.direct_messages", url)
