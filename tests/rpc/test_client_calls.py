"""Unary calls of the clients: idempotent Train, errors as their classes, deadlines, pages, uploads."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import Parse
from google.protobuf.timestamp_pb2 import Timestamp
from ktrdr.data.v1 import market_data_service_pb2
from ktrdr.models.v1 import model_service_pb2
from ktrdr.trainer.v1 import trainer_service_pb2
from ktrdr.training.v1 import training_pb2, training_service_pb2
from ktrdr_client import (
    AsyncClient,
    AsyncTrainerClient,
    Client,
    RetryMode,
    Scheduling,
    TrainerClient,
    TrainingSpec,
    TrainingState,
)
from ktrdr_client.types import QueueStatus, TrainerDevice
from ktrdr_client.upload_messages import main

from ktrdr_core.errors import (
    FieldViolation,
    IllegalStateError,
    InvalidSpecError,
    InvalidUploadError,
    KtrdrError,
    NoSlotError,
    NotFoundError,
    TrainingNotFoundError,
    UnavailableError,
    UnreachableError,
)
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk
from ktrdr_core.rpc.upload import UploadPlan, upload_messages
from tests.kit.eventually import PATIENCE_S
from tests.kit.fake_backend import FakeBackend, a_log, serving
from tests.kit.story_backend import StoryBackend, a_training

SPEC = TrainingSpec(strategy_yaml="name: fake\n", epochs=3, symbols=("EURUSD",))


@pytest.mark.parametrize("answer_before_error", [False, True])
async def test_train_retried_after_unavailable_starts_one_training(answer_before_error: bool) -> None:
    backend = FakeBackend(
        train_errors=[UnavailableError("restarting"), UnavailableError("restarting")],
        answer_before_error=answer_before_error,
    )
    async with serving(backend) as address, AsyncClient(address) as client:
        training = await client.train(SPEC)
    assert len(backend.train_requests) == 3
    assert len({request.request_id for request in backend.train_requests}) == 1
    assert len(backend.started) == 1
    assert training.training_id == "t1"
    assert training.state is TrainingState.QUEUED


async def test_two_train_calls_are_two_trainings() -> None:
    backend = FakeBackend()
    async with serving(backend) as address, AsyncClient(address) as client:
        first, second = await client.train(SPEC), await client.train(SPEC)
    assert first.training_id != second.training_id


async def test_train_with_bad_input_is_not_retried_and_keeps_its_violations() -> None:
    violation = FieldViolation("spec.epochs", "epochs must be at least 1, was 0")
    backend = FakeBackend(train_errors=[InvalidSpecError("epochs must be at least 1, was 0", violations=[violation])])
    async with serving(backend) as address, AsyncClient(address) as client:
        with pytest.raises(InvalidSpecError, match="epochs must be at least 1") as caught:
            await client.train(SPEC)
    assert caught.value.violations == (violation,)
    assert len(backend.train_requests) == 1


async def test_train_carries_the_whole_spec_and_the_strategy_by_name() -> None:
    backend = FakeBackend()
    async with serving(backend) as address, AsyncClient(address) as client:
        by_text = await client.train(SPEC, request_id="mine")
        await client.train(SPEC, strategy_name="neuro")
    assert by_text.spec == SPEC
    assert by_text.request_id == "mine"
    assert backend.train_requests[0].spec.strategy.yaml == "name: fake\n"
    assert backend.train_requests[1].spec.strategy.WhichOneof("source") == "name"
    assert backend.train_requests[1].spec.strategy.name == "neuro"
    assert backend.train_requests[1].spec.epochs == 3


async def test_train_carries_its_scheduling_and_reads_it_back() -> None:
    scheduling = Scheduling(user="alice", priority=-3, retry=RetryMode.NEVER, max_retries=0)
    backend = StoryBackend()
    async with serving(backend) as address, AsyncClient(address) as client:
        await client.train(SPEC, scheduling=scheduling)
        await client.train(SPEC)
        first, second = backend.train_requests
        backend.trainings["t9"] = a_training("t9", scheduling=first.scheduling)
        assert (await client.get_training("t9")).scheduling == scheduling
    assert (first.scheduling.user, first.scheduling.priority) == ("alice", -3)
    assert first.scheduling.retry_policy.max_retries == 0
    assert second.scheduling.retry_policy.max_retries == Scheduling().max_retries


async def test_full_queue_is_waited_for_as_long_as_it_says_and_told() -> None:
    told: list[KtrdrError] = []
    backend = FakeBackend(train_errors=[NoSlotError("the queue is full", retry_after_s=0.5)])
    async with serving(backend) as address, AsyncClient(address, on_retry=told.append) as client:
        begun = time.monotonic()
        training = await client.train(SPEC)
    assert time.monotonic() - begun >= 0.5
    assert training.training_id == "t1"
    assert [error.message for error in told] == ["the queue is full"]
    assert backend.train_requests[0].request_id == backend.train_requests[1].request_id


async def test_full_queue_that_asks_for_longer_than_the_limit_is_an_error_at_once() -> None:
    told: list[KtrdrError] = []
    backend = FakeBackend(train_errors=[NoSlotError("the queue is full", retry_after_s=60.0)])
    async with serving(backend) as address, AsyncClient(address, retry_for_s=5.0, on_retry=told.append) as client:
        with pytest.raises(NoSlotError, match="the queue is full"):
            await client.train(SPEC)
    assert len(backend.train_requests) == 1
    assert told == []


async def test_retries_of_an_unavailable_backend_are_told() -> None:
    told: list[KtrdrError] = []
    backend = FakeBackend(train_errors=[UnavailableError("restarting")] * 2)
    async with serving(backend) as address, AsyncClient(address, on_retry=told.append) as client:
        await client.train(SPEC)
    assert [error.message for error in told] == ["restarting"] * 2


async def test_cancel_by_request_id_answers_the_training_or_none_before_it_arrives() -> None:
    backend = StoryBackend()
    async with serving(backend) as address, AsyncClient(address) as client:
        assert await client.cancel_request("early", reason="changed my mind") is None
        await client.train(SPEC, request_id="late")
        ended = await client.cancel_request("late", save_checkpoint=True)
        with pytest.raises(IllegalStateError, match="CANCELLED"):
            await client.cancel_request("late")
    assert backend.cancelled_requests == ["early"]
    assert ended is not None
    assert ended.state is TrainingState.CANCELLED
    first, second, _ = backend.cancels
    assert (first.request_id, first.training_id, first.cancel_reason) == ("early", "", "changed my mind")
    assert second.save_checkpoint


async def test_events_of_a_training_are_listed_over_all_pages() -> None:
    backend = StoryBackend(trainings={"t1": a_training("t1")}, events={"t1": a_log()})
    async with serving(backend) as address, AsyncClient(address) as client:
        assert [event async for event in client.list_training_events("t1")] == a_log()
        with pytest.raises(TrainingNotFoundError):
            await anext(client.list_training_events("t2"))

        def use() -> list[int]:
            with Client(address) as sync_client:
                return [event.sequence for event in sync_client.list_training_events("t1")]

        assert await asyncio.to_thread(use) == list(range(1, 10))
    assert backend.page_sizes == [1000] * 6


async def test_history_and_place_in_the_queue_of_a_training_are_read() -> None:
    queue = training_pb2.QueueStatus(position=2, num_queued=7, waiting_for="a free slot")
    queue.estimated_wait.FromSeconds(90)
    lost = training_pb2.SessionRef(
        session_id="s1",
        attempt=1,
        trainer="gpu-1:50052",
        trainer_id="uuid-1",
        reasons=["a GPU was asked for", "most free slots"],
        start_time=Timestamp(seconds=100),
        end_time=Timestamp(seconds=160),
        outcome="LOST",
        error_reason="TRAINER_LOST",
        message="silent for 10 s",
        is_fenced=True,
    )
    next_one = training_pb2.SessionRef(session_id="s2", attempt=2, trainer="local", resumed_from_epoch=40)
    backend = StoryBackend(trainings={"t1": a_training("t1", queue=queue, sessions=[lost, next_one])})
    async with serving(backend) as address, AsyncClient(address) as client:
        training = await client.get_training("t1")
    assert training.queue == QueueStatus(position=2, num_queued=7, estimated_wait_s=90.0, waiting_for="a free slot")
    first, second = training.sessions
    assert training.attempt == 2
    assert (first.trainer_id, first.outcome, first.error_reason, first.is_fenced) == (
        "uuid-1",
        "LOST",
        "TRAINER_LOST",
        True,
    )
    assert first.reasons == ("a GPU was asked for", "most free slots")
    assert (first.message, first.resumed_from_epoch) == ("silent for 10 s", 0)
    assert first.start_time is not None
    assert first.end_time is not None
    assert (first.end_time - first.start_time).total_seconds() == 60.0
    assert (second.end_time, second.outcome, second.resumed_from_epoch) == (None, "", 40)


async def test_trainer_is_drained_by_address_or_identity_and_read_whole() -> None:
    status = training_service_pb2.TrainerStatus(
        address="gpu-1:50052",
        trainer_id="uuid-1",
        is_registered=True,
        num_sessions=2,
        python_version="3.11.7",
        torch_version="2.13.0",
        device_details=[
            training_service_pb2.TrainerDevice(device_type="cuda", name="H100", memory_available_gb=79.5),
            training_service_pb2.TrainerDevice(device_type="cpu", name="cpu"),
        ],
    )
    status.silence.FromMilliseconds(1_500)
    backend = StoryBackend(trainers=[status, training_service_pb2.TrainerStatus(address="gpu-2:50052")])
    async with serving(backend) as address, AsyncClient(address) as client:
        drained = await client.set_trainer_draining("uuid-1", is_draining=True)
        undrained = await client.set_trainer_draining("gpu-1:50052", is_draining=False)
        with pytest.raises(NotFoundError, match="no trainer nobody"):
            await client.set_trainer_draining("nobody", is_draining=True)
        _, silent = await client.list_trainers()
    assert (drained.is_draining, undrained.is_draining) == (True, False)
    assert (drained.trainer_id, drained.is_registered, drained.num_sessions) == ("uuid-1", True, 2)
    assert (drained.silence_s, drained.python_version, drained.torch_version) == (1.5, "3.11.7", "2.13.0")
    assert drained.device_details == (
        TrainerDevice(device_type="cuda", name="H100", memory_available_gb=79.5),
        TrainerDevice(device_type="cpu", name="cpu", memory_available_gb=None),
    )
    assert silent.silence_s is None


async def test_unreachable_backend_is_said_within_the_retry_limit() -> None:
    async with AsyncClient("127.0.0.1:1", retry_for_s=0.3) as client:
        with pytest.raises(UnreachableError):
            await client.train(SPEC)
        with pytest.raises(UnreachableError):
            await client.get_training("t1")


async def test_unknown_training_is_its_own_class_with_metadata() -> None:
    async with serving(FakeBackend()) as address, AsyncClient(address) as client:
        with pytest.raises(TrainingNotFoundError) as caught:
            await client.get_training("unknown")
    assert caught.value.metadata["training_id"] == "unknown"


async def test_call_to_a_silent_server_ends_at_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with AsyncClient(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2) as client:
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(client.get_training("t1"), PATIENCE_S)


@pytest.mark.parametrize(("limit", "expected"), [(None, 5), (3, 3), (1, 1), (50, 5)])
async def test_list_follows_pages_up_to_the_limit(limit: int | None, expected: int) -> None:
    async with serving(FakeBackend()) as address, AsyncClient(address) as client:
        trainings = await client.list_trainings(limit=limit)
    assert [each.training_id for each in trainings] == [f"t{number}" for number in range(expected)]


async def test_sync_client_serves_many_threads_and_leaves_none_behind() -> None:
    backend = FakeBackend()
    before = threading.active_count()

    def use(address: str) -> set[str]:
        with Client(address) as client:
            found: list[str] = []
            threads = [threading.Thread(target=lambda: found.append(client.train(SPEC).training_id)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        with pytest.raises(RuntimeError, match="closed"):
            client.get_training("t1")
        return set(found)

    async with serving(backend) as address:
        found = await asyncio.to_thread(use, address)
    assert len(found) == 8
    assert not [each for each in threading.enumerate() if each.name == "ktrdr-client"]
    assert threading.active_count() <= before + 4  # to_thread keeps its own


def _methods(cls: type[Any]) -> dict[str, Any]:
    return {name: each for name, each in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(("asynchronous", "synchronous"), [(AsyncClient, Client), (AsyncTrainerClient, TrainerClient)])
def test_sync_client_has_every_method_of_the_async_one_with_the_same_parameters(
    asynchronous: type[Any], synchronous: type[Any]
) -> None:
    ours, theirs = _methods(synchronous), _methods(asynchronous)
    assert set(ours) == set(theirs)
    for name, method in theirs.items():
        wanted = {key for key in inspect.signature(method).parameters if key not in ("on_reconnect", "on_connect")}
        assert set(inspect.signature(ours[name]).parameters) == wanted, name


@pytest.mark.parametrize(
    ("service", "client"),
    [
        (training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"], AsyncClient),
        (model_service_pb2.DESCRIPTOR.services_by_name["ModelService"], AsyncClient),
        (market_data_service_pb2.DESCRIPTOR.services_by_name["MarketDataService"], AsyncClient),
        (trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"], AsyncTrainerClient),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_rpc_of_the_services_is_in_the_client(service: Any, client: type[Any]) -> None:
    for method in service.methods:
        name = "".join(f"_{char.lower()}" if char.isupper() else char for char in method.name).lstrip("_")
        assert callable(getattr(client, name, None)), f"{service.name}.{method.name} has no {client.__name__}.{name}"


def _a_model_directory(directory: Path, *, weights: bytes) -> Path:
    directory.mkdir()
    contents = {
        "model.safetensors": weights,
        "config.json": b"{}",
        "metrics.json": b'{"a": 1}',
        "features.json": b"[]",
        "metadata.json": b'{"b": 2}',
        "model.pt": b"derived, stays at home",
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("skip", [0, 1, CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES + 7])
def test_chunks_from_any_offset_join_to_the_files_in_header_order(tmp_path: Path, skip: int) -> None:
    weights = bytes(range(256)) * 9_000  # 2.3 MB: three chunks
    directory = _a_model_directory(tmp_path / "model", weights=weights)
    plan = UploadPlan.of(directory, training_id="t1", attempt=2)
    header, *chunks = list(upload_messages(plan, write_offset=skip))
    assert "model.pt" not in [file.name for file in header.header.files]
    whole = b"".join((directory / file.name).read_bytes() for file in header.header.files)
    assert header.header.total_size_bytes == len(whole)
    assert (header.header.training_id, header.header.attempt, header.header.write_offset) == ("t1", 2, skip)
    offset, joined = skip, b""
    for message in chunks:
        raw = decode_chunk(message.chunk, offset)
        offset += len(raw)
        joined += raw
    assert joined == whole[skip:]


async def test_upload_model_sends_the_whole_directory(tmp_path: Path) -> None:
    directory = _a_model_directory(tmp_path / "model", weights=b"w" * 100)
    backend = FakeBackend()
    async with serving(backend) as address, AsyncClient(address) as client:
        model = await client.upload_model(directory, training_id="t1", attempt=1)
    assert model.version == 1
    assert backend.uploads == list(upload_messages(UploadPlan.of(directory, training_id="t1", attempt=1)))


def test_upload_messages_command_prints_json_that_reads_back_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = _a_model_directory(tmp_path / "model", weights=b"w" * 100)
    assert main([str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(json.loads(line) for line in lines)
    read = [Parse(line, model_service_pb2.UploadModelRequest()) for line in lines]
    assert read == list(upload_messages(directory))


def test_upload_of_what_is_no_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidUploadError, match="is not a directory"):
        UploadPlan.of(tmp_path / "nothing")
    incomplete = _a_model_directory(tmp_path / "incomplete", weights=b"w")
    (incomplete / "metrics.json").unlink()
    with pytest.raises(NotFoundError, match=r"metrics\.json"):
        UploadPlan.of(incomplete)
    assert main([str(incomplete)]) == 2
    assert main([str(tmp_path / "nothing")]) == 2
    assert "is not a directory" in capsys.readouterr().err
