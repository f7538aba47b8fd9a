"""The access monitoring rules that name our plugin, as Teleport has them now.

Rule: what cannot be read or evaluated removes nobody, and says so once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from sidecar.decisions.routing import RuleBook, Ruled, read_rule
from sidecar.errors import LinkError, LinkGarbled
from sidecar.model import RulePut
from sidecar.once import Bounded, Once

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.decisions.routing import RuleMode
    from sidecar.metrics import Metrics
    from sidecar.model import AccessRequest, MonitoringRule, RuleDelete
    from sidecar.teleport.client import AuthClient

log = logging.getLogger(__name__)

STATES = ("evaluable", "not_evaluable", "unread")

# All conditions together, in terms, each rule counted as one more: that many are evaluated for a request in some 40 ms.
MAX_TERMS = 100_000
# At a connect all else waits for the rules.
_LIST_SECONDS = 5.0
_TRAITS_SECONDS = 3.0
_TRAITS_KEPT_SECONDS = 60.0
# How a call fails whose connection is gone.
_UNREACHABLE = frozenset({"unavailable", "away", "closed"})
_ABSENT = "unimplemented"

Traits = dict[str, tuple[str, ...]]
_Known = tuple["MonitoringRule", "Ruled"]


class MonitoringRules:
    """Keeps the rules; outlives connections. `book` is what routing takes."""

    def __init__(self, plugin: str, mode: RuleMode, metrics: Metrics) -> None:
        self._plugin = plugin
        self._mode = mode
        self._metrics = metrics
        # The connection that was last asked.
        self._source: AuthClient | None = None
        # Each rule that tells our plugin, with what was read of it.
        self._known: dict[str, _Known] = {}
        # What the watch has told since the last list was complete: news beside the list of now. None: no rule of ours.
        self._told: dict[str, _Known | None] = {}
        self._problem = ""
        # user -> when asked (trio's clock), and what Teleport said; None: it did not say.
        self._traits: Bounded[str, tuple[float, Traits | None]] = Bounded()
        self._traits_denied = ""
        self._users = Once()
        self._said: dict[str, str] = {}
        self._state: tuple[object, ...] = ()
        self.book = RuleBook()
        self._count()

    def configure(self, plugin: str, mode: RuleMode) -> None:
        """Go on by another configuration; the link is made anew where this is another one, and reads the rules."""
        if (plugin, mode) != (self._plugin, self._mode):
            self._plugin, self._mode, self._source, self._problem = plugin, mode, None, ""
            self._known.clear()
            self.begin()
            self._take_told()

    @property
    def wanted(self) -> bool:
        """Whether the watch is to tell of rules."""
        return self._mode != "off"

    def begin(self) -> None:
        """A new watch has begun: what an older one told is no news any more."""
        self._told.clear()

    def take(self, event: RulePut | RuleDelete) -> None:
        """What the watch tells."""
        if not self.wanted:
            return
        name = event.rule.name if isinstance(event, RulePut) else event.name
        self._told[name] = self._read(event.rule) if isinstance(event, RulePut) else None
        if self._told[name] is not None or name in self._known:
            self._take_told()
        log.debug("rule.changed", extra={"rule": name})

    async def load(self, source: AuthClient) -> bool:
        """Read all rules anew; True where a new watch would tell more than this one.

        Raises LinkError only where the connection is gone: all else that fails is said, and costs nobody anything.
        """
        if not self.wanted or (source is self._source and self._problem == _ABSENT):
            return False
        before, self._source = self._problem, source
        listed: dict[str, _Known] = {}
        detail = ""
        try:
            with trio.move_on_after(_LIST_SECONDS) as scope:
                await self._list(source, listed)
            self._problem = "timeout" if scope.cancelled_caught else ""
        except LinkError as exc:
            if exc.reason in _UNREACHABLE:
                raise
            self._problem, detail = exc.reason, exc.detail
        if self._problem in {"", _ABSENT}:
            self._known = listed
        else:
            self._known |= listed
        self._take_told()
        self._told.clear()
        self._say_state(source, detail)
        return bool(before) and not self._problem and not source.watches_rules

    async def ruling(self, request: AccessRequest) -> tuple[RuleBook, Traits | None]:
        """What routing takes for one request: the rules, and the requester's traits where a rule asks for them.

        Raises LinkError where the connection is gone.
        """
        book = self.book
        if not book.needs_traits or self._source is None:
            return book, None
        kept = self._traits.get(request.user)
        if kept is not None and trio.current_time() - kept[0] < _TRAITS_KEPT_SECONDS:
            return book, kept[1]
        problem, denied = f"no answer within {_TRAITS_SECONDS:g} s", False
        traits: Traits | None = None
        try:
            with trio.move_on_after(_TRAITS_SECONDS):
                traits = await self._source.user_traits(request.user)
        except LinkError as exc:
            if exc.reason in _UNREACHABLE:
                raise
            problem, denied = exc.detail, exc.reason == "denied"
        self._traits[request.user] = (trio.current_time(), traits)
        if traits is not None or denied:
            self._traits_denied = f"the traits of users cannot be read: {problem}" if denied else ""
            self._say_rules()
        elif self._users.news(request.user, problem):
            log.info("traits.unread", extra={"detail": problem})
        return book, traits

    async def _list(self, source: AuthClient, listed: dict[str, _Known]) -> None:
        token, terms = "", 0
        while True:
            rules, following = await source.list_rules(token)
            for rule in rules:
                # To understand a thousand conditions takes longer than others want to wait.
                await trio.lowlevel.checkpoint()
                if (known := self._read(rule)) is not None:
                    listed[rule.name] = known
                    terms += known[1].condition.terms if known[1].condition is not None else 0
                terms += 1
                if terms > MAX_TERMS:
                    raise LinkGarbled("teleport", "undecodable", "there are too many access monitoring rules")
            if not following:
                return
            if following == token:
                raise LinkGarbled("teleport", "undecodable", "the list of access monitoring rules has no end")
            token = following

    def _read(self, rule: MonitoringRule) -> _Known | None:
        known = self._known.get(rule.name)
        if known is not None and known[0] == rule:
            return known
        ruled = read_rule(rule, self._plugin)
        return None if ruled is None else (rule, ruled)

    def _take_told(self) -> None:
        for name, told in self._told.items():
            if told is not None:
                self._known[name] = told
            else:
                self._known.pop(name, None)
        ours = sorted((ruled for _, ruled in self._known.values()), key=lambda ruled: ruled.name)
        replace = self._mode == "replace" and not self._problem
        self.book = RuleBook(tuple(ours), replace, used=self.book.used or bool(ours))
        self._say_rules()

    def _problems(self) -> Mapping[str, str]:
        """Rule -> why it cannot be evaluated now."""
        problems = {ruled.name: ruled.problem for ruled in self.book.rules if ruled.condition is None}
        if self._traits_denied:
            needing = (one.name for one in self.book.rules if one.condition is not None and one.condition.needs_traits)
            problems |= dict.fromkeys(needing, self._traits_denied)
        return problems

    def _say_rules(self) -> None:
        problems = dict(self._problems())
        for name, problem in problems.items():
            if self._said.get(name) != problem:
                log.warning("rule.not_evaluable", extra={"rule": name, "detail": problem})
        self._said = problems
        self._count()

    def _say_state(self, source: AuthClient, detail: str) -> None:
        state = (self._problem, source.watches_rules)
        if state == self._state:
            return
        self._state = state
        if not self._problem:
            seen = "at once" if source.watches_rules else "within five minutes, for the watch of rules was not granted"
            log.info("rules.read", extra={"rules": len(self.book.rules), "detail": f"changes are seen {seen}"})
        elif self._problem == _ABSENT:
            log.info("rules.unread", extra={"detail": "this Teleport has no access monitoring rules"})
        else:
            # Who has none in use has lost nothing; who has may have.
            level = logging.WARNING if self.book.rules else logging.INFO
            log.log(level, "rules.unread", extra={"detail": detail or f"no answer within {_LIST_SECONDS:g} s"})

    def _count(self) -> None:
        bad = len(self._said)
        unread = self._problem not in {"", _ABSENT}
        counts = {"evaluable": len(self.book.rules) - bad, "not_evaluable": bad, "unread": int(unread)}
        for state in STATES:
            self._metrics.rules.labels(state).set(counts[state])
