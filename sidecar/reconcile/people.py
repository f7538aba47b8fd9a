"""Who a Mattermost user is on Teleport: read anew for each decision, by the immutable user id, failing closed."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
import trio

from sidecar.decisions.judge import Person
from sidecar.decisions.reminders import Account
from sidecar.decisions.routing import is_email
from sidecar.errors import LinkError, PostRejected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sidecar.config import Reviewer
    from sidecar.model import User

log = logging.getLogger(__name__)

# What the server's settings say of addresses is believed for so long.
SETTINGS_SECONDS = 60.0
MOST_SAID = 1000


# People who are looked up for one reminder.
MOST_ACCOUNTS = 20


class Directory(Protocol):
    """What is asked of Mattermost."""

    async def user(self, user_id: str) -> User | None: ...

    async def user_by_username(self, username: str) -> User | None: ...

    async def user_by_email(self, email: str) -> User | None: ...

    async def config(self) -> dict[str, str]: ...


class People:
    """Finds persons. `check_server` must run at each connect: where addresses prove nothing, nobody is known by one.

    `requesters` gives the requests of a Teleport user to a Mattermost account, by "user:<id>", "@name" or address.
    """

    def __init__(
        self,
        directory: Directory,
        reviewers: Mapping[str, Reviewer],
        by: Literal["map", "email"] = "map",
        requesters: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = directory
        # Teleport user -> the account that first had that address in this process
        self._addresses: dict[str, str] = {}
        # Impostors of whom the log was told: they may talk as long as they like.
        self._said: set[tuple[str, str]] = set()
        self.configure(reviewers, by, requesters or {})

    def configure(
        self, reviewers: Mapping[str, Reviewer], by: Literal["map", "email"], requesters: Mapping[str, str]
    ) -> None:
        """Go on by another configuration."""
        self._by = by
        self._requesters = dict(requesters)
        self._by_id = {one.id: one.user for one in reviewers.values() if one.id}
        # Bare names are for asking questions alone: where people decide, every line has an id.
        self._by_name = {name: one.user for name, one in reviewers.items() if not one.id}
        self._heads = _heads(reviewers, self._requesters)
        self.unsafe = "not checked yet" if by == "email" else ""
        self._checked = -math.inf

    async def check_server(self) -> None:
        """See whether the server's settings make addresses trustworthy, where they count. Raises LinkError."""
        if self._by == "email":
            await self._check_server()

    async def judge(self, user_id: str) -> Person:
        """Who this is now; of somebody without a link nothing more is asked. Raises LinkError."""
        return await self.find(user_id) if self.linked(user_id) else Person(user_id, problem="unmapped")

    def linked(self, user_id: str) -> bool:
        """Whether this may be somebody with a link, as far as is known without asking."""
        return self._by != "map" or user_id in self._by_id or bool(self._by_name)

    async def find(self, user_id: str) -> Person:
        """Who this is now; a problem of somebody who is linked leaves the Teleport user. Raises LinkError."""
        try:
            user = await self._directory.user(user_id)
        except PostRejected:
            # Not for us to see (v11 hides people from each other): nobody we could vouch for.
            user = None
        if user is None:
            return Person(user_id, problem="unknown")
        person = self._mapped(user) if self._by == "map" else await self._by_address(user)
        return msgspec.structs.replace(
            person,
            username=user.username,
            problem=_not_a_colleague(user) or person.problem,
            also=self._also(user, person.teleport_user),
        )

    async def find_requester(self, teleport_user: str) -> str | None:
        """The account of who asks: "" where there is none, None where nobody can tell. A deactivated one counts, too.

        A line of [requesters] that does not lead to an account is not "none": it may have been renamed away.
        """
        name = self._requesters.get(teleport_user, "")
        if name.startswith("user:"):
            return name.removeprefix("user:")
        address = name.removeprefix("@") if name else teleport_user
        if not name and not is_email(address):
            return ""
        try:
            if name.startswith("@"):
                user = await self._directory.user_by_username(address)
            else:
                user = await self._directory.user_by_email(address)
        except (LinkError, PostRejected):
            return None
        if user is not None:
            return user.id
        return None if name else ""

    async def find_accounts(self, users: Sequence[str]) -> dict[str, Account]:
        """The accounts of these Teleport users, or of all who are linked where nobody is named. Raises LinkError.

        For mentions alone: an address proves nothing here.
        """
        ids = {user: user_id for user_id, user in self._by_id.items()}
        names = {user: name for name, user in self._by_name.items()}
        found: dict[str, Account] = {}
        for name in list(users or {**ids, **names})[:MOST_ACCOUNTS]:
            try:
                if name in ids:
                    user = await self._directory.user(ids[name])
                elif name in names:
                    user = await self._directory.user_by_username(names[name])
                else:
                    user = await self._directory.user_by_email(name) if is_email(name) else None
            except PostRejected:
                user = None
            if user is not None and not user.delete_at:
                found[name] = Account(user.id, user.username)
        return found

    def _also(self, user: User, teleport_user: str) -> tuple[str, ...]:
        """The Teleport users that share an account with this one, by what it is called now and by the tables."""
        names = {f"@{user.username}", f"user:{user.id}", user.email.lower()} - {""}
        found = {teleport for teleport, recipient in self._requesters.items() if recipient.lower() in names}
        found |= {teleport_user} - {""}
        return tuple(sorted(found.union(*(head for head in self._heads if head & found)) - {teleport_user}))

    def _mapped(self, user: User) -> Person:
        teleport_user = self._by_id.get(user.id) or self._by_name.get(user.username, "")
        return Person(user.id, teleport_user, problem="" if teleport_user else "unmapped")

    async def _by_address(self, user: User) -> Person:
        if trio.current_time() >= self._checked + SETTINGS_SECONDS:
            await self._check_server()
        if self.unsafe:
            return Person(user.id, problem="identity_unsafe")
        # ASCII before case: there are letters beyond it that fold into it.
        address = user.email.lower() if user.email.isascii() else ""
        if not is_email(address):
            return Person(user.id, problem="unmapped")
        same = self._addresses.setdefault(address, user.id) == user.id
        return Person(user.id, address) if same else self._impostor(user, "address_moved")

    def _impostor(self, user: User, problem: str) -> Person:
        if (user.id, problem) not in self._said:
            if len(self._said) >= MOST_SAID:
                self._said.clear()
            self._said.add((user.id, problem))
            log.warning("identity.moved", extra={"user_id": user.id, "reason": problem})
        return Person(user.id, problem=problem)

    async def _check_server(self) -> None:
        try:
            unsafe = address_risk(await self._directory.config())
        except PostRejected as exc:
            unsafe = f"Mattermost does not show its settings ({exc.status})"
        if unsafe and unsafe != self.unsafe:
            log.error("identity.unsafe", extra={"detail": unsafe})
        self.unsafe, self._checked = unsafe, trio.current_time()


def _heads(reviewers: Mapping[str, Reviewer], requesters: Mapping[str, str]) -> list[set[str]]:
    """The Teleport users that share a Mattermost account, by the operator's tables, where there is more than one."""
    accounts: dict[str, set[str]] = {}
    for name, one in reviewers.items():
        for account in {f"@{name}".lower(), f"user:{one.id}" if one.id else ""} - {""}:
            accounts.setdefault(account, set()).add(one.user)
    for user, recipient in requesters.items():
        if recipient:
            accounts.setdefault(recipient.lower(), set()).add(user)
    heads: list[set[str]] = []
    for users in accounts.values():
        same = [head for head in heads if head & users]
        heads = [head for head in heads if not head & users]
        heads.append(users.union(*same))
    return [head for head in heads if len(head) > 1]


def _not_a_colleague(user: User) -> str:
    """Why this account cannot be a reviewer whatever the map says."""
    if user.is_bot:
        return "bot"
    if user.delete_at:
        return "deactivated"
    if user.remote_id:
        return "remote"
    return "guest" if "system_guest" in user.roles.split() else ""


def address_risk(config: dict[str, str]) -> str:
    """Why addresses prove nothing on this server, "" where they do (mattermost-server app/user.go, 5.37 and 11).

    Somebody can take a reviewer's address where accounts with passwords need no verified address; a bot cannot see
    which addresses were verified, only the settings of now.
    """
    if config.get("ShowEmailAddress") != "true":
        return "Mattermost hides email addresses from the bot (PrivacySettings.ShowEmailAddress)"
    passwords = [
        name
        for name in ("EnableSignUpWithEmail", "EnableSignInWithEmail", "EnableSignInWithUsername")
        if config.get(name) != "false"
    ]
    if config.get("RequireEmailVerification") == "true" or not passwords:
        return ""
    return (
        "anybody can give themselves a reviewer's address: set EmailSettings.RequireEmailVerification to true, or "
        f"allow only single sign-on (now on: {', '.join(passwords)})"
    )
