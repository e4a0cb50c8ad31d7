from __future__ import annotations

import pytest

from ktrdr_core.errors import ExecutionModeError, InvalidInputError
from ktrdr_core.training.device import DeviceManager

GIB = 1024**3


class Machine:
    """A machine with the given devices; `broken` makes asking for CUDA fail like a bad driver."""

    def __init__(
        self, *, cuda: bool = False, mps: bool = False, capability: tuple[int, int] = (9, 0), broken: bool = False
    ) -> None:
        self.cuda, self.mps, self.capability, self.broken = cuda, mps, capability, broken

    def has_cuda(self) -> bool:
        if self.broken:
            raise RuntimeError("CUDA driver initialization failed")
        return self.cuda

    def has_mps(self) -> bool:
        return self.mps

    def cuda_capability(self) -> tuple[int, int]:
        return self.capability

    def cuda_free_bytes(self) -> int:
        return 8 * GIB

    def cuda_name(self) -> str:
        return "Test GPU"

    def free_bytes(self) -> int:
        return 4 * GIB


@pytest.mark.parametrize(
    ("machine", "device_type"),
    [
        (Machine(cuda=True, mps=True), "cuda"),
        (Machine(mps=True), "mps"),
        (Machine(), "cpu"),
        (Machine(cuda=True, broken=True), "cpu"),
    ],
    ids=["cuda before mps", "mps before cpu", "cpu", "cpu when asking fails"],
)
def test_best_device(machine: Machine, device_type: str) -> None:
    found = DeviceManager.detect_best_device(probe=machine)
    assert found.device_type == device_type
    assert found.device.startswith(device_type)


def test_mixed_precision_only_where_bfloat16_is_native() -> None:
    assert DeviceManager.detect_best_device(probe=Machine(cuda=True)).supports_mixed_precision
    assert not DeviceManager.detect_best_device(probe=Machine(cuda=True, capability=(7, 5))).supports_mixed_precision
    assert not DeviceManager.detect_best_device(probe=Machine(mps=True)).supports_mixed_precision
    assert not DeviceManager.detect_best_device(probe=Machine()).supports_mixed_precision


def test_free_memory_is_that_of_the_device() -> None:
    assert DeviceManager.detect_best_device(probe=Machine(cuda=True)).memory_available_gb == 8
    assert DeviceManager.detect_best_device(probe=Machine()).memory_available_gb == 4


def test_override_chooses_a_lesser_device() -> None:
    assert DeviceManager.detect_best_device("cpu", Machine(cuda=True)).device == "cpu"
    assert DeviceManager.detect_best_device("mps", Machine(cuda=True, mps=True)).device == "mps"


def test_override_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ExecutionModeError, match="cuda"):
        DeviceManager.detect_best_device("cuda", Machine())
    with pytest.raises(InvalidInputError, match="tpu"):
        DeviceManager.detect_best_device("tpu", Machine())


def test_required_gpu_is_never_replaced_by_the_cpu() -> None:
    assert DeviceManager.select(require_gpu=True, probe=Machine(cuda=True)).device_type == "cuda"
    with pytest.raises(ExecutionModeError, match="GPU"):
        DeviceManager.select(require_gpu=True, probe=Machine())
    with pytest.raises(ExecutionModeError, match="enable_gpu"):
        DeviceManager.select(require_gpu=True, enable_gpu=False, probe=Machine(cuda=True))


def test_gpu_switched_off_is_the_cpu() -> None:
    assert DeviceManager.select(enable_gpu=False, probe=Machine(cuda=True)).device == "cpu"
