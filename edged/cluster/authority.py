"""The cluster's certificate authority: who signs, and what a certificate of a device says.

Certificates name a device and nothing else: common name = device id, DNS name = `<device id>.edged`. The
authority's own certificate names the device that founded the cluster, so whoever knows the authority's hash
also knows which device to expect behind it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edged.errors import JoinRefusedError, UntrustedPeerError

DEVICE_ID = re.compile(r"[0-9a-f]{16}")
SHORT_FINGERPRINT_DIGITS = 16

# Small boards have no battery behind their clock and start in 1970, or in the year of their image: a date
# must never be what keeps a home cluster from starting. 9999-12-31 is RFC 5280's "no expiry".
NOT_BEFORE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
NOT_AFTER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint(ca: x509.Certificate) -> str:
    """The cluster's name among machines: SHA-256 of the authority's certificate (DER), 64 hex digits."""
    return hashlib.sha256(ca.public_bytes(serialization.Encoding.DER)).hexdigest()


def short(full: str) -> str:
    """The part of a fingerprint that is announced by mDNS and shown to people."""
    return full[:SHORT_FINGERPRINT_DIGITS]


def key_hash(key: ec.EllipticCurvePublicKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def tls_name(device: str) -> str:
    """The name that a device's certificate carries, and that a connection to it checks."""
    return f"{device}.edged"


def new_authority(founder: str) -> tuple[Key, x509.Certificate]:
    """A key and a self-signed certificate for a cluster founded by the device `founder`."""
    key = new_key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "edged cluster"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, founder),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def founder_of(ca: x509.Certificate) -> str:
    """The device id of the cluster's founder. Raises UntrustedPeerError if `ca` is no edged authority."""
    found = ca.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    if len(found) != 1 or not DEVICE_ID.fullmatch(str(found[0].value)):
        raise UntrustedPeerError("this certificate authority was not made by edged")
    return str(found[0].value)


def new_request(key: Key, device: str) -> bytes:
    """A certificate signing request (PEM) for `device`, signed with its key as proof of possession."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def read_request(request: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Device id and key of a signing request; everything else it says is ignored.

    Raises JoinRefusedError if it is malformed, not signed by its own key, or names no device id.
    """
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
        names = parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        signed = parsed.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise JoinRefusedError("the certificate request cannot be read") from None
    if not signed:
        raise JoinRefusedError("the certificate request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise JoinRefusedError("the certificate request has a key of another kind than EC P-256")
    device = str(names[0].value) if len(names) == 1 else ""
    if not DEVICE_ID.fullmatch(device):
        raise JoinRefusedError("the certificate request does not name a device id (16 hex digits)")
    return device, key


def issue(ca_key: Key, ca: x509.Certificate, device: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
    """A certificate for `device`, good as client and as server, and for nothing else."""
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(subject, ca.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(tls_name(device))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def device_of(certificate: x509.Certificate) -> str:
    """The device id in a certificate. Raises UntrustedPeerError if there is none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not DEVICE_ID.fullmatch(str(names[0].value)):
        raise UntrustedPeerError("this certificate names no edged device")
    return str(names[0].value)


def check_issued(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    """Raises UntrustedPeerError unless `ca` signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise UntrustedPeerError("the certificate was not signed by this cluster's authority") from None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
