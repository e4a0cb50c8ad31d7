"""The backend's environment and flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from backend_service.__main__ import parse_flags
from backend_service.settings import BackendSettings
from ktrdr_core.domain.spec import ExecutionMode


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRAINING_DEFAULT_MODE", "TRAINING_HOST_SERVICE_URL", "USE_TRAINING_HOST_SERVICE", "KTRDR_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_defaults_listen_on_loopback_and_choose_the_place_themselves() -> None:
    settings = BackendSettings()
    assert (settings.host, settings.port, settings.slots) == ("127.0.0.1", 50051, 1)
    assert settings.initial_mode is ExecutionMode.AUTO
    assert settings.bars_dir == Path.cwd() / "data"
    assert settings.data_dir == Path.home() / ".local/share/ktrdr"


def test_names_of_the_old_backend_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING_HOST_SERVICE_URL", "http://a:1, b:2,,a:1")
    monkeypatch.setenv("USE_TRAINING_HOST_SERVICE", "true")
    settings = BackendSettings()
    assert settings.trainers == ("a:1", "b:2")
    assert settings.initial_mode is ExecutionMode.HOST
    monkeypatch.setenv("TRAINING_DEFAULT_MODE", "LOCAL")
    assert BackendSettings().initial_mode is ExecutionMode.LOCAL


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KTRDR_DATA_DIR", "/elsewhere")
    monkeypatch.setenv("KTRDR_SLOTS", "3")
    flags = parse_flags(["--data-dir", str(tmp_path), "--trainer", "a:1", "--trainer", "b:2", "--port", "0"])
    settings = BackendSettings(**flags)
    assert settings.data_dir == tmp_path
    assert settings.database == tmp_path / "operations.db"
    assert settings.trainers == ("a:1", "b:2")
    assert (settings.slots, settings.port) == (3, 0)


@pytest.mark.parametrize(
    "values",
    [{"port": 70000}, {"trainers": "nohost"}, {"trainers": "a:x"}, {"default_mode": "gpu"}, {"log_level": "LOUD"}],
    ids=str,
)
def test_wrong_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BackendSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_backend_on_all_addresses_says_where_trainers_reach_it(host: str) -> None:
    with pytest.raises(ValidationError, match="--advertise-address"):
        BackendSettings(host=host)
    BackendSettings(host=host, advertise_address="office:50051", backend_insecure=True)
    with pytest.raises(ValidationError, match="host:port"):
        BackendSettings(host=host, advertise_address="office")


def test_trainers_elsewhere_cannot_reach_a_backend_on_loopback_by_themselves() -> None:
    trainers = ("localhost:50052", "gpu-1:50052")
    assert BackendSettings(trainers=trainers).unreachable_for == ("gpu-1:50052",)
    assert BackendSettings(trainers=trainers, advertise_address="office:50051").unreachable_for == ()
    assert BackendSettings(trainers=trainers, host="10.0.0.1", backend_insecure=True).unreachable_for == ()
