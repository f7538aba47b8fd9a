"""What the sidecar shows to the Auth Service: the three files of `tctl auth sign --format=tls`, or its one."""

from __future__ import annotations

import codecs
from pathlib import Path

import msgspec

from sidecar.errors import LinkRefused
from sidecar.files import plain


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
    certificate, secret, authorities = (
        _read(crt, b"CERTIFICATE"),
        _read(key, b"PRIVATE KEY"),
        _read(cas, b"CERTIFICATE"),
    )
    return Credentials(certificate, secret, authorities, ca_pins=ca_pins)


def _read(path: Path, label: bytes) -> bytes:
    try:
        content = plain(path).read_bytes().removeprefix(codecs.BOM_UTF8)  # OpenSSL would call such a key garbled
    except OSError as exc:
        sentence = f"cannot read {path}: {exc.strerror or type(exc).__name__}"
        raise LinkRefused("teleport", "credentials", sentence) from exc
    if b"-----BEGIN " not in content or label not in content:
        hint = "; does each file stand under its own key of [teleport]?" if b"-----BEGIN " in content else ""
        raise LinkRefused("teleport", "credentials", f"{path} holds no PEM block {label.decode()}{hint}")
    return content
