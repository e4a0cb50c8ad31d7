"""The backend's client for asyncio: every RPC of TrainingService and ModelService."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from ktrdr.models.v1 import model_service_pb2, model_service_pb2_grpc
from ktrdr.training.v1 import strategy_source_pb2, training_service_pb2, training_service_pb2_grpc

from ktrdr_client import decode
from ktrdr_client.calls import call_unary
from ktrdr_client.progress_stream import ProgressChunk, ReconnectPolicy, reconnecting_progress
from ktrdr_client.types import (
    BackendConfig,
    ModeChange,
    Model,
    Strategy,
    TrainerStatus,
    Training,
    UploadStatus,
)
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling
from ktrdr_core.domain.spec import ExecutionMode, TrainingSpec
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import CorruptDataError, KtrdrError, UnavailableError, UploadNotFoundError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.chunks import decode_chunk
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.send_upload import send_upload
from ktrdr_core.rpc.upload import UploadPlan
from ktrdr_core.wire.from_proto import event_from_proto
from ktrdr_core.wire.to_proto import mode_to_proto, scheduling_to_proto, spec_to_proto, state_to_proto

_PAGE_SIZE = 200
_EVENTS_PAGE_SIZE = 1_000
_CANCEL_TIMEOUT_S = 120.0  # save_checkpoint waits for the batch in progress and for the file
_UPLOAD_DELAYS_S = (1.0, 2.0, 4.0, 8.0)


class AsyncClient:
    """Talks to one backend. Use it as `async with AsyncClient("127.0.0.1:50051") as client:`.

    Every method raises the KtrdrError the backend answered, or UnreachableError.

    Args:
        address: host:port of the backend.
        timeout_s: Deadline of each unary call.
        retry_for_s: How long Train is retried while the backend is unavailable or its queue full; safe, it carries a
            request_id.
        reconnect: When a progress stream is opened again and when it is given up.
        on_retry: Called with the reason before Train is tried again.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 10.0,
        retry_for_s: float = 5.0,
        reconnect: ReconnectPolicy | None = None,
        on_retry: Callable[[KtrdrError], None] | None = None,
    ) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._retry_for_s = retry_for_s
        self._on_retry = on_retry
        self._reconnect = reconnect or ReconnectPolicy()
        self._channel = open_channel(address)
        self._trainings = training_service_pb2_grpc.TrainingServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

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

    async def get_model(self, name: str) -> Model:
        """Return one model, by store name, strategy and set, strategy, or model id."""
        response = await call_unary(
            self._models.GetModel, model_service_pb2.GetModelRequest(name=name), timeout_s=self._timeout_s
        )
        return decode.model(response.model)

    async def list_models(self, *, strategy_name: str = "", limit: int | None = None) -> list[Model]:
        """Return models, newest first; `strategy_name` "" means all, `limit` None means all."""
        found: list[Model] = []
        token = ""
        while limit is None or len(found) < limit:
            request = model_service_pb2.ListModelsRequest(
                page_size=_PAGE_SIZE if limit is None else min(_PAGE_SIZE, limit - len(found)),
                page_token=token,
                strategy_name=strategy_name,
            )
            response = await call_unary(self._models.ListModels, request, timeout_s=self._timeout_s)
            found.extend(decode.model(each) for each in response.models)
            token = response.next_page_token
            if not token:
                break
        return found

    async def query_upload(self, training_id: str, attempt: int, sha256: bytes) -> UploadStatus:
        """Return how much of an upload is safely stored; UploadNotFoundError means nothing is."""
        request = model_service_pb2.QueryUploadRequest(training_id=training_id, attempt=attempt, sha256=sha256)
        response = await call_unary(self._models.QueryUpload, request, timeout_s=self._timeout_s)
        return UploadStatus(committed_size_bytes=response.committed_size_bytes, is_complete=response.is_complete)

    async def upload_model(self, directory: Path, *, training_id: str = "", attempt: int = 0) -> Model:
        """Upload the artifact in `directory` and return the published version.

        A broken stream is resumed at the offset the backend has stored, after 1, 2, 4 and 8 s.

        Args:
            directory: A model directory as the store writes it.
            training_id: Training it belongs to; "" imports it.
            attempt: Session number within the training.
        """
        plan = await asyncio.to_thread(UploadPlan.of, directory, training_id=training_id, attempt=attempt)
        offset = 0
        for delay_s in (*_UPLOAD_DELAYS_S, None):
            try:
                return decode.model(await send_upload(self.address, plan, offset))
            except (UnavailableError, CorruptDataError):
                if delay_s is None:
                    raise
            await asyncio.sleep(delay_s)
            try:
                offset = (await self.query_upload(training_id, attempt, plan.sha256)).committed_size_bytes
            except UploadNotFoundError:
                offset = 0
            except UnavailableError:
                continue  # the next try asks for the old offset; the backend refuses it if it is wrong
        raise AssertionError("unreachable: the last try returns or raises")

    async def download_model(self, name: str, file: str, *, read_offset: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes of one file of a stored version, from `read_offset` on.

        Raises:
            NotBuiltError: This version of the backend does not serve downloads.
        """
        request = model_service_pb2.DownloadModelRequest(name=name, file=file, read_offset=read_offset)
        offset = read_offset
        try:
            async for response in self._models.DownloadModel(request):
                if response.WhichOneof("part") == "chunk":
                    raw = decode_chunk(response.chunk, offset)
                    offset += len(raw)
                    yield raw
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def delete_model(self, name: str, *, force: bool = False) -> None:
        """Delete a version; `force` also if an alias points at it.

        Raises:
            NotBuiltError: This version of the backend does not delete.
        """
        request = model_service_pb2.DeleteModelRequest(name=name, force=force)
        await call_unary(self._models.DeleteModel, request, timeout_s=self._timeout_s)

    async def set_model_alias(
        self, parent: str, alias: str, version: int, *, expected_version: int | None = None
    ) -> Model:
        """Point an alias at a version; with `expected_version` only if it points there now (0: it must not exist).

        Raises:
            NotBuiltError: This version of the backend has no aliases.
        """
        request = model_service_pb2.SetModelAliasRequest(
            parent=parent, alias=alias, version=version, expected_version=expected_version
        )
        response = await call_unary(self._models.SetModelAlias, request, timeout_s=self._timeout_s)
        return decode.model(response.model)
