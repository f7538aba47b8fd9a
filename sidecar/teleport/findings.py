"""What a check finds, and what is said of our own certificate and the authorities. Pure: values in, findings out.

The ids are stable: `teleport.<check>` when it is well, `teleport.<check>.<cause>` when it is not.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import resources
from typing import Final, Literal

import msgspec

from sidecar.errors import LinkError, LinkLost, LinkRefused
from sidecar.teleport.x509 import CertificateFacts

# The name every Auth Service answers to, and the one that Teleport's own clients ask for (api/constants, 7 to 18).
API_DOMAIN: Final = "teleport.cluster.local"

_DAY = 86_400
# Findings that say that a peer is away, not that it says no.
_AWAY = (
    *("teleport.connect", "teleport.resolve", "teleport.handshake.timeout", "teleport.handshake.closed"),
    *("teleport.client.timeout", "teleport.client.closed"),
)


Status = Literal["ok", "warning", "failure"]


class Finding(msgspec.Struct, frozen=True):
    """The result of one check; `fix` says what to do, "" when there is nothing to do."""

    id: str
    status: Status
    subject: str
    message: str
    fix: str = ""


class Failed(Exception):
    """Carries the failure that ends a check up to its last line; no caller outside teleport/ ever sees it."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class Files(msgspec.Struct, frozen=True):
    """What sentences call our credentials: the settings that name them, and how to make them anew."""

    crt: str
    key: str
    cas: str
    all: str
    format: str
    out: str
    of_one_run: str

    def sign_again(self, user: str = "", out: str = "") -> str:
        """The command that makes new credentials, as a sentence."""
        user, out = (shlex.quote(shown(name)) for name in (user or "access-plugin", out or self.out))
        how = f"tctl auth sign --format={self.format} --user={user} --ttl=8760h --out={out}"
        return f"Sign new credentials on the Auth Service host and put {self.all} in place: {how}"


THREE_FILES: Final = Files(
    "client_crt", "client_key", "root_cas", "the three files", "tls", "auth", "Use the three files of one run."
)
ONE_FILE: Final = Files(
    "identity", "identity", "identity", "the identity file", "file", "identity", "Use the file as it was written."
)


class Ours(CertificateFacts, frozen=True, kw_only=True):
    """Our own certificate, and what the files are called that it came from."""

    files: Files

    def sign_again(self) -> str:
        """The command that makes it anew, as a sentence."""
        return self.files.sign_again(self.user)


@functools.cache
def sayings(package: str) -> dict[str, tuple[Status, str, str]]:
    """What the findings.txt of a package says: status, message and fix by id."""
    text = resources.files(package).joinpath("findings.txt").read_text(encoding="utf-8")
    read: dict[str, tuple[Status, str, str]] = {}
    for saying in text.split("\n\n")[1:]:
        head, message, *fix = saying.strip("\n").split("\n")
        status, _, id = head.partition(" ")
        read[id] = msgspec.convert(status, Status), message, "\n".join(line[2:] for line in fix)
    return read


def teller(package: str, prefix: str = "") -> Callable[..., Finding]:
    """Return what makes a finding of an id of that file, a subject, and the facts that its sentences name."""

    def found(id: str, subject: str, /, **facts: object) -> Finding:
        status, *texts = sayings(package)[id]
        message, fix = (text.format(subject=subject, **facts) for text in texts)
        return Finding(prefix + id.partition("+")[0], status, subject, message, fix)

    return found


found = teller("sidecar.teleport", "teleport.")


def to_error(finding: Finding) -> LinkError:
    """The error that a failure is where a link, and not a person, meets it."""
    # Teleport's own sentences end without a full stop.
    detail = f"{finding.message.rstrip('.')}. {finding.fix}".rstrip()
    if finding.id.startswith(_AWAY):
        return LinkLost("teleport", "unreachable", detail)
    return LinkRefused("teleport", "tls", detail)


def shown(*names: str) -> str:
    """Join names that somebody else chose: nothing unprintable, nothing endless, "none" for none."""
    clean = ("".join(char if char.isprintable() else "?" for char in name[:100]) for name in names[:20])
    return ", ".join(clean) + (", …" if len(names) > 20 else "") or "none"


def judge_certificate(ours: Ours, now: float) -> list[Finding]:
    """Say who we are, and what is wrong with the dates. `now` is Unix seconds."""
    signed = f", signed by {shown(ours.impersonator)}" if ours.impersonator else ""
    who = {"user": shown(ours.user), "roles": shown(*ours.roles), "cluster": shown(ours.cluster), "signed": signed}
    since, until = when(ours.not_before), when(ours.not_after)
    return [found("certificate", ours.files.crt, **who, since=since, until=until), *_judge_dates(ours, now)]


def ending(ours: CertificateFacts, now: float) -> Literal["", "expires_soon", "expires_today"]:
    """Whether its end asks for somebody, by its own life: tbot renews one of an hour when 40 minutes are left."""
    left, life = ours.not_after - now, ours.not_after - ours.not_before
    if left <= min(_DAY, life / 10):
        return "expires_today"
    return "expires_soon" if left <= min(14 * _DAY, life / 3) else ""


def _judge_dates(ours: Ours, now: float) -> list[Finding]:
    left, crt, again = ours.not_after - now, ours.files.crt, ours.sign_again()
    since, until = when(ours.not_before), when(ours.not_after)
    if left <= 0:
        return [found("certificate.expired", crt, until=until, ago=_span(-left), sign_again=again)]
    if ours.not_before > now:
        ahead = _span(ours.not_before - now)
        return [found("certificate.not_yet_valid", crt, since=since, now=when(now), ahead=ahead)]
    cause = ending(ours, now)
    return [found(f"certificate.{cause}", crt, until=until, left=_span(left), sign_again=again)] if cause else []


def is_own_root(authority: CertificateFacts, ours: CertificateFacts, ca_pins: tuple[str, ...] = ()) -> bool:
    """Whether it is a CA of our own cluster, and one of the pinned. A CA of Teleport bears the cluster as its O."""
    pinned = not ca_pins or f"sha256:{authority.spki_sha256}" in ca_pins
    return authority.is_ca and ours.cluster in authority.roles and pinned


def judge_authorities(authorities: list[CertificateFacts], ours: Ours, ca_pins: tuple[str, ...] = ()) -> Finding:
    """Whether the authorities know the cluster of our certificate, by a CA that is pinned where any is."""
    cas = ours.files.cas
    clusters = sorted({cluster for authority in authorities for cluster in authority.roles})
    own = [authority for authority in authorities if is_own_root(authority, ours)]
    if any(is_own_root(authority, ours, ca_pins) for authority in own):
        return found("authorities", cas, number=len(authorities), clusters=shown(*clusters))
    again = ours.sign_again()
    if own:
        pins = shown(*(f"sha256:{authority.spki_sha256}" for authority in own))
        return found("authorities.not_pinned", cas, pins=pins, sign_again=again)
    facts = {"cluster": shown(ours.cluster), "clusters": shown(*clusters), "of_one_run": ours.files.of_one_run}
    return found("authorities.other_cluster", cas, **facts, sign_again=again)


def when(seconds: float) -> str:
    """A time in the words of the preflight."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: float) -> str:
    for size, unit in ((_DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} seconds"


def lower(sentence: str) -> str:
    """A sentence after a colon."""
    return sentence[0].lower() + sentence[1:]
