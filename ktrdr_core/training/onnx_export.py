"""A stored model as one ONNX graph: features as a strategy makes them in, what it answers out.

Shape suffixes: B rows of a batch, L bars of a window (none for an mlp), F features, C outputs.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ktrdr_core.domain.labels import CLASS_NAMES
from ktrdr_core.errors import UnsupportedError
from ktrdr_core.evaluation.decisions import output_activation_of
from ktrdr_core.training.trading_model import TradingModel
from ktrdr_core.versions import own_version

if TYPE_CHECKING:
    import onnx_ir

INPUT_NAME = "features"
OPSET = 20
"""GELU and layer normalisation are single operators in it; runtimes of 2024 and later have it."""

_PACKAGES = ("onnx", "onnxscript")


class OnnxModel(nn.Module):
    """Scaler, network and output activation in one: (B, F) or (B, L, F) to (B, C).

    Answers the probabilities of BUY, HOLD, SELL, or of a regression the forward return, (B, 1).
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, model: TradingModel) -> None:
        super().__init__()
        self.network = model.network
        self.has_scaler = model.scaler.kind != "none"
        self.output_activation = output_activation_of(model.strategy)
        # float64, as in training: the rounding of a large centre to float32 would be large in units of a small scale.
        self.register_buffer("centre", torch.from_numpy(model.scaler.centre))
        self.register_buffer("scale", torch.from_numpy(model.scaler.scale))

    @property
    def output_name(self) -> str:
        return "forward_return" if self.output_activation == "linear" else "probabilities"

    def forward(self, features: Tensor) -> Tensor:
        if self.has_scaler:
            features = ((features.double() - self.centre) / self.scale).float()
        outputs_BC = self.network(features)
        if self.output_activation == "linear":
            return cast(Tensor, outputs_BC)
        if self.output_activation == "sigmoid":
            outputs_BC = functional.logsigmoid(outputs_BC)
        return torch.softmax(outputs_BC, dim=1)


def check_onnx_packages() -> None:
    """Refuse where the packages are missing that write such a file.

    Raises:
        UnsupportedError: They are not installed.
    """
    if any(find_spec(package) is None for package in _PACKAGES):
        raise UnsupportedError(
            "an ONNX file needs onnx and onnxscript, which are not installed; run: pip install 'ktrdr[onnx]'"
        )


def write_onnx(model: TradingModel, path: Path, *, metadata: Mapping[str, str], data_name: str | None) -> None:
    """Write the graph of a model to `path`.

    The batch may have any number of rows. Names and order of features and classes are in the file's metadata.

    Args:
        model: On the CPU.
        path: Where to; not durable, nobody else looks at it yet.
        metadata: Further entries of the file's metadata.
        data_name: Name of the file beside it that takes the weights, for a file of ONNX holds less than 2 GiB and is
            built in memory; None puts them in the file itself.

    Raises:
        UnsupportedError: The packages are missing, or this network has no ONNX form.
    """
    check_onnx_packages()
    graph = OnnxModel(model).eval()
    program = _trace(graph)
    _describe(program.model, model, graph, metadata)
    _save(program.model, path, data_name)


def _trace(graph: OnnxModel) -> torch.onnx.ONNXProgram:
    spec = graph.network.spec
    rows = torch.zeros((2, *spec.row_shape))
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (rows,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[graph.output_name],
                dynamic_shapes={"features": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UnsupportedError(
            f"this {spec.type} has no ONNX form ({error.__cause__ or error}); export it with --format full"
        ) from error
    assert program is not None  # noqa: S101 - given no path, the function answers the program
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter warns of: its own use of torch, and packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe(graph: onnx_ir.Model, model: TradingModel, module: OnnxModel, metadata: Mapping[str, str]) -> None:
    spec = model.network.spec
    graph.producer_name, graph.producer_version = "ktrdr", own_version()
    graph.metadata_props.update(
        {
            **metadata,
            "ktrdr.feature_names": json.dumps(list(model.feature_names), ensure_ascii=False),
            "ktrdr.output": module.output_name,
            "ktrdr.classes": json.dumps([] if spec.is_regression else list(CLASS_NAMES)),
            "ktrdr.window_bars": str(spec.window_bars),
            "ktrdr.network": spec.type,
        }
    )


def _save(graph: onnx_ir.Model, path: Path, data_name: str | None) -> None:
    import onnx_ir

    if data_name is None:
        onnx_ir.save(graph, path)
    else:
        onnx_ir.save(graph, path, external_data=data_name)
