"""The certificates of a Teleport cluster: Host CA, User CA, and what they sign, shaped as Teleport shapes them.

Facts: lib/tlsca/ca.go and lib/auth/auth.go, 7.0 to 18.0; the subject attributes are Teleport's own ASN.1 numbers.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

API_DOMAIN = "teleport.cluster.local"
CLUSTER_OID = ObjectIdentifier("1.3.9999.1.7")
IMPERSONATOR_OID = ObjectIdentifier("1.3.9999.2.7")
BOT_OID = ObjectIdentifier("1.3.9999.2.18")

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

_BACKDATED = dt.timedelta(minutes=1)
_USER_TTL = dt.timedelta(hours=12)
_TEN_YEARS = dt.timedelta(days=3650)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        """Keep the key out of test reports."""
        return "Issued(...)"


@dataclass(frozen=True)
class CredentialFiles:
    """Where `write_credentials` put the three files of `tctl auth sign --format=tls`."""

    crt: Path
    key: Path
    cas: Path


class Authority:
    """A self-signed CA with the subject that Teleport's CAs bear: serialNumber, CN and O of the cluster."""

    def __init__(self, cluster: str, *, rsa_keys: bool = False) -> None:
        self.rsa_keys = rsa_keys
        self.key = _make_key(rsa_keys=rsa_keys)
        serial = x509.random_serial_number()
        self.name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
                x509.NameAttribute(NameOID.COMMON_NAME, cluster),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial)),
            ]
        )
        self.certificate = self._self_sign(serial)

    @property
    def pem(self) -> bytes:
        """The CA certificate alone."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        subject: x509.Name,
        *,
        names: Sequence[x509.GeneralName] = (),
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
        key: PrivateKey | None = None,
    ) -> Issued:
        """Sign a leaf, with a new key unless one is given; from one minute ago to twelve hours from now by default."""
        key = key or _make_key(rsa_keys=self.rsa_keys)
        before = not_before or _now() - _BACKDATED
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(before)
            .not_valid_after(not_after or max(_now(), before) + _USER_TTL)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return Issued(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))

    def _self_sign(self, serial: int) -> x509.Certificate:
        public = self.key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(_now() - _TEN_YEARS)
            .not_valid_after(_now() + _TEN_YEARS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self.key, hashes.SHA256())
        )


class ClusterPki:
    """The two CAs of one cluster. `rsa_keys` gives PKCS#1 RSA keys as 7 to 16 do; the default is P-256 as 18 does."""

    def __init__(self, cluster: str = "example.com", *, rsa_keys: bool = False) -> None:
        self.cluster = cluster
        self.host_id = str(uuid.uuid4())
        self.host_ca = Authority(cluster, rsa_keys=rsa_keys)
        self.user_ca = Authority(cluster, rsa_keys=rsa_keys)

    def server_certificate(
        self,
        *,
        nodename: str = "auth1",
        public_addr: Sequence[str] = (),
        authority: Authority | None = None,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> Issued:
        """Issue the Auth Service's own; each `public_addr` host is one more DNS SAN, or IP SAN when it is a literal."""
        hosts = [nodename, *public_addr, f"*.{API_DOMAIN}", API_DOMAIN]
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, f"{self.host_id}.{self.cluster}"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Auth"),
                x509.NameAttribute(CLUSTER_OID, self.cluster),
            ]
        )
        names = [general_name(host) for host in hosts]
        issuer = authority or self.host_ca
        return issuer.issue(subject, names=names, not_before=not_before, not_after=not_after)

    def user_certificate(  # noqa: PLR0913 - what a certificate may say
        self,
        user: str,
        roles: Sequence[str],
        *,
        impersonator: str | None = None,
        bot: str = "",
        cluster: str | None = None,
        authority: Authority | None = None,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
        key: PrivateKey | None = None,
    ) -> Issued:
        """Issue what `tctl auth sign` on the Auth host makes: its impersonator is then `<host uuid>.<cluster>`.

        `impersonator=""` leaves the attribute out, as a real login does.
        """
        if impersonator is None:
            impersonator = f"{self.host_id}.{self.cluster}"
        attributes = [
            x509.NameAttribute(NameOID.COMMON_NAME, user),
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, role) for role in roles),
            x509.NameAttribute(NameOID.POSTAL_CODE, "null"),
            x509.NameAttribute(CLUSTER_OID, self.cluster if cluster is None else cluster),
        ]
        if impersonator:
            attributes.append(x509.NameAttribute(IMPERSONATOR_OID, impersonator))
        if bot:
            attributes.append(x509.NameAttribute(BOT_OID, bot))
        issuer = authority or self.user_ca
        return issuer.issue(x509.Name(attributes), not_before=not_before, not_after=not_after, key=key)

    def write_credentials(
        self,
        folder: Path,
        user: str,
        roles: Sequence[str],
        *,
        name: str = "auth",
        impersonator: str | None = None,
        authority: Authority | None = None,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> CredentialFiles:
        """Write `<name>.crt`, `.key` and `.cas`, mode 0600; existing files are replaced."""
        issued = self.user_certificate(
            user, roles, impersonator=impersonator, authority=authority, not_before=not_before, not_after=not_after
        )
        return write_files(folder, issued, self.host_ca.pem, name=name)


def write_files(folder: Path, issued: Issued, authorities: bytes, *, name: str = "auth") -> CredentialFiles:
    """Write a certificate, its key and the CAs to trust as `tctl auth sign` lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = CredentialFiles(folder / f"{name}.crt", folder / f"{name}.key", folder / f"{name}.cas")
    for path, content in ((files.crt, issued.certificate), (files.key, issued.key), (files.cas, authorities)):
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_bytes(content)
    return files


@dataclass(frozen=True)
class Identity:
    """Who a client certificate says the caller is."""

    user: str
    roles: tuple[str, ...]
    impersonator: str = ""
    bot: str = ""


def read_identity(pem: bytes) -> Identity:
    """Read the subject of a user certificate (tlsca.FromSubject)."""
    subject = x509.load_pem_x509_certificate(pem).subject
    return Identity(
        user=_first(subject, NameOID.COMMON_NAME),
        roles=tuple(str(attribute.value) for attribute in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)),
        impersonator=_first(subject, IMPERSONATOR_OID),
        bot=_first(subject, BOT_OID),
    )


def _first(subject: x509.Name, oid: ObjectIdentifier) -> str:
    return next((str(attribute.value) for attribute in subject.get_attributes_for_oid(oid)), "")


def general_name(host: str) -> x509.GeneralName:
    """An IP address where it is one, else a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _make_key(*, rsa_keys: bool) -> PrivateKey:
    if rsa_keys:
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: PrivateKey) -> bytes:
    # lib/cryptosuites: RSA keys are PKCS#1, the newer ECDSA ones PKCS#8
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    layout = serialization.PrivateFormat.TraditionalOpenSSL if is_rsa else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, layout, serialization.NoEncryption())


def _key_usage(*, digital_signature: bool) -> x509.KeyUsage:
    """A leaf signs and enciphers keys; a CA signs certificates."""
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=digital_signature,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not digital_signature,
        crl_sign=not digital_signature,
        encipher_only=False,
        decipher_only=False,
    )
