from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.errors import CancellationError, InvalidInputError
from ktrdr_core.evaluation.decisions import classes
from ktrdr_core.evaluation.determinism import deterministic_torch
from ktrdr_core.evaluation.importance import ImportanceReport, permutation_importance
from ktrdr_core.features.engineer import FeatureColumn
from ktrdr_core.models.network import Network
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network

COLUMNS = (
    FeatureColumn("rsi_14.low", "rsi_14", "1h"),
    FeatureColumn("rsi_14.high", "rsi_14", "1h"),
    FeatureColumn("sma_20.below", "sma_20", "1h"),
    FeatureColumn("rsi_14.low@4h", "rsi_14", "4h"),
    FeatureColumn("sma_20.below@4h", "sma_20", "4h"),
    FeatureColumn("price.return_1", "price", "1h"),
)
GROUPS = {
    ("indicator", "rsi_14"): [0, 1, 3],
    ("indicator", "sma_20"): [2, 4],
    ("indicator", "price"): [5],
    ("timeframe", "1h"): [0, 1, 2, 5],
    ("timeframe", "4h"): [3, 4],
}
RETURN_LABELS = LabelsConfig(source="forward_return", label_lookahead=4, buy_threshold=0.05, sell_threshold=0.1)


def make_part(num_rows: int, seed: int = 9, *, window_bars: int = 1, num_symbols: int = 0) -> DatasetPart:
    """Return rows whose class follows the first three columns."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(num_rows + window_bars - 1, len(COLUMNS))).astype(np.float32)
    symbol_ids = rng.integers(0, max(num_symbols, 1), size=num_rows)
    if num_symbols:
        matrix = np.concatenate([matrix, np.eye(num_symbols, dtype=np.float32)[symbol_ids]], axis=1)
    return DatasetPart(
        matrix=np.ascontiguousarray(matrix),
        rows=np.arange(window_bars - 1, len(matrix)),
        y=matrix[window_bars - 1 :, :3].argmax(axis=1).astype(np.int64),
        times=np.arange(num_rows, dtype=np.int64),
        symbol_ids=symbol_ids,
        targets=np.empty(0, dtype=np.float32),
        window_bars=window_bars,
    )


def make_network(**spec: Any) -> Network:
    chosen: dict[str, Any] = {"type": "mlp", "input_size": len(COLUMNS), "hidden_layers": (8, 5)}
    return build_network(NetworkSpec(**{**chosen, **spec}), seed=3)


class LargestOfThree(nn.Module):
    """Answers the class of the largest of the first three columns: always right on `make_part`."""

    def __init__(self, num_columns: int = len(COLUMNS)) -> None:
        super().__init__()
        self.weight = torch.eye(3, num_columns)

    def first_affine(self) -> tuple[Tensor, Tensor]:
        return self.weight, torch.zeros(3)

    def tail(self, z_BH: Tensor) -> Tensor:
        return z_BH

    def forward(self, x_BF: Tensor) -> Tensor:
        return x_BF @ self.weight.T


def slow_importance(
    model: nn.Module, part: DatasetPart, seed: int, repeats: int, groups: dict[Any, list[int]]
) -> dict[Any, float]:
    """Shuffle a copy of the rows, run the whole network and compare the accuracy, for each group and repeat."""

    def score(X: np.ndarray) -> float:
        with deterministic_torch("cpu"), torch.inference_mode():
            outputs = model(torch.from_numpy(X)).numpy()
        kind = "linear" if outputs.shape[1] == 1 else "softmax"
        return float(np.mean(classes(outputs, kind, RETURN_LABELS) == part.y))

    model.eval()
    rows = np.array(part.X)
    found = {}
    for name, members in groups.items():
        scores = []
        for repeat in range(repeats):
            order = np.random.default_rng([seed, 1, repeat]).permutation(len(rows))
            X = rows.copy()
            X[..., members] = rows[order][..., members]
            scores.append(score(X))
        found[name] = score(rows) - float(np.mean(scores))
    return found


def means(report: ImportanceReport) -> dict[Any, float]:
    features = {one["name"]: one["mean"] for one in report.features}
    return features | {(one["kind"], one["name"]): one["mean"] for one in report.groups}


EVERYTHING: dict[Any, list[int]] = {column.name: [index] for index, column in enumerate(COLUMNS)} | GROUPS


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_importance_equals_that_of_shuffled_copies_and_whole_forward_passes(activation: str) -> None:
    model, part = make_network(activation=activation), make_part(1_500)
    found = permutation_importance(model, part, COLUMNS, seed=4, repeats=3)
    assert means(found) == pytest.approx(slow_importance(model, part, 4, 3, EVERYTHING), abs=1e-9)
    assert (found.judged_rows, found.part_rows, found.repeats) == (1_500, 1_500, 3)


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "lstm", "hidden_layers": (7,), "activation": "tanh"},
        {"type": "transformer", "hidden_layers": (8,), "d_model": 8, "num_heads": 2},
    ],
)
def test_importance_of_windows_equals_that_of_shuffled_windows(spec: dict[str, Any]) -> None:
    model, part = make_network(window_bars=4, **spec), make_part(300, window_bars=4)
    found = permutation_importance(model, part, COLUMNS, seed=4, repeats=2)
    assert means(found) == pytest.approx(slow_importance(model, part, 4, 2, EVERYTHING), abs=1e-9)


def test_importance_of_a_symbol_embedding_equals_that_of_shuffled_copies() -> None:
    model = make_network(input_size=len(COLUMNS) + 3, num_symbols=3, symbol_embedding_dim=2)
    part = make_part(700, num_symbols=3)
    identity = tuple(FeatureColumn(f"symbol.{name}", "symbol", "1h") for name in "ABC")
    found = means(permutation_importance(model, part, COLUMNS + identity, seed=4, repeats=2))
    expected = slow_importance(model, part, 4, 2, {("indicator", "symbol"): [6, 7, 8], "symbol.B": [7]})
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_importance_of_a_regression_is_that_of_the_classes_of_its_thresholds() -> None:
    model, part = make_network(num_outputs=1, output_activation="linear"), make_part(800)
    found = permutation_importance(model, part, COLUMNS, seed=4, repeats=2, labels=RETURN_LABELS)
    assert means(found) == pytest.approx(slow_importance(model, part, 4, 2, EVERYTHING), abs=1e-9)


def test_regression_without_thresholds_is_refused() -> None:
    model = make_network(num_outputs=1, output_activation="linear")
    with pytest.raises(InvalidInputError, match="buy_threshold"):
        permutation_importance(model, make_part(50), COLUMNS, seed=4)


def test_features_that_decide_matter_and_the_others_have_exactly_none() -> None:
    found = permutation_importance(LargestOfThree(), make_part(2_000), COLUMNS, seed=1)
    for one in found.features[:3]:
        assert 0.1 < one["lower"] < one["mean"] < one["upper"] < 0.6
    for one in found.features[3:]:
        assert (one["mean"], one["lower"], one["upper"]) == (0.0, 0.0, 0.0)


def test_shuffling_everything_leaves_the_accuracy_of_chance() -> None:
    columns = [FeatureColumn(column.name, "all", "1h") for column in COLUMNS]
    found = permutation_importance(LargestOfThree(), make_part(3_000), columns, seed=1)
    assert [one["num_features"] for one in found.groups] == [6, 6]
    for one in found.groups:
        assert one["lower"] < 2 / 3 < one["upper"]
        assert one["mean"] == pytest.approx(2 / 3, abs=0.02)


def test_copies_of_a_feature_matter_only_together() -> None:
    part = make_part(2_000)
    matrix = part.matrix.copy()
    matrix[:, 3] = matrix[:, 0]
    model = LargestOfThree()
    model.weight = torch.tensor([[0.5, 0, 0, 0.5, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    copied = DatasetPart.from_rows(matrix, part.y)
    columns = [FeatureColumn(column.name, "ab"[index in (1, 2, 4, 5)], "1h") for index, column in enumerate(COLUMNS)]
    found = permutation_importance(model, copied, columns, seed=1)
    together = next(one for one in found.groups if one["name"] == "a")
    assert together["num_features"] == 2
    assert together["lower"] > max(found.features[0]["upper"], found.features[3]["upper"])


def test_interval_holds_what_other_rows_and_seeds_find() -> None:
    model = LargestOfThree()
    reports = [permutation_importance(model, make_part(600, seed), COLUMNS, seed=seed) for seed in range(60)]
    truth = permutation_importance(model, make_part(60_000, 1_000), COLUMNS, seed=1).features[0]["mean"]
    covered = [report.features[0]["lower"] <= truth <= report.features[0]["upper"] for report in reports]
    assert np.mean(covered) >= 0.85  # 95 % of many; below 51 of 60 has a probability of 0.002


def test_importance_depends_on_the_seed_alone() -> None:
    model, part = make_network(), make_part(400)
    first, again, other = (permutation_importance(model, part, COLUMNS, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.features != other.features


def test_importance_of_a_feature_does_not_depend_on_the_others_that_are_asked_about() -> None:
    model, part = LargestOfThree(), make_part(500)
    renamed = [FeatureColumn(column.name, f"own_{column.name}", column.timeframe) for column in COLUMNS]
    one = permutation_importance(model, part, COLUMNS, seed=1).features
    assert permutation_importance(model, part, renamed, seed=1).features == one


def test_part_of_one_row_says_nothing_for_certain() -> None:
    found = permutation_importance(LargestOfThree(), make_part(1), COLUMNS, seed=1)
    assert [(one["lower"], one["upper"]) for one in found.features] == [(-1.0, 1.0)] * len(COLUMNS)


def test_windows_are_sampled_and_a_short_training_samples_fewer() -> None:
    model = make_network(type="gru", window_bars=3, hidden_layers=(4,), activation="tanh")
    part = make_part(2_500, window_bars=3)
    judged = [
        permutation_importance(model, part, COLUMNS, seed=1, repeats=1, trained_rows=trained).judged_rows
        for trained in (None, 10**9, 5_000, 1)
    ]
    # 6 features and 4 groups that are none of them, 2 windows for each row trained on.
    assert judged == [2_000, 2_000, 1_000, 200]


def test_rows_are_thinned_out_only_for_a_short_training() -> None:
    part = make_part(12_000)
    judged = [
        permutation_importance(LargestOfThree(), part, COLUMNS, seed=1, repeats=1, trained_rows=trained).judged_rows
        for trained in (None, 18_000, 1)
    ]
    # 6 features and 4 groups that are none of them, 6 rows for each row trained on, never below 10,000.
    assert judged == [12_000, 10_800, 10_000]


def test_model_keeps_its_mode() -> None:
    model = make_network(dropout=0.5)
    model.train()
    first = permutation_importance(model, make_part(200), COLUMNS, seed=1)
    assert model.training
    model.eval()
    assert permutation_importance(model, make_part(200), COLUMNS, seed=1) == first
    assert not model.training


@pytest.mark.parametrize("window_bars", [1, 5])
def test_check_may_end_it_at_any_call_and_is_called_often(window_bars: int) -> None:
    spec = {} if window_bars == 1 else {"type": "lstm", "window_bars": window_bars, "activation": "tanh"}
    model, part = make_network(**spec), make_part(3_000, window_bars=window_bars)
    calls: list[float] = []

    def check() -> None:
        calls.append(time.thread_time())
        if len(calls) == 30:
            raise CancellationError

    with pytest.raises(CancellationError):
        permutation_importance(model, part, COLUMNS, seed=1, check=check)
    assert len(calls) == 30
    assert np.median(np.diff(calls)) < 0.05
