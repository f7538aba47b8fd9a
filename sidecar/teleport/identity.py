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
from sidecar.teleport.findings import ONE_FILE, THREE_FILES, Failed, Files, Finding, Ours, found
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
    for part, what in ((keys, "private key"), (certificates, "certificate"), (certificates[1:], "authority")):
        if not part:
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
            id, again = "teleport.file.not_identity", ONE_FILE.sign_again()
            finding = Finding(id, "failure", str(identity), refused.detail, again)
    return [finding]


def _check_file(path: Path, label: str, files: Files = THREE_FILES, *, secret: bool = False) -> Finding:
    subject = str(path)
    try:
        read_pem(path, label, files)
        mode = stat.S_IMODE(path.stat().st_mode)
    except Failed as failed:
        return failed.finding
    if secret and mode & stat.S_IRWXO:
        return found("file.world_readable", subject, mode=mode)
    return found("file", subject, label=label.lower())


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
        raise Failed(found("certificate.garbled", files.crt, sign_again=files.sign_again())) from exc


def load(credentials: Credentials, now: float, findings: list[Finding]) -> tuple[ssl.SSLContext, Ours]:
    """Add to `findings` as far as it goes; return what a handshake needs. Raises Failed with the last finding."""
    ours = read_ours(credentials)
    files = ours.files
    findings += say.judge_certificate(ours, now)
    context = new_context(verify_mode=ssl.CERT_REQUIRED)
    _load_key(context, credentials, ours)
    findings.append(found("key", files.key))
    count = len(certificate_ders(credentials.certificate))
    if count > 1:
        findings.append(found("certificate.chain", files.crt, number=count))
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
            one_run = ours.files.of_one_run
            raise Failed(found("key.mismatch", key, of_one_run=one_run, sign_again=again)) from exc
        raise Failed(found("key.garbled", key, sign_again=again)) from exc
    except OSError as exc:
        raise Failed(found("connect.resources", key, why=exc.strerror)) from exc


def _load_authorities(context: ssl.SSLContext, credentials: Credentials, ours: Ours) -> Finding:
    try:
        ders = certificate_ders(credentials.authorities)
        roots = own_roots(credentials, ours)
        # Where none is left nobody is trusted, and the handshake tells who was met.
        if roots or not ders:
            context.load_verify_locations(cadata=roots.decode())
    except (ssl.SSLError, ValueError) as exc:
        raise Failed(found("authorities.garbled", ours.files.cas, sign_again=ours.files.sign_again())) from exc
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
