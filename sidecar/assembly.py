"""Everything that works by one configuration: built leaf to root, started, and stopped in order.

When asked to stop, nothing new is taken in, what is being written is finished and recorded, and then everything ends.
"""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio

from sidecar.decisions.judge import Rules
from sidecar.decisions.routing import routes_of
from sidecar.decisions.seen import Context
from sidecar.errors import LinkError
from sidecar.files import trusting
from sidecar.intake.direct import Direct
from sidecar.intake.expiry import Expiry, watch
from sidecar.intake.hints import Ear
from sidecar.intake.keep import LinkStatus, keep
from sidecar.intake.mattermost import MattermostLink
from sidecar.intake.rules import MonitoringRules
from sidecar.intake.sweep import Sweeper
from sidecar.intake.teleport import TeleportLink
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
from sidecar.teleport.connect import Connector
from sidecar.teleport.findings import ONE_FILE, THREE_FILES, to_error
from sidecar.teleport.identity import credential_files, load_credentials
from sidecar.teleport.reviewers import open_reviewers
from sidecar.teleport.x509 import read_certificate
from sidecar.text.fields import TextOptions
from sidecar.times import Backoff

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sidecar.config import Config
    from sidecar.intake.kept import Kept
    from sidecar.intake.store import Auth
    from sidecar.mattermost.client import MattermostClient
    from sidecar.metrics import Metrics
    from sidecar.teleport.credentials import Credentials
    from sidecar.teleport.reviewers import Reviewers
    from sidecar.teleport.x509 import CertificateFacts
    from sidecar.times import Times

log = logging.getLogger(__name__)

# One answer of Mattermost, and the share of a lease that it may take: a write must end before the lease does.
REQUEST_SECONDS = 10.0
ORPHANS_RETRY_SECONDS = 60.0


class Assembly:
    """The work by one configuration. `statuses` are the links as /readyz shows them, Teleport's first."""

    def __init__(
        self, config: Config, metrics: Metrics, times: Times, statuses: tuple[LinkStatus, LinkStatus], kept: Kept
    ) -> None:
        self._config = config
        self._token = kept.token(config.mattermost)
        self._metrics = metrics
        self._times = times
        self._teleport_status, self._mattermost_status = statuses
        self._rules = rules(config)
        self._routes = routes_of(config)
        limits = config.limits
        self._monitoring = MonitoringRules(config.teleport.plugin_name, config.rules.mode, metrics)
        self._followed = Followed(
            self._routes,
            lambda: self._monitoring.book,
            open_requests=limits.open_requests,
            queue=limits.queue,
            times=times,
        )
        self._gate = Gate(self._followed.queue.add, self._mattermost_status)
        self._teleport = TeleportLink(
            self._connect,
            self._adopt,
            self._credential_files,
            kept.proven(config.teleport),
            self._followed,
            self._monitoring,
            self._teleport_status,
            metrics,
        )
        self._own_user = ""
        self._certificate: dict[str, CertificateFacts] = {}
        files = THREE_FILES if config.teleport.identity is None else ONE_FILE
        self._expiry = Expiry("main", lambda: self._certificate, metrics, files)
        self._warned: set[str] = set()

    async def run(self, stop: trio.Event, *, fail_fast: bool) -> bool:
        """Work until `stop`; True where everything under way was finished. Raises LinkRefused with `fail_fast`."""
        config, settings = self._config, self._config.mattermost
        async with (
            AsyncExitStack() as stack,
            open_mattermost(
                settings.url,
                self._token,
                ssl_context=trusting("mattermost.ca_file", settings.ca_file),
                max_connections=settings.max_connections,
                max_posts_per_second=settings.max_posts_per_second,
                request_seconds=min(REQUEST_SECONDS, self._config.teleport.lease / 3),
                observe=self._metrics.observe_rest,
                skipped=self._metrics.posts_skipped_total.inc,
            ) as client,
            trio.open_nursery() as nursery,
        ):
            self._connector = self._open_connector(nursery)
            ears: list[Ear] = []
            recipients = Recipients(client, unknown_seconds=self._times.unknown_recipient)
            link = MattermostLink(
                client,
                self._mattermost_status,
                self._gate,
                self._metrics,
                lambda: ears[0] if ears else None,
                recipients.clear,
            )
            pool = await self._open_pool(stack)
            people = People(client, config.reviewers, config.reviews.identity, self._routes.requesters)
            strangers = Strangers(client, people.find, self._metrics)
            direct = self._listen(client, link, ears, people, strangers)
            peers = self._peers(client, recipients, people, strangers, pool)
            controller = self._controller(link, direct)
            await nursery.start(peers.resolver.run, name="reconcile.resolver")
            nursery.start_soon(controller.run, peers, config.limits.workers, name="reconcile")
            nursery.start_soon(partial(self._keep_teleport, fail_fast=fail_fast), name="teleport")
            nursery.start_soon(partial(self._keep_mattermost, link, fail_fast=fail_fast), name="mattermost")
            nursery.start_soon(self._clean_up, client, recipients, link, name="coldstart")
            nursery.start_soon(watch, self._expiries(pool), self._times.expiry_every, name="expiry")
            await stop.wait()
            self._teleport.quiesce()
            with trio.move_on_after(self._times.drain) as drain:
                await self._gate.drained()
            nursery.cancel_scope.cancel()
        return not drain.cancelled_caught

    # -- Mattermost --------------------------------------------------------------------------------------------------

    def _peers(
        self,
        client: MattermostClient,
        recipients: Recipients,
        people: People,
        strangers: Strangers,
        pool: Reviewers | None,
    ) -> Peers:
        resolver = Resolver(
            recipients,
            self._routes,
            self._monitoring.ruling,
            self._metrics,
            self._followed.queue.add,
            self._followed.retry,
            self._gate.suspect,
            self._times,
        )
        return Peers(
            self._teleport.store,
            client,
            Observer(self._teleport.store, client, resolver, people.judge, people.find_requester, self._metrics),
            resolver,
            Submitter(self._rules.mode, self._teleport.store, lambda: self._own_user, pool),
            self._gate,
            recipients.forget,
            strangers,
        )

    def _controller(self, link: MattermostLink, direct: Direct) -> Controller:
        config = self._config
        context = Context(
            lease_s=max(1, int(config.teleport.lease)),
            rules=self._rules,
            rules_digest=digest(config),
            times=self._times,
            announce_resolved=config.announce.resolved,
            announce_delay=config.announce.delay,
        )
        return Controller(
            self._followed,
            self._gate,
            lambda: msgspec.structs.replace(
                context,
                bot_id=link.bot_id,
                options=self._text_options(),
                keep_recipients=self._monitoring.book.used,
            ),
            direct.visit,
            self._metrics,
        )

    def _listen(
        self, client: MattermostClient, link: MattermostLink, ears: list[Ear], people: People, strangers: Strangers
    ) -> Direct:
        """Build what hears people in Mattermost; nothing listens where the configuration asks for none."""
        config, rules = self._config, self._rules
        direct = Direct(
            client,
            self._followed,
            self._teleport.store.get_request,
            people.find,
            rules,
            self._text_options,
            bot_id=lambda: link.bot_id,
            secret=self._token,
            times=self._times,
        )
        if rules.mode == "none" and not (config.reviewers and "direct" in rules.ways):
            return direct
        sweeper = Sweeper(
            client,
            self._followed,
            rules,
            direct.take,
            self._metrics,
            options=self._text_options,
            linked=people.linked,
            known=self._teleport.listed.wait,
            suspect=self._gate.suspect,
            times=self._times,
        )
        # The websocket's libraries cost each start time and memory, and few need them where nobody decides.
        from sidecar.mattermost.events import open_events  # noqa: PLC0415

        connect = partial(
            open_events,
            config.mattermost.url,
            self._token,
            ssl_context=trusting("mattermost.ca_file", config.mattermost.ca_file),
            ping_seconds=self._times.socket_ping_every,
            answer_seconds=self._times.socket_ping_limit,
        )
        wants_direct = direct if "direct" in rules.ways else None
        ears.append(Ear(connect, self._followed, people, strangers, sweeper, wants_direct, self._times))
        return direct

    def _text_options(self) -> TextOptions:
        """What Teleport says of itself decides the link: without reviews on the server, its page has no buttons."""
        info = self._teleport.store.info
        web_url = self._config.teleport.web_url
        if not web_url and info is not None and (proxy := self._connector.web_addr or info.proxy_public_addr):
            web_url = f"https://{proxy}"
        has_reviews = info is not None and (info.advanced_workflows or info.any_entitlement)
        return TextOptions(
            cluster=info.cluster if info is not None else "",
            web_url=web_url,
            reviews_supported=bool(self._config.teleport.web_url) or has_reviews,
            time_zone=self._config.messages.time_zone or None,
            ways=self._rules.ways if self._rules.mode != "none" else (),
            approve_emoji=self._rules.approve[0],
            deny_emoji=self._rules.deny[0],
            require_reason=self._rules.require_reason,
            # This mode is for the edition without reviews alone.
            commands=self._rules.mode != "state",
            whole_ids=info is not None and info.major < 16,
        )

    async def _keep_mattermost(self, link: MattermostLink, *, fail_fast: bool) -> None:
        token_file = self._config.mattermost.token_file
        files = [token_file] if token_file is not None else []
        await keep(self._mattermost_status, link.live, Backoff(0.25, 2.0), lambda: files, fail_fast=fail_fast)

    async def _clean_up(self, client: MattermostClient, recipients: Recipients, link: MattermostLink) -> None:
        """Once both links have been up: end the cards of requests that nobody remembers."""
        await self._teleport.listed.wait()
        await link.known.wait()
        names = dict.fromkeys(name for names in self._routes.roles.values() for name in names)
        names |= dict.fromkeys(self._monitoring.book.recipients)
        while True:
            try:
                await close_orphans(
                    names,
                    recipients.resolve,
                    client,
                    self._teleport.store,
                    bot_id=link.bot_id,
                    cluster=self._text_options().cluster,
                    followed=self._followed.__contains__,
                )
            except LinkError as exc:
                log.debug("orphans.postponed", extra={"link": exc.link, "reason": exc.reason})
                await trio.sleep(ORPHANS_RETRY_SECONDS)
            else:
                return

    # -- Teleport ----------------------------------------------------------------------------------------------------

    async def _keep_teleport(self, *, fail_fast: bool) -> None:
        files = self._credential_files
        await keep(self._teleport_status, self._teleport.live, Backoff(0.1, 5.0), files, fail_fast=fail_fast)

    @asynccontextmanager
    async def _connect(self, credentials: Credentials | None) -> AsyncIterator[tuple[Auth, Credentials]]:
        """A connection with these credentials or the files', after a look at what grpcio would not explain."""
        teleport = self._config.teleport
        if credentials is None:
            credentials = load_credentials(teleport)
            if not self._own_user:
                # Known before the Auth Service answers; from then on, the certificate that worked last counts.
                with suppress(ValueError):
                    self._watch_end(read_certificate(credentials.certificate))
        await self._inspect(credentials)
        async with self._connector.open(credentials) as client:
            yield client, credentials

    def _open_connector(self, nursery: trio.Nursery) -> Connector:
        teleport = self._config.teleport
        return Connector(
            nursery,
            teleport.addr,
            server_name="teleport.cluster.local" if teleport.verify == "cluster" else None,
            plugin_name=teleport.plugin_name,
            proxy_ca_file=teleport.proxy_ca_file,
            observe=self._metrics.observe_grpc,
        )

    def _adopt(self, credentials: Credentials) -> None:
        """A connection has proven to work: its certificate is who we are."""
        ours = read_certificate(credentials.certificate)
        self._own_user = ours.user
        self._watch_end(ours)

    def _watch_end(self, ours: CertificateFacts) -> None:
        self._certificate = {"": ours}
        self._expiry.look()

    async def _inspect(self, credentials: Credentials) -> None:
        """Raise what stands in the way as its one sentence with the fix; warn of the rest once."""
        verify = self._config.teleport.verify
        findings = await self._connector.preflight(credentials, verify=verify, now=time.time())
        self._teleport_status.way = self._connector.way
        for finding in findings:
            if finding.status == "failure":
                raise to_error(finding)
            if finding.status == "warning" and finding.id not in self._warned:
                self._warned.add(finding.id)
                log.warning("preflight.warned", extra={"check": finding.id, "detail": to_error(finding).detail})

    async def _open_pool(self, stack: AsyncExitStack) -> Reviewers | None:
        config = self._config
        if self._rules.mode != "reviewer" or config.reviews.identities is None:
            return None
        return await stack.enter_async_context(
            open_reviewers(
                config.reviews.identities,
                config.teleport.identity or config.teleport.root_cas,
                self._connector.open,
                ca_pins=config.teleport.ca_pin,
            )
        )

    def _expiries(self, pool: Reviewers | None) -> list[Expiry]:
        expiries = [self._expiry]
        if pool is not None:
            expiries.append(Expiry("reviewer", pool.certificates, self._metrics))
        return expiries

    def _credential_files(self) -> tuple[Path, ...]:
        return credential_files(self._config.teleport)


def rules(config: Config) -> Rules:
    """What the configuration says of decisions."""
    reviews = config.reviews
    return Rules(
        mode=reviews.submit_as,
        # Where nobody decides, there are still questions to answer.
        ways=tuple(way for way in reviews.ways if reviews.submit_as != "none" or way == "direct"),
        approve=reviews.approve,
        deny=reviews.deny,
        require_reason=reviews.require_reason,
        policies=reviews.policy,
        linked={one.id: one.user for one in config.reviewers.values() if one.id},
    )


def digest(config: Config) -> str:
    """What the rules come to by which people decide: where they change, words from before do not count."""
    reviews = config.reviews
    linked = sorted(f"{one.id}={one.user}" for one in config.reviewers.values())
    parts = [reviews.submit_as, *reviews.ways, "", *reviews.approve, "", *reviews.deny, reviews.identity, *linked]
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:16]
