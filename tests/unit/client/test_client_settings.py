from pathlib import Path

import pytest
from ktrdr_client.settings import ClientSettings

from ktrdr_core.errors import InvalidInputError


def test_defaults_need_no_environment() -> None:
    settings = ClientSettings.load(environment={})
    assert settings.backend is None
    assert settings.data_dir == Path("~/.local/share/ktrdr").expanduser().resolve()
    assert settings.bars_dir == Path("data").resolve()
    assert settings.embedded_idle_s == 300.0


def test_environment_is_used_and_flags_win(tmp_path: Path) -> None:
    environment = {
        "KTRDR_BACKEND": "gpu:50051",
        "KTRDR_DATA_DIR": str(tmp_path / "state"),
        "KTRDR_BARS_DIR": str(tmp_path / "bars"),
        "KTRDR_EMBEDDED_IDLE_S": "2.5",
    }
    settings = ClientSettings.load(environment=environment)
    assert (settings.backend, settings.data_dir) == ("gpu:50051", tmp_path / "state")
    assert (settings.bars_dir, settings.embedded_idle_s) == (tmp_path / "bars", 2.5)
    settings = ClientSettings.load(backend="here:1", data_dir=tmp_path / "other", environment=environment)
    assert (settings.backend, settings.data_dir) == ("here:1", tmp_path / "other")


def test_empty_variable_counts_as_unset() -> None:
    assert ClientSettings.load(environment={"KTRDR_BACKEND": "", "KTRDR_EMBEDDED_IDLE_S": ""}).backend is None


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_idle_time_that_is_no_positive_number_is_refused(value: str) -> None:
    with pytest.raises(InvalidInputError, match="KTRDR_EMBEDDED_IDLE_S must be a number of seconds above 0"):
        ClientSettings.load(environment={"KTRDR_EMBEDDED_IDLE_S": value})
