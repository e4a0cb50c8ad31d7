"""A flood of Train calls is refused beyond a bound, and nothing else notices."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1 import training_service_pb2_grpc

from backend_service.admission import Admission
from backend_service.operations.sql_store import SqlOperationsStore
from backend_service.operations.store import TrainingQuery
from backend_service.operations.training_record import TrainingRecord
from backend_service.operations.trainings import Trainings
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import Bars
from ktrdr_core.domain.scheduling import Scheduling
from ktrdr_core.errors import AlreadyExistsError, NoSlotError, SeriesNotFoundError, StorageError
from ktrdr_core.rpc.channel import CHANNEL_OPTIONS
from ktrdr_core.wire.from_proto import spec_from_proto
from tests.kit.backend import a_spec, refusal
from tests.kit.builders import write_bars_csv
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.grpc_server import channel_to
from tests.kit.processes import a_service

NUM_FLOOD = 400
NUM_CHANNELS = 4
MAX_VALIDATIONS = 3


class SlowBarStore(DirectoryBarStore):
    """Bars on a disk that answers when the test lets it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.may_answer = threading.Event()
        self.may_answer.set()

    def load(self, *args: Any, **kwargs: Any) -> Bars:
        assert self.may_answer.wait(PATIENCE_S)
        return super().load(*args, **kwargs)


class FullStore:
    """An operations store whose disk is full while `is_full`."""

    def __init__(self, store: SqlOperationsStore) -> None:
        self._store = store
        self.is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def insert_training(self, *args: Any) -> None:
        if self.is_full:
            raise StorageError("the disk is full")
        await self._store.insert_training(*args)


class NoTrainers:
    """A selector, and trainers, of a backend that has none."""

    def may_use_trainer(self, mode: str | None, *, require_gpu: bool) -> bool:
        return False


class Door:
    """Train with an admission and nothing behind it: what is accepted is kept here, as by a dispatcher."""

    def __init__(self, store: SqlOperationsStore, directory: Path) -> None:
        self.store = FullStore(store)
        self.bars = SlowBarStore(write_bars_csv(directory / "bars").parent)
        self.submitted: list[TrainingRecord] = []
        self.num_arrived = 0
        store_port: Any = self.store
        self.trainings = Trainings(
            store_port, max_queued=1_000, sessions_dir=directory / "sessions", on_delete=self._on_delete
        )
        dispatcher: Any = self
        nobody: Any = NoTrainers()
        self.admission = Admission(
            self.trainings, dispatcher, nobody, self.bars, nobody, max_validations=MAX_VALIDATIONS
        )

    def submit(self, record: TrainingRecord) -> None:
        self.submitted.append(record)

    def close(self) -> None:
        self.bars.may_answer.set()
        self.admission.close()

    def add_to(self, server: grpc.aio.Server) -> None:
        train: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self.train,
            request_deserializer=pb.TrainRequest.FromString,
            response_serializer=pb.TrainResponse.SerializeToString,
        )
        service = "ktrdr.training.v1.TrainingService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Train": train}),))

    async def train(self, request: pb.TrainRequest, context: Any) -> pb.TrainResponse:
        self.num_arrived += 1
        spec = spec_from_proto(request.spec)
        response = pb.TrainResponse()
        if request.validate_only:
            await self.admission.check(spec)
        else:
            scheduling = Scheduling(user=request.scheduling.user)
            snapshot = await self.admission.accept(spec, request_id=request.request_id, scheduling=scheduling)
            response.training.training_id = snapshot.row.training_id
        return response

    async def _on_delete(self, training_id: str) -> None:
        raise AssertionError("nothing is deleted here")


@asynccontextmanager
async def open_door(directory: Path) -> AsyncIterator[tuple[Door, Any]]:
    """Serve a door; yields it and its Train."""
    store = await SqlOperationsStore.open(directory / "operations.db")
    door = Door(store, directory)
    try:
        async with channel_to(door.add_to) as channel:
            stub: Any = training_service_pb2_grpc.TrainingServiceStub(channel)
            yield door, lambda **fields: stub.Train(pb.TrainRequest(**{"spec": a_spec()} | fields), timeout=PATIENCE_S)
    finally:
        door.close()
        await store.close()


async def num_stored(door: Door) -> int:
    return len(await door.store.list_trainings(TrainingQuery(limit=100)))


async def fill(door: Door, train: Any) -> list[Any]:
    """Take each place of the validation, and return the calls that have them: the bars do not answer."""
    door.bars.may_answer.clear()
    door.num_arrived = 0
    calls = [asyncio.ensure_future(train()) for _ in range(MAX_VALIDATIONS)]
    await eventually(lambda: door.num_arrived == MAX_VALIDATIONS, what="a full door")
    return calls


async def test_calls_beyond_the_bound_are_told_when_to_come_back(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, train):
        calls = await fill(door, train)

        for refused in (train(), train(validate_only=True), train(request_id="new")):
            error = await refusal(refused)
            assert isinstance(error, NoSlotError)
            assert error.retry_after_s == 1.0

        door.bars.may_answer.set()
        assert len({(await call).training.training_id for call in calls}) == MAX_VALIDATIONS
        assert await num_stored(door) == len(door.submitted) == MAX_VALIDATIONS


async def test_room_comes_back_with_every_validation_that_ends_well_or_not(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (_, train):
        for _ in range(MAX_VALIDATIONS + 1):
            await train()
            assert isinstance(await refusal(train(spec=a_spec(symbols=["NOBODY"]))), SeriesNotFoundError)


async def test_a_repeated_request_is_answered_although_the_door_is_full(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, train):
        first = (await train(request_id="once")).training.training_id
        calls = await fill(door, train)

        assert (await train(request_id="once")).training.training_id == first

        door.bars.may_answer.set()
        await asyncio.gather(*calls)


async def test_a_request_id_with_other_scheduling_is_refused(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (_, train):
        first = await train(request_id="once", scheduling={"user": "ann"})

        assert await train(request_id="once", scheduling={"user": "ann"}) == first
        assert isinstance(await refusal(train(request_id="once", scheduling={"user": "bob"})), AlreadyExistsError)


async def test_a_training_that_cannot_be_stored_is_refused_and_can_be_sent_again(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (door, train):
        door.store.is_full = True

        assert isinstance(await refusal(train(request_id="r")), StorageError)
        assert await num_stored(door) == len(door.submitted) == len(door.trainings.active) == 0

        door.store.is_full = False
        await train(request_id="r")
        assert await num_stored(door) == len(door.submitted) == 1


async def test_cancel_and_get_are_answered_while_a_flood_comes(tmp_path: Path) -> None:
    answers: list[str] = []

    async def send(stub: Any) -> None:
        call = stub.Train(pb.TrainRequest(spec=a_spec(epochs=1_000_000)), timeout=PATIENCE_S)
        try:
            await call
            answers.append("accepted")
        except grpc.RpcError:
            error = await refusal(call)
            assert isinstance(error, NoSlotError)
            assert error.retry_after_s > 0
            answers.append("refused")

    with a_service("tests.kit.scripted_backend", "--data-dir", str(tmp_path / "backend")) as backend:
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(backend.address, options=options) for _ in range(NUM_CHANNELS + 1)]
        beside: Any
        beside, *flooding = (training_service_pb2_grpc.TrainingServiceStub(channel) for channel in channels)
        waiting = []
        for _ in range(20):
            answer = await beside.Train(pb.TrainRequest(spec=a_spec(epochs=1_000_000)), timeout=PATIENCE_S)
            waiting.append(answer.training.training_id)
        took_s = []
        flood = asyncio.gather(*(send(flooding[number % NUM_CHANNELS]) for number in range(NUM_FLOOD)))
        for training_id in waiting:
            if flood.done():
                break
            begin_s = time.monotonic()
            await beside.Cancel(pb.CancelRequest(training_id=training_id), timeout=PATIENCE_S)
            await beside.GetTraining(pb.GetTrainingRequest(training_id=training_id), timeout=PATIENCE_S)
            took_s.append(time.monotonic() - begin_s)
        is_beside = not flood.done()
        await flood

        assert is_beside, "the flood had passed; NUM_FLOOD is too small"
        # Beside it, not behind it. How fast on a quiet machine, the benchmark says.
        assert max(took_s) < 5.0
        assert len(answers) == NUM_FLOOD
        for channel in channels:
            await channel.close()
