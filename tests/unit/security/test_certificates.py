"""Certificates, held against OpenSSL where it has a say."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from ktrdr_core.clock import utc_now
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.security.certificates import (
    KeyPair,
    check_match,
    facts_of,
    is_issued_by,
    issue,
    make_authority,
    read_certificates,
    time_problems,
)


@pytest.fixture(scope="module")
def authority() -> KeyPair:
    return make_authority()


def _leaf(pair: KeyPair) -> x509.Certificate:
    return read_certificates(pair.certificate, name="leaf")[0]


def _usages(pair: KeyPair) -> set[x509.ObjectIdentifier]:
    return set(_leaf(pair).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_leaf_has_its_hosts_time_and_curve(authority: KeyPair) -> None:
    pair = issue(authority, "ktrdr backend", hosts=["office", "10.0.0.7", "[::1]", "office"], days=30)
    facts = facts_of(_leaf(pair))
    assert (facts.subject, facts.hosts) == ("ktrdr backend", ("office", "10.0.0.7", "::1"))
    assert timedelta(days=29) < facts.not_after - utc_now() <= timedelta(days=30)
    key = _leaf(pair).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_service_may_serve_and_call_and_a_caller_only_call(authority: KeyPair) -> None:
    assert _usages(issue(authority, "s", hosts=["a"], days=1)) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert _usages(issue(authority, "c", hosts=(), days=1)) == {ExtendedKeyUsageOID.CLIENT_AUTH}


def test_leaf_is_of_its_authority_and_can_sign_nothing(authority: KeyPair) -> None:
    leaf = issue(authority, "a", hosts=["a"], days=1)
    assert is_issued_by(leaf.certificate, authority.certificate)
    assert not is_issued_by(leaf.certificate, make_authority().certificate)
    assert not is_issued_by(issue(leaf, "b", hosts=["b"], days=1).certificate, authority.certificate)
    constraints = _leaf(leaf).extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)


def test_openssl_takes_the_files(authority: KeyPair, tmp_path: Path) -> None:
    pair = issue(authority, "a", hosts=["a"], days=1)
    for name, content in (("ca", authority.certificate), ("crt", pair.certificate), ("key", pair.key)):
        (tmp_path / name).write_bytes(content)
    context = ssl.create_default_context(cafile=str(tmp_path / "ca"))
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    assert context.cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize("days", [0, -1, 826])
def test_days_out_of_range_are_refused(authority: KeyPair, days: int) -> None:
    with pytest.raises(InvalidInputError, match=f"days must be 1 to 825, was {days}"):
        issue(authority, "a", hosts=["a"], days=days)


@pytest.mark.parametrize("host", ["", "a:1", "a b", "*.lan", "-a", "a/b", "é", "x" * 254, "a\n"])
def test_host_that_is_none_is_refused(authority: KeyPair, host: str) -> None:
    with pytest.raises(InvalidInputError, match="a host is a name such as"):
        issue(authority, "a", hosts=[host], days=1)


def test_leaf_never_outlives_its_authority() -> None:
    short = make_authority(days=2)
    leaf = issue(short, "a", hosts=["a"], days=30)
    assert _leaf(leaf).not_valid_after_utc == _leaf(short).not_valid_after_utc


def test_key_of_another_certificate_is_told(authority: KeyPair) -> None:
    one, other = (issue(authority, name, hosts=["a"], days=1) for name in "ab")
    check_match(one.certificate, one.key, name="a.crt")
    with pytest.raises(InvalidInputError, match=r"the key of a\.crt is not that of its certificate"):
        check_match(one.certificate, other.key, name="a.crt")


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_junk_is_no_certificate_and_no_key(authority: KeyPair, content: bytes) -> None:
    with pytest.raises(InvalidInputError, match=r"x\.crt"):
        read_certificates(content, name="x.crt")
    with pytest.raises(InvalidInputError, match=r"x\.crt"):
        check_match(authority.certificate, content, name="x.crt")


def test_certificate_about_to_end_is_told_with_its_date(authority: KeyPair) -> None:
    assert time_problems(issue(authority, "a", hosts=["a"], days=20).certificate, name="a.crt") == []
    pair = issue(authority, "ktrdr backend", hosts=["a"], days=13)
    (problem,) = time_problems(pair.certificate, name="a.crt")
    day = f"{_leaf(pair).not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    assert problem == f"the certificate of ktrdr backend expires on {day} (a.crt)"
    facts = facts_of(_leaf(pair))
    assert facts.problem(facts.not_after) == f"the certificate of ktrdr backend has expired on {day}"


def test_key_is_not_shown(authority: KeyPair) -> None:
    assert "PRIVATE" not in repr(authority)
