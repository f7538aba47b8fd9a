"""The certificates look like Teleport's, since the preflight and `check` are tried against them."""

import datetime as dt
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sidecar.simulator.teleport.pki import CLUSTER_OID, Authority, ClusterPki, Identity, read_identity, write_files


@pytest.fixture(scope="module")
def pki() -> ClusterPki:
    return ClusterPki("example.com")


def load(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def names(certificate: x509.Certificate) -> list[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def test_a_stock_server_certificate_names_no_address(pki: ClusterPki) -> None:
    certificate = load(pki.server_certificate().certificate)
    assert names(certificate) == ["auth1", "*.teleport.cluster.local", "teleport.cluster.local"]
    assert certificate.issuer == load(pki.host_ca.pem).subject


def test_public_addr_adds_dns_and_ip_names(pki: ClusterPki) -> None:
    certificate = load(pki.server_certificate(public_addr=["auth.example.com", "10.9.8.7"]).certificate)
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "auth.example.com" in extension.get_values_for_type(x509.DNSName)
    assert [str(address) for address in extension.get_values_for_type(x509.IPAddress)] == ["10.9.8.7"]


def test_a_user_certificate_is_what_tctl_signs(pki: ClusterPki) -> None:
    issued = pki.user_certificate("bob@example.com", ["devops", "access"])
    certificate = load(issued.certificate)
    assert certificate.issuer == load(pki.user_ca.pem).subject
    assert [str(each.value) for each in certificate.subject.get_attributes_for_oid(CLUSTER_OID)] == ["example.com"]
    assert read_identity(issued.certificate) == Identity(
        "bob@example.com", ("devops", "access"), f"{pki.host_id}.example.com"
    )
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    age = dt.datetime.now(dt.UTC) - certificate.not_valid_before_utc
    assert dt.timedelta(minutes=1) <= age < dt.timedelta(minutes=2)


def test_a_login_has_no_impersonator(pki: ClusterPki) -> None:
    assert read_identity(pki.user_certificate("bob", [], impersonator="").certificate) == Identity("bob", ())


def test_the_authorities_have_a_subject_like_teleports(pki: ClusterPki) -> None:
    subject = load(pki.host_ca.pem).subject
    assert [attribute.oid for attribute in subject] == [
        NameOID.ORGANIZATION_NAME,
        NameOID.COMMON_NAME,
        NameOID.SERIAL_NUMBER,
    ]
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "example.com"


def test_any_dates_and_any_authority(pki: ClusterPki) -> None:
    """Expired, not yet valid and foreign certificates are what the negative tests need."""
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    past = now - dt.timedelta(days=2)
    expired = load(pki.user_certificate("bob", [], not_before=past, not_after=past + dt.timedelta(days=1)).certificate)
    assert (expired.not_valid_before_utc, expired.not_valid_after_utc) == (past, past + dt.timedelta(days=1))
    later = load(pki.user_certificate("bob", [], not_before=now + dt.timedelta(days=30)).certificate)
    assert later.not_valid_after_utc > later.not_valid_before_utc
    foreign = Authority("other.example.com")
    assert load(pki.user_certificate("bob", [], authority=foreign).certificate).issuer == foreign.name


@pytest.mark.parametrize(("rsa_keys", "header"), [(False, b"BEGIN PRIVATE KEY"), (True, b"BEGIN RSA PRIVATE KEY")])
def test_credentials_are_three_private_files(tmp_path: Path, rsa_keys: bool, header: bytes) -> None:  # noqa: FBT001
    files = ClusterPki(rsa_keys=rsa_keys).write_credentials(tmp_path / "new", "access-plugin", ["access-plugin"])
    assert [path.name for path in (files.crt, files.key, files.cas)] == ["auth.crt", "auth.key", "auth.cas"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.crt.parent.iterdir()} == {0o600}
    assert header in files.key.read_bytes()
    context = ssl.create_default_context(cafile=str(files.cas))
    context.load_cert_chain(files.crt, files.key)


def test_a_strict_client_accepts_the_server(tmp_path: Path, pki: ClusterPki) -> None:
    """Python 3.13 verifies with VERIFY_X509_STRICT, and a real server passes it."""
    files = write_files(tmp_path, pki.server_certificate(), b"", name="server")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.crt, files.key)
    client = ssl.create_default_context(cadata=pki.host_ca.pem.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    handshake(client, serving, "teleport.cluster.local")
    with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
        handshake(client, serving, "localhost")


def test_an_issued_key_is_not_in_its_repr(pki: ClusterPki) -> None:
    assert repr(pki.user_certificate("bob", [])) == "Issued(...)"


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Shake hands in memory. Raises SSLError when the client does not like the server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=name)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(6):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert near.getpeercert()
