"""The training every service benchmark runs: the shipped strategy on the shipped bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import BenchRow
from ktrdr_core.domain.spec import TrainingSpec

REPOSITORY = Path(__file__).resolve().parents[1]
BARS_DIR = REPOSITORY / "data"
STRATEGY = REPOSITORY / "strategies" / "neuro_mean_reversion.yaml"


def build_spec(epochs: int) -> TrainingSpec:
    return TrainingSpec(strategy_yaml=STRATEGY.read_text(), epochs=epochs, enable_gpu=False)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def latency_rows(name: str, seconds: Sequence[float], *, aim_p99_ms: float | None = None) -> list[BenchRow]:
    """Return p50, p99 and maximum in ms; the ratio of p99 says how many times it is below its aim."""
    p50, p99, largest = (1000 * quantile(seconds, share) for share in (0.5, 0.99, 1.0))
    return [
        BenchRow(name=f"{name}: p50 of {len(seconds)}", value=p50, unit="ms"),
        BenchRow(
            name=f"{name}: p99",
            value=p99,
            unit="ms",
            baseline_name="aim" if aim_p99_ms else "",
            baseline_value=aim_p99_ms,
            ratio=aim_p99_ms / p99 if aim_p99_ms else None,
            aim=f"< {aim_p99_ms:g} ms" if aim_p99_ms else "",
        ),
        BenchRow(name=f"{name}: max", value=largest, unit="ms"),
    ]
