"""Commands, flags and exit codes are an interface: unit files, containers and scripts depend on them."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from sidecar import __version__, cli, health
from sidecar.config import Config
from sidecar.errors import ConfigError

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "testdata"
GOOD = str(DATA / "official-v18.toml")
DEFAULT = cli.DEFAULT_CONFIG
Calls = list[dict[str, object]]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, clean_log: logging.Logger) -> Callable[[int | Exception], Calls]:
    """Put a program in the place of `sidecar.app` that returns or raises what it is told, and keeps its arguments."""
    monkeypatch.delenv("TELEPORT_PLUGIN_FAIL_FAST", raising=False)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", Path("nowhere"))

    def install(outcome: int | Exception) -> Calls:
        calls: Calls = []

        async def run(
            config: Config,
            *,
            fail_fast: bool,
            reload: Callable[[], Config],
            tell: Callable[[Config], None],
            manager: Callable[[str], None],
        ) -> int:
            await trio.lowlevel.checkpoint()
            level = logging.getLogger().level
            calls.append({"config": config, "fail_fast": fail_fast, "level": level, "reloaded": reload()})
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        module = types.ModuleType("sidecar.app")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sidecar.app", module)
        return calls

    return install


@pytest.mark.parametrize("code", [0, 3, 130, 143])
def test_run_exits_with_what_the_program_returns(app: Callable[[int | Exception], Calls], code: int) -> None:
    calls = app(code)
    assert cli.main(["run", "--config", GOOD, "--set", "teleport.plugin_name=other"]) == code
    config = calls[0]["config"]
    assert isinstance(config, Config)
    assert config.teleport.plugin_name == "other"
    assert calls[0]["fail_fast"] is False


def test_reloading_reads_the_same_layers_again(app: Callable[[int | Exception], Calls]) -> None:
    calls = app(0)
    cli.main(["run", "--config", GOOD, "--set", "teleport.plugin_name=other"])
    assert calls[0]["reloaded"] == calls[0]["config"]


def test_start_is_run_as_the_official_unit_file_calls_it(app: Callable[[int | Exception], Calls]) -> None:
    calls = app(0)
    assert cli.main(["start", "-d", "-c", str(DATA / "official-v9.toml")]) == 0
    assert calls[0]["level"] == logging.DEBUG


@pytest.mark.parametrize(("value", "expected"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_fail_fast_by_the_official_variable(
    app: Callable[[int | Exception], Calls], monkeypatch: pytest.MonkeyPatch, value: str, *, expected: bool
) -> None:
    calls = app(0)
    monkeypatch.setenv("TELEPORT_PLUGIN_FAIL_FAST", value)
    cli.main(["run", "-c", GOOD])
    assert calls[0]["fail_fast"] is expected


def test_fail_fast_by_flag(app: Callable[[int | Exception], Calls]) -> None:
    calls = app(3)
    assert cli.main(["run", "-c", GOOD, "--fail-fast"]) == 3
    assert calls[0]["fail_fast"] is True


def test_settings_from_the_environment(
    app: Callable[[int | Exception], Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may have no file at all."""
    calls = app(0)
    monkeypatch.setenv("SIDECAR_MATTERMOST__URL", "https://chat.example.com")
    monkeypatch.setenv("SIDECAR_MATTERMOST__TOKEN_FILE", "/run/secrets/token")
    monkeypatch.setenv("SIDECAR_MATTERMOST__RECIPIENTS", "ops/requests,dba/requests")
    assert cli.main(["run"]) == 0
    config = calls[0]["config"]
    assert isinstance(config, Config)
    assert config.role_to_recipients == {"*": ("ops/requests", "dba/requests")}


def test_the_official_place_of_the_file_is_the_default(
    app: Callable[[int | Exception], Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path("/etc/teleport-mattermost.toml") == DEFAULT
    app(0)
    monkeypatch.setattr(cli, "DEFAULT_CONFIG", Path(GOOD))
    assert cli.main(["run"]) == 0


def told(capfd: pytest.CaptureFixture[str]) -> str:
    """Return standard error, once all of the log is there."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    return capfd.readouterr().err


def test_notices_are_one_line_each(app: Callable[[int | Exception], Calls], capfd: pytest.CaptureFixture[str]) -> None:
    app(0)
    cli.main(["run", "-c", str(DATA / "official-v0.toml")])
    lines = [line for line in told(capfd).splitlines() if "config.noticed" in line]
    assert len(lines) == 7


@pytest.fixture
def decided(tmp_path: Path) -> Path:
    """A configuration by which Alice decides, who is named by her username."""
    path = tmp_path / "config.toml"
    people = f'[reviews]\nsubmit_as = "reviewer"\nidentities = "{tmp_path}/reviewers"\n[reviewers]\nalice = "a"\n'
    path.write_text(Path(GOOD).read_text() + people)
    return path


def test_credentials_of_reviewers_that_are_not_there_are_a_notice(
    app: Callable[[int | Exception], Calls], capfd: pytest.CaptureFixture[str], decided: Path, tmp_path: Path
) -> None:
    """With the path and why: nobody could review, and only their first decision would tell."""
    app(0)
    decided.write_text(decided.read_text().replace('"a"', f'{{ id = "{"a" * 26}", user = "a" }}'))

    def noticed() -> list[str]:
        assert cli.main(["run", "-c", str(decided), "--set", "log.format=json"]) == 0
        lines = map(json.loads, told(capfd).splitlines())
        return [
            line["detail"] for line in lines if line["event"] == "config.noticed" and "identities" in line["detail"]
        ]

    folder = tmp_path / "reviewers"
    assert noticed() == [f"reviews.identities: {folder} cannot be read: No such file or directory"]
    folder.mkdir()
    assert noticed() == [f"reviews.identities: {folder} holds no certificate, such as alice@example.com.crt"]
    (folder / "a.crt").touch()
    assert noticed() == []


def test_every_problem_of_the_configuration_is_printed(
    app: Callable[[int | Exception], Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "-c", str(DATA / "invalid-every-kind.toml")]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"configuration: 12 problems in {DATA / 'invalid-every-kind.toml'}"
    assert len(rest) == 12


def test_without_any_configuration_the_first_problem_is_that(
    app: Callable[[int | Exception], Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run"]) == 2
    assert "no --config FILE was given" in capsys.readouterr().err.splitlines()[1]


def test_a_configuration_error_of_the_running_program(
    app: Callable[[int | Exception], Calls], capfd: pytest.CaptureFixture[str]
) -> None:
    """An address in use is found inside of nurseries; it is a sentence and 2 all the same."""
    app(ExceptionGroup("nursery", [ExceptionGroup("nursery", [ConfigError(["endpoints.listen: in use"])])]))
    assert cli.main(["run", "-c", GOOD]) == 2
    assert capfd.readouterr().err.endswith(f"configuration: 1 problem in {GOOD}\n  endpoints.listen: in use\n")


def test_a_bug_is_1_with_its_traceback(
    app: Callable[[int | Exception], Calls], capfd: pytest.CaptureFixture[str]
) -> None:
    app(ExceptionGroup("nursery", [ConfigError(["x"]), ZeroDivisionError("told")]))
    assert cli.main(["run", "-c", GOOD]) == 1
    err = told(capfd)
    assert "process.failed" in err
    assert "ZeroDivisionError: told" in err


def test_interrupted_before_the_program_listens(
    app: Callable[[int | Exception], Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_version", interrupt)
    assert cli.main(["version"]) == 130


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run", "--set", "no-equals-sign"],
        ["run", "--unknown"],
        ["health", "--url"],
        ["check", "--json", "--pin"],
        ["configure", "--rbac", "all"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_configure_prints_a_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from sidecar.config import load

    assert cli.main(["configure"]) == 0
    path = tmp_path / "config.toml"
    path.write_text(capsys.readouterr().out)
    assert load(path).mattermost.url == "https://mattermost.example.com"


def test_configure_prints_roles(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a mode for the way that decides nothing, which is the default."""
    from sidecar.rbac import render

    assert cli.main(["configure", "--rbac"]) == 0
    assert capsys.readouterr().out == render("none")
    assert cli.main(["configure", "--rbac", "plugin"]) == 0
    assert capsys.readouterr().out == render("plugin")


def test_configure_prints_examples_and_the_bot(capsys: pytest.CaptureFixture[str]) -> None:
    from sidecar.rbac import render_bot, render_example

    assert cli.main(["configure", "--example"]) == 0
    assert capsys.readouterr().out == render_example("none")
    assert cli.main(["configure", "--rbac", "state", "--example"]) == 0
    assert capsys.readouterr().out == render_example("state")
    assert cli.main(["configure", "--for", "tbot"]) == 0
    assert capsys.readouterr().out == render_bot()
    assert cli.main(["configure", "--for", "tbot", "--rbac", "plugin"]) == 2


@pytest.mark.parametrize("words", ["configure", "configure --rbac", "version", "health --url http://127.0.0.1:9"])
def test_output_that_cannot_be_written_is_one_line(words: str) -> None:
    command = [sys.executable, "-m", "sidecar", *words.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, b"standard output: No space left on device\n")


def test_the_version_as_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"sidecar {__version__}\n"


def test_who_has_read_enough_is_no_failure() -> None:
    """As `sidecar configure | head` closes its end."""
    command = f"{sys.executable} -m sidecar configure --rbac; echo $? >&2"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(["/bin/sh", "-c", command], stdout=writer, stderr=subprocess.PIPE, check=False, cwd=ROOT)
    os.close(writer)
    assert done.stderr == b"0\n"


def test_check_with_a_wrong_configuration_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    """For a script, too, which reads JSON whatever happens."""
    wrong = str(DATA / "invalid-every-kind.toml")
    assert cli.main(["check", "-c", wrong]) == 2
    assert capsys.readouterr().err.startswith(f"configuration: 12 problems in {wrong}\n")
    assert cli.main(["check", "-c", wrong, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert len(document["checks"]) == 12
    assert {one["id"] for one in document["checks"]} == {"config"}


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let the check find what it is told; returns the recipients of test messages."""
    from sidecar import check

    def install(*findings: check.Finding, accounts: tuple[check.Account, ...] = ()) -> list[str]:
        asked: list[str] = []

        async def run(_: Config, *, send_test: str) -> tuple[list[check.Finding], list[check.Account]]:
            await trio.lowlevel.checkpoint()
            asked.append(send_test)
            return list(findings), list(accounts)

        monkeypatch.setattr(check, "run", run)
        return asked

    return install


def test_check_prints_lines_and_is_0_with_warnings(
    checked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    from sidecar.check import Finding

    asked = checked(Finding("a", "ok", "one", "fine."), Finding("b", "warning", "two", "look.", "mend"))
    assert cli.main(["check", "-c", GOOD, "--send-test", "@alice"]) == 0
    assert capsys.readouterr().out == (
        "ok      one: fine.\nwarning two: look.\n        mend\n1 ok, 1 warning, 0 failures: the sidecar can run.\n"
    )
    assert asked == ["@alice"]


def test_check_is_3_with_a_failure(checked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    from sidecar.check import Finding

    asked = checked(Finding("a", "failure", "one", "broken.", "mend"))
    assert cli.main(["check", "-c", GOOD, "--json"]) == 3
    document = {"id": "a", "status": "failure", "subject": "one", "message": "broken.", "fix": "mend"}
    assert json.loads(capsys.readouterr().out) == {"ok": False, "checks": [document]}
    assert asked == [""]


def test_check_tells_who_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from sidecar import check

    async def who(_: Config, roles: tuple[str, ...], user: str) -> tuple[list[check.Finding], list[check.Account]]:
        await trio.lowlevel.checkpoint()
        return [check.Finding("told", "ok", f"{roles} {user}", "a rule.")], []

    monkeypatch.setattr(check, "who_is_told", who)
    assert cli.main(["check", "-c", GOOD, "--who-is-told", "dbadmin, sre", "--user", "bob"]) == 0
    assert capsys.readouterr().out == "ok      ('dbadmin', 'sre') bob: a rule.\n"
    with pytest.raises(SystemExit):
        cli.main(["check", "-c", GOOD, "--who-is-told", " , "])


def test_check_pin_prints_the_table(checked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    from sidecar.check import Account

    checked(accounts=(Account("alice", "alice@example.com", ""),))
    assert cli.main(["check", "-c", GOOD, "--pin"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "",
        "[reviewers]",
        '# alice: no such user in Mattermost, or not asked; was for "alice@example.com"',
    ]


def test_check_pin_reads_names_that_run_refuses(
    checked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], decided: Path
) -> None:
    from sidecar.check import Account

    checked(accounts=(Account("alice", "a", ""),))
    assert cli.main(["check", "-c", str(decided)]) == 2
    assert "`sidecar check --pin` prints the table" in capsys.readouterr().err
    assert cli.main(["check", "-c", str(decided), "--pin"]) == 0
    assert "[reviewers]" in capsys.readouterr().out


def test_version_tells_what_a_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"sidecar {__version__} (Python 3.")
    assert "grpcio 1." in out


@pytest.mark.parametrize("keep", [False, True])
def test_demo_is_the_simulators(monkeypatch: pytest.MonkeyPatch, *, keep: bool) -> None:
    asked: list[bool] = []

    def main(keep: bool) -> int:  # noqa: FBT001 - as the demo has it
        asked.append(keep)
        return 1

    module = types.ModuleType("sidecar.simulator.demo.play")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sidecar.simulator.demo.play", module)
    assert cli.main(["demo", "--keep"] if keep else ["demo"]) == 1
    assert asked == [keep]


def test_demo_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> types.ModuleType:
        raise ModuleNotFoundError(name, name="cryptography.x509")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main(["demo"]) == 2
    out = capsys.readouterr()
    assert "pip install cryptography" in out.err
    assert "teleport-mattermost-sidecar" not in out.err, "anybody may publish under this name"


def test_demo_with_another_package_missing_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> types.ModuleType:
        raise ModuleNotFoundError(name, name="sidecar.simulator.demo.play")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert cli.main(["demo"]) == 1


def test_help_spells_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    assert "an embedded Teleport and Mattermost." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("listen", "tls", "url"),
    [
        ("127.0.0.1:9464", False, "http://127.0.0.1:9464/healthz"),
        ("0.0.0.0:80", False, "http://127.0.0.1:80/healthz"),
        (":80", False, "http://127.0.0.1:80/healthz"),
        ("[::]:80", True, "https://[::1]:80/healthz"),
    ],
)
def test_health_asks_where_the_sidecar_listens(listen: str, url: str, *, tls: bool) -> None:
    from sidecar.config import load

    flags = {"endpoints.listen": listen} | ({"endpoints.tls_crt": "a", "endpoints.tls_key": "b"} if tls else {})
    assert health.own_url(load(DATA / "official-v18.toml", {}, flags)) == url


@pytest.mark.parametrize(
    ("first", "config", "settings"),
    [
        ("python\0-m\0sidecar\0run\0--config\0/etc/x.toml\0", Path("/etc/x.toml"), []),
        ("/init\0--\0python\0-m\0sidecar\0start\0-c\0/x\0--set\0a.b=1\0", Path("/x"), [("a.b", "1")]),
        ("python\0-m\0sidecar\0run\0", None, []),
    ],
)
def test_health_in_a_container_asks_for_what_runs_there(
    first: str, config: Path | None, settings: list[tuple[str, str]]
) -> None:
    options = cli._running(first)
    assert options is not None
    assert (options.config, options.set) == (config, settings)


@pytest.mark.parametrize("first", ["/sbin/init\0", "sh\0-c\0sidecar\0", ""])
def test_health_elsewhere_takes_nothing_from_the_first_process(first: str) -> None:
    assert cli._running(first) is None


@pytest.mark.parametrize("url", ["ftp://localhost", "localhost:9464", "http://localhost:port", "http://"])
def test_health_refuses_what_is_no_address(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["health", "--url", url]) == 2
    assert "is not an http:// or https:// address" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["version"], ["configure"], ["configure", "--rbac", "state"], ["health", "-c", GOOD]]
)
def test_small_commands_load_nothing_heavy(arguments: list[str]) -> None:
    """A container's health check runs every few seconds for ever."""
    code = (
        "import sys; from sidecar import cli; cli.main(sys.argv[1:]);"
        "print('loaded:', {'trio', 'grpc', 'httpx', 'google', 'prometheus_client'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.endswith("loaded: set()\n")
