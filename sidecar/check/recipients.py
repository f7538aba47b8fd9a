"""Each recipient by name: whether it exists, and the bot may post there. Posts nothing, `send_test` excepted."""

from __future__ import annotations

import random

from sidecar.check.report import MATTERMOST_LOG, failure, ok, passed, sentence, warning
from sidecar.errors import LinkError, PostRejected, RecipientError
from sidecar.mattermost.client import MattermostClient
from sidecar.mattermost.recipients import Recipients
from sidecar.model import Destination, Draft, User
from sidecar.teleport.findings import Finding

# What Mattermost answers to a reply to no post, after permission and channel were judged (app/post.go, seen on 5.37).
_NO_ROOT = "api.post.create_post.root_id.app_error"
_PERSON = "Write @username as in the person's profile in Mattermost, or the email address of that account."
_REQUESTER = 'Write in [requesters] "bob@example.com" = "@username": Teleport user, Mattermost name.'


async def check_recipient(
    client: MattermostClient, recipients: Recipients, name: str, bot: User, id: str = "recipient"
) -> list[Finding]:
    """Resolve a name as `run` does, and try whether a post would be taken."""
    try:
        destination = await recipients.resolve(name)
        problem = await _problem(client, destination)
    except RecipientError as exc:
        message = exc.detail.removeprefix(f"{' '.join(name.split()).lower()}: ")
        fix = _PERSON if exc.reason == "not_found" and "@" in name else _fix(exc.reason, bot)
        return [failure(f"{id}.{exc.reason}", name, sentence(message), fix)]
    except LinkError as exc:
        return [failure(f"{id}.{exc.reason}", name, sentence(exc.detail), MATTERMOST_LOG)]
    if problem:
        message = f"The bot may not post there: Mattermost would answer {problem}."
        fix = "Look at the permissions of the channel's members, and at the channel's moderation."
        return [failure(f"{id}.cannot_post", name, message, fix)]
    where = "The bot may write to them directly." if destination.kind == "direct" else "The bot is in it and may post."
    return [ok(id, name, where)]


async def check_requester(
    client: MattermostClient, recipients: Recipients, names: tuple[str, ...], bot: User
) -> list[Finding]:
    """Check a line of [requesters], which reads either way: one of its `names` is enough. A warning at most."""
    problems: list[Finding] = []
    for name in names:
        found = await check_recipient(client, recipients, name, bot, "requester")
        if passed(found):
            return found
        problems += found
    return [
        warning(one.id, one.subject, one.message, _REQUESTER if one.fix == _PERSON else one.fix) for one in problems[:1]
    ]


def _fix(reason: str, bot: User) -> str:
    return {
        "not_member": f"In that channel, write: /invite @{bot.username}",
        "not_found": (
            "Write it as it stands in the channel's address, team/channel; a private channel shows itself only once "
            f"the bot is in it: /invite @{bot.username}"
        ),
        "invalid": "Write team/channel as in the channel's address, ~channel, @username, an email address or an id.",
        "archived": "Unarchive it, or name another one.",
        "deactivated": "Name somebody else.",
        "forbidden": f"Name them as @username, or put the bot (@{bot.username}) on a team of theirs.",
        "ambiguous": "Write it as team/channel.",
    }.get(reason, "")


async def _problem(client: MattermostClient, destination: Destination) -> str:
    """Why a post would be refused, "" where it would not: one is tried that cannot come about."""
    root_id = "".join(random.choices("ybndrfg8ejkmcpqxot1uwisza345h769", k=26))  # noqa: S311 - nobody's, not a secret
    try:
        post = await client.create_post(destination.channel_id, Draft("sidecar check"), key="", tm={}, root_id=root_id)
    except PostRejected as exc:
        return "" if exc.error_id == _NO_ROOT else f"{exc.status} {exc.error_id}"
    # No Mattermost is known to take it.
    await client.delete_post(post.id)
    return ""


async def send_test(client: MattermostClient, recipients: Recipients, name: str, url: str) -> list[Finding]:
    """Post one test message, because it was asked for."""
    id = "mattermost.send_test"
    text = "A test message of the Teleport sidecar: `sidecar check --send-test`. Nothing needs to be done."
    try:
        destination = await recipients.resolve(name)
        post = await client.create_post(destination.channel_id, Draft(text), key="", tm={})
    except (RecipientError, LinkError, PostRejected) as exc:
        return [failure(id, name, f"The test message was not sent: {exc}.", MATTERMOST_LOG)]
    return [ok(id, name, f"The test message stands at {url}/_redirect/pl/{post.id}")]
