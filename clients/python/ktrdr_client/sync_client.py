"""The backend's client for synchronous code: the async one on a background event loop."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Self

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.bars_types import ImportMode, Series
from ktrdr_client.model_calls import ALL_MODELS, MODELS_PAGE_SIZE, PULL_POLICY
from ktrdr_client.model_pull import OnRetry, Progress, PullPolicy
from ktrdr_client.model_types import Garbage, Model, ModelPage, ModelVerification, UploadStatus
from ktrdr_client.model_upload import UploadProgress
from ktrdr_client.progress_stream import ReconnectPolicy
from ktrdr_client.sync_bridge import Bridge
from ktrdr_client.types import BackendConfig, ModeChange, Strategy, TrainerStatus, Training
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.storage.model_query import ModelQuery


class Client:
    """AsyncClient for synchronous code; safe to use from several threads.

    Args:
        address: host:port of the backend.
        timeout_s: Deadline of each unary call.
        retry_for_s: How long Train is retried while the backend is unavailable or its queue full.
        reconnect: When a progress stream is opened again and when it is given up.
        security: TLS and token; None is plain text without a token.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 10.0,
        retry_for_s: float = 5.0,
        reconnect: ReconnectPolicy | None = None,
        security: ChannelSecurity | None = None,
    ) -> None:
        self.address = address
        self._bridge = Bridge(
            lambda: AsyncClient(
                address, timeout_s=timeout_s, retry_for_s=retry_for_s, reconnect=reconnect, security=security
            )
        )
        self._client = self._bridge.client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the background thread."""
        self._bridge.close()

    def train(
        self,
        spec: TrainingSpec,
        *,
        strategy_name: str | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        scheduling: Scheduling = DEFAULT_SCHEDULING,
    ) -> Training:
        """See AsyncClient.train."""
        return self._bridge.run(
            self._client.train(
                spec,
                strategy_name=strategy_name,
                request_id=request_id,
                validate_only=validate_only,
                scheduling=scheduling,
            )
        )

    def cancel(self, training_id: str, *, save_checkpoint: bool = False, reason: str = "") -> Training:
        """See AsyncClient.cancel."""
        return self._bridge.run(self._client.cancel(training_id, save_checkpoint=save_checkpoint, reason=reason))

    def cancel_request(
        self, request_id: str, *, save_checkpoint: bool = False, reason: str = "", retry_for_s: float = 0.0
    ) -> Training | None:
        """See AsyncClient.cancel_request."""
        return self._bridge.run(
            self._client.cancel_request(
                request_id, save_checkpoint=save_checkpoint, reason=reason, retry_for_s=retry_for_s
            )
        )

    def get_training(self, training_id: str, *, retry_for_s: float = 0.0) -> Training:
        """See AsyncClient.get_training."""
        return self._bridge.run(self._client.get_training(training_id, retry_for_s=retry_for_s))

    def list_trainings(
        self, *, states: Sequence[TrainingState] = (), strategy_name: str = "", limit: int | None = None
    ) -> list[Training]:
        """See AsyncClient.list_trainings."""
        return self._bridge.run(self._client.list_trainings(states=states, strategy_name=strategy_name, limit=limit))

    def list_training_events(self, training_id: str) -> Iterator[ProgressEvent]:
        """See AsyncClient.list_training_events."""
        return self._bridge.iterate(self._client.list_training_events(training_id))

    def delete_training(self, training_id: str) -> None:
        """See AsyncClient.delete_training."""
        self._bridge.run(self._client.delete_training(training_id))

    def stream_progress(self, training_id: str, after_sequence: int = 0) -> Iterator[ProgressEvent]:
        """See AsyncClient.stream_progress."""
        return self._bridge.iterate(self._client.stream_progress(training_id, after_sequence))

    def wait(self, training_id: str) -> Training:
        """See AsyncClient.wait."""
        return self._bridge.run(self._client.wait(training_id))

    def get_config(self) -> BackendConfig:
        """See AsyncClient.get_config."""
        return self._bridge.run(self._client.get_config())

    def update_config(self, *, default_mode: ExecutionMode) -> ModeChange:
        """See AsyncClient.update_config."""
        return self._bridge.run(self._client.update_config(default_mode=default_mode))

    def list_trainers(self) -> list[TrainerStatus]:
        """See AsyncClient.list_trainers."""
        return self._bridge.run(self._client.list_trainers())

    def set_trainer_draining(self, trainer: str, *, is_draining: bool) -> TrainerStatus:
        """See AsyncClient.set_trainer_draining."""
        return self._bridge.run(self._client.set_trainer_draining(trainer, is_draining=is_draining))

    def list_strategies(self) -> list[Strategy]:
        """See AsyncClient.list_strategies."""
        return self._bridge.run(self._client.list_strategies())

    def get_model(self, name: str) -> Model:
        """See AsyncClient.get_model."""
        return self._bridge.run(self._client.get_model(name))

    def list_models_page(
        self, query: ModelQuery = ALL_MODELS, *, page_size: int = MODELS_PAGE_SIZE, page_token: str = ""
    ) -> ModelPage:
        """See AsyncClient.list_models_page."""
        return self._bridge.run(self._client.list_models_page(query, page_size=page_size, page_token=page_token))

    def iterate_models(self, query: ModelQuery = ALL_MODELS, *, page_size: int = MODELS_PAGE_SIZE) -> Iterator[Model]:
        """See AsyncClient.iterate_models."""
        return self._bridge.iterate(self._client.iterate_models(query, page_size=page_size))

    def list_models(self, query: ModelQuery = ALL_MODELS, *, limit: int | None = None) -> list[Model]:
        """See AsyncClient.list_models."""
        return self._bridge.run(self._client.list_models(query, limit=limit))

    def query_upload(self, training_id: str, attempt: int, sha256: bytes) -> UploadStatus:
        """See AsyncClient.query_upload."""
        return self._bridge.run(self._client.query_upload(training_id, attempt, sha256))

    def upload_model(
        self,
        directory: Path,
        *,
        training_id: str = "",
        attempt: int = 0,
        compression: Compression = Compression.AUTO,
        progress: UploadProgress = lambda sent_bytes, total_bytes: None,
    ) -> Model:
        """See AsyncClient.upload_model; `progress` is called on the client's thread."""
        return self._bridge.run(
            self._client.upload_model(
                directory, training_id=training_id, attempt=attempt, compression=compression, progress=progress
            )
        )

    def download_model(
        self, name: str, file: str, *, read_offset: int = 0, compression: Compression = Compression.AUTO
    ) -> Iterator[bytes]:
        """See AsyncClient.download_model."""
        return self._bridge.iterate(
            self._client.download_model(name, file, read_offset=read_offset, compression=compression)
        )

    def pull_model(
        self,
        name: str,
        directory: Path,
        *,
        files: Collection[str] | None = None,
        compression: Compression = Compression.AUTO,
        policy: PullPolicy = PULL_POLICY,
        progress: Progress | None = None,
        on_retry: OnRetry | None = None,
    ) -> Path:
        """See AsyncClient.pull_model; `progress` and `on_retry` are called on the client's own thread."""
        return self._bridge.run(
            self._client.pull_model(
                name,
                directory,
                files=files,
                compression=compression,
                policy=policy,
                progress=progress,
                on_retry=on_retry,
            )
        )

    def download_model_file(
        self,
        name: str,
        file: str,
        path: Path,
        *,
        compression: Compression = Compression.AUTO,
        policy: PullPolicy = PULL_POLICY,
        progress: Progress | None = None,
        on_retry: OnRetry | None = None,
    ) -> Path:
        """See AsyncClient.download_model_file; `progress` and `on_retry` are called on the client's own thread."""
        return self._bridge.run(
            self._client.download_model_file(
                name, file, path, compression=compression, policy=policy, progress=progress, on_retry=on_retry
            )
        )

    def verify_model(self, name: str) -> ModelVerification:
        """See AsyncClient.verify_model."""
        return self._bridge.run(self._client.verify_model(name))

    def delete_model(self, name: str, *, force: bool = False) -> None:
        """See AsyncClient.delete_model."""
        self._bridge.run(self._client.delete_model(name, force=force))

    def set_model_alias(
        self, parent: str, alias: str, version: int, *, expected_version: int | None = None
    ) -> Model | None:
        """See AsyncClient.set_model_alias."""
        return self._bridge.run(self._client.set_model_alias(parent, alias, version, expected_version=expected_version))

    def collect_garbage(
        self, *, dry_run: bool = False, keep_versions: int | None = None, kept_aside_days: int | None = None
    ) -> list[Garbage]:
        """See AsyncClient.collect_garbage."""
        return self._bridge.run(
            self._client.collect_garbage(dry_run=dry_run, keep_versions=keep_versions, kept_aside_days=kept_aside_days)
        )

    # Bars

    def list_series(self, *, symbol: str = "") -> list[Series]:
        """See AsyncClient.list_series."""
        return self._bridge.run(self._client.list_series(symbol=symbol))

    def get_series(self, symbol: str, timeframe: str) -> Series:
        """See AsyncClient.get_series."""
        return self._bridge.run(self._client.get_series(symbol, timeframe))

    def get_bars(
        self,
        symbol: str,
        timeframe: str,
        path: Path,
        *,
        start: date | None = None,
        end: date | None = None,
        progress: Progress | None = None,
    ) -> Series:
        """See AsyncClient.get_bars."""
        return self._bridge.run(self._client.get_bars(symbol, timeframe, path, start=start, end=end, progress=progress))

    def import_bars(
        self,
        path: Path,
        *,
        symbol: str | None = None,
        timeframe: str | None = None,
        mode: ImportMode = ImportMode.CREATE,
    ) -> Series:
        """See AsyncClient.import_bars."""
        return self._bridge.run(self._client.import_bars(path, symbol=symbol, timeframe=timeframe, mode=mode))
