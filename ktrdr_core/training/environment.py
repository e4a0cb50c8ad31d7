"""What a training ran on: the facts that decide whether its bits can be had again."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ktrdr_core.evaluation.determinism import NUM_THREADS
from ktrdr_core.training.device import DeviceCapabilities

# Those whose code computes something: another version may round otherwise.
_PACKAGES = ("ktrdr", "torch", "numpy", "scipy", "numba", "llvmlite", "TA-Lib", "safetensors")


def describe_environment(device: DeviceCapabilities) -> dict[str, Any]:
    """Return library versions, thread count, device and CPU capability."""
    import torch

    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "num_threads": NUM_THREADS,
        "device": device.device,
        "device_name": device.name,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "platform": platform.system(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
