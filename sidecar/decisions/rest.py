"""The end of a look: what is remembered, whether the record is given up, and when to look again. Pure."""

from __future__ import annotations

import msgspec

from sidecar.decisions.deliberate import strangers, unheard
from sidecar.decisions.expressions import key_of
from sidecar.decisions.posts import unfinished
from sidecar.decisions.record import Record
from sidecar.decisions.seen import UNASKED, Evidence, Memory, Plan
from sidecar.decisions.threads import reminder_at
from sidecar.decisions.view import View
from sidecar.errors import LinkError, RequestGone
from sidecar.model import Post
from sidecar.text.card import says_nothing


def rest(view: View, plan: Plan) -> Plan:
    """Nothing more can be done now: give the record up where nothing is in doubt, and choose when to look again."""
    record = plan.record
    assert record is not None  # noqa: S101 - whatever must be posted is on one
    memory, times = view.memory, view.context.times
    again = [view.expiry_at, *(doubt.due for doubt in memory.doubts)]
    if (reminder := reminder_at(view, record)) > view.now.mono:
        again.append(reminder)
    if view.another and view.record is not None and view.record.q != record.q:
        # The new seed is on record before anything is posted with it.
        again.append(view.now.mono + times.failure_first)
    if any(unfinished(slot, pending=view.pending) for slot in record.posts):
        if view.retry_failed:
            retry_at = view.now.mono + times.wait(memory.retries, link=False)
            memory = memory.but(retry_at=retry_at, retries=memory.retries + 1)
        again.append(memory.retry_at)
    else:
        memory = memory.but(retries=0)
    memory, unheard_of = _heard(view, memory.but(proven=_proven(view, record)), record)
    if view.seen.error is not None or unheard_of:
        link = unheard_of or isinstance(view.seen.error, LinkError | RequestGone)
        again.append(view.now.mono + times.wait(memory.failures, link=link))
        memory = memory.but(failures=memory.failures + 1)
    else:
        memory = memory.but(failures=0)
    ours = record.owner == view.context.owner and view.record is not None
    return msgspec.structs.replace(
        plan,
        memory=memory,
        save=view.seen.held or (ours and not memory.timed),
        again_at=min(again),
        drop=record.done and view.gone,
        strangers=strangers(view.seen, view.memory, record, view.context),
    )


def _proven(view: View, record: Record) -> str:
    """The rules under which every card stands, as far as this process wrote or read it itself; "" where it did not."""
    rules = view.context.rules_digest
    cards = (view.seen.cards.get(slot.p, UNASKED) for slot in record.posts if slot.p)

    def known(one: object) -> bool:
        if isinstance(one, Post):
            # A card of the version before must be read: what it says depends on its message.
            return one.mark.rules == rules and not says_nothing(one.message)
        return one is UNASKED and view.proven

    return rules if all(map(known, cards)) else ""


def _heard(view: View, memory: Memory, record: Record) -> tuple[Memory, bool]:
    """What there is still to listen to, and whether something was said that must be read again before long.

    That is what was read too long ago, or what could not be read. Direct messages that were taken back, or have their
    verdict where nobody counts votes, need no room any more.
    """
    evidence = view.seen.evidence
    if not isinstance(evidence, Evidence):
        return memory, False
    left = unheard(view.seen, record, view.context)
    stands = evidence.standing if view.context.rules.by_quorum else left
    kept = {key_of(one) for one in stands}
    again = bool(left) or evidence.error is not None
    direct = tuple(one for one in memory.direct if key_of(one) in kept or evidence.error is not None)
    return memory.but(listen=memory.listen and again, direct=direct), again


def put_off(view: View, trouble: str, *, link: bool) -> Plan:
    """Look again later, less and less often; a failing link is no news, everything else is said once."""
    tries = view.memory.failures
    return Plan(
        memory=view.memory.but(failures=tries + 1),
        again_at=view.now.mono + view.context.times.wait(tries, link=link),
        trouble="" if link or tries else trouble,
    )
