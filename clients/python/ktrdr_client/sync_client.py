"""The clients for synchronous code: the async ones on a background event loop.

One bridge between the two worlds: `_Bridge` owns the loop's thread; every method below hands it one coroutine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.progress_stream import ReconnectPolicy
from ktrdr_client.trainer_client import AsyncTrainerClient
from ktrdr_client.types import (
    BackendConfig,
    Checkpoint,
    ModeChange,
    Model,
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
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 10.0,
        retry_for_s: float = 5.0,
        reconnect: ReconnectPolicy | None = None,
    ) -> None:
        self.address = address
        self._bridge = _Bridge(
            lambda: AsyncClient(address, timeout_s=timeout_s, retry_for_s=retry_for_s, reconnect=reconnect)
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

    def list_models(self, *, strategy_name: str = "", limit: int | None = None) -> list[Model]:
        """See AsyncClient.list_models."""
        return self._bridge.run(self._client.list_models(strategy_name=strategy_name, limit=limit))

    def query_upload(self, training_id: str, attempt: int, sha256: bytes) -> UploadStatus:
        """See AsyncClient.query_upload."""
        return self._bridge.run(self._client.query_upload(training_id, attempt, sha256))

    def upload_model(self, directory: Path, *, training_id: str = "", attempt: int = 0) -> Model:
        """See AsyncClient.upload_model."""
        return self._bridge.run(self._client.upload_model(directory, training_id=training_id, attempt=attempt))

    def download_model(self, name: str, file: str, *, read_offset: int = 0) -> Iterator[bytes]:
        """See AsyncClient.download_model."""
        return self._bridge.iterate(self._client.download_model(name, file, read_offset=read_offset))

    def delete_model(self, name: str, *, force: bool = False) -> None:
        """See AsyncClient.delete_model."""
        self._bridge.run(self._client.delete_model(name, force=force))

    def set_model_alias(self, parent: str, alias: str, version: int, *, expected_version: int | None = None) -> Model:
        """See AsyncClient.set_model_alias."""
        return self._bridge.run(self._client.set_model_alias(parent, alias, version, expected_version=expected_version))


class TrainerClient:
    """AsyncTrainerClient for synchronous code; safe to use from several threads.

    Args:
        address: host:port of the trainer.
        timeout_s: Deadline of each unary call.
        retry_for_s: How long Train is retried on UNAVAILABLE.
        reconnect: When a progress stream is opened again and when it is given up.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 10.0,
        retry_for_s: float = 5.0,
        reconnect: ReconnectPolicy | None = None,
    ) -> None:
        self.address = address
        self._bridge = _Bridge(
            lambda: AsyncTrainerClient(address, timeout_s=timeout_s, retry_for_s=retry_for_s, reconnect=reconnect)
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

    def get_server_info(self) -> TrainerInfo:
        """See AsyncTrainerClient.get_server_info."""
        return self._bridge.run(self._client.get_server_info())
