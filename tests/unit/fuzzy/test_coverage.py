from __future__ import annotations

import numpy as np

from ktrdr_core.config.strategy import FuzzySetConfig
from ktrdr_core.fuzzy.coverage import measure_coverage
from ktrdr_core.fuzzy.memberships import BLOCK_ROWS
from ktrdr_core.fuzzy.timeframe_sets import NamedSet


def named(name: str, *parameters: float, kind: str = "triangular") -> NamedSet:
    config = FuzzySetConfig.model_validate({"type": kind, "parameters": list(parameters)})
    return NamedSet("rsi_14", "rsi_14", "rsi_14", name, config)


LOW, HIGH = named("low", 0, 20, 40), named("high", 60, 80, 100)


def test_values_between_the_sets_are_counted_and_one_is_shown() -> None:
    sample = np.array([10.0, 20, 50, 90, 55, 30, 70, 70, 70, 70])
    coverage = measure_coverage(sample, [LOW, HIGH], "1h")
    assert (coverage.num_values, coverage.num_uncovered, coverage.example) == (10, 2, 50.0)
    (warning,) = coverage.warnings()
    assert warning.startswith(
        "rsi_14 (1h): 20.0 % of the training part lies in none of its fuzzy sets, for example 50;"
    )


def test_five_per_cent_may_be_uncovered() -> None:
    covered = np.full(95, 20.0)
    assert measure_coverage(np.append(covered, [50.0] * 5), [LOW], "1h").warnings() == ()
    assert len(measure_coverage(np.append(covered, [50.0] * 6), [LOW], "1h").warnings()) == 1


def test_set_that_nothing_lies_in_is_named() -> None:
    coverage = measure_coverage(np.array([10.0, 20.0, 30.0]), [LOW, HIGH], "4h")
    assert coverage.inactive_sets == ("high",)
    assert coverage.warnings() == (
        "rsi_14 (4h): no value of the training part lies in its fuzzy set high; move or remove it",
    )


def test_tail_of_a_bell_is_not_in_the_set() -> None:
    far = measure_coverage(np.array([50.0]), [named("low", 20, 5, kind="gaussian")], "1h")
    assert far.num_uncovered == 1
    near = measure_coverage(np.array([26.0]), [named("low", 20, 5, kind="gaussian")], "1h")
    assert near.num_uncovered == 0


def test_many_blocks_count_as_one() -> None:
    sample = np.tile([20.0, 50.0, 80.0], BLOCK_ROWS)
    coverage = measure_coverage(sample, [LOW, HIGH], "1h")
    assert coverage.num_uncovered == BLOCK_ROWS
    assert coverage.inactive_sets == ()


def test_empty_sample_says_nothing() -> None:
    assert measure_coverage(np.empty(0), [LOW], "1h").warnings() == ()
