"""What the sidecar shows to the Auth Service: the three files of `tctl auth sign --format=tls`, or its one."""

from __future__ import annotations

import codecs
from pathlib import Path

import msgspec

from sidecar.errors import LinkRefused
from sidecar.files import plain
from sidecar.teleport.findings import THREE_FILES, Failed, Files, failure, shown
from sidecar.teleport.x509 import pem_blocks

_FOLDER = "Correct the path. A container engine makes a folder where the file to be mounted is missing."
_SWAPPED = "Each file under its own key of [teleport]: client_crt the .crt, client_key the .key, root_cas the .cas."
_CHOWN = "Give the file to the user that runs the sidecar, for example with chown."


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
        fix = f"Correct the path. Or: {files.sign_again()}"
        raise Failed(failure("file.missing", subject, f"There is no file {path}.", fix)) from exc
    except IsADirectoryError as exc:
        raise Failed(failure("file.folder", subject, f"{path} is a folder, not a file.", _FOLDER)) from exc
    except OSError as exc:
        message = f"{path} cannot be read: {exc.strerror}."
        raise Failed(failure("file.unreadable", subject, message, _CHOWN)) from exc
    if not content.strip():
        raise Failed(failure("file.empty", subject, f"{path} is empty.", files.sign_again()))
    labels = [found for found, _ in pem_blocks(content)]
    if not any(found.endswith(label) for found in labels):
        if any(found.endswith(("CERTIFICATE", "PRIVATE KEY")) for found in labels):
            message = f"{path} holds no PEM block {label}, but {shown(*labels)}."
            raise Failed(failure("file.swapped", subject, message, _SWAPPED))
        message = f"{path} holds no PEM block {label}".rstrip() + "."
        raise Failed(failure("file.not_pem", subject, message, files.sign_again()))
    return content
