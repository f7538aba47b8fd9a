"""What comes next for a request: each row says what is seen and remembered, and what is to be done.

It is 2000 s by the wall clock, 100 s by trio's and 50 s since boot; the request is over at 5000 s. "again" is when to
look again, in seconds from now. A look that has nothing else to do and no row with "take" or "save" writes nothing.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from sidecar.config import Policy
from sidecar.config.sections import RemindersConfig
from sidecar.decisions import posts as due
from sidecar.decisions.decide import decide, settled
from sidecar.decisions.judge import Expression, Person, Rules, key_of
from sidecar.decisions.proof import asked
from sidecar.decisions.record import ADOPTED, MAX_BYTES, Owed, Record, Slot, Stored, Unreadable, encode, post_key
from sidecar.decisions.reminders import Account, Nudge
from sidecar.decisions.seen import (
    UNASKED,
    Action,
    Answer,
    Context,
    Create,
    Delete,
    Doubt,
    Evidence,
    Facts,
    Given,
    Memory,
    Now,
    Patch,
    Place,
    Plan,
    Reply,
    Resolve,
    Seen,
    Submit,
    Target,
    Unknown,
)
from sidecar.errors import Conflict, LinkLost, PluginDataTooLarge, PostRejected
from sidecar.model import AccessRequest, Mark, Post, Review, Threshold, Version
from sidecar.text import card as text
from sidecar.text.card import TextOptions

OPTIONS = TextOptions(cluster="example.com")
AWAY = Unknown(LinkLost("mattermost", "reset", "cut"))
FORBIDDEN = Unknown(PostRejected(403, "api.context.permissions.app_error"))
OPS = Target("ops/x", "card", "ops")
BOB = Target("bob", "requester", "bob")
CARD = Place("ops", "p1")


def request(state: str = "PENDING", reviews: int = 0, **more: Any) -> AccessRequest:
    said = tuple(Review(author, "APPROVED", "fine") for author in ("alice", "ivan", "eve")[:reviews])
    fields: dict[str, Any] = {
        "id": "id-1",
        "user": "bob",
        "roles": ("dba",),
        "expires": 5000.0,
        "created": 60.0,
    } | more
    return AccessRequest(state=state, reviews=said, **fields)


PENDING, REVIEWED, APPROVED, DENIED = request(), request("PENDING", 1), request("APPROVED", 2), request("DENIED", 2)


def slot(shows: AccessRequest | None = PENDING, **changes: Any) -> Slot:
    """The card `p1` in the channel `ops`, which shows this version and has all its replies."""
    if shows is None:
        return Slot(**{"r": "ops/x", "c": "ops"} | changes)
    draft = text.render_card(shows, options=OPTIONS, kind=changes.get("k", "card"))
    fields = {"h": text.content_hash(draft), "shown": (shows.state, len(shows.reviews)), "rep": due.numbers(shows)}
    return Slot(**{"r": "ops/x", "c": "ops", "p": "p1", "s": "posted"} | fields | changes)


ASKED = asked(PENDING)
# As whom their accounts review is on record before they do.
NOTED = (("a", "alice"), ("i", "ivan"))


def record(*slots: Slot, seen: tuple[str, int] = ("PENDING", 0), **more: Any) -> Record:
    fields: dict[str, Any] = {
        "seed": "seed", "owner": "", "at": 1000, "exp": 5000, "seen": seen, "posts": slots, "q": ASKED,
        "heads": NOTED,
    }  # fmt: skip
    return Record(**fields | more)


TOLD = record(slot())


def post(post_id: str = "p1", key: str = "", **more: Any) -> Post:
    """A post of our bot; with a key it bears our mark, too, unless `more` changes that."""
    marked: dict[str, Any] = {"id": "id-1", "q": ASKED, "c": "example.com"} if key else {}
    marked |= {name: more.pop(name) for name in ("q", "c", "rules", "since") if name in more}
    mark = Mark(v=1, k=key, **marked | {"id": more.pop("request_id", marked.get("id", ""))})
    fields: dict[str, Any] = {"id": post_id, "channel_id": "ops", "user_id": "bot", "create_at": 5}
    return Post(**fields | {"key": mark.k, "request_id": mark.id, "mark": mark} | more)


def keyed(post_id: str, kind: str = "card", which: int | str = 0, **more: Any) -> Post:
    return post(post_id, post_key("seed", kind, "ops", which, more.pop("attempt", 0)), **more)


READ = {"p1": keyed("p1")}
# What was read before and found to be cards; nobody has told so of a row that says otherwise.
SEEN = tuple(hash(f"p{number}") for number in range(10))


def ask(**given: Any) -> Plan:
    """Decide; every argument is a field of what is seen, remembered, known by Teleport, configured or of the clocks."""
    if isinstance(stored := given.pop("record", None), Record):
        given["stored"] = Stored(stored, "text")
    given.setdefault("targets", (OPS,))

    def take(kind: Any, **usual: Any) -> Any:
        names = getattr(kind, "_fields", None) or kind.__struct_fields__
        return kind(**usual | {name: given.pop(name) for name in names if name in given})

    parts = (
        take(Seen),
        take(Facts),
        take(Memory, told=SEEN),
        take(Context, request_id="id-1", owner="me", bot_id="bot", seed="seed", options=OPTIONS),
        take(Now, wall=2000.0, mono=100.0, boot=50.0),
    )
    assert not given, "no such field"
    return decide(*parts)


def summary(plan: Plan) -> str:
    look, slots = plan.look, plan.record.posts if plan.record is not None else ()
    words = [f"read {part}" for part in ("request", "record", "targets", "evidence", "nudge") if getattr(look, part)]
    words += sorted(f"read {place.root_id and 'thread '}{place.root_id or place.channel_id}" for place in look.places)
    words += [f"read card {card}" for card in sorted(look.cards)]
    words += ["take"] if plan.take else []
    words += [deed(action, slots) for action in plan.actions]
    words += ["go on"] if plan.again else []
    words += ["save"] if plan.save else []
    words += ["done"] if plan.record is not None and plan.record.done else []
    words += ["drop"] if plan.drop else []
    words += [f"say {plan.trouble}"] if plan.trouble else []
    words += [f"again {plan.again_at - 100:g}"] if plan.again_at < math.inf else []
    return ", ".join(words)


def deed(action: Action, slots: tuple[Slot, ...]) -> str:
    match action:
        case Create(position=position):
            return f"post {slots[position].c}"
        case Patch(position=position, shown=(state, _)):
            return f"patch {slots[position].c} {state}"
        case Reply(position=position, number=number, ends=ends, reminds=reminds):
            return f"{'remind' if reminds else 'reply'} {slots[position].c} {number}" + f" with {ends}" * bool(ends)
        case Answer(owed=owed):
            return f"answer {owed.i}"
        case Delete(post_id=post_id):
            return f"delete {post_id}"
        case Submit(verdict=verdict):
            return f"submit {verdict.person.teleport_user} {verdict.expression.verb}"
        case Resolve(state=state, voters=voters):
            return f"resolve {state} {'+'.join(voters)}"


def table(*rows: tuple[str, dict[str, Any], str]) -> pytest.MarkDecorator:
    """Rows of: the situation, what is given, what is to be done."""
    params = [pytest.param(given, expected, id=name) for name, given, expected in rows]
    return pytest.mark.parametrize(("given", "expected"), params)


EXPIRED_HASH = text.content_hash(text.render_card(PENDING, options=OPTIONS, state="EXPIRED"))
BOBS_HASH = text.content_hash(
    text.render_card(PENDING, options=msgspec.structs.replace(OPTIONS, unasked=True), kind="requester")
)
GONE = {"request": None, "by_id": True}
HELD = {"held": True, "request": PENDING}
NEW: dict[str, Any] = {"stored": None}


@table(
    # -- what is it
    ("nothing is known of it", {}, "read request"),
    ("an event brought it, and it is new", {"request": PENDING}, "take"),
    ("new, and its recipients are not known", {"request": PENDING, "targets": UNASKED}, "read targets"),
    ("it is known, its record is not kept", {"request": PENDING, "known": True}, "read record"),
    ("resolved: there may be a record", {"request": APPROVED}, "read record"),
    ("an event said that it is gone", {"gone": True}, "read record"),
    ("a get by id found nothing", GONE, "read record"),
    # -- was it readable
    ("Teleport did not answer", {"request": AWAY}, "again 0.5"),
    ("the record could not be read", {"request": PENDING, "stored": AWAY}, "again 0.5"),
    ("and not for the fourth time", {"request": AWAY, "failures": 3}, "again 4"),
    ("and never again", {"request": AWAY, "failures": 10**6}, "again 60"),
    ("the record changed meanwhile", {"request": PENDING, "stored": Unknown(Conflict("x"))}, "again 0.5"),
    ("no link's failure is told", {"request": Unknown(PluginDataTooLarge("too large"))}, "say too large, again 60"),
    ("once", {"request": Unknown(PluginDataTooLarge("too large")), "failures": 1}, "again 120"),
    # -- may it be written
    ("a newer sidecar's record", {"request": PENDING, "stored": Unreadable("newer")}, "say newer, again 3030"),
    ("is told once", {"request": PENDING, "stored": Unreadable("newer"), "silent": True}, "again 3030"),
    ("and forgotten at the end", {"gone": True, "stored": Unreadable("newer"), "silent": True}, "drop"),
    # -- is it there
    ("gone before it was announced", {"gone": True, "stored": None}, "drop"),
    ("gone, and its record is closed", {"gone": True, "record": record(done=True)}, "drop"),
    ("gone, and nobody was told", {"gone": True, "record": TOLD, "silent": True}, "drop"),
    ("nothing by id, and no record", {**GONE, "stored": None}, "drop"),
    ("nothing by id proves nothing before its expiry", {**GONE, "record": TOLD}, "again 3060"),
    ("nor just after it", {**GONE, "record": TOLD, "wall": 5059.0}, "again 1"),
    ("past its expiry it does", {**GONE, "record": TOLD, "wall": 5060.0}, "read card p1, take"),
    ("not past it by our clock alone", {**GONE, "record": TOLD, "wall": 5060.0, "offset": -60.0}, "again 60"),
    ("absent from a list and by id it is gone", {**GONE, "record": TOLD, "absent_since": 100.0}, "read card p1, take"),
    (
        "mode plugin narrows lists: again in five minutes",
        {**GONE, "record": TOLD, "absent_since": 90.0, "rules": Rules(mode="plugin")},
        "again 290",
    ),
    (
        "and then it is gone",
        {**GONE, "record": TOLD, "absent_since": -200.0, "rules": Rules(mode="plugin")},
        "read card p1, take",
    ),
    # -- does it count
    ("dry runs are nobody's business", {"request": request(dry_run=True)}, "drop"),
    # -- is it news
    ("older than an event before it", {"request": PENDING, "version": Version(0, 1), **NEW}, "read request"),
    ("older by id, too", {"request": PENDING, "version": Version(0, 1), "by_id": True, **NEW}, "again 3030"),
    ("older than what was acted on", {"request": PENDING, "record": record(seen=("DENIED", 2))}, "read request"),
    ("a cached read", {"request": APPROVED, "by_id": True, "record": record(seen=("DENIED", 2))}, "again 3060"),
    (
        "its end was shown, and an event says PENDING",
        {"request": PENDING, "record": record(slot(), seen=("EXPIRED", 0), done=True)},
        "read request",
    ),
    (
        "it is alive after all",
        {
            "request": PENDING, "by_id": True,
            "record": record(slot(shown=("EXPIRED", 0)), seen=("EXPIRED", 0), done=True),
        },
        "take",
    ),
    (
        "and its card says so",
        {**HELD, "by_id": True, "cards": READ,
         "record": record(slot(shown=("EXPIRED", 0), h="e"), seen=("EXPIRED", 0))},
        "patch ops PENDING",
    ),
    # -- is it too early
    ("announced after a delay", {"request": request(created=1990.0), "announce_delay": 30.0, **NEW}, "again 20"),
    (
        "our wall clock is behind Teleport's",
        {"request": request(created=9000.0), "announce_delay": 30.0, "pending_since": 75.0, **NEW},
        "again 5",
    ),
    ("the delay is over", {"request": PENDING, "announce_delay": 30.0, **NEW}, "take"),
    (
        "what is announced has no delay",
        {"request": request("PENDING", 1, created=1990.0), "announce_delay": 30.0, "known": True,
         "record": record(slot(), q=asked(request(created=1990.0)))},
        "read card p1, take",
    ),
    # -- is silence right
    ("resolved when first read", {"request": APPROVED, **NEW}, "again 3060"),
    ("wanted all the same", {"request": APPROVED, "announce_resolved": True, **NEW}, "take"),
    ("read PENDING before: owed", {"request": APPROVED, "pending_since": 100.0, **NEW}, "take"),
    ("within the delay it is not", {"request": APPROVED, "pending_since": 80.0, "announce_delay": 30.0, **NEW},
     "again 3060"),
    ("after it, it is", {"request": APPROVED, "pending_since": 70.0, "announce_delay": 30.0, **NEW}, "take"),
    ("silence is kept", {"request": APPROVED, "pending_since": 0.0, "silent": True, **NEW}, "again 3060"),
    # -- is it done
    ("closed, but an event came", {"request": APPROVED, "record": record(seen=("APPROVED", 2), done=True)},
     "read request"),
    ("closed, and resolved by id", {"request": APPROVED, "by_id": True, "record": record(done=True)}, "drop"),
    # -- is it ours
    ("another holds it", {"request": PENDING, "record": record(owner="other")}, "again 10"),
    ("its end is near", {"request": PENDING, "record": record(owner="other"), "foreign": (1, 20.0)}, "again 5.05"),
    ("it has moved on", {"request": PENDING, "record": record(owner="other", n=2), "foreign": (1, 0.0)}, "again 10"),
    ("a short lease", {"request": PENDING, "record": record(owner="other", lease_s=3)}, "again 1"),
    ("it died", {"request": PENDING, "record": record(slot(), owner="other"), "foreign": (1, 15.0)}, "take"),
    ("we hold it from before", {"request": PENDING, "record": record(slot(), owner="me")}, "save, again 3030"),
    (
        "and something is in doubt",
        {"request": PENDING, "record": record(slot(), owner="me"), "doubts": (Doubt(CARD, 110.0),)},
        "again 10",
    ),
    ("another's end is awaited, too", {**GONE, "record": record(slot(), owner="other"), "gone": True}, "again 10"),
    # -- what is uncertain
    ("a doubt that is due is read", {**HELD, "record": TOLD, "doubts": (Doubt(CARD, 100.0),)}, "read thread p1"),
    ("a channel, too", {**HELD, "record": TOLD, "doubts": (Doubt(Place("ops"), 99.0, 2),)}, "read ops"),
    ("one that is not due waits", {"request": PENDING, "record": TOLD, "doubts": (Doubt(CARD, 130.0),)}, "again 30"),
    ("at the end all are read", {"gone": True, "record": TOLD, "doubts": (Doubt(CARD, math.inf, 0),)},
     "read thread p1"),
    ("and where the card changes", {**HELD, "request": REVIEWED, "record": TOLD, "cards": READ,
     "doubts": (Doubt(Place("ops"), math.inf, 0),)}, "read ops, patch ops PENDING, reply ops 1"),
    ("before that they are not", {"request": PENDING, "record": TOLD, "doubts": (Doubt(CARD, math.inf, 0),)},
     "again 3030"),
    (
        "a place in doubt is read before anything is written there",
        {**HELD, "record": record(slot(None)), "doubts": (Doubt(Place("ops"), 130.0),)},
        "read ops",
    ),
    (
        "a place that cannot be read is not written to",
        {**HELD, "record": record(slot(None)), "doubts": (Doubt(Place("ops"), 130.0),), "posts": {Place("ops"): AWAY},
         "error": AWAY.why},
        "save, again 0.5",
    ),
    # -- what must be posted: nobody can say
    ("we do not know who we are", {"request": PENDING, "bot_id": "", **NEW}, "again 0.5"),
    ("Mattermost knows no recipient", {"request": PENDING, "targets": AWAY, **NEW}, "again 0.5"),
    ("and a card stands", {"request": PENDING, "targets": AWAY, "record": TOLD}, "again 3030"),
)  # fmt: skip
def test_before_anything_is_posted(given: dict[str, Any], expected: str) -> None:
    assert summary(ask(**given)) == expected


@table(
    ("a new request", {**HELD, "record": record()}, "post ops"),
    ("the requester, too", {**HELD, "record": record(), "targets": (OPS, BOB)}, "post ops, post bob"),
    ("nobody to tell", {**HELD, "record": record(), "targets": ()}, "save, again 3030"),
    ("a name that leads nowhere is tried again", {**HELD, "record": record(), "targets": (Target("t", "card", ""),)},
     "save, again 60"),
    ("and stops nobody else", {**HELD, "record": record(), "targets": (Target("t", "card", ""), OPS)}, "post ops"),
    ("one channel, once", {**HELD, "record": record(), "targets": (OPS, Target("other", "card", "ops"))}, "post ops"),
    ("made before its reviews are told", {**HELD, "request": REVIEWED, "record": record()}, "post ops"),
    ("which come next", {**HELD, "request": REVIEWED, "record": record(slot(REVIEWED, rep=()))}, "reply ops 1"),
    ("nothing changed", {**HELD, "record": TOLD}, "save, again 3030"),
    ("nothing changed, and it is not ours", {"request": PENDING, "record": TOLD}, "again 3030"),
    ("its card is read first", {**HELD, "request": REVIEWED, "record": TOLD}, "read card p1, reply ops 1"),
    ("a review", {**HELD, "request": REVIEWED, "record": TOLD, "cards": READ}, "patch ops PENDING, reply ops 1"),
    (
        "two reviews and the end in one patch",
        {**HELD, "request": APPROVED, "record": TOLD, "cards": READ},
        "patch ops APPROVED, reply ops 1, reply ops 2 with -1",
    ),
    (
        "APPROVED may become DENIED",
        {**HELD, "request": DENIED, "record": record(slot(APPROVED), seen=("APPROVED", 2)), "cards": READ},
        "patch ops DENIED, reply ops -2",
    ),
    (
        "a reason that was corrected",
        {**HELD, "request": request("APPROVED", 2, resolve_reason="ok"),
         "record": record(slot(APPROVED), seen=("APPROVED", 2)), "cards": READ},
        "patch ops APPROVED",
    ),
    ("a card that shows more than is read stays",
     {**HELD, "record": record(slot(REVIEWED)), "cards": READ}, "save, again 3030"),
    ("owed while PENDING, resolved meanwhile", {**HELD, "request": APPROVED, "record": record(slot(None))}, "post ops"),
    ("failed and over", {**HELD, "request": APPROVED, "record": record(slot(None, s="failed"))}, "save, again 3060"),
    ("nobody new once over", {**HELD, "request": APPROVED, "record": record(slot(APPROVED)), "targets": (OPS, BOB)},
     "save, again 3060"),
    ("resolved, announced as it is", {**HELD, "request": APPROVED, "record": record(slot(None, rep=(1, 2, -1)))},
     "post ops"),
    ("a deleted card stays deleted", {**HELD, "request": REVIEWED, "record": record(slot(s="gone"))},
     "save, again 3030"),
    ("an archived channel may be restored", {**HELD, "request": REVIEWED, "record": record(slot(s="archived"))},
     "read card p1, reply ops 1"),
    ("not now", {**HELD, "request": REVIEWED, "record": record(slot(s="archived")), "retries": 1,
     "retry_at": 130.0}, "save, again 30"),
    ("a card that was deleted meanwhile", {**HELD, "request": REVIEWED, "record": TOLD, "cards": {"p1": None}},
     "save, again 3030"),
    ("a card that may not be read", {**HELD, "request": REVIEWED, "record": TOLD, "cards": {"p1": FORBIDDEN}},
     "reply ops 1"),
    ("a card that could not be read", {**HELD, "request": REVIEWED, "record": record(slot(rep=(1,))),
     "cards": {"p1": AWAY}, "error": AWAY.why}, "save, again 0.5"),
    (
        "a card that could not be patched must become true",
        {**HELD, "request": APPROVED, "record": record(slot(s="failed", rep=(1, 2, -1))), "cards": READ},
        "patch ops APPROVED",
    ),
    ("a failed recipient that is found", {**HELD, "record": record(Slot(r="ops/x", s="failed"))}, "post ops"),
    ("one that failed and is as it should be", {**HELD, "record": record(slot(s="failed"))}, "save, again 3030"),
    ("is written down as such", {"request": PENDING, "record": record(slot(s="failed"))}, "take"),
    ("it is tried again when it is due", {**HELD, "record": record(slot(None, s="failed")), "retries": 1,
     "retry_at": 100.0}, "post ops"),
    ("not before", {**HELD, "record": record(slot(None, s="failed")), "retries": 1, "retry_at": 130.0},
     "save, again 30"),
    ("what failed in this look is not repeated", {**HELD, "record": record(slot(None, s="failed")),
     "failed": frozenset({("card", 0)})}, "save, again 60"),
    ("less and less often", {**HELD, "record": record(slot(None, s="failed")), "retries": 5, "retry_at": 100.0,
     "failed": frozenset({("card", 0)})}, "save, again 1920"),
    ("an hour at most", {**HELD, "record": record(slot(None, s="failed"), exp=10**6), "retries": 10, "retry_at": 100.0,
     "request": request(expires=1e6), "failed": frozenset({("card", 0)})}, "save, again 3600"),
    ("a card where writes crossed is patched once more",
     {**HELD, "record": TOLD, "touched": frozenset({"ops"}), "cards": READ}, "patch ops PENDING"),
    ("an answer that is owed", {**HELD, "record": record(slot(), owe=(Owed("i", "dm", "No."),))}, "answer i"),
    ("also where nobody holds the record",
     {"request": PENDING, "record": record(slot(), owe=(Owed("i", "dm", "No."),))},
     "take"),
    (
        "an answer in doubt is looked for first",
        {**HELD, "record": record(slot(), owe=(Owed("i", "ops", "No.", "p1"),)), "doubts": (Doubt(CARD, 130.0),)},
        "read thread p1",
    ),
    # -- the official plugin's
    (
        "a post of the official plugin is taken over",
        {**HELD, "cards": {"p9": post("p9")},
         "record": record(slot(None, r="ops", p="p9", a=ADOPTED, s="posted", shown=("PENDING", 0)))},
        "patch ops PENDING",
    ),
    # -- the end
    ("gone: the card is read", {"held": True, "gone": True, "record": TOLD}, "read card p1"),
    ("and closed", {"held": True, "gone": True, "record": TOLD, "cards": READ}, "patch ops REMOVED, reply ops -3"),
    ("said so by the clock before, so its thread is still to be told", {"held": True, "gone": True,
     "record": record(slot(shown=("EXPIRED", 0))), "cards": READ, "wall": 5000.0}, "patch ops EXPIRED, reply ops -3"),
    ("past its expiry as EXPIRED", {"held": True, "gone": True, "record": TOLD, "cards": READ, "wall": 5000.0},
     "patch ops EXPIRED, reply ops -3"),
    ("a deleted card is none to close", {"held": True, "gone": True, "record": TOLD, "cards": {"p1": None}},
     "save, done, drop"),
    ("a card that was never made is none either", {"held": True, "gone": True, "record": record(slot(None))},
     "save, done, drop"),
    ("all closed", {"held": True, "gone": True, "record": record(slot(shown=("REMOVED", 0)), seen=("REMOVED", 0))},
     "save, done, drop"),
    ("taking the record closed it", {"held": True, "gone": True, "record": record(slot(shown=("REMOVED", 0)),
     seen=("REMOVED", 0), done=True)}, "save, done, drop"),
    ("it said before how it ended",
     {"held": True, "gone": True, "record": record(slot(APPROVED), seen=("APPROVED", 2))},
     "save, done, drop"),
    ("one that failed must say so, too",
     {"held": True, "gone": True, "record": record(slot(s="failed")), "cards": READ},
     "patch ops REMOVED, reply ops -3"),
    ("an answer is given before the end",
     {"held": True, "gone": True, "record": record(owe=(Owed("i", "dm", "No."),))}, "answer i"),
    ("one that could not be given is tried again", {"held": True, "gone": True, "failed": frozenset({("answer", "i")}),
     "record": record(slot(shown=("REMOVED", 0)), seen=("REMOVED", 0), owe=(Owed("i", "dm", "No."),)),
     "error": AWAY.why}, "save, again 0.5"),
    ("a doubt keeps it open", {"held": True, "gone": True, "doubts": (Doubt(CARD, 130.0),),
     "record": record(slot(shown=("REMOVED", 0)), seen=("REMOVED", 0))}, "save, again 30"),
    ("a card in a channel where writes crossed is closed again",
     {"held": True, "gone": True, "touched": frozenset({"ops"}), "cards": READ,
      "record": record(slot(shown=("REMOVED", 0), rep=(-3,)), seen=("REMOVED", 0))}, "patch ops REMOVED"),
    # -- the clock
    ("its expiry is 30 s past, and Teleport lists it",
     {**HELD, "record": record(slot()), "cards": READ, "wall": 5030.0}, "patch ops EXPIRED"),
    ("a moment before", {**HELD, "record": record(slot()), "wall": 5029.0}, "save, again 1"),
    ("not by our clock alone", {**HELD, "record": record(slot()), "wall": 5030.0, "offset": -9.0}, "save, again 9"),
    ("but by any two", {**HELD, "record": record(slot()), "cards": READ, "wall": 4000.0, "offset": 1030.0,
     "teleport": 5030.0}, "patch ops EXPIRED"),
    ("not by Teleport's alone, which may be another's", {**HELD, "record": record(slot()), "wall": 4000.0,
     "teleport": 1e10}, "save, again 1030"),
    ("it was prolonged", {**HELD, "record": record(slot(shown=("EXPIRED", 0), h="e")), "cards": READ},
     "patch ops PENDING"),
)  # fmt: skip
def test_what_is_posted(given: dict[str, Any], expected: str) -> None:
    assert summary(ask(**given)) == expected


# -- reminders ---------------------------------------------------------------------------------------------------------

REMINDERS = RemindersConfig(after=60.0, every=100.0, most=3)
ACCOUNTS = {"alice": Account("a", "alice"), "ivan": Account("i", "ivan")}
# It waits since 60 s by the wall clock, which is 40 s by trio's.
WAITS: dict[str, Any] = {**HELD, "by_id": True, "reminders": REMINDERS, "pending_since": 40.0, "wall": 120.0,
                         "record": TOLD, "nudge": Nudge(people=ACCOUNTS)}  # fmt: skip
REMINDED = record(slot(rem=(1,)))


@table(
    ("nobody asked for reminders", {**WAITS, "reminders": RemindersConfig()}, "save, again 4910"),
    ("not yet", {**WAITS, "mono": 90.0, "wall": 110.0}, "save, again 0"),
    ("its time is a reason to look again", {"request": PENDING, "record": TOLD, "reminders": REMINDERS,
     "pending_since": 90.0}, "again 50"),
    ("it is due: what stands is read first", {**WAITS, "nudge": UNASKED, "by_id": False}, "read request, read nudge"),
    ("and the record is taken", {**WAITS, "nudge": UNASKED, "by_id": False, "held": False},
     "read request, read nudge, take"),
    ("and given", WAITS, "remind ops 1"),
    ("by a clock that jumped ahead it is not", {**WAITS, "wall": 4000.0, "pending_since": 90.0},
     "save, again 50"),
    ("nor by one of ours that Mattermost does not share", {**WAITS, "wall": 4000.0, "offset": -3930.0,
     "pending_since": -4000.0}, "save, again 50"),
    ("once", {**WAITS, "record": REMINDED}, "save, again 100"),
    ("the next one", {**WAITS, "record": REMINDED, "pending_since": -60.0, "wall": 220.0}, "remind ops 2"),
    ("what was missed is given as one", {**WAITS, "pending_since": -160.0, "wall": 320.0}, "remind ops 3"),
    ("and no more than that", {**WAITS, "record": record(slot(rem=(3,))), "pending_since": -900.0, "wall": 1060.0},
     "save, again 3970"),
    ("none of what was resolved meanwhile", {**WAITS, "request": APPROVED, "record": record(slot(APPROVED), seen=(
     "APPROVED", 2))}, "save, again 4940"),
    ("none past its expiry", {**WAITS, "wall": 5031.0, "pending_since": -4000.0,
     "record": record(slot(shown=("EXPIRED", 0), h=EXPIRED_HASH))}, "save, again 29"),
    ("somebody is on it", {**WAITS, "nudge": Nudge(looking=True)}, "save, again 100"),
    ("and that holds for a while", {**WAITS, "nudge": UNASKED, "quiet_until": 150.0}, "save, again 50"),
    ("who is on it cannot be read", {**WAITS, "nudge": AWAY, "error": AWAY.why}, "save, again 0.5"),
    ("nobody may read it", {**WAITS, "nudge": FORBIDDEN}, "remind ops 1"),
    ("a card for the requester is none to be reminded on", {**WAITS, "record": record(slot(
     k="requester", h=BOBS_HASH))}, "save, again 4910"),
    ("who reads it alone has reviewed", {**WAITS, "request": REVIEWED, "record": record(slot(REVIEWED, r="@alice"),
     seen=("PENDING", 1))}, "save, again 100"),
    ("a place in doubt is read before", {**WAITS, "doubts": (Doubt(CARD, 130.0),)}, "read thread p1"),
    ("and what stands there is not given again", {**WAITS, "doubts": (Doubt(CARD, 130.0),),
     "posts": {CARD: (keyed("r1", "reminder", 1),)}}, "save, again 30"),
)  # fmt: skip
def test_who_is_reminded_and_when(given: dict[str, Any], expected: str) -> None:
    given = {"mono": 100.0} | given
    plan = ask(**given)
    assert summary(plan) == expected


@pytest.mark.parametrize(
    ("changes", "given", "called"),
    [
        ({}, {}, "@alice @ivan "),
        ({"request": REVIEWED, "record": record(slot(REVIEWED), seen=("PENDING", 1))}, {}, "@ivan "),
        ({"record": record(slot(), dec=(("i", "approve", "reaction|p1", 10, "counted"),))}, {}, "@alice "),
        ({"record": record(slot(r="@ivan"))}, {}, "@ivan "),
        ({"record": record(slot(r="user:a"))}, {}, "@alice "),
        ({"record": record(slot(r="eve@example.com"))}, {}, ""),
        ({}, {"alice": Account("a", "all"), "bob": Account("b", "bob")}, ""),
        ({"request": request(thresholds=(Threshold(2, 1),)),
          "record": record(slot(request(thresholds=(Threshold(2, 1),))))}, {}, "@alice @ivan "),
    ],
)  # fmt: skip
def test_a_reminder_mentions_those_asked_who_have_not_reviewed(
    changes: dict[str, Any], given: dict[str, Account], called: str
) -> None:
    (reminder,) = ask(**{"mono": 100.0} | WAITS | {"nudge": Nudge(people=given or ACCOUNTS)} | changes).actions
    assert isinstance(reminder, Reply)
    assert reminder.draft.message.startswith(f"{called}bob's request for dba still waits for review")
    assert reminder.draft.message.endswith("It expires at 1970-01-01 01:23 UTC.")


# -- what people say -------------------------------------------------------------------------------------------------

PEOPLE = {
    "a": Person("a", "alice"),
    "i": Person("i", "ivan"),
    "b": Person("b", "bob"),
    "m": Person("m", problem="unmapped"),
    "g": Person("g", "gina", problem="guest"),
}
REVIEWER = Rules(mode="reviewer")
QUORUM = Rules(mode="plugin", policies={"*": Policy(("alice", "ivan"), 2, 1)})
STATE = msgspec.structs.replace(QUORUM, mode="state")


def say(user: str = "a", verb: Any = "approve", at: int = 10, **more: Any) -> Expression:
    fields = {"way": "reaction", "post_id": "p1", "channel_id": "ops", "root_id": "p1"} | more
    return Expression(user_id=user, verb=verb, at=at, **fields)


def heard(
    *said: Expression, at: float = 99.0, unread: tuple[str, ...] = (), root: Post | None = None
) -> dict[str, Any]:
    """A held record, a request that was just read, and what people say about it."""
    evidence = Evidence(
        at=at, standing=said, people=PEOPLE, unread=unread, cards={root.id: root} if root else {}, who="bobs"
    )
    known = {"listen": True, "rules": REVIEWER, "by_id": True, "readings": 1, "record": TOLD, "cards": READ}
    return {**HELD, **known, "evidence": evidence}


COUNTED = ("a", "approve", "reaction|p1", 10, "counted")
UNREAD: dict[str, Any] = {"unread": ("a thread",)}


@table(
    ("somebody spoke", {"request": PENDING, "record": TOLD, "listen": True, "rules": REVIEWER},
     "read request, read evidence"),
    ("nobody may decide", {"request": PENDING, "record": TOLD, "listen": True}, "again 3030"),
    ("it is over", {"request": APPROVED, "record": record(done=True), "listen": True, "rules": REVIEWER},
     "read request"),
    ("nothing was said after all", heard(), "save, again 3030"),
    ("an approval", heard(say()), "submit alice approve"),
    ("is submitted by who holds the record", heard(say()) | {"held": False}, "take"),
    ("as whom somebody reviews is on record first", heard(say()) | {"record": record(slot(), heads=())}, "take"),
    ("of nobody who was refused", heard(say("b"), say()) | {"record": record(slot(), heads=())}, "go on"),
    ("nor where the sidecar counts", heard(say("i", "deny")) | {"record": record(slot(), heads=()), "rules": QUORUM},
     "resolve DENIED ivan"),
    ("two, one at a time", heard(say("i", at=11), say()), "submit alice approve"),
    ("a refusal is noted at once", heard(say("b")), "go on"),
    ("before anything is submitted", heard(say("b", at=11), say()), "go on"),
    ("what nobody decided is answered once the record says so",
     heard(say("b")) | {"record": record(slot(), dec=(("b", "approve", "reaction|p1", 10, "own_request"),))},
     "save, again 3030"),
    ("it failed in this look", heard(say()) | {"failed": frozenset({("submit", "a", "approve", "reaction|p1", 10)}),
     "error": AWAY.why}, "save, again 0.5"),
    ("and the next one is not held up", heard(say(), say("i", at=11))
     | {"failed": frozenset({("submit", "a", "approve", "reaction|p1", 10)})}, "submit ivan approve"),
    ("somebody else's words in our name", heard(say(flaw="forged")), "save, again 3030"),
    ("read too long ago", heard(say(), at=98.0), "read request, read evidence"),
    ("for the third time", heard(say(), at=98.0) | {"readings": 3}, "save, again 0.5"),
    ("something could not be read: no approval", heard(say(), **UNREAD), "save, again 0.5"),
    ("but a denial", heard(say(verb="deny"), say("i"), **UNREAD), "submit alice deny"),
    ("its expiry is past, and Teleport lists it", heard(say()) | {"wall": 5030.0}, "go on"),
    # -- the policy's count
    ("one of two", heard(say()) | {"rules": QUORUM}, "go on"),
    ("the second", heard(say(), say("i", at=11)) | {"rules": QUORUM, "record": record(slot(), dec=(COUNTED,))},
     "resolve APPROVED alice+ivan"),
    ("the first took it back", heard(say("i", at=11)) | {"rules": QUORUM, "record": record(slot(), dec=(COUNTED,))},
     "go on"),
    ("one denial", heard(say(verb="deny")) | {"rules": QUORUM}, "resolve DENIED alice"),
    ("something could not be read", heard(say(), say("i", at=11), **UNREAD) | {"rules": QUORUM},
     "save, again 0.5"),
    ("a denial all the same", heard(say(verb="deny"), **UNREAD) | {"rules": QUORUM}, "resolve DENIED alice"),
    ("it failed in this look, too", heard(say(verb="deny")) | {"rules": QUORUM, "error": AWAY.why,
     "failed": frozenset({("resolve", "DENIED")})}, "save, again 0.5"),
    ("read before the record was ours", heard(say(verb="deny")) | {"rules": STATE, "held_since": 99.5},
     "read request, read evidence"),
    ("and after", heard(say(verb="deny")) | {"rules": STATE, "held_since": 98.5}, "resolve DENIED alice"),
    ("which only the state asks for", heard(say(verb="deny")) | {"rules": QUORUM, "held_since": 99.5},
     "resolve DENIED alice"),
)  # fmt: skip
def test_what_people_say(given: dict[str, Any], expected: str) -> None:
    assert summary(ask(**given)) == expected


@pytest.mark.parametrize(
    ("said", "more", "ledger", "owed"),
    [
        ((say("b"),), {}, [("b", "own_request")], ["b:approve:reaction|p1:10"]),
        # People without a link leave nothing.
        ((say("m"), say("b")), {}, [("b", "own_request")], ["b:approve:reaction|p1:10"]),
        # Of a reviewer who is none now, all that was said until then; it is told once.
        ((say("g"), say("g", "deny", 11)), {}, [("g", "guest")], ["g:approve:reaction|p1:10"]),
        ((say("g", at=12),), {"dec": (("g", "*", "*", 10, "guest"),)}, [("g", "guest")], []),
        # A direct message that counted before a restart is asked for once more.
        (
            (say(way="direct", post_id="d", channel_id="dm", root_id="", flaw="unheard"),),
            {"rules": QUORUM, "dec": (("a", "approve", "direct|d", 10, "counted"),)},
            [("a", "unheard")],
            ["a:approve:direct|d:10:again"],
        ),
        ((say("a"),), {"rules": QUORUM}, [("a", "counted")], ["a:approve:reaction|p1:10"]),
    ],
)
def test_what_is_on_record_of_it(
    said: tuple[Expression, ...], more: dict[str, Any], ledger: list[tuple[str, str]], owed: list[str]
) -> None:
    """A verdict and the answer to it get on record together: whoever carries on gives the answer, once."""
    more = more.copy()
    plan = ask(**heard(*said) | {"record": record(slot(), dec=more.pop("dec", ()))} | more)
    assert plan.record is not None
    assert [(user, outcome) for user, _, _, _, outcome in plan.record.dec] == ledger
    assert [one.i for one in plan.record.owe] == owed


def test_what_is_judged_is_listened_to_no_longer() -> None:
    assert not ask(**heard()).memory.listen
    assert ask(**heard(say(), **UNREAD)).memory.listen
    assert not ask(**heard(say("m"))).memory.listen


def test_people_without_a_link_are_answered_where_an_event_named_them() -> None:
    said = say("m"), say("m", "deny", 11), say("b"), say("a", flaw="forged")
    plan = ask(**heard(*said) | {"speakers": ("m", "a"), "record": record(slot(), dec=(("b", "*", "*", 10, "x"),))})
    assert summary(plan) == "save, again 3030"
    assert plan.strangers == (said[1],)
    assert not ask(**heard(*said)).strangers


def test_a_reason_has_the_words_of_what_counts_alone() -> None:
    reply: dict[str, Any] = {"way": "reply", "root_id": "p1"}
    said = (
        say(post_id="r1", reason="fine", **reply),
        say("i", post_id="r2", reason="good", at=11, **reply),
        say(post_id="r3", reason="not mine", flaw="edited", at=8, **reply),
        say("b", post_id="r4", reason="me too", **reply),
    )
    dec = (("a", "approve", "reply|r3", 8, "edited"), ("b", "approve", "reply|r4", 10, "own_request"))
    (action,) = ask(**heard(*said) | {"rules": QUORUM, "record": record(slot(), dec=dec)}).actions
    assert isinstance(action, Resolve)
    assert action.reason == "Decided in Mattermost by alice, ivan: fine; good"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (UNASKED, "read card p1"),
        (keyed("p1"), "save, again 3030"),
        # Whatever it is, it is not this request's card: that is looked for, and made.
        (keyed("p1", request_id="id-2"), "read ops"),
        (post("p1"), "read ops"),
        (None, "read ops"),
        (AWAY, "save, again 3030"),
        (FORBIDDEN, "save, again 60"),
    ],
)
@pytest.mark.parametrize("status", ["posted", "waiting"])
def test_a_record_alone_tells_nobody(card: Any, expected: str, status: Any) -> None:
    """A slot counts as told only while its post was seen to be a card."""
    given = {"record": record(slot(s=status)), "told": (), "cards": {"p1": card}, **HELD}
    plan = ask(**given)
    assert summary(plan) == (expected.replace("3030", "60") if status == "waiting" else expected)
    assert (hash("p1") in plan.memory.told) == (card == keyed("p1"))
    assert plan.unproven == (expected == "read ops")


def test_a_record_does_not_say_where_a_recipient_is() -> None:
    """A card that was not posted yet goes where the name leads now; one that stands stays where it is."""
    plan = ask(**HELD, record=record(Slot(r="ops/x", c="elsewhere")))
    assert summary(plan) == "post ops"
    stands = record(slot(), Slot(r="dba/y", c="dba", p="p2", s="posted"))
    plan = ask(**HELD, record=stands, targets=(OPS, Target("dba/y", "card", "moved")), cards={"p2": AWAY})
    assert plan.record is not None
    assert [one.c for one in plan.record.posts] == ["ops", "dba"]


def test_who_decided_on_a_second_card_is_asked_to_do_so_again() -> None:
    """Its thread and its reactions go with it; whose review reached Teleport already is asked nothing."""
    second = {Place("ops"): (keyed("p1"), keyed("p2", create_at=6))}
    given = {**UNSURE, "record": TOLD, "posts": second, "cards": READ, "rules": REVIEWER}
    plan = ask(**given)
    assert (summary(plan), plan.look.words) == ("", frozenset({Place("ops", "p2")}))
    words = ((say(post_id="p2"), PEOPLE["a"]), (say("i", post_id="p2"), PEOPLE["i"]), (say(at=9), PEOPLE["a"]))
    plan = ask(
        **given
        | {"words": {"p2": words}, "record": record(slot(), dec=(("i", *key_of(words[1][0])[1:], "submitted"),))}
    )
    assert summary(plan) == "delete p2, answer a:moved:p2"
    assert plan.record is not None
    (owed,) = plan.record.owe
    assert (owed.c, owed.t) == ("ops", "p1")
    assert (
        summary(ask(**given | {"words": {"p2": words}, "record": msgspec.structs.replace(plan.record, owe=())}))
        == "delete p2"
    )
    assert summary(ask(**given | {"words": {"p2": AWAY}, "error": AWAY.why})) == "save, again 0.5"


def test_a_card_of_ours_that_was_deleted_is_never_made_again() -> None:
    assert summary(ask(**HELD, record=TOLD, cards={"p1": None}, touched=frozenset({"ops"}))) == "save, again 3030"
    assert summary(ask(**HELD, record=record(slot(s="gone")), told=())) == "save, again 3030"


# -- what is found ---------------------------------------------------------------------------------------------------

NOT_OURS: dict[str, dict[str, Any]] = {
    "another's post": {"user_id": "eve"},
    "elsewhere": {"channel_id": "other"},
    "a former version": {"original_id": "p6"},
    "deleted": {"delete_at": 5},
    "another key": {"which": 7},
}
UNSURE = {**HELD, "doubts": (Doubt(Place("ops"), 100.0),)}
LOST = record(slot(None))


@table(
    ("nothing of ours is there", {"record": LOST, "posts": {Place("ops"): ()}}, "post ops"),
    ("the card is there; its text is not known", {"record": LOST, "posts": {Place("ops"): (keyed("p7"),)}},
     "read card p7"),
    ("a raised attempt", {"record": LOST, "posts": {Place("ops"): (keyed("p7", attempt=3),)}}, "read card p7"),
    *(
        (f"not ours: {name}", {"record": LOST, "posts": {Place("ops"): (keyed("p7", **changes),)}}, "post ops")
        for name, changes in NOT_OURS.items()
    ),
    ("of two the older is kept", {"record": LOST, "posts": {Place("ops"): (keyed("p8", create_at=6), keyed("p7"))}},
     "read card p7, delete p8"),
    ("a late one that is older than ours", {"record": TOLD, "posts": {Place("ops"): (keyed("p1", create_at=6),
     keyed("p0"))}}, "read card p0, delete p1"),
    ("a late one that is younger", {"record": TOLD, "posts": {Place("ops"): (keyed("p1"), keyed("p2", create_at=6))}},
     "delete p2"),
    ("that could not be deleted", {"record": TOLD, "posts": {Place("ops"): (keyed("p1"), keyed("p2", create_at=6))},
     "failed": frozenset({("delete", "p2")}), "error": AWAY.why}, "save, again 0.5"),
    ("an answer is not taken for the card", {"record": TOLD, "posts": {Place("ops"): (keyed("p1"),
     keyed("p0", "answer", "i"))}}, "save, again 3030"),
    ("an answer that was given stands twice", {"record": TOLD, "posts": {Place("ops"): tuple(
     keyed(name, "answer", "i", request_id="id-1", create_at=at) for name, at in (("p6", 7), ("p5", 6)))}},
     "delete p6"),
    ("another request's is not ours to mend", {"record": TOLD, "posts": {Place("ops"): tuple(
     keyed(name, "answer", "i", request_id="id-2") for name in ("p6", "p5"))}}, "save, again 3030"),
    ("an answer is found", {"record": record(slot(), owe=(Owed("i", "ops", "No."),)),
     "posts": {Place("ops"): (keyed("p5", "answer", "i"),)}}, "save, again 3030"),
)  # fmt: skip
def test_what_is_found_in_a_channel(given: dict[str, Any], expected: str) -> None:
    assert summary(ask(**UNSURE | given)) == expected


@table(
    ("no reply", {"posts": {CARD: (post(),)}}, "read card p1, reply ops 1"),
    ("the reply", {"posts": {CARD: (keyed("r1", "review", 1),)}}, "read card p1"),
    ("two of them", {"posts": {CARD: (keyed("r1", "review", 1), keyed("r2", "review", 1, create_at=6))}},
     "read card p1, delete r2"),
    ("it could not be read", {"posts": {CARD: AWAY}}, "read card p1"),
)  # fmt: skip
def test_what_is_found_in_a_thread(given: dict[str, Any], expected: str) -> None:
    seen = {**HELD, "request": REVIEWED, "record": TOLD, "doubts": (Doubt(CARD, 100.0),)}
    assert summary(ask(**seen | given)) == expected


WEDGE = {**HELD, "mentions": True, "doubts": (Doubt(Place("ops"), math.inf, 0),), "record": LOST}


@table(
    ("it is looked for before we post", {}, "read ops"),
    ("a post of our bot that names the request", {"posts": {Place("ops"): (post("p9", message="for id-1"),)}},
     "read card p9"),
    ("a post that names another", {"posts": {Place("ops"): (post("p9", message="for id-2"),)}}, "post ops"),
    ("a reply", {"posts": {Place("ops"): (post("p9", message="for id-1", root_id="p8"),)}}, "post ops"),
    ("somebody else's", {"posts": {Place("ops"): (post("p9", message="for id-1", user_id="eve"),)}}, "post ops"),
)  # fmt: skip
def test_what_the_official_plugin_may_have_posted(given: dict[str, Any], expected: str) -> None:
    """It claimed the request, and died or not before it posted."""
    assert summary(ask(**WEDGE | given)) == expected


def test_an_adopted_post_gets_our_message_once() -> None:
    adopted = record(slot(None, p="p1", a=ADOPTED, s="posted", shown=("PENDING", 0)))
    for given, card, message in ((adopted, post(), True), (record(slot(PENDING, h="old")), keyed("p1"), False)):
        (patch,) = ask(**HELD, record=given, cards={"p1": card}).actions
        assert isinstance(patch, Patch)
        assert patch.message is message


@pytest.mark.parametrize(
    ("message", "whole"), [("Access request id-1", True), ("`bob` asks for `dba`\nAccess …", False)]
)
def test_a_card_whose_message_says_nothing_goes_on_saying_it_all(message: str, whole: bool) -> None:  # noqa: FBT001
    """A version before this one made it; its message is never edited."""
    (patch,) = ask(**HELD, record=record(slot(h="old")), cards={"p1": keyed("p1", message=message)}).actions
    assert isinstance(patch, Patch)
    assert ("Requester" in str(patch.draft.attachment)) == whole
    assert (patch.message, patch.digest) == (False, slot().h)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("alice", "p1"), ["@al Your approval of bob's request for dba counts, as alice.", "ivan approved"]),
        (
            ("ivan", "p1"),
            ["alice approved", "@al Your approval of bob's request for dba counts, as ivan. The request is"],
        ),
        (
            ("alice", "p2"),
            ["alice approved", "ivan approved bob's request for dba. The request is now APPROVED.\n\n```"],
        ),
    ],
)
def test_a_review_that_was_given_here_is_answered_by_the_reply_that_tells_of_it(
    given: tuple[str, str], said: list[str]
) -> None:
    author, root = given
    plan = ask(**HELD | {"request": APPROVED}, record=TOLD, cards=READ, given=(Given(author, "approve", "al", root),))
    replies = [one.draft.message for one in plan.actions if isinstance(one, Reply)]
    assert len(replies) == 2
    assert [reply.startswith(words) for reply, words in zip(replies, said, strict=True)] == [True, True]


OURS: dict[str, Any] = {
    **HELD, "request": REVIEWED, "record": TOLD, "text": "text", "proven": "now", "rules_digest": "now",
}  # fmt: skip


@table(
    ("it wrote or read every card itself", {}, "patch ops PENDING, reply ops 1"),
    ("it did not", {"proven": ""}, "read card p1, reply ops 1"),
    ("somebody else may have held the record since", {"text": None}, "read card p1, reply ops 1"),
    ("words count by other rules now", {"proven": "before"}, "read card p1, reply ops 1"),
    ("something late may have landed", {"doubts": (Doubt(CARD, math.inf, 0),)}, "read thread p1, read card p1"),
    ("it may show anything", {"touched": frozenset({"ops"})}, "read card p1, reply ops 1"),
)
def test_a_card_that_nobody_else_can_have_changed_is_not_read_before_it_is(
    given: dict[str, Any], expected: str
) -> None:
    """The answer to our own write is a reading, as long as nobody else had the record."""
    assert summary(ask(**OURS | given)) == expected


def test_what_was_written_or_read_by_ourselves_is_remembered() -> None:
    def rests(**given: Any) -> str:
        plan = ask(**HELD | {"record": TOLD, "rules_digest": "now"} | given)
        assert plan.over
        return plan.memory.proven

    assert rests(cards={"p1": keyed("p1", rules="now")}) == "now"
    assert rests(cards={"p1": keyed("p1", rules="now", message="Access request id-1")}) == ""
    assert rests(text="text", proven="now") == "now"
    assert rests(text="text", proven="now", doubts=(Doubt(CARD, math.inf, 0),)) == ""
    assert rests(proven="now") == ""
    assert rests() == ""


# -- what proves a card ----------------------------------------------------------------------------------------------

UNPROVEN: dict[str, Post] = {
    "another request's card": keyed("p1", request_id="id-2"),
    "a card of another request that had this id": keyed("p1", q="another"),
    "a webhook's post": keyed("p1", props=frozenset({"from_webhook"})),
    "in another channel": keyed("p1", channel_id="dba"),
    "of another cluster": keyed("p1", c="elsewhere.com"),
    "the wrong key": keyed("p1", which=7),
    "no key": post(),
    "somebody else's": keyed("p1", user_id="eve"),
    "a reply": keyed("p1", root_id="p0"),
    "a system message": keyed("p1", type="system_join_channel"),
    "another post": keyed("p2"),
}
ANOTHER = request(created=61.0)


@pytest.mark.parametrize("card", UNPROVEN.values(), ids=UNPROVEN.keys())
def test_a_record_that_names_no_card_of_this_request_is_mended(card: Post) -> None:
    """Whoever may write the record could lead us to a post that others answer: nothing is patched, told or counted."""
    given = heard(say(), root=card) | {"cards": {"p1": card}}
    first = ask(**given)
    assert (summary(first), first.unproven) == ("read ops", 1)
    assert first.record is not None
    assert [(one.p, one.s) for one in first.record.posts] == [("", "waiting")]
    given |= {"record": first.record, "doubts": first.memory.doubts}
    assert summary(ask(**given, posts={Place("ops"): ()})) == "post ops"
    assert summary(ask(**given, posts={Place("ops"): (keyed("p7"),)})) == "read card p7"


def test_a_card_is_made_where_an_adopted_post_was_none() -> None:
    """It gets a key, so its slot is no longer one of the official plugin's."""
    first = ask(**HELD, record=record(slot(a=ADOPTED)), cards=READ)
    assert first.record is not None
    assert [(one.p, one.a) for one in first.record.posts] == [("", 0)]
    found = {"doubts": (Doubt(Place("ops"), 100.0),), "posts": {Place("ops"): (keyed("p7"),)}}
    assert [(one.p, one.a) for one in kept(**HELD, record=record(slot(None, a=ADOPTED)), **found).posts] == [("p7", 0)]


@table(
    ("made before there were such marks", {"cards": {"p1": keyed("p1", q="", c="")}}, "submit alice approve"),
    ("a card for the requester", {"record": record(slot(k="requester"), slot(None, s="gone")),
     "cards": {"p1": keyed("p1", "requester")}},
     "save, again 3030"),
    ("an adopted post", {"record": record(slot(a=ADOPTED)), "cards": {"p1": post()}}, "save, again 3030"),
    ("an adopted post that got a key", {"record": record(slot(a=ADOPTED))}, "read ops"),
    ("nobody read it", {"cards": {}}, "save, again 3030"),
    ("only the thread was read", {"cards": {}, "root": keyed("p1")}, "submit alice approve"),
    ("older than the request by more than a minute", {"request": request(created=60.011),
     "record": record(slot(), q=asked(request(created=60.011))),
     "cards": {"p1": keyed("p1", q=asked(request(created=60.011)))}}, "save, again 3030"),
    ("by less", {"request": request(created=60.009), "record": record(slot(), q=asked(request(created=60.009))),
     "cards": {"p1": keyed("p1", q=asked(request(created=60.009)))}}, "submit alice approve"),
    ("older than the card's word", {"cards": {"p1": keyed("p1", since=11)}}, "go on"),
    ("older than the record's", {"record": record(slot(since=11))}, "go on"),
    ("not older", {"record": record(slot(since=10)), "cards": {"p1": keyed("p1", since=9)}}, "submit alice approve"),
    ("the card is of other rules", {"rules_digest": "new"}, "patch ops PENDING"),
    ("the record is of other rules", {"record": record(slot(), rules="old")}, "save, again 0.5"),
    ("older than the record's word", {"record": record(slot(), since=11)}, "go on"),
    ("where nobody decides, words must not count later", {"rules_digest": "new", "rules": Rules()},
     "patch ops PENDING"),
)  # fmt: skip
def test_what_counts_on_a_card(given: dict[str, Any], expected: str) -> None:
    given = given.copy()
    assert summary(ask(**heard(say(), root=given.pop("root", None)) | given)) == expected


def test_a_card_of_other_rules_counts_again_from_when_it_was_marked() -> None:
    """By Mattermost's clock; what was said before is told to be stale, and counts when it is given again."""
    given = heard(say(at=1_999_000)) | {"rules_digest": "new", "offset": 1.0}
    (patch,) = ask(**given).actions
    assert isinstance(patch, Patch)
    assert patch.since == 2_000_000, "that clock is known to half a second"
    marked = {
        "record": record(slot(since=patch.since), rules="new", since=patch.since),
        "cards": {"p1": keyed("p1", rules="new", since=patch.since)},
    }
    told = ask(**given | marked)
    assert [one.outcome for one in told.outcomes] == ["stale"]
    assert told.record is not None
    assert len(told.record.owe) == 1
    again = heard(say(at=patch.since)) | {"rules_digest": "new"} | marked
    assert summary(ask(**again)) == "submit alice approve"
    # A patch for other reasons leaves it, and takes the later of both.
    later = {**HELD, "request": REVIEWED, "record": record(slot(since=7, rep=(1,))), "cards": {"p1": keyed("p1")}}
    for card, since in ((keyed("p1", since=5), 7), (keyed("p1", since=9), 9)):
        (patch,) = ask(**later | {"cards": {"p1": card}}).actions
        assert isinstance(patch, Patch)
        assert patch.since == since


@table(
    ("an event of it may be late", {"by_id": False}, "read request"),
    ("its cards are closed first", {}, "patch ops EXPIRED, reply ops -3"),
    ("nobody decides on them", {"evidence": heard(say())["evidence"], "rules": REVIEWER},
     "patch ops EXPIRED, reply ops -3"),
    ("the record is taken before that", {"held": False}, "take"),
    ("what may still appear is awaited", {"record": record(slot(None)), "doubts": (Doubt(Place("ops"), 130.0),),
     "posts": {Place("ops"): ()}}, "save, again 30"),
    ("the last look at its places is due", {"record": record(slot(s="gone")), "doubts": (Doubt(CARD, math.inf, 0),)},
     "read thread p1"),
    ("all is closed, and nothing is posted before that is on record",
     {"record": record(slot(shown=("EXPIRED", 0), rep=(-3,)), seen=("EXPIRED", 0))}, "save, again 0.5"),
    ("one that was over has no say in what is news", {"held": False, "record": record(slot(DENIED),
     seen=("DENIED", 2), done=True)}, "take, done"),
)  # fmt: skip
def test_another_request_under_the_same_id(given: dict[str, Any], expected: str) -> None:
    """Servers before 16 let clients choose ids."""
    seen = {"held": True, "request": ANOTHER, "by_id": True, "record": TOLD, "cards": READ}
    assert summary(ask(**seen | given)) == expected


def test_another_request_is_announced_anew_with_a_new_seed() -> None:
    said = slot(shown=("EXPIRED", 0), rep=(-3,))
    ended = record(said, seen=("EXPIRED", 0), n=7, seed="old", done=True, dec=(COUNTED,))
    anew = ask(held=True, request=ANOTHER, by_id=True, record=ended).record
    assert anew is not None
    assert (anew.seed, anew.posts, anew.dec, anew.done, anew.q, anew.n) == ("seed", (), (), False, asked(ANOTHER), 7)
    assert summary(ask(held=True, request=ANOTHER, by_id=True, record=anew)) == "post ops"


def test_a_direct_message_that_nobody_heard_live_is_to_be_said_again() -> None:
    """An import by an administrator makes posts of any author and date, and no event tells of them."""
    direct: dict[str, Any] = {"way": "direct", "post_id": "dm1", "channel_id": "dm", "root_id": ""}
    plan = ask(**heard(say(flaw="unheard", **direct)))
    assert [one.outcome for one in plan.outcomes] == ["unheard"]
    assert plan.record is not None
    assert ["Please say it again." in one.m for one in plan.record.owe] == [True]
    assert summary(ask(**heard(say(**direct)))) == "submit alice approve"


# -- doubts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slots", "more", "doubts"),
    [
        # Another died: whatever it wrote last is on no record.
        ((slot(),), {"owner": "other"}, {Doubt(Place("ops"), 100.0, 2, card=True), Doubt(CARD, 100.0, 2)}),
        ((slot(None),), {"owner": "other"}, {Doubt(Place("ops"), 100.0, 2, card=True)}),
        ((slot(s="gone"), slot(None, c="")), {"owner": "other"}, set()),
        ((), {"owner": "other", "owe": (Owed("i", "dm", "No.", "t"),)}, {Doubt(Place("dm", "t"), 100.0, 2)}),
        ((slot(d=True),), {}, {Doubt(Place("ops"), math.inf, 0, card=True), Doubt(CARD, math.inf, 0)}),
        # It gave up on purpose: what waits is looked for at the end, in case it was made all the same.
        ((slot(None), slot(), slot(None, s="failed")), {}, {Doubt(Place("ops"), math.inf, 0)}),
    ],
)
def test_what_the_last_holder_may_have_left(slots: tuple[Slot, ...], more: dict[str, Any], doubts: set[Doubt]) -> None:
    plan = ask(request=REVIEWED, record=record(*slots, **more), foreign=(1, 0.0), targets=())
    assert plan.take
    assert set(plan.memory.doubts) == doubts
    assert (plan.memory.mine, plan.memory.foreign) == (True, None)


def test_our_own_record_is_taken_again_without_doubts_and_older_doubts_stay() -> None:
    assert ask(request=REVIEWED, record=record(slot(None)), mine=True).memory.doubts == ()
    younger = Doubt(CARD, 130.0)
    plan = ask(request=REVIEWED, record=record(slot(), owner="other"), foreign=(1, 0.0), doubts=(younger,))
    assert [one for one in plan.memory.doubts if one.place == CARD] == [younger]


@pytest.mark.parametrize(
    ("stage", "posts", "left"),
    [
        (2, (), [(1, 135.0)]),
        (1, (), [(0, math.inf)]),
        (0, (), [(0, math.inf)]),  # not due before the end
        (1, AWAY, [(1, 160.0)]),
        (1, FORBIDDEN, [(0, math.inf)]),  # no longer ours to read, so not ours to repair until it is again
    ],
)
def test_a_place_in_doubt_is_looked_at_again(stage: int, posts: Any, left: list[tuple[int, float]]) -> None:
    """At once, and when the longest late write may have landed."""
    doubt = Doubt(CARD, 100.0 if stage else math.inf, stage)
    plan = ask(**HELD, record=TOLD, doubts=(doubt,), posts={CARD: posts})
    assert [(one.stage, one.due) for one in plan.memory.doubts] == left


def test_what_is_in_doubt_is_on_record_for_whoever_comes_next() -> None:
    """While we hold it: it is no reason to write by itself."""
    doubts = (Doubt(Place("ops"), math.inf, 0),)
    marked = ask(**HELD, record=TOLD, doubts=doubts).record
    assert marked is not None
    assert [one.d for one in marked.posts] == [True]
    assert summary(ask(request=PENDING, record=TOLD, doubts=doubts)) == "again 3030"
    cleared = ask(**HELD, record=marked).record
    assert cleared is not None
    assert [one.d for one in cleared.posts] == [False]


def test_at_the_end_the_last_look_ends_the_doubt() -> None:
    ended = record(slot(shown=("REMOVED", 0)), seen=("REMOVED", 0))
    plan = ask(held=True, gone=True, record=ended, doubts=(Doubt(CARD, math.inf, 0),), posts={CARD: ()})
    assert (plan.memory.doubts, summary(plan)) == ((), "save, done, drop")


def test_a_card_that_a_late_write_may_have_changed_is_patched_again() -> None:
    """Such a patch leaves no trace in the channel."""
    doubt = Doubt(CARD, 100.0, 1, card=True)
    plan = ask(**HELD, record=TOLD, doubts=(doubt,), posts={CARD: (post(),)}, cards=READ)
    assert summary(plan) == "patch ops PENDING"


# -- the record ------------------------------------------------------------------------------------------------------


def kept(**given: Any) -> Record:
    plan = ask(**given)
    assert plan.record is not None
    return plan.record


def test_a_record_is_made_with_what_is_known() -> None:
    made = kept(request=REVIEWED, stored=None, lease_s=7)
    assert (made.seed, made.owner, made.at, made.exp, made.lease_s) == ("seed", "me", 2000, 5000, 7)
    assert (made.seen, made.posts) == (("PENDING", 1), (Slot(r="ops/x", c="ops"),))


def test_what_is_acted_on_is_on_record_and_an_end_is_taken_back() -> None:
    changed = kept(
        **HELD | {"request": request("PENDING", 1, expires=6000.0)}, record=record(slot(), done=True), by_id=True
    )
    assert (changed.seen, changed.exp, changed.done) == (("PENDING", 1), 6000, False)


@pytest.mark.parametrize(
    ("seen", "wall", "offset", "state"),
    [
        (("PENDING", 0), 5000.0, 0.0, "EXPIRED"),
        (("PENDING", 1), 4999.0, 0.0, "EXPIRED"),
        (("PENDING", 0), 4000.0, 0.0, "REMOVED"),
        (("PENDING", 0), 4000.0, 1000.0, "EXPIRED"),  # by Mattermost's clock, where ours is behind
        (("APPROVED", 2), 9000.0, 0.0, "APPROVED"),  # the last holder died between reading this and showing it
        (("STATE 9", 0), 9000.0, 0.0, "STATE 9"),
        (("REMOVED", 0), 9000.0, 0.0, "REMOVED"),
    ],
)
def test_how_a_request_that_is_gone_ends(seen: tuple[str, int], wall: float, offset: float, state: str) -> None:
    gone = {"held": True, "gone": True, "cards": READ, "wall": wall, "offset": offset}
    ending = ask(**gone, record=record(slot(), seen=seen))
    assert ending.record is not None
    assert ending.record.seen == (state, seen[1])
    assert [one.shown[0] for one in ending.actions if isinstance(one, Patch)] == [state]
    ended = slot(shown=(state, 0), rep=(-3,))
    assert kept(**gone, record=record(ended, seen=(state, seen[1]))).done


def test_a_request_is_done_only_when_every_card_says_so() -> None:
    ended = slot(shown=("REMOVED", 0))
    assert not kept(held=True, gone=True, record=record(ended, slot(s="failed", p="p2")), cards=READ).done


def test_who_could_not_be_looked_up_is_told_even_if_the_request_is_over() -> None:
    """Mattermost did not say whether the recipient exists: that is no reason to leave them out."""
    owed, reached, nowhere = Target("t", "card", "", owed=True), Target("t", "card", "new"), Target("t", "card", "")
    waiting = kept(**HELD, record=record(), targets=(owed, OPS))
    assert [one.s for one in waiting.posts] == ["waiting", "waiting"]
    over = {"held": True, "request": DENIED, "record": record(waiting.posts[0], slot(DENIED))}
    assert summary(ask(**over, targets=UNASKED)) == "read targets"
    assert summary(ask(**over, targets=(reached, OPS))) == "post new"
    # It leads nowhere, as it turned out, or to a channel that was told already.
    assert [one.s for one in kept(**over, targets=(nowhere, OPS)).posts] == ["failed", "posted"]
    late = {**over, "record": record(Slot(r="t", s="failed"), slot(DENIED))}
    assert summary(ask(**late, targets=(reached, OPS))) == "save, again 3060"
    assert [one.r for one in kept(**over, targets=(Target("t", "card", "ops"), OPS)).posts] == ["ops/x"]


def test_recipients_beyond_the_room_of_a_record_are_refused_and_counted() -> None:
    plan = ask(
        **HELD, record=record(), targets=tuple(Target(f"user{n}@x", "card", f"channel-{n:017}") for n in range(600))
    )
    assert plan.record is not None
    assert 300 <= len(plan.record.posts) < 600
    assert plan.refused == 600 - len(plan.record.posts)
    assert len(encode(plan.record)) <= MAX_BYTES


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "somebody"}, {"q": "another"}, {"seen": ("PENDING", 1)}, {"posts": ()}, {"done": True},
        {"owe": (Owed("i", "dm", "No."),)}, {"posts": (slot(s="waiting"),)}, {"posts": (slot(s="failed"),)},
        {"posts": (slot(shown=("", 0)),)},
    ],
)  # fmt: skip
def test_what_is_not_settled(changes: dict[str, Any]) -> None:
    """Nobody needs to look at what is; that is judged without reading anything."""
    assert settled(PENDING, TOLD, frozenset({"ops/x"}))
    assert not settled(PENDING, msgspec.structs.replace(TOLD, **changes), frozenset({"ops/x"}))
    assert not settled(APPROVED, record(slot(APPROVED), seen=("APPROVED", 2)), frozenset({"ops/x"}))
