"""Each line of [reviewers]: whether Mattermost has such a person, and whether `run` takes them for that reviewer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import msgspec

from sidecar.check.report import MATTERMOST_LOG, failure, ok, sentence, warning
from sidecar.config import Config, Reviewer
from sidecar.errors import LinkError, PostRejected
from sidecar.mattermost.client import MattermostClient
from sidecar.model import User
from sidecar.reconcile.people import People, address_risk
from sidecar.teleport.findings import Finding

_PROBLEMS = {
    "bot": "This is a bot account; only people review.",
    "deactivated": "This account is deactivated.",
    "guest": "This is a guest account; guests do not review.",
    "remote": "This account is of another Mattermost; only people of this one review.",
}


class Account(msgspec.Struct):
    """A line of [reviewers] and whom Mattermost knows by it (None: nobody, or not asked)."""

    name: str
    user: str
    id: str
    found: User | None = None


async def check_reviewer(client: MattermostClient, account: Account) -> list[Finding]:
    """Look the person up, and judge as `run` does at each decision."""
    subject = f"@{account.name}"
    people = People(client, {account.name: Reviewer(user=account.user, id=account.id)})
    try:
        account.found = found = await (
            client.user(account.id) if account.id else client.user_by_username(account.name)
        )  # fmt: skip
        problem = "unknown" if found is None else (await people.find(found.id)).problem
    except (LinkError, PostRejected) as exc:
        return [failure("reviewer.account.unanswered", subject, sentence(str(exc)), MATTERMOST_LOG)]
    if found is None:
        what = f"No user has the id {account.id}." if account.id else "There is no user of this name."
        fix = (
            f"Write the line in [reviewers] as username = {json.dumps(account.user)}, with the username from their "
            "profile in Mattermost; sidecar check --pin then prints it with the id."
        )
        return [failure("reviewer.account.unknown", subject, what, fix)]
    if problem:
        message = _PROBLEMS.get(problem, f"This account cannot review: {problem}.")
        return [failure(f"reviewer.account.{problem}", subject, message, "Correct or remove the line in [reviewers].")]
    if account.id and found.username != account.name:
        message = f"The account with this id is now @{found.username}; the id counts, the name is only a label."
        return [warning("reviewer.account.renamed", subject, message, to_toml([account]))]
    return [ok("reviewer.account", subject, f"An active account, taken for {account.user} on Teleport.")]


def judge_identity(config: Config, settings: dict[str, str]) -> Iterator[Finding]:
    """Whether `identity = "email"` may be: `run` takes nobody's decision while it may not."""
    if config.reviews.identity != "email" or config.reviews.submit_as == "none":
        return
    if risk := address_risk(settings):
        fix = 'Or set identity = "map" and name the reviewers in [reviewers].'
        yield failure("reviews.identity.unsafe", "reviews.identity", sentence(risk), fix)
    else:
        message = "The settings of Mattermost make email addresses trustworthy."
        yield ok("reviews.identity", "reviews.identity", message)


def to_toml(accounts: Iterable[Account]) -> str:
    """The lines of [reviewers] with the ids of those who were found, to be pasted."""
    return "\n".join(_line(account) for account in accounts)


def _line(account: Account) -> str:
    user = json.dumps(account.user)
    if account.found is None:
        return f"# {account.name}: no such user in Mattermost, or not asked; was for {user}"
    name = account.found.username
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
    return f"{key} = {{ id = {json.dumps(account.found.id)}, user = {user} }}"
