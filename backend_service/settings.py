"""The backend's environment: read once, here, and validated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ktrdr_core.addresses import is_address_for, is_host_port
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.security.service_security import ServiceSecurity, path_or_none

LOOPBACK = "127.0.0.1:0"
DEFAULT_DATA_DIR = Path("~/.local/share/ktrdr")


class BackendSettings(BaseSettings):
    """What a backend is started with; each field is also the variable KTRDR_<FIELD>.

    Attributes:
        host, port: Where it listens; port 0 picks a free one.
        advertise_address: host:port under which trainers reach it, for uploads; "" means where it listens.
        data_dir: Its state: operations.db, models/, uploads/, sessions/.
        bars_dir: Bars, `<SYMBOL>_<timeframe>.csv` or `.parquet`.
        strategies_dir: Strategies that requests may name.
        trainers: Addresses of trainers, comma-separated; also TRAINING_HOST_SERVICE_URL.
        default_mode: Mode of trainings that name none, until UpdateConfig changes it; also TRAINING_DEFAULT_MODE.
        use_training_host_service: Makes "host" the default mode where none is given; also USE_TRAINING_HOST_SERVICE.
        slots: Trainings this machine runs at once.
        max_queued: Trainings that may wait for a place.
        max_upload_bytes: Largest artifact that is accepted.
        max_partial_uploads: Uploads of trainings, and as many of imports, that may be not whole yet.
        max_partial_upload_bytes: What those of trainings may need together, and those of imports.
        max_store_bytes: Size of the model store up to which models are taken; None has no limit.
        max_import_bytes: Largest file of bars that is accepted.
        health_timeout_s: Limit of a trainer's health check.
        trainer_lost_s: Silence after which a trainer is lost: length of its lease, and end of the attempts it has.
        retry_wait_s: How long a training whose trainer was lost waits for one before it fails.
        history_wait_s: How long a training whose model is stored waits for its lost trainer to tell the rest.
        checkpoint_every_s: How often a worker of this machine keeps a checkpoint.
        max_checkpoint_bytes: Largest checkpoint that is fetched from a trainer.
        database_url: Operations database, "postgresql://user@host/name"; "" is SQLite, operations.db in data_dir.
        drain_s: Time local trainings get to end after SIGTERM; then they are stopped with a checkpoint.
        kill_limit_s: Time a killed worker gets to be gone; then the backend ends without it.
        exit_when_idle_s: End after this long without training and RPC; None never does.
        backend_tls_cert, backend_tls_key: Certificate and key, PEM: TLS, and what it shows to trainers that want to see
            one. The plain variables, KTRDR_TLS_CERT and the like, are the client's.
        backend_tls_ca: CA whose certificates callers must show.
        backend_token_file: Table of the tokens it knows.
        backend_peer_ca: CA of the trainers it calls; backend_tls_ca without it; with neither in plain text.
        backend_peer_token_file: Text of the token it calls them with.
        backend_insecure: Let other machines in without TLS and tokens.
        log_level: Least level of the log on stderr.
        log_format: "text" or "json", one line or object an event.
    """

    model_config = SettingsConfigDict(env_prefix="KTRDR_", frozen=True, populate_by_name=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)
    advertise_address: str = ""
    data_dir: Path = DEFAULT_DATA_DIR
    bars_dir: Path = Path("data")
    strategies_dir: Path = Path("strategies")
    trainers: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), validation_alias=AliasChoices("KTRDR_TRAINERS", "TRAINING_HOST_SERVICE_URL")
    )
    default_mode: ExecutionMode | None = Field(
        default=None, validation_alias=AliasChoices("KTRDR_DEFAULT_MODE", "TRAINING_DEFAULT_MODE")
    )
    use_training_host_service: bool = Field(
        default=False, validation_alias=AliasChoices("KTRDR_USE_TRAINING_HOST_SERVICE", "USE_TRAINING_HOST_SERVICE")
    )
    slots: int = Field(default=1, ge=0)
    max_queued: int = Field(default=10_000, ge=1)
    max_upload_bytes: int = Field(default=8 << 30, ge=1)
    max_partial_uploads: int = Field(default=64, ge=1)
    max_partial_upload_bytes: int = Field(default=32 << 30, ge=1)
    max_store_bytes: int | None = Field(default=None, ge=1)
    max_import_bytes: int = Field(default=1 << 30, ge=1)
    health_timeout_s: float = Field(default=2.0, gt=0)
    trainer_lost_s: float = Field(default=10.0, gt=0)
    retry_wait_s: float = Field(default=3 * 86_400.0, ge=0)
    history_wait_s: float = Field(default=300.0, ge=0)
    checkpoint_every_s: float = Field(default=10.0, gt=0)
    max_checkpoint_bytes: int = Field(default=4 << 30, ge=1)
    database_url: str = Field(default="", repr=False)
    drain_s: float = Field(default=10.0, ge=0)
    kill_limit_s: float = Field(default=5.0, ge=0)
    exit_when_idle_s: float | None = Field(default=None, gt=0)
    backend_tls_cert: Path | None = None
    backend_tls_key: Path | None = None
    backend_tls_ca: Path | None = None
    backend_token_file: Path | None = None
    backend_peer_ca: Path | None = None
    backend_peer_token_file: Path | None = None
    backend_insecure: bool = False
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR|CRITICAL)$")
    log_format: Literal["text", "json"] = "text"

    @field_validator("trainers", mode="before")
    @classmethod
    def _split_addresses(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        addresses = [part.strip().removeprefix("http://").removeprefix("grpc://").rstrip("/") for part in parts]
        return tuple(dict.fromkeys(address for address in addresses if address))

    @field_validator("trainers")
    @classmethod
    def _check_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            if not is_host_port(address):
                raise ValueError(f"a trainer is given as host:port, was {address!r}")
        return addresses

    @field_validator("default_mode", mode="before")
    @classmethod
    def _lower_mode(cls, value: Any) -> Any:
        return value.strip().lower() or None if isinstance(value, str) else value

    @field_validator(
        *("backend_tls_cert", "backend_tls_key", "backend_tls_ca"),
        *("backend_token_file", "backend_peer_ca", "backend_peer_token_file"),
        mode="before",
    )
    @classmethod
    def _expand_file(cls, value: Any) -> Any:
        return path_or_none(value)

    @model_validator(mode="after")
    def _expand_paths(self) -> BackendSettings:
        for name in ("data_dir", "bars_dir", "strategies_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)).expanduser().absolute())
        return self

    @model_validator(mode="after")
    def _check_advertised(self) -> BackendSettings:
        if self.advertise_address:
            if not is_host_port(self.advertise_address):
                raise ValueError(f"advertise_address is given as host:port, was {self.advertise_address!r}")
            return self
        if not is_address_for(self.host, LOOPBACK):  # it listens on all addresses, so it has trainers elsewhere in mind
            raise ValueError(
                f"trainers cannot upload to a backend at host {self.host!r}; name an address of this machine with "
                "--advertise-address HOST:PORT"
            )
        return self

    @model_validator(mode="after")
    def _check_security(self) -> BackendSettings:
        self.security.check(host=self.host, peers=self.trainers)
        return self

    @property
    def security(self) -> ServiceSecurity:
        """Its TLS and tokens."""
        return ServiceSecurity(
            tls_cert=self.backend_tls_cert,
            tls_key=self.backend_tls_key,
            tls_ca=self.backend_tls_ca,
            token_file=self.backend_token_file,
            peer_ca=self.backend_peer_ca,
            peer_token_file=self.backend_peer_token_file,
            is_insecure=self.backend_insecure,
        )

    @property
    def unreachable_for(self) -> tuple[str, ...]:
        """Trainers that are told to upload to this machine's loopback, and can do so through a tunnel only."""
        if self.advertise_address:
            return ()
        return tuple(trainer for trainer in self.trainers if not is_address_for(self.host, trainer))

    @property
    def initial_mode(self) -> ExecutionMode:
        """Default mode before any UpdateConfig."""
        if self.default_mode is not None:
            return self.default_mode
        return ExecutionMode.HOST if self.use_training_host_service else ExecutionMode.AUTO

    @property
    def database(self) -> str | Path:
        """Where the operations database is: a URL, or the path of a SQLite file."""
        return self.database_url or self.data_dir / "operations.db"

    @property
    def renew_s(self) -> float:
        """How often trainers renew their leases, and those configured by address are checked."""
        return min(2.0, self.trainer_lost_s / 5)

    @property
    def checkpoints_dir(self) -> Path:
        return self.data_dir / "checkpoints"

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def uploads_dir(self) -> Path:
        return self.data_dir / "uploads"

    @property
    def bar_parts_dir(self) -> Path:
        return self.data_dir / "bar-parts"

    @property
    def bar_imports_dir(self) -> Path:
        return self.data_dir / "bar-imports"

    @property
    def sessions_dir(self) -> Path:
        return self.data_dir / "sessions"
