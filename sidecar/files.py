"""The files that the configuration names, read the same way by whoever uses them, `check` among them.

Rule: what is wrong is a ConfigError that begins with the setting and the path.
"""

from __future__ import annotations

import errno
import ssl
from pathlib import Path

import msgspec

from sidecar.errors import ConfigError

_TOKEN_BYTES = 2000  # the official plugin reads no more of its token file
_FOLDER = Path("/var/lib/teleport/plugins/mattermost")


class CredentialFiles(msgspec.Struct, frozen=True, kw_only=True):
    """Where our Teleport credentials are: `identity` alone, or the three files. `ca_pin` has any pin that may match."""

    client_crt: Path = _FOLDER / "auth.crt"
    client_key: Path = _FOLDER / "auth.key"
    root_cas: Path = _FOLDER / "auth.cas"
    identity: Path | None = None
    ca_pin: tuple[str, ...] = ()


def plain(path: Path) -> Path:
    """Return the path of a file to open. Raises OSError for a pipe or a device, which may never begin or never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
    return path


def read_token(setting: str, path: Path) -> str:
    """Return the token that a file holds alone. Raises ConfigError."""
    try:
        with plain(path).open("rb") as file:
            token = file.read(_TOKEN_BYTES).decode().strip()
    except OSError as exc:
        raise ConfigError([f"{setting}: {path} cannot be read: {exc.strerror}"]) from exc
    except UnicodeDecodeError:
        raise ConfigError([f"{setting}: {path} holds no token"]) from None
    if not token:
        raise ConfigError([f"{setting}: {path} is empty"])
    return token


def trusting(setting: str, ca_file: Path | None) -> ssl.SSLContext | None:
    """Return a context that trusts the system's authorities and those in a file. Raises ConfigError."""
    if ca_file is None:
        return None
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(plain(ca_file))
    except OSError as exc:
        why = "it holds no PEM certificate" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise ConfigError([f"{setting}: {ca_file} cannot be used: {why}"]) from exc
    return context


def load_pair(context: ssl.SSLContext, setting: str, crt: Path | None, key: Path | None) -> None:
    """Let a server show the certificate that is in its files now, if it has any. Raises ConfigError."""
    if crt is None or key is None:
        return
    try:
        context.load_cert_chain(plain(crt), plain(key))
    except OSError as exc:
        why = exc.strerror
        if isinstance(exc, ssl.SSLError):
            mismatch = exc.reason == "KEY_VALUES_MISMATCH"
            why = "the key is not the certificate's" if mismatch else "they are not a certificate and its key in PEM"
        raise ConfigError([f"{setting}: {crt} and {key} cannot be used: {why}"]) from exc


def reviewer_certificates(folder: Path) -> dict[str, Path]:
    """Return the certificates in `reviews.identities` by their Teleport users. Raises ConfigError where there are none.

    What is in them is not read.
    """
    try:
        found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == ".crt"}
    except OSError as exc:
        raise ConfigError([f"reviews.identities: {folder} cannot be read: {exc.strerror}"]) from exc
    if not found:
        raise ConfigError([f"reviews.identities: {folder} holds no certificate, such as alice@example.com.crt"])
    return found
