"""The engine that trains any network on any device: autograd, step by step.

It is the reference that every other engine is compared with. At small batches the cost of a step is the number of
calls, not arithmetic, so rows are gathered many batches at a time, the optimiser is fused where that exists, and
nothing is read back from the device within an epoch.

Shape suffixes: R rows of the matrix, N rows of a part, L bars of a window, F features, B rows of a batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.evaluation.forward import part_outputs
from ktrdr_core.training.device import DeviceCapabilities
from ktrdr_core.training.lane import Lane
from ktrdr_core.training.losses import build_loss, predicted_classes
from ktrdr_core.training.optimizers import build_optimizer, optimizer_tensors, restore_optimizer

# Batches whose losses and outputs are held as separate tensors before they are merged on the device.
_MERGE_BATCHES = 256
# Rows gathered by one call: enough to spread its cost, few enough to need little memory beside the data.
_GATHER_ROWS = 32_768


class EagerEngine:
    """A `LaneEngine` that applies lanes one after another; see there for the methods.

    The networks of the lanes are moved to the device and trained in place.

    Args:
        lanes: What to train.
        device: Where.
        dtype: torch.float32, or torch.float64 for a reference without rounding; not every device has the latter.
    """

    def __init__(
        self, lanes: Sequence[Lane], device: DeviceCapabilities, *, dtype: torch.dtype = torch.float32
    ) -> None:
        # Parts share matrices: each goes to the device once.
        parts = [part for lane in lanes for part in (lane.train, lane.validation)]
        arrays = {id(part.matrix): part.matrix for part in parts}
        matrices = {key: torch.from_numpy(array).to(device.device, dtype) for key, array in arrays.items()}
        self._lanes = [
            _EagerLane(lane, device, matrices[id(lane.train.matrix)], matrices[id(lane.validation.matrix)])
            for lane in lanes
        ]

    def begin_epoch(self, orders: Sequence[NDArray[np.int64] | None], first_batch: int = 0) -> None:
        for lane, order in zip(self._lanes, orders, strict=True):
            lane.begin_epoch(order, first_batch)

    def step(self, learning_rates: Sequence[float]) -> None:
        for lane, learning_rate in zip(self._lanes, learning_rates, strict=True):
            lane.step(learning_rate)

    def epoch_totals(self, lane: int) -> tuple[NDArray[np.float64], int]:
        return self._lanes[lane].epoch_totals()

    def validation_outputs(self, lane: int, check: Callable[[], None]) -> NDArray[np.float32]:
        return self._lanes[lane].validation_outputs(check)

    def weights(self, lane: int) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self._lanes[lane].model.state_dict().items()}

    def state(self, lane: int) -> dict[str, Tensor]:
        own = self._lanes[lane]
        state = {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(own.optimizer).items()}
        for index, layer in enumerate(own.model.dropouts()):
            state[f"dropout/{index}"] = torch.tensor(layer.random_state())
        return state

    def restore(self, lane: int, weights: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        own = self._lanes[lane]
        own.model.load_state_dict(weights)
        optimizer = {
            name.removeprefix("optimizer/"): tensor for name, tensor in state.items() if name.startswith("optimizer/")
        }
        restore_optimizer(own.optimizer, optimizer)
        for index, layer in enumerate(own.model.dropouts()):
            layer.restore_random_state(int(state[f"dropout/{index}"]))


class _EagerLane:
    """One network, its optimiser, and the epoch under way."""

    def __init__(self, lane: Lane, device: DeviceCapabilities, matrix_RF: Tensor, validation_matrix_RF: Tensor) -> None:
        settings = lane.hyperparameters
        self._settings, self._device, self._dtype = settings, device, matrix_RF.dtype
        self._validation, self._validation_matrix_RF = lane.validation, validation_matrix_RF
        self.model = lane.model.to(device.device, matrix_RF.dtype).train()
        self._parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(settings, self._parameters, device.device_type)
        self._learning_rate = settings.learning_rate
        weights = lane.class_weights
        self._loss = build_loss(
            settings, None if weights is None else torch.from_numpy(weights).to(device.device, matrix_RF.dtype)
        )
        self._rows = _DeviceRows(lane.train, matrix_RF)
        self._y_N = torch.from_numpy(lane.train.y).to(device.device)
        self._answers_N = (
            torch.from_numpy(lane.train.targets).to(device.device, matrix_RF.dtype)
            if settings.is_regression
            else self._y_N
        )
        self._uses_bfloat16 = settings.mixed_precision and device.supports_mixed_precision
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._y_epoch_N = self._y_N[:0]
        self._pending_losses: list[Tensor] = []
        self._pending_outputs: list[Tensor] = []
        self._merged_losses: list[Tensor] = []
        self._merged_rows = 0
        self._correct = torch.zeros((), dtype=torch.int64, device=device.device)

    def begin_epoch(self, order: NDArray[np.int64] | None, first_batch: int) -> None:
        self._pending_losses.clear()
        self._pending_outputs.clear()
        self._merged_losses.clear()
        self._merged_rows = 0
        self._correct.zero_()
        batch_size = self._settings.batch_size
        left = order[first_batch * batch_size :] if order is not None else ()
        if len(left) == 0:
            self._batches = iter(())
            return
        order_N = torch.from_numpy(left).to(self._y_N.device)
        self._y_epoch_N = self._y_N.index_select(0, order_N)
        answers_N = self._answers_N.index_select(0, order_N) if self._settings.is_regression else self._y_epoch_N
        self._batches = zip(self._rows.batches(order_N, batch_size), torch.split(answers_N, batch_size), strict=False)

    def step(self, learning_rate: float) -> None:
        batch = next(self._batches, None)
        if batch is None:
            return
        if learning_rate != self._learning_rate:
            self._learning_rate = learning_rate
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
        x, answers_B = batch
        if self._uses_bfloat16:
            with torch.autocast(self._device.device_type, dtype=torch.bfloat16):
                outputs_BC = self.model(x)
            outputs_BC = outputs_BC.float()
        else:
            outputs_BC = self.model(x)
        loss = self._loss(outputs_BC, answers_B)
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        if self._settings.gradient_clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.gradient_clip_norm)
        self.optimizer.step()
        self._pending_losses.append(loss.detach())
        self._pending_outputs.append(outputs_BC.detach())
        if len(self._pending_losses) == _MERGE_BATCHES:
            self._merge()

    def _merge(self) -> None:
        """Move the pending batches' losses and hits into their totals, without reading them back."""
        if not self._pending_losses:
            return
        self._merged_losses.append(torch.stack(self._pending_losses))
        outputs_NC = torch.cat(self._pending_outputs)
        y_N = self._y_epoch_N[self._merged_rows : self._merged_rows + len(outputs_NC)]
        self._correct += (predicted_classes(outputs_NC, self._settings) == y_N).sum()
        self._merged_rows += len(outputs_NC)
        self._pending_losses.clear()
        self._pending_outputs.clear()

    def epoch_totals(self) -> tuple[NDArray[np.float64], int]:
        self._merge()
        if not self._merged_losses:
            return np.empty(0), 0
        return torch.cat(self._merged_losses).cpu().double().numpy(), int(self._correct)

    def validation_outputs(self, check: Callable[[], None]) -> NDArray[np.float32]:
        if self._dtype == torch.float32:
            on_device = self._validation_matrix_RF if self._device.device_type != "cpu" else None
            return part_outputs(self.model, self._validation, device=self._device.device, check=check, matrix=on_device)
        check()
        self.model.eval()
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(self._validation.X)).to(self._y_N.device, self._dtype)
            outputs_NC: NDArray[np.float32] = self.model(x).float().cpu().numpy()
        self.model.train()
        return outputs_NC


class _DeviceRows:
    """Rows or windows of a part, gathered from the matrix on the device."""

    def __init__(self, part: DatasetPart, matrix_RF: Tensor) -> None:
        length, (num_rows, width) = part.window_bars, matrix_RF.shape
        self._window_shape = (length, width)
        self._is_window = length > 1
        # A window is a run of the matrix, so all windows are a view of it: one row for each, overlapping in memory.
        self._source = matrix_RF.as_strided((max(num_rows - length + 1, 0), length * width), (width, 1))
        self._first_N = torch.from_numpy(part.rows - (length - 1)).to(matrix_RF.device)

    def batches(self, order_N: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield (B, F), or (B, L, F) for windows, of `order_N` in turn; rows are gathered for many batches at once."""
        first_N = self._first_N.index_select(0, order_N)
        at_once = batch_size if self._is_window else max(_GATHER_ROWS // batch_size, 1) * batch_size
        for chunk in torch.split(first_N, at_once):
            x = self._source.index_select(0, chunk)
            if self._is_window:
                yield x.view(-1, *self._window_shape)
            else:
                yield from torch.split(x, batch_size)
