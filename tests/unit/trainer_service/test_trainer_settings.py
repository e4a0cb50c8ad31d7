"""Flags before environment before defaults; nonsense is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer_service.__main__ import parse_flags
from trainer_service.settings import TrainerSettings


def test_defaults() -> None:
    settings = TrainerSettings()

    assert (settings.host, settings.port, settings.slots, settings.bars_dir) == ("127.0.0.1", 50052, 1, Path("data"))
    assert settings.sessions_dir.parts[-3:] == ("ktrdr", "trainer", "sessions")


def test_the_environment_is_read_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_TRAINER_SLOTS", "4")
    monkeypatch.setenv("KTRDR_TRAINER_PORT", "6000")
    monkeypatch.setenv("KTRDR_DATA_DIR", "/srv/ktrdr")

    settings = TrainerSettings(**parse_flags(["--port", "0"]))

    assert (settings.slots, settings.port, settings.sessions_dir) == (4, 0, Path("/srv/ktrdr/trainer/sessions"))


def test_a_trainers_own_variable_beats_the_shared_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_BARS_DIR", "/shared")
    monkeypatch.setenv("KTRDR_TRAINER_BARS_DIR", "/own")

    assert TrainerSettings().bars_dir == Path("/own")


@pytest.mark.parametrize("flags", [["--slots", "0"], ["--port", "70000"], ["--log-level", "LOUD"]])
def test_nonsense_is_refused(flags: list[str]) -> None:
    with pytest.raises(ValidationError):
        TrainerSettings(**parse_flags(flags))


def test_flags_that_are_not_given_are_left_to_the_environment() -> None:
    assert parse_flags([]) == {}


def test_backends_are_a_list_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTRDR_TRAINER_BACKENDS", "127.0.0.1:1, localhost:2,,127.0.0.1:1")

    assert TrainerSettings().backends == ("127.0.0.1:1", "localhost:2")
    assert TrainerSettings(**parse_flags(["--backend", "[::1]:3"])).backends == ("[::1]:3",)
    assert TrainerSettings(**parse_flags(["--backend", ""])).backends == ()


@pytest.mark.parametrize(
    "flags",
    [["--backend", "nohost"], ["--backend", ":1"], ["--backend", "a:0"], ["--advertise-address", "a"]],
)
def test_what_is_no_address_is_refused(flags: list[str]) -> None:
    with pytest.raises(ValidationError, match="host:port"):
        TrainerSettings(**parse_flags(flags))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1", "localhost"])  # noqa: S104
def test_a_trainer_that_a_backend_cannot_reach_says_where_it_can(host: str) -> None:
    with pytest.raises(ValidationError, match="--advertise-address"):
        TrainerSettings(**parse_flags(["--host", host, "--backend", "a:1"]))

    settings = TrainerSettings(
        **parse_flags(["--host", host, "--backend", "a:1", "--advertise-address", "gpu.lan:50052", "--insecure"])
    )

    assert settings.advertise_address == "gpu.lan:50052"
    assert TrainerSettings(host=host, insecure=True).backends == ()
    assert TrainerSettings(host="gpu.lan", backends=("a:1",), insecure=True).advertise_address == ""
