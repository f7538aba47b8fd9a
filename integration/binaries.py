"""Servers from their release files, started here on free loopback ports and stopped at the end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import httpx
from cryptography import x509
from cryptography.x509.oid import NameOID

from integration.addresses import LocalFiles, run_tctl
from integration.mattermost import PASSWORD, log_in
from integration.stage import Unavailable
from integration.teleport import TctlError
from sidecar.simulator.teleport.pki import Authority, CredentialFiles, general_name, write_files

_START_SECONDS = 120.0
_TLS_ROUTING_SINCE = 8
_JOIN_TOKEN = "check-join-token-of-the-proxy"  # nobody else can reach it
# Nothing but the loopback is to be spoken to.
_OFFLINE = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "GCE_METADATA_HOST": "127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
}


class Server:
    """A server process with its log; started again with the same command."""

    def __init__(self, command: list[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        self._command, self._folder, self._log = command, folder, log
        self._environment = {**os.environ, **_OFFLINE, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, answers: Callable[[], bool]) -> None:
        """Start it and return when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        give_up = time.monotonic() + _START_SECONDS
        while not answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.stop()
                raise AssertionError(f"{self._command[0]} did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class AuthService(LocalFiles):
    """An Auth Service with a stock certificate, from TELEPORT_BIN: a folder with `teleport` and `tctl`."""

    no_restart = ""

    def __init__(self, folder: Path, storage: Mapping[str, object] = MappingProxyType({"type": "dir"})) -> None:
        super().__init__(folder)
        self.proxy: ProxyService | None = None
        self._bin = Path(os.environ["TELEPORT_BIN"])
        self.addr = f"127.0.0.1:{free_port()}"
        version = run_tctl([str(self._bin / "tctl"), "version"])
        self.major = int(version.partition("v")[2].partition(".")[0])
        self._config = folder / "teleport.yaml"
        config = teleport_config(self.major, self.addr, str(folder / "state"), storage)
        self._config.write_text(json.dumps(config))
        command = [str(self._bin / "teleport"), "start", "-c", str(self._config)]
        self._server = Server(command, folder, folder / "teleport.log", {})
        self.start()

    def add_proxy(self, folder: Path) -> None:
        """Put a Proxy before it."""
        if self.major < _TLS_ROUTING_SINCE:
            raise Unavailable(f"Teleport {self.major} has no TLS routing")
        self.proxy = ProxyService(folder, self._bin / "teleport", self.addr)

    def tctl(self, *arguments: str) -> str:
        return run_tctl([str(self._bin / "tctl"), "-c", str(self._config), *arguments])

    def start(self) -> None:
        self._server.start(self._answers)

    def stop(self) -> None:
        self._server.stop()

    def _answers(self) -> bool:
        try:
            self.tctl("status")
        except TctlError:
            return False
        return True


class ProxyService:
    """A Proxy Service alone, with TLS routing and a certificate of an authority of ours."""

    def __init__(self, folder: Path, binary: Path, auth_addr: str) -> None:
        self.addr = f"127.0.0.1:{free_port()}"
        self.ca_file = folder / "proxy-ca.pem"
        authority = Authority("Web PKI")
        self.ca_file.write_bytes(authority.pem)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        files = write_files(folder, authority.issue(subject, names=[general_name("127.0.0.1")]), b"", name="web")
        config = folder / "proxy.yaml"
        config.write_text(json.dumps(proxy_config(self.addr, auth_addr, str(folder / "proxy-state"), files)))
        self._server = Server(
            [str(binary), "start", "-c", str(config)],
            folder,
            folder / "proxy.log",
            {"SSL_CERT_FILE": str(self.ca_file)},
        )
        self.start()

    def start(self) -> None:
        self._server.start(self._answers)

    def stop(self) -> None:
        self._server.stop()

    def _answers(self) -> bool:
        try:
            url = f"https://{self.addr}/webapi/ping"
            return httpx.get(url, verify=False, trust_env=False, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


class Mattermost:
    """A Mattermost from MATTERMOST_HOME, a folder as its release unpacks, with the PostgreSQL of MATTERMOST_DSN."""

    no_restart = ""

    def __init__(self, folder: Path) -> None:
        home = Path(os.environ["MATTERMOST_HOME"])
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._socket = folder / "local.socket"
        settings = mattermost_settings() | {
            "MM_SERVICESETTINGS_LISTENADDRESS": f"127.0.0.1:{port}",
            "MM_SERVICESETTINGS_SITEURL": self.url,
            "MM_SERVICESETTINGS_ENABLELOCALMODE": "true",
            "MM_SERVICESETTINGS_LOCALMODESOCKETLOCATION": str(self._socket),
            "MM_SQLSETTINGS_DRIVERNAME": "postgres",
            "MM_SQLSETTINGS_DATASOURCE": os.environ["MATTERMOST_DSN"],
            "MM_FILESETTINGS_DIRECTORY": str(folder / "files"),
            "MM_LOGSETTINGS_FILELOCATION": str(folder),
            "MM_PLUGINSETTINGS_DIRECTORY": str(folder / "plugins"),
            "MM_PLUGINSETTINGS_CLIENTDIRECTORY": str(folder / "client"),
        }
        command = [str(home / "bin" / "mattermost"), "server", "-c", str(folder / "mattermost.json")]
        # It looks for i18n/ and templates/ from there.
        self._server = Server(command, home, folder / "mattermost.log", settings)
        self.start()
        self.admin_token = self._become_admin()

    def start(self) -> None:
        self._server.start(lambda: answers_ping(self.url))

    def stop(self) -> None:
        self._server.stop()

    def _become_admin(self) -> str:
        """Use the local socket, which asks for no password: the database may have had its first user long ago."""
        name = f"check-admin-{os.urandom(3).hex()}"
        user = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self._socket)), base_url="http://local/api/v4"
        ) as local:
            made = local.post("/users", json=user).raise_for_status().json()
            roles = {"roles": "system_admin system_user"}
            local.put(f"/users/{made['id']}/roles", json=roles).raise_for_status()
        return log_in(self.url, name)


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers_ping(url: str) -> bool:
    """Say whether a Mattermost is up."""
    try:
        return httpx.get(f"{url}/api/v4/system/ping", trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def teleport_config(
    major: int, listen: str, data: str, storage: Mapping[str, object] = MappingProxyType({"type": "dir"})
) -> dict[str, object]:
    """Describe an Auth Service alone. Newer ones refuse to be without a second factor, which nobody here needs."""
    return {
        **({"version": "v3"} if major >= 10 else {}),
        "teleport": {
            "nodename": "auth1",
            "data_dir": data,
            "log": {"output": "stderr", "severity": "INFO"},
            "storage": dict(storage),
        },
        "auth_service": {
            "enabled": "yes",
            "listen_addr": listen,
            "cluster_name": "check.example.com",
            "authentication": {"type": "local", "second_factor": "off" if major < 10 else "otp"},
            "tokens": [f"proxy:{_JOIN_TOKEN}"],
            **({"proxy_listener_mode": "multiplex"} if major >= _TLS_ROUTING_SINCE else {}),
        },
        "proxy_service": {"enabled": "no"},
        "ssh_service": {"enabled": "no"},
    }


def proxy_config(listen: str, auth_addr: str, data: str, files: CredentialFiles) -> dict[str, object]:
    """Describe a Proxy Service alone, which joins the Auth Service."""
    return {
        "version": "v3",
        "teleport": {
            "nodename": "proxy1",
            "data_dir": data,
            "log": {"output": "stderr", "severity": "INFO"},
            "auth_server": auth_addr,
            "auth_token": _JOIN_TOKEN,
        },
        "auth_service": {"enabled": "no"},
        "ssh_service": {"enabled": "no"},
        "proxy_service": {
            "enabled": "yes",
            "web_listen_addr": listen,
            "public_addr": [listen],
            "https_keypairs": [{"key_file": str(files.key), "cert_file": str(files.crt)}],
        },
    }


def mattermost_settings() -> dict[str, str]:
    """Allow bots and sign-ups; no plugins, no calls to the outside."""
    return {
        "MM_SERVICESETTINGS_ENABLEBOTACCOUNTCREATION": "true",
        "MM_SERVICESETTINGS_ENABLEUSERACCESSTOKENS": "true",
        "MM_SERVICESETTINGS_ENABLESECURITYFIXALERT": "false",
        "MM_SERVICESETTINGS_ENABLELINKPREVIEWS": "false",
        "MM_TEAMSETTINGS_ENABLEOPENSERVER": "true",
        "MM_EMAILSETTINGS_SENDEMAILNOTIFICATIONS": "false",
        "MM_EMAILSETTINGS_SENDPUSHNOTIFICATIONS": "false",
        "MM_PLUGINSETTINGS_ENABLE": "false",
        "MM_PLUGINSETTINGS_AUTOMATICPREPACKAGEDPLUGINS": "false",
        "MM_LOGSETTINGS_ENABLEDIAGNOSTICS": "false",
        "MM_ANNOUNCEMENTSETTINGS_ADMINNOTICESENABLED": "false",
        "MM_ANNOUNCEMENTSETTINGS_USERNOTICESENABLED": "false",
        "MM_RATELIMITSETTINGS_ENABLE": "false",
    }
