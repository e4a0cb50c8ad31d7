"""X.509 certificates of one deployment: EC P-256 keys, a CA of its own, leaves for its services and people."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ktrdr_core.clock import utc_now
from ktrdr_core.errors import InvalidInputError

WARN_BEFORE = timedelta(days=14)
CA_DAYS = 3_650
MAX_DAYS = 825  # the longest that common TLS libraries accept of a leaf
_CLOCK_SKEW = timedelta(hours=1)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A certificate and its private key, both PEM; the key is never shown."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"KeyPair(certificate={self.certificate!r})"


@dataclass(frozen=True, kw_only=True)
class CertificateFacts:
    """What a person wants to know of a certificate.

    Attributes:
        subject: Its common name.
        not_after: End of its validity.
        hosts: Names and addresses it is for; empty for one of a caller.
    """

    subject: str
    not_after: datetime
    hosts: tuple[str, ...]

    def problem(self, now: datetime) -> str:
        """Return what is wrong with its time, "" if it is valid for longer than two weeks."""
        day = f"{self.not_after:%Y-%m-%d %H:%M} UTC"
        if self.not_after <= now:
            return f"the certificate of {self.subject} has expired on {day}"
        if self.not_after - now <= WARN_BEFORE:
            return f"the certificate of {self.subject} expires on {day}"
        return ""


def make_authority(*, days: int = CA_DAYS) -> KeyPair:
    """Return a new CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ktrdr CA")])
    usage = _key_usage(signs_certificates=True)
    certificate = (
        _builder(name, name, key, utc_now() + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def issue(authority: KeyPair, name: str, *, hosts: Sequence[str], days: int) -> KeyPair:
    """Return a leaf of a CA.

    Args:
        authority: The CA.
        name: Common name.
        hosts: Names and addresses under which it serves; without any it is for a caller only.
        days: How long it is valid, 1 to 825.

    Raises:
        InvalidInputError: A host or `days` breaks a rule, or the CA is no good.
    """
    if not 1 <= days <= MAX_DAYS:
        raise InvalidInputError(f"days must be 1 to {MAX_DAYS}, was {days}", field="days")
    issuer = read_certificates(authority.certificate, name="the CA")[0]
    try:
        issuer_key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidInputError("the key of the CA is no private key in PEM; restore it") from error
    check_match(authority.certificate, authority.key, name="the CA")
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise InvalidInputError(
            "the key of the CA is none of an elliptic curve; use the one `ktrdr security init` made"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
    end = min(utc_now() + timedelta(days=days), issuer.not_valid_after_utc)
    builder = (
        _builder(subject, issuer.subject, key, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    if hosts:
        names = [_general_name(host) for host in dict.fromkeys(hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def read_certificates(content: bytes, *, name: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, the leaf first.

    Raises:
        InvalidInputError: It has none, or one is damaged.
    """
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise InvalidInputError(f"{name} has no certificate in PEM that can be read ({error})") from error


def check_match(certificate: bytes, key: bytes, *, name: str) -> None:
    """Raise InvalidInputError unless a key is that of a certificate."""
    leaf = read_certificates(certificate, name=name)[0]
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:  # TypeError: it wants a password
        raise InvalidInputError(f"the key of {name} is no private key in PEM without a password") from error
    if private.public_key() != leaf.public_key():
        raise InvalidInputError(f"the key of {name} is not that of its certificate; give the two that belong together")


def is_issued_by(certificate: bytes, authority: bytes) -> bool:
    """Return whether one of the CAs has signed a certificate."""
    leaf = read_certificates(certificate, name="the certificate")[0]
    for each in read_certificates(authority, name="the CA"):
        try:
            leaf.verify_directly_issued_by(each)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def facts_of(certificate: x509.Certificate) -> CertificateFacts:
    """Return what a person wants to know."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        hosts: tuple[str, ...] = ()
    else:
        addresses = map(str, alternative.get_values_for_type(x509.IPAddress))
        hosts = (*alternative.get_values_for_type(x509.DNSName), *addresses)
    subject = str(names[0].value) if names else certificate.subject.rfc4514_string() or "no name"
    return CertificateFacts(subject=subject, not_after=certificate.not_valid_after_utc, hosts=hosts)


def time_problems(content: bytes, *, name: str) -> list[str]:
    """Return what is wrong with the times of the certificates in a PEM file: expired, or about to."""
    now = utc_now()
    found = [facts_of(each).problem(now) for each in read_certificates(content, name=name)]
    return [f"{problem} ({name})" for problem in found if problem]


def check_host(host: str) -> None:
    """Raise InvalidInputError unless a certificate may be for this host."""
    _general_name(host)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(host):
        raise InvalidInputError(
            f"a host is a name such as gpu-1.lan or an address such as 10.0.0.7, without a port; was {host[:80]!r}",
            field="host",
        )
    return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(utc_now() - _CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
