"""What a worker uses of its machine: memory and CPU from /proc, the GPU from NVML where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ktrdr_core.logging import get_logger

_SAMPLE_EVERY_S = 1.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUsage:
    """Resources one worker uses at one moment.

    Attributes:
        resident_memory_bytes: Resident memory of the worker.
        cpu_time_s: CPU time used by the worker, user and system, in seconds.
        gpu_name: Name of the GPU the worker computes on; empty without one.
        gpu_utilisation: Utilisation of that GPU in [0, 1]; None without one.
        gpu_memory_used_bytes: Memory the worker holds on that GPU; None without one.
    """

    resident_memory_bytes: int
    cpu_time_s: float
    gpu_name: str = ""
    gpu_utilisation: float | None = None
    gpu_memory_used_bytes: int | None = None


def read_process_usage(pid: int) -> ResourceUsage | None:
    """Return memory and CPU time of a process; None if it is gone or the system has no /proc."""
    directory = Path("/proc") / str(pid)
    try:
        resident_pages = int((directory / "statm").read_text().split()[1])
        # The second field is the name in brackets and may hold spaces; utime and stime are the 14th and 15th.
        after_name = (directory / "stat").read_text().rpartition(")")[2].split()
        ticks = int(after_name[11]) + int(after_name[12])
    except (OSError, IndexError, ValueError):
        return None
    return ResourceUsage(
        resident_memory_bytes=resident_pages * os.sysconf("SC_PAGE_SIZE"),
        cpu_time_s=ticks / os.sysconf("SC_CLK_TCK"),
    )


@dataclass(frozen=True, slots=True)
class _GpuUse:
    name: str
    utilisation: float
    memory_by_pid: dict[int, int]


class GpuSampler:
    """Knows which process uses which GPU, at most a second late; asks NVML on a thread, never on the caller's.

    Without the NVML bindings (`nvidia-ml-py`) or without a driver it adds nothing.

    Args:
        nvml: The bindings; None takes those that are installed, if any.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._is_sampling = False
        self._sampled_s = float("-inf")
        self._gpus: tuple[_GpuUse, ...] = ()
        self.is_available = nvml is not None or importlib.util.find_spec("pynvml") is not None

    def add_to(self, usage: ResourceUsage, pid: int) -> ResourceUsage:
        """Return `usage` with the figures of the GPU that process `pid` computes on, if there is one."""
        self._refresh()
        for gpu in self._gpus:
            if pid in gpu.memory_by_pid:
                return replace(
                    usage,
                    gpu_name=gpu.name,
                    gpu_utilisation=gpu.utilisation,
                    gpu_memory_used_bytes=gpu.memory_by_pid[pid],
                )
        return usage

    def _refresh(self) -> None:
        with self._lock:
            is_fresh = time.monotonic() - self._sampled_s < _SAMPLE_EVERY_S
            if not self.is_available or self._is_sampling or is_fresh:
                return
            self._is_sampling = True
        threading.Thread(target=self._sample, name="gpu-sampler", daemon=True).start()

    def _sample(self) -> None:
        nvml = self._nvml or importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
            try:
                self._gpus = tuple(_read_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
            finally:
                nvml.nvmlShutdown()
        except nvml.NVMLError as error:
            # No driver, or one that broke: say it once and stop asking.
            self.is_available = False
            self._gpus = ()
            log.info("GPU use is not reported: %s", error)
        finally:
            with self._lock:
                self._is_sampling = False
                self._sampled_s = time.monotonic()


def _read_gpu(nvml: Any, index: int) -> _GpuUse:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    return _GpuUse(
        name=name.decode() if isinstance(name, bytes) else str(name),
        utilisation=nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0,
        # The driver gives no figure for a process in some virtual machines: it counts as 0.
        memory_by_pid={
            process.pid: int(process.usedGpuMemory or 0)
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        },
    )
