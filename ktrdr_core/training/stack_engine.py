"""The fast engine of small multi-layer perceptrons on the CPU: one compiled call for each batch of a lane.

Lanes are stepped one after the other by the same code over arrays of their own, so what a lane computes is the same,
bit for bit, alone and in any stack. The room for a step is shared by all lanes and stays in the cache.

Shape suffixes: N rows, C outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.domain.labels import NUM_CLASSES
from ktrdr_core.errors import InvalidInputError, UnsupportedError
from ktrdr_core.models.dropout import keep_threshold
from ktrdr_core.models.mlp import MultiLayerPerceptron
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.training.blas_threads import OneBlasThread
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.stack_kernel import HITS, NUM_COUNTERS, ROWS_SEEN, STEPS, evaluate_block, train_batch
from ktrdr_core.training.stack_plan import (
    ACTIVATION_CODES,
    OPTIMIZER_CODES,
    NetworkPlan,
    aligned_zeros,
    build_plan,
    lane_settings,
)

# Rows that are evaluated at once; training's evaluation does not depend on it being equal elsewhere.
_BLOCK_ROWS = 512
_NO_MASKS = np.zeros(1, dtype=np.int64)
_DEFAULT_DECAY = {"adamw": 0.01}


def find_obstacle(lanes: Sequence[Lane]) -> str | None:
    """Return why these lanes cannot be a stack on the CPU, or None if they can."""
    for lane in lanes:
        spec, settings = lane.model.spec, lane.hyperparameters
        if not isinstance(lane.model, MultiLayerPerceptron):
            return f"a {spec.type} is not a multi-layer perceptron"
        if spec.symbol_embedding_dim > 0:
            return "a symbol embedding is not a plain affine layer"
        if spec.activation not in ACTIVATION_CODES:
            return f"the activation {spec.activation} has no compiled form"
        if settings.optimizer not in OPTIMIZER_CODES:
            return f"the optimizer {settings.optimizer} has no compiled form"
    if len({_shape_of_step(lane) for lane in lanes}) > 1:
        return "lanes differ in more than rows, seed and learning rate"
    return None


def warm_up() -> None:
    """Compile the float32 kernels, or load them from disk, by one step and one evaluation of a tiny network."""
    plan = build_plan(
        (2, 2, NUM_CLASSES), activation="relu", loss="cross_entropy", optimizer="adam", batch_size=2, room_rows=2
    )
    matrix, rows = _frozen(np.zeros((1, 2)), np.float32), _frozen(np.zeros(2), np.int64)
    training_part = (matrix, rows, rows, _frozen(np.empty(0), np.float32), rows)
    state, outputs = aligned_zeros(3 * plan.num_parameters, np.float32), np.zeros((2, NUM_CLASSES), dtype=np.float32)
    counters, losses, settings = np.zeros(NUM_COUNTERS, dtype=np.int64), np.zeros(1), lane_settings()
    room = (plan.numbers, aligned_zeros(plan.num_work, np.float32), aligned_zeros(plan.num_bits, np.uint64))
    with OneBlasThread():
        train_batch(0, 0.0, *training_part, state, counters, losses, settings, _NO_MASKS, *room)
        evaluate_block(outputs, matrix, rows, state, counters, settings, _NO_MASKS, *room)


class StackEngine:
    """Applies optimiser steps to K multi-layer perceptrons of one shape; a `LaneEngine`.

    Args:
        lanes: Differ in rows, seed, initialisation and learning rate alone.
        dtype: Of the arithmetic; "float64" is for comparing with a reference.

    Raises:
        UnsupportedError: `find_obstacle` has an answer.
    """

    def __init__(self, lanes: Sequence[Lane], *, dtype: Literal["float32", "float64"] = "float32") -> None:
        if not lanes:
            raise InvalidInputError("a stack needs at least one lane")
        obstacle = find_obstacle(lanes)
        if obstacle is not None:
            raise UnsupportedError(f"these trainings cannot be a stack: {obstacle}; train them with the eager engine")
        self._first = lanes[0]
        self._batch_size = lanes[0].hyperparameters.batch_size
        self._dtype = np.dtype(dtype)
        self._room = _Room(lanes[0], _BLOCK_ROWS, self._dtype)
        self._lanes = [_LaneArrays(lane, self._room.plan, self._dtype) for lane in lanes]
        self._one_blas_thread = OneBlasThread()
        self._first_batch = self._batch = 0

    def begin_epoch(self, orders: Sequence[NDArray[np.int64] | None], first_batch: int = 0) -> None:
        self._first_batch = self._batch = first_batch
        num_rows = min(self._batch_size, max((len(order) for order in orders if order is not None), default=0))
        if num_rows > self._room.plan.room_rows:
            self._room = _Room(self._first, num_rows, self._dtype)
        for lane, order in zip(self._lanes, orders, strict=True):
            lane.begin_epoch(order, self._batch_size, self._room)

    def step(self, learning_rates: Sequence[float]) -> None:
        batch = self._batch
        with self._one_blas_thread:
            for lane, learning_rate in zip(self._lanes, learning_rates, strict=True):
                if batch < lane.num_batches:
                    train_batch(batch, float(learning_rate), *lane.arguments)
        self._batch = batch + 1

    def epoch_totals(self, lane: int) -> tuple[NDArray[np.float64], int]:
        arrays = self._lanes[lane]
        return arrays.losses[self._first_batch : self._batch].copy(), int(arrays.counters[HITS])

    def validation_outputs(self, lane: int, check: Callable[[], None]) -> NDArray[np.float32]:
        arrays, room = self._lanes[lane], self._room
        matrix, rows = arrays.validation_matrix, arrays.validation_rows
        outputs_NC = np.empty((len(rows), arrays.num_outputs), dtype=self._dtype)
        for start in range(0, len(rows), _BLOCK_ROWS):
            check()
            block = slice(start, start + _BLOCK_ROWS)
            with self._one_blas_thread:
                evaluate_block(
                    outputs_NC[block],
                    matrix,
                    rows[block],
                    arrays.state,
                    arrays.counters,
                    arrays.settings,
                    _NO_MASKS,
                    *room.arrays,
                )
        return outputs_NC.astype(np.float32, copy=False)

    def weights(self, lane: int) -> dict[str, Tensor]:
        return {name: torch.from_numpy(view.copy()) for name, view in self._lanes[lane].weights.items()}

    def state(self, lane: int) -> dict[str, Tensor]:
        arrays = self._lanes[lane]
        return {
            "first_moment": torch.from_numpy(arrays.first_moment.copy()),
            "second_moment": torch.from_numpy(arrays.second_moment.copy()),
            "steps": torch.tensor(int(arrays.counters[STEPS])),
            "dropout_rows": torch.tensor(int(arrays.counters[ROWS_SEEN])),
        }

    def restore(self, lane: int, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        arrays = self._lanes[lane]
        arrays.load_weights(weights)
        arrays.first_moment[:] = state["first_moment"].numpy()
        arrays.second_moment[:] = state["second_moment"].numpy()
        arrays.counters[STEPS], arrays.counters[ROWS_SEEN] = int(state["steps"]), int(state["dropout_rows"])


class _Room:
    """Where a step or an evaluation puts what it does not keep; one for all lanes."""

    def __init__(self, lane: Lane, num_rows: int, dtype: np.dtype[Any]) -> None:
        spec, settings = lane.model.spec, lane.hyperparameters
        self.plan = build_plan(
            (spec.input_size, *spec.hidden_layers, spec.num_outputs),
            activation=spec.activation,
            loss=settings.loss_kind,
            optimizer=settings.optimizer,
            batch_size=settings.batch_size,
            room_rows=num_rows,
        )
        work, bits = aligned_zeros(self.plan.num_work, dtype), aligned_zeros(self.plan.num_bits, np.uint64)
        self.arrays = (self.plan.numbers, work, bits)


class _LaneArrays:
    """What one lane owns."""

    def __init__(self, lane: Lane, plan: NetworkPlan, dtype: np.dtype[Any]) -> None:
        for part in (lane.train, lane.validation):
            _check_part(part, lane.model.spec)
        settings, dropouts = lane.hyperparameters, list(lane.model.dropouts())
        self.validation_matrix = _frozen(lane.validation.matrix, np.float32)
        self.validation_rows = _frozen(lane.validation.rows, np.int64)
        self.num_outputs = lane.model.spec.num_outputs
        self.num_batches = 0
        self.losses = np.empty(0)
        self.counters = np.zeros(NUM_COUNTERS, dtype=np.int64)
        self.state = aligned_zeros(3 * plan.num_parameters, dtype)
        parameters, self.first_moment, self.second_moment = self.state.reshape(3, plan.num_parameters)
        self.weights: dict[str, NDArray[Any]] = {}
        for index, ((weight, shape), (bias, length)) in enumerate(zip(plan.weights, plan.biases, strict=True)):
            self.weights[f"layers.{index}.weight"] = parameters[weight : weight + math.prod(shape)].reshape(shape)
            self.weights[f"layers.{index}.bias"] = parameters[bias : bias + length]
        self.load_weights(lane.model.state_dict())
        rate = dropouts[0].rate if dropouts else 0.0
        self.counters[ROWS_SEEN] = dropouts[0].random_state() if dropouts else 0
        seeds = [dropout.seed for dropout in dropouts]
        self._masks = np.array([*seeds, keep_threshold(rate) if dropouts else 0], dtype=np.int64)
        decay = settings.weight_decay
        self.settings = lane_settings(
            weight_decay=_DEFAULT_DECAY.get(settings.optimizer, 0.0) if decay is None else decay,
            momentum=settings.momentum,
            clip_norm=settings.gradient_clip_norm,
            focal_gamma=settings.focal_gamma,
            thresholds=(settings.buy_threshold or math.inf, settings.sell_threshold or math.inf),
            dropout=rate,
            class_weights=np.ones(NUM_CLASSES) if lane.class_weights is None else lane.class_weights,
        )
        train = lane.train
        self.num_rows = len(train)
        self._train = (
            _frozen(train.matrix, np.float32),
            _frozen(train.rows, np.int64),
            _frozen(train.y, np.int64),
            _frozen(train.targets, np.float32),
        )
        self.arguments: tuple[Any, ...] = ()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        for name, view in self.weights.items():
            view[:] = weights[name].detach().cpu().numpy()

    def begin_epoch(self, order: NDArray[np.int64] | None, batch_size: int, room: _Room) -> None:
        order_N = _frozen(np.empty(0) if order is None else order, np.int64)
        if not _are_within(order_N, self.num_rows):
            raise InvalidInputError(f"an epoch's order must name rows 0 to {self.num_rows - 1}; was given others")
        self.num_batches = -(-len(order_N) // batch_size)
        self.losses = np.zeros(self.num_batches)
        self.counters[HITS] = 0
        own = (self.state, self.counters, self.losses, self.settings, self._masks)
        self.arguments = (*self._train, order_N, *own, *room.arrays)


def _check_part(part: DatasetPart, spec: NetworkSpec) -> None:
    """Refuse what the compiled code, which checks no bounds, would follow out of an array.

    Raises:
        InvalidInputError: Rows, classes, columns or targets that do not exist.
    """
    if part.num_features != spec.input_size or part.window_bars != 1:
        raise InvalidInputError(
            f"the network reads rows of {spec.input_size} features, the part has windows of {part.window_bars} bars "
            f"with {part.num_features}; build both from one strategy"
        )
    if not _are_within(part.rows, len(part.matrix)):
        raise InvalidInputError(f"the part's rows must be in [0, {len(part.matrix)}) of its matrix; were not")
    if len(part.y) != len(part) or not _are_within(part.y, NUM_CLASSES):
        raise InvalidInputError(f"each of the {len(part)} rows needs a class in [0, {NUM_CLASSES}); drop the others")
    if spec.num_outputs == 1 and len(part.targets) != len(part):
        raise InvalidInputError(
            f"a regression needs a target for each of its {len(part)} rows, was given {len(part.targets)}"
        )


def _are_within(values: NDArray[np.int64], bound: int) -> bool:
    return len(values) == 0 or (int(values.min()) >= 0 and int(values.max()) < bound)


def _frozen(values: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Return a contiguous read-only view, a copy only if need be: another kind of array would be compiled for anew."""
    view = np.ascontiguousarray(values, dtype=dtype).view()
    view.flags.writeable = False
    return view


def _shape_of_step(lane: Lane) -> tuple[object, ...]:
    """Return what the lanes of a stack must share."""
    spec, settings = lane.model.spec, lane.hyperparameters
    return spec, settings.batch_size, settings.optimizer, settings.loss_kind
