"""The clients for synchronous code: the async ones on a background event loop.

One bridge between the two worlds: `_Bridge` owns the loop's thread; every method below hands it one coroutine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.model_calls import ALL_MODELS, MODELS_PAGE_SIZE, PULL_POLICY
from ktrdr_client.model_pull import OnRetry, Progress, PullPolicy
from ktrdr_client.model_upload import UploadProgress
from ktrdr_client.progress_stream import ReconnectPolicy
from ktrdr_client.trainer_client import AsyncTrainerClient
from ktrdr_client.types import (
    BackendConfig,
    Checkpoint,
    Garbage,
    ImportMode,
    ModeChange,
    Model,
    ModelPage,
    ModelVerification,
    Series,
    Session,
    Strategy,
    TrainerInfo,
    TrainerStatus,
    Training,
    UploadStatus,
)
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.storage.model_query import ModelQuery

T = TypeVar("T")
AnyAsyncClient = TypeVar("AnyAsyncClient", bound="_Closable")


class _Closable(Protocol):
    async def close(self) -> None: ...


class _Bridge(Generic[AnyAsyncClient]):
    """An async client on the event loop of a thread of its own."""

    def __init__(self, build: Callable[[], AnyAsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ktrdr-client", daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._is_closed = False

        async def build_on_loop() -> AnyAsyncClient:
            return build()

        try:
            self.client: AnyAsyncClient = self.run(build_on_loop())
        except BaseException:
            self._end_loop()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._is_closed:
            work.close()
            raise RuntimeError("the client is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def take() -> list[T]:
            # A list, because StopAsyncIteration cannot leave a coroutine.
            return [item] if (item := await anext(items, _END)) is not _END else []

        async def end() -> None:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

        try:
            while taken := self.run(take()):
                yield taken[0]
        finally:
            if not self._is_closed:
                self.run(end())

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            try:
                self.run(self.client.close())
            finally:
                self._is_closed = True
                self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


_END: Any = object()


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
        self._bridge = _Bridge(
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


class TrainerClient:
    """AsyncTrainerClient for synchronous code; safe to use from several threads.

    Args:
        address: host:port of the trainer.
        timeout_s: Deadline of each unary call.
        retry_for_s: How long Train is retried on UNAVAILABLE.
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
        self._bridge = _Bridge(
            lambda: AsyncTrainerClient(
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
        session_id: str | None = None,
        training_id: str = "",
        attempt: int = 1,
        upload_target: str = "",
        resume_from: Checkpoint | None = None,
        series: Sequence[Series] = (),
    ) -> Session:
        """See AsyncTrainerClient.train."""
        return self._bridge.run(
            self._client.train(
                spec,
                session_id=session_id,
                training_id=training_id,
                attempt=attempt,
                upload_target=upload_target,
                resume_from=resume_from,
                series=series,
            )
        )

    def cancel(self, session_id: str, *, save_checkpoint: bool = False, reason: str = "") -> Session:
        """See AsyncTrainerClient.cancel."""
        return self._bridge.run(self._client.cancel(session_id, save_checkpoint=save_checkpoint, reason=reason))

    def stream_progress(self, session_id: str, after_sequence: int = 0) -> Iterator[ProgressEvent]:
        """See AsyncTrainerClient.stream_progress."""
        return self._bridge.iterate(self._client.stream_progress(session_id, after_sequence))

    def wait(self, session_id: str) -> Session:
        """See AsyncTrainerClient.wait."""
        return self._bridge.run(self._client.wait(session_id))

    def get_session(self, session_id: str) -> Session:
        """See AsyncTrainerClient.get_session."""
        return self._bridge.run(self._client.get_session(session_id))

    def list_sessions(self) -> list[Session]:
        """See AsyncTrainerClient.list_sessions."""
        return self._bridge.run(self._client.list_sessions())

    def get_checkpoint(self, session_id: str, path: Path) -> Checkpoint:
        """See AsyncTrainerClient.get_checkpoint."""
        return self._bridge.run(self._client.get_checkpoint(session_id, path))

    def put_checkpoint(self, path: Path, *, epoch: int) -> Checkpoint:
        """See AsyncTrainerClient.put_checkpoint."""
        return self._bridge.run(self._client.put_checkpoint(path, epoch=epoch))

    def prepare_bars(
        self, series: Sequence[Series], source: str, *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """See AsyncTrainerClient.prepare_bars; `progress` is called in the background thread."""
        return self._bridge.run(self._client.prepare_bars(series, source, progress=progress))

    def get_server_info(self) -> TrainerInfo:
        """See AsyncTrainerClient.get_server_info."""
        return self._bridge.run(self._client.get_server_info())
