"""Who is told about an access request. Pure: names only, nothing is looked up."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from sidecar.decisions.record import Kind
    from sidecar.model import AccessRequest

# At most this many suggested reviewers are told: a requester may name anybody.
MAX_SUGGESTED = 20

_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")


class Routes(msgspec.Struct, frozen=True, kw_only=True):
    """The routing part of the configuration, by plain names.

    `roles` maps a role (or "*") to recipient names; `reviewers` and `requesters` map a Teleport user to the name of a
    direct recipient.
    """

    roles: dict[str, tuple[str, ...]]
    suggested_reviewers: Literal["off", "mapped", "email"] = "email"
    reviewers: dict[str, str] = {}
    requesters: dict[str, str] = {}
    notify_requester: bool = True

    @property
    def configured(self) -> frozenset[str]:
        """The names that the operator wrote down; all others are what a requester says or is called."""
        return frozenset((*(name for names in self.roles.values() for name in names), *self.requesters.values()))


class Named(msgspec.Struct, frozen=True):
    """A recipient by name, with what it is to get."""

    name: str
    kind: Kind = "card"


def is_email(text: str) -> bool:
    """Whether Mattermost could know a user by this address; stricter than the RFCs on purpose."""
    return len(text) <= 254 and _EMAIL.fullmatch(text) is not None


def route(request: AccessRequest, routes: Routes) -> tuple[Named, ...]:
    """The recipients of a request in a stable order, without repeats by name.

    A role without an entry of its own goes to "*", as the official plugin does; so does a request without roles, which
    that plugin would tell nobody about.
    """
    fallback = routes.roles.get("*", ())
    names: dict[str, Kind] = {}
    for role in request.roles or ("*",):
        names.update(dict.fromkeys(routes.roles.get(role, fallback), "card"))
    names.update(dict.fromkeys(_suggested(request, routes), "card"))
    if routes.notify_requester and (requester := _direct(request.user, routes.requesters)):
        names.setdefault(requester, "requester")
    return tuple(Named(name, kind) for name, kind in names.items())


def _suggested(request: AccessRequest, routes: Routes) -> list[str]:
    if routes.suggested_reviewers == "off":
        return []
    by_email = routes.suggested_reviewers == "email"
    found = [
        routes.reviewers.get(user) or (user if by_email and is_email(user) else "")
        for user in request.suggested_reviewers
    ]
    return [name for name in dict.fromkeys(found) if name][:MAX_SUGGESTED]


def _direct(user: str, mapped: dict[str, str]) -> str:
    return mapped.get(user) or (user if is_email(user) else "")
