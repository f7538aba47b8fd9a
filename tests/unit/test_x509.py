"""The DER walk against `cryptography`, which the product itself does without."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import ssl
import warnings
from functools import cache
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from sidecar.simulator.teleport import pki
from sidecar.teleport.x509 import CertificateFacts, _elements, certificate_ders, pem_blocks, read_certificate


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def _cluster() -> pki.ClusterPki:
    return pki.ClusterPki("example.com")


def _names(name: x509.Name, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in name.get_attributes_for_oid(oid))


def _expected(certificate: x509.Certificate) -> CertificateFacts:
    """The same facts by the other reader."""
    subject = certificate.subject
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        alternatives = x509.SubjectAlternativeName([])
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    issuer = next(iter(_names(certificate.issuer, NameOID.ORGANIZATION_NAME)), "")
    return CertificateFacts(
        user=next(iter(_names(subject, NameOID.COMMON_NAME)), ""),
        roles=_names(subject, NameOID.ORGANIZATION_NAME),
        cluster=next(iter(_names(subject, pki.CLUSTER_OID)), "") or issuer,
        impersonator=next(iter(_names(subject, pki.IMPERSONATOR_OID)), ""),
        issuer_organisation=issuer,
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        dns_names=tuple(alternatives.get_values_for_type(x509.DNSName)),
        ip_addresses=tuple(str(ip) for ip in alternatives.get_values_for_type(x509.IPAddress)),
        is_ca=is_ca,
        spki_sha256=hashlib.sha256(spki).hexdigest(),
    )


# X.509 gives a name 64 bytes.
_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16)
_dns = st.from_regex(r"(\*\.)?[a-z0-9-]{1,20}(\.[a-z0-9-]{1,10}){0,3}", fullmatch=True)
# 2050 is where UTCTime ends and GeneralizedTime begins.
_dates = st.integers(-599_000_000, 253_000_000_000).map(lambda second: dt.datetime.fromtimestamp(second, dt.UTC))


@given(
    user=_text,
    roles=st.lists(_text, max_size=4),
    impersonator=st.one_of(st.just(""), _text),
    dns=st.lists(_dns, max_size=4),
    ips=st.lists(st.ip_addresses(), max_size=3),
    dates=st.tuples(_dates, _dates).map(sorted),
    serial=st.integers(1, 2**159 - 1),
    is_ca=st.sampled_from([None, True, False]),
)
def test_any_certificate_reads_as_cryptography_reads_it(
    user: str,
    roles: list[str],
    impersonator: str,
    dns: list[str],
    ips: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    dates: list[dt.datetime],
    serial: int,
    is_ca: bool | None,  # noqa: FBT001 - a hypothesis argument
) -> None:
    attributes = [
        x509.NameAttribute(NameOID.COMMON_NAME, user),
        *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, role) for role in roles),
        x509.NameAttribute(pki.CLUSTER_OID, "example.com"),
    ]
    if impersonator:
        attributes.append(x509.NameAttribute(pki.IMPERSONATOR_OID, impersonator))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(_cluster().user_ca.name)
        .public_key(_key().public_key())
        .serial_number(serial)
        .not_valid_before(dates[0])
        .not_valid_after(dates[1])
    )
    names = [*map(x509.DNSName, dns), *map(x509.IPAddress, ips), x509.RFC822Name("someone@example.com")]
    if dns or ips:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if is_ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    certificate = builder.sign(_key(), hashes.SHA256())

    assert read_certificate(certificate.public_bytes(serialization.Encoding.DER)) == _expected(certificate)
    assert read_certificate(certificate.public_bytes(serialization.Encoding.PEM)) == _expected(certificate)


def test_roles_in_one_set_as_go_writes_them() -> None:
    """Go puts every O of a subject into one set of the name, not into several of one each."""
    roles = x509.RelativeDistinguishedName(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, role) for role in ("dbadmin", "reviewer")]
    )
    user = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "alice")])
    issued = _cluster().user_ca.issue(x509.Name([roles, user]))
    assert read_certificate(issued.certificate).roles == ("dbadmin", "reviewer")


def _sequence(*elements: bytes) -> bytes:
    content = b"".join(elements)
    return b"\x30\x82" + len(content).to_bytes(2, "big") + content


def test_version_1_without_extensions() -> None:
    """The oldest form has neither a version nor names; nobody issues it, so it is cut from a newer one."""
    certificate = x509.load_pem_x509_certificate(_cluster().host_ca.pem)
    fields = [element.whole for element in _elements(next(_elements(certificate.tbs_certificate_bytes)).content)]
    signature = b"\x03\x01\x00"
    old = _sequence(_sequence(*fields[1:7]), fields[2], signature)
    facts = read_certificate(old)
    assert facts == msgspec.structs.replace(_expected(certificate), is_ca=False)
    assert facts == _expected(x509.load_der_x509_certificate(old))


def test_the_bundle_of_this_system() -> None:
    """Old authorities use every string type and date that X.509 has seen."""
    bundle = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    if not Path(bundle).is_file():
        pytest.skip("this system has no CA bundle")
    ders = certificate_ders(Path(bundle).read_bytes())
    assert len(ders) > 50
    for der in ders:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cryptography deplores a few serial numbers
            expected = _expected(x509.load_der_x509_certificate(der))
        assert read_certificate(der) == expected


@pytest.mark.parametrize("rsa_keys", [False, True])
def test_what_tctl_signs(rsa_keys: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """The subject of a certificate with Teleport's shape, in our words."""
    cluster = pki.ClusterPki("example.com", rsa_keys=rsa_keys)
    issued = cluster.user_certificate("access-plugin", ["access-plugin", "auditor"], impersonator="root.example.com")
    facts = read_certificate(issued.certificate)
    assert (facts.user, facts.roles) == ("access-plugin", ("access-plugin", "auditor"))
    assert (facts.cluster, facts.issuer_organisation) == ("example.com", "example.com")
    assert facts.impersonator == "root.example.com"
    assert (facts.dns_names, facts.ip_addresses, facts.is_ca) == ((), (), False)
    assert facts.not_after - facts.not_before >= 12 * 3600
    assert read_certificate(cluster.host_ca.pem).is_ca


@given(st.binary(max_size=200))
def test_junk_is_a_value_error(junk: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the kind is the promise, not its words
        read_certificate(junk)


@given(position=st.integers(0, 10_000), flipped=st.integers(1, 255), cut=st.integers(0, 10_000))
def test_a_damaged_certificate_reads_or_is_a_value_error(position: int, flipped: int, cut: int) -> None:
    """Nothing but ValueError ever comes out, whatever byte is wrong and wherever the file ends."""
    der = bytearray(certificate_ders(_cluster().host_ca.pem)[0])
    der[position % len(der)] ^= flipped
    for damaged in (bytes(der), bytes(der[: cut % len(der)])):
        try:
            read_certificate(damaged)
        except ValueError:
            continue


def test_pem_without_a_certificate_is_a_value_error() -> None:
    key = _cluster().user_certificate("bob", []).key
    with pytest.raises(ValueError, match="empty DER element"):
        read_certificate(key)


def test_pem_blocks_skip_what_stands_between() -> None:
    """An identity file holds SSH lines between its blocks."""
    issued = _cluster().user_certificate("bob", [])
    identity = issued.key + b"ssh-rsa-cert-v01@openssh.com AAAA\n" + issued.certificate + b"@cert-authority * AAAA\n"
    assert pem_blocks(identity) == [("PRIVATE KEY", issued.key), ("CERTIFICATE", issued.certificate)]
