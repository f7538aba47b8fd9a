"""`sidecar check` against both simulators: what the operator reads, and that nothing is left behind."""

from __future__ import annotations

import datetime as dt
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Unpack

import grpc
import pytest
import trio
import trustme

from sidecar import check
from sidecar.check import Finding, to_lines, to_summary
from sidecar.config import Config, load
from sidecar.decisions.record import Record, encode
from sidecar.simulator.mattermost.faults import Match
from sidecar.simulator.mattermost.server import Answer, MattermostServer
from sidecar.simulator.teleport.pki import ClusterPki
from sidecar.simulator.teleport.roles import PLUGIN_DATA, REQUEST
from tests import world as worlds
from tests.golden import Golden
from tests.mattermost_peer import SILENCE, always, answer, http_peer, serving
from tests.world import World


@asynccontextmanager
async def world(folder: Path, **versions: str) -> AsyncIterator[World]:
    """Both servers, and files as a careful operator leaves them."""
    async with worlds.world(folder, **versions) as here:
        here.token_file.chmod(0o600)
        yield here


async def found(config: Config, send_test: str = "") -> dict[str, list[Finding]]:
    """The findings by id."""
    findings, _ = await check.run(config, send_test=send_test)
    by_id: dict[str, list[Finding]] = {}
    for finding in findings:
        by_id.setdefault(finding.id, []).append(finding)
    return by_id


async def read(config: Config) -> str:
    """What stands on the terminal and is not ok."""
    findings, _ = await check.run(config)
    told = [one for one in findings if one.status != "ok"]
    return "\n".join(line for one in told for line in to_lines(one))


def quiet(here: World) -> None:
    """Nothing was posted, recorded, reviewed or decided."""
    assert not [post for post in here.chat.all_posts.values() if not post.type]
    assert not here.auth.find_plugin_data()
    assert all(not request.reviews and request.state == "PENDING" for request in here.auth.requests())


@pytest.mark.parametrize(("version", "chat_version"), [("7.0.0-dev", "5.37.0"), ("18.11.0", "11.0.0")])
async def test_all_is_well(tmp_path: Path, version: str, chat_version: str, golden: Golden) -> None:
    """Each check has its line, in the order of the way that a message takes."""
    async with world(tmp_path, version=version, chat_version=chat_version) as here:
        here.ask()
        findings, _ = await check.run(here.config())
        golden([f"{one.status} {one.id}" for one in findings if not one.id.startswith("teleport.names")])
        golden([one.message for one in findings if one.id in {"teleport.ping", "teleport.rights.list", "recipient"}])
        quiet(here)


@pytest.mark.parametrize("mode", ["reviewer", "plugin", "state", "on_behalf"])
async def test_nothing_is_posted_saved_or_decided(tmp_path: Path, mode: str) -> None:
    """Rights are tried, and every try must come to nothing; also with all rights there are."""
    async with world(tmp_path, version="18.11.0") as here:
        request_id = here.ask()[0]
        here.auth.add_role(
            "access-plugin",
            review_roles=["dbadmin"],
            submit_for_users=["*"],
            rules={REQUEST: ("list", "read", "update"), PLUGIN_DATA: ("list", "read", "update")},
        )
        here.auth.advanced_workflows = mode != "state"
        by_id = await found(deciding(here, mode))
        assert not [one for ones in by_id.values() for one in ones if one.status == "failure"]
        assert here.auth.request(request_id) is not None
        quiet(here)


def deciding(here: World, mode: str, **changes: str) -> Config:
    """A configuration by which Alice and Ivan decide."""
    folder = here.folder / "reviewers"
    if not folder.exists():
        for name in ("alice@example.com", "ivan@example.com"):
            here.auth.write_credentials(folder, name, name=name)
    policy = '{ reviewers = ["alice@example.com", "ivan@example.com"], approvals = 2, denials = 1 }'
    settings = {
        "reviews__submit_as": mode,
        "reviews__identities": str(folder),
        "reviews__policy": f'{{ "*" = {policy} }}',
        "reviewers__alice": f'{{ id = "{here.alice.id}", user = "alice@example.com" }}',
        "reviewers__ivan": f'{{ id = "{here.ivan.id}", user = "ivan@example.com" }}',
    }
    return here.config(**(settings | changes))


async def test_ten_things_wrong_are_ten_lines(tmp_path: Path, golden: Golden) -> None:
    """One run names them all: nobody mends a sidecar one error at a time."""
    async with world(tmp_path) as here:
        here.auth.add_role("access-plugin", rules={REQUEST: ("read",)})
        ends = dt.datetime.now(dt.UTC) + dt.timedelta(hours=12)
        here.auth.pki.write_credentials(
            tmp_path, "access-plugin", ["access-plugin"], not_before=ends - dt.timedelta(days=365), not_after=ends
        )
        here.token_file.chmod(0o644)
        here.chat.set_roles(here.bot, "system_user system_admin")
        here.chat.clock_offset = 120.0
        here.chat.configure(RestrictDirectMessage="team")
        archive = here.chat.add_channel(here.team, "old", members=[here.bot])
        here.chat.archive(archive)
        here.chat.add_channel(here.team, "team-leads", display_name="Team Leads", members=[here.bot])
        flags = {
            "mattermost.recipients": f'["{archive.id}", "ops/Team Leads", "@nobody", "ops/access-requests"]',
            "reviews.submit_as": "plugin",
            "reviews.policy": '{ "*" = { reviewers = ["alice@example.com"], approvals = 1, denials = 1 } }',
            "reviewers.alicia": "alice@example.com",
        }
        config = load(None, {}, here.settings() | flags, pinning=True)
        told = await read(config)
        golden(told.replace(f"{ends:%Y-%m-%d %H:%M:%S} UTC", "<in twelve hours>"))
        quiet(here)


def record(*, exp: float) -> str:
    """The sidecar's own record of an announced request."""
    return encode(Record(seed="s", owner="", at=int(time.time()), exp=int(exp), seen=("PENDING", 0), posts=()))


class Plot(NamedTuple):
    """One thing that is done to a world that is well, and the checks whose findings are read afterwards."""

    act: Callable[[World], object]
    ids: str
    # "" for a sidecar where nobody decides.
    mode: str = ""
    flags: Mapping[str, str] = MappingProxyType({})
    version: str = "7.0.0-dev"
    chat_version: str = "5.37.0"


DATA = ("list", "read", "update")
ALICE, IVAN, BOB = "alice@example.com", "ivan@example.com", "bob@example.com"


def nothing(_here: World) -> None:
    """The configuration alone is what differs."""


def role(here: World, *requests: str, data: tuple[str, ...] = DATA, **more: Any) -> None:
    here.auth.add_role("access-plugin", rules={REQUEST: requests, PLUGIN_DATA: data}, **more)


def unlisted(here: World) -> None:
    """The role may list plugin data but not requests: Teleport shows none, and says nothing."""
    here.auth.write_plugin_data(here.ask()[0], {"tm": record(exp=time.time() + 600)})
    role(here, "read")


def two_sidecars(here: World) -> None:
    ours, theirs = here.ask(2)
    here.auth.write_plugin_data(ours, {"tm": record(exp=time.time() + 600), "messages": "c/p", "user": "bob"})
    here.auth.write_plugin_data(theirs, {"user": "bob", "messages": "c/p"})


def elsewhere(here: World) -> None:
    pki, folder = ClusterPki("other.example.com"), here.folder / "other"
    pki.write_credentials(folder, "access-plugin", ["access-plugin"])


def hung(here: World) -> None:
    here.auth.faults.hang("Ping", "WatchEvents", "GetAccessRequestsV2", "GetAccessRequests", "UpdatePluginData")


def refused(**call: Unpack[Match]) -> Callable[[World], object]:
    """A permission scheme may take away what every Mattermost allows; the other checks go on."""
    refusal = Answer(403, {"id": "api.context.permissions.app_error", "status_code": 403})
    return lambda here: here.chat.fail(answer=refusal, **call | {"times": None})


def archived_team(here: World) -> None:
    """Its channels take posts that nobody sees."""
    old = here.chat.add_team("old", members=[here.bot])
    here.chat.add_channel(old, "requests", members=[here.bot])
    here.chat.archive_team(old)


def lost(here: World) -> None:
    here.chat.fail(path="/api/v4/teams/name/*", times=None)
    here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode.UNAVAILABLE, "away", times=9)


def reviewers_gone_wrong(here: World) -> None:
    folder = here.folder / "reviewers"
    (folder / f"{ALICE}.key").chmod(0o640)
    here.auth.write_credentials(folder, BOB, name=IVAN)
    here.chat.rename(here.alice, "alice.s")
    here.chat.deactivate(here.ivan)


def second_factor(here: World) -> None:
    here.auth.mfa_required = True
    here.auth.write_credentials(here.folder / "reviewers", ALICE, name=ALICE, impersonator="")


def ends_soon(here: World) -> None:
    """By its own life: Alice has a day of a year left, Ivan five."""
    signed = dt.datetime.now(dt.UTC) - dt.timedelta(days=360)
    for user, days in ((ALICE, 361), (IVAN, 365)):
        ends = signed + dt.timedelta(days=days, hours=1)
        folder = here.folder / "reviewers"
        here.auth.pki.write_credentials(folder, user, ["reviewer"], name=user, not_before=signed, not_after=ends)


def edition(here: World, *, advanced: bool, **entitlements: bool) -> None:
    here.auth.advanced_workflows, here.auth.entitlements = advanced, {**here.auth.entitlements, **entitlements}


FOREIGN = {
    "teleport__client_crt": "<folder>/other/auth.crt",
    "teleport__client_key": "<folder>/other/auth.key",
    "teleport__root_cas": "<folder>/other/auth.cas",
}
EMAIL = {"reviews__identity": "email"}
HUNG = (
    "teleport.rights.watch.timeout teleport.ping.deadline_exceeded teleport.rights.list.timeout "
    # On a connection of its own, which a Ping comes first on.
    "teleport.rights.plugin_data.timeout teleport.plugin_data.deadline_exceeded teleport.unchecked"
)
NAMED_WRONG = "reviewer.credential.refused reviewer.account.renamed reviewer.account.deactivated"
STATE = "reviews.state.edition"
ON_BEHALF = {"version": "18.11.0", "mode": "on_behalf"}

PLOTS = {
    # Teleport
    "watch denied": Plot(lambda here: role(here, "list"), "teleport.rights.watch"),
    "a list without the right": Plot(unlisted, "teleport.rights.list"),
    "the official plugin under our name": Plot(two_sidecars, "teleport.official_plugin"),
    "the official plugin under another name": Plot(
        two_sidecars, "teleport.official_plugin", flags={"teleport__plugin_name": "sidecar"}
    ),
    "an old Teleport": Plot(nothing, "teleport.version.too_old", version="6.2.0"),
    "files of another cluster": Plot(
        elsewhere, "teleport.server.other_cluster teleport.unchecked recipient", flags=FOREIGN
    ),
    "a name that is refused": Plot(
        nothing, "teleport.names.no_ip_sans teleport.rights.watch", flags={"teleport__verify": "hostname"}
    ),
    "a hung Auth Service": Plot(
        hung, HUNG, flags={"reviews__submit_as": "reviewer", "reviews__identities": "<folder>"}
    ),
    # Mattermost
    "a refused token": Plot(
        lambda here: here.chat.disable_token(here.bot), "mattermost.reach mattermost.token.refused"
    ),
    "a token of another thing": Plot(
        lambda here: here.token_file.write_text("xoxb-1234567890"), "mattermost.token.refused"
    ),
    "no token": Plot(
        lambda here: here.token_file.unlink(), "mattermost.token.file mattermost.reach mattermost.token.refused"
    ),
    "a channel that takes no posts": Plot(refused(method="POST", path="/api/v4/posts"), "recipient.cannot_post"),
    "an archived team": Plot(archived_team, "recipient.archived", flags={"mattermost__recipients": '["old/requests"]'}),
    "an archived team, new": Plot(
        archived_team, "recipient.archived", flags={"mattermost__recipients": '["old/requests"]'}, chat_version="11.0.0"
    ),
    "users/me refused": Plot(refused(path="/api/v4/users/me"), "mattermost.reach.rejected"),
    "the settings refused": Plot(refused(path="/api/v4/config/client"), "mattermost.settings"),
    "a person refused": Plot(
        refused(path="/api/v4/users/username/*"), "reviewer.account.unanswered", flags={"reviewers__alice": "a"}
    ),
    "calls that are lost": Plot(lost, "recipient.server_error reviewer.rights.unavailable", mode="reviewer"),
    "an old Mattermost": Plot(lambda here: here.chat.configure(Version="5.30.1"), "mattermost.version.old"),
    "a Mattermost without a version": Plot(lambda here: here.chat.configure(Version=""), "mattermost.version.unknown"),
    "hidden addresses": Plot(
        lambda here: here.chat.configure(ShowEmailAddress="false"),
        "mattermost.email_addresses recipient.forbidden",
        flags={"mattermost__recipients": f'["{ALICE}"]'},
    ),
    "hidden addresses that nobody needs": Plot(
        lambda here: here.chat.configure(ShowEmailAddress="false"),
        "mattermost.email_addresses",
        flags={"mattermost__suggested_reviewers": "off"},
    ),
    # People leave; one of them must not stop a roll-out. A line reads either way, and one reading is enough.
    "requesters": Plot(
        nothing,
        "requester requester.not_found",
        flags={
            "mattermost__notify_requester": "true",
            "requesters__bob": "bob@corp.example.com",
            "requesters__gone": "gone@x.example",
        },
    ),
    # Decisions
    "reviewers are well": Plot(nothing, "reviewer.rights reviewer.account", mode="reviewer"),
    "without a map everybody with credentials reviews": Plot(
        lambda here: here.chat.configure(RequireEmailVerification="true"),
        "reviewer.rights",
        mode="reviewer",
        flags=EMAIL,
    ),
    "reviewers gone wrong": Plot(reviewers_gone_wrong, NAMED_WRONG, mode="reviewer"),
    "a reviewer without rights": Plot(
        lambda here: here.auth.add_role("reviewer"), "reviewer.rights.not_allowed", mode="reviewer", version="16.0.0"
    ),
    "a second factor": Plot(second_factor, "reviewer.rights.mfa_required", mode="reviewer", version="16.0.0"),
    "credentials that nobody needs": Plot(
        lambda here: here.auth.write_credentials(here.folder / "reviewers", BOB, name=BOB),
        "reviews.identities.unused",
        mode="reviewer",
    ),
    "a folder that is not there": Plot(
        nothing,
        "reviews.identities reviewer.credential.refused",
        mode="reviewer",
        flags={"reviews__identities": "<folder>/nowhere"},
    ),
    "certificates that end soon": Plot(ends_soon, "reviewer.credential.expires_soon", mode="reviewer"),
    # One of half a day that was just signed asks for nobody.
    "certificates of half a day": Plot(nothing, "reviewer.credential", mode="reviewer"),
    "state where Ping names the feature": Plot(
        lambda here: edition(here, advanced=True), STATE, mode="state", version="18.0.0"
    ),
    "state where Ping names a paid entitlement": Plot(
        lambda here: edition(here, advanced=False, SAML=True), STATE, mode="state", version="18.0.0"
    ),
    "state on a community edition of today": Plot(
        lambda here: edition(here, advanced=False), STATE, mode="state", version="18.0.0"
    ),
    "state without the verb update": Plot(
        lambda here: edition(here, advanced=False), f"{STATE} teleport.rights.state.not_allowed", mode="state"
    ),
    "a community edition takes no reviews": Plot(
        lambda here: edition(here, advanced=False), "reviews.edition", mode="reviewer"
    ),
    "on behalf, too old": Plot(
        nothing, "reviews.on_behalf.version reviewer.rights", mode="on_behalf", version="16.0.0"
    ),
    "on behalf of one": Plot(
        lambda here: role(here, "list", "read", data=("update",), submit_for_users=[ALICE]),
        "reviewer.rights reviewer.rights.not_allowed",
        mode="on_behalf",
        version="18.11.0",
    ),
    "addresses that prove nothing": Plot(nothing, "reviews.identity.unsafe", mode="reviewer", flags=EMAIL),
    "addresses that are verified": Plot(
        lambda here: here.chat.configure(RequireEmailVerification="true"),
        "reviews.identity",
        mode="reviewer",
        flags=EMAIL,
    ),
}


@pytest.mark.parametrize("name", PLOTS)
async def test_one_thing(tmp_path: Path, name: str, golden: Golden) -> None:
    """Its findings, whole; "no <id>" where there is none."""
    plot = PLOTS[name]
    async with world(tmp_path, version=plot.version, chat_version=plot.chat_version) as here:
        flags = {key: value.replace("<folder>", str(tmp_path)) for key, value in plot.flags.items()}
        config = deciding(here, plot.mode, **flags) if plot.mode else here.config(**flags)
        plot.act(here)
        by_id = await found(config)
        golden([by_id.get(id, f"no {id}") for id in plot.ids.split()])
        here.auth.faults.release()


def only_a_person(here: World) -> None:
    here.token_file.write_text(here.alice.token)


def more_than_a_member(here: World) -> None:
    here.chat.set_roles(here.bot, "system_user system_manager system_post_all system_post_all_public")


@pytest.mark.parametrize(
    ("act", "recipient"),
    [
        # Every call fails by it, with words that name no cause one could mend.
        pytest.param(lambda here: here.auth.remove_user("access-plugin"), "ops/access-requests", id="a deleted user"),
        pytest.param(lambda here: here.credentials.key.unlink(), "ops/access-requests", id="a missing file"),
        pytest.param(only_a_person, "ops/access-requests", id="a person's token"),
        pytest.param(more_than_a_member, "ops/access-requests", id="roles that the bot does not need"),
        # What people have at hand is the address bar.
        pytest.param(nothing, "<url>/ops/channels/access-requests", id="a pasted link"),
    ],
)
async def test_all_that_is_said(tmp_path: Path, act: Callable[[World], object], recipient: str, golden: Golden) -> None:
    """It is said once."""
    async with world(tmp_path) as here:
        act(here)
        golden(await read(here.config(mattermost__recipients=f'["{recipient.replace("<url>", here.chat.url)}"]')))


async def test_everything_silent_ends_in_time(tmp_path: Path, golden: Golden) -> None:
    """Neither peer ever answers; the check does."""
    files = ClusterPki().write_credentials(tmp_path, "access-plugin", ["access-plugin"])
    token = tmp_path / "token"
    token.write_text("secret-token")

    async def keep_silent(*_: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with http_peer(always(SILENCE)) as chat, serving(keep_silent) as port:
        config = load(
            None,
            {},
            {
                "teleport.addr": f"127.0.0.1:{port}",
                "teleport.client_crt": str(files.crt),
                "teleport.client_key": str(files.key),
                "teleport.root_cas": str(files.cas),
                "mattermost.url": chat.url,
                "mattermost.token_file": str(token),
                "mattermost.recipients": "ops/requests",
            },
        )
        by_id = await found(config)
    assert "teleport.handshake.timeout" in by_id
    assert by_id["mattermost.reach.timeout"][0].message == "No answer within 5 s."
    golden(by_id["mattermost.unchecked"][0].message)


async def test_a_token_that_no_header_can_hold_says_nothing_of_the_way(tmp_path: Path) -> None:
    """Nothing listens there: that is to be said, whatever is wrong with the token."""
    async with world(tmp_path) as here:
        here.token_file.write_text("two\nlines")
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await listeners[0].aclose()
        by_id = await found(here.config(mattermost__url=f"http://127.0.0.1:{port}"))
        (finding,) = by_id["mattermost.token.file"]
        assert finding.message == f"{here.token_file} holds characters that no token has."
        assert "mattermost.reach" not in by_id
        assert by_id["mattermost.reach.unreachable"][0].status == "failure"


async def test_an_unknown_authority_names_ca_file(tmp_path: Path, ca: trustme.CA) -> None:
    """And with it all is well."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(server)
    authority = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(authority)
    async with world(tmp_path) as here, trio.open_nursery() as nursery:
        secure = MattermostServer(ssl_context=server)
        bot = secure.add_bot("teleport")
        team = secure.add_team("ops", members=[bot])
        secure.add_channel(team, "access-requests", members=[bot])
        await nursery.start(secure.serve)
        here.token_file.write_text(bot.token)
        by_id = await found(here.config(mattermost__url=secure.url))
        (finding,) = by_id["mattermost.reach.tls"]
        assert finding.message.startswith(f"The certificate of {secure.url} is not accepted")
        assert finding.message.endswith("name its certificate authority in mattermost.ca_file.")
        by_id = await found(here.config(mattermost__url=secure.url, mattermost__ca_file=str(authority)))
        assert by_id["recipient"][0].status == "ok"
        authority.write_text("no PEM")
        by_id = await found(here.config(mattermost__url=secure.url, mattermost__ca_file=str(authority)))
        assert by_id["mattermost.ca_file"][0].status == "failure"
        assert "mattermost.reach.tls" in by_id
        nursery.cancel_scope.cancel()


async def test_https_to_a_port_without_tls(tmp_path: Path, golden: Golden) -> None:
    """A plain port answers a TLS hello as any garbage."""

    async def plain(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")

    async with world(tmp_path) as here, serving(plain) as port:
        url = f"https://localhost:{port}"
        (finding,) = (await found(here.config(mattermost__url=url)))["mattermost.reach.tls"]
        golden(to_lines(finding))


@pytest.mark.parametrize(
    "said",
    [
        b"Client sent an HTTP request to an HTTPS server.\n",
        b"<center>The plain HTTP request was sent to HTTPS port</center>",
        b"Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ],
)
async def test_http_to_a_port_with_tls(tmp_path: Path, said: bytes, golden: Golden) -> None:
    """In the words of Go, nginx and Apache."""
    async with world(tmp_path) as here, http_peer(always(answer(400, said, kind="text/plain"))) as other:
        (finding,) = (await found(here.config(mattermost__url=other.url)))["mattermost.reach.https"]
        golden(to_lines(finding))


async def test_http_to_a_port_that_hangs_up(tmp_path: Path, golden: Golden) -> None:
    """Others end a connection that begins without TLS."""

    async def strict(stream: trio.abc.Stream, _: trio.SocketStream) -> None:
        await stream.receive_some()

    async with world(tmp_path) as here, serving(strict) as port:
        url = f"http://localhost:{port}"
        (finding,) = (await found(here.config(mattermost__url=url)))["mattermost.reach.reset"]
        golden(to_lines(finding))


@pytest.mark.parametrize(("status", "id"), [(404, "not_mattermost"), (200, "garbled")])
async def test_a_page_that_is_no_mattermost(tmp_path: Path, status: int, id: str) -> None:
    """A wrong path below Mattermost is answered with the page of its web client, and 200."""
    async with world(tmp_path) as here, http_peer(always(answer(status, b"<html>", kind="text/html"))) as other:
        (finding,) = (await found(here.config(mattermost__url=other.url)))[f"mattermost.reach.{id}"]
        assert finding.fix == "Set mattermost.url to the address of Mattermost, with its path where it has one."


async def test_a_mattermost_that_takes_any_reply(tmp_path: Path) -> None:
    """None is known to, but what was posted by mistake does not stay."""
    async with world(tmp_path) as here:
        post = here.chat.post(here.bot, here.channel, "sidecar check")
        taken = Answer(201, {"id": post.id, "channel_id": here.channel.id, "user_id": here.bot.id})
        here.chat.fail(method="POST", path="/api/v4/posts", answer=taken)
        assert (await found(here.config()))["recipient"][0].status == "ok"
        assert here.cards() == []


async def test_a_test_message_is_sent_only_when_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (finding,) = (await found(here.config(), "ops/access-requests"))["mattermost.send_test"]
        (post,) = here.cards()
        assert finding.message == f"The test message stands at {here.chat.url}/_redirect/pl/{post.id}"
        assert "sidecar check --send-test" in post.message
        (finding,) = (await found(here.config(), "@nobody"))["mattermost.send_test"]
        assert finding.message == "The test message was not sent: @nobody: there is no such user."


async def test_pin_prints_what_can_be_pasted(tmp_path: Path) -> None:
    """A table of names becomes one of ids, and the configuration takes it."""
    async with world(tmp_path) as here:
        here.chat.add_user("dots.and-dashes")
        names = {"alice": "alice@example.com", "dots.and-dashes": "d", "nobody": "n@example.com"}
        settings = here.settings() | {"reviews.submit_as": "on_behalf"}
        config = load(None, {}, settings | {f"reviewers.{name}": user for name, user in names.items()}, pinning=True)
        _, accounts = await check.run(config)
        table = check.to_toml(accounts)
        assert table.splitlines()[2] == '# nobody: no such user in Mattermost, or not asked; was for "n@example.com"'
        path = tmp_path / "pinned.toml"
        path.write_text(f"[reviewers]\n{table}\n")
        pinned = load(path, {}, settings).reviewers
        assert {name: (one.user, one.id) for name, one in pinned.items()} == {
            "alice": ("alice@example.com", here.alice.id),
            "dots.and-dashes": ("d", here.chat.user_by_name("dots.and-dashes").id),  # type: ignore[union-attr]
        }


async def test_a_stock_cluster_that_works_has_no_warning(tmp_path: Path) -> None:
    """Its certificate bears no address: the documented sentence and what would mend it stand in a line that is ok."""
    async with world(tmp_path) as here:
        findings, _ = await check.run(here.config())
        assert {one.status for one in findings} == {"ok"}
        (names,) = (one for one in findings if one.id.startswith("teleport.names"))
        assert names.message.startswith(
            "x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any"
        )
        assert "public_addr" in names.fix
        assert to_summary(findings) == f"{len(findings)} ok, 0 warnings, 0 failures: the sidecar can run."


async def test_json_has_the_promised_shape(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.chat.archive(here.channel)
        here.token_file.chmod(0o644)
        findings, _ = await check.run(here.config())
        document = json.loads(check.to_json(findings))
        assert list(document) == ["ok", "checks"]
        assert document["ok"] is False
        assert all(list(one) == ["id", "status", "subject", "message", "fix"] for one in document["checks"])
        assert {one["status"] for one in document["checks"]} == {"ok", "warning", "failure"}
        assert all(one["fix"] for one in document["checks"] if one["status"] == "failure")
        assert here.bot.token not in json.dumps(document)


async def test_one_file_is_enough(tmp_path: Path) -> None:
    """`identity` stands for the three files."""
    async with world(tmp_path) as here:
        parts = (here.credentials.key, here.credentials.crt, here.credentials.cas)
        identity = tmp_path / "auth.pem"
        identity.touch(mode=0o600)
        identity.write_bytes(b"".join(part.read_bytes() for part in parts))
        flags = {
            key: value
            for key, value in here.settings().items()
            if key[:15] not in {"teleport.client", "teleport.root_ca"}
        }
        config = load(None, {}, flags | {"teleport.identity": str(identity)})
        by_id = await found(config)
        assert by_id["teleport.rights.watch"][0].status == "ok"
        assert [one.subject for one in by_id["teleport.file"]] == [str(identity)]
