"""What this trainer is and has; devices are asked for once, in a child process, while the service starts."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from importlib import metadata

from ktrdr.trainer.v1 import trainer_info_pb2

from ktrdr_core.errors import KtrdrError
from ktrdr_core.execution.devices import Device
from ktrdr_core.execution.engine import ExecutionEngine
from ktrdr_core.logging import get_logger
from ktrdr_core.wire.to_proto import time_to_proto

_log = get_logger(__name__)


class ServerInfo:
    """Answers GetServerInfo.

    Args:
        engine: Whose slots it tells.
        start_time: When the service started.
        unavailable_reason: Why it cannot train; "" if it can.
        probe: Detects the devices.
    """

    def __init__(
        self,
        engine: ExecutionEngine,
        *,
        start_time: datetime,
        unavailable_reason: str,
        probe: Callable[[], Awaitable[Sequence[Device]]],
    ) -> None:
        self._engine = engine
        self._start_time = start_time
        self._unavailable_reason = unavailable_reason
        self._probe = probe
        self._probing: asyncio.Task[Sequence[Device]] | None = None

    def start_probe(self) -> asyncio.Task[Sequence[Device]]:
        """Begin to detect the devices, in the background; later calls return the same task."""
        if self._probing is None:
            self._probing = asyncio.create_task(self._detect())
        return self._probing

    async def close(self) -> None:
        """Give up detecting."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)

    async def to_proto(self, *, is_draining: bool) -> trainer_info_pb2.TrainerInfo:
        """Return the message; waits for the devices if they are still being detected."""
        devices = await asyncio.shield(self.start_probe())
        return trainer_info_pb2.TrainerInfo(
            version=_version_of("ktrdr"),
            python_version=platform.python_version(),
            torch_version=_version_of("torch"),
            devices=[
                trainer_info_pb2.Device(
                    device_type=device.device_type,
                    name=device.name,
                    memory_available_gb=device.memory_available_gb,
                    supports_mixed_precision=device.supports_mixed_precision,
                )
                for device in devices
            ],
            num_slots=self._engine.num_slots,
            num_free_slots=self._engine.num_free_slots,
            is_draining=is_draining,
            unavailable_reason=self._unavailable_reason,
            start_time=time_to_proto(self._start_time),
        )

    async def _detect(self) -> Sequence[Device]:
        try:
            return await self._probe()
        except KtrdrError as error:
            _log.warning("Devices are unknown: %s", error.message)
            return ()


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
