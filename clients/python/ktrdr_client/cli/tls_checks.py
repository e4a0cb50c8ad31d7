"""The checks of `ktrdr doctor` that say what is wrong with TLS: gRPC says no more than that it cannot connect."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from ktrdr_client.cli.checks import Check, Status
from ktrdr_client.settings import ClientSettings
from ktrdr_core.addresses import is_host_port, is_loopback
from ktrdr_core.errors import KtrdrError
from ktrdr_core.security.private_files import is_open_to_others
from ktrdr_core.security.tokens import load_token

TIMEOUT_S = 3.0
_NOT_YET_VALID = 9  # codes of OpenSSL
_WRONG_HOST = (62, 64)
_RENEW = "where its CA is: ktrdr security init --renew --host NAME_OR_IP, then copy the certificate over the old one"


def check_tls(address: str, settings: ClientSettings) -> list[Check]:
    """Check the own files and the way to a backend; nothing is said of what is as it should be without TLS."""
    files, is_usable = _check_files(address, settings)
    if not is_usable or not is_host_port(address):
        return files
    try:
        return [*files, *_check_connection(address, settings)]
    except OSError:
        return files  # nobody is there, which another check tells


def _check_files(address: str, settings: ClientSettings) -> tuple[list[Check], bool]:
    """Return what there is to say of the own files, and whether they can be used at all."""
    found: list[Check] = []
    is_usable = True
    if settings.token_file is not None:
        try:
            load_token(settings.token_file)
            if is_open_to_others(settings.token_file):
                found.append(_warning("token", f"others can read {settings.token_file}", "chmod 600 it"))
        except (KtrdrError, OSError) as error:
            found.append(_problem("token", str(error), "give the file of one token with --token-file"))
            is_usable = False
    if settings.tls_ca is None:
        if settings.token_file is not None and not is_loopback(address.rpartition(":")[0]):
            text = f"a token is not sent to {address} in plain text"
            return [*found, _problem("token", text, "give the CA of the backend: --tls-ca or KTRDR_TLS_CA")], False
        return found, is_usable
    from ktrdr_core.security.certificates import is_issued_by, time_problems
    from ktrdr_core.security.files import load_tls

    try:
        files = load_tls(ca=settings.tls_ca, cert=settings.tls_cert, key=settings.tls_key)
    except (KtrdrError, OSError) as error:
        return [*found, _problem("tls", str(error), "give the files that `ktrdr security init` made")], False
    for path, content in ((settings.tls_ca, files.ca), (settings.tls_cert, files.cert)):
        if path is not None and content is not None:
            found += [_warning("tls", problem, _RENEW) for problem in time_problems(content, name=str(path))]
    if files.cert is not None and files.ca is not None and not is_issued_by(files.cert, files.ca):
        found.append(_warning("tls", f"{settings.tls_cert} is not of the CA in {settings.tls_ca}", _RENEW))
    return found, is_usable


def _check_connection(address: str, settings: ClientSettings) -> list[Check]:
    host, _, port = address.rpartition(":")
    if settings.tls_ca is None:
        if _presented(host, int(port)) is not None:
            advice = "give its CA: ktrdr --tls-ca ca.crt ..., or KTRDR_TLS_CA"
            return [_problem("tls", f"{address} speaks TLS, and this side does not", advice)]
        if is_loopback(host):
            return []
        text = f"plain text: whoever is on the way to {address} can read and change what is sent"
        return [_warning("tls", text, "give the services certificates: ktrdr security init")]
    context = ssl.create_default_context(cafile=settings.tls_ca)
    context.set_alpn_protocols(["h2"])
    if settings.tls_cert is not None and settings.tls_key is not None:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    try:
        with _connect(host, int(port)) as plain, context.wrap_socket(plain, server_hostname=host.strip("[]")) as secure:
            certificate = secure.getpeercert(binary_form=True)
            # A server that wants a certificate of its callers says so only now; one that does not says hello.
            if not secure.recv(1):
                raise ConnectionResetError
    except ssl.SSLCertVerificationError as error:
        return [_explained(address, host, int(port), settings.tls_ca, error)]
    except ssl.SSLError as error:
        if "CERTIFICATE" in (error.reason or "").upper():
            return [_wants_certificate(address)]
        return [
            _problem(
                "tls",
                f"{address} speaks no TLS ({error.reason or error})",
                "leave --tls-ca out, or ask for another port",
            )
        ]
    except ConnectionResetError:
        if settings.tls_cert is None:
            return [_wants_certificate(address)]
        return [_problem("tls", f"{address} does not take the certificate {settings.tls_cert}", _RENEW)]
    return [_told(address, certificate or b"")]


def _told(address: str, certificate: bytes) -> Check:
    from cryptography import x509

    from ktrdr_core.clock import utc_now
    from ktrdr_core.security.certificates import facts_of

    facts = facts_of(x509.load_der_x509_certificate(certificate))
    if problem := facts.problem(utc_now()):
        return _warning("tls", f"{address}: {problem}", _RENEW)
    text = f"{address} has a certificate that is valid until {facts.not_after:%Y-%m-%d}"
    return Check(name="tls", status=Status.OK, message=text)


def _explained(address: str, host: str, port: int, ca: Path, error: ssl.SSLCertVerificationError) -> Check:
    from cryptography import x509

    from ktrdr_core.clock import utc_now
    from ktrdr_core.security.certificates import facts_of

    found = _presented(host, port)
    facts = None if not found else facts_of(x509.load_der_x509_certificate(found))
    # Whatever OpenSSL has stumbled over first: nothing else is worth a look while it has expired.
    if facts is not None and facts.not_after <= utc_now():
        return _problem("tls", f"{address}: {facts.problem(utc_now())}", _RENEW)
    if error.verify_code == _NOT_YET_VALID:
        advice = "set the clocks of both machines by NTP"
        return _problem("tls", f"the certificate of {address} is not valid yet", advice)
    if facts is not None and error.verify_code in _WRONG_HOST:
        names = ", ".join(facts.hosts) or "no host"
        return _problem("tls", f"the certificate of {address} is for {names}, not for {host}", _RENEW)
    advice = "give the ca.crt that was made with its certificate"
    return _problem("tls", f"the certificate of {address} is not of the CA in {ca} ({error.verify_message})", advice)


def _presented(host: str, port: int) -> bytes | None:
    """Return the certificate a server shows, unchecked; None if it speaks no TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only looked at, never trusted
    context.set_alpn_protocols(["h2"])
    with _connect(host, port) as plain:
        try:
            with context.wrap_socket(plain) as secure:
                return secure.getpeercert(binary_form=True)
        except (ssl.SSLError, ConnectionResetError, TimeoutError):
            return None


def _connect(host: str, port: int) -> socket.socket:
    return socket.create_connection((host.strip("[]"), port), timeout=TIMEOUT_S)


def _wants_certificate(address: str) -> Check:
    advice = "give user.crt and user.key: ktrdr --tls-cert user.crt --tls-key user.key ..."
    return _problem("tls", f"{address} wants a certificate of its callers", advice)


def _problem(name: str, message: str, advice: str) -> Check:
    return Check(name=name, status=Status.PROBLEM, message=message, advice=advice)


def _warning(name: str, message: str, advice: str) -> Check:
    return Check(name=name, status=Status.WARNING, message=message, advice=advice)
