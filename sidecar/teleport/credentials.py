"""What the sidecar shows to the Auth Service: the three files of `tctl auth sign --format=tls`, or its one."""

from __future__ import annotations

import codecs
from pathlib import Path

import msgspec

from sidecar.errors import LinkRefused
from sidecar.files import plain
from sidecar.teleport.findings import THREE_FILES, Failed, Files, found, shown
from sidecar.teleport.x509 import pem_blocks


class Credentials(msgspec.Struct, frozen=True):
    """PEM as it stands in the files: certificate chain, private key, and the authorities to trust.

    `one_file` says that all of it stands in one identity file, for the sentences about it. `ca_pins` ("sha256:" and
    hex of a CA's key, as `tctl status` prints it) narrow the authorities where there are any.
    """

    certificate: bytes
    key: bytes
    authorities: bytes
    one_file: bool = False
    ca_pins: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Credentials(***)"


def read_credentials(crt: Path, key: Path, cas: Path, ca_pins: tuple[str, ...] = ()) -> Credentials:
    """Read the three files; whether they fit together is for the handshake to tell.

    Raises:
        LinkRefused: "credentials": a file is missing, unreadable or not PEM.

    """
    try:
        parts = read_pem(crt, "CERTIFICATE"), read_pem(key, "PRIVATE KEY"), read_pem(cas, "CERTIFICATE")
    except Failed as failed:
        detail = f"{failed.finding.message} {failed.finding.fix}"
        raise LinkRefused("teleport", "credentials", detail) from failed
    return Credentials(*parts, ca_pins=ca_pins)


def read_pem(path: Path, label: str, files: Files = THREE_FILES) -> bytes:
    """Return what is in a file. Raises Failed where it holds no such block of PEM."""
    subject = str(path)
    try:
        content = plain(path).read_bytes().removeprefix(codecs.BOM_UTF8)  # OpenSSL would call such a key garbled
    except FileNotFoundError as exc:
        raise Failed(found("file.missing", subject, sign_again=files.sign_again())) from exc
    except IsADirectoryError as exc:
        raise Failed(found("file.folder", subject)) from exc
    except OSError as exc:
        raise Failed(found("file.unreadable", subject, why=exc.strerror)) from exc
    if not content.strip():
        raise Failed(found("file.empty", subject, sign_again=files.sign_again()))
    labels = [one for one, _ in pem_blocks(content)]
    if not any(one.endswith(label) for one in labels):
        if any(one.endswith(("CERTIFICATE", "PRIVATE KEY")) for one in labels):
            raise Failed(found("file.swapped", subject, label=label, labels=shown(*labels)))
        raise Failed(found("file.not_pem", subject, label=f" {label}".rstrip(), sign_again=files.sign_again()))
    return content
