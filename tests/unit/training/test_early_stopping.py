from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.config.model_sections import EarlyStoppingConfig, StoppingMetric
from ktrdr_core.training.early_stopping import EarlyStopping


def watch(config: EarlyStoppingConfig | None, values: list[float]) -> tuple[int, int | None]:
    """Return the best epoch, and the epoch after which waiting ended."""
    stopping = EarlyStopping(config)
    for epoch, value in enumerate(values, start=1):
        stopping.observe(epoch, value)
        if stopping.is_over:
            return stopping.best_epoch, epoch
    return stopping.best_epoch, None


def slow_watch(config: EarlyStoppingConfig, values: list[float]) -> tuple[int, int | None]:
    """The definition, looking back over all epochs at each one."""
    falls = config.metric == "val_loss"
    end = None
    for epoch in range(1, len(values) + 1):
        last_improvement, level = 0, None
        for index, value in enumerate(values[:epoch]):
            gain = -value if falls else value
            if level is None or gain > level + config.min_delta:
                last_improvement, level = index, gain
        if epoch - 1 - last_improvement >= config.patience:
            end = epoch
            break
    seen = values[:end]
    best = min(seen) if falls else max(seen)
    return seen.index(best) + 1, end


@given(
    values=st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=40),
    metric=st.sampled_from(["val_loss", "val_accuracy", "val_balanced_accuracy", "val_mcc"]),
    patience=st.integers(1, 6),
    min_delta=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_best_epoch_and_end_are_those_of_the_slow_definition(
    values: list[float], metric: StoppingMetric, patience: int, min_delta: float
) -> None:
    config = EarlyStoppingConfig(metric=metric, patience=patience, min_delta=min_delta)
    assert watch(config, values) == slow_watch(config, values)


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("val_loss", [3.0, 2.0, 2.5, 2.4, 1.0], (2, 4)),
        ("val_mcc", [0.1, 0.3, 0.2, 0.3, 0.9], (2, 4)),
        ("val_accuracy", [0.5, 0.4, 0.6, 0.5], (3, None)),
    ],
)
def test_training_ends_after_patience_epochs_without_a_better_value(
    metric: StoppingMetric, values: list[float], expected: tuple[int, int | None]
) -> None:
    assert watch(EarlyStoppingConfig(metric=metric, patience=2), values) == expected


def test_gains_below_min_delta_do_not_prolong_but_still_make_the_best_epoch() -> None:
    config = EarlyStoppingConfig(metric="val_loss", patience=3, min_delta=0.5)
    assert watch(config, [2.0, 1.9, 1.8, 1.7, 1.0]) == (4, 4)


def test_nothing_ends_without_early_stopping_and_the_lowest_loss_is_best() -> None:
    assert watch(None, [2.0, 1.0, 3.0, 3.0, 3.0, 3.0]) == (2, None)


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=20), cut=st.integers(1, 19))
def test_restored_it_goes_on_as_if_nothing_had_happened(values: list[float], cut: int) -> None:
    config = EarlyStoppingConfig(metric="val_mcc", patience=3, min_delta=0.05)
    whole, resumed = EarlyStopping(config), EarlyStopping(config)
    for epoch, value in enumerate(values, start=1):
        if epoch == cut:
            resumed.restore(json.loads(json.dumps(whole.state())))
        is_best = whole.observe(epoch, value)
        assert epoch < cut or resumed.observe(epoch, value) == is_best
    if cut <= len(values):
        assert whole.state() == resumed.state()
