"""The trainer's settings: flags first, then the environment, then the defaults here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ktrdr_core.addresses import is_address_for, is_host_port


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
        backends: Addresses (host:port) of backends this trainer announces itself to, comma-separated; without any, the
            backends name the trainer.
        advertise_address: host:port under which backends reach this trainer; "" means where it listens.
        drain_timeout_s: How long a stopping trainer lets running sessions go on.
        checkpoint_every_s: How often a worker writes what another attempt goes on from.
        keep_ended_s: How long ended sessions are listed, and checkpoints kept.
        log_level: Least severe level that is logged.
        log_format: "text" or "json", one line or object an event.
    """

    model_config = SettingsConfigDict(env_prefix="KTRDR_TRAINER_", frozen=True, extra="forbid", populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = Field(default=50052, ge=0, le=65535)
    data_dir: Path = Field(default=Path("~/.local/share/ktrdr"), validation_alias=_shared("data_dir"))
    bars_dir: Path = Field(default=Path("data"), validation_alias=_shared("bars_dir"))
    slots: int = Field(default=1, ge=1, le=1024)
    backends: Annotated[tuple[str, ...], NoDecode] = ()
    advertise_address: str = Field(default="", validate_default=True)
    drain_timeout_s: float = Field(default=10.0, ge=0)
    checkpoint_every_s: float = Field(default=10.0, gt=0, validation_alias=_shared("checkpoint_every_s"))
    keep_ended_s: float = Field(default=86_400.0, ge=0)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", validation_alias=_shared("log_level")
    )
    log_format: Literal["text", "json"] = Field(default="text", validation_alias=_shared("log_format"))

    @field_validator("backends", mode="before")
    @classmethod
    def _split_addresses(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))

    @field_validator("backends")
    @classmethod
    def _check_backends(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            _check_address(address, what="a backend")
        return addresses

    @field_validator("advertise_address")
    @classmethod
    def _check_advertised(cls, address: str, info: ValidationInfo) -> str:
        if address:
            _check_address(address, what="advertise_address")
        else:
            host = info.data.get("host", "")
            for backend in info.data.get("backends", ()):
                if not is_address_for(host, backend):
                    raise ValueError(
                        f"backend {backend} cannot reach a trainer at host {host!r}; name an address of this machine"
                        " with --advertise-address HOST:PORT"
                    )
        return address

    @property
    def state_dir(self) -> Path:
        """Directory of everything this trainer keeps."""
        return self.data_dir.expanduser().resolve() / "trainer"

    @property
    def sessions_dir(self) -> Path:
        """Directory with one folder per session."""
        return self.state_dir / "sessions"

    @property
    def checkpoints_dir(self) -> Path:
        """Directory of checkpoints that backends have put here."""
        return self.state_dir / "checkpoints"


def _check_address(address: str, *, what: str) -> None:
    if not is_host_port(address):
        raise ValueError(f"{what} is given as host:port, was {address!r}")
