"""Our own credentials before any network: the files, who they say we are, and whether they fit together."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from typing import Protocol

from sidecar.errors import LinkRefused
from sidecar.files import plain
from sidecar.teleport import findings as say
from sidecar.teleport.credentials import Credentials, read_credentials
from sidecar.teleport.findings import Failed, Finding, failure
from sidecar.teleport.x509 import CertificateFacts, certificate_ders, pem_blocks, read_certificate

# OpenSSL's reasons for a key that is not the certificate's; the last one is for a key of another kind.
_MISMATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")

_FOLDER = "Correct the path. A container engine makes a folder where the file to be mounted is missing."
_SWAPPED = "Each file under its own key of [teleport]: client_crt the .crt, client_key the .key, root_cas the .cas."


class CredentialPaths(Protocol):
    """Where our credentials are, by [teleport]: `identity` alone, or the three files."""

    @property
    def client_crt(self) -> Path: ...

    @property
    def client_key(self) -> Path: ...

    @property
    def root_cas(self) -> Path: ...

    @property
    def identity(self) -> Path | None: ...

    @property
    def ca_pin(self) -> tuple[str, ...]: ...


def credential_files(paths: CredentialPaths) -> tuple[Path, ...]:
    """The files that `load_credentials` reads, to be watched for changes."""
    if paths.identity is not None:
        return (paths.identity,)
    return paths.client_crt, paths.client_key, paths.root_cas


def load_credentials(paths: CredentialPaths) -> Credentials:
    """Read our credentials from the one file or from the three.

    Raises:
        LinkRefused: "credentials": a file is missing, unreadable or not PEM, or the identity file lacks a part.

    """
    if paths.identity is None:
        return read_credentials(paths.client_crt, paths.client_key, paths.root_cas, paths.ca_pin)
    try:
        return split_identity(plain(paths.identity).read_bytes(), paths.ca_pin)
    except OSError as exc:
        sentence = f"cannot read {paths.identity}: {exc.strerror or type(exc).__name__}"
        raise LinkRefused("teleport", "credentials", sentence) from exc
    except LinkRefused as refused:
        sentence = f"{paths.identity}: {refused.detail} {say.of_one_file(say.sign_again())}"
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
    finding = say.judged_as_one_file(_check_file(identity, "PRIVATE KEY", secret=True))
    if finding.status != "failure" or finding.id == "teleport.file.swapped":
        try:
            split_identity(identity.read_bytes())
        except LinkRefused as refused:
            fix = say.of_one_file(say.sign_again())
            finding = failure("file.not_identity", str(identity), refused.detail, fix)
    return [finding]


def _check_file(path: Path, label: str, *, secret: bool = False) -> Finding:
    subject = str(path)
    try:
        content, mode = plain(path).read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        fix = f"Correct the path. Or: {say.sign_again()}"
        return failure("file.missing", subject, f"There is no file {path}.", fix)
    except IsADirectoryError:
        return failure("file.folder", subject, f"{path} is a folder, not a file.", _FOLDER)
    except OSError as exc:
        fix = "Give the file to the user that runs the sidecar, for example with chown."
        return failure("file.unreadable", subject, f"{path} cannot be read: {exc.strerror}.", fix)
    if not content.strip():
        return failure("file.empty", subject, f"{path} is empty.", say.sign_again())
    labels = [found for found, _ in pem_blocks(content)]
    if not any(found.endswith(label) for found in labels):
        if any(found.endswith(("CERTIFICATE", "PRIVATE KEY")) for found in labels):
            message = f"{path} holds no PEM block {label}, but {say.shown(*labels)}."
            return failure("file.swapped", subject, message, _SWAPPED)
        message = f"{path} holds no PEM block {label}."
        return failure("file.not_pem", subject, message, say.sign_again())
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
    return [say.judged_as_one_file(finding) for finding in findings] if credentials.one_file else findings


def load(credentials: Credentials, now: float, findings: list[Finding]) -> tuple[ssl.SSLContext, CertificateFacts]:
    """Add to `findings` as far as it goes; return what a handshake needs. Raises Failed with the last finding."""
    try:
        ours = read_certificate(credentials.certificate)
    except ValueError as exc:
        message = "client_crt holds no certificate that can be read."
        raise Failed(failure("certificate.garbled", "client_crt", message, say.sign_again())) from exc
    findings += say.judge_certificate(ours, now)
    context = new_context(verify_mode=ssl.CERT_REQUIRED)
    _load_key(context, credentials)
    findings.append(Finding("teleport.key", "ok", "client_key", "The key and the certificate belong together."))
    count = len(certificate_ders(credentials.certificate))
    if count > 1:
        message = f"client_crt holds {count} certificates; the Auth Service refuses one that comes with intermediaries."
        findings.append(failure("certificate.chain", "client_crt", message, "Leave only the first one in the file."))
    findings.append(_load_authorities(context, credentials, ours))
    return context, ours


def _load_key(context: ssl.SSLContext, credentials: Credentials) -> None:
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
            message, fix = "The key is not the one of the certificate.", f"Use the files of one run. {say.sign_again()}"
            raise Failed(failure("key.mismatch", "client_key", message, fix)) from exc
        message = "The key cannot be read: it is broken, or protected by a password."
        raise Failed(failure("key.garbled", "client_key", message, say.sign_again())) from exc
    except OSError as exc:
        raise Failed(say.out_of_descriptors(exc)) from exc


def _load_authorities(context: ssl.SSLContext, credentials: Credentials, ours: CertificateFacts) -> Finding:
    try:
        ders = certificate_ders(credentials.authorities)
        roots = own_roots(credentials, ours)
        # Where none is left nobody is trusted, and the handshake tells who was met.
        if roots or not ders:
            context.load_verify_locations(cadata=roots.decode())
    except (ssl.SSLError, ValueError) as exc:
        message = "root_cas holds no certificate, or one that cannot be read."
        raise Failed(failure("authorities.garbled", "root_cas", message, say.sign_again())) from exc
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
