"""One row of the benchmark table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """A measured value beside the one it is judged against, both from the same run.

    Attributes:
        name: What was measured.
        value: The figure.
        unit: Its unit, for example "rows/s".
        baseline_name: What it is compared with; "" if with nothing.
        baseline_value: That figure; None if there is none.
        ratio: How many times better the value is than the baseline; None if there is none.
        aim: The aim in words, for example ">= 1.7x".
    """

    name: str
    value: float
    unit: str
    baseline_name: str = ""
    baseline_value: float | None = None
    ratio: float | None = None
    aim: str = ""
