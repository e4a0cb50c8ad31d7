"""A scripted backend that also keeps trainings, their events, cancels and trainers. For tests of the command line."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ktrdr.models.v1 import model_service_pb2_grpc
from ktrdr.training.v1 import training_pb2, training_service_pb2, training_service_pb2_grpc

from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import IllegalStateError, NotFoundError, TrainingNotFoundError
from ktrdr_core.rpc.server import add_health_and_reflection, bind, create_server
from ktrdr_core.wire.from_proto import state_from_proto
from ktrdr_core.wire.to_proto import event_to_proto, state_to_proto
from tests.kit.fake_backend import FakeBackend

SERVICE = "ktrdr.training.v1.TrainingService"


def a_training(training_id: str, state: TrainingState = TrainingState.QUEUED, **fields: Any) -> training_pb2.Training:
    """Return the message of a training."""
    return training_pb2.Training(
        training_id=training_id, strategy_name="fake", state=state_to_proto(state), last_sequence=9, **fields
    )


@dataclass
class StoryBackend(FakeBackend):
    """Answers from what it holds.

    Attributes:
        trainings: By id, newest first.
        events: Durable events by training.
        page_sizes: What each ListTrainingEvents asked for.
        cancels: Every Cancel that came.
        cancel_gate: Cancels wait for it once they are counted in `num_cancelling`.
        train_gate: Trains wait for it once they have come.
        cancelled_requests: Request ids whose Train had not come.
        trainers: What ListTrainers answers.
        config: What GetConfig answers.
    """

    trainings: dict[str, training_pb2.Training] = field(default_factory=dict)
    events: dict[str, list[ProgressEvent]] = field(default_factory=dict)
    page_sizes: list[int] = field(default_factory=list)
    cancels: list[training_service_pb2.CancelRequest] = field(default_factory=list)
    cancel_gate: asyncio.Event | None = None
    train_gate: asyncio.Event | None = None
    num_cancelling: int = 0
    cancelled_requests: list[str] = field(default_factory=list)
    trainers: list[training_service_pb2.TrainerStatus] = field(default_factory=list)
    strategies: list[training_service_pb2.Strategy] = field(default_factory=list)
    config: training_service_pb2.GetConfigResponse = field(default_factory=training_service_pb2.GetConfigResponse)

    async def Train(self, request: training_service_pb2.TrainRequest, context: Any) -> Any:
        if self.train_gate is not None:
            self.train_requests.append(request)
            await self.train_gate.wait()
        return await super().Train(request, context)

    async def GetTraining(self, request: training_service_pb2.GetTrainingRequest, context: Any) -> Any:
        return training_service_pb2.GetTrainingResponse(training=self._found(request.training_id))

    async def ListTrainings(self, request: training_service_pb2.ListTrainingsRequest, context: Any) -> Any:
        found = [each for each in self.trainings.values() if not request.states or each.state in request.states]
        first = int(request.page_token or 0)
        last = first + request.page_size
        return training_service_pb2.ListTrainingsResponse(
            trainings=found[first:last], next_page_token=str(last) if last < len(found) else ""
        )

    async def ListTrainingEvents(self, request: training_service_pb2.ListTrainingEventsRequest, context: Any) -> Any:
        self._found(request.training_id)
        self.page_sizes.append(request.page_size)
        events = self.events.get(request.training_id, [])
        first = int(request.page_token or 0)
        last = first + 3  # a backend may give fewer than asked for
        return training_service_pb2.ListTrainingEventsResponse(
            events=[event_to_proto(event) for event in events[first:last]],
            next_page_token=str(last) if last < len(events) else "",
        )

    async def Cancel(self, request: training_service_pb2.CancelRequest, context: Any) -> Any:
        self.cancels.append(request)
        if self.cancel_gate is not None:
            self.num_cancelling += 1
            await self.cancel_gate.wait()
            self.num_cancelling -= 1
        if request.request_id:
            known = self.started.get(request.request_id)
            if known is None:
                self.cancelled_requests.append(request.request_id)
                return training_service_pb2.CancelResponse()
            training = known
        else:
            training = self._found(request.training_id)
        state = state_from_proto(training.state)
        if state.is_terminal:
            raise IllegalStateError(f"training {training.training_id} has ended {state}", metadata={"state": state})
        training.state = state_to_proto(TrainingState.CANCELLED)
        return training_service_pb2.CancelResponse(training=training)

    async def ListTrainers(self, request: Any, context: Any) -> Any:
        return training_service_pb2.ListTrainersResponse(trainers=self.trainers)

    async def SetTrainerDraining(self, request: training_service_pb2.SetTrainerDrainingRequest, context: Any) -> Any:
        for trainer in self.trainers:
            if request.trainer in (trainer.address, trainer.trainer_id):
                trainer.is_draining = request.is_draining
                return training_service_pb2.SetTrainerDrainingResponse(trainer=trainer)
        raise NotFoundError(f"no trainer {request.trainer}; ListTrainers names those there are")

    async def GetConfig(self, request: Any, context: Any) -> Any:
        return self.config

    async def ListStrategies(self, request: Any, context: Any) -> Any:
        return training_service_pb2.ListStrategiesResponse(strategies=self.strategies)

    def _found(self, training_id: str) -> training_pb2.Training:
        if training_id not in self.trainings:
            raise TrainingNotFoundError(f"no training {training_id}", metadata={"training_id": training_id})
        return self.trainings[training_id]


@asynccontextmanager
async def telling(backend: FakeBackend, *, port: int = 0) -> AsyncIterator[str]:
    """Serve it on loopback, with health; yields its address."""
    server = create_server()
    servicer: Any = backend
    training_service_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    health = add_health_and_reflection(server, [SERVICE])
    bound = bind(server, f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        health.end_watches()
        await server.stop(None)
