"""From a Parquet file to features and labels, against the same path in pandas as it is usually written.

The path: load, 30 indicators, three fuzzy sets each, the feature matrix (90 columns of float32), zigzag labels. Bars
are a moving-block bootstrap of the shipped EURUSD hours (`bar_series`). Ours runs in a process of its own, so that its
peak memory is that of the path with the interpreter and every library; the other side (`pandas_path`) costs the same
per bar at any length, is run on fewer bars, and is scaled.

`python -m benchmarks.feature_path` prints every figure, with those of the parts.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from benchmarks.bar_series import bootstrap_bars
from benchmarks.pandas_path import INDICATORS, run_pandas_path
from benchmarks.report import BenchRow
from benchmarks.sample import REPOSITORY, STRATEGY
from ktrdr_core.config.loader import load_strategy, strategy_from_dict
from ktrdr_core.config.strategy import IndicatorConfig, StrategyConfig
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.datasets.leakage import check_leakage
from ktrdr_core.datasets.series_features import compute_symbol_indicators, compute_symbol_memberships
from ktrdr_core.features.engineer import FeatureMatrix, build_features
from ktrdr_core.indicators.compute import compute_indicators
from ktrdr_core.labels.labels import Labels
from ktrdr_core.labels.registry import generate_labels

MILLION = 1_000_000
SETS_SAMPLE_BARS = 20_000
MIN_RATIO, MAX_SECONDS, MAX_MEMORY, MAX_SPREAD = 50, 3.0, 4.0, 1.5


def build_strategy(bars: Bars) -> StrategyConfig:
    """Return a strategy of all the indicators, each with three triangles around the mean of its first values."""
    configs = [IndicatorConfig.model_validate({"name": name, "feature_id": name}) for name in INDICATORS]
    values = compute_indicators(bars.head(SETS_SAMPLE_BARS), configs, wanted=INDICATORS)
    raw = load_strategy(STRATEGY).to_dict()
    raw["indicators"] = [{"name": name, "feature_id": name} for name in INDICATORS]
    raw["fuzzy_sets"] = {}
    for name, values_T in values.items():
        middle, spread = float(np.nanmean(values_T)), float(np.nanstd(values_T))
        raw["fuzzy_sets"][name] = {
            set_name: {"type": "triangular", "parameters": [middle + step * spread for step in points]}
            for set_name, points in (("low", (-2, -1, 0)), ("middle", (-1, 0, 1)), ("high", (0, 1, 2)))
        }
    raw["model"]["features"] = {"lookback_periods": 0}
    return strategy_from_dict(raw)


def write_parquet(bars: Bars, directory: Path) -> Path:
    """Write bars as a file that both sides read."""
    path = directory / f"{bars.symbol}_{bars.timeframe}.parquet"
    columns = {name: getattr(bars, name) for name in BAR_COLUMNS}
    parquet.write_table(pa.table({"timestamp": pa.array(bars.times, pa.timestamp("ns", tz="UTC"))} | columns), path)
    return path


def run_our_path(
    directory: Path, strategy: StrategyConfig
) -> tuple[dict[str, float], SymbolBars, FeatureMatrix, Labels]:
    """Go the whole path; return the seconds of each part and what came out."""
    clock = [time.perf_counter()]
    names = ["load", "indicators", "memberships", "features", "labels"]

    def lap() -> None:
        clock.append(time.perf_counter())

    bars = SymbolBars(DirectoryBarStore(directory).load("EURUSD", "1h"))
    lap()
    values = compute_symbol_indicators(bars, strategy)
    lap()
    memberships = compute_symbol_memberships(values, bars, strategy)
    lap()
    features = build_features(memberships, values, bars)
    lap()
    labels = generate_labels(bars.base, strategy.training.labels)
    lap()
    parts = {name: end - begin for name, begin, end in zip(names, clock, clock[1:], strict=False)}
    return parts, bars, features, labels


def _child(directory: Path, strategy_path: Path, repeats: int, *, with_gate: bool) -> dict[str, Any]:
    """Go our path several times in this process; return the quickest, and the peak memory of all."""
    strategy = strategy_from_dict(json.loads(strategy_path.read_text()))
    runs: list[dict[str, float]] = []
    matrix_bytes = gate_s = peak_bytes = 0.0
    for _ in range(repeats):
        parts, bars, features, labels = run_our_path(directory, strategy)
        runs.append(parts)
        matrix_bytes = features.X.nbytes
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if len(runs) < repeats:
            del bars, features, labels  # or the next would stand beside them
    if with_gate:
        begin = time.perf_counter()
        check_leakage(bars, features, labels, strategy, seed=1)
        gate_s = time.perf_counter() - begin
    best = min(runs, key=lambda parts: sum(parts.values()))
    return {"parts": best, "total_s": sum(best.values()), "peak": peak_bytes, "matrix": matrix_bytes, "gate_s": gate_s}


def measure_our_path(bars: Bars, strategy: StrategyConfig, *, repeats: int, with_gate: bool = False) -> dict[str, Any]:
    """Go our path in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_parquet(bars, directory)
        strategy_path = directory / "strategy.json"
        strategy_path.write_text(json.dumps(strategy.to_dict()))
        command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "benchmarks.feature_path"]
        command += ["--child", str(directory), str(strategy_path), str(repeats), "gate" if with_gate else "path"]
        completed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(completed.stdout)
    return measured


def _seconds(body: Callable[[], object]) -> float:
    begin = time.perf_counter()
    body()
    return time.perf_counter() - begin


def run(quick: bool) -> list[BenchRow]:
    """Measure both paths, memory and linearity."""
    sizes = (5_000, 50_000, 250_000) if quick else (5_000, 50_000, 500_000, MILLION)
    num_pandas_bars, repeats = (4_000, 2) if quick else (20_000, 3)
    bars = bootstrap_bars(sizes[-1])
    strategy = build_strategy(bars)
    with tempfile.TemporaryDirectory() as scratch:
        path = write_parquet(bars.head(num_pandas_bars), Path(scratch))
        seconds = [_seconds(lambda: run_pandas_path(path, strategy)) for _ in range(1 if quick else 2)]
    pandas_s = min(seconds) * sizes[-1] / num_pandas_bars
    measured = {
        size: measure_our_path(
            bars.head(size), strategy, repeats=repeats if size > 100_000 else 20, with_gate=size == sizes[-1]
        )
        for size in sizes
    }
    ours = measured[sizes[-1]]
    per_bar = {size: own["total_s"] / size for size, own in measured.items()}
    spread = max(per_bar.values()) / min(per_bar.values())
    subject = f"features and labels of {sizes[-1]:,} bars"
    rows = [
        BenchRow(
            name=f"{subject}: load, 30 indicators, 90 fuzzy sets, labels",
            value=ours["total_s"],
            unit="s",
            baseline_name=f"pandas as usually written ({num_pandas_bars:,} bars, scaled)",
            baseline_value=pandas_s,
            ratio=pandas_s / ours["total_s"],
            aim=f">= {MIN_RATIO}x" + ("" if quick else f", < {MAX_SECONDS:g} s"),
        ),
        BenchRow(
            name=f"{subject}: peak memory of the process over the matrix ({ours['matrix'] / 2**20:.0f} MiB)",
            value=ours["peak"] / ours["matrix"],
            unit="x",
            aim=f"< {MAX_MEMORY:g}x at a million bars",
        ),
        BenchRow(
            name="cost of a bar at " + ", ".join(f"{size:,}: {1e6 * per_bar[size]:.2f} us" for size in sizes),
            value=spread,
            unit="x between the largest and the smallest",
            aim=f"about {MAX_SPREAD:g}x",
        ),
        BenchRow(
            name=f"leakage gate at {sizes[-1]:,} bars",
            value=ours["gate_s"],
            unit="s",
            baseline_name="the path itself",
            baseline_value=ours["total_s"],
            aim="at most twice the path",
        ),
    ]
    if __name__ == "__main__":
        print({size: own["parts"] for size, own in measured.items()})
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _, _, directory, strategy_path, repeats, mode = sys.argv
        print(json.dumps(_child(Path(directory), Path(strategy_path), int(repeats), with_gate=mode == "gate")))
    else:
        print(*run(quick="--quick" in sys.argv), sep="\n")
