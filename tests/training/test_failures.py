"""What torch, the driver and the allocator raise, and what it is called here."""

from __future__ import annotations

import pytest
import torch

from ktrdr_core.errors import DeviceFailedError, KtrdrError, OutOfMemoryError, TrainingError
from ktrdr_core.training.failures import training_error

ASSERT = (
    "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in the documentation.\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (torch.AcceleratorError(ASSERT), DeviceFailedError, "device-side assert triggered"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceFailedError, "illegal"),
        (RuntimeError("CUDA error: unspecified launch failure"), DeviceFailedError, "unspecified launch failure"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceFailedError, "EXECUTION_FAILED"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), OutOfMemoryError, "the GPU has no"),
        (torch.AcceleratorError("CUDA error: out of memory"), OutOfMemoryError, "the GPU has no"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), OutOfMemoryError, "the GPU has no"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
            OutOfMemoryError,
            "this machine has no",
        ),
        (MemoryError(), OutOfMemoryError, "this machine has no"),
        (MemoryError("Unable to allocate 8 TiB for an array"), OutOfMemoryError, "8 TiB"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), TrainingError, "mat1 and mat2"),
        (OSError("CUDA error? no: a file"), TrainingError, "a file"),
    ],
)
def test_a_failure_has_its_class_and_keeps_its_words(error: Exception, expected: type[KtrdrError], words: str) -> None:
    found = training_error(error)
    assert type(found) is expected
    assert words in found.message
    assert "TORCH_USE_CUDA_DSA" not in found.message


def test_memory_that_this_machine_really_lacks_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert type(training_error(caught.value)) is OutOfMemoryError
