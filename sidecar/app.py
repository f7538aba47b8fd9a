"""The composition root: builds every room, starts what runs, and owns the order in which it all stops.

The endpoints come first and go last, so that /readyz answers from the first moment on. When asked to stop, nothing new
is taken in, what is being written is finished and recorded, and then everything ends.
"""

from __future__ import annotations

import logging
import signal
import ssl
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import trio

from sidecar import endpoints
from sidecar.breaker import Breaker
from sidecar.coldstart import close_orphans
from sidecar.direct import Direct
from sidecar.errors import ConfigError, LinkError, LinkRefused
from sidecar.fields import TextOptions
from sidecar.followed import Followed
from sidecar.judge import Policy, Rules
from sidecar.lease import LeaseTimes
from sidecar.links import Backoff, LinkStatus, keep
from sidecar.listening import Ear
from sidecar.mattermost.client import open_client as open_mattermost
from sidecar.mattermost.events import open_events
from sidecar.mattermost.recipients import Recipients
from sidecar.mattermost_link import MattermostLink
from sidecar.metrics import Metrics
from sidecar.people import Identity, People, Reviewer
from sidecar.reconcile import Chat, Reconciler, Settings
from sidecar.review import Reviews
from sidecar.routing import Routes
from sidecar.submit import Submit
from sidecar.sweep import Sweeper
from sidecar.teleport.client import open_client as open_teleport
from sidecar.teleport.client import read_credentials
from sidecar.teleport.reviewers import open_reviewers
from sidecar.teleport.x509 import read_certificate
from sidecar.teleport_link import TeleportLink
from sidecar.times import USUAL, Times

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sidecar.config import Config
    from sidecar.mattermost.client import MattermostClient
    from sidecar.teleport_link import Auth

log = logging.getLogger(__name__)

LOOP_CHECK_SECONDS = 1.0
# One answer of Mattermost, and the share of a lease that it may take: a write must end before the lease does.
REQUEST_SECONDS = 10.0
# Questions asked in direct messages shortly before the start are still answered.
QUESTION_SECONDS = 60.0


async def run(
    config: Config,
    *,
    fail_fast: bool = False,
    stop: trio.Event | None = None,
    times: Times = USUAL,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Run the sidecar until SIGTERM, SIGINT or `stop`; return the exit code.

    Starts with the bound address of the endpoints. Raises ConfigError where they cannot be bound or a file that the
    configuration names cannot be used.
    """
    process = _Process(config, trio.Event() if stop is None else stop, times)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.listen_to_signals, nursery.cancel_scope, name="app.signals")
            nursery.start_soon(process.watch_loop, name="app.loop")
            address = await nursery.start(process.serve_endpoints, name="app.endpoints")
            log.info("endpoints.listening", extra={"address": address})
            task_status.started(address)
            await process.work(fail_fast=fail_fast)
            nursery.cancel_scope.cancel()
    except* LinkRefused:
        # Said by the link itself; `--fail-fast` asked for it.
        process.exit_code = 3
    return process.exit_code


class _Process:
    """Everything of one run."""

    def __init__(self, config: Config, stop: trio.Event, times: Times) -> None:
        self.exit_code = 0
        self._config = config
        self._stop = stop
        self._times = times
        self._metrics = Metrics()
        self._breaker = Breaker(times)
        self._rules = rules(config)
        self._own_user = ""
        self._routes = routes(config)
        limits = config.limits
        self._followed = Followed(self._routes, open_requests=limits.open_requests, queue=limits.queue, times=times)
        self._teleport_status = LinkStatus("teleport", self._metrics, times)
        self._mattermost_status = LinkStatus("mattermost", self._metrics, times)
        self._teleport = TeleportLink(self._connect, self._followed, self._teleport_status, self._metrics)

    # -- beside the work ---------------------------------------------------------------------------------------------

    async def serve_endpoints(self, *, task_status: trio.TaskStatus[str]) -> None:
        settings = self._config.endpoints
        context = None
        if settings.tls_crt is not None and settings.tls_key is not None:
            context = _server_context(settings.tls_crt, settings.tls_key)
        token = None
        if settings.bearer_token_file is not None:
            token = partial(_read_bearer, settings.bearer_token_file)
        await endpoints.serve(
            settings.address,
            metrics=self._metrics.generate,
            ready=self._readiness,
            ssl_context=context,
            bearer_token=token,
            task_status=task_status,
        )

    async def listen_to_signals(self, everything: trio.CancelScope) -> None:
        """The first signal asks to stop, the second cuts."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                if self._stop.is_set():
                    log.warning("process.cut", extra={"signal": signal.Signals(number).name})
                    self.exit_code = 128 + number
                    everything.cancel()
                    return
                log.info("process.stopping", extra={"signal": signal.Signals(number).name})
                self._stop.set()

    async def watch_loop(self) -> None:
        """Measure how late the loop runs its timers."""
        while True:
            due = trio.current_time() + LOOP_CHECK_SECONDS
            await trio.sleep_until(due)
            self._metrics.loop_lag_seconds.set(trio.current_time() - due)

    def _readiness(self) -> tuple[bool, dict[str, object]]:
        draining = self._stop.is_set()
        links = (self._teleport_status, self._mattermost_status)
        ready = not draining and all(link.working for link in links)
        return ready, {"ready": ready, "links": {link.name: link.body() for link in links}, "draining": draining}

    # -- the work ----------------------------------------------------------------------------------------------------

    async def work(self, *, fail_fast: bool) -> None:
        """Follow access requests until asked to stop, then finish what is being written."""
        settings = self._config.mattermost
        lease = self._config.teleport.lease
        async with (
            AsyncExitStack() as stack,
            open_mattermost(
                settings.url,
                settings.read_token,
                ssl_context=_client_context(settings.ca_file),
                max_connections=settings.max_connections,
                max_posts_per_second=settings.max_posts_per_second,
                request_seconds=min(REQUEST_SECONDS, lease / 3),
                observe=self._metrics.observe_rest,
            ) as client,
            trio.open_nursery() as nursery,
        ):
            ears: list[Ear] = []
            link = MattermostLink(
                client, self._mattermost_status, self._breaker, self._metrics, lambda: ears[0] if ears else None
            )
            recipients = Recipients(client, unknown_seconds=self._times.unknown_recipient)
            reviews = await self._listen(stack, client, link, ears)
            reconciler = self._reconciler(client, recipients, link, reviews)
            await nursery.start(reconciler.run, name="reconcile")
            nursery.start_soon(partial(self._keep_teleport, fail_fast=fail_fast), name="teleport")
            nursery.start_soon(partial(self._keep_mattermost, link, fail_fast=fail_fast), name="mattermost")
            nursery.start_soon(self._clean_up, client, recipients, link, name="coldstart")
            await self._stop.wait()
            self._teleport.quiesce()
            with trio.move_on_after(self._times.drain) as drain:
                await self._breaker.drained()
            log.info("process.stopped", extra={"complete": not drain.cancelled_caught})
            nursery.cancel_scope.cancel()

    async def _listen(
        self, stack: AsyncExitStack, client: MattermostClient, link: MattermostLink, ears: list[Ear]
    ) -> Reviews | None:
        """Build what takes decisions from Mattermost; nothing where the configuration asks for none."""
        config, rules = self._config, self._rules
        if rules.mode == "none" and not (config.reviewers and "direct" in rules.ways):
            return None
        context = _client_context(config.mattermost.ca_file)
        people = People(client, identity(config))
        direct = Direct(
            client,
            self._followed,
            self._teleport.get_request,
            people.find,
            rules,
            self._text_options,
            bot_id=lambda: link.bot_id,
            secret=config.mattermost.read_token,
        )
        direct.answer_since = (time.time() - QUESTION_SECONDS) * 1000
        sweeper = Sweeper(client, self._followed, rules, direct.take, lambda: link.bot_id, self._times)
        connect = partial(
            open_events,
            config.mattermost.url,
            config.mattermost.read_token,
            ssl_context=context,
            ping_seconds=self._times.socket_ping_every,
            answer_seconds=self._times.socket_ping_limit,
        )
        wants_direct = direct if "direct" in rules.ways else None
        ears.append(Ear(connect, self._followed, people, sweeper, wants_direct, self._times))
        if rules.mode == "none":
            return None
        pool = None
        if rules.mode == "reviewer" and config.reviews.identities is not None:
            pool = await stack.enter_async_context(
                open_reviewers(
                    config.reviews.identities,
                    config.teleport.addr,
                    config.teleport.root_cas,
                    server_name=self._server_name,
                    observe=self._metrics.observe_grpc,
                )
            )
        submit = Submit(rules.mode, self._teleport, lambda: self._own_user, pool)
        return Reviews(client, people.find, submit, rules, self._metrics, lambda: link.bot_id)

    def _reconciler(
        self, client: MattermostClient, recipients: Recipients, link: MattermostLink, reviews: Reviews | None
    ) -> Reconciler:
        config, rules = self._config, self._rules
        seeds: tuple[str, ...] = ()
        if reviews is not None and "reaction" in rules.ways:
            seeds = (rules.approve[0], rules.deny[0])
        return Reconciler(
            self._followed,
            self._teleport,
            Chat(client, recipients.resolve, recipients.forget, self._breaker, lambda: link.bot_id, reviews, seeds),
            Settings(
                routes=self._routes,
                lease=LeaseTimes(max(1, int(config.teleport.lease))),
                announce_resolved=config.announce.resolved,
                announce_delay_seconds=config.announce.delay,
                workers=config.limits.workers,
                times=self._times,
            ),
            self._metrics,
            self._text_options,
        )

    def _text_options(self) -> TextOptions:
        """What Teleport says of itself decides the link: without reviews on the server, its page has no buttons."""
        info = self._teleport.info
        web_url = self._config.teleport.web_url
        if not web_url and info is not None and info.proxy_public_addr:
            web_url = f"https://{info.proxy_public_addr}"
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
        )

    async def _keep_teleport(self, *, fail_fast: bool) -> None:
        files = self._credential_files
        await keep(self._teleport_status, self._teleport.live, Backoff(0.1, 5.0), files, fail_fast=fail_fast)

    async def _keep_mattermost(self, link: MattermostLink, *, fail_fast: bool) -> None:
        token_file = self._config.mattermost.token_file
        files = [token_file] if token_file is not None else []
        await keep(self._mattermost_status, link.live, Backoff(0.25, 2.0), lambda: files, fail_fast=fail_fast)

    def _connect(self) -> AbstractAsyncContextManager[Auth]:
        teleport = self._config.teleport
        credentials = read_credentials(*self._credential_files())
        try:
            self._own_user = read_certificate(credentials.certificate).user
        except ValueError as exc:
            sentence = f"{teleport.client_crt} holds no certificate that can be read"
            raise LinkRefused("teleport", "credentials", sentence) from exc
        return open_teleport(
            teleport.addr,
            credentials,
            server_name=self._server_name,
            plugin_name=teleport.plugin_name,
            observe=self._metrics.observe_grpc,
        )

    @property
    def _server_name(self) -> str | None:
        """The name that the Auth Service's certificate must bear; None is the host that is dialled."""
        return "teleport.cluster.local" if self._config.teleport.verify == "cluster" else None

    def _credential_files(self) -> tuple[Path, Path, Path]:
        teleport = self._config.teleport
        return teleport.client_crt, teleport.client_key, teleport.root_cas

    async def _clean_up(self, client: MattermostClient, recipients: Recipients, link: MattermostLink) -> None:
        """Once both links have been up: end the cards of requests that nobody remembers."""
        await self._teleport.listed.wait()
        await link.known.wait()
        names = dict.fromkeys(name for names in self._routes.roles.values() for name in names)
        while True:
            try:
                await close_orphans(
                    names,
                    recipients.resolve,
                    client,
                    self._teleport,
                    bot_id=link.bot_id,
                    followed=self._followed.__contains__,
                )
            except LinkError as exc:
                log.debug("orphans.postponed", extra={"link": exc.link, "reason": exc.reason})
                await trio.sleep(60)
            else:
                return


def routes(config: Config) -> Routes:
    """The routing part of the configuration, by recipient names."""
    return Routes(
        roles=dict(config.role_to_recipients),
        suggested_reviewers=config.mattermost.suggested_reviewers,
        reviewers={
            reviewer.user: f"user:{reviewer.id}" if reviewer.id else f"@{name}"
            for name, reviewer in config.reviewers.items()
        },
        requesters={user: config.requester_recipient(user) for user in {**config.requesters, **_turned(config)}},
        notify_requester=config.mattermost.notify_requester,
    )


def rules(config: Config) -> Rules:
    """What the configuration says of decisions."""
    reviews = config.reviews
    policies = {
        role: Policy(policy.reviewers, policy.approvals, policy.denials) for role, policy in reviews.policy.items()
    }
    return Rules(
        mode=reviews.submit_as,
        ways=reviews.ways,
        approve=reviews.approve,
        deny=reviews.deny,
        require_reason=reviews.require_reason,
        policies=policies,
    )


def identity(config: Config) -> Identity:
    """How reviewers are recognised."""
    reviewers = tuple(Reviewer(name, one.user, one.id) for name, one in config.reviewers.items())
    return Identity(reviewers, config.reviews.identity, config.reviews.require_ids)


def _turned(config: Config) -> dict[str, str]:
    return {value: key for key, value in config.requesters.items()}


def _client_context(ca_file: Path | None) -> ssl.SSLContext | None:
    if ca_file is None:
        return None
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError([f"mattermost.ca_file: {ca_file} cannot be used: {exc.strerror or exc}"]) from exc
    return context


def _server_context(crt: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(crt, key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError([f"endpoints.tls_crt: {crt} and {key} cannot be used: {exc.strerror or exc}"]) from exc
    return context


def _read_bearer(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
