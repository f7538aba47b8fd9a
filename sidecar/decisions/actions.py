"""What a look may do: frozen values with an identity each, which `apply` carries out and `settle` takes in. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from sidecar.decisions.expressions import Verdict
from sidecar.decisions.record import Owed
from sidecar.model import AccessRequest, Draft


class Place(NamedTuple):
    """Where posts of ours may stand: a channel, or the thread below a root post."""

    channel_id: str
    root_id: str = ""


class Create(msgspec.Struct, frozen=True, tag=True):
    """Make a slot's card, which shows the version `shown`."""

    position: int
    draft: Draft
    digest: str
    shown: tuple[str, int]

    @property
    def identity(self) -> tuple[object, ...]:
        return ("card", self.position)


class Patch(msgspec.Struct, frozen=True, tag=True):
    """Bring a slot's card to the version `shown`; an adopted post gets our `message` too.

    `since` is from when on (Mattermost's milliseconds) words on it count.
    """

    position: int
    draft: Draft
    digest: str
    shown: tuple[str, int]
    since: int
    message: bool = False

    @property
    def identity(self) -> tuple[object, ...]:
        return ("patch", self.position)


class Reply(msgspec.Struct, frozen=True, tag=True):
    """Answer in the thread of a slot's card. `number` > 0 is the n-th review, below 0 the end in that rank.

    `ends`: the number of the end that it tells of, too; 0 for none. `reminds`: it is the reminder with that number.
    """

    position: int
    number: int
    draft: Draft
    ends: int = 0
    reminds: bool = False

    @property
    def identity(self) -> tuple[object, ...]:
        return ("reminder" if self.reminds else "reply", self.position, self.number)


class Answer(msgspec.Struct, frozen=True, tag=True):
    """Tell one person what became of their decision."""

    owed: Owed

    @property
    def identity(self) -> tuple[object, ...]:
        return ("answer", self.owed.i)


class Delete(msgspec.Struct, frozen=True, tag=True):
    """Remove the younger of two posts with one identity."""

    post_id: str
    place: Place

    @property
    def identity(self) -> tuple[object, ...]:
        return ("delete", self.post_id)


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Submit one person's own review; what it rests on was read at `read_at` (trio's clock)."""

    verdict: Verdict
    request: AccessRequest
    read_at: float

    @property
    def identity(self) -> tuple[object, ...]:
        one = self.verdict.expression
        return ("submit", one.user_id, one.verb, one.source, one.at)


class Resolve(msgspec.Struct, frozen=True, tag=True):
    """Submit once for all who agreed: the policy's count is met."""

    verdicts: tuple[Verdict, ...]
    request: AccessRequest
    state: str
    reason: str
    voters: tuple[str, ...]
    # How far the quorum is, as each of `verdicts` is told.
    progress: tuple[str, ...]
    read_at: float

    @property
    def identity(self) -> tuple[object, ...]:
        return ("resolve", self.state)


Action = Create | Patch | Reply | Answer | Delete | Submit | Resolve
