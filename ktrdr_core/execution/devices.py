"""What devices this machine trains on, asked in a child process: services never load torch nor touch CUDA."""

from __future__ import annotations

from dataclasses import dataclass

from ktrdr_core.execution.child import run_in_child
from ktrdr_core.execution.fork_server import is_training_available

_PROBE_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device a worker can train on.

    Attributes:
        device_type: "cuda", "mps" or "cpu".
        name: What people call it, for example "NVIDIA H100 80GB HBM3".
        memory_available_gb: Memory free for training, GiB; None if unknown.
        supports_mixed_precision: Whether it has a native 16-bit type.
    """

    device_type: str
    name: str
    memory_available_gb: float | None
    supports_mixed_precision: bool

    @property
    def is_gpu(self) -> bool:
        return self.device_type != "cpu"


async def probe_devices() -> list[Device]:
    """Return the devices of this machine, best first; empty if it cannot train because torch is missing."""
    if is_training_available() is not None:
        return []
    return await run_in_child(detect_devices, timeout_s=_PROBE_LIMIT_S)


def detect_devices() -> list[Device]:
    """Detect devices in this process; loads torch, so only a child may call it."""
    import torch

    from ktrdr_core.training.device import DeviceManager

    best = DeviceManager.detect_best_device()
    found = Device(
        device_type=best.device_type,
        name=best.name,
        memory_available_gb=best.memory_available_gb or None,
        supports_mixed_precision=best.supports_mixed_precision,
    )
    # One entry a GPU: `num_gpus` of a training is counted against them.
    others = [
        Device(
            device_type="cuda",
            name=torch.cuda.get_device_name(index),
            memory_available_gb=torch.cuda.mem_get_info(index)[0] / 1024**3,
            supports_mixed_precision=torch.cuda.get_device_capability(index) >= (8, 0),
        )
        for index in range(1, torch.cuda.device_count() if best.device_type == "cuda" else 0)
    ]
    return [found, *others]
