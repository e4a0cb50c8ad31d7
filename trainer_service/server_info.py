"""What this trainer is and has; devices are asked for once, in a child process, while the service starts."""

from __future__ import annotations

import asyncio
import platform
import shutil
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path

from ktrdr.trainer.v1 import trainer_info_pb2

from ktrdr_core.clock import utc_now
from ktrdr_core.errors import KtrdrError
from ktrdr_core.execution.devices import Device
from ktrdr_core.execution.engine import ExecutionEngine
from ktrdr_core.logging import get_logger
from ktrdr_core.versions import own_version
from ktrdr_core.wire.to_proto import time_to_proto

_log = get_logger(__name__)


class ServerInfo:
    """Answers GetServerInfo.

    Args:
        engine: Whose slots it tells.
        trainer_id: Stable identity of this trainer.
        state_dir: Directory whose disk it tells the free space of.
        start_time: When the service started.
        unavailable_reason: Why it cannot train; "" if it can.
        probe: Detects the devices.
    """

    def __init__(
        self,
        engine: ExecutionEngine,
        *,
        trainer_id: str,
        state_dir: Path,
        start_time: datetime,
        unavailable_reason: str,
        probe: Callable[[], Awaitable[Sequence[Device]]],
    ) -> None:
        self.trainer_id = trainer_id
        self._engine = engine
        self._state_dir = state_dir
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
            version=own_version(),
            python_version=platform.python_version(),
            torch_version=_torch_version(),
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
            trainer_id=self.trainer_id,
            current_time=time_to_proto(utc_now()),
            disk_free_bytes=await asyncio.to_thread(_free_bytes, self._state_dir),
        )

    async def _detect(self) -> Sequence[Device]:
        try:
            return await self._probe()
        except KtrdrError as error:
            _log.warning("Devices are unknown: %s", error.message)
            return ()


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _free_bytes(directory: Path) -> int:
    """Return what is free on a directory's disk; 0 if it does not tell, for then it takes nothing either."""
    try:
        return shutil.disk_usage(directory).free
    except OSError as error:
        _log.error("The free space of %s is unknown: %s", directory, error)
        return 0
