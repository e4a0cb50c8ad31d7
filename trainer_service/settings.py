"""The trainer's settings: flags first, then the environment, then the defaults here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _shared(name: str) -> AliasChoices:
    """Return the names of a setting that backend and trainer of one machine share."""
    return AliasChoices(name, f"KTRDR_TRAINER_{name.upper()}", f"KTRDR_{name.upper()}")


class TrainerSettings(BaseSettings):
    """Environment of one trainer process: `KTRDR_TRAINER_<NAME>`, and `KTRDR_<NAME>` for what a machine shares.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        data_dir: Directory of the state; the trainer's is under `trainer/`.
        bars_dir: Directory with the bars.
        slots: Sessions that run at once; each has a worker process.
        drain_timeout_s: How long a stopping trainer lets running sessions go on.
        keep_ended_s: How long ended sessions are listed.
        log_level: Least severe level that is logged.
    """

    model_config = SettingsConfigDict(env_prefix="KTRDR_TRAINER_", frozen=True, extra="forbid", populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = Field(default=50052, ge=0, le=65535)
    data_dir: Path = Field(default=Path("~/.local/share/ktrdr"), validation_alias=_shared("data_dir"))
    bars_dir: Path = Field(default=Path("data"), validation_alias=_shared("bars_dir"))
    slots: int = Field(default=1, ge=1, le=1024)
    drain_timeout_s: float = Field(default=10.0, ge=0)
    keep_ended_s: float = Field(default=86_400.0, ge=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", validation_alias=_shared("log_level")
    )

    @property
    def sessions_dir(self) -> Path:
        """Directory with one folder per session."""
        return self.data_dir.expanduser().resolve() / "trainer" / "sessions"
