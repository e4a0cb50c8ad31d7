from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ktrdr_core.config.strategy import LabelsConfig
from ktrdr_core.errors import DegenerateLabelsError
from ktrdr_core.labels.labels import NO_LABEL
from ktrdr_core.labels.registry import LABEL_SOURCES, check_degenerate, check_degenerate_targets

KEYS: dict[str, dict[str, Any]] = {
    "zigzag": {"zigzag_threshold": 0.01},
    "zigzag_segments": {"zigzag_threshold": 0.01},
    "triple_barrier": {"profit_barrier": 0.01, "loss_barrier": 0.01},
    "forward_return": {"buy_threshold": 0.01, "sell_threshold": 0.01},
}


def config(source: str = "zigzag", **keys: Any) -> LabelsConfig:
    return LabelsConfig.model_validate({"source": source, "label_lookahead": 5, **KEYS[source], **keys})


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((0, 50, 50), "BUY 0, HOLD 50, SELL 50 of 100 rows"),
        ((2, 96, 2), "BUY 2, HOLD 96, SELL 2 of 100"),
        ((0, 0, 0), "BUY 0, HOLD 0, SELL 0 of 0"),
    ],
)
def test_degenerate_labels_are_refused_with_their_counts(counts: tuple[int, ...], shown: str) -> None:
    y = np.repeat(np.arange(3), counts)
    with pytest.raises(DegenerateLabelsError, match=shown):
        check_degenerate(y, config())
    check_degenerate(y, config(allow_degenerate_labels=True))


def test_labels_at_the_limit_are_accepted_and_missing_ones_do_not_count() -> None:
    check_degenerate(np.repeat([0, 1, 2, NO_LABEL], [2, 95, 3, 500]), config())


@pytest.mark.parametrize("source", LABEL_SOURCES)
def test_the_way_out_names_keys_of_the_source_that_the_strategy_takes(source: str) -> None:
    with pytest.raises(DegenerateLabelsError, match=f"^{source} labels") as caught:
        check_degenerate(np.zeros(10, dtype=np.int64), config(source))
    for key in (*KEYS[source], "label_lookahead"):
        assert key in caught.value.message
    others = {key for keys in KEYS.values() for key in keys} - set(KEYS[source])
    assert not any(key in caught.value.message for key in others)


def test_equal_returns_are_refused_for_a_regression() -> None:
    settings = config("forward_return")
    with pytest.raises(DegenerateLabelsError, match=r"all 3 are 0\.5; .*label_lookahead"):
        check_degenerate_targets(np.array([0.5, 0.5, np.nan, 0.5], dtype=np.float32), settings)
    with pytest.raises(DegenerateLabelsError, match="there are none"):
        check_degenerate_targets(np.full(3, np.nan, dtype=np.float32), settings)
    check_degenerate_targets(np.array([0.5, 0.25, np.nan], dtype=np.float32), settings)
    allowed = config("forward_return", allow_degenerate_labels=True)
    check_degenerate_targets(np.array([0.5, 0.5], dtype=np.float32), allowed)
