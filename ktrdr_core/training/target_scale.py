"""A regression learns its targets in units of their own spread, and answers in the units they came in.

Forward returns are small numbers, about a thousandth. A step of the optimiser moves an answer by more than that, and a
Huber loss with a delta of 1 would never leave its parabola. So targets are divided by the standard deviation of the
training part's, and once trained, the last layer, which is linear, is multiplied by it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.errors import InternalError
from ktrdr_core.models.network import Network
from ktrdr_core.training.lane import Lane


def target_scale(lane: Lane) -> float:
    """Return the standard deviation of a regression's training targets; 1 if they are all the same, or for classes."""
    if not lane.hyperparameters.is_regression:
        return 1.0
    spread = float(np.std(lane.train.targets.astype(np.float64)))
    return spread if spread > 0 else 1.0


def scale_targets(lane: Lane, scale: float) -> Lane:
    """Return `lane` with targets and thresholds divided by `scale`."""
    if scale == 1.0:
        return lane
    settings = lane.hyperparameters
    buy_threshold, sell_threshold = settings.thresholds
    return replace(
        lane,
        train=_scaled(lane.train, scale),
        validation=_scaled(lane.validation, scale),
        hyperparameters=replace(
            settings,
            buy_threshold=buy_threshold / scale,
            sell_threshold=sell_threshold / scale,
        ),
    )


def _scaled(part: DatasetPart, scale: float) -> DatasetPart:
    return replace(part, targets=(part.targets / scale).astype(np.float32))


def unscale_answers(model: Network, scale: float) -> None:
    """Multiply what a network answers by `scale`, by its last layer's weights."""
    if scale == 1.0:
        return
    layer = output_layer(model)
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)


def output_layer(model: Network) -> nn.Linear:
    """Return the layer whose output is the network's: in every network the last linear one.

    Raises:
        InternalError: It has another number of outputs than the network.
    """
    layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    if layer.out_features != model.spec.num_outputs:
        raise InternalError(f"the last linear layer of a {model.spec.type} has {layer.out_features} outputs")
    return layer
