"""Our own credentials before any network: the files, who they say we are, and whether they fit together."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

import msgspec

from sidecar.errors import LinkRefused
from sidecar.files import CredentialFiles
from sidecar.teleport import findings as say
from sidecar.teleport.credentials import Credentials, read_credentials, read_pem
from sidecar.teleport.findings import ONE_FILE, THREE_FILES, Failed, Files, Finding, Ours, failure
from sidecar.teleport.x509 import CertificateFacts, certificate_ders, pem_blocks, read_certificate

# OpenSSL's reasons for a key that is not the certificate's; the last one is for a key of another kind.
_MISMATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def credential_files(paths: CredentialFiles) -> tuple[Path, ...]:
    """The files that `load_credentials` reads, to be watched for changes."""
    if paths.identity is not None:
        return (paths.identity,)
    return paths.client_crt, paths.client_key, paths.root_cas


def load_credentials(paths: CredentialFiles) -> Credentials:
    """Read our credentials from the one file or from the three.

    Raises:
        LinkRefused: "credentials": a file is missing, unreadable or not PEM, or the identity file lacks a part.

    """
    if paths.identity is None:
        return read_credentials(paths.client_crt, paths.client_key, paths.root_cas, paths.ca_pin)
    try:
        return split_identity(read_pem(paths.identity, "", ONE_FILE), paths.ca_pin)
    except Failed as failed:
        detail = f"{failed.finding.message} {failed.finding.fix}"
        raise LinkRefused("teleport", "credentials", detail) from failed
    except LinkRefused as refused:
        sentence = f"{paths.identity}: {refused.detail} {ONE_FILE.sign_again()}"
        raise LinkRefused("teleport", "credentials", sentence) from refused


def split_identity(data: bytes, ca_pins: tuple[str, ...] = ()) -> Credentials:
    """Split an identity file (api/identityfile, 7 to 18): key, our certificate, the authorities, SSH lines between.

    Raises:
        LinkRefused: "credentials": one of the three is not in it.

    """
    blocks = pem_blocks(data)
    keys = [block for label, block in blocks if label.endswith("PRIVATE KEY")]
    certificates = [block for label, block in blocks if label == "CERTIFICATE"]
    for found, what in ((keys, "private key"), (certificates, "certificate"), (certificates[1:], "authority")):
        if not found:
            raise LinkRefused("teleport", "credentials", f"The identity file holds no {what}.")
    return Credentials(certificates[0], keys[0], b"".join(certificates[1:]), one_file=True, ca_pins=ca_pins)


def check_files(crt: Path, key: Path, cas: Path) -> list[Finding]:
    """One finding for each of the three files, `tctl auth sign`'s or tbot's; the names do not matter."""
    return [
        _check_file(crt, "CERTIFICATE"),
        _check_file(key, "PRIVATE KEY", secret=True),
        _check_file(cas, "CERTIFICATE"),
    ]


def check_identity(identity: Path) -> list[Finding]:
    """One finding for an identity file."""
    finding = _check_file(identity, "PRIVATE KEY", ONE_FILE, secret=True)
    if finding.status != "failure" or finding.id == "teleport.file.swapped":
        try:
            split_identity(identity.read_bytes())
        except LinkRefused as refused:
            fix = ONE_FILE.sign_again()
            finding = failure("file.not_identity", str(identity), refused.detail, fix)
    return [finding]


def _check_file(path: Path, label: str, files: Files = THREE_FILES, *, secret: bool = False) -> Finding:
    subject = str(path)
    try:
        read_pem(path, label, files)
        mode = stat.S_IMODE(path.stat().st_mode)
    except Failed as failed:
        return failed.finding
    if secret and mode & stat.S_IRWXO:
        message = f"Every user of this machine can reach the private key in {path} (mode {mode:04o})."
        return Finding("teleport.file.world_readable", "warning", subject, message, f"chmod 600 {path}")
    return Finding("teleport.file", "ok", subject, f"{path} is there and holds a {label.lower()}.")


def check_credentials(credentials: Credentials, now: float) -> list[Finding]:
    """Whether they fit together, who we are, and until when. No network. `now` is Unix seconds."""
    findings: list[Finding] = []
    try:
        load(credentials, now, findings)
    except Failed as failed:
        findings.append(failed.finding)
    return findings


def read_ours(credentials: Credentials) -> Ours:
    """Who they say we are. Raises Failed where that cannot be read."""
    files = ONE_FILE if credentials.one_file else THREE_FILES
    try:
        return Ours(**msgspec.structs.asdict(read_certificate(credentials.certificate)), files=files)
    except ValueError as exc:
        message = f"{files.crt} holds no certificate that can be read."
        raise Failed(failure("certificate.garbled", files.crt, message, files.sign_again())) from exc


def load(credentials: Credentials, now: float, findings: list[Finding]) -> tuple[ssl.SSLContext, Ours]:
    """Add to `findings` as far as it goes; return what a handshake needs. Raises Failed with the last finding."""
    ours = read_ours(credentials)
    files = ours.files
    findings += say.judge_certificate(ours, now)
    context = new_context(verify_mode=ssl.CERT_REQUIRED)
    _load_key(context, credentials, ours)
    findings.append(Finding("teleport.key", "ok", files.key, "The key and the certificate belong together."))
    count = len(certificate_ders(credentials.certificate))
    if count > 1:
        message = (
            f"{files.crt} holds {count} certificates; the Auth Service refuses one that comes with intermediaries."
        )
        findings.append(failure("certificate.chain", files.crt, message, "Leave only the first one in the file."))
    findings.append(_load_authorities(context, credentials, ours))
    return context, ours


def _load_key(context: ssl.SSLContext, credentials: Credentials, ours: Ours) -> None:
    key, again = ours.files.key, ours.files.sign_again()
    # OpenSSL wants a file; this one has no name, so the key is never on a disk.
    try:
        memory = os.memfd_create("credentials", os.MFD_CLOEXEC)
        with os.fdopen(memory, "wb") as file:
            file.write(credentials.certificate + b"\n" + credentials.key)
            file.flush()
            # A password of nothing, because OpenSSL would ask for one on the terminal.
            context.load_cert_chain(f"/proc/self/fd/{memory}", password="")
    except ssl.SSLError as exc:
        if exc.reason in _MISMATCH:
            message, fix = "The key is not the one of the certificate.", f"{ours.files.of_one_run} {again}"
            raise Failed(failure("key.mismatch", key, message, fix)) from exc
        message = "The key cannot be read: it is broken, or protected by a password."
        raise Failed(failure("key.garbled", key, message, again)) from exc
    except OSError as exc:
        message = f"This process can open nothing more: {exc.strerror}."
        fix = "Raise its limit of open files (LimitNOFILE, ulimit -n)."
        raise Failed(failure("connect.resources", key, message, fix)) from exc


def _load_authorities(context: ssl.SSLContext, credentials: Credentials, ours: Ours) -> Finding:
    try:
        ders = certificate_ders(credentials.authorities)
        roots = own_roots(credentials, ours)
        # Where none is left nobody is trusted, and the handshake tells who was met.
        if roots or not ders:
            context.load_verify_locations(cadata=roots.decode())
    except (ssl.SSLError, ValueError) as exc:
        message = f"{ours.files.cas} holds no certificate, or one that cannot be read."
        raise Failed(failure("authorities.garbled", ours.files.cas, message, ours.files.sign_again())) from exc
    return say.judge_authorities([read_certificate(der) for der in ders], ours, credentials.ca_pins)


def own_roots(credentials: Credentials, ours: CertificateFacts) -> bytes:
    """Pick the authorities that may vouch for our Auth Service, as PEM; b"" where there are none.

    The files hold more: the CAs of trusted leaf clusters, and an identity file our own certificate. Raises ValueError
    where one cannot be read.
    """
    ders = certificate_ders(credentials.authorities)
    own = [der for der in ders if say.is_own_root(read_certificate(der), ours, credentials.ca_pins)]
    return "".join(map(ssl.DER_cert_to_PEM_cert, own)).encode()


def new_context(*, verify_mode: ssl.VerifyMode) -> ssl.SSLContext:
    """A client's TLS context that leaves the judgement of names to findings.py, which has Go's words for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = verify_mode
    return context
