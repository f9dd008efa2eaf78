"""Who this device is, and which cluster it belongs to: the files in HOME/identity.

id                device id, 16 hex digits, made once
name              what people call the device
device.key        its private key
certificates.pem  its certificate, then the authority's: one file, so that belonging to a cluster is one step
ca.key            the authority's private key, on the founder only
ca.key.new        the same while a cluster is being founded: without certificates.pem it stands for nothing

Beside them lie, on the founder, `tokens` and `admitted`, and on the others `coordinator`: they are written
later, so they tell a home that lost its certificates from a new one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edged.cluster import authority
from edged.errors import ClusterError, SettingsError, UntrustedPeerError
from edged.private_file import private_directory, write_private

FOUNDERS_OWN = ("ca.key", "tokens", "admitted")
MEMBERS_OWN = ("coordinator",)
MAX_NAME = 63  # characters; as long as a DNS label


@dataclass(frozen=True)
class Identity:
    """A device that belongs to a cluster."""

    home: Path
    device: str  # device id
    name: str
    key: authority.Key = field(repr=False)
    certificate: x509.Certificate = field(repr=False)
    ca: x509.Certificate = field(repr=False)
    ca_key: authority.Key | None = field(default=None, repr=False)

    @property
    def is_founder(self) -> bool:
        """The founder signs certificates, hands out tokens and coordinates."""
        return self.ca_key is not None

    @cached_property
    def founder(self) -> str:
        """Device id of the device that founded the cluster."""
        return authority.founder_of(self.ca)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate: 64 hex digits."""
        return authority.fingerprint(self.ca)

    @property
    def cluster(self) -> str:
        """The fingerprint's short form: 16 hex digits."""
        return authority.short(self.fingerprint)

    @cached_property
    def key_pem(self) -> bytes:
        return authority.key_pem(self.key)

    @cached_property
    def certificate_pem(self) -> bytes:
        return authority.certificate_pem(self.certificate)

    @cached_property
    def ca_pem(self) -> bytes:
        return authority.certificate_pem(self.ca)

    @property
    def key_file(self) -> Path:
        return _folder(self.home) / "device.key"

    @property
    def certificate_file(self) -> Path:
        """PEM of the device's certificate followed by the authority's."""
        return _folder(self.home) / "certificates.pem"


def load(home: Path) -> Identity | None:
    """The identity kept in `home`; None if its device belongs to no cluster yet.

    Raises ClusterError, naming the file, if one is damaged or missing or does not match the others.
    """
    chain_file = _folder(home) / "certificates.pem"
    try:
        chain_pem = chain_file.read_bytes()
    except FileNotFoundError:
        if any((_folder(home) / name).exists() for name in (*FOUNDERS_OWN, *MEMBERS_OWN)):
            raise _damaged(chain_file, "it is missing, and this device belonged to a cluster") from None
        return None
    except OSError as error:
        raise ClusterError(f"cannot read {chain_file}: {error.strerror}") from None
    device = _read_id(home)
    key = _read_key(_folder(home) / "device.key")
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
    except ValueError:
        raise _damaged(chain_file, "it holds no certificates") from None
    if len(chain) != 2:
        raise _damaged(chain_file, f"it holds {len(chain)} certificates instead of 2")
    certificate, ca = chain
    try:
        authority.check_issued(certificate, ca)
        named = authority.device_of(certificate)
        authority.founder_of(ca)
    except UntrustedPeerError as error:
        raise _damaged(chain_file, error.message) from None
    if named != device:
        raise _damaged(chain_file, f"it is for the device {named}, and this one is {device}")
    if certificate.public_key() != key.public_key():
        raise _damaged(chain_file, "it does not belong to device.key")
    ca_key_file = _folder(home) / "ca.key"
    if authority.founder_of(ca) == device and not ca_key_file.exists():
        _finish_founding(home)
    ca_key = _read_key(ca_key_file) if ca_key_file.exists() else None
    if ca_key is not None and ca_key.public_key() != ca.public_key():
        raise _damaged(ca_key_file, "it does not belong to the authority in certificates.pem")
    return Identity(home, device, _read_name(home), key, certificate, ca, ca_key)


def found_cluster(home: Path, name: str) -> Identity:
    """Makes a new cluster whose founder and only member is this device.

    Raises ClusterError if `home` belongs to a cluster already.
    """
    _refuse_member(home)
    device, key = _device(home, name)
    ca_key, ca = authority.new_authority(device)
    certificate = authority.issue(ca_key, ca, device, key.public_key())
    write_private(_new_ca_key(home), authority.key_pem(ca_key))
    return _belong(home, certificate, ca)


def request_certificate(home: Path, name: str) -> bytes:
    """A certificate signing request (PEM) of this device, for the founder of a cluster to sign.

    Raises ClusterError if `home` belongs to a cluster already.
    """
    _refuse_member(home)
    device, key = _device(home, name)
    return authority.new_request(key, device)


def adopt(home: Path, certificate_pem: bytes, ca_pem: bytes) -> Identity:
    """Makes this device a member of the cluster that signed `certificate_pem`.

    Raises ClusterError if `home` belongs to a cluster already, UntrustedPeerError if the certificate is
    not this device's or not signed by `ca_pem`.
    """
    _refuse_member(home)
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        ca = x509.load_pem_x509_certificate(ca_pem)
    except ValueError:
        raise UntrustedPeerError("the founder answered with something that is not a certificate") from None
    authority.check_issued(certificate, ca)
    key = _read_key(_folder(home) / "device.key")
    if authority.device_of(certificate) != _read_id(home) or certificate.public_key() != key.public_key():
        raise UntrustedPeerError("the founder answered with another device's certificate")
    _new_ca_key(home).unlink(missing_ok=True)  # left by a founding that was cut short
    return _belong(home, certificate, ca)


def rename(home: Path, name: str) -> None:
    """Changes what people call this device. Raises SettingsError for a name that cannot be shown."""
    write_private(_folder(home) / "name", checked_name(name).encode())


def checked_name(name: str) -> str:
    """`name` without surrounding blanks. Raises SettingsError unless it is 1 to 63 printable characters."""
    name = name.strip()
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise SettingsError(f"a device name has 1 to {MAX_NAME} printable characters, not {name[:80]!r}")
    return name


def _folder(home: Path) -> Path:
    return home / "identity"


def _new_ca_key(home: Path) -> Path:
    return _folder(home) / "ca.key.new"


def _finish_founding(home: Path) -> None:
    """The last step of founding a cluster, also of one that was cut short. Raises ClusterError."""
    ca_key_file = _folder(home) / "ca.key"
    try:
        _new_ca_key(home).replace(ca_key_file)
    except FileNotFoundError:
        raise _damaged(ca_key_file, "it is missing, and this device founded the cluster", True) from None
    except OSError as error:
        raise ClusterError(f"cannot write {ca_key_file}: {error.strerror}") from None


def _refuse_member(home: Path) -> None:
    present = load(home)
    if present is not None:
        raise ClusterError(
            f"this device already belongs to the cluster {present.cluster}: start it without --join, "
            f"or remove {_folder(home)} first (the device then leaves that cluster for good)"
        )


def _device(home: Path, name: str) -> tuple[str, authority.Key]:
    """Id and key of this device, made at its first start."""
    private_directory(_folder(home))
    id_file, key_file = _folder(home) / "id", _folder(home) / "device.key"
    if not id_file.exists():
        write_private(id_file, secrets.token_hex(8).encode())
    if not key_file.exists():
        write_private(key_file, authority.key_pem(authority.new_key()))
    rename(home, name)
    return _read_id(home), _read_key(key_file)


def _belong(home: Path, certificate: x509.Certificate, ca: x509.Certificate) -> Identity:
    chain = authority.certificate_pem(certificate) + authority.certificate_pem(ca)
    write_private(_folder(home) / "certificates.pem", chain)
    identity = load(home)
    if identity is None:
        raise ClusterError(f"the identity just written to {_folder(home)} has gone: is the disk in order?")
    return identity


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except OSError as error:
        raise ClusterError(f"cannot read {path}: {error.strerror}") from None


def _read_id(home: Path) -> str:
    path = _folder(home) / "id"
    text = _read(path).decode("ascii", "replace").strip()
    if not authority.DEVICE_ID.fullmatch(text):
        raise _damaged(path, "it holds no device id (16 hex digits)")
    return text


def _read_name(home: Path) -> str:
    path = _folder(home) / "name"
    try:
        return checked_name(_read(path).decode())
    except (SettingsError, UnicodeDecodeError):
        raise _damaged(path, "it holds no device name") from None


def _read_key(path: Path) -> authority.Key:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        raise _damaged(path, "it holds no private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _damaged(path, "it holds a key of another kind than EC P-256")
    return key


def _damaged(path: Path, why: str, founder: bool = False) -> ClusterError:
    """`founder`: known to be one, whatever files are left."""
    if founder or any((path.parent / name).exists() for name in FOUNDERS_OWN):
        otherwise = (
            f"or give the cluster up: remove {path.parent}, start anew, and let every device join again"
        )
    else:
        otherwise = f"or remove {path.parent} and join again with a token"
    return ClusterError(f"{path} is damaged: {why}. Restore it from a backup, {otherwise}")
