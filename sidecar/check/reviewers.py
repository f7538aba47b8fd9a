"""Each line of [reviewers]: whether Mattermost has such a person, and whether `run` takes them for that reviewer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import msgspec

from sidecar.check.report import MATTERMOST_LOG, failure, found, sentence
from sidecar.config import Config, Reviewer
from sidecar.errors import LinkError, PostRejected
from sidecar.mattermost.client import MattermostClient
from sidecar.model import User
from sidecar.reconcile.people import People, address_risk
from sidecar.teleport.findings import Finding

# Each has its sentence.
_PROBLEMS = frozenset({"bot", "deactivated", "guest", "remote"})


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
        account.found = person = await (
            client.user(account.id) if account.id else client.user_by_username(account.name)
        )  # fmt: skip
        problem = "unknown" if person is None else (await people.find(person.id)).problem
    except (LinkError, PostRejected) as exc:
        return [failure("reviewer.account.unanswered", subject, sentence(str(exc)), MATTERMOST_LOG)]
    if person is None:
        which = "id" if account.id else "name"
        return [found(f"reviewer.account.unknown+{which}", subject, id=account.id, user=json.dumps(account.user))]
    if problem in _PROBLEMS:
        return [found(f"reviewer.account.{problem}", subject)]
    if problem:
        message = f"This account cannot review: {problem}."
        return [failure(f"reviewer.account.{problem}", subject, message, "Correct or remove the line in [reviewers].")]
    if account.id and person.username != account.name:
        return [found("reviewer.account.renamed", subject, name=person.username, line=to_toml([account]))]
    return [found("reviewer.account", subject, user=account.user)]


def judge_identity(config: Config, settings: dict[str, str]) -> Iterator[Finding]:
    """Whether `identity = "email"` may be: `run` takes nobody's decision while it may not."""
    if config.reviews.identity != "email" or config.reviews.submit_as == "none":
        return
    if risk := address_risk(settings):
        fix = 'Or set identity = "map" and name the reviewers in [reviewers].'
        yield failure("reviews.identity.unsafe", "reviews.identity", sentence(risk), fix)
    else:
        yield found("reviews.identity", "reviews.identity")


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
