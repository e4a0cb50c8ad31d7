"""One optimiser step of one multi-layer perceptron in compiled code: what `stack_engine.py` calls for each batch.

The same source gives a float32 and a float64 kernel. Everything a lane owns is in a few flat arrays, since each array
argument of a call costs as much as fifty multiplications of a vector; the constants below say what stands where in
them. They are here and not beside `stack_plan.py`, because numba keeps machine code until this file changes. Loops over
values are written so that the compiler turns them into vector instructions, and no sum is reordered by it (no
fast-math), so a result depends on nothing but the lane's own arrays.

Shape suffixes: B rows of a batch, F features, H units of a layer, I inputs and O outputs of a layer, C network outputs.

Source: D. Rumelhart, G. Hinton, R. Williams, Learning representations by back-propagating errors, 1986; D. Kingma,
J. Ba, Adam: a method for stochastic optimization, 2015; I. Loshchilov, F. Hutter, Decoupled weight decay
regularization, 2019; T.-Y. Lin et al., Focal loss for dense object detection, 2017; P. Huber, Robust estimation of a
location parameter, 1964. Optimisers follow torch.optim's formulas.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.models.mask_kernel import compiled, fill_bits

RELU, TANH, GELU, LEAKY_RELU, ELU, SILU, SIGMOID = range(7)
CROSS_ENTROPY, FOCAL, ONE_VS_REST, MSE, HUBER = range(5)
ADAM, ADAMW, SGD, RMSPROP = range(4)
_BUY, _HOLD, _SELL = range(3)

_LEAKY_SLOPE = 0.01
_SQRT_HALF = math.sqrt(0.5)
_INVERSE_SQRT_TAU = 1.0 / math.sqrt(2.0 * math.pi)
_CLIP_EPSILON = 1e-6

# The plan: numbers of the network, then some of each affine layer.
NUM_LAYERS, ACTIVATION, LOSS, OPTIMIZER, BATCH_SIZE, NUM_PARAMETERS, INPUT, BACKWARD, HEAD = range(9)
INPUTS, OUTPUTS, WEIGHT, BIAS, OUTPUT, SLOPE, PER_LAYER = range(7)

# The counters of a lane.
ROWS_SEEN, STEPS, HITS, NUM_COUNTERS = range(4)

# The settings of a lane; the last ones are the weights of the classes.
(
    WEIGHT_DECAY,
    MOMENTUM,
    CLIP_NORM,
    FOCAL_GAMMA,
    BUY_THRESHOLD,
    SELL_THRESHOLD,
    DROPOUT_SCALE,
    CLASS_WEIGHTS,
) = range(8)


@compiled
def train_batch(
    batch: int,
    learning_rate: float,
    matrix: NDArray[np.float32],
    rows: NDArray[np.int64],
    y: NDArray[np.int64],
    targets: NDArray[np.float32],
    order: NDArray[np.int64],
    state: NDArray[Any],
    counters: NDArray[np.int64],
    losses: NDArray[np.float64],
    settings: NDArray[np.float64],
    masks: NDArray[np.int64],
    plan: NDArray[np.int64],
    work: NDArray[Any],
    bits: NDArray[np.uint64],
) -> None:
    """Apply one optimiser step with one batch.

    Args:
        batch: Index of the batch in the epoch.
        learning_rate: Step size.
        matrix: Features, shape (R, F).
        rows: Position in `matrix` of each row of the training part.
        y: Class of each row.
        targets: Target of each row; may be empty if the loss needs none.
        order: Rows of this epoch, in the order in which they are seen.
        state: Parameters, then the optimiser's first and second moments; changed in place.
        counters: Rows seen, steps taken, rows of this epoch classified right; changed in place.
        losses: Mean loss of each batch of this epoch; entry `batch` is written.
        settings: As `lane_settings` returns them.
        masks: Seed of each hidden layer's dropout stream, then the threshold below which a unit is kept; only the
            threshold 0 if there is no dropout.
        plan: `NetworkPlan.numbers`.
        work: Room of `NetworkPlan.num_work` values of the dtype of `state`.
        bits: Room of `NetworkPlan.num_bits` numbers.
    """
    first = batch * plan[BATCH_SIZE]
    num_rows = min(plan[BATCH_SIZE], len(order) - first)
    num_features = plan[HEAD + INPUTS]
    x_BF = _block(work, plan[INPUT], num_rows, num_features)
    for row in range(num_rows):
        source = rows[order[first + row]]
        for column in range(num_features):
            x_BF[row, column] = matrix[source, column]
    _forward(state, counters, settings, masks, plan, work, bits, num_rows)
    z_BC, d_BC = _last_blocks(plan, work, num_rows)
    if plan[LOSS] >= MSE:
        loss, hits = _regression_loss(plan[LOSS], z_BC, d_BC, y, targets, order, first, settings)
    else:
        loss, hits = _class_loss(plan[LOSS], z_BC, d_BC, y, order, first, settings)
    losses[batch] = loss
    counters[HITS] += hits
    _backward(state, plan, work, num_rows)
    counters[ROWS_SEEN] += num_rows
    counters[STEPS] += 1
    num_parameters = plan[NUM_PARAMETERS]
    gradient = work[:num_parameters]
    if settings[CLIP_NORM] < np.inf:
        _clip(gradient, settings[CLIP_NORM])
    _update(
        plan[OPTIMIZER],
        state[:num_parameters],
        gradient,
        state[num_parameters : 2 * num_parameters],
        state[2 * num_parameters : 3 * num_parameters],
        counters[STEPS],
        learning_rate,
        settings,
    )


@compiled
def evaluate_block(
    outputs_BC: NDArray[Any],
    matrix: NDArray[np.float32],
    rows: NDArray[np.int64],
    state: NDArray[Any],
    counters: NDArray[np.int64],
    settings: NDArray[np.float64],
    masks: NDArray[np.int64],
    plan: NDArray[np.int64],
    work: NDArray[Any],
    bits: NDArray[np.uint64],
) -> None:
    """Write the network's answers to `rows` of `matrix` into `outputs_BC`; `masks` is [0], no dropout.

    The other arguments are those of `train_batch`.
    """
    num_rows, num_features = len(rows), plan[HEAD + INPUTS]
    x_BF = _block(work, plan[INPUT], num_rows, num_features)
    for row in range(num_rows):
        source = rows[row]
        for column in range(num_features):
            x_BF[row, column] = matrix[source, column]
    _forward(state, counters, settings, masks, plan, work, bits, num_rows)
    z_BC, _ = _last_blocks(plan, work, num_rows)
    for row in range(num_rows):
        for c in range(z_BC.shape[1]):
            outputs_BC[row, c] = z_BC[row, c]


@compiled
def _block(values: NDArray[Any], offset: int, num_rows: int, num_columns: int) -> NDArray[Any]:
    return values[offset : offset + num_rows * num_columns].reshape((num_rows, num_columns))


@compiled
def _last_blocks(plan: NDArray[np.int64], work: NDArray[Any], num_rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the network's outputs and the room for the loss's gradient by them."""
    layer = HEAD + (plan[NUM_LAYERS] - 1) * PER_LAYER
    num_outputs = plan[layer + OUTPUTS]
    return (
        _block(work, plan[layer + OUTPUT], num_rows, num_outputs),
        _block(work, plan[layer + SLOPE], num_rows, num_outputs),
    )


@compiled
def _forward(
    state: NDArray[Any],
    counters: NDArray[np.int64],
    settings: NDArray[np.float64],
    masks: NDArray[np.int64],
    plan: NDArray[np.int64],
    work: NDArray[Any],
    bits: NDArray[np.uint64],
    num_rows: int,
) -> None:
    threshold, scale, first_row = masks[-1], settings[DROPOUT_SCALE], counters[ROWS_SEEN]
    num_layers = plan[NUM_LAYERS]
    input_offset = plan[INPUT]
    for index in range(num_layers):
        layer = HEAD + index * PER_LAYER
        inputs, outputs = plan[layer + INPUTS], plan[layer + OUTPUTS]
        x_BI = _block(work, input_offset, num_rows, inputs)
        weight_OI = _block(state, plan[layer + WEIGHT], outputs, inputs)
        bias_O = state[plan[layer + BIAS] : plan[layer + BIAS] + outputs]
        z_BO = _block(work, plan[layer + OUTPUT], num_rows, outputs)
        np.dot(x_BI, weight_OI.T, z_BO)
        if index == num_layers - 1:
            for row in range(num_rows):
                for unit in range(outputs):
                    z_BO[row, unit] += bias_O[unit]
        else:
            slope_BO = _block(work, plan[layer + SLOPE], num_rows, outputs)
            num_pairs = (outputs + 1) // 2
            if threshold > 0:
                fill_bits(masks[index], first_row, num_rows, num_pairs, bits)
            if plan[ACTIVATION] == RELU:
                _rectify(z_BO, slope_BO, bias_O, bits.view(np.uint32), 2 * num_pairs, threshold, scale)
            else:
                _activate(plan[ACTIVATION], z_BO, slope_BO, bias_O)
                if threshold > 0:
                    _drop(z_BO, slope_BO, bits.view(np.uint32), 2 * num_pairs, threshold, scale)
        input_offset = plan[layer + OUTPUT]


@compiled
def _rectify(
    z_BH: NDArray[Any],
    slope_BH: NDArray[Any],
    bias_H: NDArray[Any],
    bits: NDArray[np.uint32],
    bits_per_row: int,
    threshold: int,
    scale: float,
) -> None:
    """Replace z by relu(z + bias) with dropout, and write its derivative by z."""
    kind = z_BH.dtype.type
    zero, one, kept = kind(0.0), kind(1.0), kind(scale)
    num_rows, width = z_BH.shape
    limit = np.uint32(threshold)
    for row in range(num_rows):
        if threshold > 0:
            start = row * bits_per_row
            for unit in range(width):
                value = z_BH[row, unit] + bias_H[unit]
                factor = kept if bits[start + unit] < limit else zero
                slope = factor if value > zero else zero
                z_BH[row, unit] = value * slope
                slope_BH[row, unit] = slope
        else:
            for unit in range(width):
                value = z_BH[row, unit] + bias_H[unit]
                slope = one if value > zero else zero
                z_BH[row, unit] = value * slope
                slope_BH[row, unit] = slope


@compiled
def _drop(
    a_BH: NDArray[Any],
    slope_BH: NDArray[Any],
    bits: NDArray[np.uint32],
    bits_per_row: int,
    threshold: int,
    scale: float,
) -> None:
    kind = a_BH.dtype.type
    zero, kept = kind(0.0), kind(scale)
    num_rows, width = a_BH.shape
    limit = np.uint32(threshold)
    for row in range(num_rows):
        start = row * bits_per_row
        for unit in range(width):
            factor = kept if bits[start + unit] < limit else zero
            a_BH[row, unit] *= factor
            slope_BH[row, unit] *= factor


@compiled
def _activate(activation: int, z_BH: NDArray[Any], slope_BH: NDArray[Any], bias_H: NDArray[Any]) -> None:
    """Replace z by f(z + bias) and write f's derivative there."""
    kind = z_BH.dtype.type
    zero, half, one, two, leak = kind(0.0), kind(0.5), kind(1.0), kind(2.0), kind(_LEAKY_SLOPE)
    sqrt_half, inverse_sqrt_tau = kind(_SQRT_HALF), kind(_INVERSE_SQRT_TAU)
    num_rows, width = z_BH.shape
    for row in range(num_rows):
        for unit in range(width):
            value = z_BH[row, unit] + bias_H[unit]
            if activation == LEAKY_RELU:
                slope = one if value > zero else leak
                answer = value * slope
            elif activation == TANH:
                # From an exponential: the library's tanh takes five times as long. Wrong by at most one rounding of 1.
                small = math.exp(-two * abs(value))
                answer = math.copysign((one - small) / (one + small), value)
                slope = one - answer * answer
            elif activation == SIGMOID:
                answer = one / (one + math.exp(-value))
                slope = answer * (one - answer)
            elif activation == SILU:
                share = one / (one + math.exp(-value))
                answer = value * share
                slope = share * (one + value * (one - share))
            elif activation == GELU:
                below = half * (one + math.erf(value * sqrt_half))
                answer = value * below
                slope = below + value * math.exp(-half * value * value) * inverse_sqrt_tau
            else:
                answer = value if value > zero else math.expm1(value)
                slope = one if value > zero else answer + one
            z_BH[row, unit] = answer
            slope_BH[row, unit] = slope


@compiled
def _class_loss(
    loss: int,
    z_BC: NDArray[Any],
    d_BC: NDArray[Any],
    y: NDArray[np.int64],
    order: NDArray[np.int64],
    first: int,
    settings: NDArray[np.float64],
) -> tuple[float, int]:
    """Write the loss's derivative by each output; return the loss and the rows classified right. In float64."""
    num_rows, num_classes = z_BC.shape
    class_weights, gamma = settings[CLASS_WEIGHTS:], settings[FOCAL_GAMMA]
    divisor = 0.0
    for row in range(num_rows):
        divisor += 1.0 if loss == FOCAL else class_weights[y[order[first + row]]]
    total, hits = 0.0, 0
    for row in range(num_rows):
        label = y[order[first + row]]
        share = class_weights[label] / divisor
        largest, best = np.float64(z_BC[row, 0]), 0
        for c in range(1, num_classes):
            if z_BC[row, c] > largest:
                largest, best = np.float64(z_BC[row, c]), c
        hits += 1 if best == label else 0
        if loss == ONE_VS_REST:
            for c in range(num_classes):
                z, target = np.float64(z_BC[row, c]), 1.0 if c == label else 0.0
                small = math.exp(-abs(z))
                total += share * (max(z, 0.0) - z * target + math.log1p(small)) / num_classes
                probability = (1.0 if z >= 0 else small) / (1.0 + small)
                d_BC[row, c] = share * (probability - target) / num_classes
            continue
        normaliser, rest = 0.0, 0.0
        for c in range(num_classes):
            power = math.exp(np.float64(z_BC[row, c]) - largest)
            d_BC[row, c] = power
            normaliser += power
            rest += power if c != label else 0.0
        log_p = np.float64(z_BC[row, label]) - largest - math.log(normaliser)
        if loss == CROSS_ENTROPY:
            total -= share * log_p
            slope = -share
        else:
            q, p = rest / normaliser, math.exp(log_p)
            modulation = q**gamma
            total -= share * modulation * log_p
            # gamma p q^(gamma - 1) log p goes to 0 with q for every gamma > 0, since log p is about -q there.
            slope = share * (gamma * p * modulation / q * log_p - modulation) if q > 0.0 else 0.0
        for c in range(num_classes):
            d_BC[row, c] = slope * ((1.0 if c == label else 0.0) - d_BC[row, c] / normaliser)
    return total, hits


@compiled
def _regression_loss(
    loss: int,
    z_BC: NDArray[Any],
    d_BC: NDArray[Any],
    y: NDArray[np.int64],
    targets: NDArray[np.float32],
    order: NDArray[np.int64],
    first: int,
    settings: NDArray[np.float64],
) -> tuple[float, int]:
    num_rows = z_BC.shape[0]
    total, hits = 0.0, 0
    for row in range(num_rows):
        position = order[first + row]
        z = np.float64(z_BC[row, 0])
        error = z - np.float64(targets[position])
        if loss == MSE:
            total += error * error / num_rows
            d_BC[row, 0] = 2.0 * error / num_rows
        elif abs(error) <= 1.0:
            total += 0.5 * error * error / num_rows
            d_BC[row, 0] = error / num_rows
        else:
            total += (abs(error) - 0.5) / num_rows
            d_BC[row, 0] = math.copysign(1.0, error) / num_rows
        answer = _HOLD
        if z >= settings[BUY_THRESHOLD]:
            answer = _BUY
        elif z <= -settings[SELL_THRESHOLD]:
            answer = _SELL
        hits += 1 if answer == y[position] else 0
    return total, hits


@compiled
def _backward(state: NDArray[Any], plan: NDArray[np.int64], work: NDArray[Any], num_rows: int) -> None:
    """Write the gradient of every parameter, from the derivative by the network's outputs."""
    num_layers = plan[NUM_LAYERS]
    room = (len(work) - plan[BACKWARD]) // 2
    layer = HEAD + (num_layers - 1) * PER_LAYER
    d_offset = plan[layer + SLOPE]
    for index in range(num_layers - 1, -1, -1):
        layer = HEAD + index * PER_LAYER
        inputs, outputs = plan[layer + INPUTS], plan[layer + OUTPUTS]
        below = layer - PER_LAYER
        x_BI = _block(work, plan[below + OUTPUT] if index > 0 else plan[INPUT], num_rows, inputs)
        d_BO = _block(work, d_offset, num_rows, outputs)
        weight_offset, bias_offset = plan[layer + WEIGHT], plan[layer + BIAS]
        np.dot(d_BO.T, x_BI, _block(work, weight_offset, outputs, inputs))
        bias_gradient_O = work[bias_offset : bias_offset + outputs]
        for unit in range(outputs):
            bias_gradient_O[unit] = 0.0
        for row in range(num_rows):
            for unit in range(outputs):
                bias_gradient_O[unit] += d_BO[row, unit]
        if index > 0:
            d_offset = plan[BACKWARD] + (index % 2) * room
            d_BI = _block(work, d_offset, num_rows, inputs)
            np.dot(d_BO, _block(state, weight_offset, outputs, inputs), d_BI)
            slope_BI = _block(work, plan[below + SLOPE], num_rows, inputs)
            for row in range(num_rows):
                for unit in range(inputs):
                    d_BI[row, unit] *= slope_BI[row, unit]


@compiled
def _clip(gradient: NDArray[Any], max_norm: float) -> None:
    factor = max_norm / (math.sqrt(np.float64(np.dot(gradient, gradient))) + _CLIP_EPSILON)
    if not factor >= 1.0:
        scale = gradient.dtype.type(factor)
        for index in range(len(gradient)):
            gradient[index] *= scale


@compiled
def _update(
    optimizer: int,
    parameters: NDArray[Any],
    gradient: NDArray[Any],
    first_moment: NDArray[Any],
    second_moment: NDArray[Any],
    step: int,
    learning_rate: float,
    settings: NDArray[np.float64],
) -> None:
    """Move the parameters as torch.optim's Adam, AdamW, SGD and RMSprop do with their defaults."""
    kind = parameters.dtype.type
    decay = kind(settings[WEIGHT_DECAY])
    if settings[WEIGHT_DECAY] != 0.0:
        if optimizer == ADAMW:
            shrink = kind(1.0 - learning_rate * settings[WEIGHT_DECAY])
            for index in range(len(parameters)):
                parameters[index] *= shrink
        else:
            for index in range(len(parameters)):
                gradient[index] += decay * parameters[index]
    if optimizer in (ADAM, ADAMW):
        beta_1, beta_2 = 0.9, 0.999
        keep_1, keep_2, new_1, new_2 = kind(beta_1), kind(beta_2), kind(1.0 - beta_1), kind(1.0 - beta_2)
        step_size = kind(learning_rate / (1.0 - beta_1**step))
        scale = kind(1.0 / math.sqrt(1.0 - beta_2**step))
        epsilon = kind(1e-8)
        for index in range(len(parameters)):
            g = gradient[index]
            m = keep_1 * first_moment[index] + new_1 * g
            v = keep_2 * second_moment[index] + new_2 * g * g
            first_moment[index] = m
            second_moment[index] = v
            parameters[index] -= step_size * m / (math.sqrt(v) * scale + epsilon)
    elif optimizer == SGD:
        momentum, size = kind(settings[MOMENTUM]), kind(learning_rate)
        for index in range(len(parameters)):
            m = momentum * first_moment[index] + gradient[index]
            first_moment[index] = m
            parameters[index] -= size * m
    else:
        keep, new, size, epsilon = kind(0.99), kind(1.0 - 0.99), kind(learning_rate), kind(1e-8)
        for index in range(len(parameters)):
            g = gradient[index]
            v = keep * second_moment[index] + new * g * g
            second_moment[index] = v
            parameters[index] -= size * g / (math.sqrt(v) + epsilon)
