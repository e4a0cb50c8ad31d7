"""What a model is exported as answers what the model answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ktrdr_core.data.alignment import resample
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.domain.export_format import ExportFormat
from ktrdr_core.errors import AlreadyExistsError, CorruptDataError, NotFoundError
from ktrdr_core.evaluation.decisions import output_activation_of, probabilities
from ktrdr_core.storage.artifact_files import DERIVED_FILES, WEIGHTS_FILE, artifact_digest
from ktrdr_core.storage.torch_files import derive_torch_files
from ktrdr_core.training.export import export_model
from ktrdr_core.training.trading_model import TradingModel
from tests.kit.builders import make_bars, strategy
from tests.kit.eventually import PATIENCE_S
from tests.kit.trading_models import REGRESSION, TWO_SYMBOLS, StoredNetwork, store_network

WINDOW: dict[str, Any] = {"model.features.lookback_periods": 4}
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"model.architecture.hidden_layers": [9, 7], "model.features.include_price_context": True},
    "mlp of two symbols": {**TWO_SYMBOLS, "model.architecture.activation": "gelu"},
    "mlp of one class against the rest": {
        "model.architecture.output_activation": "sigmoid",
        "model.architecture.activation": "silu",
    },
    "mlp without scaling": {
        "model.features.scale_features": False,
    },
    "lstm": {"model.type": "lstm", "model.architecture.hidden_layers": [9, 7], **WINDOW},
    "gru of two symbols": {"model.type": "gru", **WINDOW, **TWO_SYMBOLS},
    "transformer": {"model.type": "transformer", "model.architecture.hidden_layers": [16, 8], **WINDOW},
    "transformer of two symbols": {"model.type": "transformer", **WINDOW, **TWO_SYMBOLS},
    "regression of a window": {"model.type": "gru", **WINDOW, **REGRESSION},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], StoredNetwork]:
    """Return what gives the stored model of one of CASES, made once."""
    made: dict[str, StoredNetwork] = {}

    def get(case: str) -> StoredNetwork:
        if case not in made:
            config = strategy(**CASES[case])
            bars = [
                SymbolBars(base, tuple(resample(base, timeframe) for timeframe in config.higher_timeframes))
                for symbol in config.symbols
                for base in [make_bars(600, seed=ord(symbol[0]), symbol=symbol)]
            ]
            made[case] = store_network(tmp_path_factory.mktemp("stored") / "model", config, bars)
        return made[case]

    return get


def raw_rows(model: TradingModel, num_rows: int) -> NDArray[np.float32]:
    """Return rows before scaling that are likely ones for the model."""
    rng = np.random.default_rng(num_rows)
    shape = (num_rows, *model.network.spec.row_shape)
    return (model.scaler.centre + model.scaler.scale * rng.normal(size=shape)).astype(np.float32)


def expected_answer(model: TradingModel, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    scaled = model.scaler.transform(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)
    with torch.inference_mode():
        outputs = model.network(torch.from_numpy(scaled)).numpy()
    activation = output_activation_of(model.strategy)
    return outputs.astype(np.float64) if activation == "linear" else probabilities(outputs, activation)


def run_onnx(path: Path, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"features": rows})
    return np.asarray(answer)


@pytest.mark.parametrize("case", CASES)
def test_onnx_answers_what_the_model_answers_for_any_number_of_rows(
    stored: Callable[[str], StoredNetwork], tmp_path: Path, case: str
) -> None:
    path = stored(case).path
    target = tmp_path / "model.onnx"
    exported = export_model(path, target, ExportFormat.ONNX, name="small/EURUSD_1h_v1")
    assert exported.files == (target,)
    onnx.checker.check_model(target, full_check=True)
    model = TradingModel.load(path)
    for num_rows in (1, 2, 7):
        rows = raw_rows(model, num_rows)
        expected = expected_answer(model, rows)
        answer = run_onnx(target, rows)
        assert answer.shape == expected.shape
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the rows are told apart, so that equal answers say something


def test_onnx_says_what_it_takes_and_answers(stored: Callable[[str], StoredNetwork], tmp_path: Path) -> None:
    network = stored("gru of two symbols")
    export_model(network.path, tmp_path / "model.onnx", ExportFormat.ONNX, name="small/X_v1")
    graph = onnx.load(tmp_path / "model.onnx")
    properties = {own.key: own.value for own in graph.metadata_props}
    assert properties["ktrdr.model"] == "small/X_v1"
    assert properties["ktrdr.artifact_digest"] == artifact_digest(network.path)
    assert json.loads(properties["ktrdr.feature_names"]) == list(network.split.feature_names)
    assert json.loads(properties["ktrdr.classes"]) == ["BUY", "HOLD", "SELL"]
    assert (properties["ktrdr.output"], properties["ktrdr.window_bars"]) == ("probabilities", "5")
    (given,) = graph.graph.input
    sizes = [own.dim_param or own.dim_value for own in given.type.tensor_type.shape.dim]
    assert (given.name, sizes[1:]) == ("features", [5, len(network.split.feature_names)])
    assert isinstance(sizes[0], str)
    assert [own.name for own in graph.graph.output] == ["probabilities"]


def test_regression_answers_a_return_and_has_no_classes(stored: Callable[[str], StoredNetwork], tmp_path: Path) -> None:
    export_model(stored("regression of a window").path, tmp_path / "model.onnx", ExportFormat.ONNX, name="r")
    graph = onnx.load(tmp_path / "model.onnx")
    properties = {own.key: own.value for own in graph.metadata_props}
    assert (properties["ktrdr.output"], properties["ktrdr.classes"]) == ("forward_return", "[]")


def test_large_weights_go_into_a_file_beside_the_graph(stored: Callable[[str], StoredNetwork], tmp_path: Path) -> None:
    path = stored("mlp").path
    target = tmp_path / "model.onnx"
    exported = export_model(path, target, ExportFormat.ONNX, name="small/EURUSD_1h_v1", inline_weights_bytes=100)
    assert exported.files == (target, tmp_path / "model.onnx.data")
    assert exported.size_bytes == sum(entry.stat().st_size for entry in tmp_path.iterdir())
    model = TradingModel.load(path)
    rows = raw_rows(model, 3)
    np.testing.assert_allclose(run_onnx(target, rows), expected_answer(model, rows), rtol=1e-5, atol=1e-6)
    with pytest.raises(AlreadyExistsError):
        export_model(path, target, ExportFormat.ONNX, name="x", inline_weights_bytes=100)
    target.unlink()
    with pytest.raises(AlreadyExistsError, match=r"model\.onnx\.data"):
        export_model(path, target, ExportFormat.ONNX, name="x", inline_weights_bytes=100)


@pytest.mark.parametrize(
    ("export_format", "derived"), list(zip((ExportFormat.PT, ExportFormat.FULL), DERIVED_FILES, strict=True))
)
def test_torch_files_are_those_of_the_store(
    stored: Callable[[str], StoredNetwork], tmp_path: Path, export_format: ExportFormat, derived: str
) -> None:
    path = stored("lstm").path
    target = tmp_path / "other-name.pt"
    export_model(path, target, export_format, name="small/EURUSD_1h_v1")
    content = torch.load(target, weights_only=True)
    state = content if export_format is ExportFormat.PT else content["state_dict"]
    weights = load_file(path / WEIGHTS_FILE)
    assert {name: tensor.numpy().tobytes() for name, tensor in state.items()} == {
        name: tensor.tobytes() for name, tensor in weights.items()
    }
    derive_torch_files(path)
    try:
        assert target.read_bytes() == (path / derived).read_bytes()
    finally:
        for name in DERIVED_FILES:
            (path / name).unlink()


@pytest.mark.parametrize("export_format", ExportFormat)
def test_file_that_is_there_is_replaced_only_by_force(
    stored: Callable[[str], StoredNetwork], tmp_path: Path, export_format: ExportFormat
) -> None:
    path = stored("mlp").path
    target = tmp_path / "model"
    target.write_text("precious")
    with pytest.raises(AlreadyExistsError, match="is there already; name another file, or replace it with --force"):
        export_model(path, target, export_format, name="x")
    assert target.read_text() == "precious"
    export_model(path, target, export_format, name="x", force=True)
    assert target.stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [target]


def test_place_that_takes_no_file_is_refused(stored: Callable[[str], StoredNetwork], tmp_path: Path) -> None:
    path = stored("mlp").path
    with pytest.raises(NotFoundError, match="there is no directory"):
        export_model(path, tmp_path / "nowhere" / "model.pt", ExportFormat.PT, name="x")
    with pytest.raises(AlreadyExistsError, match="name a file"):
        export_model(path, tmp_path, ExportFormat.PT, name="x", force=True)


@pytest.mark.parametrize("export_format", ExportFormat)
def test_damaged_model_is_not_exported(
    stored: Callable[[str], StoredNetwork], tmp_path: Path, export_format: ExportFormat
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for entry in stored("mlp").path.iterdir():
        (damaged / entry.name).write_bytes(entry.read_bytes())
    weights = damaged / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CorruptDataError):
        export_model(damaged, tmp_path / "model.out", export_format, name="x")
    assert list(tmp_path.iterdir()) == [damaged]


def test_weights_of_another_network_are_refused_before_it_is_built(
    stored: Callable[[str], StoredNetwork], tmp_path: Path
) -> None:
    for entry in stored("mlp").path.iterdir():
        (tmp_path / entry.name).write_bytes(entry.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_config"]["network"]["hidden_layers"] = [10**9, 10**9]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CorruptDataError, match="are not those of its network"):
        TradingModel.load(tmp_path)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_missing_package_is_named_with_the_way_out(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from ktrdr_core.training.onnx_export import check_onnx_packages\n"
        "check_onnx_packages()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "pip install 'ktrdr[onnx]'" in done.stderr.splitlines()[-1]
