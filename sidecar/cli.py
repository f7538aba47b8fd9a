"""The command line: from arguments to settings to one command.

Rule: the only room that prints, reads the environment or sets the exit code. Each command imports what it needs, so
that `health` and `version` answer at once.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar import __version__
from sidecar.errors import ConfigError, SidecarError

if TYPE_CHECKING:  # here for speed: `version` needs none of it
    from types import FrameType

    from sidecar.config import Config

OK, BUG, USAGE, FAILURE, INTERRUPTED = 0, 1, 2, 3, 130

MODES = ("none", "reviewer", "plugin", "on_behalf", "state")
DEFAULT_CONFIG = Path("/etc/teleport-mattermost.toml")

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 bug, 2 configuration or usage, 3 a check failed."""
    options = _parser().parse_args(_without_aliases(sys.argv[1:] if arguments is None else arguments))
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as exc:
        if problems := _problems(exc):
            count = len(problems)
            where = f" in {options.config}" if getattr(options, "config", None) else ""
            title = f"configuration: {count} problem{'s' * (count != 1)}{where}"
            for handler in logging.getLogger().handlers:
                handler.flush()  # after what the log says, not amid it
            print(title, *map(_line, problems), sep="\n  ", file=sys.stderr)
            return USAGE
        if isinstance(exc, _OutputError):
            print(f"standard output: {exc}", file=sys.stderr)
            return BUG
        logger.exception("process.failed")
        return BUG


def _problems(exc: BaseException) -> list[str]:
    """Return the problems where nothing but the configuration is wrong, also inside the groups of nurseries."""
    if isinstance(exc, BaseExceptionGroup):
        parts = [_problems(one) for one in exc.exceptions]
        return [problem for part in parts for problem in part] if all(parts) else []
    return list(exc.problems) if isinstance(exc, ConfigError) else []


def _line(text: str) -> str:
    """One line, whatever the values in it hold."""
    return "".join(char if char.isprintable() else "?" for char in text)


class _OutputError(Exception):
    """What was to be printed cannot be written."""


def _without_aliases(arguments: Sequence[str]) -> list[str]:
    """`start` is what the official plugin's unit file calls."""
    return ["run", *arguments[1:]] if list(arguments[:1]) == ["start"] else list(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sidecar", description="Teleport access requests in Mattermost.")
    parser.add_argument("--version", action="version", version=f"sidecar {__version__}", help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = _command(commands, "run", _run, "announce access requests until stopped")
    _add_config(run)
    run.add_argument("-d", "--debug", action="store_true", help="log everything")
    run.add_argument("--fail-fast", action="store_true", help="exit 3 when a peer refuses us before the first ready")

    health = _command(
        commands, "health", _health, "ask a running sidecar whether it is healthy, for a container's health check"
    )
    _add_config(health)
    health.add_argument("--url", help="where /healthz is; by default as the configuration says")

    check = _command(commands, "check", _check, "check everything that run needs, and say how to fix it")
    _add_config(check)
    form = check.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument(
        "--pin", action="store_true", help="also print the [reviewers] table with Mattermost user ids, ready to paste"
    )
    check.add_argument(
        "--who-is-told",
        type=_roles,
        metavar="ROLE[,ROLE]",
        help="print instead whom a request for these roles would be told to, and why",
    )
    check.add_argument("--user", default="", metavar="USER", help="with --who-is-told: the Teleport user who asks")
    check.add_argument("--send-test", default="", metavar="RECIPIENT", help="post one test message there")

    configure = _command(commands, "configure", _configure, "print a commented example of the configuration")
    configure.add_argument(
        "--rbac",
        nargs="?",
        const="none",
        choices=MODES,
        metavar="MODE",
        help=f"print instead the sidecar's own Teleport role and user for submit_as = MODE ({', '.join(MODES)})",
    )
    other = configure.add_mutually_exclusive_group()
    other.add_argument(
        "--example", action="store_true", help="print instead example roles: dual authorization for MODE"
    )
    other.add_argument("--for", choices=["tbot"], dest="holder", help="print instead the role and a bot that holds it")
    demo = _command(commands, "demo", _demo, "show the whole story with an embedded Teleport and Mattermost")
    demo.add_argument("--keep", action="store_true", help="keep running until stopped")
    _command(commands, "version", _version, "print the version")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=function)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="SECTION.KEY=VALUE",
        help="set one key, whatever the file and the environment say",
    )


def _roles(text: str) -> tuple[str, ...]:
    roles = tuple(filter(None, (role.strip() for role in text.split(","))))
    if not roles:
        raise argparse.ArgumentTypeError("name a role, or several with commas between them")
    return roles


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError("write it as section.key=value")
    return name.strip(), value


def _load(options: argparse.Namespace, *, pinning: bool = False) -> Config:
    from sidecar.config import load

    path: Path | None = options.config
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    try:
        return load(path, os.environ, dict(options.set), pinning=pinning)
    except ConfigError as exc:
        if path is None:
            raise ConfigError([f"no --config FILE was given, and there is no {DEFAULT_CONFIG}", *exc.problems]) from exc
        raise


def _run(options: argparse.Namespace) -> int:
    # As the first process of a container we would not get SIGTERM at all before trio's handler is in place. And SIGHUP
    # would end us: what it asks for is just being done.
    signal.signal(signal.SIGTERM, _stop_at_once)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # grpcio reads it once, at import; by itself it prints lines that are no events.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR" if options.debug else "NONE")
    config = _load(options)
    tell = functools.partial(_tell, debug=options.debug)
    tell(config)

    import trio

    from sidecar.app import run
    from sidecar.notify import notifier

    # The official plugin's variable, in the words that Go reads as true.
    fail_fast = options.fail_fast or os.environ.get("TELEPORT_PLUGIN_FAIL_FAST", "").lower() in {"1", "t", "true"}
    reload = functools.partial(_load, options)
    manager = notifier(os.environ)
    return trio.run(functools.partial(run, config, fail_fast=fail_fast, reload=reload, tell=tell, manager=manager))


def _tell(config: Config, *, debug: bool) -> None:
    """Set up the log as the configuration says, and log the configuration."""
    from sidecar import log
    from sidecar.config import redacted

    log.setup("DEBUG" if debug else config.log.severity, config.log.format, expected=(SidecarError,))
    logger.info("config.read", extra={"version": __version__, "config": redacted(config)})
    for notice in (*config.notices, *_identity_notices(config)):
        logger.warning("config.noticed", extra={"detail": notice})


def _identity_notices(config: Config) -> list[str]:
    """Nobody could review; `run` starts all the same, for the files may come later."""
    from sidecar.files import reviewer_certificates

    folder = config.reviews.identities
    if config.reviews.submit_as == "reviewer" and folder is not None:
        try:
            reviewer_certificates(folder)
        except ConfigError as exc:
            return exc.problems
    return []


def _stop_at_once(_number: int, _frame: FrameType | None) -> None:
    """Nothing has begun yet, so nothing is left to finish."""
    sys.exit(OK)


def _health(options: argparse.Namespace) -> int:
    import http.client

    from sidecar import health

    if not (options.url or options.config or options.set):
        with suppress(OSError):  # hidden from us, so none of ours
            options = _running(Path("/proc/1/cmdline").read_text(encoding="utf-8", errors="replace")) or options
    url = getattr(options, "url", None) or health.own_url(_load(options))
    connection, path = health.connection(url)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as exc:
        _show(f"unhealthy: {url}: {exc}")
        return BUG
    finally:
        connection.close()
    _show("healthy" if status == 200 else f"unhealthy: {url} answered {status}")
    return OK if status == 200 else BUG


def _running(first: str) -> argparse.Namespace | None:
    """Return the options that a container's first process runs by, for an image's health check cannot name them."""
    words = first.rstrip("\0").split("\0")
    if "sidecar" not in words or not {"run", "start"} & set(words):
        return None
    return _parser().parse_args(_without_aliases(words[words.index("sidecar") + 1 :]))


def _check(options: argparse.Namespace) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import trio

    from sidecar import check

    try:
        config = _load(options, pinning=options.pin)
        if options.who_is_told:
            findings, accounts = trio.run(check.who_is_told, config, options.who_is_told, options.user)
        else:
            findings, accounts = trio.run(functools.partial(check.run, config, send_test=options.send_test))
    except (ConfigError, ExceptionGroup) as exc:
        problems = _problems(exc)
        if not (problems and options.json):
            raise
        fix = "Correct it; sidecar configure prints every key with an example."
        _show(check.to_json([check.failure("config", "configuration", problem, fix) for problem in problems]))
        return USAGE
    if options.json:
        _show(check.to_json(findings))
    else:
        lines = [line for finding in findings for line in check.to_lines(finding)]
        # Who is told says nothing of whether the sidecar can run.
        _show("\n".join(lines if options.who_is_told else [*lines, check.to_summary(findings)]))
    if options.pin:
        _show(f"\n[reviewers]\n{check.to_toml(accounts)}")
    return OK if check.passed(findings) else FAILURE


def _show(text: str) -> None:
    """Print; a reader that has closed its end, as `| head` does, is no failure."""
    try:
        print(text, flush=True)
    except OSError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would be tried again at the end
        if not isinstance(exc, BrokenPipeError):
            raise _OutputError(exc.strerror or exc) from exc


def _configure(options: argparse.Namespace) -> int:
    from importlib import resources

    from sidecar import rbac

    mode = options.rbac or "none"
    if options.holder:
        if mode != "none":
            raise ConfigError(["--for tbot: prints the role for none; take that of --rbac MODE beside it"])
        _show(rbac.render_bot().rstrip())
    elif options.example:
        _show(rbac.render_example(mode).rstrip())
    elif options.rbac:
        _show(rbac.render(mode).rstrip())
    else:
        _show(resources.files("sidecar.config").joinpath("example.toml").read_text(encoding="utf-8").rstrip())
    return OK


def _demo(options: argparse.Namespace) -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        demo = importlib.import_module("sidecar.simulator.demo.play")
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "cryptography":
            raise
        print("The demo needs one more package beside the sidecar: pip install cryptography", file=sys.stderr)
        return USAGE
    return int(demo.main(options.keep))


def _version(options: argparse.Namespace) -> int:  # noqa: ARG001 - every command takes the options
    from importlib import metadata

    _show(f"sidecar {__version__} (Python {platform.python_version()}, grpcio {metadata.version('grpcio')})")
    return OK
