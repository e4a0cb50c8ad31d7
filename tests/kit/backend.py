"""A backend in this process, over an engine and a trainer whose every move the test makes."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from ktrdr.data.v1.series_pb2 import Series
from ktrdr.models.v1 import model_service_pb2, model_service_pb2_grpc
from ktrdr.trainer.v1 import session_pb2, trainer_info_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from ktrdr.training.v1 import execution_mode_pb2, training_pb2, training_service_pb2, training_service_pb2_grpc
from ktrdr.training.v1.training_spec_pb2 import TrainingSpec

from backend_service.app import BackendApp
from backend_service.settings import BackendSettings
from ktrdr_core.clock import utc_now
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
from ktrdr_core.errors import (
    BarsMissingError,
    CheckpointNotFoundError,
    IllegalStateError,
    KtrdrError,
    NoSlotError,
    NotBuiltError,
    SessionNotFoundError,
)
from ktrdr_core.execution.engine import SessionCheckpoint, SessionJob, SessionOutcome
from ktrdr_core.execution.resources import ResourceUsage
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.checkpoint_transfer import checkpoint_ref, chunks_of
from ktrdr_core.rpc.chunks import decode_chunk
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.event_log import EventLog
from ktrdr_core.rpc.server import add_health_and_reflection
from ktrdr_core.rpc.upload import UploadPlan, upload_messages
from ktrdr_core.storage.artifact import ModelArtifact, load_result, write_artifact
from ktrdr_core.wire.to_proto import events_to_proto, state_to_proto
from tests.kit.artifacts import make_artifact
from tests.kit.builders import strategy_text, write_bars_csv
from tests.kit.eventually import eventually
from tests.kit.grpc_server import serving

T = TypeVar("T")
LOCAL = execution_mode_pb2.EXECUTION_MODE_LOCAL
HOST = execution_mode_pb2.EXECUTION_MODE_HOST
AUTO = execution_mode_pb2.EXECUTION_MODE_AUTO


def a_spec(mode: execution_mode_pb2.ExecutionMode.ValueType = LOCAL, **fields: Any) -> TrainingSpec:
    spec = TrainingSpec(execution_mode=mode, **fields)
    if not spec.strategy.WhichOneof("source"):
        spec.strategy.yaml = strategy_text()
    return spec


def event(detail: ProgressDetail) -> ProgressEvent:
    return ProgressEvent(create_time=utc_now(), attempt=1, detail=detail)


def step(number: TrainingStep) -> ProgressEvent:
    return event(StepDetail(step=number, title=STEP_TITLES[number]))


def epoch(number: int) -> ProgressEvent:
    return event(
        EpochDetail(
            epoch=number,
            total_epochs=3,
            train_loss=1.0,
            train_accuracy=0.5,
            val_loss=1.0,
            val_accuracy=0.5,
            learning_rate=0.001,
            rows_per_second=1e5,
        )
    )


def batch(number: int) -> ProgressEvent:
    return event(
        BatchDetail(
            epoch=1,
            total_epochs=3,
            batch=number,
            total_batches_per_epoch=100,
            train_loss=1.0,
            train_accuracy=0.5,
            learning_rate=0.001,
            rows_per_second=1e5,
        )
    )


def write_checkpoint(path: Path, epoch: int, content: bytes) -> SessionCheckpoint:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    return SessionCheckpoint(path=path, epoch=epoch, size_bytes=len(content), sha256=sha256)


class FakeSession:
    """An EngineSession: RUNNING at once, then what the test says."""

    def __init__(self, engine: FakeEngine, job: SessionJob) -> None:
        self.job = job
        self.pid = 1
        self.cancels: list[bool] = []
        self.checkpoint: SessionCheckpoint | None = None
        self._engine = engine
        self._events: asyncio.Queue[ProgressEvent | None] = asyncio.Queue()
        self._outcome: asyncio.Future[SessionOutcome] = asyncio.get_running_loop().create_future()
        self.emit(event(StateDetail(state=TrainingState.RUNNING)))

    def emit(self, *events: ProgressEvent) -> None:
        for one in events:
            self._events.put_nowait(one)

    def keep_checkpoint(self, epoch: int, content: bytes = b"weights") -> SessionCheckpoint:
        """Write what a worker writes every so often."""
        self.checkpoint = write_checkpoint(self.job.work_dir / f"{epoch}.safetensors", epoch, content)
        return self.checkpoint

    def finish(self, made: ModelArtifact | None = None) -> None:
        artifact = self.job.work_dir / "artifact"
        write_artifact(artifact, made or make_artifact())
        self.end(
            SessionOutcome(
                state=TrainingState.UPLOADING, message="done", artifact_path=artifact, result=load_result(artifact)
            )
        )

    def end(self, outcome: SessionOutcome) -> None:
        if not self._outcome.done():
            self._events.put_nowait(None)
            self._engine.sessions.remove(self)
            self._outcome.set_result(outcome)

    async def events(self) -> AsyncIterator[ProgressEvent]:
        while (one := await self._events.get()) is not None:
            yield one

    async def wait(self) -> SessionOutcome:
        return await asyncio.shield(self._outcome)

    async def cancel(self, *, save_checkpoint: bool = False, reason: str = "Cancelled on request") -> SessionOutcome:
        self.cancels.append(save_checkpoint)
        await self._engine.may_cancel.wait()
        state = TrainingState.STOPPED if save_checkpoint else TrainingState.CANCELLED
        path = str(self.job.work_dir / "checkpoint") if save_checkpoint else ""
        self.end(SessionOutcome(state=state, message=reason, checkpoint_path=path))
        return await self.wait()

    def resource_usage(self) -> ResourceUsage | None:
        return ResourceUsage(resident_memory_bytes=1000, cpu_time_s=1.5)


class FakeEngine:
    """An ExecutionEngine of `num_slots`; clear `may_cancel` to hold the end of cancelled sessions back."""

    def __init__(self, num_slots: int = 1) -> None:
        self.num_slots = num_slots
        self.sessions: list[FakeSession] = []
        self.started: list[FakeSession] = []
        self.may_cancel = asyncio.Event()
        self.may_cancel.set()
        self.refusal: Exception | None = None
        self.num_warm_ups = 0

    @property
    def num_free_slots(self) -> int:
        return self.num_slots - len(self.sessions)

    async def warm_up(self) -> None:
        self.num_warm_ups += 1

    async def start(self, job: SessionJob) -> FakeSession:
        if self.refusal is not None:
            raise self.refusal
        if not self.num_free_slots:
            raise NoSlotError("every slot is taken")
        session = FakeSession(self, job)
        self.sessions.append(session)
        self.started.append(session)
        return session

    async def close(self) -> None:
        self.may_cancel.set()
        for session in list(self.sessions):
            await session.cancel(reason="closed")


async def become(probe: Callable[[], Awaitable[T | None]], *, what: str = "condition") -> T:
    """Return the first truthy answer of an asynchronous probe."""
    return cast(T, await eventually(cast(Callable[[], Any], probe), what=what))


async def refusal(call: Awaitable[Any]) -> KtrdrError:
    """Return the error an RPC was refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)


class TrainerSession:
    def __init__(self, request: trainer_service_pb2.TrainRequest) -> None:
        self.request = request
        self.log = EventLog(_keep)
        self.checkpoint: SessionCheckpoint | None = None


class FakeTrainer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """A trainer whose sessions the test drives; clear `may_cancel` to hold the end of cancelled ones back.

    `accept_limits_s` has how long each Train was ready to wait.
    """

    def __init__(self, directory: Path, *, num_slots: int = 1, num_gpus: int = 0) -> None:
        self.directory = directory
        self.sessions: dict[str, TrainerSession] = {}
        self.cancels: list[tuple[str, bool]] = []
        self.asked_after: list[int] = []
        self.asked_to_train: list[str] = []
        self.accept_limits_s: list[float] = []
        self.may_cancel = asyncio.Event()
        self.may_cancel.set()
        self.num_slots = num_slots
        self.num_gpus = num_gpus
        self.refusal: Exception | None = None
        self.trainer_id = str(uuid4())
        self.version = metadata.version("ktrdr")
        self.put: dict[str, bytes] = {}
        """Content of the checkpoints that were put here, by SHA-256."""
        self.may_train = asyncio.Event()
        """Clear it to let no Train be answered."""
        self.may_train.set()
        self.num_asked = 0
        """How often one was asked for a session."""
        self.lacks_bars = False
        """Set it to have bars named in Train asked for with PrepareBars first."""
        self.prepared: list[trainer_service_pb2.PrepareBarsRequest] = []
        self.bars: set[bytes] = set()
        """SHA-256 of the parts that were prepared."""
        self.on_prepare: Callable[[], Awaitable[object]] = _nothing
        """What happens in PrepareBars before it succeeds; an error that it raises is the answer."""

    @property
    def only(self) -> TrainerSession:
        (session,) = self.sessions.values()
        return session

    def add_to(self, server: grpc.aio.Server) -> None:
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(self, server)
        add_health_and_reflection(server, ["ktrdr.trainer.v1.TrainerService"])

    async def Train(self, request: Any, context: Any) -> trainer_service_pb2.TrainResponse:
        if not request.validate_only:
            self.asked_to_train.append(request.session_id)
            await self.may_train.wait()
        if self.refusal is not None:
            raise self.refusal
        if request.validate_only:
            return trainer_service_pb2.TrainResponse()
        self.accept_limits_s.append(context.time_remaining())
        wanted = request.resume_from.sha256.hex()
        if wanted and wanted not in self.put and request.session_id not in self.sessions:
            raise CheckpointNotFoundError(f"there is no checkpoint {wanted}")
        if self.lacks_bars and not _parts_of(request.series) <= self.bars:
            raise BarsMissingError("bars are not here")
        if request.session_id in self.sessions:
            self.sessions[request.session_id].request.upload_target = request.upload_target
        else:
            session = TrainerSession(request)
            await session.log.append(event(StateDetail(state=TrainingState.QUEUED)))
            await session.log.append(event(StateDetail(state=TrainingState.RUNNING)))
            self.sessions[request.session_id] = session  # seen by a test only once it runs
        return trainer_service_pb2.TrainResponse()

    async def StreamProgress(self, request: Any, context: Any) -> Any:
        session = self.sessions.get(request.session_id)
        if session is None:
            raise SessionNotFoundError(f"there is no session {request.session_id}")
        self.asked_after.append(request.after_sequence)
        yield trainer_service_pb2.StreamProgressResponse()
        named = None
        async for events in session.log.watch(request.after_sequence, heartbeat_s=0.05):
            response = trainer_service_pb2.StreamProgressResponse(events=events_to_proto(events))
            if session.checkpoint is not named and session.checkpoint is not None:
                named = session.checkpoint
                response.checkpoint.CopyFrom(checkpoint_ref(named))
            yield response

    async def GetCheckpoint(self, request: Any, context: Any) -> Any:
        checkpoint = self.sessions[request.session_id].checkpoint
        assert checkpoint is not None
        yield trainer_service_pb2.GetCheckpointResponse(checkpoint=checkpoint_ref(checkpoint))
        async for chunk in chunks_of(checkpoint.path):
            yield trainer_service_pb2.GetCheckpointResponse(chunk=chunk)

    async def PutCheckpoint(self, request_iterator: Any, context: Any) -> trainer_service_pb2.PutCheckpointResponse:
        first = await anext(request_iterator)
        content = b"".join([decode_chunk(part.chunk, part.chunk.offset) async for part in request_iterator])
        assert hashlib.sha256(content).digest() == first.checkpoint.sha256
        self.put[first.checkpoint.sha256.hex()] = content
        return trainer_service_pb2.PutCheckpointResponse()

    async def PrepareBars(self, request: Any, context: Any) -> Any:
        self.prepared.append(request)
        yield trainer_service_pb2.PrepareBarsResponse(total_size_bytes=1)
        await self.on_prepare()
        self.bars |= _parts_of(request.series)
        yield trainer_service_pb2.PrepareBarsResponse(ready_size_bytes=1, total_size_bytes=1)

    async def Cancel(self, request: Any, context: Any) -> trainer_service_pb2.CancelResponse:
        self.cancels.append((request.session_id, request.save_checkpoint))
        await self.may_cancel.wait()
        session = self.sessions.get(request.session_id)
        if session is None:
            raise SessionNotFoundError(f"there is no session {request.session_id}")
        if session.log.is_closed:
            raise IllegalStateError("ended")
        state = TrainingState.STOPPED if request.save_checkpoint else TrainingState.CANCELLED
        path = "/checkpoint" if request.save_checkpoint else ""
        await session.log.append(event(StateDetail(state=state, message="gone", checkpoint_path=path)))
        return trainer_service_pb2.CancelResponse()

    async def GetSession(self, request: Any, context: Any) -> trainer_service_pb2.GetSessionResponse:
        if request.session_id not in self.sessions:
            raise SessionNotFoundError(f"there is no session {request.session_id}")
        self.num_asked += 1
        session = session_pb2.Session(state=state_to_proto(self.sessions[request.session_id].log.summary.state))
        return trainer_service_pb2.GetSessionResponse(session=session)

    async def ListSessions(self, request: Any, context: Any) -> trainer_service_pb2.ListSessionsResponse:
        raise NotBuiltError("no test asks for it")

    async def GetServerInfo(self, request: Any, context: Any) -> trainer_service_pb2.GetServerInfoResponse:
        devices = [trainer_info_pb2.Device(device_type="cuda", name="GPU")] * self.num_gpus
        devices.append(trainer_info_pb2.Device(device_type="cpu", name="CPU"))
        free = self.num_slots - sum(not session.log.is_closed for session in self.sessions.values())
        info = trainer_info_pb2.TrainerInfo(
            version=self.version,
            devices=devices,
            num_slots=self.num_slots,
            num_free_slots=max(free, 0),
            trainer_id=self.trainer_id,
        )
        return trainer_service_pb2.GetServerInfoResponse(trainer=info)

    async def finish(
        self, session: TrainerSession, made: ModelArtifact | None = None
    ) -> model_service_pb2.UploadModelResponse:
        """Upload a model as a trainer's outbox does."""
        artifact = self.directory / session.request.session_id
        write_artifact(artifact, made or make_artifact())
        await session.log.append(event(StateDetail(state=TrainingState.UPLOADING)))
        plan = UploadPlan.of(artifact, training_id=session.request.training_id, attempt=session.request.attempt)
        async with open_channel(session.request.upload_target) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            response: model_service_pb2.UploadModelResponse = await stub.UploadModel(upload_messages(plan))
        await session.log.append(event(StateDetail(state=TrainingState.COMPLETED)))
        return response


class Backend:
    """A running backend with stubs to it."""

    def __init__(self, app: BackendApp, engine: FakeEngine, channel: grpc.aio.Channel) -> None:
        self.app = app
        self.engine = engine
        self.channel = channel
        self.trainings: Any = training_service_pb2_grpc.TrainingServiceStub(channel)
        self.models: Any = model_service_pb2_grpc.ModelServiceStub(channel)

    async def train(self, spec: TrainingSpec | None = None, **fields: Any) -> str:
        request = training_service_pb2.TrainRequest(spec=spec if spec is not None else a_spec(), **fields)
        training_id: str = (await self.trainings.Train(request)).training.training_id
        return training_id

    async def get(self, training_id: str) -> training_pb2.Training:
        request = training_service_pb2.GetTrainingRequest(training_id=training_id)
        training: training_pb2.Training = (await self.trainings.GetTraining(request)).training
        return training

    async def state(self, training_id: str) -> str:
        from ktrdr.training.v1 import training_state_pb2

        name = training_state_pb2.TrainingState.Name((await self.get(training_id)).state)
        return name.removeprefix("TRAINING_STATE_")

    async def until(self, training_id: str, state: str) -> training_pb2.Training:
        """Return the training once it is in a state."""

        async def probe() -> training_pb2.Training | None:
            return await self.get(training_id) if await self.state(training_id) == state else None

        return await become(probe, what=f"state {state}")

    async def until_waiting(self, training_id: str) -> training_pb2.QueueStatus:
        """Return where a training is in the queue once it is known what it waits for."""

        async def probe() -> training_pb2.QueueStatus | None:
            queue = (await self.get(training_id)).queue
            return queue if queue.waiting_for not in ("", "its turn") else None

        return await become(probe, what="a place in the queue")

    async def until_sequence(self, training_id: str, sequence: int) -> int:
        """Return `sequence` once it is the training's last."""

        async def probe() -> bool:
            return (await self.get(training_id)).last_sequence == sequence

        await become(probe, what=f"sequence {sequence}")
        return sequence

    async def watch(self, training_id: str, after: int = 0) -> list[training_service_pb2.StreamProgressResponse]:
        """Return every response of a stream to its end."""
        request = training_service_pb2.StreamProgressRequest(training_id=training_id, after_sequence=after)
        return [response async for response in self.trainings.StreamProgress(request)]

    async def cancel(
        self, training_id: str = "", *, save_checkpoint: bool = False, request_id: str = ""
    ) -> training_service_pb2.CancelResponse:
        request = training_service_pb2.CancelRequest(
            training_id=training_id, request_id=request_id, save_checkpoint=save_checkpoint
        )
        response: training_service_pb2.CancelResponse = await self.trainings.Cancel(request)
        return response


@asynccontextmanager
async def running_backend(
    directory: Path, *, trainers: tuple[str, ...] = (), engine: FakeEngine | None = None, **settings: Any
) -> AsyncIterator[Backend]:
    """Run a backend with its state, bars and strategies under `directory`; stop it afterwards."""
    bars = directory / "bars"
    if not bars.exists():
        write_bars_csv(bars)
    (directory / "strategies").mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "port": 0,
        "data_dir": directory / "state",
        "bars_dir": bars,
        "strategies_dir": directory / "strategies",
        "trainers": trainers,
        "drain_s": 0.0,
    }
    used = engine or FakeEngine()
    app = BackendApp(BackendSettings(**values | settings), engine=used, has_torch=False)
    await app.start()
    try:
        async with open_channel(f"127.0.0.1:{app.port}") as channel:
            yield Backend(app, used, channel)
    finally:
        app.hurry()
        await app.stop()


@asynccontextmanager
async def running_trainer(trainer: FakeTrainer, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    async with serving(trainer.add_to, address=address) as served:
        yield served


async def _keep(one: ProgressEvent) -> None:
    """Store nothing: these logs live as long as the test."""


async def _nothing() -> None:
    """Have bars prepared at once."""


def _parts_of(series: Iterable[Series]) -> set[bytes]:
    return {part.sha256 for each in series for part in each.parts}
