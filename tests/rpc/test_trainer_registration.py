"""A trainer announces itself to its backends and holds its leases, whatever becomes of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from ktrdr.trainer.v1 import trainer_registry_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_service_pb2
from ktrdr.trainer.v1.trainer_info_pb2 import TrainerInfo
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.errors import KtrdrError, UnavailableError, VersionSkewError, WriteConflictError
from tests.kit.eventually import eventually
from tests.kit.fake_registry import FakeRegistry
from tests.kit.grpc_server import serving
from tests.kit.model_sink import ModelSink
from tests.kit.tcp_proxy import TcpProxy
from tests.kit.trainer_house import house, refusal, train_request
from trainer_service import registration as module
from trainer_service.messages import MAX_RENEWED_SESSIONS, renewal_to_proto
from trainer_service.registration import Registration


class Trainer:
    """What a registration needs of one."""

    def __init__(self) -> None:
        self.num_renewals = 0
        self.fenced: list[str] = []

    async def renewal(self) -> pb.RegisterRequest:
        self.num_renewals += 1
        return pb.RegisterRequest(trainer_id="t", address=f"a:{self.num_renewals}")

    def fence(self, session_ids: Iterable[str]) -> None:
        self.fenced.extend(session_ids)


@asynccontextmanager
async def registering(backend: str, **options: Any) -> AsyncIterator[tuple[Registration, Trainer]]:
    trainer = Trainer()
    found = Registration(backend, renewal=trainer.renewal, fence=trainer.fence, **options)
    task = asyncio.create_task(found.run())
    try:
        yield found, trainer
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_trainer_tells_every_backend_who_it_is_where_it_is_and_what_runs(tmp_path: Path) -> None:
    one, two = FakeRegistry(), FakeRegistry()
    async with (
        serving(one.add_to) as first,
        serving(two.add_to) as second,
        house(tmp_path, backends=f"{first},{second}") as trainer,
    ):
        await trainer.train("running")
        await trainer.train("ended", training_id="t2")
        trainer.worker.finish()
        await trainer.until(states.TRAINING_STATE_COMPLETED, "ended")
        info = (await trainer.stub.GetServerInfo(trainer_service_pb2.GetServerInfoRequest())).trainer
        for registry in (one, two):
            await registry.more(2)
            renewal = registry.renewals[-1]
            assert renewal.trainer_id == renewal.trainer.trainer_id == info.trainer_id
            assert renewal.address == f"127.0.0.1:{trainer.app.port}"
            assert (renewal.trainer.num_slots, renewal.trainer.num_free_slots) == (2, 1)
            (session,) = renewal.sessions
            assert (session.session_id, session.state) == ("running", states.TRAINING_STATE_RUNNING)
            assert (session.training_id, session.attempt, session.last_sequence) == ("t1", 1, 1)
            assert not session.HasField("spec")
            assert not session.HasField("resource_usage")
            assert registry.num_streams == 1


async def test_another_address_can_be_advertised(tmp_path: Path) -> None:
    registry = FakeRegistry()
    async with (
        serving(registry.add_to) as backend,
        house(tmp_path, backends=backend, advertise_address="gpu.lan:1"),
    ):
        await eventually(lambda: registry.renewals)

    assert registry.renewals[0].address == "gpu.lan:1"


async def test_the_identity_outlives_a_restart(tmp_path: Path) -> None:
    registry = FakeRegistry()
    async with serving(registry.add_to) as backend:
        for _ in range(2):
            async with house(tmp_path, backends=backend):
                await registry.more()

    assert registry.num_streams == 2
    assert len({renewal.trainer_id for renewal in registry.renewals}) == 1


async def test_the_list_of_sessions_is_bounded(tmp_path: Path) -> None:
    async with house(tmp_path) as trainer:
        await trainer.train()
        session = trainer.app.orchestrator.session("s1")

        renewal = renewal_to_proto(TrainerInfo(), address="a:1", sessions=[session] * 2_000)

    assert len(renewal.sessions) == MAX_RENEWED_SESSIONS
    assert renewal.ByteSize() < 1 << 20


async def test_a_fenced_session_is_ended_and_its_late_train_refused(tmp_path: Path) -> None:
    registry = FakeRegistry()
    async with serving(registry.add_to) as backend, house(tmp_path, backends=backend) as trainer:
        await trainer.train("fenced")
        await trainer.train("other")
        registry.fenced = ["fenced", "never-arrived"]

        session = await trainer.until(states.TRAINING_STATE_CANCELLED, "fenced")
        await registry.more(4)

        assert session.message.startswith("fenced: ")
        assert trainer.engine.sessions[0].cancels == [False]
        assert (await trainer.session("other")).state == states.TRAINING_STATE_RUNNING
        error = await refusal(trainer.stub.Train(train_request("never-arrived")))
        assert "cancelled before" in error.message


async def test_a_fenced_session_that_uploads_goes_on_until_its_artifact_is_kept_aside(tmp_path: Path) -> None:
    registry, sink = FakeRegistry(), ModelSink()
    sink.keeps_aside, sink.hold = True, asyncio.Event()
    async with (
        serving(registry.add_to) as backend,
        serving(sink.add_to) as target,
        house(tmp_path, backends=backend) as trainer,
    ):
        await trainer.train(upload_target=target)
        trainer.worker.finish()
        await trainer.until(states.TRAINING_STATE_UPLOADING)
        registry.fenced = ["s1"]
        await registry.more(4)
        sink.hold.set()

        session = await trainer.until(states.TRAINING_STATE_COMPLETED)

        assert session.message == "Given up meanwhile: the model is kept aside as small/EURUSD_1h_v1"
        assert len(sink.published) == 1
        kept_here = tmp_path / "state" / "trainer" / "sessions" / "s1" / "artifact"
        await eventually(lambda: not kept_here.exists(), what="the end of the trainer's copy")


async def test_draining_is_told_at_once(tmp_path: Path) -> None:
    registry = FakeRegistry(renew_after_s=3_600)
    async with serving(registry.add_to) as backend, house(tmp_path, backends=backend) as trainer:
        await trainer.train()
        await eventually(lambda: registry.renewals)
        stopping = asyncio.create_task(trainer.app.stop(3_600))

        # Sooner than the longest wait for a renewal, which is a minute.
        await eventually(lambda: registry.renewals[-1].trainer.is_draining, timeout_s=30)

        assert registry.renewals[-1].sessions[0].session_id == "s1"
        trainer.app.hurry()
        await stopping


async def test_a_backend_that_is_away_delays_neither_start_nor_stop(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connects, and never says a word
        async with house(tmp_path, backends=f"127.0.0.1:1,127.0.0.1:{deaf.getsockname()[1]}") as trainer:
            await trainer.train()
            loop = asyncio.get_running_loop()
            begin = loop.time()
            await trainer.app.stop(0)
            assert loop.time() - begin < 4.0  # the watchdog of an answer is 5 s


async def test_a_backend_that_comes_back_is_registered_at_again() -> None:
    async with TcpProxy() as proxy, registering(proxy.address) as (_, trainer):
        for _ in range(2):
            registry = FakeRegistry()
            async with serving(registry.add_to) as backend:
                proxy.target = backend
                await registry.more(3)
                await proxy.cut()
            await proxy.restore()
        assert trainer.num_renewals > 4


@pytest.mark.parametrize("error", [UnavailableError("the backend stops"), None], ids=["error", "end"])
async def test_a_stream_that_ends_while_nothing_is_due_is_opened_again(error: KtrdrError | None) -> None:
    class Ending(FakeRegistry):
        async def Register(  # noqa: N802
            self, request_iterator: AsyncIterator[pb.RegisterRequest], context: object
        ) -> AsyncIterator[pb.RegisterResponse]:
            async for response in super().Register(request_iterator, context):
                yield response
                if error is None:
                    return

    registry = Ending(renew_after_s=3_600)
    registry.error_after_answer = error
    async with serving(registry.add_to) as backend, registering(backend):
        await eventually(lambda: registry.num_streams > 3)

    assert len(registry.renewals) == registry.num_streams


async def test_a_backend_that_is_connected_and_silent_is_connected_to_anew() -> None:
    registry = FakeRegistry()
    registry.is_silent = True
    async with serving(registry.add_to) as backend, registering(backend, answer_timeout_s=0.1):
        await eventually(lambda: registry.num_streams > 1)
        registry.is_silent = False
        await registry.more(4)


async def test_a_refused_version_is_logged_once_and_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    registry = FakeRegistry()
    registry.refusal = VersionSkewError("trainer 0.1.0 and backend 9.9.9 do not work together")
    async with serving(registry.add_to) as backend, registering(backend, skew_retry_s=0.05):
        await eventually(lambda: registry.num_streams > 3)
        assert caplog.text.count("backend 9.9.9 do not work together") == 1
        registry.refusal = None
        await registry.more(4)


@pytest.mark.parametrize(
    ("error", "least_s", "most_s"),
    [
        (VersionSkewError("x"), module.SKEW_RETRY_S, module.SKEW_RETRY_S),
        (WriteConflictError("another stream took over"), module.MAX_BACKOFF_S, module.MAX_BACKOFF_S),
        (UnavailableError("x"), module.MIN_BACKOFF_S / 2, module.MIN_BACKOFF_S),
    ],
)
async def test_how_long_is_waited_depends_on_what_is_wrong(error: KtrdrError, least_s: float, most_s: float) -> None:
    found = Registration("a:1", renewal=Trainer().renewal, fence=Trainer().fence)

    assert least_s <= found._pause_s(error) <= most_s


async def test_waits_grow_to_a_bound() -> None:
    found = Registration("a:1", renewal=Trainer().renewal, fence=Trainer().fence)

    pauses = [found._pause_s(UnavailableError("x")) for _ in range(20)]

    assert pauses[0] <= module.MIN_BACKOFF_S
    assert all(module.MAX_BACKOFF_S / 2 <= pause <= module.MAX_BACKOFF_S for pause in pauses[8:])


async def test_an_answer_between_renewals_is_obeyed_at_once() -> None:
    class Pushing(FakeRegistry):
        async def Register(  # noqa: N802
            self, request_iterator: AsyncIterator[pb.RegisterRequest], context: object
        ) -> AsyncIterator[pb.RegisterResponse]:
            async for response in super().Register(request_iterator, context):
                yield response
                yield pb.RegisterResponse(fenced_session_ids=["pushed"], renew_after=response.renew_after)

    registry = Pushing(renew_after_s=3_600)
    async with serving(registry.add_to) as backend, registering(backend) as (_, trainer):
        await eventually(lambda: trainer.fenced)

    assert (trainer.fenced, len(registry.renewals)) == (["pushed"], 1)
