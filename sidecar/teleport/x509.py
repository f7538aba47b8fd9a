"""What a certificate says of itself: a DER walk of the few fields that matter, so that `cryptography` stays out.

It judges nothing: chains, signatures and keys are OpenSSL's business. Field order: RFC 5280, section 4.1.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import msgspec

# Object identifiers as DER writes them.
_COMMON_NAME = bytes.fromhex("550403")
_ORGANISATION = bytes.fromhex("55040a")
_BASIC_CONSTRAINTS = bytes.fromhex("551d13")
_SUBJECT_ALT_NAME = bytes.fromhex("551d11")
# 1.3.9999.1.7 and 1.3.9999.2.7, attributes of the subject: lib/tlsca/ca.go, Teleport 7 to 18.
_TELEPORT_CLUSTER = bytes.fromhex("2bce0f0107")
_TELEPORT_IMPERSONATOR = bytes.fromhex("2bce0f0207")

_BOOLEAN, _UTC_TIME, _VERSION, _EXTENSIONS = 0x01, 0x17, 0xA0, 0xA3
_EMPTY = b"\x30\x00"  # a sequence of nothing
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
# Printable, IA5 and numeric strings are ASCII; T61 (0x14) is Latin-1 wherever it is met; the rest is hostile or odd.
_CODECS = {0x0C: "utf-8", 0x14: "latin-1", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)


class CertificateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate in plain values. Texts are hostile; times are Unix seconds; "" where the certificate is silent."""

    user: str  # subject CN; of a server certificate "<host id>.<cluster>"
    roles: tuple[str, ...]  # subject O, as often as there are roles; of a CA the cluster
    cluster: str  # by its own word, else by its issuer
    impersonator: str
    issuer_organisation: str  # the cluster whose CA signed it
    serial: int
    not_before: float
    not_after: float
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]
    is_ca: bool
    spki_sha256: str  # hex, over the whole SubjectPublicKeyInfo


class _Element(NamedTuple):
    tag: int
    content: bytes
    whole: bytes


def read_certificate(data: bytes) -> CertificateFacts:
    """Read one certificate, DER or the first CERTIFICATE block of PEM. Raises ValueError when it is none."""
    if b"-----BEGIN" in data:
        data = next(iter(certificate_ders(data)), b"")
    try:
        return _read(data)
    except (IndexError, OverflowError) as exc:
        raise ValueError("not an X.509 certificate") from exc


def certificate_ders(pem: bytes) -> list[bytes]:
    """Take every CERTIFICATE block of PEM text apart. Raises ValueError for broken base64."""
    return [base64.b64decode(match[2]) for match in _PEM.finditer(pem) if match[1] == b"CERTIFICATE"]


def pem_blocks(data: bytes) -> list[tuple[str, bytes]]:
    """Every PEM block as (label, block with its two marker lines); whatever stands between them is left out."""
    return [(match[1].decode(), match[0] + b"\n") for match in _PEM.finditer(data)]


def _read(der: bytes) -> CertificateFacts:
    fields = list(_elements(_only(_only(der).content).content))
    if fields[0].tag == _VERSION:
        del fields[0]
    serial, _, issuer, validity, subject, spki, *optional = fields
    names, issued_by = _names(subject.content), _first(_names(issuer.content), _ORGANISATION)
    extensions = next((dict(_extensions(field.content)) for field in optional if field.tag == _EXTENSIONS), {})
    alternatives = list(_elements(_only(extensions.get(_SUBJECT_ALT_NAME, _EMPTY)).content))
    constraints = list(_elements(_only(extensions.get(_BASIC_CONSTRAINTS, _EMPTY)).content))
    not_before, not_after = _elements(validity.content)
    return CertificateFacts(
        user=_first(names, _COMMON_NAME),
        roles=tuple(names.get(_ORGANISATION, ())),
        cluster=_first(names, _TELEPORT_CLUSTER) or issued_by,
        impersonator=_first(names, _TELEPORT_IMPERSONATOR),
        issuer_organisation=issued_by,
        serial=int.from_bytes(serial.content, "big", signed=True),
        not_before=_time(not_before),
        not_after=_time(not_after),
        dns_names=tuple(_text(name) for name in alternatives if name.tag == _DNS_NAME),
        ip_addresses=tuple(str(ipaddress.ip_address(ip.content)) for ip in alternatives if ip.tag == _IP_ADDRESS),
        is_ca=bool(constraints) and constraints[0].tag == _BOOLEAN and constraints[0].content != b"\x00",
        spki_sha256=hashlib.sha256(spki.whole).hexdigest(),
    )


def _elements(der: bytes) -> Iterator[_Element]:
    at = 0
    while at < len(der):
        length, start = der[at + 1], at + 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[at + 2 : start], "big")
        if start + length > len(der):
            raise ValueError("a DER element is longer than what holds it")
        yield _Element(der[at], der[start : start + length], der[at : start + length])
        at = start + length


def _only(der: bytes) -> _Element:
    for element in _elements(der):
        return element
    raise ValueError("an empty DER element")


def _names(der: bytes) -> dict[bytes, list[str]]:
    # A name is a sequence of sets of (type, value); Go puts all values of one type into one set.
    names: dict[bytes, list[str]] = {}
    for one_set in _elements(der):
        for attribute in _elements(one_set.content):
            oid, value = _elements(attribute.content)
            names.setdefault(oid.content, []).append(_text(value))
    return names


def _extensions(der: bytes) -> Iterator[tuple[bytes, bytes]]:
    for extension in _elements(_only(der).content):
        oid, *_critical, value = _elements(extension.content)
        yield oid.content, value.content


def _first(names: dict[bytes, list[str]], oid: bytes) -> str:
    return names.get(oid, [""])[0]


def _text(element: _Element) -> str:
    return element.content.decode(_CODECS.get(element.tag, "ascii"), "replace")


def _time(element: _Element) -> float:
    digits = element.content.decode("ascii")
    if element.tag == _UTC_TIME:
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%S%z").timestamp()
