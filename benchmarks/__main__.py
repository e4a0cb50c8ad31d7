"""`python -m benchmarks [--quick] [--only NAME]`: run the benchmarks and print one table of ratios."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from typing import cast

from rich.console import Console
from rich.table import Table

from benchmarks.report import BenchRow

BENCHMARKS = (
    "feature_path",
    "training_speed",
    "importance",
    "cancel_latency",
    "cancel_by_state",
    "progress_latency",
    "watchers",
    "train_calls",
    "service_overhead",
    "service_start",
    "backend_load",
    "failover",
    "model_upload",
    "bars_to_trainer",
    "model_store",
)
_WIDTH_OF_A_FILE = 160


def build_table(rows: Sequence[BenchRow]) -> Table:
    table = Table(title="ktrdr benchmarks", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("against")
    table.add_column("ratio", justify="right")
    table.add_column("aim")
    for row in rows:
        against = row.baseline_name
        if row.baseline_value is not None:
            against += f" {row.baseline_value:,.4g} {row.unit}"
        table.add_row(
            row.name,
            f"{row.value:,.4g} {row.unit}",
            against,
            "" if row.ratio is None else f"{row.ratio:.2f}x",
            row.aim,
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter tries: about a minute, rougher figures")
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="run this one; may be repeated")
    arguments = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_A_FILE)
    progress = Console(stderr=True)
    rows: list[BenchRow] = []
    for name in arguments.only or BENCHMARKS:
        progress.print(f"{name} ...", end=" ")
        begin_s = time.monotonic()
        rows += cast(list[BenchRow], importlib.import_module(f"benchmarks.{name}").run(arguments.quick))
        progress.print(f"{time.monotonic() - begin_s:.0f} s")
    console.print(build_table(rows))


if __name__ == "__main__":
    main()
