"""Which engine trains a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ktrdr_core.training.device import DeviceCapabilities
from ktrdr_core.training.eager_engine import EagerEngine
from ktrdr_core.training.lane import Lane, LaneEngine

EngineBuilder = Callable[[Sequence[Lane], DeviceCapabilities], LaneEngine]


def build_engine(lanes: Sequence[Lane], device: DeviceCapabilities) -> LaneEngine:
    """Return the compiled engine if it can train these lanes, else the one that can train any.

    The compiled one is for small networks, which are bound by the number of calls: multi-layer perceptrons that know
    no symbols, on the CPU, in full precision.

    Args:
        lanes: At least one.
        device: Where they are trained.
    """
    if device.device_type == "cpu" and all(_may_be_compiled(lane, device) for lane in lanes):
        # Imported here: numba takes 0.3 s, and the other engine has no use for it.
        from ktrdr_core.training.stack_engine import StackEngine, find_obstacle

        if find_obstacle(lanes) is None:
            return StackEngine(lanes)
    return EagerEngine(lanes, device)


def _may_be_compiled(lane: Lane, device: DeviceCapabilities) -> bool:
    is_mixed = lane.hyperparameters.mixed_precision and device.supports_mixed_precision
    return lane.model.spec.type == "mlp" and not is_mixed
