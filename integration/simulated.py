"""The stage on the repository's own simulators: no server is needed, and every wait is for an event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

import trio

from integration.stage import Card, Channel, Credentials, Person, Review, Settings, direct_access
from sidecar.model import Threshold
from sidecar.simulator.mattermost import server as mattermost
from sidecar.simulator.mattermost.server import MattermostServer, Post
from sidecar.simulator.teleport.auth import AuthServer
from sidecar.simulator.teleport.proxy import ProxyServer
from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST, RULE

ROLE, POLICED = "dbadmin", "billing"
_BURST = 50
EMAILS = MappingProxyType({name: f"{name}@example.com" for name in ("alice", "ivan", "bob", "mallory")})


class SimulatedCluster:
    """The dual authorisation guide's cluster."""

    no_reviews = ""
    no_restart = ""
    no_proxy = "the Auth Service is reached directly"
    brief = 3.0

    def __init__(self, version: str, folder: Path, emails: Mapping[str, str]) -> None:
        self._folder = folder
        self.requester, self.reviewers = emails["bob"], (emails["alice"], emails["ivan"])
        self._server = AuthServer.dual_authorization(version=version)
        self._server.add_user(self.requester, ["devops", "accounting"])
        thresholds = [Threshold(approve=2, deny=1)]
        self._server.add_role("devops", request_roles=[ROLE], thresholds=thresholds, suggested_reviewers=self.reviewers)
        self._add_decider()
        self._server.start()
        self.name = f"simulated Teleport {version}"
        self.no_rules = "" if self._server.profile.has_rules else f"{self.name} has no rules"
        self._proxy: tuple[ProxyServer, trio.Nursery] | None = None
        self.access, self.decider_access = self._access("access-plugin"), self._access(self.decider)
        self.identities = folder / "identities"
        self.identities.mkdir()
        for name in self.reviewers:
            self._server.add_user(name, ["reviewer"])
            self._server.write_credentials(self.identities, name, name=name)

    async def go_through_proxy(self, nursery: trio.Nursery) -> None:
        """Have sidecars meet a Proxy, with identity files."""
        proxy = ProxyServer(lambda: self._server.addr)
        await nursery.start(proxy.serve)
        self._proxy, self.no_proxy = (proxy, nursery), ""
        self.access, self.decider_access = self._access("access-plugin"), self._access(self.decider)

    def _access(self, name: str) -> Settings:
        """Sign in and tell the settings; again under the same name, the files are replaced."""
        files = self._server.write_credentials(self._folder, name, name=name)
        if self._proxy is None:
            return direct_access(self._server.addr, Credentials(files.crt, files.key, files.cas))
        identity, ca_file = self._folder / f"{name}.pem", self._folder / "proxy-ca.pem"
        new = identity.with_suffix(".new")
        new.write_bytes(files.key.read_bytes() + files.crt.read_bytes() + files.cas.read_bytes())
        new.rename(identity)
        ca_file.write_bytes(self._proxy[0].ca_pem)
        return {
            "teleport.addr": self._proxy[0].addr,
            "teleport.identity": str(identity),
            "teleport.proxy_ca_file": str(ca_file),
        }

    def _add_decider(self) -> None:
        self.decider = "decider"
        rules = {REQUEST: ("list", "read"), PLUGIN_DATA: ("update",), RULE: ("list", "read")}
        self._server.add_role("decider", rules=rules, review_roles=[POLICED])
        self._server.add_user(self.decider, ["decider"])
        self._server.add_role(POLICED)
        thresholds = [Threshold(approve=1, deny=1, filter='contains(reviewer.roles,"decider")')]
        self._server.add_role("accounting", request_roles=[POLICED], thresholds=thresholds)

    def stop(self) -> None:
        self._server.stop()

    async def create_requests(
        self, count: int = 1, *, reason: bytes = b"", expires_in: float | None = None, policed: bool = False
    ) -> list[str]:
        role = POLICED if policed else ROLE
        create = partial(self._server.create_request, self.requester, [role], reason=reason)
        if expires_in is not None:
            create = partial(create, expires_in=expires_in, access_for=expires_in)
        first = [create() for _ in range(min(count, _BURST))]
        if count > _BURST and self._server.profile.major < 12:
            # A stock 7 ends every watch about then ("watcher closed"); a stock 16 was seen to keep them.
            self._server.close_watchers("closed")
        return first + [create() for _ in range(count - len(first))]

    async def review(self, request_id: str, author: str, proposed_state: str, reason: str = "") -> None:
        self._server.review(request_id, author, proposed_state, reason)

    async def approve(self, request_id: str, reason: str = "") -> None:
        self._server.set_state(request_id, "APPROVED", reason)

    async def deny(self, request_id: str, reason: str = "") -> None:
        self._server.set_state(request_id, "DENIED", reason)

    async def remove(self, *request_ids: str) -> None:
        for request_id in request_ids:
            self._server.delete_request(request_id)

    async def forget(self, *request_ids: str) -> None:
        """Nobody comes after this scenario."""

    async def state(self, request_id: str) -> str:
        found = self._server.request(request_id)
        return found.state if found else ""

    async def reviews(self, request_id: str) -> list[Review]:
        found = self._server.request(request_id)
        assert found is not None
        return [Review(one.author, one.proposed_state, one.reason) for one in found.reviews]

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        await trio.to_thread.run_sync(self._server.stop)
        yield
        await trio.to_thread.run_sync(self._server.start)

    async def add_rule(self, name: str, condition: str, plugin: str, recipient: str) -> None:
        self._server.add_rule(name, condition, [recipient], plugin=plugin)

    async def remove_rule(self, name: str) -> None:
        self._server.remove_rule(name)

    async def renew(self) -> None:
        self._access("access-plugin")

    @asynccontextmanager
    async def proxy_away(self) -> AsyncIterator[None]:
        assert self._proxy is not None
        proxy, nursery = self._proxy
        proxy.stop()
        proxy.cut()
        yield
        await nursery.start(proxy.serve)


class SimulatedChat:
    """A Mattermost in this trio loop."""

    no_restart = ""

    def __init__(self, server: MattermostServer, emails: Mapping[str, str]) -> None:
        self._server = server
        self._users = {name: server.add_user(name, email=email) for name, email in emails.items()}
        self._bot = server.add_bot("teleport")
        self._everybody = (*self._users.values(), self._bot)
        self._team = server.add_team("ops", members=self._everybody)
        self.name = f"simulated Mattermost {server.version}"
        self.url = server.url
        self.bot_token = self._bot.token
        self.people = {
            name: Person(user.id, user.username, user.email, user.token) for name, user in self._users.items()
        }

    async def channel(self) -> Channel:
        name = f"requests-{len(self._server.channels)}"
        made = self._server.add_channel(self._team, name, private=True, members=self._everybody)
        return Channel(made.id, f"{self._team.name}/{name}")

    async def direct(self, person: Person) -> Channel:
        made = self._server.open_direct(self._bot, self._users[person.username])
        return Channel(made.id, "")

    async def cards(self, channel: Channel) -> list[Card]:
        return self._cards(channel)

    async def until(self, channel: Channel, true: Callable[[list[Card]], bool]) -> list[Card]:
        await self._server.wait_for(lambda: true(self._cards(channel)))
        return self._cards(channel)

    async def mentions(self, channel: Channel, person: Person) -> int:
        posts = self._server.posts(self._server.channels[channel.id])
        return sum(person.id in self._server.mentions(post) for post in posts)

    async def react(self, person: Person, card: Card, emoji: str) -> None:
        self._server.react(self._users[person.username], self._server.all_posts[card.id], emoji)

    async def say(self, person: Person, channel: Channel, message: str, card: Card | None = None) -> str:
        place = self._server.channels[channel.id]
        return self._server.post(self._users[person.username], place, message, root_id=card.id if card else "").id

    async def edit(self, person: Person, post_id: str, message: str) -> None:
        self._server.edit(self._users[person.username], self._server.all_posts[post_id], message)

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        await self._server.down("refuse")
        self._server.pending.forget()
        yield
        await self._server.up()

    def _cards(self, channel: Channel) -> list[Card]:
        posts = self._server.posts(self._server.channels[channel.id])
        return [self._card(post) for post in posts if self._is_ours(post) and not post.root_id]

    def _card(self, post: Post) -> Card:
        attachments = post.props.get("attachments") or [{"fields": []}]
        fields = {one["title"]: str(one["value"]) for one in attachments[0]["fields"]}
        replies = [reply for reply in self._server.thread(post) if reply.id != post.id and self._is_ours(reply)]
        return Card(post.id, post.message, fields, tuple(reply.message for reply in replies))

    def _is_ours(self, post: Post) -> bool:
        return post.user_id == self._bot.id and not post.type and not post.delete_at


@asynccontextmanager
async def simulated_chat(version: str = "5.37.0", emails: Mapping[str, str] = EMAILS) -> AsyncIterator[SimulatedChat]:
    """A simulated Mattermost, running."""
    async with trio.open_nursery() as nursery:
        server = mattermost.MattermostServer(version)
        await nursery.start(server.serve)
        yield SimulatedChat(server, emails)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def simulated_cluster(
    folder: Path, version: str = "7.0.0-dev", emails: Mapping[str, str] = EMAILS, *, through_proxy: bool = False
) -> AsyncIterator[SimulatedCluster]:
    """A simulated Auth Service, running; with a Proxy before it, where sidecars are to go through one."""
    cluster = SimulatedCluster(version, folder, emails)
    try:
        async with trio.open_nursery() as nursery:
            if through_proxy:
                await cluster.go_through_proxy(nursery)
            yield cluster
            nursery.cancel_scope.cancel()
    finally:
        cluster.stop()
