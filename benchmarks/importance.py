"""Permutation importance against the straightforward way: copy the rows, shuffle a column, run the whole network.

100 features, 50,000 rows, 5 repeats of a [50, 25] MLP on one thread. Ours answers for every feature and, beside them,
for every indicator (three features each) and timeframe; the straightforward way for the features alone, and of those it
is timed on some and scaled up, for each takes the same.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import torch

from benchmarks.report import BenchRow
from ktrdr_core.datasets.dataset import DatasetPart
from ktrdr_core.evaluation.importance import permutation_importance
from ktrdr_core.features.engineer import FeatureColumn
from ktrdr_core.models.network_spec import NetworkSpec
from ktrdr_core.models.registry import build_network

NUM_FEATURES = 100
HIDDEN_LAYERS = (50, 25)
REPEATS = 5
SETS_PER_INDICATOR = 3
AIM_S = 5.0


def _make_part(num_rows: int) -> DatasetPart:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(num_rows, NUM_FEATURES)).astype(np.float32)
    return DatasetPart.from_rows(X, rng.integers(0, 3, size=num_rows))


def _make_columns() -> tuple[FeatureColumn, ...]:
    return tuple(
        FeatureColumn(f"f{index}", f"indicator_{index // SETS_PER_INDICATOR}", "1h" if index < 60 else "4h")
        for index in range(NUM_FEATURES)
    )


def _shuffle_copies(model: torch.nn.Module, part: DatasetPart, num_features: int) -> list[float]:
    """Return the importance of the first `num_features` features, the straightforward way."""
    x, y = torch.from_numpy(part.X), torch.from_numpy(part.y)
    with torch.inference_mode():
        before = (model(x).argmax(dim=1) == y).float().mean().item()
        found = []
        for index in range(num_features):
            drops = []
            for repeat in range(REPEATS):
                order = np.random.default_rng([1, index, repeat]).permutation(len(x))
                shuffled = x.clone()
                shuffled[:, index] = x[torch.from_numpy(order), index]
                drops.append(before - (model(shuffled).argmax(dim=1) == y).float().mean().item())
            found.append(sum(drops) / REPEATS)
    return found


def run(quick: bool) -> list[BenchRow]:
    """Measure both in turn; the ratio is the median of the pairs'."""
    num_rows, num_timed, repeats = (10_000, 10, 3) if quick else (50_000, 20, 3)
    part, columns = _make_part(num_rows), _make_columns()
    model = build_network(
        NetworkSpec(type="mlp", input_size=NUM_FEATURES, hidden_layers=HIDDEN_LAYERS, dropout=0.2), seed=1
    )
    model.eval()
    checks: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = []
        for _ in range(repeats):
            begin_s = time.perf_counter()
            _shuffle_copies(model, part, num_timed)
            usual_s = (time.perf_counter() - begin_s) * NUM_FEATURES / num_timed
            begin_s = time.perf_counter()
            permutation_importance(
                model, part, columns, seed=1, repeats=REPEATS, check=lambda: checks.append(time.perf_counter())
            )
            pairs.append((usual_s, time.perf_counter() - begin_s))
    finally:
        torch.set_num_threads(threads)
    gaps_s = np.diff(checks)
    return [
        BenchRow(
            name=f"importance, {NUM_FEATURES} features and 36 groups x {num_rows:,} rows x {REPEATS}",
            value=median(ours for _, ours in pairs),
            unit="s",
            baseline_name="copy, shuffle, whole forward; features alone",
            baseline_value=median(usual for usual, _ in pairs),
            ratio=median(usual / ours for usual, ours in pairs),
            aim="" if quick else f"< {AIM_S:g} s",
        ),
        BenchRow(name="importance, time between checks: p99", value=1000 * float(np.quantile(gaps_s, 0.99)), unit="ms"),
    ]


if __name__ == "__main__":
    print(*run(quick=False), sep="\n")
