"""What Train refuses at the door: every broken rule of a strategy, by its path; junk of any kind, without a defect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ktrdr.training.v1 import training_service_pb2 as pb
from ktrdr.training.v1 import training_service_pb2_grpc as pb_grpc
from ktrdr.training.v1.training_spec_pb2 import TrainingSpec

from ktrdr_core.errors import InvalidInputError
from ktrdr_core.rpc.errors import from_rpc_error
from tests.kit.backend import LOCAL, a_spec, running_backend
from tests.kit.bad_strategies import BAD_STRATEGIES, BadStrategy
from tests.kit.strategy_junk import changed_strategies

LIMIT_S = 60.0
ALLOWED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND}


@contextmanager
def serving_in_a_thread(directory: Path) -> Iterator[str]:
    """Run a backend on a loop of its own, which many tests and every example of a law can ask; yields its address."""
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with running_backend(directory) as backend:
            started.set_result((f"127.0.0.1:{backend.app.port}", asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    address, loop, stop = started.result(timeout=LIMIT_S)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with (
        serving_in_a_thread(tmp_path_factory.mktemp("refusals")) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub: Any = pb_grpc.TrainingServiceStub(channel)
        yield stub
        assert not stub.ListTrainings(pb.ListTrainingsRequest()).trainings


@pytest.mark.parametrize("bad", BAD_STRATEGIES, ids=lambda bad: bad.label)
def test_strategy_that_breaks_a_rule_is_refused_by_its_path_and_nothing_is_stored(
    trainings: Any, bad: BadStrategy
) -> None:
    spec = a_spec()
    spec.strategy.yaml = bad.yaml
    with pytest.raises(grpc.RpcError) as caught:
        trainings.Train(pb.TrainRequest(spec=spec), timeout=LIMIT_S)
    call: Any = caught.value
    refused = from_rpc_error(caught.value)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(refused, InvalidInputError)
    assert refused.violations[0].field == bad.field
    assert bad.text in refused.message
    assert "\n" not in refused.message
    assert not trainings.ListTrainings(pb.ListTrainingsRequest()).trainings


def answers(trainings: Any, spec: TrainingSpec) -> None:
    """Ask whether a spec could be trained; the answer is yes, or no with a reason."""
    try:
        trainings.Train(pb.TrainRequest(spec=spec, validate_only=True), timeout=LIMIT_S)
    except grpc.RpcError as error:
        call: Any = error
        assert call.code() in ALLOWED, (call.code(), call.details())
        assert call.details()


@given(raw=changed_strategies())
def test_junk_in_a_strategy_is_refused_or_could_be_trained(trainings: Any, raw: dict[str, Any]) -> None:
    spec = TrainingSpec(execution_mode=LOCAL)
    text = yaml.dump(raw, sort_keys=False, allow_unicode=True)
    spec.strategy.yaml = text.encode("utf-8", "replace").decode()
    answers(trainings, spec)


DOUBLES = st.floats() | st.sampled_from([0.0, 0.5, 1.0, 10.0])
INT32 = st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 100)
NAMES = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=9) | st.sampled_from(["EURUSD", "1h", "4h", "7m", "1w"]), max_size=3
)


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "symbols": NAMES,
            "timeframes": NAMES,
            "validation_split": DOUBLES,
            "learning_rate": DOUBLES,
            "memory_fraction": DOUBLES,
            "epochs": INT32,
            "batch_size": INT32,
            "num_gpus": INT32,
            "seed": st.integers(-(2**63), 2**63 - 1),
            "model_type": INT32,
            "data_mode": INT32,
            "execution_mode": INT32,
            "multi_symbol": st.booleans(),
            "require_gpu": st.booleans(),
        },
    ),
    times=st.fixed_dictionaries(
        {},
        optional={
            name: st.tuples(
                st.integers(-(2**63), 2**63 - 1) | st.integers(1_483_000_000, 1_486_000_000),
                st.integers(-1, 10**9),
            )
            for name in ("start_time", "end_time")
        },
    ),
)
def test_junk_in_a_request_is_refused_or_could_be_trained(
    trainings: Any, fields: dict[str, Any], times: dict[str, tuple[int, int]]
) -> None:
    spec = a_spec()
    spec.MergeFrom(TrainingSpec(**fields))
    for name, (seconds, nanos) in times.items():
        time = getattr(spec, name)
        time.seconds, time.nanos = seconds, nanos
    answers(trainings, spec)
