"""The trainer as a process: real bars, real workers. One process serves all of these tests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.storage.artifact_files import artifact_digest
from tests.kit.grpc_server import serving
from tests.kit.model_sink import ModelSink
from tests.kit.trainer_process import TrainerProcess, first_epoch, is_alive, train_request, trainer_process

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG = 100_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TrainerProcess]:
    async with trainer_process(tmp_path_factory.mktemp("trainer")) as found:
        yield found


async def test_a_training_on_real_bars_streams_to_its_end_and_its_model_arrives(trainer: TrainerProcess) -> None:
    sink = ModelSink()
    async with serving(sink.add_to) as target:
        await trainer.stub.Train(train_request("s1", epochs=3, upload_target=target))
        answers = await trainer.watch("s1")

    events = [event for answer in answers for event in answer.events]
    durable = [event for event in events if event.WhichOneof("detail") != "batch"]
    assert [event.sequence for event in durable] == list(range(1, len(durable) + 1))
    assert [event.step.step for event in durable if event.HasField("step")] == list(range(1, 13))
    assert [event.epoch.epoch for event in durable if event.HasField("epoch")] == [1, 2, 3]
    assert any(event.HasField("batch") for event in events)
    overall = [event.overall_fraction for event in events]
    assert overall == sorted(overall)
    assert overall[-1] == 1.0
    last = answers[-1].session
    assert last.state == states.TRAINING_STATE_COMPLETED
    assert last.result.test_metrics.majority_baseline_accuracy > 0
    assert [header.training_id for header in sink.headers] == ["training-s1"]
    assert len(sink.published) == 1


async def test_without_a_target_the_artifact_stays_and_equals_what_was_told(trainer: TrainerProcess) -> None:
    await trainer.stub.Train(train_request("here", epochs=1))

    last = (await trainer.watch("here"))[-1].session

    assert artifact_digest(Path(last.artifact_path)) == last.result.artifact_digest


async def test_cancel_in_the_middle_leaves_no_process(trainer: TrainerProcess) -> None:
    await trainer.stub.Train(train_request("cancelled", epochs=LONG))
    pid = await first_epoch(trainer, "cancelled")
    assert is_alive(pid)

    begin = time.perf_counter()
    answer = await trainer.stub.Cancel(pb.CancelRequest(session_id="cancelled"))
    took_s = time.perf_counter() - begin

    assert answer.session.state == states.TRAINING_STATE_CANCELLED
    assert not is_alive(pid)
    assert took_s < 10.0  # long before a stop with checkpoint gives up; how long it takes is a benchmark
    info = (await trainer.stub.GetServerInfo(pb.GetServerInfoRequest())).trainer
    assert info.num_free_slots == info.num_slots


async def test_cancel_with_checkpoint_leaves_one_and_rpcs_are_answered_meanwhile(trainer: TrainerProcess) -> None:
    await trainer.stub.Train(train_request("stopped", epochs=LONG))
    await first_epoch(trainer, "stopped")
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        await trainer.stub.GetSession(pb.GetSessionRequest(session_id="stopped"))
        times.append(time.perf_counter() - begin)

    answer = await trainer.stub.Cancel(pb.CancelRequest(session_id="stopped", save_checkpoint=True))

    assert answer.session.state == states.TRAINING_STATE_STOPPED
    assert list(Path(answer.checkpoint_path).parent.iterdir())
    assert sorted(times)[25] < 1.0  # how long it takes is a benchmark
