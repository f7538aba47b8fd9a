"""What one look saw, what a request's worker remembers, and what is to be done: the values that `decide` maps. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from sidecar.config.sections import RemindersConfig
from sidecar.decisions.actions import Action, Place
from sidecar.decisions.expressions import Expression, Person, Rules, Verdict
from sidecar.decisions.record import Kind, Record, Stored, Unreadable
from sidecar.decisions.reminders import Nudge
from sidecar.errors import SidecarError
from sidecar.model import AccessRequest, Post, Version
from sidecar.text.card import TextOptions
from sidecar.times import USUAL, Times

# -- what is known ---------------------------------------------------------------------------------------------------


class Unknown(msgspec.Struct, frozen=True):
    """What could not be had, and why; without a reason nobody has asked for it yet."""

    why: SidecarError | None = None


UNASKED = Unknown()


class Target(msgspec.Struct, frozen=True):
    """A recipient after resolution; `channel_id` is "" while it cannot be reached.

    `owed`: only because Mattermost did not say, so that it is told even if the request is over by then.
    """

    name: str
    kind: Kind
    channel_id: str
    owed: bool = False


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What people say about a request, read in one round begun at `at` (trio's clock).

    `unread` names what could not be read of it: it stands against approving; `error` is why some of that may be read
    later. `who` is the requester's account: "" where there is none, None where nobody could tell. `cards` are the roots
    of the threads.
    """

    at: float
    standing: tuple[Expression, ...] = ()
    people: dict[str, Person] = {}
    unread: tuple[str, ...] = ()
    who: str | None = None
    error: SidecarError | None = None
    cards: dict[str, Post] = {}


class Given(msgspec.Struct, frozen=True):
    """A review that its author gave in the thread of the card `root_id`: the reply that tells of it is the answer."""

    author: str
    verb: str
    username: str
    root_id: str


class Facts(NamedTuple):
    """What Teleport said, but for the request itself: see `reconcile.followed.Entry`."""

    gone: bool = False
    absent_since: float = math.inf
    pending_since: float = math.inf
    version: Version = Version(-1, 0)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one look saw so far. `request` None: Teleport has none by this id; `stored` None: nothing was ever posted.

    `held`: we hold the record, and `stored` is how it grows. `failed` are the identities of actions that failed in this
    look, and are not repeated in it.
    """

    request: AccessRequest | Unknown | None = UNASKED
    by_id: bool = False
    stored: Stored | Unreadable | Unknown | None = UNASKED
    held: bool = False
    # When (trio's clock) it was taken.
    held_since: float = 0.0
    # Who is to be told, and how many suggested reviewers are not.
    targets: tuple[Target, ...] | Unknown = UNASKED
    left_out: int = 0
    posts: dict[Place, tuple[Post, ...] | Unknown] = {}
    # When (trio's clock) each of these readings began.
    read_at: dict[Place, float] = {}
    cards: dict[str, Post | Unknown | None] = {}
    # What stands on a second card, and whose words those are.
    words: dict[str, tuple[tuple[Expression, Person], ...] | Unknown] = {}
    who: str | Unknown | None = UNASKED
    evidence: Evidence | Unknown = UNASKED
    nudge: Nudge | Unknown = UNASKED
    # How often evidence was read in this look.
    readings: int = 0
    failed: frozenset[tuple[object, ...]] = frozenset()
    error: SidecarError | None = None

    def but(self, **changes: object) -> Seen:
        """The same with these changes."""
        return msgspec.structs.replace(self, **changes)


class Doubt(msgspec.Struct, frozen=True):
    """In this place something may have been written that no record tells; `card`: the card may have been, too.

    It is read before anything is written there; at `due` (trio's clock), when the longest late write may have landed;
    at each change of the card, and at the end of the request: nobody knows how late a write may be. `stage` counts down
    the looks that are due: 2 at once, 1 later, 0 none.
    """

    place: Place
    due: float
    stage: int = 1
    card: bool = False


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker of a request remembers between two looks.

    `text` is the record's exact text where it is kept, `mine` that this process made or took it, `foreign` another
    holder's (n, boot time when first seen), `touched` the channels whose cards may show anything, `direct` the direct
    messages that were heard live, `listen` that something was said that is not judged yet, `told` the posts (their
    hashes) that were seen to be cards.
    """

    known: bool = False
    text: str | None = None
    # What it was when a save met another one: whoever wrote that may have deleted the record.
    last: str | None = None
    # The rules under which this process wrote or read every card, while `text` was not given away; "" where it did not.
    proven: str = ""
    mine: bool = False
    silent: bool = False
    foreign: tuple[int, float] | None = None
    doubts: tuple[Doubt, ...] = ()
    mentions: bool = False
    touched: frozenset[str] = frozenset()
    told: tuple[int, ...] = ()
    listen: bool = False
    speakers: tuple[str, ...] = ()
    direct: tuple[Expression, ...] = ()
    given: tuple[Given, ...] = ()
    # Until when (trio's clock) nobody is reminded, for somebody said that they are on it.
    quiet_until: float = 0.0
    # Looks in a row that failed; tries of recipients that failed, and when (trio's clock) they are due again.
    failures: int = 0
    retries: int = 0
    retry_at: float = 0.0

    def but(self, **changes: object) -> Memory:
        """The same with these changes."""
        return msgspec.structs.replace(self, **changes)

    @property
    def timed(self) -> bool:
        """Whether a place must be read, or a card patched, again before the record is given up."""
        return bool(self.touched) or any(doubt.stage for doubt in self.doubts)


class Now(NamedTuple):
    """The clocks of a look: Unix seconds, trio's, the boot time's, and Mattermost's minus ours in seconds.

    Teleport tells no time. `teleport` is what its clock shows at least: that much passed since it made a request.
    """

    wall: float
    mono: float
    boot: float
    offset: float = 0.0
    teleport: float = -math.inf


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What decides besides: who we are, the operator's rules, and how messages look.

    `seed` is fresh in each look, for a record that does not exist yet.
    """

    request_id: str = ""
    # The Teleport user who asks, as far as it is known.
    requester: str = ""
    owner: str = ""
    bot_id: str = ""
    # The Teleport user of our certificate.
    own_user: str = ""
    seed: str = ""
    lease_s: int = 30
    rules: Rules = Rules()
    # What the rules by which people decide come to; a card says under which it was made.
    rules_digest: str = ""
    options: TextOptions = TextOptions()
    times: Times = USUAL
    reminders: RemindersConfig = RemindersConfig()
    announce_resolved: bool = False
    announce_delay: float = 0.0
    # Where rules are in use, their changes move new requests only.
    keep_recipients: bool = False


# -- what is to be done ----------------------------------------------------------------------------------------------


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What must be known before anything is decided."""

    request: bool = False
    record: bool = False
    targets: bool = False
    who: bool = False
    evidence: bool = False
    nudge: bool = False
    places: frozenset[Place] = frozenset()
    cards: frozenset[str] = frozenset()
    words: frozenset[Place] = frozenset()

    def __bool__(self) -> bool:
        return self != _NOTHING


_NOTHING = Look()


class Outcome(msgspec.Struct, frozen=True):
    """A verdict and what became of it, for the log: `outcome` is a reason or what was done."""

    verdict: Verdict
    outcome: str
    state: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What comes next in a look.

    First `look` and `take` (the record, as `record` says), side by side; then `actions`, side by side, too; with these
    or `again` there is a next step. Without, the look is over: `save` the record, look again at `again_at` (trio's
    clock), or `drop`.
    """

    memory: Memory
    look: Look = _NOTHING
    take: bool = False
    record: Record | None = None
    actions: tuple[Action, ...] = ()
    again: bool = False
    outcomes: tuple[Outcome, ...] = ()
    save: bool = False
    again_at: float = math.inf
    drop: bool = False
    # Recipients that the record has no room for, why this request cannot go on, and the kinds of posts that were found.
    refused: int = 0
    trouble: str = ""
    found: tuple[str, ...] = ()
    # Cards that were none.
    unproven: int = 0
    # What people without a link say right now.
    strangers: tuple[Expression, ...] = ()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done in this look."""
        return not (self.look or self.take or self.actions or self.again)
