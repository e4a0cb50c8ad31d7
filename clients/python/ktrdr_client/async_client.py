"""The backend's client for asyncio: every RPC of TrainingService, ModelService and MarketDataService."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from ktrdr.data.v1 import market_data_service_pb2_grpc
from ktrdr.models.v1 import model_service_pb2, model_service_pb2_grpc
from ktrdr.training.v1 import strategy_source_pb2, training_service_pb2, training_service_pb2_grpc

from ktrdr_client import decode, decode_models
from ktrdr_client.bars_calls import BarsCalls
from ktrdr_client.calls import call_unary
from ktrdr_client.model_calls import ModelCalls
from ktrdr_client.model_types import Model, UploadStatus
from ktrdr_client.model_upload import UploadProgress, upload_directory
from ktrdr_client.progress_stream import ProgressChunk, ReconnectPolicy, reconnecting_progress
from ktrdr_client.types import BackendConfig, ModeChange, Strategy, TrainerStatus, Training
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import KtrdrError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.wire.from_proto import event_from_proto
from ktrdr_core.wire.to_proto import mode_to_proto, scheduling_to_proto, spec_to_proto, state_to_proto

_PAGE_SIZE = 200
_EVENTS_PAGE_SIZE = 1_000
_CANCEL_TIMEOUT_S = 120.0  # save_checkpoint waits for the batch in progress and for the file


class AsyncClient(ModelCalls, BarsCalls):
    """Talks to one backend. Use it as `async with AsyncClient("127.0.0.1:50051") as client:`.

    Every method raises the KtrdrError the backend answered, or UnreachableError.

    Args:
        address: host:port of the backend.
        timeout_s: Deadline of each unary call.
        retry_for_s: How long Train is retried while the backend is unavailable or its queue full; safe, it carries a
            request_id.
        reconnect: When a progress stream is opened again and when it is given up.
        on_retry: Called with the reason before Train is tried again.
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
        on_retry: Callable[[KtrdrError], None] | None = None,
        security: ChannelSecurity | None = None,
    ) -> None:
        if security is not None:
            security.check(address)
        self.address = address
        self._security = security
        self._timeout_s = timeout_s
        self._retry_for_s = retry_for_s
        self._on_retry = on_retry
        self._reconnect = reconnect or ReconnectPolicy()
        self._channel = open_channel(address, security)
        self._trainings = training_service_pb2_grpc.TrainingServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._market_data = market_data_service_pb2_grpc.MarketDataServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls under way end."""
        await self._channel.close()

    # Trainings

    async def train(
        self,
        spec: TrainingSpec,
        *,
        strategy_name: str | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        scheduling: Scheduling = DEFAULT_SCHEDULING,
    ) -> Training:
        """Ask for a training and return it, QUEUED.

        Args:
            spec: What to train.
            strategy_name: Train the backend's strategy of this name instead of `spec.strategy_yaml`.
            request_id: Idempotency key; None makes a new one, so that retries never start a second training.
            validate_only: Only validate; the answer has the normalised spec and no id.
            scheduling: Whose training it is, how urgent, and what becomes of it when its trainer is lost.
        """
        message = spec_to_proto(spec)
        if strategy_name is not None:
            message.strategy.CopyFrom(strategy_source_pb2.StrategySource(name=strategy_name))
        request = training_service_pb2.TrainRequest(
            spec=message,
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
            scheduling=scheduling_to_proto(scheduling),
        )
        response = await call_unary(
            self._trainings.Train,
            request,
            timeout_s=max(self._timeout_s, 30.0),
            retry_for_s=self._retry_for_s,
            waits_for_slot=True,
            on_retry=self._on_retry,
        )
        return decode.training(response.training)

    async def cancel(self, training_id: str, *, save_checkpoint: bool = False, reason: str = "") -> Training:
        """End a training; returns it in its terminal state once its worker is verified to be gone."""
        request = training_service_pb2.CancelRequest(
            training_id=training_id, save_checkpoint=save_checkpoint, cancel_reason=reason
        )
        response = await call_unary(self._trainings.Cancel, request, timeout_s=_CANCEL_TIMEOUT_S)
        return decode.training(response.training)

    async def cancel_request(
        self, request_id: str, *, save_checkpoint: bool = False, reason: str = "", retry_for_s: float = 0.0
    ) -> Training | None:
        """End the training of a Train by its request_id, also one that has not arrived yet.

        Args:
            request_id: What Train was, or will be, given.
            save_checkpoint: Stop at the next batch and keep a checkpoint.
            reason: Why, for the record.
            retry_for_s: How long an unavailable backend is asked again.

        Returns:
            The training in its terminal state; None if no such Train has arrived: it will be CANCELLED as it arrives,
            within a day.
        """
        request = training_service_pb2.CancelRequest(
            request_id=request_id, save_checkpoint=save_checkpoint, cancel_reason=reason
        )
        response = await call_unary(
            self._trainings.Cancel, request, timeout_s=_CANCEL_TIMEOUT_S, retry_for_s=retry_for_s
        )
        return decode.training(response.training) if response.HasField("training") else None

    async def get_training(self, training_id: str, *, retry_for_s: float = 0.0) -> Training:
        """Return one training as it is now.

        Args:
            training_id: The training.
            retry_for_s: How long an unavailable backend is asked again.
        """
        request = training_service_pb2.GetTrainingRequest(training_id=training_id)
        response = await call_unary(
            self._trainings.GetTraining, request, timeout_s=self._timeout_s, retry_for_s=retry_for_s
        )
        return decode.training(response.training)

    async def list_trainings(
        self, *, states: Sequence[TrainingState] = (), strategy_name: str = "", limit: int | None = None
    ) -> list[Training]:
        """Return trainings, newest first.

        Args:
            states: Only these; empty means all.
            strategy_name: Only this strategy; empty means all.
            limit: At most so many; None means all.
        """
        found: list[Training] = []
        token = ""
        while limit is None or len(found) < limit:
            request = training_service_pb2.ListTrainingsRequest(
                page_size=_PAGE_SIZE if limit is None else min(_PAGE_SIZE, limit - len(found)),
                page_token=token,
                states=[state_to_proto(state) for state in states],
                strategy_name=strategy_name,
            )
            response = await call_unary(self._trainings.ListTrainings, request, timeout_s=self._timeout_s)
            found.extend(decode.training(each) for each in response.trainings)
            token = response.next_page_token
            if not token:
                break
        return found

    async def list_training_events(self, training_id: str) -> AsyncIterator[ProgressEvent]:
        """Yield the durable events of a training, oldest first: its whole history up to now.

        Raises:
            TrainingNotFoundError: No such training.
        """
        token = ""
        while True:
            request = training_service_pb2.ListTrainingEventsRequest(
                training_id=training_id, page_size=_EVENTS_PAGE_SIZE, page_token=token
            )
            response = await call_unary(self._trainings.ListTrainingEvents, request, timeout_s=self._timeout_s)
            for message in response.events:
                yield event_from_proto(message)
            token = response.next_page_token
            if not token:
                return

    async def delete_training(self, training_id: str) -> None:
        """Delete the record of an ended training; its model stays."""
        request = training_service_pb2.DeleteTrainingRequest(training_id=training_id)
        await call_unary(self._trainings.DeleteTraining, request, timeout_s=self._timeout_s)

    def stream_progress(
        self,
        training_id: str,
        after_sequence: int = 0,
        *,
        on_reconnect: Callable[[KtrdrError], None] | None = None,
        on_connect: Callable[[], None] | None = None,
    ) -> AsyncIterator[ProgressEvent]:
        """Yield the training's events after `after_sequence`, up to and with its terminal one.

        Reconnects by itself: nothing is missed, nothing repeated, also across a restart of the backend.

        Args:
            training_id: The training.
            after_sequence: Last sequence already seen; 0 yields everything.
            on_reconnect: Called with the reason each time the connection is lost, and each time it cannot be made.
            on_connect: Called when the first response of each connection arrives.

        Raises:
            TrainingNotFoundError: No such training.
            IllegalStateError: The training's history ends before `after_sequence`, or before what was seen: the backend
                was restored from an older state.
            UnreachableError: Nothing was heard for `reconnect.give_up_after_s`.
        """

        def open_call(
            sequence: int,
        ) -> grpc.aio.UnaryStreamCall[
            training_service_pb2.StreamProgressRequest, training_service_pb2.StreamProgressResponse
        ]:
            return self._trainings.StreamProgress(
                training_service_pb2.StreamProgressRequest(training_id=training_id, after_sequence=sequence)
            )

        def read_chunk(response: training_service_pb2.StreamProgressResponse) -> ProgressChunk:
            return ProgressChunk(
                events=response.events,
                is_ended=response.HasField("training") and decode.is_terminal(response.training.state),
                last_sequence=response.training.last_sequence,
            )

        return reconnecting_progress(
            open_call,
            read_chunk,
            after_sequence=after_sequence,
            policy=self._reconnect,
            what=f"training {training_id}",
            on_reconnect=on_reconnect,
            on_connect=on_connect,
        )

    async def wait(self, training_id: str) -> Training:
        """Return the training once it has ended."""
        async for _ in self.stream_progress(training_id):
            pass
        return await self.get_training(training_id, retry_for_s=self._reconnect.give_up_after_s)

    # Configuration

    async def get_config(self) -> BackendConfig:
        """Return the backend's configuration."""
        response = await call_unary(
            self._trainings.GetConfig, training_service_pb2.GetConfigRequest(), timeout_s=self._timeout_s
        )
        return decode.backend_config(response)

    async def update_config(self, *, default_mode: ExecutionMode) -> ModeChange:
        """Set the mode of trainings that name none; returns the mode before and now."""
        request = training_service_pb2.UpdateConfigRequest(default_mode=mode_to_proto(default_mode))
        response = await call_unary(self._trainings.UpdateConfig, request, timeout_s=self._timeout_s)
        return decode.mode_change(response)

    async def list_trainers(self) -> list[TrainerStatus]:
        """Return the trainers the backend knows, with their health now."""
        response = await call_unary(
            self._trainings.ListTrainers, training_service_pb2.ListTrainersRequest(), timeout_s=self._timeout_s
        )
        return [decode.trainer_status(each) for each in response.trainers]

    async def set_trainer_draining(self, trainer: str, *, is_draining: bool) -> TrainerStatus:
        """Let a trainer get no new sessions (those it has go on), or end that; kept across restarts of the backend.

        Args:
            trainer: Address or identity.
            is_draining: True drains, False ends that.

        Raises:
            NotFoundError: The backend knows no such trainer.
        """
        request = training_service_pb2.SetTrainerDrainingRequest(trainer=trainer, is_draining=is_draining)
        response = await call_unary(self._trainings.SetTrainerDraining, request, timeout_s=self._timeout_s)
        return decode.trainer_status(response.trainer)

    async def list_strategies(self) -> list[Strategy]:
        """Return the strategies of the backend's directory, by name."""
        response = await call_unary(
            self._trainings.ListStrategies, training_service_pb2.ListStrategiesRequest(), timeout_s=self._timeout_s
        )
        return [decode.strategy(each) for each in response.strategies]

    # Models

    async def query_upload(self, training_id: str, attempt: int, sha256: bytes) -> UploadStatus:
        """Return how much of an upload is safely stored; UploadNotFoundError means nothing is."""
        request = model_service_pb2.QueryUploadRequest(training_id=training_id, attempt=attempt, sha256=sha256)
        response = await call_unary(self._models.QueryUpload, request, timeout_s=self._timeout_s)
        return UploadStatus(committed_size_bytes=response.committed_size_bytes, is_complete=response.is_complete)

    async def upload_model(
        self,
        directory: Path,
        *,
        training_id: str = "",
        attempt: int = 0,
        compression: Compression = Compression.AUTO,
        progress: UploadProgress = lambda sent_bytes, total_bytes: None,
    ) -> Model:
        """Upload the artifact in `directory` and return the stored version.

        Files that the backend has already are not sent. A broken stream is resumed where the backend's copy ends, after
        1, 2, 4 and 8 s; the waits begin anew as long as bytes get through.

        Args:
            directory: A model directory as the store writes it.
            training_id: Training it belongs to; "" imports it.
            attempt: Session number within the training.
            compression: How chunks are compressed.
            progress: Called with the bytes that are there or were sent, and with all there are.
        """
        message = await upload_directory(
            self.address,
            directory,
            training_id=training_id,
            attempt=attempt,
            compression=compression,
            progress=progress,
            security=self._security,
        )
        return decode_models.model(message)
