"""Train, Get, List, Delete, configuration: servicer and client over a real server, a real database, a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1.training_spec_pb2 import TrainingSpec

from backend_service.app import SERVICE_NAMES
from ktrdr_core.domain.progress import TrainingStep
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    AlreadyExistsError,
    IllegalStateError,
    InvalidInputError,
    InvalidSpecError,
    KtrdrError,
    NoSlotError,
    SeriesNotFoundError,
    StrategyNotFoundError,
    TrainingNotFoundError,
)
from ktrdr_core.execution.engine import SessionOutcome
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.backend import (
    AUTO,
    HOST,
    LOCAL,
    Backend,
    FakeEngine,
    a_spec,
    batch,
    epoch,
    refusal,
    running_backend,
    step,
)
from tests.kit.builders import strategy_text
from tests.kit.eventually import eventually


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    async with running_backend(tmp_path) as running:
        yield running


async def test_training_runs_to_a_stored_model(backend: Backend, tmp_path: Path) -> None:
    training_id = await backend.train()
    watching = asyncio.create_task(backend.watch(training_id))
    session = (await eventually(lambda: backend.engine.started))[0]
    session.emit(step(TrainingStep.TRAINING), batch(10), epoch(1))
    session.finish()
    responses = await watching
    events = [event for response in responses for event in response.events if event.WhichOneof("detail") != "batch"]
    assert [event.sequence for event in events] == list(range(1, 7))
    kinds = [event.WhichOneof("detail") for event in events]
    assert kinds == ["state", "state", "step", "epoch", "state", "state"]
    assert responses[0].HasField("training")
    last = responses[-1].training
    assert any((tmp_path / "state" / "models").glob("*/*_v1/model.safetensors"))
    assert last.result.model_path == events[-1].state.model_path
    assert last == await backend.get(training_id)
    assert last.progress.overall_fraction == 1.0
    await eventually(lambda: not session.job.work_dir.exists(), what="the removal of the work directory")


async def test_second_training_waits_for_the_slot_of_the_first(backend: Backend) -> None:
    first, second = await backend.train(), await backend.train()
    await backend.until(first, "RUNNING")
    assert await backend.state(second) == "QUEUED"
    backend.engine.started[0].finish()
    await backend.until(second, "RUNNING")
    assert (await backend.get(second)).resource_usage.resident_memory_bytes == 1000


async def test_failed_training_says_why_and_the_stream_ends_ok(backend: Backend) -> None:
    training_id = await backend.train()
    session = (await eventually(lambda: backend.engine.started))[0]
    session.end(SessionOutcome(state=TrainingState.FAILED, message="loss is nan", error_reason="NON_FINITE_LOSS"))
    last = (await backend.watch(training_id))[-1].training
    assert (last.error.reason, last.error.message) == ("NON_FINITE_LOSS", "loss is nan")


async def test_start_that_the_engine_refuses_fails_the_training_with_its_reason(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.refusal = NoSlotError("asks for 4 GPUs and there are 0")
    async with running_backend(tmp_path, engine=engine) as backend:
        last = (await backend.watch(await backend.train()))[-1].training
    assert last.error.reason == "NO_SLOT"


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        (TrainingSpec(), InvalidSpecError, "strategy is empty"),
        (a_spec(batch_size=0), InvalidSpecError, "batch_size must be at least 1, was 0"),
        (a_spec(symbols=["XAUUSD"]), SeriesNotFoundError, "EURUSD"),
        (a_spec(timeframes=["5m"]), SeriesNotFoundError, "EURUSD"),
        (a_spec(symbols=["../x"]), InvalidInputError, "../x"),
    ],
    ids=["no strategy", "batch size 0", "unknown symbol", "unknown timeframe", "path as symbol"],
)
async def test_bad_request_is_refused_at_the_door(
    backend: Backend, spec: TrainingSpec, error: type[KtrdrError], text: str
) -> None:
    refused = await refusal(backend.train(spec))
    assert isinstance(refused, error)
    assert text in refused.message
    assert len((await backend.trainings.ListTrainings(pb.ListTrainingsRequest())).trainings) == 0


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("name: [", "strategy"),
        (strategy_text(**{"indicators.0.name": "rsl"}), "rsi"),
        (strategy_text(modle={}), "model"),
        (strategy_text(name="../x"), "../x"),
        (strategy_text(**{"training.labels.source": "magic"}), "magic"),
        (strategy_text(**{"fuzzy_sets.stoch": {"a": {"type": "triangular", "parameters": [0, 1, 2]}}}), "stoch"),
    ],
    ids=["malformed", "unknown indicator", "unknown key", "path as name", "unknown labels", "sets for no indicator"],
)
async def test_bad_strategy_is_refused_at_the_door(backend: Backend, yaml: str, text: str) -> None:
    spec = a_spec()
    spec.strategy.yaml = yaml
    refused = await refusal(backend.train(spec))
    assert isinstance(refused, InvalidInputError)
    assert text in refused.message
    assert refused.violations


async def test_reversed_dates_are_refused(backend: Backend) -> None:
    spec = a_spec()
    spec.start_time.FromJsonString("2017-02-01T00:00:00Z")
    spec.end_time.FromJsonString("2017-01-15T00:00:00Z")
    assert "is after" in (await refusal(backend.train(spec))).message


async def test_dates_outside_the_bars_are_refused(backend: Backend) -> None:
    spec = a_spec()
    spec.start_time.FromJsonString("2031-02-01T00:00:00Z")
    assert isinstance(await refusal(backend.train(spec)), InvalidSpecError)


async def test_strategy_by_name_is_read_from_the_directory(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "strategies" / "mine.yaml").write_text(strategy_text(name="mine"))
    spec = TrainingSpec(execution_mode=LOCAL)
    spec.strategy.name = "mine"
    assert (await backend.get(await backend.train(spec))).strategy_name == "mine"
    spec.strategy.name = "other"
    missing = await refusal(backend.train(spec))
    assert isinstance(missing, StrategyNotFoundError)
    assert "mine" in missing.message
    spec.strategy.name = "../mine"
    assert isinstance(await refusal(backend.train(spec)), InvalidInputError)


async def test_validate_only_answers_the_normalised_spec_and_stores_nothing(backend: Backend) -> None:
    request = pb.TrainRequest(spec=a_spec(), validate_only=True)
    training = (await backend.trainings.Train(request)).training
    assert training.training_id == ""
    assert list(training.spec.symbols) == ["EURUSD"]
    assert training.spec.HasField("start_time")
    assert len((await backend.trainings.ListTrainings(pb.ListTrainingsRequest())).trainings) == 0


async def test_same_request_id_and_content_answers_the_same_training(backend: Backend) -> None:
    first = await backend.train(request_id="r")
    together = await asyncio.gather(*(backend.train(request_id="s") for _ in range(5)))
    assert await backend.train(request_id="r") == first
    assert len(set(together)) == 1
    other = await refusal(backend.train(a_spec(epochs=9), request_id="r"))
    assert isinstance(other, AlreadyExistsError)
    assert other.metadata["training_id"] == first


async def test_request_id_that_is_too_long_is_refused(backend: Backend) -> None:
    assert isinstance(await refusal(backend.train(request_id="r" * 129)), InvalidInputError)


async def test_flood_of_trainings_is_bounded(tmp_path: Path) -> None:
    async with running_backend(tmp_path, max_queued=3) as backend:
        outcomes = await asyncio.gather(*(backend.train() for _ in range(8)), return_exceptions=True)
        refused = [from_rpc_error(one) for one in outcomes if isinstance(one, grpc.RpcError)]
        assert refused
        assert all(isinstance(error, NoSlotError) for error in refused)
        assert len(outcomes) - len(refused) >= 3


async def test_unknown_training_is_not_found(backend: Backend) -> None:
    for call in (
        backend.get("x"),
        backend.watch("x"),
        backend.cancel("x"),
        backend.trainings.DeleteTraining(pb.DeleteTrainingRequest(training_id="x")),
    ):
        assert isinstance(await refusal(call), TrainingNotFoundError)


async def test_pages_cover_everything_once_newest_first(backend: Backend) -> None:
    ids = [await backend.train() for _ in range(5)]
    seen: list[str] = []
    token = ""
    for _ in range(3):
        page = await backend.trainings.ListTrainings(pb.ListTrainingsRequest(page_size=2, page_token=token))
        seen += [training.training_id for training in page.trainings]
        token = page.next_page_token
    assert seen == ids[::-1]
    assert token == ""
    for bad in (pb.ListTrainingsRequest(page_size=1001), pb.ListTrainingsRequest(page_token="x" * 3)):
        assert isinstance(await refusal(backend.trainings.ListTrainings(bad)), InvalidInputError)


async def test_large_trainings_make_short_pages_instead_of_messages_nobody_accepts(backend: Backend) -> None:
    spec = a_spec()
    spec.strategy.yaml = strategy_text() + "# " + "x" * 900_000
    ids = [await backend.train(spec) for _ in range(5)]
    seen: list[str] = []
    request = pb.ListTrainingsRequest()
    while len(seen) < len(ids):
        page = await backend.trainings.ListTrainings(request)
        seen += [training.training_id for training in page.trainings]
        request.page_token = page.next_page_token
    assert request.page_token == ""
    assert seen == ids[::-1]
    spec.strategy.yaml += "x" * 200_000
    assert isinstance(await refusal(backend.train(spec)), InvalidSpecError)


async def test_delete_keeps_running_trainings_and_forgets_ended_ones(backend: Backend) -> None:
    training_id = await backend.train()
    request = pb.DeleteTrainingRequest(training_id=training_id)
    assert isinstance(await refusal(backend.trainings.DeleteTraining(request)), IllegalStateError)
    (await eventually(lambda: backend.engine.started))[0].finish()
    await backend.until(training_id, "COMPLETED")
    await backend.trainings.DeleteTraining(request)
    assert isinstance(await refusal(backend.get(training_id)), TrainingNotFoundError)


async def test_default_mode_is_kept_across_a_restart(tmp_path: Path) -> None:
    async with running_backend(tmp_path) as backend:
        answer = await backend.trainings.UpdateConfig(pb.UpdateConfigRequest(default_mode=HOST))
        assert (answer.previous_default_mode, answer.default_mode) == (AUTO, HOST)
        assert isinstance(await refusal(backend.trainings.UpdateConfig(pb.UpdateConfigRequest())), InvalidInputError)
    async with running_backend(tmp_path) as backend:
        config = await backend.trainings.GetConfig(pb.GetConfigRequest())
        assert config.default_mode == HOST
        assert config.local_slots == 1


async def test_strategies_are_listed_with_status_and_error(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "strategies" / "bad.yaml").write_text("name: bad\nmodle: 1\n")
    (tmp_path / "strategies" / "small.yaml").write_text(strategy_text(name="small"))
    spec = TrainingSpec(execution_mode=LOCAL)
    spec.strategy.name = "small"

    async def listed() -> dict[str, pb.Strategy]:
        answer = await backend.trainings.ListStrategies(pb.ListStrategiesRequest())
        return {strategy.name: strategy for strategy in answer.strategies}

    assert (await listed())["bad"].error
    assert (await listed())["small"].status == 1
    training_id = await backend.train(spec)
    session = (await eventually(lambda: backend.engine.started))[0]
    assert (await listed())["small"].status == 2
    session.finish()
    await backend.until(training_id, "COMPLETED")
    after = (await listed())["small"]
    assert (after.status, after.latest_version) == (3, 1)


async def test_every_service_is_healthy(backend: Backend) -> None:
    health = health_pb2_grpc.HealthStub(backend.channel)
    for name in ("", *SERVICE_NAMES):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))  # type: ignore[attr-defined]
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
