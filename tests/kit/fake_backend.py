"""A backend that follows a script: a real server, real messages, no training. For tests of the client alone."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ktrdr.models.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc
from ktrdr.training.v1 import (
    training_pb2,
    training_service_pb2,
    training_service_pb2_grpc,
    training_spec_pb2,
    training_state_pb2,
)

from ktrdr_core.domain.progress import (
    STEP_TITLES,
    BatchDetail,
    EpochDetail,
    ProgressDetail,
    ProgressEvent,
    StateDetail,
    StepDetail,
    TrainingStep,
)
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import KtrdrError, NotBuiltError, TrainingNotFoundError, UploadNotFoundError
from ktrdr_core.rpc.server import bind, create_server
from ktrdr_core.wire.to_proto import event_to_proto, state_to_proto

START = datetime(2026, 1, 1, tzinfo=UTC)
HANG = "hang"
"""A step of a script: stay connected and say nothing."""

Step = ProgressEvent | KtrdrError | str | training_service_pb2.StreamProgressResponse


def an_event(sequence: int, detail: ProgressDetail, *, overall: float = 0.0) -> ProgressEvent:
    return ProgressEvent(sequence=sequence, create_time=START, attempt=1, overall=overall, detail=detail)


def a_state(sequence: int, state: TrainingState) -> ProgressEvent:
    return an_event(sequence, StateDetail(state=state, message=f"now {state}"))


def a_step(sequence: int, step: TrainingStep) -> ProgressEvent:
    return an_event(sequence, StepDetail(step=step, title=STEP_TITLES[step]), overall=int(step) / 12)


def an_epoch(sequence: int, epoch: int, total: int = 3) -> ProgressEvent:
    detail = EpochDetail(
        epoch=epoch,
        total_epochs=total,
        train_loss=1.0 / epoch,
        train_accuracy=0.5,
        val_loss=1.1 / epoch,
        val_accuracy=0.45,
        learning_rate=0.001,
        rows_per_second=12_345.6,
    )
    return an_event(sequence, detail, overall=epoch / (total + 1))


def a_batch(sequence: int, epoch: int, batch: int) -> ProgressEvent:
    detail = BatchDetail(
        epoch=epoch,
        total_epochs=3,
        batch=batch,
        total_batches_per_epoch=10,
        train_loss=0.9,
        train_accuracy=0.5,
        learning_rate=0.001,
        rows_per_second=10_000.0,
    )
    return an_event(sequence, detail)


def a_log() -> list[ProgressEvent]:
    """Return the durable events of a training with three epochs."""
    return [
        a_state(1, TrainingState.QUEUED),
        a_state(2, TrainingState.RUNNING),
        a_step(3, TrainingStep.LOADING_MARKET_DATA),
        a_step(4, TrainingStep.TRAINING),
        an_epoch(5, 1),
        an_epoch(6, 2),
        an_epoch(7, 3),
        a_state(8, TrainingState.UPLOADING),
        a_state(9, TrainingState.COMPLETED),
    ]


@dataclass
class FakeBackend:
    """Answers what it is told to.

    Attributes:
        connections: One script for each StreamProgress call; the last one serves all further calls.
        train_errors: Raised by the first Train calls, one each.
        started: `request_id` to training, as an idempotent backend keeps them.
    """

    connections: list[Sequence[Step]] = field(default_factory=list)
    train_errors: list[KtrdrError] = field(default_factory=list)
    answer_before_error: bool = False
    after_sequences: list[int] = field(default_factory=list)
    train_requests: list[training_service_pb2.TrainRequest] = field(default_factory=list)
    started: dict[str, training_pb2.Training] = field(default_factory=dict)
    models: list[model_pb2.Model] = field(default_factory=list)
    uploads: list[model_service_pb2.UploadModelRequest] = field(default_factory=list)
    state: TrainingState = TrainingState.COMPLETED

    def __getattr__(self, name: str) -> Any:
        """Answer an RPC that no test needs."""
        if not name[:1].isupper():
            raise AttributeError(name)

        async def refuse(request: Any, context: Any) -> Any:
            raise NotBuiltError(f"the fake backend has no {name}")

        return refuse

    def training(self, training_id: str) -> training_pb2.Training:
        return training_pb2.Training(
            training_id=training_id,
            strategy_name="fake",
            spec=training_spec_pb2.TrainingSpec(),
            state=state_to_proto(self.state),
            last_sequence=9,
        )

    async def Train(self, request: training_service_pb2.TrainRequest, context: Any) -> Any:
        self.train_requests.append(request)
        error = self.train_errors.pop(0) if self.train_errors else None
        if error is not None and not self.answer_before_error:
            raise error
        training = self.started.setdefault(
            request.request_id,
            training_pb2.Training(
                training_id=f"t{len(self.started) + 1}",
                request_id=request.request_id,
                strategy_name="fake",
                state=training_state_pb2.TRAINING_STATE_QUEUED,
                spec=request.spec,
            ),
        )
        if error is not None:
            raise error
        return training_service_pb2.TrainResponse(training=training)

    async def GetTraining(self, request: training_service_pb2.GetTrainingRequest, context: Any) -> Any:
        if request.training_id == "unknown":
            raise TrainingNotFoundError("no training unknown", metadata={"training_id": "unknown"})
        return training_service_pb2.GetTrainingResponse(training=self.training(request.training_id))

    async def ListTrainings(self, request: training_service_pb2.ListTrainingsRequest, context: Any) -> Any:
        first = int(request.page_token or 0)
        ids = range(first, min(first + min(request.page_size, 2), 5))  # pages of two at most, five in all
        return training_service_pb2.ListTrainingsResponse(
            trainings=[self.training(f"t{number}") for number in ids],
            next_page_token=str(ids.stop) if ids.stop < 5 else "",
        )

    async def StreamProgress(
        self, request: training_service_pb2.StreamProgressRequest, context: Any
    ) -> AsyncIterator[training_service_pb2.StreamProgressResponse]:
        self.after_sequences.append(request.after_sequence)
        script = self.connections[min(len(self.after_sequences), len(self.connections)) - 1]
        for step in script:
            if isinstance(step, KtrdrError):
                raise step
            if isinstance(step, training_service_pb2.StreamProgressResponse):
                yield step
            elif isinstance(step, ProgressEvent):
                yield training_service_pb2.StreamProgressResponse(events=[event_to_proto(step)])
            else:
                await asyncio.Event().wait()

    async def QueryUpload(self, request: model_service_pb2.QueryUploadRequest, context: Any) -> Any:
        raise UploadNotFoundError("nothing is stored; start from 0")

    async def UploadModel(
        self, request_iterator: AsyncIterator[model_service_pb2.UploadModelRequest], context: Any
    ) -> Any:
        self.uploads = [request async for request in request_iterator]
        return model_service_pb2.UploadModelResponse(model=model_pb2.Model(name="fake/EURUSD_1h_v1", version=1))


@asynccontextmanager
async def serving(backend: FakeBackend, *, port: int = 0) -> AsyncIterator[str]:
    """Serve it on loopback; yields its address."""
    server = create_server()
    servicer: Any = backend
    training_service_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    bound = bind(server, f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)
