"""Who a device is: files, their rights, and what happens when they are not in order."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from edged.cluster import authority, identity
from edged.cluster.identity import (
    Identity,
    adopt,
    checked_name,
    found_cluster,
    load,
    rename,
    request_certificate,
)
from edged.errors import ClusterError, JoinRefusedError, SettingsError, UntrustedPeerError


def test_an_identity_is_the_same_after_a_restart(founder: Identity) -> None:
    again = load(founder.home)
    assert again is not None
    assert again.device == founder.device == again.founder
    assert again.name == "nas"
    assert again.is_founder
    assert again.fingerprint == founder.fingerprint
    assert again.cluster == founder.fingerprint[:16]
    assert again.key_pem == founder.key_pem


def test_a_member_is_no_founder(founder: Identity, member: Identity) -> None:
    assert not member.is_founder
    assert member.founder == founder.device != member.device
    assert member.fingerprint == founder.fingerprint


def test_a_home_without_cluster_has_no_identity(tmp_path: Path) -> None:
    assert load(tmp_path / "new") is None
    request_certificate(tmp_path / "new", "pi")
    assert load(tmp_path / "new") is None


def test_a_device_keeps_its_id_and_key_over_attempts_to_join(tmp_path: Path) -> None:
    first = authority.read_request(request_certificate(tmp_path, "pi"))
    second = authority.read_request(request_certificate(tmp_path, "pi"))
    assert first[0] == second[0]
    assert first[1] == second[1]


def test_nobody_else_can_read_the_files(founder: Identity) -> None:
    folder = founder.home / "identity"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["ca.key", "certificates.pem", "device.key", "id", "name"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_lax_rights_are_narrowed(founder: Identity) -> None:
    folder = founder.home / "identity"
    folder.chmod(0o755)
    rename(founder.home, "box")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_certificate_says_what_the_founder_says(founder: Identity, member: Identity) -> None:
    certificate = member.certificate
    assert authority.device_of(certificate) == member.device
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{member.device}.edged"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    authority.check_issued(certificate, founder.ca)


def test_a_member_refuses_another_cluster(member: Identity, tmp_path: Path) -> None:
    other = found_cluster(tmp_path / "other", "nuc")
    with pytest.raises(ClusterError, match=r"already belongs to the cluster .* remove"):
        request_certificate(member.home, "laptop")
    with pytest.raises(ClusterError, match="already belongs"):
        adopt(member.home, other.certificate_pem, other.ca_pem)
    with pytest.raises(ClusterError, match="already belongs"):
        found_cluster(member.home, "laptop")
    after = load(member.home)
    assert after is not None
    assert after.fingerprint == member.fingerprint


def test_a_certificate_for_somebody_else_is_not_adopted(founder: Identity, tmp_path: Path) -> None:
    home = tmp_path / "pi"
    request_certificate(home, "pi")
    with pytest.raises(UntrustedPeerError, match="another device's certificate"):
        adopt(home, founder.certificate_pem, founder.ca_pem)
    other = found_cluster(tmp_path / "other", "nuc")
    with pytest.raises(UntrustedPeerError, match="not signed"):
        adopt(home, founder.certificate_pem, other.ca_pem)
    with pytest.raises(UntrustedPeerError, match="not a certificate"):
        adopt(home, b"hello", founder.ca_pem)
    assert load(home) is None


@pytest.mark.parametrize("content", [b"", b"gar\xffbage\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("file", ["id", "name", "device.key", "certificates.pem", "ca.key"])
def test_a_damaged_file_is_named(founder: Identity, file: str, content: bytes) -> None:
    if file == "name" and content.startswith(b"-----"):
        content = b"\x1b[2J"
    (founder.home / "identity" / file).write_bytes(content)
    with pytest.raises(ClusterError, match=rf"identity/{file} is damaged") as caught:
        load(founder.home)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["id", "name", "device.key"])
def test_a_missing_file_is_named(founder: Identity, file: str) -> None:
    (founder.home / "identity" / file).unlink()
    with pytest.raises(ClusterError, match=rf"identity/{file} is damaged: it is missing"):
        load(founder.home)


@pytest.mark.parametrize("left", ["ca.key", "tokens", "admitted"])
def test_a_founder_that_lost_its_certificates_founds_no_other_cluster(founder: Identity, left: str) -> None:
    folder = founder.home / "identity"
    (folder / "certificates.pem").unlink()
    if left != "ca.key":
        (folder / "ca.key").rename(folder / left)
    kept = (folder / left).read_bytes()
    for again in (
        load,
        lambda home: found_cluster(home, "nas"),
        lambda home: request_certificate(home, "nas"),
    ):
        with pytest.raises(
            ClusterError, match=r"certificates.pem is damaged: .* give the cluster up: remove"
        ):
            again(founder.home)
    assert (folder / left).read_bytes() == kept


def test_a_member_that_lost_its_certificates_founds_no_cluster(member: Identity) -> None:
    folder = member.home / "identity"
    (folder / "coordinator").write_text("192.168.1.5:7411")
    (folder / "certificates.pem").unlink()
    with pytest.raises(ClusterError, match=r"certificates.pem is damaged: .* join again with a token"):
        found_cluster(member.home, "laptop")


def test_a_founder_that_lost_the_authoritys_key_is_no_follower(founder: Identity) -> None:
    (founder.home / "identity" / "ca.key").unlink()
    with pytest.raises(
        ClusterError, match=r"ca.key is damaged: it is missing, .* give the cluster up: remove"
    ):
        load(founder.home)


def test_advice_about_damage_keeps_a_cluster_from_being_lost(founder: Identity, member: Identity) -> None:
    for device, advice in ((founder, "or give the cluster up"), (member, "join again with a token")):
        device.key_file.write_bytes(b"")
        with pytest.raises(ClusterError, match=f"Restore it from a backup, .*{advice}"):
            load(device.home)


@pytest.mark.parametrize("step", ["ca.key.new", "certificates.pem"])
def test_a_founding_cut_short_is_finished(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    founder: Identity,
    make_member: Callable[..., Identity],
    step: str,
) -> None:
    """Cut short right after `step` was written: the next start founds one all the same, or joins."""
    write = identity.write_private

    def cut(path: Path, body: bytes) -> None:
        write(path, body)
        if path.name == step:
            raise KeyboardInterrupt

    for name in ("nas", "pi"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(identity, "write_private", cut)
            found_cluster(tmp_path / name, name)
    own = load(tmp_path / "nas") or found_cluster(tmp_path / "nas", "nas")
    assert own.is_founder
    again = load(tmp_path / "nas")
    assert again is not None
    assert again.is_founder
    assert again.fingerprint == own.fingerprint
    if step == "ca.key.new":
        assert not make_member("pi").is_founder
        assert not (tmp_path / "pi" / "identity" / "ca.key.new").exists()


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "identity").write_text("not a directory")
    with pytest.raises(ClusterError, match=r"cannot read .*certificates.pem"):
        load(tmp_path)
    with pytest.raises((ClusterError, SettingsError), match="identity"):
        found_cluster(tmp_path, "nas")


def test_files_of_two_devices_do_not_mix(
    founder: Identity, member: Identity, make_member: Callable[[str], Identity]
) -> None:
    other = make_member("pi")
    shutil.copy(other.key_file, member.key_file)
    with pytest.raises(ClusterError, match="does not belong to"):
        load(member.home)
    shutil.copy(founder.home / "identity" / "ca.key", other.home / "identity" / "ca.key")
    promoted = load(other.home)
    assert promoted is not None
    assert promoted.is_founder  # whoever holds the authority's key signs: that is why it is 0600


def test_names_are_fit_for_a_terminal(founder: Identity) -> None:
    assert checked_name("  Omas Rechner ☕ ") == "Omas Rechner ☕"
    for bad in ("", "   ", "a" * 64, "a\x1b[2Jb", "two\nlines"):
        with pytest.raises(SettingsError):
            checked_name(bad)
    rename(founder.home, "attic")
    renamed = load(founder.home)
    assert renamed is not None
    assert renamed.name == "attic"


def test_a_request_that_is_not_proof_of_possession_is_refused(tmp_path: Path) -> None:
    pem = request_certificate(tmp_path, "pi")
    request = x509.load_pem_x509_csr(pem)
    assert authority.read_request(pem)[1] == request.public_key()
    with pytest.raises(JoinRefusedError, match="cannot be read"):
        authority.read_request(
            b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
        )
    with pytest.raises(JoinRefusedError, match="device id"):
        authority.read_request(authority.new_request(authority.new_key(), "*.edged"))


def test_a_request_signed_by_another_key_is_refused() -> None:
    from cryptography.hazmat.primitives import serialization

    mine = authority.new_request(authority.new_key(), "0" * 16)
    theirs = authority.new_request(authority.new_key(), "0" * 16)

    def parts(pem: bytes) -> bytes:
        return x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)

    # same lengths of everything but the signature, so the tail of one fits the body of the other
    body, tail = parts(mine), x509.load_pem_x509_csr(theirs).signature
    signature = x509.load_pem_x509_csr(mine).signature
    if len(signature) != len(tail):
        forged = body.replace(signature, signature[:-1] + bytes([signature[-1] ^ 1]))
    else:
        forged = body.replace(signature, tail)
    swapped = x509.load_der_x509_csr(forged).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(JoinRefusedError, match="not signed by its own key"):
        authority.read_request(swapped)
