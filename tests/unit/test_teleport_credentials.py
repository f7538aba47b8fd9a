"""The three files of `tctl auth sign`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.errors import LinkRefused
from sidecar.teleport.credentials import Credentials, read_credentials

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    crt, key, cas = (tmp_path / name for name in ("auth.crt", "auth.key", "auth.cas"))
    crt.write_bytes(_CERTIFICATE)
    key.write_bytes(_CERTIFICATE.replace(b"CERTIFICATE", b"RSA PRIVATE KEY"))
    cas.write_bytes(_CERTIFICATE * 2)
    return crt, key, cas


def test_read(files: tuple[Path, Path, Path]) -> None:
    crt, key, cas = files
    assert read_credentials(*files) == Credentials(crt.read_bytes(), key.read_bytes(), cas.read_bytes())


def test_a_mark_at_the_start_is_read_over(files: tuple[Path, Path, Path]) -> None:
    """OpenSSL does not find the block behind it, and the key was called protected by a password."""
    plain = read_credentials(*files)
    for path in files:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_credentials(*files) == plain


@pytest.mark.parametrize("which", [0, 1, 2])
def test_missing_file_is_named(files: tuple[Path, Path, Path], which: int) -> None:
    files[which].unlink()
    with pytest.raises(LinkRefused, match=f"There is no file {files[which]}.*tctl auth sign") as caught:
        read_credentials(*files)
    assert caught.value.reason == "credentials"


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"ssh-rsa AAAA", _CERTIFICATE.replace(b"CERT", b"PRIV")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_file_without_its_block_is_named_without_its_content(
    files: tuple[Path, Path, Path], which: int, content: bytes
) -> None:
    files[which].write_bytes(content)
    with pytest.raises(LinkRefused, match=f"{files[which]} (holds no PEM block|is empty)") as caught:
        read_credentials(*files)
    assert "AAAA" not in str(caught.value)


def test_swapped_files_are_asked_about(files: tuple[Path, Path, Path]) -> None:
    crt, key, cas = files
    with pytest.raises(LinkRefused) as caught:
        read_credentials(key, crt, cas)
    said = f"{key} holds no PEM block CERTIFICATE, but RSA PRIVATE KEY. Each file under its own key of [teleport]:"
    assert caught.value.detail.startswith(said)


def test_no_secret_in_repr(files: tuple[Path, Path, Path]) -> None:
    credentials = read_credentials(*files)
    assert repr(credentials) == f"{credentials}" == "Credentials(***)"
