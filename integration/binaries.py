"""Servers from their release files, started here on free loopback ports and stopped at the end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from integration.addresses import LocalFiles, run_tctl
from integration.mattermost import PASSWORD, log_in
from integration.teleport import TctlError

_START_SECONDS = 120.0
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
    """An Auth Service alone, with a stock certificate, from TELEPORT_BIN: a folder with `teleport` and `tctl`."""

    no_restart = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._bin = Path(os.environ["TELEPORT_BIN"])
        self.addr = f"127.0.0.1:{free_port()}"
        version = run_tctl([str(self._bin / "tctl"), "version"])
        major = int(version.partition("v")[2].partition(".")[0])
        self._config = folder / "teleport.yaml"
        self._config.write_text(json.dumps(teleport_config(major, self.addr, str(folder / "state"))))
        command = [str(self._bin / "teleport"), "start", "-c", str(self._config)]
        self._server = Server(command, folder, folder / "teleport.log", {})
        self.start()

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


def teleport_config(major: int, listen: str, data: str) -> dict[str, object]:
    """Describe an Auth Service alone. Newer ones refuse to be without a second factor, which nobody here needs."""
    return {
        **({"version": "v3"} if major >= 10 else {}),
        "teleport": {
            "nodename": "auth1",
            "data_dir": data,
            "log": {"output": "stderr", "severity": "INFO"},
            "storage": {"type": "dir"},
        },
        "auth_service": {
            "enabled": "yes",
            "listen_addr": listen,
            "cluster_name": "check.example.com",
            "authentication": {"type": "local", "second_factor": "off" if major < 10 else "otp"},
            "tokens": [],
        },
        "proxy_service": {"enabled": "no"},
        "ssh_service": {"enabled": "no"},
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
