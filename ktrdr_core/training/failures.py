"""What a failure of torch, the device or the machine's memory is called in our error tree."""

from __future__ import annotations

import torch

from ktrdr_core.errors import DeviceFailedError, OutOfMemoryError, TrainingError

# torch raises classes of their own for most of these, and a plain RuntimeError with these words for the others.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
_DEVICE_WORDS = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS", "MPS backend", "device-side assert")


def training_error(error: Exception) -> TrainingError:
    """Return the error of our tree for what went wrong while training; the first line of `error` is in its message."""
    words = str(error).partition("\n")[0]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _has(error, _MEMORY_WORDS):
        place = "the GPU" if isinstance(error, torch.OutOfMemoryError) or "CUDA" in words else "this machine"
        return OutOfMemoryError(
            f"{place} has no memory left for this training{f' ({words})' if words else ''}; give it a smaller batch or "
            "network, fewer bars or features, or a larger machine"
        )
    if isinstance(error, torch.AcceleratorError) or _has(error, _DEVICE_WORDS):
        return DeviceFailedError(
            f"the GPU failed ({words}); look for its Xid in the kernel's log, and train again or on another device"
        )
    return TrainingError(f"the training failed: {type(error).__name__}: {error}")


def _has(error: Exception, phrases: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
