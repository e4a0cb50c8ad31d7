"""The one place where hardware is asked about."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Protocol

from ktrdr_core.errors import ExecutionModeError, InvalidInputError

logger = logging.getLogger(__name__)

DEVICE_TYPES: tuple[str, ...] = ("cuda", "mps", "cpu")
_GIB = 1024**3
# bfloat16 is native from compute capability 8.0 on; before, it is emulated and slower than float32.
_BF16_CAPABILITY = (8, 0)
_MAX_BATCH_SIZE = {"cuda": 65_536, "mps": 16_384, "cpu": 8_192}


@dataclass(frozen=True, kw_only=True)
class DeviceCapabilities:
    """What the device a training runs on can do.

    Attributes:
        device_type: "cuda", "mps" or "cpu".
        device: What torch calls it, for example "cuda:0".
        supports_mixed_precision: bfloat16 is native.
        supports_memory_profiling: The device counts its own memory.
        max_batch_size: Above this a batch no longer gets faster per row.
        memory_available_gb: Free memory in GiB; 0.0 if unknown.
        name: What people call it, for example "NVIDIA H100".
    """

    device_type: str
    device: str
    supports_mixed_precision: bool
    supports_memory_profiling: bool
    max_batch_size: int
    memory_available_gb: float
    name: str = ""


class HardwareProbe(Protocol):
    """Answers about this machine; each may raise."""

    def has_cuda(self) -> bool: ...
    def has_mps(self) -> bool: ...
    def cuda_capability(self) -> tuple[int, int]: ...
    def cuda_free_bytes(self) -> int: ...
    def cuda_name(self) -> str: ...
    def free_bytes(self) -> int: ...


class TorchProbe:
    """Asks torch and the operating system."""

    def has_cuda(self) -> bool:
        import torch

        return torch.cuda.is_available()

    def has_mps(self) -> bool:
        import torch

        return torch.backends.mps.is_available()

    def cuda_capability(self) -> tuple[int, int]:
        import torch

        return torch.cuda.get_device_capability(0)

    def cuda_free_bytes(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info(0)[0])

    def cuda_name(self) -> str:
        import torch

        return torch.cuda.get_device_name(0)

    def free_bytes(self) -> int:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class DeviceManager:
    """Chooses the device of a training."""

    @staticmethod
    def detect_best_device(override: str | None = None, probe: HardwareProbe | None = None) -> DeviceCapabilities:
        """Return CUDA if there is one, else MPS, else the CPU; the CPU if asking fails.

        Args:
            override: "cuda", "mps" or "cpu" instead of the best one.
            probe: Who answers; torch itself by default.

        Raises:
            InvalidInputError: `override` is another word.
            ExecutionModeError: `override` names a device this machine lacks.
        """
        probe = probe or TorchProbe()
        if override is not None and override not in DEVICE_TYPES:
            raise InvalidInputError(f"device must be one of {', '.join(DEVICE_TYPES)}, was {override!r}")
        try:
            found = _detect(override, probe)
        except Exception:  # a broken driver raises anything at all, and the CPU always works
            logger.warning("device detection failed, using the CPU", exc_info=True)
            found = _cpu(0.0)
        if override is not None and found.device_type != override:
            raise ExecutionModeError(f"this machine has no {override} device; choose another, or leave the choice out")
        return found

    @staticmethod
    def select(
        *, enable_gpu: bool = True, require_gpu: bool = False, probe: HardwareProbe | None = None
    ) -> DeviceCapabilities:
        """Return the device for what a training asks for.

        Raises:
            ExecutionModeError: A GPU is required and there is none, or it was also switched off.
        """
        if require_gpu and not enable_gpu:
            raise ExecutionModeError("require_gpu and enable_gpu=false exclude each other; drop one of them")
        found = DeviceManager.detect_best_device(None if enable_gpu else "cpu", probe)
        if require_gpu and found.device_type == "cpu":
            raise ExecutionModeError(
                "the training requires a GPU and this machine has none; run it on a trainer with one, "
                "or drop require_gpu"
            )
        return found


def _detect(override: str | None, probe: HardwareProbe) -> DeviceCapabilities:
    if override in (None, "cuda") and probe.has_cuda():
        return DeviceCapabilities(
            device_type="cuda",
            device="cuda:0",
            supports_mixed_precision=probe.cuda_capability() >= _BF16_CAPABILITY,
            supports_memory_profiling=True,
            max_batch_size=_MAX_BATCH_SIZE["cuda"],
            memory_available_gb=probe.cuda_free_bytes() / _GIB,
            name=probe.cuda_name(),
        )
    if override in (None, "mps") and probe.has_mps():
        return DeviceCapabilities(
            device_type="mps",
            device="mps",
            supports_mixed_precision=False,
            supports_memory_profiling=False,
            max_batch_size=_MAX_BATCH_SIZE["mps"],
            memory_available_gb=probe.free_bytes() / _GIB,
            name="Apple MPS",
        )
    return _cpu(probe.free_bytes() / _GIB)


def _cpu(free_gb: float) -> DeviceCapabilities:
    return DeviceCapabilities(
        device_type="cpu",
        device="cpu",
        supports_mixed_precision=False,
        supports_memory_profiling=False,
        max_batch_size=_MAX_BATCH_SIZE["cpu"],
        memory_available_gb=free_gb,
        name="CPU",
    )
