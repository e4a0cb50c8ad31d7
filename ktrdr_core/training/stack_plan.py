"""Where everything stands in the flat arrays that the kernels of `stack_kernel.py` read and write."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.domain.labels import NUM_CLASSES
from ktrdr_core.training import stack_kernel as kernel

ACTIVATION_CODES: dict[str, int] = {
    "relu": kernel.RELU,
    "tanh": kernel.TANH,
    "gelu": kernel.GELU,
    "leaky_relu": kernel.LEAKY_RELU,
    "elu": kernel.ELU,
    "silu": kernel.SILU,
    "sigmoid": kernel.SIGMOID,
}
LOSS_CODES: dict[str, int] = {
    "cross_entropy": kernel.CROSS_ENTROPY,
    "focal": kernel.FOCAL,
    "one_vs_rest": kernel.ONE_VS_REST,
    "mse": kernel.MSE,
    "huber": kernel.HUBER,
}
OPTIMIZER_CODES: dict[str, int] = {
    "adam": kernel.ADAM,
    "adamw": kernel.ADAMW,
    "sgd": kernel.SGD,
    "rmsprop": kernel.RMSPROP,
}

# Blocks of a flat array begin at multiples of 128 bytes (of float64), so that no routine sees another alignment.
_ALIGNMENT_VALUES = 16
_ALIGNMENT_BYTES = 128


@dataclass(frozen=True, eq=False)
class NetworkPlan:
    """The flat arrays of a network and of a step.

    Attributes:
        numbers: The plan as the kernels read it, int64.
        weights: Offset and shape (O, I) of each layer's weight.
        biases: Offset and length of each layer's bias.
        num_parameters: Values of a flat array of parameters, gaps included; the gaps stay 0.
        room_rows: Rows that a step or an evaluation may have at once.
        num_work: Values of the room that these need.
        num_bits: Numbers of the room for the bits of masks, uint64.
    """

    numbers: NDArray[np.int64]
    weights: tuple[tuple[int, tuple[int, int]], ...]
    biases: tuple[tuple[int, int], ...]
    num_parameters: int
    room_rows: int
    num_work: int
    num_bits: int


def build_plan(
    widths: Sequence[int], *, activation: str, loss: str, optimizer: str, batch_size: int, room_rows: int
) -> NetworkPlan:
    """Return the plan of a network; the places of parameters depend on `widths` alone.

    Args:
        widths: Features, units of each hidden layer, outputs.
        activation: One of ACTIVATION_CODES.
        loss: One of LOSS_CODES.
        optimizer: One of OPTIMIZER_CODES.
        batch_size: Rows of a full batch.
        room_rows: Rows that there is room for at once.
    """
    weights, biases, layers, offset = [], [], [], 0
    for inputs, outputs in itertools.pairwise(widths):
        weights.append((offset, (outputs, inputs)))
        offset += _aligned(outputs * inputs)
        biases.append((offset, outputs))
        offset += _aligned(outputs)
        layers.append([inputs, outputs, weights[-1][0], biases[-1][0], 0, 0])
    num_parameters = input_offset = offset  # the gradient comes first in the work room
    work = input_offset + _aligned(room_rows * widths[0])
    for layer in layers:
        for place in (kernel.OUTPUT, kernel.SLOPE):
            layer[place], work = work, work + _aligned(room_rows * layer[kernel.OUTPUTS])
    head = [0] * kernel.HEAD
    head[kernel.NUM_LAYERS] = len(layers)
    head[kernel.ACTIVATION] = ACTIVATION_CODES[activation]
    head[kernel.LOSS] = LOSS_CODES[loss]
    head[kernel.OPTIMIZER] = OPTIMIZER_CODES[optimizer]
    head[kernel.BATCH_SIZE] = batch_size
    head[kernel.NUM_PARAMETERS] = num_parameters
    head[kernel.INPUT] = input_offset
    head[kernel.BACKWARD] = work
    return NetworkPlan(
        numbers=np.array([*head, *itertools.chain(*layers)], dtype=np.int64),
        weights=tuple(weights),
        biases=tuple(biases),
        num_parameters=num_parameters,
        room_rows=room_rows,
        num_work=work + 2 * _aligned(room_rows * max(widths[1:])),
        num_bits=room_rows * ((max(widths[1:]) + 1) // 2),
    )


def lane_settings(
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    clip_norm: float | None = None,
    focal_gamma: float = 2.0,
    thresholds: tuple[float, float] = (math.inf, math.inf),
    dropout: float = 0.0,
    class_weights: Sequence[float] | NDArray[np.float64] = (1.0,) * NUM_CLASSES,
) -> NDArray[np.float64]:
    """Return the settings of a lane as the kernels read them."""
    settings = np.empty(kernel.CLASS_WEIGHTS + NUM_CLASSES, dtype=np.float64)
    settings[kernel.WEIGHT_DECAY] = weight_decay
    settings[kernel.MOMENTUM] = momentum
    settings[kernel.CLIP_NORM] = math.inf if clip_norm is None else clip_norm
    settings[kernel.FOCAL_GAMMA] = focal_gamma
    settings[kernel.BUY_THRESHOLD], settings[kernel.SELL_THRESHOLD] = thresholds
    settings[kernel.DROPOUT_SCALE] = 1.0 / (1.0 - dropout)
    settings[kernel.CLASS_WEIGHTS :] = class_weights
    return settings


def aligned_zeros(count: int, dtype: Any) -> NDArray[Any]:
    """Return `count` zeros that begin at a multiple of 128 bytes."""
    size_bytes = count * np.dtype(dtype).itemsize
    room = np.zeros(size_bytes + _ALIGNMENT_BYTES, dtype=np.uint8)
    start = -room.ctypes.data % _ALIGNMENT_BYTES
    return room[start : start + size_bytes].view(dtype)


def _aligned(count: int) -> int:
    return -(-count // _ALIGNMENT_VALUES) * _ALIGNMENT_VALUES
