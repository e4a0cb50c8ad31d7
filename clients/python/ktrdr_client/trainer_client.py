"""A trainer's client for asyncio: every RPC of TrainerService. A backend is its usual caller; a person may be too."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from ktrdr.data.v1 import series_pb2
from ktrdr.models.v1 import model_service_pb2
from ktrdr.trainer.v1 import checkpoint_pb2, trainer_service_pb2, trainer_service_pb2_grpc

from ktrdr_client import decode
from ktrdr_client.bars_types import Series
from ktrdr_client.calls import call_unary
from ktrdr_client.progress_stream import ProgressChunk, ReconnectPolicy, reconnecting_progress
from ktrdr_client.types import Checkpoint, Session, TrainerInfo
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import CorruptDataError, KtrdrError
from ktrdr_core.rpc.channel import ACCEPT_TIMEOUT_S, open_channel
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.checkpoint_transfer import chunks_of, receive_checkpoint
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.wire.to_proto import spec_to_proto, time_to_proto

_CANCEL_TIMEOUT_S = 120.0
_CHECKPOINT_TIMEOUT_S = 600.0
_MAX_CHECKPOINT_SIZE_BYTES = 8 << 30


class AsyncTrainerClient:
    """Talks to one trainer. Use it as `async with AsyncTrainerClient("gpu-1:50052") as trainer:`.

    Args:
        address: host:port of the trainer.
        timeout_s: Deadline of each unary call.
        retry_for_s: How long Train is retried on UNAVAILABLE; safe, it carries a session_id.
        reconnect: When a progress stream is opened again and when it is given up.
        security: TLS and token; None is plain text without a token.

    Raises:
        InvalidInputError: The token would have to be sent in plain text.
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
        if security is not None:
            security.check(address)
        self.address = address
        self._timeout_s = timeout_s
        self._retry_for_s = retry_for_s
        self._reconnect = reconnect or ReconnectPolicy()
        self._channel = open_channel(address, security)
        self._stub = trainer_service_pb2_grpc.TrainerServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way end."""
        await self._channel.close()

    async def train(
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
        """Start a session and return it once it is accepted.

        Args:
            spec: What to train; with data mode local on the trainer's own bars.
            session_id: Identity and idempotency key; None makes a new one.
            training_id: Training it belongs to; "" for one started by hand.
            attempt: Number within its training.
            upload_target: host:port of the backend the artifact is uploaded to; "" keeps it on the trainer's disk.
            resume_from: Checkpoint to go on from, put there by `put_checkpoint`; None begins at the beginning.
            series: With data mode backend: the bars to train on, with their parts, put there by `prepare_bars`.
        """
        request = trainer_service_pb2.TrainRequest(
            session_id=session_id or str(uuid.uuid4()),
            training_id=training_id,
            attempt=attempt,
            spec=spec_to_proto(spec),
            upload_target=upload_target,
            resume_from=None if resume_from is None else _checkpoint_ref(resume_from),
            series=map(_series_message, series),
        )
        response = await call_unary(
            self._stub.Train, request, timeout_s=max(self._timeout_s, ACCEPT_TIMEOUT_S), retry_for_s=self._retry_for_s
        )
        return decode.session(response.session)

    async def cancel(self, session_id: str, *, save_checkpoint: bool = False, reason: str = "") -> Session:
        """End a session; returns it in its terminal state once its worker is verified to be gone."""
        request = trainer_service_pb2.CancelRequest(
            session_id=session_id, save_checkpoint=save_checkpoint, cancel_reason=reason
        )
        response = await call_unary(self._stub.Cancel, request, timeout_s=_CANCEL_TIMEOUT_S)
        return decode.session(response.session)

    def stream_progress(
        self,
        session_id: str,
        after_sequence: int = 0,
        *,
        on_reconnect: Callable[[KtrdrError], None] | None = None,
        on_connect: Callable[[], None] | None = None,
    ) -> AsyncIterator[ProgressEvent]:
        """Yield the session's events after `after_sequence`; reconnects by itself, see AsyncClient.stream_progress."""

        def open_call(
            sequence: int,
        ) -> grpc.aio.UnaryStreamCall[
            trainer_service_pb2.StreamProgressRequest, trainer_service_pb2.StreamProgressResponse
        ]:
            return self._stub.StreamProgress(
                trainer_service_pb2.StreamProgressRequest(session_id=session_id, after_sequence=sequence)
            )

        def read_chunk(response: trainer_service_pb2.StreamProgressResponse) -> ProgressChunk:
            return ProgressChunk(
                events=response.events,
                is_ended=response.HasField("session") and decode.is_terminal(response.session.state),
                last_sequence=response.session.last_sequence,
            )

        return reconnecting_progress(
            open_call,
            read_chunk,
            after_sequence=after_sequence,
            policy=self._reconnect,
            what=f"session {session_id}",
            on_reconnect=on_reconnect,
            on_connect=on_connect,
        )

    async def wait(self, session_id: str) -> Session:
        """Return the session once it has ended."""
        async for _ in self.stream_progress(session_id):
            pass
        return await self.get_session(session_id)

    async def get_session(self, session_id: str) -> Session:
        """Return one session as it is now."""
        request = trainer_service_pb2.GetSessionRequest(session_id=session_id)
        response = await call_unary(self._stub.GetSession, request, timeout_s=self._timeout_s)
        return decode.session(response.session)

    async def list_sessions(self) -> list[Session]:
        """Return the trainer's sessions, newest first."""
        response = await call_unary(
            self._stub.ListSessions, trainer_service_pb2.ListSessionsRequest(), timeout_s=self._timeout_s
        )
        return [decode.session(each) for each in response.sessions]

    async def get_checkpoint(self, session_id: str, path: Path) -> Checkpoint:
        """Fetch the newest checkpoint of a session into a file, verified and whole, and return what it is.

        Raises:
            CheckpointNotFoundError: It has none.
            CorruptDataError: A checksum differs.
        """
        call = self._stub.GetCheckpoint(
            trainer_service_pb2.GetCheckpointRequest(session_id=session_id), timeout=_CHECKPOINT_TIMEOUT_S
        )
        responses = aiter(call)

        async def chunks() -> AsyncGenerator[model_service_pb2.UploadChunk]:
            async for response in responses:
                yield response.chunk

        try:
            first = await anext(responses, None)
            if first is None or first.WhichOneof("part") != "checkpoint":
                raise CorruptDataError("the trainer did not say which checkpoint it sends; ask for it again")
            async with aclosing(chunks()) as received:
                await receive_checkpoint(first.checkpoint, received, path, max_size_bytes=_MAX_CHECKPOINT_SIZE_BYTES)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()
        return decode.checkpoint(first.checkpoint)

    async def put_checkpoint(self, path: Path, *, epoch: int) -> Checkpoint:
        """Put a checkpoint on the trainer, for a `train` that goes on from it; safe to repeat.

        Args:
            path: File of the checkpoint.
            epoch: Last epoch that is in it.
        """
        size_bytes, sha256 = await asyncio.to_thread(_size_and_digest, path)
        checkpoint = Checkpoint(epoch=epoch, size_bytes=size_bytes, sha256=sha256)

        async def messages() -> AsyncIterator[trainer_service_pb2.PutCheckpointRequest]:
            yield trainer_service_pb2.PutCheckpointRequest(checkpoint=_checkpoint_ref(checkpoint))
            async for chunk in chunks_of(path):
                yield trainer_service_pb2.PutCheckpointRequest(chunk=chunk)

        try:
            await self._stub.PutCheckpoint(messages(), timeout=_CHECKPOINT_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return checkpoint

    async def prepare_bars(
        self, series: Sequence[Series], source: str, *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Have the trainer fetch bars, for a `train` on them; safe to repeat, what has arrived is kept.

        Args:
            series: What it is to have, with parts: from `get_series` of a backend's client.
            source: host:port of that backend, as the trainer reaches it.
            progress: Told the bytes that are there and those wanted, at least each second.

        Raises:
            SeriesChangedError: The backend has other bars now.
        """
        call = self._stub.PrepareBars(
            trainer_service_pb2.PrepareBarsRequest(series=map(_series_message, series), source=source)
        )
        try:
            async for response in call:
                if progress is not None:
                    progress(response.ready_size_bytes, response.total_size_bytes)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()

    async def get_server_info(self) -> TrainerInfo:
        """Return what the trainer is and has."""
        response = await call_unary(
            self._stub.GetServerInfo, trainer_service_pb2.GetServerInfoRequest(), timeout_s=self._timeout_s
        )
        return decode.trainer_info(response.trainer)


def _series_message(series: Series) -> series_pb2.Series:
    return series_pb2.Series(
        symbol=series.symbol,
        timeframe=series.timeframe,
        num_bars=series.num_bars,
        sha256=bytes.fromhex(series.digest),
        parts=[
            series_pb2.SeriesPart(
                start_time=time_to_proto(part.start_time),
                end_time=time_to_proto(part.end_time),
                num_bars=part.num_bars,
                size_bytes=part.size_bytes,
                sha256=bytes.fromhex(part.sha256),
            )
            for part in series.parts
        ],
    )


def _checkpoint_ref(checkpoint: Checkpoint) -> checkpoint_pb2.CheckpointRef:
    return checkpoint_pb2.CheckpointRef(
        epoch=checkpoint.epoch, size_bytes=checkpoint.size_bytes, sha256=bytes.fromhex(checkpoint.sha256)
    )


def _size_and_digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()
