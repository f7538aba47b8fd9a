"""Everything that works: built leaf to root, started, moved to another configuration, and stopped in order.

What is known and owed outlives a configuration. Workers are built for one, and end before the next counts; a link is
connected anew only where its own settings changed.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from sidecar.decisions.routing import routes_of
from sidecar.decisions.seen import Context
from sidecar.decisions.terms import digest_of, options_of, rules_of
from sidecar.errors import LinkError
from sidecar.files import trusting
from sidecar.intake.dialer import Dialer
from sidecar.intake.direct import Asked, Direct
from sidecar.intake.expiry import Expiry
from sidecar.intake.hints import HintConsumer
from sidecar.intake.keep import Part, keep
from sidecar.intake.mattermost import MattermostLink
from sidecar.intake.rules import MonitoringRules
from sidecar.intake.settings import link_settings, listens, request_seconds, token, token_place
from sidecar.intake.sweep import Sweeper
from sidecar.intake.teleport import TeleportLink
from sidecar.mattermost.client import Away, MattermostClient
from sidecar.mattermost.client import open_client as open_mattermost
from sidecar.mattermost.recipients import Recipients
from sidecar.reconcile.coldstart import close_orphans
from sidecar.reconcile.controller import Controller
from sidecar.reconcile.followed import Followed
from sidecar.reconcile.gate import Gate
from sidecar.reconcile.observe import Observer
from sidecar.reconcile.people import People
from sidecar.reconcile.resolve import Resolver
from sidecar.reconcile.strangers import Strangers
from sidecar.reconcile.submit import Submitter
from sidecar.reconcile.visit import Peers
from sidecar.teleport.reviewers import open_reviewers
from sidecar.times import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from sidecar.config import Config
    from sidecar.intake.keep import LinkStatus
    from sidecar.mattermost.inbox import Events
    from sidecar.metrics import Metrics
    from sidecar.teleport.reviewers import Reviewers
    from sidecar.text.fields import TextOptions
    from sidecar.times import Times

log = logging.getLogger(__name__)

ORPHANS_RETRY_SECONDS = 60.0


class Assembly:
    """The work. `statuses` are the links as /readyz shows them, Teleport's first.

    With `fail_fast`, a peer that refuses us before it was ever ready ends it by LinkRefused.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        times: Times,
        statuses: tuple[LinkStatus, LinkStatus],
        *,
        fail_fast: bool,
    ) -> None:
        self._config = config
        self._rules, self._digest = rules_of(config), digest_of(config)
        self._next: Config | None = None
        self._asked = trio.Event()
        self._metrics = metrics
        self._times = times
        self._statuses = statuses
        self._fail_fast = fail_fast
        self._monitoring = MonitoringRules(config.teleport.plugin_name, config.rules.mode, metrics)
        self._followed = Followed(
            routes_of(config), config.limits, lambda: self._monitoring.book, times, config.reminders
        )
        self._gate = Gate(self._followed.queue.add, statuses[1].wrote)
        self._dialer = Dialer(config.teleport, statuses[0], metrics)
        self._teleport = TeleportLink(self._dialer, self._followed, self._monitoring, statuses[0], metrics)
        self._token = token(config)
        self._client = MattermostClient(Away(), metrics.posts_skipped_total.inc)
        self._recipients = Recipients(self._client, unknown_seconds=times.unknown_recipient)
        self._link = MattermostLink(
            self._client,
            statuses[1],
            self._gate,
            metrics,
            lambda: self._consumer if listens(self._config) else None,
            self._recipients.clear,
        )
        self._people = People(self._client, config.reviewers, config.reviews.identity, config.requester_recipients())
        self._strangers = Strangers(self._client, self._people.find, metrics)
        self._direct = Direct(
            self._client,
            self._followed.heard,
            Asked(self._teleport.store.get_request, lambda: statuses[0].working),
            self._people.find,
            self._rules,
            self._text_options,
            bot_id=lambda: self._link.bot_id,
            secret=self._secret,
            url=lambda: self._config.mattermost.url,
            times=times,
        )
        self._sweeper = Sweeper(
            self._client,
            self._followed.heard,
            self._rules,
            self._direct.take,
            metrics,
            options=self._text_options,
            linked=self._people.linked,
            known=self._teleport.listed.wait,
            suspect=self._gate.suspect,
            times=times,
        )
        self._consumer = HintConsumer(
            self._open_events, self._followed.heard, self._people, self._strangers, self._sweeper, self._direct, times
        )
        self._controller = Controller(self._followed, self._gate, self._context, self._direct.visit, metrics)
        self._links = {
            "teleport": Part(self._hold_teleport, "teleport"),
            "mattermost": Part(self._hold_mattermost, "mattermost"),
        }
        self._workers = Part(self._work, "reconcile")
        self._cleaned = False
        # Whether what is followed may be another cluster's.
        self._moved = False

    async def run(self, stop: trio.Event) -> bool:
        """Work until `stop`; True where everything under way was finished. Raises LinkRefused."""
        async with trio.open_nursery() as nursery:
            for part in (*self._links.values(), self._workers):
                part.begin(nursery)
            async with trio.open_nursery() as reloads:
                reloads.start_soon(self._take_over, nursery, name="app.reload")
                await stop.wait()
                # Half of a reload is no harm: what ended is not begun again.
                reloads.cancel_scope.cancel()
            self._teleport.quiesce()
            complete = await self._drain()
            nursery.cancel_scope.cancel()
        return complete

    async def _drain(self) -> bool:
        with trio.move_on_after(self._times.drain) as drain:
            await self._gate.drained()
        return not drain.cancelled_caught

    # -- another configuration ---------------------------------------------------------------------------------------

    def reload(self, config: Config) -> None:
        """Go on by this configuration as soon as what is being written is finished; the last one asked for counts."""
        self._next = config
        self._asked.set()

    async def _take_over(self, nursery: trio.Nursery) -> None:
        known = link_settings(self._config)
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            config, self._next = self._next or self._config, None
            now = link_settings(config)
            links = [
                self._links[status.name]
                for status in self._statuses
                # Who was refused, and may have mended it, need not wait.
                if now[status.name] != known[status.name] or status.state == "refused"
            ]
            if links or config != self._config:
                await self._drain()
                for part in (self._workers, *links):
                    await part.end()
                rules = self._digest
                self._use(config)
                self._moved = self._links["teleport"] in links
                for part in (*links, self._workers):
                    part.begin(nursery)
                self._gate.reopen()
                # A card bears the rules by which people decide on it.
                self._followed.look_again(cards=rules != self._digest)
            known = now
            log.info("config.reloaded")

    def _use(self, config: Config) -> None:
        """Let it count for everything that outlives a configuration; nothing works meanwhile."""
        before, self._config = self._config, config
        self._rules, self._digest = rules_of(config), digest_of(config)
        if before.teleport.plugin_name != config.teleport.plugin_name:
            # What is known of records is true of the other name's.
            self._followed.clear()
        if token_place(before) != token_place(config):
            self._token = token(config)
        self._followed.configure(routes_of(config), config.limits, config.reminders)
        self._monitoring.configure(config.teleport.plugin_name, config.rules.mode)
        self._dialer.configure(config.teleport)
        self._people.configure(config.reviewers, config.reviews.identity, config.requester_recipients())
        self._direct.rules = self._sweeper.rules = self._rules
        self._followed.heard.swept = "reply" in self._rules.ways

    # -- what is ended and begun again -------------------------------------------------------------------------------

    async def _hold_teleport(self) -> None:
        status = self._statuses[0]
        try:
            async with trio.open_nursery() as nursery:
                self._dialer.begin(nursery)
                nursery.start_soon(self._dialer.expiry.watch, self._times.expiry_every, name="expiry")
                files = self._dialer.files
                await keep(status, self._teleport.live, Backoff(0.1, 5.0), files, fail_fast=self._fail_fast)
        finally:
            status.ended()

    async def _hold_mattermost(self) -> None:
        settings, status = self._config.mattermost, self._statuses[1]
        files = [settings.token_file] if settings.token_file is not None else []
        try:
            async with open_mattermost(
                settings.url,
                self._token,
                client=self._client,
                ssl_context=trusting("mattermost.ca_file", settings.ca_file),
                max_connections=settings.max_connections,
                max_posts_per_second=settings.max_posts_per_second,
                request_seconds=request_seconds(self._config),
                observe=self._metrics.observe_rest,
            ):
                await keep(status, self._link.live, Backoff(0.25, 2.0), lambda: files, fail_fast=self._fail_fast)
        finally:
            self._gate.close()
            status.ended()

    async def _work(self) -> None:
        """Everything that is built for one configuration: the workers, and what they turn to."""
        if self._moved:
            await self._teleport.store.ready()
        config, store = self._config, self._teleport.store
        async with self._open_pool() as pool, trio.open_nursery() as nursery:
            resolver = Resolver(
                self._recipients,
                routes_of(config),
                self._monitoring.ruling,
                self._metrics,
                self._followed.queue.add,
                self._followed.heard.retry,
                self._gate.suspect,
                self._times,
            )
            peers = Peers(
                store,
                self._client,
                Observer(store, self._client, resolver, self._people, self._metrics),
                resolver,
                Submitter(
                    config.reviews.submit_as, store, lambda: self._dialer.own_user, pool.submit if pool else None
                ),
                self._gate,
                self._recipients.forget,
                self._strangers,
            )
            expiry = Expiry("reviewer", pool.certificates if pool is not None else dict, self._metrics)
            nursery.start_soon(expiry.watch, self._times.expiry_every, name="expiry")
            await nursery.start(resolver.run, name="reconcile.resolver")
            nursery.start_soon(self._clean_up, name="coldstart")
            await self._controller.run(peers, config.limits.workers)

    @asynccontextmanager
    async def _open_pool(self) -> AsyncIterator[Reviewers | None]:
        teleport, reviews = self._config.teleport, self._config.reviews
        if reviews.submit_as != "reviewer" or reviews.identities is None:
            yield None
            return
        cas = teleport.identity or teleport.root_cas
        async with open_reviewers(reviews.identities, cas, self._dialer.open, ca_pins=teleport.ca_pin) as pool:
            yield pool

    async def _clean_up(self) -> None:
        """Once both links have been up: end the cards of requests that nobody remembers."""
        await self._teleport.listed.wait()
        await self._link.known.wait()
        names = dict.fromkeys(name for names in self._config.role_to_recipients.values() for name in names)
        names |= dict.fromkeys(self._monitoring.book.recipients)
        while not self._cleaned:
            try:
                await close_orphans(
                    names,
                    self._recipients.resolve,
                    self._client,
                    self._teleport.store,
                    bot_id=self._link.bot_id,
                    cluster=self._text_options().cluster,
                    followed=self._followed.__contains__,
                )
            except LinkError as exc:
                log.debug("orphans.postponed", extra={"link": exc.link, "reason": exc.reason})
                await trio.sleep(ORPHANS_RETRY_SECONDS)
            else:
                self._cleaned = True

    # -- what holds for every request --------------------------------------------------------------------------------

    def _context(self) -> Context:
        config = self._config
        return Context(
            lease_s=max(1, int(config.teleport.lease)),
            rules=self._rules,
            rules_digest=self._digest,
            times=self._times,
            reminders=config.reminders,
            announce_resolved=config.announce.resolved,
            announce_delay=config.announce.delay,
            bot_id=self._link.bot_id,
            own_user=self._dialer.own_user,
            options=self._text_options(),
            keep_recipients=self._monitoring.book.used,
        )

    def _secret(self) -> str:
        return self._token()

    def _text_options(self) -> TextOptions:
        return options_of(self._config, self._rules, self._teleport.store.info, self._dialer.web_addr)

    def _open_events(self) -> AbstractAsyncContextManager[Events]:
        # The websocket's libraries cost each start time and memory, and few need them where nobody decides.
        from sidecar.mattermost.events import open_events  # noqa: PLC0415

        settings = self._config.mattermost
        return open_events(
            settings.url,
            self._token,
            ssl_context=trusting("mattermost.ca_file", settings.ca_file),
            ping_seconds=self._times.socket_ping_every,
            answer_seconds=self._times.socket_ping_limit,
        )
