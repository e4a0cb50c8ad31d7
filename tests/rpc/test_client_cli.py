"""Commands of `ktrdr` against a scripted backend: what they send, what they tell, how they end."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ktrdr.training.v1 import training_pb2, training_service_pb2

from ktrdr_core.domain.progress import StateDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import NoSlotError, UnavailableError
from ktrdr_core.versions import own_version
from tests.kit.cli import ROOT, STRATEGY, Cli, Ran, Run
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.fake_backend import HANG, a_log, a_state, an_epoch
from tests.kit.story_backend import StoryBackend, a_training, telling

# cancel


def _queued(number: int) -> dict[str, training_pb2.Training]:
    return {f"t{index:03}-{'0' * 32}": a_training(f"t{index:03}-{'0' * 32}") for index in range(number)}


async def test_many_are_cancelled_at_once_but_never_more_than_16(ktrdr: Run) -> None:
    backend = StoryBackend(trainings=_queued(40), cancel_gate=asyncio.Event())
    async with telling(backend) as address:
        cancelling = asyncio.create_task(ktrdr(address, "cancel", *backend.trainings))
        await eventually(lambda: backend.num_cancelling >= 16)
        most = backend.num_cancelling
        assert backend.cancel_gate is not None
        backend.cancel_gate.set()
        ran = await cancelling
    assert (ran.code, most) == (0, 16)
    assert sorted(ran.out.splitlines()) == sorted(f"training {each} cancelled" for each in backend.trainings)
    assert len(backend.cancels) == 40


async def test_of_several_ids_each_error_is_told_and_the_others_are_cancelled(ktrdr: Run) -> None:
    trainings = {**_queued(2), "ended": a_training("ended", TrainingState.COMPLETED)}
    backend = StoryBackend(trainings=trainings)
    async with telling(backend) as address:
        ran = await ktrdr(address, "cancel", "t000", "nothing", "ended", "t000", "t001", "nothing")
    assert ran.code == 2
    assert len(ran.out.splitlines()) == 2
    assert [line.split(":")[0] for line in ran.err.splitlines()] == ["ktrdr"] * 2
    assert "no training nothing" in ran.err
    assert "training ended has ended COMPLETED" in ran.err


async def test_several_cancelled_as_json_are_training_and_error_lines(ktrdr: Run) -> None:
    backend = StoryBackend(trainings=_queued(1))
    async with telling(backend) as address:
        ran = await ktrdr(address, "cancel", "t000", "nothing", "--json")
    assert ran.code == 2
    training, error = ran.lines
    assert (training["type"], training["state"]) == ("training", "CANCELLED")
    assert (error["type"], error["reason"], error["metadata"]["training_id"]) == (
        "error",
        "TRAINING_NOT_FOUND",
        "nothing",
    )


async def test_beginning_that_means_several_cancels_none(ktrdr: Run) -> None:
    backend = StoryBackend(trainings=_queued(2))
    async with telling(backend) as address:
        ran = await ktrdr(address, "cancel", "t00", "t001")
    assert (ran.code, backend.cancels) == (2, [])
    assert "2 trainings begin with 't00'" in ran.err


async def test_all_queued_are_cancelled_once_it_is_confirmed(ktrdr: Run) -> None:
    running = a_training("running", TrainingState.RUNNING)
    backend = StoryBackend(trainings={**_queued(30), "running": running})
    async with telling(backend) as address:
        refused = await ktrdr(address, "cancel", "--queued")
        assert (refused.code, backend.cancels) == (2, [])
        assert "30 trainings are queued" in refused.err
        ran = await ktrdr(address, "cancel", "--queued", "--yes")
        assert (ran.code, len(ran.out.splitlines()), len(backend.cancels)) == (0, 30, 30)
        again = await ktrdr(address, "cancel", "--queued", "--yes")
    assert (again.code, again.err) == (0, "no training is queued\n")
    assert "running" not in {each.training_id for each in backend.cancels}


async def test_queued_training_that_ended_meanwhile_is_no_error(ktrdr: Run) -> None:
    backend = StoryBackend(trainings=_queued(3), cancel_gate=asyncio.Event())
    async with telling(backend) as address:
        cancelling = asyncio.create_task(ktrdr(address, "cancel", "--queued", "--yes"))
        await eventually(lambda: backend.num_cancelling == 3)
        next(iter(backend.trainings.values())).state = a_training("", TrainingState.COMPLETED).state
        assert backend.cancel_gate is not None
        backend.cancel_gate.set()
        ran = await cancelling
    assert (ran.code, len(ran.out.splitlines())) == (0, 2)


async def test_cancel_by_request_id_says_whether_it_had_arrived(ktrdr: Run) -> None:
    backend = StoryBackend(started={"here": a_training("t1")})
    async with telling(backend) as address:
        there = await ktrdr(address, "cancel", "--request-id", "here", "--save-checkpoint")
        assert (there.code, there.out) == (0, "training t1 cancelled\n")
        early = await ktrdr(address, "cancel", "--request-id", "early")
        assert early.code == 0
        assert "no training with request id early has arrived" in early.out
        as_json = await ktrdr(address, "cancel", "--request-id", "early", "--json")
    assert as_json.lines == [{"type": "request_cancel", "request_id": "early"}]
    assert backend.cancels[0].save_checkpoint


@pytest.mark.parametrize(
    "arguments", [(), ("t1", "--queued"), ("t1", "--request-id", "r"), ("--queued", "--request-id", "r")], ids=" ".join
)
async def test_what_to_cancel_is_named_in_exactly_one_way(ktrdr: Run, arguments: tuple[str, ...]) -> None:
    ran = await ktrdr("127.0.0.1:1", "cancel", *arguments)
    assert ran.code == 2
    assert "name what to cancel" in ran.err


async def test_unreachable_backend_is_told_once_however_many_are_cancelled(ktrdr: Run) -> None:
    ran = await ktrdr("127.0.0.1:1", "cancel", *(f"{index}{'0' * 32}" for index in range(20)))
    assert (ran.code, len(ran.err.splitlines())) == (5, 1)
    assert "the backend at 127.0.0.1:1 cannot be reached" in ran.err


# list, show


async def test_list_tells_user_place_in_the_queue_and_attempt(ktrdr: Run) -> None:
    queued = a_training("waits", queue=training_pb2.QueueStatus(position=2, num_queued=5))
    queued.scheduling.user = "alice"
    again = a_training("again", TrainingState.RUNNING, sessions=[training_pb2.SessionRef(attempt=3)])
    first = a_training("first", TrainingState.RUNNING, sessions=[training_pb2.SessionRef(attempt=1)])
    backend = StoryBackend(trainings={each.training_id: each for each in (queued, again, first)})
    async with telling(backend) as address:
        ran = await ktrdr(address, "list")
    rows = {line.split()[0]: " ".join(line.split()) for line in ran.out.splitlines()}
    assert rows["waits"].startswith("waits fake queued, 2 of 5 alice ")
    assert rows["again"].startswith("again fake running, attempt 3 - ")
    assert rows["first"].startswith("first fake running - ")


async def test_show_tells_the_history_and_with_events_every_event(ktrdr: Run) -> None:
    training = a_training("t1", TrainingState.COMPLETED)
    backend = StoryBackend(trainings={"t1": training}, events={"t1": a_log()})
    async with telling(backend) as address:
        plain = await ktrdr(address, "show", "t1")
        whole = await ktrdr(address, "show", "t1", "--events")
        as_json = await ktrdr(address, "show", "t1", "--json")
        with_events = await ktrdr(address, "show", "t1", "--events", "--json")
    assert [ran.code for ran in (plain, whole, as_json, with_events)] == [0] * 4
    assert "now RUNNING" in plain.out
    assert "epoch 3/3" not in plain.out
    assert "epoch 3/3" in whole.out
    assert [line["type"] for line in as_json.lines] == ["training"]
    assert [line["type"] for line in with_events.lines] == ["training", *["event"] * 9]
    assert [line["sequence"] for line in with_events.lines[1:]] == list(range(1, 10))


# trainers


def _trainers() -> list[training_service_pb2.TrainerStatus]:
    return [
        training_service_pb2.TrainerStatus(
            address="gpu-1:50052",
            trainer_id="aaaa1111-2222",
            is_healthy=True,
            version=own_version(),
            torch_version="2.13.0",
            num_slots=2,
            num_free_slots=1,
            num_sessions=1,
            is_registered=True,
            has_gpu=True,
            devices=["H100"],
            message="SERVING",
        ),
        training_service_pb2.TrainerStatus(address="gpu-2:50052", trainer_id="aaaa3333-4444", message="silent"),
    ]


async def test_trainers_without_a_word_lists_them_with_all_that_is_known(ktrdr: Run) -> None:
    backend = StoryBackend(trainers=_trainers())
    async with telling(backend) as address:
        ran = await ktrdr(address, "trainers")
        as_json = await ktrdr(address, "trainers", "--json")
    heading, first, second = (" ".join(line.split()) for line in ran.out.splitlines())
    assert heading.startswith("address id health known by sessions slots devices torch version heard of latency")
    assert first.startswith("gpu-1:50052 aaaa1111 healthy registration 1 1 of 2 free H100 2.13.0 ")
    assert second == "gpu-2:50052 aaaa3333 not healthy address 0 - - - - never - silent"
    assert [line["address"] for line in as_json.lines] == ["gpu-1:50052", "gpu-2:50052"]
    assert as_json.lines[0]["trainer_id"] == "aaaa1111-2222"


async def test_trainer_is_drained_and_undrained_by_address_id_or_its_beginning(ktrdr: Run) -> None:
    backend = StoryBackend(trainers=_trainers())
    async with telling(backend) as address:
        drained = await ktrdr(address, "trainers", "drain", "aaaa1")
        assert (drained.code, drained.out) == (0, "gpu-1:50052 gets no new sessions; the one it has goes on\n")
        assert backend.trainers[0].is_draining
        assert "healthy, draining" in (await ktrdr(address, "trainers")).out
        undrained = await ktrdr(address, "trainers", "undrain", "gpu-1:50052", "--json")
        assert undrained.lines[0]["is_draining"] is False
        assert not backend.trainers[0].is_draining
        none = await ktrdr(address, "trainers", "drain", "aaaa3333-4444")
        assert none.out == "gpu-2:50052 gets no new sessions; it has none now\n"
        unknown = await ktrdr(address, "trainers", "drain", "nobody")
        assert (unknown.code, "no trainer nobody" in unknown.err) == (2, True)
        several = await ktrdr(address, "trainers", "drain", "aaaa")
    assert (several.code, "2 trainers have ids that begin with 'aaaa'" in several.err) == (2, True)


# doctor


def _config(tmp_path: Path, **fields: object) -> training_service_pb2.GetConfigResponse:
    return training_service_pb2.GetConfigResponse(
        version=own_version(),
        models_path=str(tmp_path / "models"),
        bars_path=str(ROOT / "data"),
        strategies_path=str(ROOT / "strategies"),
        local_slots=1,
        **fields,  # type: ignore[arg-type]
    )


async def test_doctor_finds_nothing_to_do_where_all_is_well(ktrdr: Run, tmp_path: Path) -> None:
    backend = StoryBackend(config=_config(tmp_path), strategies=[training_service_pb2.Strategy(name="s")])
    async with telling(backend) as address:
        ran = await ktrdr(address, "doctor")
        as_json = await ktrdr(address, "doctor", "--json")
    assert ran.code == 0, ran.out
    assert ran.out.splitlines()[-1].startswith("no problems, ")
    found = {line["name"]: line for line in as_json.lines}
    assert {line["type"] for line in as_json.lines} == {"check"}
    assert {"client", "backend", "version", "keepalive", "places", "strategies", "disk of the models", "bars"} == set(
        found
    )
    for name in ("client", "backend", "version", "keepalive", "strategies", "bars"):
        assert found[name]["status"] == "ok", found[name]


async def test_doctor_names_each_problem_with_what_to_do_and_ends_with_code_3(ktrdr: Run, tmp_path: Path) -> None:
    trainers = _trainers()
    trainers[0].version = "99.0.0"
    config = _config(tmp_path)
    config.local_slots = 0
    config.version = "98.0.0"
    broken = training_service_pb2.Strategy(name="old", error="grammar 1")
    backend = StoryBackend(config=config, trainers=trainers, strategies=[broken])
    async with telling(backend) as address:
        ran = await ktrdr(address, "doctor", "--json")
    assert ran.code == 3
    found = {line["name"]: line for line in ran.lines}
    assert found["version"]["status"] == "problem"
    assert "trainer 99.0.0 and backend 98.0.0" in found["trainer gpu-1:50052"]["message"]
    assert "not healthy: silent" in found["trainer gpu-2:50052"]["message"]
    assert found["clock of gpu-1:50052"]["status"] == "note"  # no such host from here: no problem
    assert found["strategies"]["status"] == "warning"
    assert all(line["advice"] for line in ran.lines if line["status"] in ("warning", "problem"))


async def test_doctor_of_an_unreachable_backend_ends_with_code_5(ktrdr: Run) -> None:
    ran = await ktrdr("127.0.0.1:1", "doctor")
    assert ran.code == 5
    assert "127.0.0.1:1 does not answer" in ran.out
    assert "ktrdr backend serve" in ran.out


def test_doctor_without_a_backend_starts_none(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "never made")
    ran = cli.run("doctor", "--json")
    assert ran.code == 0, ran.out
    found = {line["name"]: line for line in ran.lines}
    assert found["embedded backend"]["status"] == "note"
    assert found["bars"]["status"] == "ok"
    assert not cli.data_dir.exists()


# train and watch, as processes: they answer signals


@asynccontextmanager
async def _process(tmp_path: Path, address: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    cli = Cli(tmp_path / "state")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ktrdr_client",
        "--backend",
        address,
        *arguments,
        cwd=ROOT,
        env={**cli.environment(), "KTRDR_USER": "alice"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _end(process: asyncio.subprocess.Process) -> Ran:
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupt_before_train_is_answered_cancels_by_request_id(tmp_path: Path, number: signal.Signals) -> None:
    backend = StoryBackend(train_gate=asyncio.Event())
    async with telling(backend) as address, _process(tmp_path, address, "train", STRATEGY) as process:
        await eventually(lambda: backend.train_requests)
        process.send_signal(number)
        ran = await _end(process)
    assert ran.code == 4, ran.err
    assert "nothing is left behind" in ran.err
    assert backend.cancelled_requests == [backend.train_requests[0].request_id]
    assert backend.cancels[0].cancel_reason


async def test_interrupt_with_a_request_id_of_the_users_cancels_nothing_and_says_how(tmp_path: Path) -> None:
    """It may name the training of an earlier command, which must not die of this one's Ctrl-C."""
    backend = StoryBackend(train_gate=asyncio.Event())
    words = ("train", STRATEGY, "--request-id", "mine")
    async with telling(backend) as address, _process(tmp_path, address, *words) as process:
        await eventually(lambda: backend.train_requests)
        process.send_signal(signal.SIGINT)
        ran = await _end(process)
    assert (ran.code, backend.cancels) == (130, [])
    assert f"ktrdr --backend {address} cancel --request-id mine" in ran.err


_GIVES_UP_BY_ITSELF_S = 20.0


async def test_second_interrupt_ends_at_once_and_says_how_to_cancel(tmp_path: Path) -> None:
    backend = StoryBackend(train_gate=asyncio.Event(), cancel_gate=asyncio.Event())
    async with telling(backend) as address, _process(tmp_path, address, "train", STRATEGY) as process:
        await eventually(lambda: backend.train_requests)
        process.send_signal(signal.SIGINT)
        await eventually(lambda: backend.num_cancelling)
        interrupted_at = time.monotonic()
        process.send_signal(signal.SIGINT)
        ran = await _end(process)
    assert time.monotonic() - interrupted_at < _GIVES_UP_BY_ITSELF_S / 2
    assert ran.code == 130
    assert f"cancel --request-id {backend.train_requests[0].request_id}" in ran.err


async def test_train_sends_user_priority_retries_and_request_id(tmp_path: Path) -> None:
    backend = StoryBackend()
    words = ("train", STRATEGY, "--detach", "--priority", "-7", "--retries", "2", "--request-id", "mine")
    async with telling(backend) as address:
        async with _process(tmp_path, address, *words) as process:
            ran = await _end(process)
        async with _process(tmp_path, address, "train", STRATEGY, "--detach", "--user", "bob") as process:
            await _end(process)
    assert (ran.code, ran.out) == (0, "t1\n")
    first, second = backend.train_requests
    assert (first.request_id, first.scheduling.user, first.scheduling.priority) == ("mine", "alice", -7)
    assert first.scheduling.retry_policy.max_retries == 2
    assert second.scheduling.user == "bob"
    assert second.request_id


async def test_train_waits_out_a_full_queue_and_a_restart_and_says_so_once_each(tmp_path: Path) -> None:
    backend = StoryBackend(
        train_errors=[
            UnavailableError("the backend is draining"),
            UnavailableError("the backend is draining"),
            NoSlotError("the queue is full", retry_after_s=0.2),
        ]
    )
    async with (
        telling(backend) as address,
        _process(tmp_path, address, "train", STRATEGY, "--detach", "--json") as process,
    ):
        ran = await _end(process)
    assert ran.code == 0, ran.err
    assert [line["type"] for line in ran.lines] == ["training"]
    assert ran.err.count("the backend is draining; trying again, for at most 30 s") == 1
    assert ran.err.count("the queue is full; trying again in 0 s") == 1
    assert len({request.request_id for request in backend.train_requests}) == 1


async def test_watch_goes_on_through_a_lost_trainer_and_a_lost_connection(tmp_path: Path) -> None:
    log = a_log()
    lost = replace(
        a_state(6, TrainingState.QUEUED), detail=StateDetail(state=TrainingState.QUEUED, message="gpu-1 is lost")
    )
    again = replace(a_state(7, TrainingState.RUNNING), attempt=2)
    rest = [replace(an_epoch(8, 2), attempt=2), replace(a_state(9, TrainingState.COMPLETED), attempt=2)]
    backend = StoryBackend(
        trainings={"t1": a_training("t1", TrainingState.COMPLETED)},
        connections=[[*log[:5], lost, UnavailableError("restarting")], [again, *rest, HANG]],
    )
    async with telling(backend) as address, _process(tmp_path, address, "watch", "t1") as process:
        ran = await _end(process)
    assert ran.code == 0, ran.err
    lines = [line[7:] for line in ran.out.splitlines()]
    assert "queued again, attempt 1 is lost: gpu-1 is lost" in lines
    assert "running, attempt 2: now RUNNING" in lines
    assert ran.err.splitlines() == ["connection lost (restarting); reconnecting ...", "connected again"]
    assert backend.after_sequences == [0, 6]


class _RestartsAtTheEnd(StoryBackend):
    num_asked = 0

    async def GetTraining(self, request: training_service_pb2.GetTrainingRequest, context: Any) -> Any:  # noqa: N802
        self.num_asked += 1
        if self.num_asked == 2:  # the first is before the stream
            raise UnavailableError("restarting")
        return await super().GetTraining(request, context)


async def test_watch_asks_again_how_it_ended_if_the_backend_restarts_just_then(tmp_path: Path) -> None:
    backend = _RestartsAtTheEnd(trainings={"t1": a_training("t1", TrainingState.COMPLETED)}, connections=[a_log()])
    async with telling(backend) as address, _process(tmp_path, address, "watch", "t1") as process:
        ran = await _end(process)
    assert (ran.code, backend.num_asked) == (0, 3), ran.err


async def test_watch_outlives_a_restart_of_the_backend_with_two_lines_on_stderr(tmp_path: Path) -> None:
    trainings = {"t1": a_training("t1", TrainingState.COMPLETED)}
    first = StoryBackend(trainings=trainings, connections=[[*a_log()[:4], HANG]])
    second = StoryBackend(trainings=trainings, connections=[a_log()[4:]])
    async with AsyncExitStack() as stack:
        async with telling(first) as address:
            process = await stack.enter_async_context(_process(tmp_path, address, "watch", "t1"))
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE_S):
                while b"step 7/12" not in await process.stdout.readline():
                    pass
        async with telling(second, port=int(address.rpartition(":")[2])):
            ran = await _end(process)
    assert ran.code == 0, ran.err
    lost, connected = ran.err.splitlines()
    assert lost.startswith("connection lost (")
    assert connected == "connected again"
    assert second.after_sequences[0] == 4
