"""What `ktrdr doctor` asks of a trainer itself."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ktrdr.trainer.v1 import trainer_info_pb2, trainer_service_pb2, trainer_service_pb2_grpc
from ktrdr_client.cli.checks import MIN_FREE_BYTES, Check, Status, check_trainer_itself
from ktrdr_client.types import TrainerStatus

from ktrdr_core.wire.to_proto import time_to_proto
from tests.kit.grpc_server import serving


@dataclass
class FakeTrainer:
    """Tells its identity, its clock and its disk."""

    trainer_id: str = "uuid-1"
    ahead_s: float = 0.0
    disk_free_bytes: int = 2 * MIN_FREE_BYTES

    def __getattr__(self, name: str) -> Any:
        if not name[:1].isupper():
            raise AttributeError(name)
        return None

    async def GetServerInfo(self, request: Any, context: Any) -> trainer_service_pb2.GetServerInfoResponse:
        now = datetime.now(UTC) + timedelta(seconds=self.ahead_s)
        info = trainer_info_pb2.TrainerInfo(
            trainer_id=self.trainer_id, current_time=time_to_proto(now), disk_free_bytes=self.disk_free_bytes
        )
        return trainer_service_pb2.GetServerInfoResponse(trainer=info)


async def _checks(trainer: Any, *, trainer_id: str = "uuid-1") -> list[Check]:
    def add(server: Any) -> None:
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, server)

    async with serving(add) as address:
        status = TrainerStatus(
            address=address,
            is_healthy=True,
            message="",
            version="",
            devices=(),
            has_gpu=False,
            num_slots=1,
            num_free_slots=1,
            latency_s=0.0,
            trainer_id=trainer_id,
        )
        return await check_trainer_itself(status)


async def test_clock_and_disk_that_are_well() -> None:
    clock, disk = await _checks(FakeTrainer())
    assert (clock.status, disk.status) == (Status.OK, Status.OK)
    assert clock.name.startswith("clock of 127.0.0.1:")


@pytest.mark.parametrize(("ahead_s", "says"), [(3600.0, "ahead of"), (-3600.0, "behind")])
async def test_clock_that_is_off_and_disk_that_is_full_are_warnings(ahead_s: float, says: str) -> None:
    clock, disk = await _checks(FakeTrainer(ahead_s=ahead_s, disk_free_bytes=1))
    assert (clock.status, says in clock.message) == (Status.WARNING, True)
    assert disk.status is Status.WARNING


async def test_another_trainer_at_the_address_as_seen_from_here_is_not_judged() -> None:
    """A loopback address of the backend's machine is another one here."""
    (clock,) = await _checks(FakeTrainer(trainer_id="uuid-2", ahead_s=3600.0))
    assert (clock.status, "another trainer" in clock.message) == (Status.NOTE, True)
