"""What was posted for one access request, as the document kept in Teleport plugin data. Pure.

The document is canonical ASCII JSON under the key `tm`, so that its exact text can be the expectation of a
compare-and-swap. The official plugin's keys are written beside it, so that going back to that plugin works.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from sidecar.model import PENDING, Draft, Version, state_rank

if TYPE_CHECKING:
    from sidecar.model import AccessRequest

KEY = "tm"
# The attempt of a slot whose post the official plugin made: it bears no key.
ADOPTED = -1
FORMAT = 1
# A record must stay well below Teleport's 1,000,000 bytes for all plugins of a request together.
MAX_BYTES = 64 * 1024
# A dozen replies of a slot.
_REPLIES_BYTES = 40
# A longer lease counts as this: whoever writes the record must not keep others away for ever.
MOST_LEASE_SECONDS = 600
# More attempts at one post than anybody makes: each has a key that may have to be computed.
MOST_ATTEMPTS = 100
# Milliseconds of Mattermost's clock have 13.
_MOST_DIGITS = 16
# The official plugin shows 500 runes of a reason; there is no need to store more for it.
_OFFICIAL_REASON_LENGTH = 1000

CLAIM_EXPECTS = {KEY: "", "messages": "", "user": ""}

Kind = Literal["card", "requester"]
SlotStatus = Literal["posted", "waiting", "failed", "gone", "archived"]


class Slot(msgspec.Struct, frozen=True, omit_defaults=True):
    """One recipient's messages. What is as usual is not written: there may be 400 of them in a record.

    `rep` holds what was answered in the thread: n > 0 for the n-th review, -rank for the end in that rank.
    """

    r: str
    k: Kind = "card"
    c: str = ""
    p: str = ""
    a: Annotated[int, msgspec.Meta(ge=ADOPTED, le=MOST_ATTEMPTS)] = 0
    s: SlotStatus = "waiting"
    h: str = ""
    shown: tuple[str, int] = ("", 0)
    rep: tuple[int, ...] = ()
    # The numbers of the reminders that were given.
    rem: tuple[int, ...] = ()
    # From when on (Mattermost's milliseconds) words on the card count.
    since: int = 0
    # Whether more may stand in its channel or thread than is on record.
    d: bool = False
    # Keys that a later version wrote.
    extra: dict[str, object] = {}

    @property
    def version(self) -> Version:
        """The version that the card shows; lower than any real one before the first post."""
        return Version(state_rank(self.shown[0]), self.shown[1]) if self.shown[0] else Version(-1, 0)


class Owed(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer that a person has not been given yet: its identity, channel, root post or "", and its words."""

    i: str
    c: str
    m: str
    t: str = ""

    @property
    def draft(self) -> Draft:
        """What is posted."""
        return Draft(self.m)


class Record(msgspec.Struct, frozen=True):
    """The document. `at` (our clock) and `exp` (Teleport's) are Unix seconds, `n` grows with every save.

    `owner` is "" when nobody holds it.
    `dec` lists judged decisions: (Mattermost user, verb, source, update_at, outcome), `owe` the answers to them that
    still have to be given.
    """

    seed: str
    owner: str
    at: int
    exp: int
    seen: tuple[str, int]
    posts: tuple[Slot, ...]
    n: int = 1
    lease_s: int = 30
    dec: tuple[tuple[str, str, str, int, str], ...] = ()
    owe: tuple[Owed, ...] = ()
    # A digest of what was asked: another request of the same id has another one.
    q: str = ""
    # The requester's Mattermost account, "" while it is not known.
    who: str = ""
    # The rules by which people decide, and since when (Mattermost's milliseconds) they hold: the cards say so, too.
    rules: str = ""
    since: int = 0
    # As which Teleport users (second) accounts review the request.
    heads: tuple[tuple[str, str], ...] = ()
    done: bool = False
    # How many suggested reviewers were too many to be told; not written where none.
    left: int = 0
    # Seconds by which Mattermost's clock was ahead of the one that wrote `at`; None where the version before wrote it.
    off: int | None = None
    v: int = FORMAT
    # Keys that a later version wrote.
    extra: dict[str, object] = {}

    @property
    def version(self) -> Version:
        """The highest version that any holder has acted on."""
        return Version(state_rank(self.seen[0]), self.seen[1])


class Stored(msgspec.Struct, frozen=True):
    """A record and the exact text of it that Teleport has ("" where it has none yet)."""

    record: Record
    text: str


class Unreadable(msgspec.Struct, frozen=True):
    """A record that must not be touched: made by a newer sidecar, or damaged. `why` is a sentence."""

    why: str


def new_seed() -> str:
    """128 random bits in 22 characters."""
    return base64.urlsafe_b64encode(secrets.token_bytes(16))[:22].decode()


def post_key(seed: str, kind: str, channel_id: str, index: int | str, attempt: int) -> str:
    """The identity of one post: anyone with the record can compute it, nobody else can guess it."""
    message = f"{kind}|{channel_id}|{index}|{attempt}".encode()
    digest = hmac.new(seed.encode(), message, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest)[:22].decode()


def encode(record: Record) -> str:
    """The canonical text: sorted keys, no spaces, ASCII. What a later version wrote is written again."""
    document = _document(record)
    document["posts"] = [_document(slot) for slot in record.posts]
    for key in ("owe", "q", "who", "rules", "since", "heads", "left"):
        if not document[key]:
            del document[key]
    if record.off is None:
        del document["off"]
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def decode(text: str) -> Record | Unreadable:
    """The record in `text`; what is not ours to change comes back as `Unreadable`."""
    try:
        document = json.loads(text, parse_int=_small_int)
        version = document["v"]
        if not isinstance(version, int) or version > FORMAT:
            return Unreadable(f"it has format {version!s:.20}, this sidecar knows {FORMAT}: a newer sidecar wrote it")
        document["posts"] = [_with_extra(slot, Slot) for slot in document["posts"]]
        record = msgspec.convert(_with_extra(document, Record), Record)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        return Unreadable(f"it cannot be read ({type(exc).__name__})")
    return msgspec.structs.replace(record, lease_s=min(max(record.lease_s, 1), MOST_LEASE_SECONDS))


def _small_int(digits: str) -> int:
    """Python computes with any integer, but neither clocks nor floats do."""
    if len(digits) > _MOST_DIGITS:
        raise ValueError("an integer of too many digits")
    return int(digits)


def _document(part: Record | Slot) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(part)
    fields.pop("extra", None)
    return {**part.extra, **fields}


def _with_extra(document: dict[str, object], kind: type[Record | Slot]) -> dict[str, object]:
    """Set aside the keys that `kind` does not know; "extra" itself is one of them."""
    known = frozenset(kind.__struct_fields__) - {"extra"}
    unknown = {key: value for key, value in document.items() if key not in known}
    if not unknown:
        return document
    return {**{key: value for key, value in document.items() if key in known}, "extra": unknown}


def official_fields(request: AccessRequest | None, record: Record) -> dict[str, str]:
    """The official plugin's keys for this state (teleport integrations/access/accessrequest/plugindata.go, v15).

    An empty value deletes the key. Without a request (it is gone) only what the record knows is said. Only cards are
    listed: that plugin would overwrite a requester's message with a reviewer's.
    """
    cards = [f"{slot.c}/{slot.p}" for slot in record.posts if slot.k == "card" and slot.p and slot.s == "posted"]
    fields = {"messages": ",".join(cards)}
    if request is None:
        return fields if record.seen[0] == PENDING else {**fields, "resolution": record.seen[0]}
    fields |= {
        "user": request.user,
        "roles": ",".join(request.roles),
        "request_reason": request.reason[:_OFFICIAL_REASON_LENGTH],
        "reviews_count": str(len(request.reviews)) if request.reviews else "",
        "resolution": "" if request.state == PENDING else request.state,
        "resolve_reason": request.resolve_reason[:_OFFICIAL_REASON_LENGTH],
    }
    return {key: value.replace("\x00", "") for key, value in fields.items()}


def adopt(data: dict[str, str], *, seed: str, owner: str, at: int, exp: int, lease_s: int) -> Record:
    """A record for a request that the official plugin announced, from that plugin's own keys.

    Its posts become ours as they stand: never rendered by us (`h` empty), with the replies that it says it made.
    """
    reviews = data.get("reviews_count", "")
    count = int(reviews) if reviews.isascii() and reviews.isdigit() and len(reviews) < 6 else 0
    state = data.get("resolution") or PENDING
    replies = [*range(1, count + 1)] + ([-state_rank(state)] if state != PENDING else [])
    slots = []
    for pair in filter(None, data.get("messages", "").split(",")):
        channel, _, post = pair.partition("/")
        if channel and post:
            slots.append(
                Slot(r=channel, c=channel, p=post, a=ADOPTED, s="posted", shown=(state, count), rep=tuple(replies))
            )
    return Record(seed=seed, owner=owner, at=at, exp=exp, lease_s=lease_s, seen=(state, count), posts=tuple(slots))


def size(part: Record | Slot) -> int:
    """Bytes that `part` takes in the document, with room for what its slots have yet to learn."""
    if isinstance(part, Record):
        rest = encode(msgspec.structs.replace(part, posts=()))
        return len(rest) + sum(size(slot) for slot in part.posts)
    grown = msgspec.structs.replace(
        part, c="c" * 26, p="p" * 26, h="h" * 16, s="archived", shown=("PROMOTED", 100), rep=(1,)
    )
    return len(json.dumps(_document(grown), separators=(",", ":"), ensure_ascii=True)) + _REPLIES_BYTES
