"""The calls a schedule makes: through the broken network, tried again for as long as a patient client would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
from ktrdr.trainer.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from ktrdr.trainer.v1.session_pb2 import Session
from ktrdr.training.v1 import retry_mode_pb2, scheduling_pb2, training_service_pb2, training_service_pb2_grpc
from ktrdr.training.v1.training_pb2 import Training
from ktrdr_client import decode
from ktrdr_client.async_client import AsyncClient
from ktrdr_client.calls import call_unary
from ktrdr_client.model_types import Model
from ktrdr_client.progress_stream import ReconnectPolicy

from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.errors import KtrdrError
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.wire.from_proto import event_from_proto, spec_from_proto
from tests.chaos.observed import CancelAnswer
from tests.chaos.recipes import build_spec
from tests.chaos.schedule import Recipe, TrainingPlan
from tests.kit.eventually import eventually

PATIENCE_S = 90.0
_TRY_S = 5.0
_CANCEL_TRY_S = 20.0  # one that waits for the lease of a trainer that is away
_PAGE_SIZE = 100
_OTHER_SEED = 43


class BackendCalls:
    """A backend as its clients reach it; use `backend_calls`.

    Attributes:
        client: The real client, for watchers and models.
    """

    def __init__(self, client: AsyncClient, channel: grpc.aio.Channel) -> None:
        self.client = client
        self._trainings = training_service_pb2_grpc.TrainingServiceStub(channel)

    async def warm_up(self, num_trainers: int, num_slots: int) -> None:
        """Train once on every slot, so that what goes wrong meets trainings, not services that still warm up."""

        async def are_all_there() -> bool:
            return not await self.trainer_problems(num_trainers)

        async def train_one(mode: str, seed: int) -> None:
            training = await self.client.train(spec_from_proto(build_spec(Recipe.QUICK, mode, seed=seed)))
            await self.client.wait(training.training_id)

        await eventually(are_all_there, every_s=0.1, what="every trainer")
        await asyncio.gather(train_one("local", _OTHER_SEED), *(train_one("host", n) for n in range(num_slots)))

    async def train(self, plan: TrainingPlan, request_id: str, *, is_other: bool = False) -> str:
        """Ask for a training and return its id; `is_other` asks for something else by the same request_id."""
        mode = (
            retry_mode_pb2.RETRY_MODE_ON_INFRASTRUCTURE_FAILURE if plan.may_retry else retry_mode_pb2.RETRY_MODE_NEVER
        )
        request = training_service_pb2.TrainRequest(
            spec=build_spec(plan.recipe, plan.mode, **({"seed": _OTHER_SEED} if is_other else {})),
            request_id=request_id,
            scheduling=scheduling_pb2.Scheduling(
                user=plan.user, priority=plan.priority, retry_policy=scheduling_pb2.RetryPolicy(mode=mode)
            ),
        )
        response = await call_unary(self._trainings.Train, request, timeout_s=_TRY_S, retry_for_s=PATIENCE_S)
        return response.training.training_id

    async def cancel(
        self, *, training_id: str = "", request_id: str = "", save_checkpoint: bool = False
    ) -> CancelAnswer:
        """Cancel, and return what that was answered, an error too."""
        request = training_service_pb2.CancelRequest(
            training_id=training_id, request_id=request_id, save_checkpoint=save_checkpoint, cancel_reason="chaos"
        )
        try:
            response = await call_unary(
                self._trainings.Cancel, request, timeout_s=_CANCEL_TRY_S, retry_for_s=PATIENCE_S
            )
        except KtrdrError as error:
            return CancelAnswer(save_checkpoint=save_checkpoint, error_reason=error.reason)
        if not response.HasField("training"):
            return CancelAnswer(save_checkpoint=save_checkpoint)
        return CancelAnswer(save_checkpoint=save_checkpoint, state=decode.training(response.training).state)

    async def drain(self, trainer: str, *, is_draining: bool) -> None:
        request = training_service_pb2.SetTrainerDrainingRequest(trainer=trainer, is_draining=is_draining)
        await call_unary(self._trainings.SetTrainerDraining, request, timeout_s=_TRY_S, retry_for_s=PATIENCE_S)

    def open_stream(
        self, training_id: str
    ) -> grpc.aio.UnaryStreamCall[
        training_service_pb2.StreamProgressRequest, training_service_pb2.StreamProgressResponse
    ]:
        """Open a progress stream that nobody reads."""
        return self._trainings.StreamProgress(training_service_pb2.StreamProgressRequest(training_id=training_id))

    async def get(self, training_id: str) -> Training:
        request = training_service_pb2.GetTrainingRequest(training_id=training_id)
        response = await call_unary(self._trainings.GetTraining, request, timeout_s=_TRY_S, retry_for_s=PATIENCE_S)
        return response.training

    async def history(self, training_id: str) -> list[ProgressEvent]:
        """Return every durable event of a training, read in pages."""
        events: list[ProgressEvent] = []
        token = ""
        while True:
            request = training_service_pb2.ListTrainingEventsRequest(
                training_id=training_id, page_size=_PAGE_SIZE, page_token=token
            )
            response = await call_unary(
                self._trainings.ListTrainingEvents, request, timeout_s=_TRY_S, retry_for_s=PATIENCE_S
            )
            events += [event_from_proto(event) for event in response.events]
            token = response.next_page_token
            if not token:
                return events

    async def trainings_of(self, request_ids: set[str]) -> dict[str, list[str]]:
        """Return the ids of the trainings the backend has for each of these requests."""
        found: dict[str, list[str]] = {}
        for training in await self.client.list_trainings():
            if training.request_id in request_ids:
                found.setdefault(training.request_id, []).append(training.training_id)
        return found

    async def models(self) -> list[Model]:
        return await self.client.list_models()

    async def trainer_problems(self, num_trainers: int) -> list[str]:
        """Return what is not as it is when every trainer is there and idle."""
        trainers = await self.client.list_trainers()
        problems = [] if len(trainers) == num_trainers else [f"the backend knows {len(trainers)} trainers"]
        for trainer in trainers:
            if not trainer.is_healthy:
                problems.append(f"trainer {trainer.address} is not healthy: {trainer.message}")
            elif trainer.num_free_slots != trainer.num_slots:
                free = f"{trainer.num_free_slots} of {trainer.num_slots} slots"
                problems.append(f"trainer {trainer.address} has {free} free and nothing runs: a slot has leaked")
        return problems


@asynccontextmanager
async def backend_calls(address: str) -> AsyncIterator[BackendCalls]:
    """Open the calls to a backend; streams that nobody reads have a connection of their own."""
    policy = ReconnectPolicy(read_timeout_s=3.0, max_delay_s=1.0)
    async with (
        AsyncClient(address, timeout_s=_TRY_S, reconnect=policy) as client,
        open_channel(address) as channel,
    ):
        yield BackendCalls(client, channel)


async def sessions_on(address: str) -> list[Session]:
    """Return the sessions of a trainer, asked without a network in between."""
    # One answer has them all: those of a whole world pass the usual 4 MiB.
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
        response = await call_unary(
            stub.ListSessions, trainer_service_pb2.ListSessionsRequest(), timeout_s=_TRY_S, retry_for_s=PATIENCE_S
        )
    return list(response.sessions)
