"""`sidecar check` against both simulators: what the operator reads, and that nothing is left behind."""

from __future__ import annotations

import datetime as dt
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trio
import trustme

from sidecar import check
from sidecar.check import Finding, to_lines, to_summary
from sidecar.config import Config, load
from sidecar.decisions.record import Record, encode
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


# Teleport


async def test_watch_denied_names_the_rule(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        here.auth.add_role("access-plugin", rules={REQUEST: ("list",), PLUGIN_DATA: ("update", "list", "read")})
        (finding,) = (await found(here.config()))["teleport.rights.watch"]
        golden((finding.status, finding.message))
        assert finding.fix.splitlines()[1:] == ["  - resources: [access_request]", "    verbs: [list, read]"]


async def test_a_list_without_the_right_is_betrayed_by_records(tmp_path: Path, golden: Golden) -> None:
    """The role may list plugin data but not requests: Teleport shows none, and says nothing."""
    async with world(tmp_path) as here:
        request_id = here.ask()[0]
        here.auth.write_plugin_data(request_id, {"tm": record(exp=time.time() + 600)})
        here.auth.add_role("access-plugin", rules={REQUEST: ("read",), PLUGIN_DATA: ("list", "read", "update")})
        by_id = await found(here.config())
        (finding,) = by_id["teleport.rights.list"]
        assert finding.status == "failure"
        golden(finding.message)


def record(*, exp: float) -> str:
    """The sidecar's own record of an announced request."""
    return encode(Record(seed="s", owner="", at=int(time.time()), exp=int(exp), seen=("PENDING", 0), posts=()))


async def test_the_official_plugin_under_our_name_is_noticed(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        ours, theirs = here.ask(2)
        here.auth.write_plugin_data(ours, {"tm": record(exp=time.time() + 600), "messages": "c/p", "user": "bob"})
        here.auth.write_plugin_data(theirs, {"user": "bob", "messages": "c/p"})
        (finding,) = (await found(here.config()))["teleport.official_plugin"]
        golden(finding)
        assert "teleport.official_plugin" not in await found(here.config(teleport__plugin_name="sidecar"))


async def test_a_deleted_user_is_said_once(tmp_path: Path) -> None:
    """Every call fails by it, with words that name no cause one could mend."""
    async with world(tmp_path) as here:
        here.auth.remove_user("access-plugin")
        told = await read(here.config())
        (line,) = [line for line in told.splitlines() if line.startswith("FAILURE")]
        assert line == (
            "FAILURE access-plugin: Teleport no longer has our user access-plugin: every call with these credentials "
            "fails."
        )


async def test_an_old_teleport_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, version="6.2.0") as here:
        (finding,) = (await found(here.config()))["teleport.version.too_old"]
        assert finding.message == "Teleport 6.2.0 is older than 7, the oldest that the sidecar knows."


async def test_the_preflight_s_failures_are_here_too(tmp_path: Path, golden: Golden) -> None:
    """And what could not be checked because of them is said."""
    async with world(tmp_path) as here:
        other = ClusterPki("other.example.com").write_credentials(
            tmp_path / "other", "access-plugin", ["access-plugin"]
        )
        by_id = await found(
            here.config(
                teleport__client_crt=str(other.crt),
                teleport__client_key=str(other.key),
                teleport__root_cas=str(other.cas),
            )
        )
        (finding,) = by_id["teleport.server.other_cluster"]
        golden(finding.message)
        golden(by_id["teleport.unchecked"][0].message)
        assert by_id["recipient"][0].status == "ok"


async def test_rights_are_checked_though_the_name_is_refused(tmp_path: Path) -> None:
    """On `verify = "hostname"` and a stock cluster: the documented error, and all else besides."""
    async with world(tmp_path) as here:
        by_id = await found(here.config(teleport__verify="hostname"))
        (finding,) = by_id["teleport.names.no_ip_sans"]
        assert finding.status == "failure"
        assert finding.message.startswith("x509: cannot validate certificate for 127.0.0.1")
        assert by_id["teleport.rights.watch"][0].status == "ok"


async def test_a_missing_file_is_said_once(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        here.credentials.key.unlink()
        told = await read(here.config())
        assert told.splitlines()[0] == f"FAILURE {here.credentials.key}: There is no file {here.credentials.key}."
        golden(told.splitlines()[-1])


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


async def test_a_hung_auth_service_is_named_call_by_call(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        here.auth.faults.hang("Ping", "WatchEvents", "GetAccessRequestsV2", "GetAccessRequests", "UpdatePluginData")
        by_id = await found(here.config(reviews__submit_as="reviewer", reviews__identities=str(tmp_path)))
        golden(by_id["teleport.rights.watch.timeout"][0].message)
        assert "teleport.ping.deadline_exceeded" in by_id
        assert "teleport.rights.list.timeout" in by_id
        assert "teleport.rights.plugin_data.timeout" in by_id
        # On a connection of its own, which a Ping comes first on.
        assert "teleport.plugin_data.deadline_exceeded" in by_id
        golden(by_id["teleport.unchecked"][0].message)
        here.auth.faults.release()


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


# Mattermost


async def test_a_refused_token_is_not_a_lost_mattermost(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        here.chat.disable_token(here.bot)
        by_id = await found(here.config())
        assert by_id["mattermost.reach"][0].status == "ok"
        (finding,) = by_id["mattermost.token.refused"]
        assert finding.subject == str(here.token_file)
        golden(finding.message, finding.fix)
        here.token_file.write_text("xoxb-1234567890")
        (finding,) = (await found(here.config()))["mattermost.token.refused"]
        golden(finding.message)


async def test_without_a_token_the_way_is_checked_all_the_same(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        here.token_file.unlink()
        by_id = await found(here.config())
        golden([(one.status, one.message) for one in by_id["mattermost.token.file"]])
        assert by_id["mattermost.reach"][0].status == "ok"
        assert "mattermost.token.refused" not in by_id


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


async def test_a_person_s_token_is_told(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        here.token_file.write_text(here.alice.token)
        told = await read(here.config())
        golden(told)


async def test_every_role_that_the_bot_does_not_need_is_told(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        here.chat.set_roles(here.bot, "system_user system_manager system_post_all system_post_all_public")
        told = await read(here.config())
        golden(told)


async def test_a_channel_that_takes_no_posts(tmp_path: Path, golden: Golden) -> None:
    """Membership alone is no permission; what Mattermost says to a post is, and none is made."""
    async with world(tmp_path) as here:
        refusal = Answer(403, {"id": "api.context.permissions.app_error", "status_code": 403})
        here.chat.fail(method="POST", path="/api/v4/posts", answer=refusal, times=None)
        (finding,) = (await found(here.config()))["recipient.cannot_post"]
        golden(finding.message)


@pytest.mark.parametrize("version", ["5.37.0", "11.0.0"])
async def test_an_archived_team_is_told(tmp_path: Path, version: str) -> None:
    """Its channels take posts that nobody sees."""
    async with world(tmp_path, chat_version=version) as here:
        old = here.chat.add_team("old", members=[here.bot])
        here.chat.add_channel(old, "requests", members=[here.bot])
        here.chat.archive_team(old)
        (finding,) = (await found(here.config(mattermost__recipients='["old/requests"]')))["recipient.archived"]
        assert (finding.status, finding.message) == ("failure", "Its team is archived, or the bot is no longer on it.")


async def test_a_mattermost_that_takes_any_reply(tmp_path: Path) -> None:
    """None is known to, but what was posted by mistake does not stay."""
    async with world(tmp_path) as here:
        post = here.chat.post(here.bot, here.channel, "sidecar check")
        taken = Answer(201, {"id": post.id, "channel_id": here.channel.id, "user_id": here.bot.id})
        here.chat.fail(method="POST", path="/api/v4/posts", answer=taken)
        assert (await found(here.config()))["recipient"][0].status == "ok"
        assert here.cards() == []


@pytest.mark.parametrize(
    ("path", "id"),
    [
        ("/api/v4/users/me", "mattermost.reach.rejected"),
        ("/api/v4/config/client", "mattermost.settings"),
        ("/api/v4/users/username/*", "reviewer.account.unanswered"),
    ],
)
async def test_a_call_that_mattermost_refuses_is_a_line(tmp_path: Path, path: str, id: str) -> None:
    """A permission scheme may take away what every Mattermost allows; the other checks go on."""
    async with world(tmp_path) as here:
        refusal = Answer(403, {"id": "api.context.permissions.app_error", "status_code": 403})
        here.chat.fail(path=path, answer=refusal, times=None)
        by_id = await found(here.config(reviewers__alice="a"))
        (finding,) = by_id[id]
        assert finding.status == "failure"
        assert "403 api.context.permissions.app_error" in finding.message


async def test_calls_that_are_lost_are_lines(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.chat.fail(path="/api/v4/teams/name/*", times=None)
        here.auth.faults.fail("SubmitAccessReview", grpc.StatusCode.UNAVAILABLE, "away", times=9)
        by_id = await found(deciding(here, "reviewer"))
        assert by_id["recipient.server_error"][0].message == "The server answered 502."
        assert [one.subject for one in by_id["reviewer.rights.unavailable"]] == [
            "alice@example.com",
            "ivan@example.com",
        ]


@pytest.mark.parametrize(("version", "id"), [("5.30.1", "mattermost.version.old"), ("", "mattermost.version.unknown")])
async def test_a_mattermost_that_was_never_tried(tmp_path: Path, version: str, id: str) -> None:
    async with world(tmp_path) as here:
        here.chat.configure(Version=version)
        assert (await found(here.config()))[id][0].status == "warning"


async def test_without_a_map_everybody_with_credentials_is_a_reviewer(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        deciding(here, "reviewer")
        here.chat.configure(RequireEmailVerification="true")
        config = here.config(
            reviews__submit_as="reviewer", reviews__identities=str(tmp_path / "reviewers"), reviews__identity="email"
        )
        assert [one.subject for one in (await found(config))["reviewer.rights"]] == [
            "alice@example.com",
            "ivan@example.com",
        ]


async def test_hidden_addresses_matter_where_people_are_found_by_them(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        here.chat.configure(ShowEmailAddress="false")
        by_id = await found(here.config(mattermost__recipients='["alice@example.com"]'))
        assert by_id["mattermost.email_addresses"][0].status == "warning"
        golden(by_id["recipient.forbidden"][0].message)
        assert "mattermost.email_addresses" not in await found(here.config(mattermost__suggested_reviewers="off"))


async def test_requesters_are_a_warning_at_most(tmp_path: Path, golden: Golden) -> None:
    """People leave; one of them must not stop a roll-out. A line reads either way, and one reading is enough."""
    async with world(tmp_path) as here:
        by_id = await found(
            here.config(
                mattermost__notify_requester="true",
                requesters__bob="bob@corp.example.com",
                requesters__gone="gone@x.example",
            )
        )
        assert [one.subject for one in by_id["requester"]] == ["@bob"]
        (finding,) = by_id["requester.not_found"]
        golden(to_lines(finding))


async def test_a_pasted_link_gets_the_name_to_write(tmp_path: Path, golden: Golden) -> None:
    """What people have at hand is the address bar."""
    async with world(tmp_path) as here:
        link = f"{here.chat.url}/ops/channels/access-requests"
        told = await read(here.config(mattermost__recipients=f'["{link}"]'))
        golden(told.splitlines())


async def test_a_test_message_is_sent_only_when_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        (finding,) = (await found(here.config(), "ops/access-requests"))["mattermost.send_test"]
        (post,) = here.cards()
        assert finding.message == f"The test message stands at {here.chat.url}/_redirect/pl/{post.id}"
        assert "sidecar check --send-test" in post.message
        (finding,) = (await found(here.config(), "@nobody"))["mattermost.send_test"]
        assert finding.message == "The test message was not sent: @nobody: there is no such user."


# Decisions


async def test_reviewers_credentials_and_accounts_are_well(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path) as here:
        by_id = await found(deciding(here, "reviewer"))
        golden([one.message for one in by_id["reviewer.rights"]])
        assert [one.subject for one in by_id["reviewer.account"]] == ["@alice", "@ivan"]


async def test_each_thing_wrong_with_reviewers_has_its_sentence(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        config = deciding(here, "reviewer")
        folder = tmp_path / "reviewers"
        (folder / "alice@example.com.key").chmod(0o640)
        here.auth.write_credentials(folder, "bob@example.com", name="ivan@example.com")
        here.chat.rename(here.alice, "alice.s")
        here.chat.deactivate(here.ivan)
        by_id = await found(config)
        first, second = by_id["reviewer.credential.refused"]
        assert first.message == "Others may read alice@example.com.key: its mode must be 0600."
        assert first.fix == f"chmod 600 {folder}/alice@example.com.key"
        assert second.message == "The certificate in ivan@example.com.crt is not ivan@example.com's."
        assert "tctl auth sign --format=tls --user=ivan@example.com" in second.fix
        (renamed,) = by_id["reviewer.account.renamed"]
        assert renamed.fix == f'"alice.s" = {{ id = "{here.alice.id}", user = "alice@example.com" }}'
        assert by_id["reviewer.account.deactivated"][0].subject == "@ivan"


async def test_a_reviewer_without_rights_or_with_a_second_factor(tmp_path: Path) -> None:
    """Teleport's own words, before a decision is lost on them."""
    async with world(tmp_path, version="16.0.0") as here:
        config = deciding(here, "reviewer")
        here.auth.add_role("reviewer")
        (first, _) = (await found(config))["reviewer.rights.not_allowed"]
        assert first.message == 'Teleport would refuse: user "alice@example.com" cannot submit reviews.'
        here.auth.add_role("reviewer", review_roles=["dbadmin"])
        here.auth.mfa_required = True
        here.auth.write_credentials(
            tmp_path / "reviewers", "alice@example.com", name="alice@example.com", impersonator=""
        )
        (mfa,) = (await found(config))["reviewer.rights.mfa_required"]
        assert mfa.subject == "alice@example.com"
        assert mfa.fix.startswith("Sign the credentials by tctl auth sign on the Auth Service host itself")


async def test_credentials_that_nobody_needs_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        config = deciding(here, "reviewer")
        here.auth.write_credentials(tmp_path / "reviewers", "bob@example.com", name="bob@example.com")
        (unused,) = (await found(config))["reviews.identities.unused"]
        assert unused.message == "It holds credentials of bob@example.com, whom [reviewers] does not name."
        by_id = await found(deciding(here, "reviewer", reviews__identities=str(tmp_path / "nowhere")))
        assert (
            by_id["reviews.identities"][0].message == f"{tmp_path}/nowhere cannot be read: No such file or directory."
        )
        assert len(by_id["reviewer.credential.refused"]) == 2


async def test_a_certificate_that_ends_soon(tmp_path: Path) -> None:
    """By its own life: one of half a day that was just signed asks for nobody."""
    async with world(tmp_path) as here:
        config = deciding(here, "reviewer")
        signed = dt.datetime.now(dt.UTC) - dt.timedelta(days=360)
        for user, days in (("alice@example.com", 361), ("ivan@example.com", 365)):
            ends = signed + dt.timedelta(days=days, hours=1)
            here.auth.pki.write_credentials(
                tmp_path / "reviewers", user, ["reviewer"], name=user, not_before=signed, not_after=ends
            )
        messages = [one.message for one in (await found(config))["reviewer.credential.expires_soon"]]
        assert messages == ["The certificate expires in 24 hours.", "The certificate expires in 5 days."]
        here.auth.write_credentials(tmp_path / "reviewers", "ivan@example.com", name="ivan@example.com")
        (ok,) = (await found(config))["reviewer.credential"]
        assert ok.subject == "ivan@example.com"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((True, {}), "Ping says AdvancedAccessWorkflows (feature 7)."),
        ((False, {"AccessRequests": True}), "Ping names an enabled entitlement (field 35)."),
    ],
)
async def test_state_is_refused_where_teleport_has_reviews(
    tmp_path: Path, flags: tuple[bool, dict[str, bool]], said: str
) -> None:
    async with world(tmp_path, version="18.0.0") as here:
        here.auth.advanced_workflows, here.auth.entitlements = flags
        (finding,) = (await found(deciding(here, "state")))["reviews.state.edition"]
        assert finding.status == "failure"
        assert finding.message.endswith(said)


async def test_state_needs_the_verb_update(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.auth.advanced_workflows = False
        by_id = await found(deciding(here, "state"))
        assert by_id["reviews.state.edition"][0].status == "ok"
        (finding,) = by_id["teleport.rights.state.not_allowed"]
        assert finding.fix.endswith("  - resources: [access_request]\n    verbs: [list, read, update]")


async def test_a_community_edition_takes_no_reviews(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.auth.advanced_workflows = False
        assert (await found(deciding(here, "reviewer")))["reviews.edition"][0].status == "warning"


async def test_on_behalf_needs_its_version_and_its_right(tmp_path: Path, golden: Golden) -> None:
    async with world(tmp_path, version="16.0.0") as here:
        by_id = await found(deciding(here, "on_behalf"))
        golden(by_id["reviews.on_behalf.version"][0].message)
        assert "reviewer.rights" not in by_id
    async with world(tmp_path, version="18.11.0") as here:
        here.auth.add_role(
            "access-plugin",
            rules={REQUEST: ("list", "read"), PLUGIN_DATA: ("update",)},
            submit_for_users=["alice@example.com"],
        )
        by_id = await found(deciding(here, "on_behalf"))
        assert [one.subject for one in by_id["reviewer.rights"]] == ["alice@example.com"]
        (finding,) = by_id["reviewer.rights.not_allowed"]
        assert finding.fix.endswith("submit_for_users: [ivan@example.com]")


async def test_identity_by_email_is_refused_where_addresses_prove_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        config = deciding(here, "reviewer", reviews__identity="email")
        (finding,) = (await found(config))["reviews.identity.unsafe"]
        assert finding.message.startswith("Anybody can give themselves a reviewer's address")
        here.chat.configure(RequireEmailVerification="true")
        assert (await found(config))["reviews.identity"][0].status == "ok"


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
