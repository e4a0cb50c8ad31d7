"""The trainer's settings: flags first, then the environment, then the defaults here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ktrdr_core.addresses import is_address_for, is_host_port
from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.security.service_security import ServiceSecurity, path_or_none


def _shared(name: str) -> AliasChoices:
    """Return the names of a setting that backend and trainer of one machine share."""
    return AliasChoices(name, f"KTRDR_TRAINER_{name.upper()}", f"KTRDR_{name.upper()}")


class TrainerSettings(BaseSettings):
    """Environment of one trainer process: `KTRDR_TRAINER_<NAME>`, and `KTRDR_<NAME>` for what a machine shares.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        data_dir: Directory of the state; the trainer's is under `trainer/`.
        bars_dir: Directory with bars of this machine, for trainings that ask for those.
        bar_cache_bytes: How much of the bars of backends is kept.
        slots: Sessions that run at once; each has a worker process.
        backends: Addresses (host:port) of backends this trainer announces itself to, comma-separated; without any, the
            backends name the trainer.
        advertise_address: host:port under which backends reach this trainer; "" means where it listens.
        drain_timeout_s: How long a stopping trainer lets running sessions go on.
        checkpoint_every_s: How often a worker writes what another attempt goes on from.
        compression: How models are compressed on their way to a backend.
        keep_ended_s: How long ended sessions are listed, and checkpoints kept.
        tls_cert, tls_key: Certificate and key, PEM: TLS, and what it shows to backends that want to see a certificate.
        tls_ca: CA whose certificates callers must show.
        token_file: Table of the tokens it knows.
        peer_ca: CA of the backends it calls; tls_ca without it; with neither they are called in plain text.
        peer_token_file: Text of the token it calls them with.
        insecure: Let other machines in without TLS and tokens.
        log_level: Least severe level that is logged.
        log_format: "text" or "json", one line or object an event.
    """

    model_config = SettingsConfigDict(env_prefix="KTRDR_TRAINER_", frozen=True, extra="forbid", populate_by_name=True)

    host: str = "127.0.0.1"
    port: int = Field(default=50052, ge=0, le=65535)
    data_dir: Path = Field(default=Path("~/.local/share/ktrdr"), validation_alias=_shared("data_dir"))
    bars_dir: Path = Field(default=Path("data"), validation_alias=_shared("bars_dir"))
    bar_cache_bytes: int = Field(default=4 << 30, ge=1, validation_alias=_shared("bar_cache_bytes"))
    slots: int = Field(default=1, ge=1, le=1024)
    backends: Annotated[tuple[str, ...], NoDecode] = ()
    advertise_address: str = Field(default="", validate_default=True)
    drain_timeout_s: float = Field(default=10.0, ge=0)
    checkpoint_every_s: float = Field(default=10.0, gt=0, validation_alias=_shared("checkpoint_every_s"))
    compression: Compression = Field(default=Compression.AUTO, validation_alias=_shared("compression"))
    keep_ended_s: float = Field(default=86_400.0, ge=0)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    token_file: Path | None = None
    peer_ca: Path | None = None
    peer_token_file: Path | None = None
    insecure: bool = False
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

    @field_validator("tls_cert", "tls_key", "tls_ca", "token_file", "peer_ca", "peer_token_file", mode="before")
    @classmethod
    def _expand_file(cls, value: Any) -> Any:
        return path_or_none(value)

    @model_validator(mode="after")
    def _check_security(self) -> TrainerSettings:
        self.security.check(host=self.host, peers=self.backends)
        return self

    @property
    def security(self) -> ServiceSecurity:
        """Its TLS and tokens."""
        return ServiceSecurity(
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_ca=self.tls_ca,
            token_file=self.token_file,
            peer_ca=self.peer_ca,
            peer_token_file=self.peer_token_file,
            is_insecure=self.insecure,
        )

    @property
    def state_dir(self) -> Path:
        """Directory of everything this trainer keeps."""
        return self.data_dir.expanduser().resolve() / "trainer"

    @property
    def sessions_dir(self) -> Path:
        """Directory with one folder per session."""
        return self.state_dir / "sessions"

    @property
    def bar_cache_dir(self) -> Path:
        """Directory of bars of backends."""
        return self.state_dir / "bars"

    @property
    def checkpoints_dir(self) -> Path:
        """Directory of checkpoints that backends have put here."""
        return self.state_dir / "checkpoints"


def _check_address(address: str, *, what: str) -> None:
    if not is_host_port(address):
        raise ValueError(f"{what} is given as host:port, was {address!r}")
