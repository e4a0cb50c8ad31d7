"""Many light trainers in one process, for load: `python -m tests.kit.simulated_trainer --count 200 --backend H:P`.

Each has an address, an identity, a lease and a connection of its own, and speaks the whole trainer protocol over real
gRPC; its sessions train nothing. They report epochs at a steady rate, and upload a tiny artifact when their time is up.
"""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from ktrdr.trainer.v1 import session_pb2, trainer_info_pb2, trainer_registry_service_pb2_grpc, trainer_service_pb2_grpc
from ktrdr.trainer.v1 import trainer_registry_service_pb2 as registry_pb
from ktrdr.trainer.v1 import trainer_service_pb2 as pb

from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import (
    STEP_TITLES,
    EpochDetail,
    ProgressDetail,
    ProgressEvent,
    StateDetail,
    StepDetail,
    TrainingStep,
)
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    CheckpointNotFoundError,
    IllegalStateError,
    KtrdrError,
    NoSlotError,
    NotBuiltError,
    SessionNotFoundError,
)
from ktrdr_core.rpc.channel import CHANNEL_OPTIONS
from ktrdr_core.rpc.event_log import EventLog
from ktrdr_core.rpc.server import add_health_and_reflection, bind, create_server
from ktrdr_core.rpc.service_main import stop_on_signals
from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.versions import own_version
from ktrdr_core.wire.to_proto import events_to_proto, state_to_proto, summary_to_proto, time_to_proto
from tests.kit.artifacts import make_artifact
from trainer_service.outbox import Upload, UploadOptions

NAME = "simulated-trainers"
SERVICE = "ktrdr.trainer.v1.TrainerService"
ANSWER_TIMEOUT_S = 5.0
RECONNECT_S = 0.2
HEARTBEAT_S = 1.0
# Many trainers of one process would share one connection to their backend.
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What the sessions of a trainer do.

    Attributes:
        slots: Sessions at once.
        events_per_s: Epochs that each session reports a second.
        run_s: How long a session runs; None until it is cancelled.
        upload_s: How long it stays UPLOADING before it uploads.
    """

    slots: int = 1
    events_per_s: float = 3.0
    run_s: float | None = None
    upload_s: float = 0.0


@dataclass
class SimulatedSession:
    """A session: what was asked for, its log, and the task that pretends to train."""

    request: pb.TrainRequest
    log: EventLog = field(default_factory=lambda: EventLog(_keep))
    task: asyncio.Task[None] | None = None

    async def emit(self, detail: ProgressDetail) -> None:
        await self.log.append(ProgressEvent(create_time=utc_now(), attempt=self.request.attempt, detail=detail))

    def to_proto(self) -> session_pb2.Session:
        summary = self.log.summary
        return session_pb2.Session(
            session_id=self.request.session_id,
            training_id=self.request.training_id,
            attempt=self.request.attempt,
            state=state_to_proto(summary.state),
            progress=summary_to_proto(summary),
            last_sequence=self.log.last_sequence,
            message=summary.message,
        )


class SimulatedTrainer(trainer_service_pb2_grpc.TrainerServiceServicer):
    """One trainer: `start`, then `stop`.

    Args:
        trainer_id: Its identity.
        behaviour: What its sessions do.
        backend: Address of the backend it registers at; "" at none.
    """

    def __init__(self, trainer_id: str, behaviour: Behaviour, *, backend: str = "") -> None:
        self.trainer_id = trainer_id
        self.address = ""
        self._behaviour = behaviour
        self._backend = backend
        self._sessions: dict[str, SimulatedSession] = {}
        self._start_time = utc_now()
        self._server = create_server()
        self._leasing: asyncio.Task[None] | None = None

    async def start(self, port: int = 0) -> None:
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(self, self._server)
        add_health_and_reflection(self._server, [SERVICE])
        self.address = f"127.0.0.1:{bind(self._server, f'127.0.0.1:{port}')}"
        await self._server.start()
        if self._backend:
            self._leasing = asyncio.create_task(self._hold_lease())

    async def stop(self) -> None:
        tasks = [self._leasing, *(session.task for session in self._sessions.values())]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        await self._server.stop(None)

    async def Train(self, request: pb.TrainRequest, context: Any) -> pb.TrainResponse:
        if request.validate_only:
            return pb.TrainResponse()
        session = self._sessions.get(request.session_id)
        if session is None:
            if request.HasField("resume_from"):
                raise CheckpointNotFoundError("a simulated trainer has no checkpoints")
            if self._num_free_slots < 1:
                raise NoSlotError("every slot is taken")
            session = self._sessions[request.session_id] = SimulatedSession(request)
            session.task = asyncio.create_task(self._run(session))
        return pb.TrainResponse(session=session.to_proto())

    async def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        session = self._session(request.session_id)
        if session.log.is_closed:
            raise IllegalStateError(
                f"session {request.session_id} has ended", metadata={"state": str(session.log.summary.state)}
            )
        state = TrainingState.STOPPED if request.save_checkpoint else TrainingState.CANCELLED
        await self._end(session, state, request.cancel_reason)
        return pb.CancelResponse(session=session.to_proto())

    async def StreamProgress(self, request: pb.StreamProgressRequest, context: Any) -> Any:
        session = self._session(request.session_id)
        batches = session.log.watch(request.after_sequence, heartbeat_s=HEARTBEAT_S)
        yield pb.StreamProgressResponse(session=session.to_proto())
        async for events in batches:
            is_last = bool(events) and events[-1].terminal_state is not None
            yield pb.StreamProgressResponse(
                session=session.to_proto() if is_last else None, events=events_to_proto(events)
            )

    async def GetSession(self, request: pb.GetSessionRequest, context: Any) -> pb.GetSessionResponse:
        return pb.GetSessionResponse(session=self._session(request.session_id).to_proto())

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Any) -> pb.ListSessionsResponse:
        return pb.ListSessionsResponse(sessions=[each.to_proto() for each in reversed(self._sessions.values())])

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Any) -> Any:
        raise CheckpointNotFoundError("a simulated trainer has no checkpoints")
        yield  # makes this a generator, as the service wants

    async def PutCheckpoint(self, request_iterator: Any, context: Any) -> pb.PutCheckpointResponse:
        raise NotBuiltError("a simulated trainer takes no checkpoints")

    async def PrepareBars(self, request: pb.PrepareBarsRequest, context: Any) -> Any:
        yield pb.PrepareBarsResponse()  # it needs none

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(trainer=self._info())

    @property
    def _active(self) -> list[SimulatedSession]:
        return [session for session in self._sessions.values() if not session.log.is_closed]

    @property
    def _num_free_slots(self) -> int:
        return self._behaviour.slots - len(self._active)

    def _session(self, session_id: str) -> SimulatedSession:
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFoundError(f"no session {session_id!r} on {self.trainer_id}")
        return session

    def _info(self) -> trainer_info_pb2.TrainerInfo:
        return trainer_info_pb2.TrainerInfo(
            version=own_version(),
            devices=[trainer_info_pb2.Device(device_type="cpu", name="simulated")],
            num_slots=self._behaviour.slots,
            num_free_slots=max(self._num_free_slots, 0),
            start_time=time_to_proto(self._start_time),
            trainer_id=self.trainer_id,
            current_time=time_to_proto(utc_now()),
            disk_free_bytes=1 << 40,
        )

    async def _run(self, session: SimulatedSession) -> None:
        await session.emit(StateDetail(state=TrainingState.QUEUED))
        await session.emit(StateDetail(state=TrainingState.RUNNING))
        step = TrainingStep.TRAINING
        await session.emit(StepDetail(step=step, title=STEP_TITLES[step]))
        await self._train(session)
        await session.emit(StateDetail(state=TrainingState.UPLOADING))
        await asyncio.sleep(self._behaviour.upload_s)
        await self._upload(session)

    async def _train(self, session: SimulatedSession) -> None:
        """Report epochs until the session's time is up."""
        pace_s = 1 / self._behaviour.events_per_s
        begin = time.monotonic()
        until = begin + (float("inf") if self._behaviour.run_s is None else self._behaviour.run_s)
        epoch = 0
        due = begin + random.uniform(0, pace_s)  # many sessions that begin together do not beat as one
        while due < until:
            await asyncio.sleep(due - time.monotonic())
            epoch += 1
            due += pace_s
            await session.emit(
                EpochDetail(
                    epoch=epoch,
                    total_epochs=max(epoch, session.request.spec.epochs),
                    train_loss=1.0 / epoch,
                    train_accuracy=0.5,
                    val_loss=1.1 / epoch,
                    val_accuracy=0.45,
                    learning_rate=0.001,
                    rows_per_second=12_345.6,
                )
            )
        await asyncio.sleep(max(0.0, until - time.monotonic()))

    async def _upload(self, session: SimulatedSession) -> None:
        request = session.request
        if request.upload_target:
            try:
                with tempfile.TemporaryDirectory(prefix="ktrdr-simulated-") as name:
                    await self._send_artifact(request, Path(name) / "artifact")
            except KtrdrError as error:
                detail = StateDetail(state=TrainingState.FAILED, message=error.message, error_reason=error.reason)
                await session.emit(detail)
                return
        await session.emit(StateDetail(state=TrainingState.COMPLETED))

    async def _send_artifact(self, request: pb.TrainRequest, artifact: Path) -> None:
        await asyncio.to_thread(write_artifact, artifact, make_artifact())
        upload = Upload(
            artifact,
            training_id=request.training_id,
            attempt=request.attempt,
            target=lambda: request.upload_target,
            warn=_ignore_warning,
            options=UploadOptions(),
        )
        await upload.run()

    async def _end(self, session: SimulatedSession, state: TrainingState, message: str) -> None:
        if session.task is not None:
            session.task.cancel()
            await asyncio.wait([session.task])
        if not session.log.is_closed:
            await session.emit(StateDetail(state=state, message=message))

    async def _hold_lease(self) -> None:
        while True:
            options = [*CHANNEL_OPTIONS, _OWN_CONNECTION]
            async with grpc.aio.insecure_channel(self._backend, options=options) as channel:
                call: Any = trainer_registry_service_pb2_grpc.TrainerRegistryServiceStub(channel).Register()
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                    await self._renew(call)
                call.cancel()
            await asyncio.sleep(random.uniform(0.5, 1.0) * RECONNECT_S)

    async def _renew(self, call: Any) -> None:
        """Renew the lease until the backend ends it."""
        while True:
            request = registry_pb.RegisterRequest(
                trainer_id=self.trainer_id,
                address=self.address,
                trainer=self._info(),
                sessions=[session.to_proto() for session in self._active],
            )
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await call.write(request)
                response = await call.read()
            if not isinstance(response, registry_pb.RegisterResponse):
                return
            await self._obey_fences(response.fenced_session_ids)
            await asyncio.sleep(response.renew_after.ToTimedelta().total_seconds())

    async def _obey_fences(self, session_ids: Iterable[str]) -> None:
        for session_id in session_ids:
            if (session := self._sessions.get(session_id)) is not None:
                await self._end(session, TrainingState.CANCELLED, "Fenced")


async def serve(behaviour: Behaviour, *, count: int, name: str, backend: str, port: int) -> None:
    """Serve `count` trainers until a signal; the one line on stdout has their addresses, comma-separated."""
    stopping = stop_on_signals(lambda: None)
    async with AsyncExitStack() as stack:
        trainers: list[SimulatedTrainer] = []
        for number in range(count):
            trainer = SimulatedTrainer(f"{name}-{number}", behaviour, backend=backend)
            await trainer.start(port + number if port else 0)
            stack.push_async_callback(trainer.stop)
            trainers.append(trainer)
        addresses = ",".join(trainer.address for trainer in trainers)
        sys.stdout.write(f"{NAME} listening on {addresses}\n")
        sys.stdout.flush()
        await stopping.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kit.simulated_trainer", description=__doc__)
    parser.add_argument("--count", type=int, default=1, help="how many trainers")
    parser.add_argument("--backend", default="", help="backend they register at; none: they only listen")
    parser.add_argument("--name", default="simulated", help="their identities are NAME-0, NAME-1, ...")
    parser.add_argument("--port", type=int, default=0, help="port of the first, the others follow; 0 takes free ones")
    parser.add_argument("--slots", type=int, default=1, help="sessions that each runs at once")
    parser.add_argument("--events-per-s", type=float, default=3.0, help="epochs that each session reports a second")
    parser.add_argument("--run-s", type=float, help="how long a session runs; until it is cancelled")
    parser.add_argument("--upload-s", type=float, default=0.0, help="how long it then stays UPLOADING")
    flags, _ = parser.parse_known_args(arguments)  # ServiceProcess adds the flags of every service
    behaviour = Behaviour(
        slots=flags.slots, events_per_s=flags.events_per_s, run_s=flags.run_s, upload_s=flags.upload_s
    )
    asyncio.run(serve(behaviour, count=flags.count, name=flags.name, backend=flags.backend, port=flags.port))
    return 0


async def _keep(event: ProgressEvent) -> None:
    """Store nothing: a killed simulated trainer knows nothing of its sessions."""


async def _ignore_warning(reason: str, message: str) -> None:
    """Raise no warning: the upload goes on trying."""


if __name__ == "__main__":
    sys.exit(main())
