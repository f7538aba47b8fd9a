"""When reviewers are reminded of a request that still waits, and who is. Pure.

A reminder is a post of the record: its number follows from how long the request waits, so that it is given once
whoever gives it. What was missed meanwhile is given as one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from sidecar.decisions.expressions import COUNTED
from sidecar.decisions.quorum import deciders

if TYPE_CHECKING:
    from sidecar.config.sections import RemindersConfig
    from sidecar.decisions.expressions import Rules
    from sidecar.decisions.record import Record, Slot
    from sidecar.model import AccessRequest


class Account(msgspec.Struct, frozen=True):
    """A Mattermost account of somebody who was asked."""

    user_id: str
    username: str


class Nudge(msgspec.Struct, frozen=True):
    """What is read when a reminder is due: whether a linked reviewer is on it, and who the others are.

    `people` is by Teleport user.
    """

    looking: bool = False
    people: dict[str, Account] = {}


def number_due(age: float, reminders: RemindersConfig) -> int:
    """The number of the last reminder that should have been given by now; 0 for none."""
    if reminders.after <= 0 or not reminders.after <= age < math.inf:
        return 0
    return min(reminders.most, 1 + int((age - reminders.after) // reminders.every))


def due_in(record: Record, age: float, reminders: RemindersConfig) -> float:
    """Seconds until a reminder of this request is due, 0 or less where one is; never where none is left."""
    cards = [slot for slot in record.posts if is_reminded(slot)]
    given = min((max(slot.rem, default=0) for slot in cards), default=reminders.most)
    if reminders.after <= 0 or given >= reminders.most or not -math.inf < age < math.inf:
        return math.inf
    return reminders.after + given * reminders.every - age


def is_reminded(slot: Slot) -> bool:
    """Whether reminders are given here."""
    return slot.k == "card" and bool(slot.p) and slot.s == "posted"


def asked(request: AccessRequest, rules: Rules) -> tuple[str, ...]:
    """The Teleport users who were asked by name; nobody where only a channel was told."""
    names = dict.fromkeys((*request.suggested_reviewers, *deciders(request, rules)))
    return tuple(name for name in names if name.casefold() != request.user.casefold())


def called(slot: Slot, record: Record, request: AccessRequest, nudge: Nudge) -> tuple[str, ...] | None:
    """Whom a reminder in this place mentions; None where its only reader has reviewed, and needs none."""
    heard = {entry[0] for entry in record.dec if entry[4] == COUNTED}
    reviewed = {review.author for review in request.reviews}
    waiting = {user: one for user, one in nudge.people.items() if user not in reviewed and one.user_id not in heard}
    if "/" in slot.r or not ("@" in slot.r or slot.r.startswith("user:")):
        return tuple(one.username for user, one in waiting.items() if user.casefold() != request.user.casefold())
    mine = {user for user, one in nudge.people.items() if slot.r in (user, f"@{one.username}", f"user:{one.user_id}")}
    if (mine or {slot.r}) & reviewed or (mine and not mine & waiting.keys()):
        return None
    return tuple(waiting[user].username for user in mine if user in waiting)
