"""The three pages over real sockets: honest answers, and no client that can take the listener down.

Charter: port 0 on the loopback, every test under the suite's own limit, the client decides when it goes away.
"""

from __future__ import annotations

import functools
import json
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from sidecar import cli, endpoints
from sidecar.errors import ConfigError
from sidecar.metrics import Metrics
from tests.tree import ROOT
from tests.world import process


class State:
    """What the pages are made of, for a test to change."""

    def __init__(self) -> None:
        self.ready = False
        self.token = ""

    def readiness(self) -> tuple[bool, Mapping[str, object]]:
        return self.ready, {"ready": self.ready, "links": {}, "draining": False}


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def address(nursery: trio.Nursery, state: State) -> str:
    """Serve, and return "host:port"."""
    return await start(nursery, state)


async def start(
    nursery: trio.Nursery,
    state: State,
    *,
    ssl_context: ssl.SSLContext | None = None,
    bearer_token: Callable[[], str] | None = None,
) -> str:
    pages = endpoints.Pages(Metrics().generate, state.readiness, bearer_token)
    serve = functools.partial(endpoints.serve, ("127.0.0.1", 0), pages, ssl_context=ssl_context)
    address: str = await nursery.start(serve)
    return address


async def connect(address: str) -> trio.SocketStream:
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def ask(address: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, return status, headers and body of the answer."""
    async with await connect(address) as stream:
        await stream.send_all(request)
        return parse(await read_all(stream))


def parse(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


async def test_healthz_answers_while_the_loop_turns(address: str) -> None:
    status, headers, body = await ask(address, get("/healthz"))
    assert (status, body) == (200, b"ok\n")
    assert headers["connection"] == "close"


async def test_readyz_tells_the_truth_of_the_moment(address: str, state: State) -> None:
    status, headers, body = await ask(address, get("/readyz"))
    assert (status, headers["content-type"]) == (503, "application/json")
    assert json.loads(body) == {"ready": False, "links": {}, "draining": False}
    state.ready = True
    status, _, body = await ask(address, get("/readyz?verbose"))
    assert (status, json.loads(body)["ready"]) == (200, True)


async def test_metrics_are_what_prometheus_reads(address: str) -> None:
    status, headers, body = await ask(address, get("/metrics", "Accept: */*"))
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'teleport_mattermost_link_up{link="teleport"} 0.0\n' in body
    assert int(headers["content-length"]) == len(body)


async def test_head_is_get_without_the_body(address: str) -> None:
    status, headers, body = await ask(address, get("/healthz", method="HEAD"))
    assert (status, headers["content-length"], body) == (200, "3", b"")


@pytest.mark.parametrize("path", ["/", "/healthz/", "/metrics/../etc", "//healthz", "*"])
async def test_anything_else_is_404(address: str, path: str) -> None:
    assert (await ask(address, get(path)))[0] == 404


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS", "PUT"])
async def test_other_methods_are_405(address: str, method: str) -> None:
    status, headers, _ = await ask(address, get("/metrics", "Content-Length: 0", method=method))
    assert (status, headers["allow"]) == (405, "get, head")


async def test_a_body_does_not_eat_the_answer(address: str) -> None:
    """A client that is still sending when it is answered reads the answer, not a reset."""
    body = b"x" * 200_000
    request = get("/healthz", f"Content-Length: {len(body)}", method="POST") + body
    assert (await ask(address, request))[0] == 405


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (get("/healthz", "X: " + "y" * 9000), 431),
        (b"GET /" + b"z" * 20_000, 431),
    ],
    ids=["tls", "no host", "big header", "endless target"],
)
async def test_what_is_no_request_is_told_so(address: str, request_: bytes, status: int) -> None:
    assert (await ask(address, request_))[0] == status


async def test_one_request_a_connection(address: str) -> None:
    """Nobody holds a connection by asking again and again."""
    async with await connect(address) as stream:
        await stream.send_all(get("/healthz") + get("/healthz"))
        assert (await read_all(stream)).count(b"HTTP/1.1 200") == 1


async def test_a_slow_client_is_cut(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte now and then does not renew the deadline, for it is on the whole request."""
    monkeypatch.setattr(endpoints, "REQUEST_SECONDS", 0.05)
    async with await connect(address) as stream:
        await stream.send_all(b"G")
        assert await stream.receive_some() == b""


async def test_a_client_that_never_reads_is_cut(
    nursery: trio.Nursery, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer larger than all buffers, and nobody who takes it: the deadline ends that too."""
    monkeypatch.setattr(endpoints, "REQUEST_SECONDS", 0.1)
    ended = trio.Event()
    connections = endpoints._Connections(endpoints.Pages(lambda: b"x" * 50_000_000, state.readiness))

    async def handle(stream: trio.SocketStream) -> None:
        await connections.handle(stream)
        ended.set()

    listeners: list[trio.SocketListener] = await nursery.start(trio.serve_tcp, handle, 0)
    async with await trio.testing.open_stream_to_socket_listener(listeners[0]) as stream:
        await stream.send_all(get("/metrics"))
        await ended.wait()
    assert connections._open == {}
    nursery.cancel_scope.cancel()


async def test_clients_that_go_away_are_nobodys_error(address: str) -> None:
    for request in (b"", b"GET /he", get("/metrics")):
        stream = await connect(address)
        await stream.send_all(request)
        await trio.aclose_forcefully(stream)
    assert (await ask(address, get("/healthz")))[0] == 200


async def test_idle_connections_cannot_starve_the_health_check(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit the oldest makes room, so whoever asks now is answered."""
    monkeypatch.setattr(endpoints, "MAX_CONNECTIONS", 3)
    idle = [await connect(address) for _ in range(5)]
    assert (await ask(address, get("/healthz")))[0] == 200
    for stream in idle[:3]:
        assert await stream.receive_some() == b""
    for stream in idle[3:]:
        await stream.send_all(get("/healthz"))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
    for stream in idle:
        await stream.aclose()


async def test_bearer_token_guards_the_metrics_alone(nursery: trio.Nursery, state: State) -> None:
    """The token is asked for each time, as its file may change; without a readable one nobody scrapes."""
    address = await start(nursery, state, bearer_token=lambda: state.token)
    right = get("/metrics", "Authorization: bearer s3cret")
    assert (await ask(address, right))[0] == 401
    assert (await ask(address, get("/metrics", "Authorization: Bearer ")))[0] == 401
    state.token = "s3cret"
    assert (await ask(address, right))[0] == 200
    for wrong in ("Bearer s3cres", "Bearer", "Basic s3cret", "s3cret", "Bearer s3cret s3cret"):
        status, headers, body = await ask(address, get("/metrics", f"Authorization: {wrong}"))
        assert (status, headers["www-authenticate"]) == (401, "bearer")
        assert b"s3cret" not in body
    assert (await ask(address, get("/metrics")))[0] == 401
    assert (await ask(address, get("/healthz")))[0] == 200
    assert (await ask(address, get("/readyz")))[0] == 503


async def test_a_token_file_that_is_lost_is_said_once(
    nursery: trio.Nursery, state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every scrape is refused then, which looks from outside like a wrong token in Prometheus."""
    path = tmp_path / "scrape"
    address = await start(nursery, state, bearer_token=endpoints.BearerToken(path).now)
    right = get("/metrics", "Authorization: Bearer s3cret")
    for content, status, lines in ((None, 401, 1), (None, 401, 1), ("s3cret\n", 200, 1), (" ", 401, 2)):
        if content is not None:
            path.write_text(content)
        assert (await ask(address, right))[0] == status
        assert len(caplog.records) == lines
    first, second = caplog.records
    assert (first.levelname, first.getMessage()) == ("WARNING", "endpoints.locked")
    assert [line.__dict__["detail"] for line in (first, second)] == [
        f"endpoints.bearer_token_file: {path} {problem}; until then nobody reads /metrics"
        for problem in ("cannot be read: No such file or directory", "is empty")
    ]


def test_a_token_file_that_is_not_there_at_the_start_is_a_wrong_configuration(tmp_path: Path) -> None:
    settings = {
        "mattermost.url": "http://127.0.0.1:9",
        "mattermost.token_file": "/nowhere",
        "mattermost.recipients": "ops/x",
        "endpoints.listen": "127.0.0.1:0",
        "endpoints.bearer_token_file": str(tmp_path),
    }
    with process(settings) as child:
        _, said = child.communicate(timeout=20)
        assert child.returncode == cli.USAGE
    assert said.splitlines()[-2:] == [
        "configuration: 1 problem",
        f"  endpoints.bearer_token_file: {tmp_path} cannot be read: Is a directory",
    ]


async def test_pages_over_tls(nursery: trio.Nursery, state: State, ca: trustme.CA) -> None:
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    ca.issue_cert("localhost").configure_cert(server)
    ca.configure_trust(client)
    address = await start(nursery, state, ssl_context=server)
    plain = await connect(address)
    stream = trio.SSLStream(plain, client, server_hostname="localhost", https_compatible=True)
    await stream.send_all(get("/healthz"))
    status, headers, _ = parse(bytes(await stream.receive_some()))
    assert (status, headers["content-length"]) == (200, "3")
    await stream.aclose()
    assert b"HTTP/1.1" not in await _speak_plainly(address)


async def _speak_plainly(address: str) -> bytes:
    async with await connect(address) as stream:
        await stream.send_all(get("/healthz"))
        return await read_all(stream)


async def test_an_address_in_use_is_a_sentence(address: str, state: State) -> None:
    host, _, port = address.rpartition(":")
    with pytest.raises(ConfigError, match=rf"endpoints\.listen: {address} cannot be bound: Address already in use"):
        await endpoints.serve((host, int(port)), endpoints.Pages(bytes, state.readiness))


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid", "a..b"])
async def test_an_address_of_somebody_else_is_a_sentence(host: str, state: State) -> None:
    with pytest.raises(ConfigError, match=r"cannot be bound: .+"):
        await endpoints.serve((host, 0), endpoints.Pages(bytes, state.readiness))


@pytest.mark.parametrize(("descriptors", "connections"), [("8", "2"), ("64", "8"), ("1024", "64")])
def test_connections_leave_descriptors_for_the_links(descriptors: str, connections: str) -> None:
    show = f"{sys.executable} -c 'from sidecar import endpoints; print(endpoints.MAX_CONNECTIONS)'"
    done = subprocess.run(
        ["/bin/sh", "-c", f"ulimit -n {descriptors}; {show}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == f"{connections}\n"


async def test_the_health_command_asks_the_running_sidecar(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://{address}"
    assert await trio.to_thread.run_sync(cli.main, ["health", "--url", url]) == 0
    assert await trio.to_thread.run_sync(cli.main, ["health", "--url", f"{url}/readyz"]) == 1
    assert capsys.readouterr().out == f"healthy\nunhealthy: {url}/readyz answered 503\n"


async def test_the_health_command_where_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/healthz"
        assert await trio.to_thread.run_sync(cli.main, ["health", "--url", url]) == 1
    assert capsys.readouterr().out == f"unhealthy: {url}: [Errno 111] Connection refused\n"


async def test_the_health_command_over_tls(
    nursery: trio.Nursery, state: State, ca: trustme.CA, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("metrics.example.com").configure_cert(server)
    address = await start(nursery, state, ssl_context=server)
    assert await trio.to_thread.run_sync(cli.main, ["health", "--url", f"https://{address}"]) == 0
    assert capsys.readouterr().out == "healthy\n"
