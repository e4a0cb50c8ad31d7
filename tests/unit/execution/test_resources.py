"""Resource figures of a process."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ktrdr_core.execution.resources import GpuSampler, ResourceUsage, read_process_usage
from tests.kit.eventually import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_figures_of_this_process_agree_with_the_kernels_own_account() -> None:
    usage = read_process_usage(os.getpid())
    account = resource.getrusage(resource.RUSAGE_SELF)
    assert usage is not None
    assert usage.cpu_time_s == pytest.approx(account.ru_utime + account.ru_stime, abs=0.5)
    assert 1_000_000 < usage.resident_memory_bytes <= account.ru_maxrss * 1024 * 1.05


def test_a_process_that_is_gone_has_no_figures() -> None:
    assert read_process_usage(2**22 + 1) is None


USAGE = ResourceUsage(resident_memory_bytes=1, cpu_time_s=2.0)


class TwoGpus:
    """The part of NVML's bindings that the sampler uses: process 7 computes on the second of two GPUs."""

    class NVMLError(Exception):
        """What the bindings raise."""

    def __init__(self, *, has_driver: bool = True) -> None:
        self.has_driver = has_driver
        self.num_inits = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.num_inits += 1
        if not self.has_driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlShutdown(self) -> None:  # noqa: N802
        return

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"GPU {handle}"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=40 + handle)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=7, usedGpuMemory=1024)] if handle == 1 else []


async def test_a_process_on_a_gpu_gets_the_figures_of_that_gpu() -> None:
    sampler = GpuSampler(TwoGpus())
    usage = await eventually(lambda: (found := sampler.add_to(USAGE, pid=7)).gpu_name and found, what="a sample")
    assert usage == replace(USAGE, gpu_name="GPU 1", gpu_utilisation=0.41, gpu_memory_used_bytes=1024)
    assert sampler.add_to(USAGE, pid=8) == USAGE


async def test_a_machine_without_a_driver_is_asked_once() -> None:
    nvml = TwoGpus(has_driver=False)
    sampler = GpuSampler(nvml)
    assert sampler.add_to(USAGE, pid=7) == USAGE
    await eventually(lambda: not sampler.is_available, what="giving up")
    assert sampler.add_to(USAGE, pid=7) == USAGE
    assert nvml.num_inits == 1
