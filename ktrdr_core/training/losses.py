"""What a training minimises, written for autograd; `stack_engine` has the same formulas with their gradients.

Shape suffixes: B rows of a batch, N rows of a part, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ktrdr_core.domain.labels import NUM_CLASSES, SignalClass
from ktrdr_core.training.hyperparameters import Hyperparameters

HUBER_DELTA = 1.0

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs (B, C) or (B, 1), classes (B,) or targets (B,)) to a scalar."""


def build_loss(settings: Hyperparameters, class_weights_C: Tensor | None) -> LossFunction:
    """Return the loss that `settings` ask for.

    Args:
        settings: `loss_kind` and `focal_gamma` are read.
        class_weights_C: From `balanced_class_weights`, of the dtype and on the device of the outputs; None is all 1.
    """
    match settings.loss_kind:
        case "cross_entropy":
            return lambda outputs_BC, y_B: functional.cross_entropy(outputs_BC, y_B, weight=class_weights_C)
        case "focal":
            return lambda outputs_BC, y_B: focal_loss(outputs_BC, y_B, settings.focal_gamma, class_weights_C)
        case "one_vs_rest":
            return lambda outputs_BC, y_B: one_vs_rest_loss(outputs_BC, y_B, class_weights_C)
        case "mse":
            return lambda outputs_B1, targets_B: functional.mse_loss(outputs_B1.squeeze(1), targets_B)
        case "huber":
            return lambda outputs_B1, targets_B: functional.huber_loss(
                outputs_B1.squeeze(1), targets_B, delta=HUBER_DELTA
            )


def focal_loss(logits_BC: Tensor, y_B: Tensor, gamma: float, class_weights_C: Tensor | None = None) -> Tensor:
    """Return the mean of -a (1 - p) ** gamma log p over rows; p is the softmax probability of the row's class.

    1 - p is taken from the logarithms of the other classes' probabilities, so that neither the value nor the gradient
    loses its digits where p is nearly 1.

    Args:
        logits_BC: Shape (B, C), C at least 2.
        y_B: True classes, int64.
        gamma: Above 0; how little a row counts that is already right.
        class_weights_C: a of each class; None is 1.

    Source: T. Lin, P. Goyal, R. Girshick, K. He, P. Dollar, Focal Loss for Dense Object Detection, 2017.
    """
    log_p_BC = functional.log_softmax(logits_BC, dim=1)
    classes_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    is_true_BC = y_B.unsqueeze(1) == classes_C
    log_p_B = log_p_BC.gather(1, y_B.unsqueeze(1)).squeeze(1)
    log_others_B = torch.logsumexp(log_p_BC.masked_fill(is_true_BC, -torch.inf), dim=1)
    losses_B = -torch.exp(gamma * log_others_B) * log_p_B
    return (losses_B if class_weights_C is None else losses_B * class_weights_C[y_B]).mean()


def one_vs_rest_loss(logits_BC: Tensor, y_B: Tensor, class_weights_C: Tensor | None = None) -> Tensor:
    """Return the weighted mean over rows of the mean binary cross entropy of the C judgements "it is this class".

    Args:
        logits_BC: Shape (B, C).
        y_B: True classes, int64.
        class_weights_C: Weight of a row by its true class; None is 1. Rows are averaged by weight, as torch does.
    """
    classes_C = torch.arange(logits_BC.shape[1], device=logits_BC.device)
    is_true_BC = (y_B.unsqueeze(1) == classes_C).to(logits_BC.dtype)
    if class_weights_C is None:
        return functional.binary_cross_entropy_with_logits(logits_BC, is_true_BC)
    losses_B = functional.binary_cross_entropy_with_logits(logits_BC, is_true_BC, reduction="none").mean(dim=1)
    weights_B = class_weights_C[y_B]
    return (losses_B * weights_B).sum() / weights_B.sum()


def balanced_class_weights(y_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return N / (3 n_class) for each class, so that every class weighs as much as another; shape (3,).

    A class without rows gets 0: there is nothing to weigh, and no batch will ask.
    """
    counts_C = np.bincount(y_N, minlength=NUM_CLASSES).astype(np.float64)
    return np.divide(len(y_N), NUM_CLASSES * counts_C, out=np.zeros(NUM_CLASSES), where=counts_C > 0)


def predicted_classes(outputs_BC: Tensor, settings: Hyperparameters) -> Tensor:
    """Return the class (B,) that outputs answer: the largest, or the side of a regression's thresholds."""
    if not settings.is_regression:
        return outputs_BC.argmax(dim=1)
    answer_B = outputs_BC.squeeze(1)
    buy_threshold, sell_threshold = settings.thresholds
    classes_B = torch.full_like(answer_B, SignalClass.HOLD, dtype=torch.int64)
    classes_B.masked_fill_(answer_B >= buy_threshold, int(SignalClass.BUY))
    classes_B.masked_fill_(answer_B <= -sell_threshold, int(SignalClass.SELL))
    return classes_B
