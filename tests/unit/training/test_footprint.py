from __future__ import annotations

from typing import Any

import pytest

from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import InvalidSpecError
from ktrdr_core.training.footprint import check_footprint
from ktrdr_core.training.preflight import prepare_strategy
from tests.kit.builders import strategy_text

MILLION = 1_000_000


def check(num_bars: int, **overrides: Any) -> None:
    strategy, config = prepare_strategy(TrainingSpec(strategy_yaml=strategy_text(**overrides)))  # checks the networks
    check_footprint(strategy, config["model_config"], num_bars)


@pytest.mark.parametrize(
    ("num_bars", "overrides"),
    [
        (10 * MILLION, {}),
        (MILLION, {"model.features.lookback_periods": 199}),
        (100_000, {"validation": {"method": "purged_k_fold", "folds": 20, "seeds": 10}}),
        (MILLION, {"model.architecture.hidden_layers": [4_096, 4_096]}),
        (MILLION, {"model.type": "transformer", "model.features.lookback_periods": 500}),
        (MILLION, {"model.training.batch_size": MILLION}),
    ],
    ids=["long", "wide", "folds", "large network", "large windows", "one batch"],
)
def test_large_training_passes(num_bars: int, overrides: dict[str, Any]) -> None:
    check(num_bars, **overrides)


@pytest.mark.parametrize(
    ("num_bars", "overrides", "field", "text"),
    [
        (
            600,
            {"model.architecture.hidden_layers": [65_536, 65_536]},
            "model.architecture.hidden_layers",
            r"the network has 4,296,278,019 weights for 15 features, and at most 134,217,728 are allowed; use",
        ),
        (
            600,
            {
                "model.architecture.hidden_layers": [2_048, 2_048],
                "validation": {"method": "repeated_seeds", "folds": 64},
            },
            "model.architecture.hidden_layers",
            "65 networks have .* or fewer folds",
        ),
        (
            MILLION,
            {"model.features.lookback_periods": 1_000},
            "model.features.lookback_periods",
            r"1,000,000 bars with 5,005 features take 37.3 GiB, and at most 8.0 are allowed",
        ),
        (
            MILLION,
            {"model.features.lookback_periods": 99, "validation": {"method": "walk_forward", "folds": 5}},
            "model.features.lookback_periods",
            "500 features and 5 folds take 13.0 GiB",
        ),
        (
            MILLION,
            {"model.type": "lstm", "model.features.lookback_periods": 1_000, "model.training.batch_size": 20_000},
            "model.training.batch_size",
            r"a batch of 20,000 rows takes \S+ GiB in this lstm, and at most 4.0 are allowed; lower batch_size",
        ),
    ],
    ids=["network", "networks of seeds", "lags", "folds", "windows"],
)
def test_training_too_large_for_a_machine_is_refused_by_the_key_to_change(
    num_bars: int, overrides: dict[str, Any], field: str, text: str
) -> None:
    with pytest.raises(InvalidSpecError, match=text) as caught:
        check(num_bars, **overrides)
    assert [violation.field for violation in caught.value.violations] == [field]
