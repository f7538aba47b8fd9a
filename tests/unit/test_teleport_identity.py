"""What the sidecar says of its own credentials, before any network: whole sentences, one failure each."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from sidecar.config import TeleportConfig
from sidecar.errors import LinkRefused
from sidecar.simulator.teleport.pki import ClusterPki, Issued
from sidecar.teleport.credentials import Credentials
from sidecar.teleport.findings import Finding, judge_names, judge_server
from sidecar.teleport.identity import (
    check_credentials,
    check_files,
    check_identity,
    credential_files,
    load_credentials,
    split_identity,
)
from sidecar.teleport.x509 import read_certificate

NOON = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
NOW = NOON.timestamp()
YEAR = dt.timedelta(days=365)
TCTL_FILE = (
    "Sign new credentials on the Auth Service host and put the identity file in place: "
    "tctl auth sign --format=file --user=access-plugin --ttl=8760h --out=identity"
)
TCTL = (
    "Sign new credentials on the Auth Service host and put the three files in place: "
    "tctl auth sign --format=tls --user=access-plugin --ttl=8760h --out=auth"
)

cluster = ClusterPki("example.com")


def issue(before: dt.timedelta = -YEAR, after: dt.timedelta = YEAR) -> Issued:
    return cluster.user_certificate(
        "access-plugin", ["access-plugin", "auditor"], impersonator="", not_before=NOON + before, not_after=NOON + after
    )


def credentials(issued: Issued, authorities: bytes = cluster.host_ca.pem) -> Credentials:
    return Credentials(issued.certificate, issued.key, authorities)


def identity_file(issued: Issued, *authorities: bytes) -> bytes:
    """As api/identityfile writes it: the SSH lines stand between the blocks."""
    ssh = b"ssh-rsa-cert-v01@openssh.com AAAA\n"
    return b"".join((issued.key, ssh, issued.certificate, b"@cert-authority example.com AAAA\n", *authorities))


def last(shown: Credentials) -> Finding:
    return check_credentials(shown, NOW)[-1]


def test_everything_is_well() -> None:
    tctl = cluster.user_certificate(
        "access-plugin", ["auditor"], impersonator="root.example.com", not_before=NOON - YEAR, not_after=NOON + YEAR
    )
    assert check_credentials(credentials(tctl), NOW) == [
        Finding(
            "teleport.certificate",
            "ok",
            "client_crt",
            "We are access-plugin with the roles auditor on cluster example.com, signed by root.example.com, from "
            "2025-11-22 12:00:00 UTC until 2027-11-22 12:00:00 UTC.",
        ),
        Finding("teleport.key", "ok", "client_key", "The key and the certificate belong together."),
        Finding(
            "teleport.authorities", "ok", "root_cas", "root_cas holds 1 certificate(s) of the cluster(s) example.com."
        ),
    ]


def test_a_certificate_without_roles_or_impersonator() -> None:
    bare = cluster.user_certificate("bob", [], impersonator="", not_before=NOON - YEAR, not_after=NOON + YEAR)
    assert check_credentials(credentials(bare), NOW)[0].message == (
        "We are bob with the roles none on cluster example.com, from 2025-11-22 12:00:00 UTC until "
        "2027-11-22 12:00:00 UTC."
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(
            -2 * YEAR,
            dt.timedelta(days=-3),
            Finding(
                "teleport.certificate.expired",
                "failure",
                "client_crt",
                "Our certificate expired on 2026-11-19 12:00:00 UTC, 3 days ago.",
                TCTL,
            ),
            id="expired",
        ),
        pytest.param(
            dt.timedelta(minutes=5),
            YEAR,
            Finding(
                "teleport.certificate.not_yet_valid",
                "failure",
                "client_crt",
                "Our certificate is not valid before 2026-11-22 12:05:00 UTC; the clock of this machine says "
                "2026-11-22 12:00:00 UTC, 5 minutes earlier.",
                "Compare `date -u` on both hosts and let NTP set them.",
            ),
            id="not yet valid",
        ),
        pytest.param(
            -YEAR,
            dt.timedelta(days=14),
            Finding(
                "teleport.certificate.expires_soon",
                "warning",
                "client_crt",
                "Our certificate expires on 2026-12-06 12:00:00 UTC, in 14 days; tbot would renew it by itself.",
                TCTL,
            ),
            id="expires soon",
        ),
        pytest.param(
            -YEAR,
            dt.timedelta(hours=12),
            Finding(
                "teleport.certificate.expires_today",
                "warning",
                "client_crt",
                "Our certificate expires on 2026-11-23 00:00:00 UTC, in 12 hours; tbot would renew it by itself.",
                f"Do it now: {TCTL}",
            ),
            id="expires today",
        ),
    ],
)
def test_dates(before: dt.timedelta, after: dt.timedelta, expected: Finding) -> None:
    assert check_credentials(credentials(issue(before, after)), NOW)[1] == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(-YEAR, dt.timedelta(days=15), id="of a year"),
        pytest.param(dt.timedelta(minutes=-1), dt.timedelta(hours=12), id="of 12 hours"),
        pytest.param(dt.timedelta(minutes=-21), dt.timedelta(minutes=40), id="of an hour, as tbot renews it"),
    ],
)
def test_enough_of_its_life_needs_no_word(before: dt.timedelta, after: dt.timedelta) -> None:
    statuses = {finding.status for finding in check_credentials(credentials(issue(before, after)), NOW)}
    assert statuses == {"ok"}


@pytest.mark.parametrize(("minutes", "cause"), [(19, "expires_soon"), (5, "expires_today")])
def test_a_short_life_that_is_not_renewed(minutes: int, cause: str) -> None:
    issued = issue(dt.timedelta(minutes=minutes - 60), dt.timedelta(minutes=minutes))
    assert check_credentials(credentials(issued), NOW)[1].id == f"teleport.certificate.{cause}"


@pytest.mark.parametrize("rsa_keys", [False, True], ids=["same kind", "other kind"])
def test_key_of_another_certificate(rsa_keys: bool) -> None:  # noqa: FBT001 - a parameter of the table
    other = ClusterPki("example.com", rsa_keys=rsa_keys).user_certificate("access-plugin", [])
    assert last(Credentials(issue().certificate, other.key, cluster.host_ca.pem)) == Finding(
        "teleport.key.mismatch",
        "failure",
        "client_key",
        "The key is not the one of the certificate.",
        f"Use the files of one run. {TCTL}",
    )


def _encrypted() -> bytes:
    key = serialization.load_pem_private_key(issue().key, None)
    layout, password = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(serialization.Encoding.PEM, layout, password)


@pytest.mark.parametrize(
    "key", [b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", _encrypted()], ids=["broken", "password"]
)
def test_unusable_key(key: bytes) -> None:
    """OpenSSL would ask for a password on the terminal; a daemon must not."""
    assert last(Credentials(issue().certificate, key, cluster.host_ca.pem)) == Finding(
        "teleport.key.garbled",
        "failure",
        "client_key",
        "The key cannot be read: it is broken, or protected by a password.",
        TCTL,
    )


def test_garbled_certificate() -> None:
    garbled = b"-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"
    assert check_credentials(Credentials(garbled, b"", b""), NOW) == [
        Finding(
            "teleport.certificate.garbled",
            "failure",
            "client_crt",
            "client_crt holds no certificate that can be read.",
            TCTL,
        )
    ]


def test_a_chain_where_one_certificate_belongs() -> None:
    issued = issue()
    chain = Credentials(issued.certificate + cluster.user_ca.pem, issued.key, cluster.host_ca.pem)
    assert check_credentials(chain, NOW)[2] == Finding(
        "teleport.certificate.chain",
        "failure",
        "client_crt",
        "client_crt holds 2 certificates; the Auth Service refuses one that comes with intermediaries.",
        "Leave only the first one in the file.",
    )


@pytest.mark.parametrize(
    "authorities",
    [
        b"",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----",
    ],
    ids=["empty", "no certificate", "no base64"],
)
def test_garbled_authorities(authorities: bytes) -> None:
    assert last(credentials(issue(), authorities)) == Finding(
        "teleport.authorities.garbled",
        "failure",
        "root_cas",
        "root_cas holds no certificate, or one that cannot be read.",
        TCTL,
    )


def test_authorities_of_another_cluster() -> None:
    leaf, other = ClusterPki("leaf.example.com"), ClusterPki("other.example.com")
    assert last(credentials(issue(), other.host_ca.pem + leaf.host_ca.pem)) == Finding(
        "teleport.authorities.other_cluster",
        "failure",
        "root_cas",
        "Our certificate is of cluster example.com, but root_cas holds only leaf.example.com, other.example.com.",
        f"Use the three files of one run. {TCTL}",
    )


def test_a_server_whose_issuer_is_of_another_cluster() -> None:
    """Whatever OpenSSL made of the chain."""
    theirs = read_certificate(ClusterPki("other.example.com").server_certificate().certificate)
    assert (
        judge_server("auth:3025", theirs, read_certificate(issue().certificate)).id == "teleport.server.other_cluster"
    )


def test_authorities_that_are_not_pinned() -> None:
    pins = [f"sha256:{read_certificate(pki.host_ca.pem).spki_sha256}" for pki in (cluster, ClusterPki("example.com"))]
    shown = credentials(issue(), cluster.host_ca.pem)
    assert last(msgspec.structs.replace(shown, ca_pins=tuple(pins))).status == "ok"
    assert last(msgspec.structs.replace(shown, ca_pins=tuple(pins[1:]))) == Finding(
        "teleport.authorities.not_pinned",
        "failure",
        "root_cas",
        f"root_cas holds no CA with the pin of teleport.ca_pin; those of our cluster have {pins[0]}.",
        f"Correct ca_pin by `tctl status` on the Auth Service host. Or: {TCTL}",
    )


def test_a_hostile_name_cannot_speak_for_us() -> None:
    """Neither the terminal nor the shell command takes orders from a certificate."""
    hostile = cluster.user_certificate("\x1b[2J;reboot", [], not_before=NOON - YEAR, not_after=NOON)
    who, expired, *_ = check_credentials(credentials(hostile), NOW)
    assert who.message.startswith("We are ?[2J;reboot with")
    assert "--user='?[2J;reboot' " in expired.fix


def test_an_ipv6_address_is_written_in_brackets() -> None:
    """The lines for teleport.yaml must be valid YAML and a valid address."""
    facts = read_certificate(cluster.server_certificate(nodename="auth1").certificate)
    assert judge_names(facts, "::1", 3025, "hostname") == Finding(
        "teleport.names.no_ip_sans",
        "failure",
        "[::1]:3025",
        "x509: cannot validate certificate for ::1 because it doesn't contain any IP SANs",
        "Either add the address to /etc/teleport.yaml on the Auth Service host and restart Teleport there:\n"
        'auth_service:\n  public_addr:\n    - "[::1]:3025"\n'
        "or check the cluster instead of the address, in the configuration of the sidecar:\n"
        '[teleport]\nverify = "cluster"',
    )


# Files


@pytest.mark.parametrize("names", [("auth.crt", "auth.key", "auth.cas"), ("tlscert", "key", "teleport-host-ca.crt")])
def test_files_of_tctl_and_of_tbot(tmp_path: Path, names: tuple[str, str, str]) -> None:
    issued = issue()
    paths = [tmp_path / name for name in names]
    for path, content in zip(paths, (issued.certificate, issued.key, cluster.host_ca.pem), strict=True):
        path.write_bytes(content)
        path.chmod(0o640)
    assert check_files(*paths) == [
        Finding("teleport.file", "ok", str(paths[0]), f"{paths[0]} is there and holds a certificate."),
        Finding("teleport.file", "ok", str(paths[1]), f"{paths[1]} is there and holds a private key."),
        Finding("teleport.file", "ok", str(paths[2]), f"{paths[2]} is there and holds a certificate."),
    ]


def crt(path: Path) -> Finding:
    return check_files(path, path, path)[0]


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "auth.crt"
    message, fix = f"There is no file {path}.", f"Correct the path. Or: {TCTL}"
    assert crt(path) == Finding("teleport.file.missing", "failure", str(path), message, fix)


def test_unreadable_file(tmp_path: Path) -> None:
    """A name too long stands for every error of the system: the tests may run as root, who reads everything."""
    path = tmp_path / ("a" * 300)
    assert crt(path) == Finding(
        "teleport.file.unreadable",
        "failure",
        str(path),
        f"{path} cannot be read: File name too long.",
        "Give the file to the user that runs the sidecar, for example with chown.",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "auth.crt"
    path.touch(mode=0)
    assert crt(path).message == f"{path} cannot be read: Permission denied."


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "auth.crt"
    path.write_text("\n")
    assert crt(path) == Finding("teleport.file.empty", "failure", str(path), f"{path} is empty.", TCTL)


def test_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "auth.crt"
    path.write_bytes(b"ssh-rsa AAAA\n")
    message = f"{path} holds no PEM block CERTIFICATE."
    assert crt(path) == Finding("teleport.file.not_pem", "failure", str(path), message, TCTL)


def test_key_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "auth.key"
    path.write_bytes(issue().key)
    path.chmod(0o644)
    assert check_files(path, path, path)[1] == Finding(
        "teleport.file.world_readable",
        "warning",
        str(path),
        f"Every user of this machine can reach the private key in {path} (mode 0644).",
        f"chmod 600 {path}",
    )


def test_identity_file_is_split(tmp_path: Path) -> None:
    issued, other = issue(), ClusterPki("leaf.example.com").host_ca.pem
    path = tmp_path / "identity"
    path.write_bytes(identity_file(issued, cluster.host_ca.pem, other))
    path.chmod(0o600)
    assert check_identity(path) == [
        Finding("teleport.file", "ok", str(path), f"{path} is there and holds a private key.")
    ]
    found = split_identity(path.read_bytes())
    assert found == Credentials(issued.certificate, issued.key, cluster.host_ca.pem + other, one_file=True)


def test_identity_file_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.write_bytes(identity_file(issue(), cluster.host_ca.pem))
    path.chmod(0o604)
    assert [finding.id for finding in check_identity(path)] == ["teleport.file.world_readable"]


def test_identity_file_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    assert check_identity(path) == [
        Finding(
            "teleport.file.missing",
            "failure",
            str(path),
            f"There is no file {path}.",
            f"Correct the path. Or: {TCTL_FILE}",
        )
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            identity_file(issue(after=-dt.timedelta(hours=3)), cluster.host_ca.pem),
            ("certificate.expired", "Our certificate expired on 2026-11-22 09:00:00 UTC, 3 hours ago.", TCTL_FILE),
        ),
        (
            identity_file(issue(), ClusterPki("leaf.example.com").host_ca.pem),
            (
                "authorities.other_cluster",
                "Our certificate is of cluster example.com, but the identity file holds only leaf.example.com.",
                f"Use the file as it was written. {TCTL_FILE}",
            ),
        ),
        (
            identity_file(issue(), b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            (
                "authorities.garbled",
                "The identity file holds no certificate, or one that cannot be read.",
                TCTL_FILE,
            ),
        ),
        (
            issue().key + issue().certificate + cluster.host_ca.pem,
            (
                "key.mismatch",
                "The key is not the one of the certificate.",
                f"Use the file as it was written. {TCTL_FILE}",
            ),
        ),
    ],
)
def test_an_identity_file_is_not_spoken_of_as_three(given: bytes, expected: tuple[str, str, str]) -> None:
    found = check_credentials(split_identity(given), NOW)
    id, message, fix = expected
    assert Finding(f"teleport.{id}", "failure", "identity", message, fix) in found
    assert {one.subject for one in found} == {"identity"}


def test_identity_file_without_its_authorities(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.write_bytes(identity_file(issue()))
    path.chmod(0o600)
    assert check_identity(path) == [
        Finding(
            "teleport.file.not_identity",
            "failure",
            str(path),
            "The identity file holds no authority.",
            TCTL_FILE,
        )
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (issue().certificate * 2, "The identity file holds no private key."),
        (issue().key, "The identity file holds no certificate."),
    ],
)
def test_incomplete_identity(content: bytes, sentence: str) -> None:
    with pytest.raises(LinkRefused) as caught:
        split_identity(content)
    assert (caught.value.reason, caught.value.detail) == ("credentials", sentence)


def test_credentials_from_three_files_or_from_one(tmp_path: Path) -> None:
    """`identity` beats the defaults of the three; what has to be watched is what is read."""
    crt, key, cas = (tmp_path / name for name in ("tlscert", "key", "teleport-host-ca.crt"))
    issued = issue()
    for path, content in ((crt, issued.certificate), (key, issued.key), (cas, cluster.host_ca.pem)):
        path.write_bytes(content)
    three = TeleportConfig(client_crt=crt, client_key=key, root_cas=cas, ca_pin=("sha256:00",))
    pinned = msgspec.structs.replace(credentials(issued), ca_pins=("sha256:00",))
    assert load_credentials(three) == pinned
    assert credential_files(three) == (crt, key, cas)
    identity = tmp_path / "auth.pem"
    identity.write_bytes(issued.key + b"ssh-rsa AAAA\n" + issued.certificate + cluster.host_ca.pem)
    one = TeleportConfig(identity=identity, ca_pin=("sha256:00",))
    assert load_credentials(one) == msgspec.structs.replace(pinned, one_file=True)
    assert credential_files(one) == (identity,)


def test_an_identity_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LinkRefused, match=f"cannot read {tmp_path}/auth.pem: No such file or directory") as caught:
        load_credentials(TeleportConfig(identity=tmp_path / "auth.pem"))
    assert caught.value.reason == "credentials"
    (tmp_path / "auth.pem").write_bytes(issue().certificate)
    with pytest.raises(LinkRefused) as caught:
        load_credentials(TeleportConfig(identity=tmp_path / "auth.pem"))
    assert caught.value.detail == f"{tmp_path}/auth.pem: The identity file holds no private key. {TCTL_FILE}"


def test_swapped_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    """Signing again would change nothing."""
    issued = issue()
    crt, key, cas = (tmp_path / name for name in ("auth.crt", "auth.key", "auth.cas"))
    for path, content in ((crt, issued.certificate), (key, issued.key), (cas, cluster.host_ca.pem)):
        path.write_bytes(content)
        path.chmod(0o600)
    label = issued.key.decode().partition("-----BEGIN ")[2].partition("-----")[0]
    fix = "Each file under its own key of [teleport]: client_crt the .crt, client_key the .key, root_cas the .cas."
    assert check_files(key, crt, cas)[:2] == [
        Finding(
            "teleport.file.swapped", "failure", str(key), f"{key} holds no PEM block CERTIFICATE, but {label}.", fix
        ),
        Finding(
            "teleport.file.swapped", "failure", str(crt), f"{crt} holds no PEM block PRIVATE KEY, but CERTIFICATE.", fix
        ),
    ]
    (finding,) = check_identity(crt)
    assert (finding.id, finding.message, finding.fix) == (
        "teleport.file.not_identity",
        "The identity file holds no private key.",
        TCTL_FILE,
    )


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    assert check_identity(tmp_path) == [
        Finding(
            "teleport.file.folder",
            "failure",
            str(tmp_path),
            f"{tmp_path} is a folder, not a file.",
            "Correct the path. A container engine makes a folder where the file to be mounted is missing.",
        )
    ]
