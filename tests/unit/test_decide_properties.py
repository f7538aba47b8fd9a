"""Whatever is seen and remembered there is a plan; and whatever fails, plans lead to each message once, and to rest.

The peers below are two dictionaries: a Teleport that holds a request and its record, and a Mattermost that gives no
help against posting twice. A write may fail, be carried out without an answer, or be carried out half a minute late, or
minutes late: that is seen at the next change, and at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import msgspec
from hypothesis import given, note
from hypothesis import strategies as st

from sidecar.config import Policy
from sidecar.config.sections import RemindersConfig
from sidecar.decisions import posts as due
from sidecar.decisions.actions import Action, Answer, Create, Delete, Patch, Place, Reply, Resolve, Submit
from sidecar.decisions.decide import decide
from sidecar.decisions.expressions import Expression, Person, Rules
from sidecar.decisions.proof import asked
from sidecar.decisions.record import ADOPTED, Owed, Record, Slot, Stored, Unreadable, new_seed, post_key
from sidecar.decisions.reminders import Account, Nudge
from sidecar.decisions.seen import (
    UNASKED,
    Context,
    Doubt,
    Evidence,
    Facts,
    Look,
    Memory,
    Now,
    Plan,
    Seen,
    Target,
    Unknown,
)
from sidecar.decisions.settle import Result, State, settle, unsaved
from sidecar.errors import LinkLost, PluginDataTooLarge, PostRejected, ReviewRejected, SidecarError
from sidecar.model import APPROVED, DENIED, PENDING, AccessRequest, Draft, Mark, Post, Review, Version
from sidecar.text import card as text
from sidecar.text.card import TextOptions

OPTIONS = TextOptions(cluster="example.com")
PEOPLE = {
    "a": Person("a", "alice"),
    "i": Person("i", "ivan"),
    "b": Person("b", "bob"),
    "m": Person("m", problem="unmapped"),
}
POLICIES = {"*": Policy(("alice", "ivan"), 2, 1)}

# -- total -----------------------------------------------------------------------------------------------------------

names = st.sampled_from(("", "ops", "dba", "p1", "p2"))
states = st.sampled_from((PENDING, APPROVED, DENIED, "PROMOTED", "EXPIRED", "STATE 9"))
versions = st.tuples(states, st.integers(0, 3))
moments = st.floats(-1e7, 1e10) | st.sampled_from((0.0, 100.0, math.inf, -math.inf))
clocks = st.floats(0, 1e10)
places = st.builds(Place, names, names)
errors: st.SearchStrategy[SidecarError] = st.sampled_from(
    (LinkLost("mattermost", "reset", "x"), PostRejected(403, "x"), PluginDataTooLarge("x"))
)
unknowns = st.just(UNASKED) | st.builds(Unknown, errors)
slots = st.builds(
    Slot,
    r=names,
    k=st.sampled_from(("card", "requester")),
    c=names,
    p=names,
    a=st.integers(ADOPTED, 9),
    s=st.sampled_from(("posted", "waiting", "failed", "gone", "archived")),
    h=names,
    shown=versions | st.just(("", 0)),
    rep=st.lists(st.integers(-3, 5), max_size=3).map(tuple),
    rem=st.lists(st.integers(1, 5), max_size=2).map(tuple),
    since=st.integers(0, 9),
)
owed = st.builds(Owed, i=names, c=names, m=names, t=names)
entries = st.tuples(
    st.sampled_from("abim"), st.sampled_from(("approve", "deny", "*")), names, st.integers(0, 9), st.just("counted")
)
records = st.builds(
    Record,
    seed=names,
    owner=st.sampled_from(("", "me", "other")),
    at=st.integers(-(10**15), 10**15),
    exp=st.integers(-(10**15), 10**15),
    seen=versions,
    posts=st.lists(slots, max_size=4).map(tuple),
    n=st.integers(0, 3),
    lease_s=st.integers(1, 600),
    dec=st.lists(entries, max_size=3).map(tuple),
    owe=st.lists(owed, max_size=2).map(tuple),
    q=st.sampled_from(("", "another")),
    done=st.booleans(),
)
reviews = st.builds(Review, st.sampled_from(("alice", "ivan", "")), states, st.text(max_size=3))
requests = st.builds(
    AccessRequest,
    id=st.just("id-1"),
    user=st.sampled_from(("bob", "alice", "")),
    state=states,
    roles=st.lists(names, max_size=2).map(tuple),
    created=st.none() | clocks,
    expires=st.none() | clocks,
    reviews=st.lists(reviews, max_size=3).map(tuple),
    dry_run=st.booleans(),
    kind=st.sampled_from(("", "LONG_TERM", "KIND 7")),
)
keys = st.builds(
    post_key, names, st.sampled_from(("card", "review", "end", "reminder", "answer")), names, st.just(0), st.just(0)
)
marks = st.builds(
    Mark,
    id=st.sampled_from(("id-1", "id-2")),
    k=keys,
    q=st.sampled_from(("", "another")),
    c=st.sampled_from(("", "example.com", "elsewhere")),
    rules=names,
    since=st.integers(0, 9),
)
posts = st.builds(
    lambda mark, **fields: Post(**fields, mark=mark, key=mark.k, request_id=mark.id),
    mark=marks | st.just(Mark()),
    id=names,
    channel_id=names,
    user_id=st.sampled_from(("bot", "eve")),
    create_at=st.integers(0, 9),
    message=names,
    attachment=st.none() | st.just({"fields": [{"title": "State", "value": PENDING}]}),
)
expressions = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from("abimx"),
        "verb": st.sampled_from(("approve", "deny", "?")),
        "way": st.sampled_from(("reaction", "reply", "direct")),
        "post_id": names,
        "at": st.integers(0, 9),
        "channel_id": names,
        "root_id": names,
        "flaw": st.sampled_from(("", "", "edited", "forged")),
    }
).map(lambda fields: Expression(**fields))  # type: ignore[arg-type]
evidence = st.builds(
    Evidence,
    at=clocks,
    standing=st.lists(expressions, max_size=4).map(tuple),
    people=st.just(PEOPLE),
    unread=st.sampled_from(((), ("a thread",))),
)
doubts = st.builds(Doubt, places, moments, st.integers(0, 2), st.booleans())
seens = st.builds(
    Seen,
    request=requests | unknowns | st.none(),
    by_id=st.booleans(),
    stored=st.builds(Stored, records, names) | st.builds(Unreadable, names) | unknowns | st.none(),
    held=st.booleans(),
    held_since=clocks,
    targets=st.lists(st.builds(Target, names, st.just("card"), names, st.booleans()), max_size=3).map(tuple) | unknowns,
    posts=st.dictionaries(places, st.lists(posts, max_size=3).map(tuple) | unknowns, max_size=3),
    read_at=st.dictionaries(places, clocks, max_size=3),
    cards=st.dictionaries(names, posts | unknowns | st.none(), max_size=3),
    words=st.dictionaries(names, st.lists(st.tuples(expressions, st.just(PEOPLE["a"]))).map(tuple) | unknowns),
    evidence=evidence | unknowns,
    nudge=unknowns | st.builds(Nudge, st.booleans(), st.just({"alice": Account("a", "alice")})),
    readings=st.integers(0, 3),
    error=st.none() | errors,
).map(lambda seen: seen if isinstance(seen.stored, Stored) else seen.but(held=False))
facts = st.builds(Facts, st.booleans(), moments, moments, st.builds(Version, st.integers(-1, 3), st.integers(0, 3)))
memories = st.builds(
    Memory,
    known=st.booleans(),
    mine=st.booleans(),
    silent=st.booleans(),
    foreign=st.none() | st.tuples(st.integers(0, 3), clocks),
    doubts=st.lists(doubts, max_size=3, unique_by=lambda one: one.place).map(tuple),
    mentions=st.booleans(),
    touched=st.frozensets(names),
    listen=st.booleans(),
    failures=st.integers(0, 10**9),
    retries=st.integers(0, 10**9),
    retry_at=moments,
)
contexts = st.builds(
    Context,
    request_id=st.just("id-1"),
    owner=st.just("me"),
    bot_id=st.sampled_from(("bot", "bot", "bot", "")),
    seed=st.just("seed"),
    rules=st.builds(
        Rules, mode=st.sampled_from(("none", "reviewer", "plugin", "state")), policies=st.sampled_from(({}, POLICIES))
    ),
    rules_digest=names,
    options=st.just(OPTIONS),
    reminders=st.sampled_from((RemindersConfig(), RemindersConfig(60.0, 100.0, 3))),
    announce_resolved=st.booleans(),
    announce_delay=st.sampled_from((0.0, 30.0)),
)
nows = st.builds(Now, clocks, clocks, clocks, st.floats(-1e6, 1e6))


@given(seens, facts, memories, contexts, nows)
def test_there_is_always_a_plan(seen: Seen, known: Facts, memory: Memory, context: Context, now: Now) -> None:
    plan = decide(seen, known, memory, context, now)
    assert not math.isnan(plan.again_at)
    assert not any(math.isnan(doubt.due) for doubt in plan.memory.doubts)
    assert not any(action.identity in seen.failed for action in plan.actions)
    if not seen.held:
        assert not plan.actions, "nothing is written without the record"
    if plan.take:
        assert plan.record is not None
    if plan.over and not plan.drop:
        assert plan.again_at > now.mono, "a look that ends is not begun again at once"
        assert plan.save or not plan.record or not seen.held


results = st.builds(
    Result,
    post=st.none() | posts,
    after=st.none() | requests,
    error=st.none() | errors | st.builds(ReviewRejected, names, names),
    ambiguous=st.booleans(),
    attempt=st.integers(0, 20),
    gone=st.booleans(),
    skipped=st.booleans(),
    rules=names,
)


@given(seens, facts, memories, contexts, nows, st.data())
def test_every_result_of_every_action_is_taken_in(
    seen: Seen, known: Facts, memory: Memory, context: Context, now: Now, data: st.DataObject
) -> None:
    plan = decide(seen.but(held=True), known, memory, context, now)
    for action in plan.actions:
        assert plan.record is not None
        state = State(seen, plan.record, plan.memory)
        after = settle(state, action, result := data.draw(results), now.mono, 35.0)
        assert len(after.record.posts) == len(plan.record.posts)
        if (
            result.ambiguous
            and not result.skipped
            and result.error is not None
            and not isinstance(result.error, PostRejected | ReviewRejected)
        ):
            assert isinstance(action, Submit | Resolve) or any(one.due == now.mono + 35 for one in after.memory.doubts)


# -- comes to rest ---------------------------------------------------------------------------------------------------

TARGETS = (
    Target("ops/x", "card", "ops"),
    Target("dba/y", "card", "dba"),
    Target("~y", "card", "dba"),
    Target("bob", "requester", "bob"),
)
KINDS: dict[str, Any] = {"ops": "card", "dba": "card", "bob": "requester"}
FAULTS = ("ok", "ok", "ok", "slow", "refused", "away", "unanswered", "lost", "late", "very late")
# After the last look that a clock asks for.
VERY_LATE = 300.0


class Peers:
    """What Teleport and Mattermost hold; `fault` says how the next write ends, and whether a read fails."""

    def __init__(self, request: AccessRequest, said: tuple[Expression, ...]) -> None:
        self.request: AccessRequest | None = request
        self.record: Record | None = None
        self.said = said
        self.posts: dict[str, Post] = {}
        self.drafts: dict[str, Draft] = {}
        self.late: list[tuple[float, Any]] = []
        self.very_late = self.reused = False
        self.time = 1000.0
        self.data: st.DataObject | None = None

    def fault(self) -> str:
        # Nobody waits for what an ended request may still get minutes later.
        faults = FAULTS[:-1] if self.reused else FAULTS
        return self.data.draw(st.sampled_from(faults)) if self.data is not None else "ok"

    def read_fails(self) -> bool:
        return self.data is not None and self.data.draw(st.integers(0, 9)) == 0

    def pass_time(self, until: float) -> None:
        self.time = max(until, self.time)
        landed = [write for when, write in self.late if when <= self.time]
        self.late = [one for one in self.late if one[0] > self.time]
        for write in landed:
            write()

    def add(self, place: Place, draft: Draft, mark: Mark) -> Post:
        number = len(self.posts)
        post = Post(
            f"post{number}", place.channel_id, "bot", create_at=number, root_id=place.root_id, key=mark.k,
            request_id=mark.id, mark=mark, message=draft.message,
            attachment=draft.attachment,
        )  # fmt: skip
        self.posts[post.id], self.drafts[post.id] = post, draft
        return post

    def remove(self, post_id: str) -> None:
        """A root post takes its thread with it."""
        for post in self.standing():
            if post_id in (post.id, post.root_id):
                self.posts[post.id] = msgspec.structs.replace(post, delete_at=1)

    def show(self, post_id: str, draft: Draft, mark: Mark) -> None:
        post = self.posts[post_id]
        if not post.delete_at:
            self.drafts[post_id] = draft
            self.posts[post_id] = msgspec.structs.replace(post, key=mark.k, request_id=mark.id, mark=mark)

    def standing(self) -> list[Post]:
        return [post for post in self.posts.values() if not post.delete_at]

    def read(self, place: Place) -> tuple[Post, ...]:
        found = [post for post in self.standing() if post.channel_id == place.channel_id]
        if place.root_id:
            found = [post for post in found if place.root_id in (post.id, post.root_id)]
        return tuple(found)

    def hear(self, record: Record) -> Evidence:
        """What was said, where it was by a reaction on the card in the channel `ops`."""
        cards = {post.id: post for post in self.standing() if not post.root_id}
        ops = next((slot.p for slot in record.posts if slot.c == "ops" and slot.p in cards), "")
        said = (
            one if one.way == "direct" else msgspec.structs.replace(one, post_id=ops, root_id=ops, channel_id="ops")
            for one in self.said
            if ops or one.way == "direct"
        )
        return Evidence(at=self.time, standing=tuple(said), people=PEOPLE, cards=cards)

    def review(self, author: str, state: str) -> AccessRequest:
        assert self.request is not None
        assert author not in [review.author for review in self.request.reviews], "one review of each person"
        known = (*self.request.reviews, Review(author, state))
        end = state if state == DENIED or len(known) > 1 else PENDING
        self.request = msgspec.structs.replace(self.request, reviews=known, state=end)
        return self.request


class Process:
    """One life of the sidecar: looks at the request, and is killed at any step of one where the fault says so."""

    def __init__(self, peers: Peers, name: str, rules: Rules, digest: str = "rules") -> None:
        self.peers = peers
        self.memory = Memory()
        self.context = Context(
            request_id="id-1", owner=name, bot_id="bot", options=OPTIONS, rules=rules, rules_digest=digest
        )
        self.version = Version(-1, 0)
        self.gone = self.slow = False
        self.record: Record

    def look(self, *, by_event: bool, steps: int = 1000) -> Plan | None:  # noqa: C901 - a controller in short
        """One look; None where it was killed after so many steps."""
        peers = self.peers
        seen = Seen(request=peers.request if by_event and peers.request is not None else UNASKED)
        self.gone = self.gone or peers.request is None
        self.memory = self.memory.but(listen=self.memory.listen or bool(peers.said))
        acted: set[Place] = set()
        for taken in range(1000):
            assert taken < 60, "a look has an end"
            if taken >= steps:
                return None
            if seen.held:
                assert peers.record is not None
                seen = seen.but(stored=Stored(self.record, "x"))
            self.version = max(self.version, getattr(seen.request, "version", self.version))
            context = msgspec.structs.replace(self.context, seed=new_seed())
            known = Facts(self.gone, math.inf, 0.0, self.version)
            plan = decide(seen, known, self.memory, context, Now(peers.time, peers.time, peers.time))
            note(f"{peers.time:g} {self.context.owner} {[one.identity for one in plan.actions]} {plan.memory.doubts}")
            self.memory = plan.memory
            if seen.held and plan.record is not None:
                self.record = plan.record
            if plan.over:
                return self._end(plan, seen, acted)
            if plan.look:
                seen = self._read(plan.look, seen)
            if plan.take:
                assert plan.record is not None
                if peers.record is not None and not isinstance(seen.stored, Stored):
                    self.memory = self.memory.but(known=True, mine=False)
                    return Plan(memory=self.memory, again_at=peers.time)
                self._save(plan.record, self.context.owner)
                seen = seen.but(held=True, held_since=peers.time)
            for action in plan.actions if seen.held else ():
                acted |= places_of(action, self.record)
                seen = self._act(action, seen)
        raise AssertionError("unreachable")

    def _end(self, plan: Plan, seen: Seen, acted: set[Place]) -> Plan:
        if plan.save:
            assert plan.record is not None
            if self.peers.fault() == "away":
                self.memory = unsaved(self.memory, frozenset(acted), self.peers.time, overtaken=False)
                return Plan(memory=self.memory, again_at=self.peers.time)
            self._save(plan.record, self.context.owner if plan.memory.timed else "")
        if isinstance(seen.stored, Stored):
            self.memory = self.memory.but(known=True)
        return plan

    def _save(self, record: Record, owner: str) -> None:
        number = self.peers.record.n + 1 if self.peers.record is not None else 1
        self.record = self.peers.record = msgspec.structs.replace(record, owner=owner, n=number)
        self.memory = self.memory.but(known=True)

    def _read(self, look: Look, seen: Seen) -> Seen:
        peers = self.peers
        lost = LinkLost("mattermost", "server_error", "x")
        changes: dict[str, object] = {}
        beside: dict[str, Post] = {}
        if look.request:
            changes |= {"request": peers.request, "by_id": True}
        if look.record:
            changes["stored"] = Stored(peers.record, "x") if peers.record is not None else None
        if look.targets:
            changes["targets"] = TARGETS
        evidence = Evidence(at=0.0)
        if look.evidence:
            assert isinstance(seen.stored, Stored)
            evidence = peers.hear(seen.stored.record)
            changes |= {"evidence": evidence, "readings": seen.readings + 1}
            beside = evidence.cards
        failed = {place for place in look.places if peers.read_fails()}
        read = {place: Unknown(lost) if place in failed else peers.read(place) for place in look.places}
        cards = {post.id: post for post in peers.standing()}
        changes["posts"] = {**seen.posts, **read}
        changes["read_at"] = {**seen.read_at, **dict.fromkeys(read, peers.time)}
        changes["cards"] = {**seen.cards, **beside, **{card: cards.get(card) for card in look.cards}}
        changes["words"] = {**seen.words, **{place.root_id: () for place in look.words}}
        return seen.but(**changes, error=seen.error or (lost if failed else None))

    def _act(self, action: Action, seen: Seen) -> Seen:
        peers, fault = self.peers, self.peers.fault()
        result = Result()
        if (fault == "slow" or self.slow) and not isinstance(action, Submit | Resolve):
            # The look goes on for longer than a late write takes; a submission is never put off.
            peers.pass_time(peers.time + 40)
        if fault == "refused" and not isinstance(action, Submit | Resolve | Answer):
            result = Result(error=PostRejected(403, "x"))
        elif fault in ("refused", "away"):
            result = Result(error=LinkLost("mattermost", "reset", "x"))
        elif fault in ("lost", "late", "very late", "unanswered"):
            if fault == "unanswered":
                self._carry_out(action)
            result = Result(error=LinkLost("mattermost", "timeout", "x", ambiguous=True), ambiguous=True)
            if fault in ("late", "very late") and not isinstance(action, Submit | Resolve):
                peers.very_late |= fault == "very late"
                wait = VERY_LATE if fault == "very late" else 30
                peers.late.append((peers.time + wait, self._writing(action)))
        else:
            result = self._carry_out(action)
        before = State(seen, self.record, self.memory)
        seen, self.record, self.memory, _ = settle(before, action, result, peers.time, 35.0)
        return seen

    def _carry_out(self, action: Action) -> Result:
        if isinstance(action, Submit):
            one = action.verdict
            return Result(
                after=self.peers.review(
                    one.person.teleport_user, APPROVED if one.expression.verb == "approve" else DENIED
                )
            )
        if isinstance(action, Resolve):
            assert self.peers.request is not None
            self.peers.request = msgspec.structs.replace(self.peers.request, state=action.state)
            return Result(after=self.peers.request)
        made = self._writing(action)()
        if isinstance(action, Patch):
            return Result(rules=self.context.rules_digest, at=int(self.peers.time * 1000))
        return Result(post=made)

    def _writing(self, action: Action) -> Any:
        """The write as a function, for what it says must not change until it lands."""
        peers, record = self.peers, self.record
        match action:
            case Delete(post_id=post_id):
                return lambda: peers.remove(post_id)
            case Answer(owed=one):
                key = post_key(record.seed, "answer", one.c, one.i, 0)
                mark = self._mark(key, record.seen, 0)
                return lambda: peers.add(Place(one.c, one.t), one.draft, mark)
            case Create(position=position, draft=draft, shown=shown):
                slot = record.posts[position]
                mark = self._mark(post_key(record.seed, slot.k, slot.c, 0, slot.a), shown, 0)
                return lambda: peers.add(Place(slot.c), draft, mark)
            case Reply(position=position, number=number, draft=draft):
                slot = record.posts[position]
                key = post_key(record.seed, "review" if number > 0 else "end", slot.c, abs(number), slot.a)
                mark = self._mark(key, record.seen, 0)
                return lambda: None if peers.posts[slot.p].delete_at else peers.add(Place(slot.c, slot.p), draft, mark)
            case Patch(position=position, draft=draft, shown=shown, since=since):
                slot = record.posts[position]
                mark = self._mark(post_key(record.seed, slot.k, slot.c, 0, slot.a), shown, since)
                return lambda: peers.show(slot.p, draft, mark)
        raise AssertionError("no write")

    def _mark(self, key: str, shown: tuple[str, int], since: int) -> Mark:
        context = self.context
        return Mark(
            v=1, n=shown[1], id=context.request_id, k=key, state=shown[0], q=self.record.q, c=OPTIONS.cluster,
            who=self.record.who, rules=context.rules_digest, since=since,
        )  # fmt: skip


def places_of(action: Action, record: Record) -> set[Place]:
    match action:
        case Answer(owed=one):
            return {Place(one.c, one.t)}
        case Create() | Patch() | Reply():
            slot = record.posts[action.position]
            return {Place(slot.c, "" if isinstance(action, Create) else slot.p)}
    return set()


def rest(process: Process) -> Record:
    """Look again whenever a look says so, until only the request's end is awaited or it is over."""
    for _ in range(60):
        plan = process.look(by_event=False)
        assert plan is not None
        if plan.drop or (plan.again_at > process.peers.time + 10_000 and not process.peers.late):
            assert process.peers.record is not None
            return process.peers.record
        process.peers.pass_time(min(plan.again_at, process.peers.time + 4000) + 0.01)
    raise AssertionError("never at rest")


@st.composite
def opinions(draw: st.DrawFn) -> tuple[Expression, ...]:
    users = draw(st.lists(st.sampled_from("abim"), unique=True, max_size=4))
    return tuple(
        Expression(
            user_id=user, verb=draw(st.sampled_from(("approve", "deny"))),
            way=draw(st.sampled_from(("direct", "reaction"))), post_id=f"dm-{user}", at=1_000_000,
            channel_id=f"dm-{user}",
        )
        for user in users
    )  # fmt: skip


@given(st.data(), opinions(), st.sampled_from(("none", "reviewer", "plugin")))
def test_whatever_fails_each_message_stands_once_at_last(  # noqa: C901 - a story in a few deeds
    data: st.DataObject, said: tuple[Expression, ...], mode: Any
) -> None:
    request = AccessRequest(id="id-1", user="bob", state=PENDING, roles=("dba",), expires=1e6, created=900.0)
    peers = Peers(request, ())
    rules = Rules(mode=mode, policies=POLICIES)
    process = Process(peers, "me-0", rules)
    lives = 1
    for deed in data.draw(
        st.lists(st.sampled_from(("look", "look", "kill", "review", "deny", "speak", "wait", "another")), max_size=12)
    ):
        peers.data = None
        if deed == "review" and peers.request is not None and len(peers.request.reviews) < 3:
            known = (*peers.request.reviews, Review(f"reviewer{len(peers.request.reviews)}", APPROVED))
            peers.request = msgspec.structs.replace(peers.request, reviews=known)
        elif deed == "deny" and peers.request is not None:
            by = (Review("somebody", DENIED),) if data.draw(st.booleans(), label="by a review") else ()
            reviews = peers.request.reviews if peers.request.state == DENIED else (*peers.request.reviews, *by)
            peers.request = msgspec.structs.replace(peers.request, state=DENIED, reviews=reviews)
        elif deed == "another" and peers.request is not None and not peers.very_late:
            peers.reused = True
            peers.request = msgspec.structs.replace(request, created=(peers.request.created or 0.0) + 1)
            process.version = Version(-1, 0)
        elif deed == "speak":
            peers.said = said
        elif deed == "wait":
            peers.pass_time(peers.time + data.draw(st.sampled_from((1.0, 36.0, 100.0))))
        peers.data = data
        killed = data.draw(st.integers(0, 8)) if deed == "kill" else 1000
        process.look(by_event=data.draw(st.booleans()), steps=killed)
        if deed == "kill":
            process = Process(peers, f"me-{lives}", rules, data.draw(st.sampled_from(("rules", "other rules"))))
            lives += 1
    peers.data = None
    record = rest(process)
    if peers.very_late or data.draw(st.booleans(), label="gone at last"):
        peers.request = None
        record = rest(process)
        assert record.done
    assert record.owner == ""
    assert record.owe == ()
    _check(peers, record, killed=lives > 1)


def _check(peers: Peers, record: Record, *, killed: bool) -> None:
    """Every channel that was reached has its one card, which tells the truth, and every reply once.

    What only a memory knew is lost with it: that an answer was tried before, that a late patch may have changed a
    card, and what was tried for another request that had this id before.
    """
    whose = [post for post in peers.standing() if not killed or (post.channel_id in KINDS and post.mark.q == record.q)]
    keys = Counter(post.key for post in whose)
    assert set(keys.values()) <= {1}, "each identity once"
    ends = Counter(post.root_id for post in whose if post.root_id and "is now DENIED" in post.message)
    assert set(ends.values()) <= {1}, "the end once"
    reached = {slot.c: slot.p for slot in record.posts if slot.p}
    over = record.seen[0] != PENDING or (peers.request is not None and peers.request.state != PENDING)
    assert over or reached.keys() == KINDS.keys()
    roots = [post for post in peers.standing() if not post.root_id and post.channel_id in KINDS]
    cards = {post.channel_id: post.id for post in roots if post.mark.q == record.q}
    assert cards == reached
    assert peers.request is None or record.q == asked(peers.request)
    for post in roots:
        ended = PENDING not in str(peers.drafts[post.id].attachment)
        assert post.mark.q == record.q or ended or killed, "a card of another request stays open"
    for channel, card in cards.items():
        if peers.request is not None:
            assert killed or peers.drafts[card] == text.render_card(peers.request, options=OPTIONS, kind=KINDS[channel])
            slot = next(slot for slot in record.posts if slot.c == channel)
            assert set(due.numbers(peers.request)) <= set(slot.rep)
        else:
            assert peers.drafts[card].attachment is not None
            assert "PENDING" not in str(peers.drafts[card].attachment)


@given(steps=st.integers(1, 9), slow=st.booleans())
def test_what_a_dead_process_told_before_it_saved_is_not_told_again(*, steps: int, slow: bool) -> None:
    """Not for a moment: a younger one that is deleted afterwards was in somebody's notifications."""
    request = AccessRequest(id="id-1", user="bob", state=PENDING, roles=("dba",), expires=1e6, created=900.0)
    peers = Peers(msgspec.structs.replace(request, reviews=(Review("alice", APPROVED),)), ())
    rules = Rules(mode="none")
    Process(peers, "me-0", rules).look(by_event=True, steps=steps)
    process = Process(peers, "me-1", rules)
    process.slow = slow
    peers.review("ivan", DENIED)
    record = rest(process)
    _check(peers, record, killed=True)
    assert set(Counter(post.key for post in peers.posts.values()).values()) == {1}
