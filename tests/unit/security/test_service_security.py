"""The rules of a service's security, through the settings of both services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backend_service.__main__ import parse_flags as parse_backend_flags
from backend_service.settings import BackendSettings
from trainer_service.__main__ import parse_flags as parse_trainer_flags
from trainer_service.settings import TrainerSettings

FULL = ["--tls-cert", "c", "--tls-key", "k", "--token-file", "t"]
ANYWHERE = ["0.0.0.0", "::", "[::]", "10.0.0.7", "gpu-1", "localhost.evil.example"]  # noqa: S104  told apart


def _settings(service: str, *flags: str) -> Any:
    if service == "backend":
        return BackendSettings(**parse_backend_flags(["--advertise-address", "a:1", *flags]))
    return TrainerSettings(**parse_trainer_flags(["--advertise-address", "a:1", *flags]))


@pytest.mark.parametrize("service", ["backend", "trainer"])
@pytest.mark.parametrize("host", ANYWHERE)
def test_other_machines_are_let_in_with_tls_and_tokens_only(service: str, host: str) -> None:
    for flags, missing in (
        ([], "--tls-cert and --tls-key and --token-file"),
        (FULL[:4], "give --token-file"),
        (FULL[4:], "give --tls-cert and --tls-key"),
    ):
        with pytest.raises(ValidationError, match=missing) as refused:
            _settings(service, "--host", host, *flags)
        assert "--insecure" in str(refused.value)
    assert _settings(service, "--host", host, *FULL).host == host
    assert _settings(service, "--host", host, "--insecure").host == host


@pytest.mark.parametrize("service", ["backend", "trainer"])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_nothing(service: str, host: str) -> None:
    assert _settings(service, "--host", host).security.tls_cert is None


@pytest.mark.parametrize("service", ["backend", "trainer"])
@pytest.mark.parametrize("flags", [["--tls-cert", "c"], ["--tls-key", "k"]])
def test_half_a_pair_is_refused(service: str, flags: list[str]) -> None:
    with pytest.raises(ValidationError, match="belong together"):
        _settings(service, *flags)


@pytest.mark.parametrize("service", ["backend", "trainer"])
def test_certificates_of_callers_need_an_own_one(service: str) -> None:
    with pytest.raises(ValidationError, match="which needs --tls-cert and --tls-key"):
        _settings(service, "--tls-ca", "ca")


@pytest.mark.parametrize(("service", "flag"), [("backend", "--trainer"), ("trainer", "--backend")])
def test_token_never_goes_to_another_machine_in_plain_text(service: str, flag: str) -> None:
    with pytest.raises(ValidationError, match=r"never sent to another machine \(gpu-1:5\) in plain text"):
        _settings(service, flag, "gpu-1:5", "--peer-token-file", "t")
    assert _settings(service, flag, "gpu-1:5", "--peer-token-file", "t", "--peer-ca", "ca")
    assert _settings(service, flag, "127.0.0.1:5", "--peer-token-file", "t")


@pytest.mark.parametrize("service", ["backend", "trainer"])
def test_variables_are_those_of_the_service_and_not_those_of_the_client(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KTRDR_TLS_CA", "KTRDR_TLS_CERT", "KTRDR_TLS_KEY", "KTRDR_TOKEN_FILE", "KTRDR_INSECURE"):
        monkeypatch.setenv(name, "/client")
    for name in ("TLS_CERT", "TLS_KEY", "TOKEN_FILE", "PEER_CA", "PEER_TOKEN_FILE"):
        monkeypatch.setenv(f"KTRDR_{service.upper()}_{name}", f"/{name}")
    monkeypatch.setenv(f"KTRDR_{service.upper()}_TLS_CA", "")
    found = _settings(service).security
    assert (found.tls_cert, found.tls_key, found.token_file) == (
        Path("/TLS_CERT"),
        Path("/TLS_KEY"),
        Path("/TOKEN_FILE"),
    )
    assert (found.peer_ca, found.peer_token_file) == (Path("/PEER_CA"), Path("/PEER_TOKEN_FILE"))
    assert (found.tls_ca, found.is_insecure) == (None, False)


@pytest.mark.parametrize("service", ["backend", "trainer"])
def test_ca_of_callers_is_trusted_in_calls_unless_another_is_named(service: str) -> None:
    pair = ["--tls-cert", "c", "--tls-key", "k", "--tls-ca", "/ca"]
    assert _settings(service, *pair).security.trusted_ca == Path("/ca")
    assert _settings(service, *pair, "--peer-ca", "/other").security.trusted_ca == Path("/other")
    assert _settings(service).security.trusted_ca is None
