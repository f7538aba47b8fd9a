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
    from collections.abc import Sequence

    from sidecar.model import User

log = logging.getLogger(__name__)

# What the server's settings say of addresses is believed for so long.
SETTINGS_SECONDS = 60.0
MOST_SAID = 1000


# People who are looked up for one reminder.
MOST_ACCOUNTS = 20


class Reviewer(msgspec.Struct, frozen=True):
    """One line of [reviewers]: the Teleport user, and the Mattermost user by id, or by name where `id` is ""."""

    name: str
    user: str
    id: str = ""


class Identity(msgspec.Struct, frozen=True):
    """How people are recognised.

    `requesters` gives the requests of a Teleport user to a Mattermost account, by "user:<id>", "@name" or address.
    """

    reviewers: tuple[Reviewer, ...] = ()
    by: Literal["map", "email"] = "map"
    requesters: tuple[tuple[str, str], ...] = ()


class Directory(Protocol):
    """What is asked of Mattermost."""

    async def user(self, user_id: str) -> User | None: ...

    async def user_by_username(self, username: str) -> User | None: ...

    async def user_by_email(self, email: str) -> User | None: ...

    async def config(self) -> dict[str, str]: ...


class People:
    """Finds persons. `check_server` must run at each connect: where addresses prove nothing, nobody is known by one."""

    def __init__(self, directory: Directory, identity: Identity) -> None:
        self._directory = directory
        self._identity = identity
        # Teleport user -> the account that first had that address in this process
        self._addresses: dict[str, str] = {}
        self.unsafe = "not checked yet" if identity.by == "email" else ""
        self._checked = -math.inf
        # Impostors of whom the log was told: they may talk as long as they like.
        self._said: set[tuple[str, str]] = set()

    async def check_server(self) -> None:
        """See whether the server's settings make addresses trustworthy, where they count. Raises LinkError."""
        if self._identity.by == "email":
            await self._check_server()

    async def find(self, user_id: str) -> Person:
        """Who this is now. Raises LinkError."""
        try:
            user = await self._directory.user(user_id)
        except PostRejected:
            # Not for us to see (v11 hides people from each other): nobody we could vouch for.
            user = None
        if user is None:
            return Person(user_id, problem="unknown")
        if problem := _not_a_colleague(user):
            return Person(user_id, problem=problem, username=user.username)
        person = self._mapped(user) if self._identity.by == "map" else await self._by_address(user)
        return msgspec.structs.replace(person, username=user.username, also=self._also(user))

    async def find_requester(self, teleport_user: str) -> str | None:
        """The account of who asks: "" where there is none, None where nobody can tell. A deactivated one counts, too.

        A line of [requesters] that does not lead to an account is not "none": it may have been renamed away.
        """
        name = dict(self._identity.requesters).get(teleport_user, "")
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
        linked = {one.user: one for one in self._identity.reviewers}
        found: dict[str, Account] = {}
        for name in list(users or linked)[:MOST_ACCOUNTS]:
            one = linked.get(name)
            try:
                if one is not None and one.id:
                    user = await self._directory.user(one.id)
                elif one is not None:
                    user = await self._directory.user_by_username(one.name)
                else:
                    user = await self._directory.user_by_email(name) if is_email(name) else None
            except PostRejected:
                user = None
            if user is not None and not user.delete_at:
                found[name] = Account(user.id, user.username)
        return found

    def _also(self, user: User) -> tuple[str, ...]:
        names = {f"@{user.username}", f"user:{user.id}", user.email.lower()} - {""}
        return tuple(teleport for teleport, recipient in self._identity.requesters if recipient.lower() in names)

    def _mapped(self, user: User) -> Person:
        for reviewer in self._identity.reviewers:
            if reviewer.id and reviewer.id == user.id:
                return Person(user.id, reviewer.user)
        for reviewer in self._identity.reviewers:
            # A bare name is for asking questions alone: where people decide, every line has an id.
            if not reviewer.id and reviewer.name == user.username:
                return Person(user.id, reviewer.user)
        return Person(user.id, problem="unmapped")

    async def _by_address(self, user: User) -> Person:
        if trio.current_time() >= self._checked + SETTINGS_SECONDS:
            await self._check_server()
        if self.unsafe:
            return Person(user.id, problem="identity_unsafe")
        address = user.email.lower()
        if not address.isascii() or not is_email(address):
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
        return "Mattermost hides e-mail addresses from the bot (PrivacySettings.ShowEmailAddress)"
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
