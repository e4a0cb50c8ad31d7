"""The trainer's client for synchronous code: the async one on a background event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ktrdr_client.bars_types import Series
from ktrdr_client.progress_stream import ReconnectPolicy
from ktrdr_client.sync_bridge import Bridge
from ktrdr_client.trainer_client import AsyncTrainerClient
from ktrdr_client.types import Checkpoint, Session, TrainerInfo
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.rpc.channel_security import ChannelSecurity


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
        self._bridge = Bridge(
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
