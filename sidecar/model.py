"""The nouns of the domain, as frozen values without behaviour beyond their own order.

Every text in here is already decoded (invalid UTF-8 replaced) and still hostile. Times are Unix seconds, `None` where
Teleport says "unset" (absent, or year 1 as gogoproto sends a zero time).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

PENDING = "PENDING"
APPROVED = "APPROVED"
DENIED = "DENIED"
PROMOTED = "PROMOTED"
# Two states that only the sidecar shows: Teleport deletes the request and says nothing more.
EXPIRED = "EXPIRED"
REMOVED = "REMOVED"

# design: versions are ordered by (rank, number of reviews). A state that a newer server invented ranks as resolved.
_RANKS = {PENDING: 0, APPROVED: 1, PROMOTED: 1, DENIED: 2, EXPIRED: 3, REMOVED: 3}


class Version(msgspec.Struct, frozen=True, order=True):
    """How far a request has come; a lower one never overwrites a higher one."""

    rank: int
    reviews: int


def state_rank(state: str) -> int:
    """Rank of a state name: PENDING 0, APPROVED, PROMOTED and unknown ones 1, DENIED 2, gone 3."""
    return _RANKS.get(state, 1)


class Review(msgspec.Struct, frozen=True):
    """One person's verdict as Teleport stores it; `proposed_state` is a state name."""

    author: str
    proposed_state: str
    reason: str = ""
    created: float | None = None


class Threshold(msgspec.Struct, frozen=True):
    """How many approvals or denials decide; 0 means "never by this one". `filter` empty means everybody counts."""

    approve: int
    deny: int
    name: str = ""
    filter: str = ""


class Resource(msgspec.Struct, frozen=True):
    """A requested resource (types.ResourceAccessID)."""

    cluster: str
    kind: str
    name: str
    sub_resource: str = ""
    # What alone is asked for of it, and the word for that ("logins"); without one, everything that it offers.
    constraint: str = ""
    only: tuple[str, ...] = ()
    # It has a constraint or a field that this version does not know: what would be granted cannot be shown.
    unreadable: bool = False


class AccessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An access request as a Teleport Auth Service (7 to 18) describes it."""

    id: str
    user: str
    # "PENDING", "APPROVED", "DENIED", "PROMOTED"; "STATE 7" for a number that this version does not know.
    state: str
    roles: tuple[str, ...] = ()
    reason: str = ""
    resolve_reason: str = ""
    created: float | None = None
    # When the request object goes away: Spec.ResourceExpiry (18) where present, else Metadata.Expires.
    expires: float | None = None
    # When the granted access ends (Spec.Expires); plugin data lives one hour longer.
    access_until: float | None = None
    assume_start: float | None = None
    session_ttl: float | None = None
    thresholds: tuple[Threshold, ...] = ()
    # role -> the sets of threshold indexes of which each must hold one that is met
    role_thresholds: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...] = ()
    reviews: tuple[Review, ...] = ()
    suggested_reviewers: tuple[str, ...] = ()
    resources: tuple[Resource, ...] = ()
    promoted_name: str = ""
    promoted_title: str = ""
    dry_run: bool = False
    # "SHORT_TERM", "LONG_TERM"; "KIND 7" for a number that this version does not know; "" where Teleport does not say.
    kind: str = ""
    # From the requester's roles.
    system_annotations: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def teleport_only(self) -> str:
        """Why no decision about this request may be taken in Mattermost, "" where one may."""
        if any(resource.unreadable for resource in self.resources):
            return "unreadable"
        return {"": "", "SHORT_TERM": "", "LONG_TERM": "long_term"}.get(self.kind, "unknown_kind")

    @property
    def version(self) -> Version:
        """The order of this version among all versions of the same request."""
        return Version(state_rank(self.state), len(self.reviews))


class Put(msgspec.Struct, frozen=True):
    """The watch says: the request looks like this now."""

    request: AccessRequest


class Delete(msgspec.Struct, frozen=True):
    """The watch says: the request is gone, by expiry or by hand; the wire does not tell which."""

    request_id: str


class MonitoringRule(msgspec.Struct, frozen=True, kw_only=True):
    """An access monitoring rule: who is told of a request for which a condition holds."""

    name: str
    subjects: tuple[str, ...] = ()
    condition: str = ""
    # notification.name and notification.recipients; "" where nobody is told.
    plugin: str = ""
    recipients: tuple[str, ...] = ()
    # Its spec has a field that this version does not know, as schedules are: when it holds cannot be said.
    unreadable: bool = False


class RulePut(msgspec.Struct, frozen=True):
    """The watch says: the rule looks like this now."""

    rule: MonitoringRule


class RuleDelete(msgspec.Struct, frozen=True):
    """The watch says: the rule is gone."""

    name: str


class Ping(msgspec.Struct, frozen=True):
    """What an Auth Service says of itself (proto.PingResponse)."""

    cluster: str
    server_version: str
    proxy_public_addr: str = ""
    # Features.AdvancedAccessWorkflows (7) or an entitlement (35) that is paid for: reviews exist on this edition.
    advanced_workflows: bool = False
    paid_entitlement: bool = False

    @property
    def major(self) -> int:
        """The major version, 0 where it cannot be read."""
        number = self.server_version.removeprefix("v").partition(".")[0]
        return int(number) if number.isascii() and number.isdecimal() and len(number) < 5 else 0


class PluginData(msgspec.Struct, frozen=True):
    """The entry of one plugin for one access request: a flat map of strings."""

    request_id: str
    data: dict[str, str]


RecipientKind = Literal["channel", "direct"]


class Destination(msgspec.Struct, frozen=True):
    """A recipient that was resolved: the channel to post to, and the person where it is a direct channel."""

    channel_id: str
    kind: RecipientKind
    user_id: str = ""


# What Mattermost names things by.
Id = Annotated[str, msgspec.Meta(min_length=1)]
# Unix milliseconds by its clock, as far as a float holds them.
Millis = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]


class Mark(msgspec.Struct, frozen=True):
    """What `props.tm` of a post says (design: what proves what): whoever may edit the post may have written it."""

    v: int = 0
    n: int = 0
    id: str = ""
    k: str = ""
    state: str = ""
    q: str = ""
    c: str = ""
    who: str = ""
    rules: str = ""
    since: Millis = 0


class Post(msgspec.Struct, frozen=True):
    """A Mattermost post as far as the sidecar cares. Times are Unix milliseconds by Mattermost's clock.

    `key`, `request_id` and `shown_state` come from `mark`: a claim, not a proof, until `user_id` is the bot's. `props`
    holds the names of those properties that mean something to us. Of a post that is too large or nested too deep to be
    read (`skipped`) only the server's own fields are known: ids and times. A long `message` is cut.
    """

    id: str
    channel_id: str
    user_id: str
    create_at: int = 0
    update_at: int = 0
    edit_at: int = 0
    delete_at: int = 0
    root_id: str = ""
    original_id: str = ""
    type: str = ""
    message: str = ""
    remote_id: str = ""
    key: str = ""
    request_id: str = ""
    shown_state: str = ""
    mark: Mark = Mark()
    props: frozenset[str] = frozenset()
    # What a card of ours shows of the first attachment: `fallback`, `color`, `pretext`, `fields`, `footer`.
    attachment: dict[str, object] | None = None
    skipped: bool = False


class Reaction(msgspec.Struct, frozen=True):
    """A reaction that stands on a post now. `create_at` is chosen by the client, so it is not kept."""

    user_id: Id
    post_id: Id
    emoji_name: Id
    update_at: Millis = 0
    delete_at: Millis = 0
    remote_id: str | None = None


class User(msgspec.Struct, frozen=True):
    """A Mattermost user as a bot without special rights sees one."""

    id: Id
    username: str = ""
    email: str = ""
    delete_at: Millis = 0
    is_bot: bool = False
    roles: str = ""
    remote_id: str | None = None


class Draft(msgspec.Struct, frozen=True):
    """A post to be made or patched: the fixed `message` and one attachment (or none), as Mattermost takes them."""

    message: str
    attachment: dict[str, object] | None = None
