"""Whatever others write, replay and rename: every review at Teleport is a person's decision about this request.

The peers are those of `test_decide_properties`, with people in them: what somebody says, when, and on which post is
noted beside what the sidecar can see of it, and each submission is held against that.
"""

from __future__ import annotations

import math
from collections.abc import Coroutine
from typing import Any, NamedTuple

import hypothesis
import msgspec
from hypothesis import given, note
from hypothesis import strategies as st

from sidecar.config import Policy, Reviewer
from sidecar.decisions import expressions
from sidecar.decisions.actions import Action, Place, Resolve, Submit
from sidecar.decisions.expressions import STATES, Expression, Rules
from sidecar.decisions.proof import asked
from sidecar.decisions.record import ADOPTED, Record
from sidecar.decisions.seen import Evidence, Look, Seen
from sidecar.decisions.settle import Result
from sidecar.model import (
    APPROVED,
    DENIED,
    PENDING,
    AccessRequest,
    Mark,
    Post,
    Reaction,
    Review,
    Threshold,
    User,
    Version,
)
from sidecar.reconcile.people import People
from sidecar.text.command import Decision, parse_direct
from tests.unit.test_decide_properties import Peers, Process

# Twenty thousand with `make fuzz`.
EXAMPLES = max(200, hypothesis.settings.default.max_examples)  # type: ignore[union-attr]

EMOJI = {"approve": "white_check_mark", "deny": "x"}
# Account -> its name; the humans are the accounts. Bob and Eve ask, and are reviewers besides, as somebody else.
NAMES = {"a": "alice", "i": "ivan", "b": "bob", "e": "eve", "m": "mallory"}
ASKERS = {"bob": "b", "eve": "e"}
REQUESTERS = {"bob": "@bob", "eve": "user:e"}
LINKS: tuple[dict[str, str], ...] = (
    {"a": "alice", "i": "ivan", "b": "bob-reviewer", "e": "eve-reviewer"},
    {"a": "alice-2", "i": "ivan", "b": "bob-reviewer", "e": "eve-reviewer"},
    {"a": "alice", "i": "ivan", "b": "bob-reviewer", "e": "eve-reviewer", "m": "mallory"},
    {"a": "alice"},
)
EVERYBODY = tuple(sorted({user for links in LINKS for user in links.values()}))


class Config(NamedTuple):
    """What the operator wrote, and since when it holds."""

    rules: Rules
    links: dict[str, str]
    since: float = 0.0

    @property
    def digest(self) -> str:
        return repr((self.rules.mode, self.rules.ways, sorted(self.links.items())))

    def counts(self, account: str, way: str, user: str) -> bool:
        return self.rules.mode != "none" and way in self.rules.ways and self.links.get(account) == user


class Said(msgspec.Struct):
    """What somebody really said: `about` is the number of the request, 0 where it is about none."""

    account: str
    verb: str
    way: str
    about: int
    at: float
    until: float = math.inf


class Stage(Peers):
    """Teleport and Mattermost, the people, and the truth about them."""

    def __init__(self, config: Config) -> None:
        super().__init__(_request(1, "bob"), ())
        self.number = 1
        self.configs = [config]
        self.names = dict(NAMES)
        self.said: list[Said] = []  # type: ignore[assignment]
        self.standing_reactions: dict[tuple[str, str], tuple[str, float, Said]] = {}
        self.directs: dict[str, tuple[Post, Said]] = {}
        self.replied: dict[str, Said] = {}
        self.made_for: dict[str, int] = {}
        self.records: list[Record] = []
        self.submitted: list[tuple[int, str, str]] = []
        self.tampered = False
        self.faulty = False
        self.memory_of_direct: list[Expression] = []

    def fault(self) -> str:
        return super().fault() if self.faulty else "ok"

    def read_fails(self) -> bool:
        return self.faulty and super().read_fails()

    # -- Mattermost, as the sidecar reads it

    @property
    def ms(self) -> int:
        return int(self.time * 1000)

    def add(self, place: Place, draft: Any, mark: Mark) -> Post:
        post = super().add(place, draft, mark)
        post = self.posts[post.id] = msgspec.structs.replace(post, create_at=self.ms)
        if not place.root_id:
            self.made_for[post.id] = self.number
        return post

    async def user(self, user_id: str) -> User | None:
        return User(user_id, self.names[user_id], f"{user_id}@example.com") if user_id in self.names else None

    async def user_by_username(self, username: str) -> User | None:
        found = next((one for one, name in self.names.items() if name == username), "")
        return await self.user(found)

    async def user_by_email(self, email: str) -> User | None:
        return await self.user(email.partition("@")[0])

    async def config(self) -> dict[str, str]:
        return {}

    @property
    def people(self) -> People:
        links = self.configs[-1].links
        return People(self, {NAMES[one]: Reviewer(user=user, id=one) for one, user in links.items()}, "map", REQUESTERS)

    def who(self) -> str | None:
        assert self.request is not None
        found: str | None = now(self.people.find_requester(self.request.user))
        return found

    def hear(self, record: Record) -> Evidence:
        rules = self.configs[-1].rules
        at = self.time
        cards = {post.id: post for post in self.standing() if not post.root_id}
        standing: list[Expression] = []
        for slot in record.posts:
            if slot.k == "card" and slot.s == "posted" and slot.p in cards:
                reactions = [
                    Reaction(account, post, EMOJI[verb], update_at=int(when * 1000))
                    for (post, account), (verb, when, _) in self.standing_reactions.items()
                ]
                standing += expressions.read_reactions(slot, reactions, rules, "bot")
                thread = [post for post in self.standing() if slot.p in (post.id, post.root_id)]
                standing += expressions.read_thread(slot, thread, rules, "bot")
        standing += [one for one in self.memory_of_direct if self._stands(one)]
        people = {one.user_id: now(self.people.judge(one.user_id)) for one in standing}
        unread = ("a thread",) if self.read_fails() else ()
        return Evidence(
            at=at, standing=tuple(standing), people=people, who=self.who(), unread=unread,
            cards={one: post for one, post in cards.items() if any(one == slot.p for slot in record.posts)},
        )  # fmt: skip

    def _stands(self, one: Expression) -> bool:
        return one.post_id in self.directs and self.directs[one.post_id][1].until == math.inf

    # -- what is submitted is held against the truth

    def config_at(self, when: float) -> Config:
        return [one for one in self.configs if one.since <= when][-1]

    def judge(self, user: str, verb: str) -> None:
        """There is a person whose words these are."""
        assert self.request is not None
        asker = ASKERS[self.request.user]
        found = [
            one
            for one in self.said
            if one.verb == verb
            and one.about == self.number
            and one.account != asker
            and one.until >= self.time - 2
            and self.config_at(one.at).counts(one.account, one.way, user)
            and self.configs[-1].counts(one.account, one.way, user)
        ]
        assert found, f"nobody said {verb} as {user}: {self.said}"
        for account in {one.account for one in found}:
            before = [name for number, name, by in self.submitted if (number, by) == (self.number, account)]
            assert self.tampered or not set(before) - {user}, f"one account, two heads: {before} and {user}"
        self.submitted += [(self.number, user, one.account) for one in found]

    def review(self, author: str, state: str) -> AccessRequest:
        self.judge(author, next(verb for verb, proposed in STATES.items() if proposed == state))
        assert self.request is not None
        known = (*self.request.reviews, Review(author, state))
        approvals = sum(one.proposed_state == APPROVED for one in known)
        end = DENIED if state == DENIED else APPROVED if approvals > 2 else PENDING
        self.request = msgspec.structs.replace(self.request, reviews=known, state=end)
        return self.request

    def resolve(self, action: Resolve) -> AccessRequest:
        verb = next(verb for verb, state in STATES.items() if state == action.state)
        for voter in action.voters:
            self.judge(voter, verb)
        assert len(action.voters) >= (2 if verb == "approve" else 1)
        assert self.request is not None
        self.request = msgspec.structs.replace(self.request, state=action.state)
        return self.request


class Life(Process):
    """One life of the sidecar on such a stage."""

    def __init__(self, stage: Stage, name: str) -> None:
        config = stage.configs[-1]
        super().__init__(stage, name, config.rules, config.digest)
        self.stage = stage
        stage.memory_of_direct = []

    def live(self, *, by_event: bool, steps: int) -> None:
        stage = self.stage
        self.context = msgspec.structs.replace(
            self.context, requester=stage.request.user if stage.request is not None else ""
        )
        self.memory = self.memory.but(listen=True, direct=tuple(stage.memory_of_direct))
        self.look(by_event=by_event, steps=steps)
        stage.memory_of_direct = list(self.memory.direct)

    def _save(self, record: Record, owner: str) -> None:
        super()._save(record, owner)
        assert self.stage.record is not None
        self.stage.records.append(self.stage.record)

    def _read(self, look: Look, seen: Seen) -> Seen:
        seen = super()._read(look, seen)
        if look.who:
            seen = seen.but(who=self.stage.who())
        if self.stage.data is not None:
            self.stage.time += self.stage.data.draw(st.sampled_from((0.0, 0.0, 0.0, 0.5, 1.5, 3.0)))
            if self.stage.data.draw(st.integers(0, 5)) == 0:
                take_back(self.stage, self.stage.data)
        return seen

    def _carry_out(self, action: Action) -> Result:
        if isinstance(action, Submit):
            assert self.stage.time - action.read_at < 2
        if isinstance(action, Resolve):
            assert self.stage.time - action.read_at < 2
            return Result(after=self.stage.resolve(action))
        return super()._carry_out(action)


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def _request(number: int, user: str) -> AccessRequest:
    return AccessRequest(
        id="id-1", user=user, state=PENDING, roles=("dba",), expires=1e6, created=800.0 + 200 * number,
        thresholds=(Threshold(1, 1, filter="x"),),
    )  # fmt: skip


accounts = st.sampled_from(("a", "a", "i", "i", *NAMES))
verbs = st.sampled_from(("approve", "approve", "approve", "approve", "deny"))


# -- deeds -----------------------------------------------------------------------------------------------------------


def say(stage: Stage, account: str, verb: str, way: str, about: int) -> Said:
    said = Said(account, verb, way, about, stage.time)
    stage.said.append(said)
    return said


def react(stage: Stage, data: st.DataObject) -> None:
    roots = [post.id for post in stage.standing() if not post.root_id and post.channel_id != "bob"]
    if roots:
        account, verb = data.draw(accounts), data.draw(verbs)
        post = data.draw(st.sampled_from(roots))
        former = stage.standing_reactions.get((post, account))
        if former is not None:
            former[2].until = stage.time
        said = say(stage, account, verb, "reaction", stage.made_for.get(post, 0))
        stage.standing_reactions[post, account] = (verb, stage.time, said)


def take_back(stage: Stage, data: st.DataObject) -> None:
    if stage.standing_reactions:
        key = data.draw(st.sampled_from(sorted(stage.standing_reactions)))
        stage.standing_reactions.pop(key)[2].until = stage.time


def reply(stage: Stage, data: st.DataObject) -> None:
    """Somebody writes below a card; or their words are not theirs: by a webhook, by another's edit, dated at will."""
    roots = [post for post in stage.standing() if not post.root_id]
    if not roots:
        return
    root, account, verb = data.draw(st.sampled_from(roots)), data.draw(accounts), data.draw(verbs)
    how = data.draw(st.sampled_from(("typed", "typed", "webhook", "edited", "older")))
    post = Post(f"post{len(stage.posts)}", root.channel_id, account, create_at=stage.ms, root_id=root.id, message=verb)
    if how == "webhook":
        post = msgspec.structs.replace(post, props=frozenset({"from_webhook"}))
    elif how == "edited":
        post = msgspec.structs.replace(post, edit_at=stage.ms)
    elif how == "older":
        post = msgspec.structs.replace(post, create_at=1)
    else:
        stage.replied[post.id] = say(stage, account, verb, "reply", stage.made_for.get(root.id, 0))
    stage.posts[post.id] = post


def unsay(stage: Stage, data: st.DataObject) -> None:
    """A reply or a direct message is deleted, or somebody edits it."""
    if stage.replied:
        post_id = data.draw(st.sampled_from(sorted(stage.replied)))
        stage.replied.pop(post_id).until = stage.time
        change = {"delete_at": stage.ms} if data.draw(st.booleans()) else {"edit_at": stage.ms, "message": "deny"}
        stage.posts[post_id] = msgspec.structs.replace(stage.posts[post_id], **change)
    if stage.directs:
        stage.directs.pop(data.draw(st.sampled_from(sorted(stage.directs))))[1].until = stage.time


def write_directly(stage: Stage, data: st.DataObject) -> None:
    """Heard live, or found later: by a sweep, as what was written while nobody listened, or by an import."""
    account, verb = data.draw(accounts), data.draw(verbs)
    live, imported = data.draw(st.booleans()), data.draw(st.booleans())
    if "direct" not in stage.configs[-1].rules.ways:
        return
    post = Post(
        f"dm{len(stage.directs)}-{stage.ms}", f"dm-{account}", account, create_at=stage.ms, message=f"{verb} {'0' * 8}"
    )
    command = parse_direct(post.message)
    assert isinstance(command, Decision)
    if live or not imported:
        stage.directs[post.id] = (post, say(stage, account, verb, "direct", stage.number))
    else:
        stage.directs[post.id] = (post, Said(account, verb, "direct", 0, stage.time))
    one = expressions.express(post, "direct", command, flaw="" if live else "unheard")
    stage.memory_of_direct.append(one)


def rename(stage: Stage, data: st.DataObject) -> None:
    account = data.draw(st.sampled_from(tuple(NAMES)))
    stage.names[account] = f"{NAMES[account]}2" if stage.names[account] == NAMES[account] else NAMES[account]


def rewrite_record(stage: Stage, data: st.DataObject) -> None:
    """By whoever may update plugin data: it is replayed, or some of it is what suits them."""
    stage.tampered = True
    again = data.draw(st.booleans())
    if stage.records and again:
        stage.record = data.draw(st.sampled_from(stage.records))
    record = stage.record
    if record is None:
        return
    former: Record = data.draw(st.sampled_from((record, *stage.records)))
    posts = st.sampled_from((*stage.posts, "")) if stage.posts else st.just("")
    slot: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "p": posts, "s": st.sampled_from(("posted", "waiting", "failed", "gone")), "since": st.just(0),
                "a": st.sampled_from((ADOPTED, 0, 1, 5)), "c": st.sampled_from(("ops", "dba", "bob")),
                "shown": st.just((PENDING, 0)), "k": st.just("card"),
            },
        )
    )  # fmt: skip
    counted = tuple((one, "approve", f"reaction|{p}", stage.ms, "counted") for one in "aibem" for p in stage.posts)
    fields: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "who": st.sampled_from(("", "a", "m")), "q": st.sampled_from(("", former.q, _q(stage))),
                "rules": st.sampled_from([one.digest for one in stage.configs]), "since": st.just(0),
                "dec": st.sampled_from(((), counted)), "heads": st.just(()), "seed": st.just(former.seed),
                "owner": st.just(""), "done": st.booleans(), "n": st.integers(0, 99),
                "posts": st.just(former.posts), "seen": st.just((PENDING, 0)),
            },
        )
    )  # fmt: skip
    record = msgspec.structs.replace(record, **{"owner": ""} | fields)
    if record.posts and slot:
        position = data.draw(st.integers(0, len(record.posts) - 1))
        changed = list(record.posts)
        changed[position] = msgspec.structs.replace(changed[position], **slot)
        record = msgspec.structs.replace(record, posts=tuple(changed))
    stage.record = record


def _q(stage: Stage) -> str:
    return asked(stage.request) if stage.request is not None else ""


def edit_card(stage: Stage, data: st.DataObject) -> None:
    """By whoever may edit others' posts: the properties are what suits them."""
    stage.tampered = True
    cards = [post for post in stage.standing() if post.key]
    if cards:
        card, other = data.draw(st.sampled_from(cards)), data.draw(st.sampled_from(cards))
        fields: dict[str, Any] = data.draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "who": st.just(""), "since": st.just(0), "k": st.just(other.mark.k), "id": st.just("id-1"),
                    "rules": st.sampled_from([one.digest for one in stage.configs]),
                    "q": st.sampled_from(("", other.mark.q, _q(stage))),
                },
            )
        )  # fmt: skip
        mark = msgspec.structs.replace(card.mark, **fields)
        stage.posts[card.id] = msgspec.structs.replace(card, mark=mark, key=mark.k, request_id=mark.id)


def copy_card(stage: Stage, data: st.DataObject) -> None:
    """Somebody posts the same, as themselves or as our bot by a webhook."""
    cards = [post for post in stage.standing() if post.key]
    if cards:
        card = data.draw(st.sampled_from(cards))
        name = f"post{len(stage.posts)}"
        forged: dict[str, Any] = data.draw(st.sampled_from(({"user_id": "m"}, {"props": frozenset({"from_webhook"})})))
        stage.posts[name] = msgspec.structs.replace(card, id=name, create_at=stage.ms, **forged)


DEEDS = {
    "react": react, "react again": react, "once more": react, "take back": take_back, "reply": reply, "unsay": unsay,
    "write": write_directly, "rename": rename, "copy": copy_card,
}  # fmt: skip
ATTACKS = {"none": {}, "record": {"rewrite": rewrite_record}, "posts": {"edit": edit_card}}

modes: st.SearchStrategy[Any] = st.sampled_from(("none", "reviewer", "reviewer", "reviewer", "plugin", "plugin"))
ways: st.SearchStrategy[Any] = st.sampled_from((("reaction", "reply", "direct"), ("reaction",), ("reply", "direct")))


def configured(data: st.DataObject, since: float) -> Config:
    rules = Rules(
        mode=data.draw(modes), ways=data.draw(ways), policies={"*": Policy(EVERYBODY, 2, 1)},
        linked=(links := data.draw(st.sampled_from(LINKS))),
    )  # fmt: skip
    return Config(rules, links, since)


@hypothesis.settings(max_examples=EXAMPLES)
@given(st.data(), st.sampled_from(tuple(ATTACKS)))
def test_every_review_is_what_a_person_decided(data: st.DataObject, attack: str) -> None:
    stage = Stage(configured(data, 0.0))
    life, lives = Life(stage, "me-0"), 1
    life.live(by_event=True, steps=1000)
    deeds = {**DEEDS, **ATTACKS[attack]}
    attacks = tuple(ATTACKS[attack]) * 4
    names = st.sampled_from((*deeds, *attacks, *("look",) * 8, "kill", "reload", "another", "review"))
    for _ in range(data.draw(st.integers(5, 25))):
        deed = data.draw(names)
        note(f"{stage.time:g} {deed}")
        if deed in deeds:
            deeds[deed](stage, data)
        elif deed == "another" and stage.request is not None:
            stage.number += 1
            stage.request = _request(stage.number, data.draw(st.sampled_from(tuple(ASKERS))))
            stage.time = max(stage.time, stage.request.created or 0.0)
            life.version = Version(-1, 0)
        elif deed == "review" and stage.request is not None:
            known = (*stage.request.reviews, Review("alice", data.draw(st.sampled_from((APPROVED, DENIED)))))
            stage.request = msgspec.structs.replace(stage.request, reviews=known[:3])
        elif deed == "reload":
            stage.configs.append(configured(data, stage.time))
        if deed in ("kill", "reload"):
            life, lives = Life(stage, f"me-{lives}"), lives + 1
        if deed in ("look", "kill"):
            stage.data, stage.faulty = data, data.draw(st.integers(0, 3)) == 0
            life.live(by_event=data.draw(st.booleans()), steps=data.draw(st.integers(0, 8)) if deed == "kill" else 1000)
            stage.data = None
        stage.pass_time(stage.time + data.draw(st.sampled_from((0.1, 1.0, 40.0))))
    life.live(by_event=False, steps=1000)
