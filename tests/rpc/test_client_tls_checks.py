"""What `ktrdr doctor` says of TLS and tokens, against real servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from ktrdr_client.cli.checks import Check, Status, check_backend
from ktrdr_client.cli.doctor import doctor
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tls_checks import check_tls
from ktrdr_client.settings import ClientSettings

from ktrdr_core.clock import utc_now
from ktrdr_core.security.certificates import KeyPair, facts_of, issue, read_certificates
from ktrdr_core.security.deployment import create_deployment
from ktrdr_core.security.scopes import Scope
from tests.kit.backend import running_backend
from tests.kit.eventually import PATIENCE_S
from tests.kit.security import Deployment, a_deployment
from tests.rpc.test_security import echoing

PLAIN = ClientSettings.load(backend="x:1", environment={})


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return a_deployment(tmp_path / "files", days=30)


def _settings(deployment: Deployment, *, shows: str | None = None, who: str | None = "reader") -> ClientSettings:
    pair = (None, None) if shows is None else (deployment.file(f"{shows}.crt"), deployment.file(f"{shows}.key"))
    token = deployment.file(f"{who}.token") if who else None
    return replace(PLAIN, tls_ca=deployment.file("ca.crt"), tls_cert=pair[0], tls_key=pair[1], token_file=token)


async def _checks(address: str, settings: ClientSettings) -> list[Check]:
    return await asyncio.wait_for(asyncio.to_thread(check_tls, address, settings), PATIENCE_S)


async def _only(address: str, settings: ClientSettings) -> Check:
    (check,) = await _checks(address, settings)
    return check


def _authority(deployment: Deployment) -> KeyPair:
    return KeyPair(certificate=deployment.file("ca.crt").read_bytes(), key=deployment.file("ca.key").read_bytes())


def _install(deployment: Deployment, pair: KeyPair, name: str = "backend") -> None:
    deployment.file(f"{name}.crt").write_bytes(pair.certificate)
    deployment.file(f"{name}.key").write_bytes(pair.key)


@asynccontextmanager
async def plain_server() -> AsyncIterator[str]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_all_is_well_until_its_date(deployment: Deployment) -> None:
    async with echoing(deployment.service("backend")) as address:
        check = await _only(address, _settings(deployment))
    leaf = read_certificates(deployment.file("backend.crt").read_bytes(), name="")[0]
    assert check.status is Status.OK
    assert f"valid until {facts_of(leaf).not_after:%Y-%m-%d}" in check.message


async def test_wrong_ca_is_told(deployment: Deployment, tmp_path: Path) -> None:
    create_deployment(tmp_path / "other")
    settings = replace(_settings(deployment), tls_ca=tmp_path / "other" / "ca.crt")
    async with echoing(deployment.service("backend")) as address:
        check = await _only(address, settings)
    assert (check.status, f"is not of the CA in {tmp_path / 'other'}" in check.message) == (Status.PROBLEM, True)


async def test_expired_certificate_is_told_with_its_date(deployment: Deployment) -> None:
    pair, end = _expired(_authority(deployment))
    _install(deployment, pair)
    async with echoing(deployment.service("backend")) as address:
        check = await _only(address, _settings(deployment))
    assert check.status is Status.PROBLEM
    assert f"has expired on {end}" in check.message
    assert "--renew" in check.advice


def _expired(authority: KeyPair) -> tuple[KeyPair, str]:
    """Return a certificate that was valid, and its end."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = read_certificates(authority.certificate, name="")[0]
    issuer_key = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    end = utc_now() - timedelta(hours=3)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=1))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyPair(certificate=certificate.public_bytes(pem), key=secret), f"{end:%Y-%m-%d %H:%M} UTC"


async def test_certificate_of_another_host_is_told_with_its_hosts(deployment: Deployment) -> None:
    _install(deployment, issue(_authority(deployment), "a", hosts=["gpu-1", "10.0.0.7"], days=30))
    async with echoing(deployment.service("backend")) as address:
        check = await _only(address, _settings(deployment))
    assert check.status is Status.PROBLEM
    assert "is for gpu-1, 10.0.0.7, not for 127.0.0.1" in check.message


async def test_certificate_that_ends_soon_is_a_warning_here_and_there(deployment: Deployment) -> None:
    for name in ("backend", "user"):
        _install(deployment, issue(_authority(deployment), name, hosts=["127.0.0.1"], days=10), name)
    async with echoing(deployment.service("backend")) as address:
        own, theirs = await _checks(address, _settings(deployment, shows="user"))
    assert (own.status, theirs.status) == (Status.WARNING, Status.WARNING)
    assert "the certificate of user expires on" in own.message
    assert f"{address}: the certificate of backend expires on" in theirs.message


async def test_certificate_of_callers_that_is_not_shown_is_told(deployment: Deployment) -> None:
    async with echoing(deployment.service("backend", is_mutual=True)) as address:
        check = await _only(address, _settings(deployment))
        shown = await _only(address, _settings(deployment, shows="user"))
    assert (check.status, "wants a certificate of its callers" in check.message) == (Status.PROBLEM, True)
    assert "--tls-cert" in check.advice
    assert shown.status is Status.OK


async def test_own_certificate_of_another_ca_is_told(deployment: Deployment, tmp_path: Path) -> None:
    create_deployment(tmp_path / "other")
    stranger = Deployment(tmp_path / "other")
    settings = replace(_settings(deployment), tls_cert=stranger.file("user.crt"), tls_key=stranger.file("user.key"))
    async with echoing(deployment.service("backend", is_mutual=True)) as address:
        own, theirs = await _checks(address, settings)
    assert (own.status, "is not of the CA" in own.message) == (Status.WARNING, True)
    assert (theirs.status, "certificate" in theirs.message) == (Status.PROBLEM, True)


async def test_tls_on_one_side_only_is_told(deployment: Deployment) -> None:
    async with echoing(deployment.service("backend")) as address, plain_server() as plain:
        here = await _only(address, replace(PLAIN, token_file=deployment.file("reader.token")))
        there = await _only(plain, _settings(deployment))
        assert await _checks(plain, PLAIN) == [], "plain text to this machine is as it should be"
    assert (here.status, "speaks TLS, and this side does not" in here.message) == (Status.PROBLEM, True)
    assert (there.status, "speaks no TLS" in there.message) == (Status.PROBLEM, True)


async def test_nobody_there_is_told_by_another_check(deployment: Deployment) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert await _checks(address, _settings(deployment)) == []


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("ca.crt", b"junk", "ca.crt has no certificate"),
        ("ca.crt", None, "No such file"),
        ("reader.token", b"{}", "table of tokens"),
        ("reader.token", None, "No such file"),
        ("user.key", b"junk", "user.crt is no private key"),
    ],
)
async def test_file_that_is_no_good_is_told(
    deployment: Deployment, name: str, content: bytes | None, text: str
) -> None:
    if content is None:
        deployment.file(name).unlink()
    else:
        deployment.file(name).write_bytes(content)
    check = await _only("127.0.0.1:1", _settings(deployment, shows="user"))
    assert (check.status, text in check.message) == (Status.PROBLEM, True), check.message


async def test_token_that_others_can_read_is_a_warning(deployment: Deployment) -> None:
    deployment.file("reader.token").chmod(0o644)
    async with echoing(deployment.service("backend")) as address:
        token, tls = await _checks(address, _settings(deployment))
    assert (token.status, "others can read" in token.message, tls.status) == (Status.WARNING, True, Status.OK)


async def test_missing_token_and_missing_scope_are_told(deployment: Deployment, tmp_path: Path) -> None:
    deployment.add("gpu", Scope.TRAINER)
    async with running_backend(
        tmp_path,
        backend_token_file=deployment.table,
        backend_tls_cert=deployment.file("backend.crt"),
        backend_tls_key=deployment.file("backend.key"),
    ) as backend:
        address = f"127.0.0.1:{backend.app.port}"
        for who, text in ((None, "wants a token"), ("gpu", "needs read")):
            (reached, token), is_reached = await check_backend(address, deployment.caller(who))
            assert (is_reached, reached.status, token.status) == (True, Status.OK, Status.PROBLEM)
            assert text in token.message
        checks, _ = await check_backend(address, deployment.caller("reader"))
        assert {check.name: check.status for check in checks}["keepalive"] is Status.OK


async def test_token_that_would_go_to_another_machine_in_plain_text_is_a_problem(deployment: Deployment) -> None:
    check = await _only("gpu-1.invalid:50051", replace(PLAIN, token_file=deployment.file("reader.token")))
    assert (check.name, check.status, "--tls-ca" in check.advice) == ("token", Status.PROBLEM, True)
    settings = ClientSettings.load(
        backend="gpu-1.invalid:50051", token_file=deployment.file("reader.token"), environment={}
    )
    assert await doctor(CliSession(settings=settings)) is ExitCode.UNREACHABLE
