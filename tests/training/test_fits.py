"""What is fitted is fitted on training rows alone: of the training itself, and of each fold its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import Bars, IntArray
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.training.fold_lanes import build_fold_splits
from ktrdr_core.training.pipeline import IndicatorValues, PriceData, TrainingPipeline
from tests.kit.builders import make_bars, strategy

QUANTILES = {
    "low": {"type": "quantile", "parameters": [0.1, 0.4], "shoulder": "left"},
    "middle": {"type": "quantile", "parameters": [0.1, 0.5, 0.9]},
}
NUM_BARS = 900


class Recorder(TrainingPipeline):
    """Keeps what the fuzzy sets were fitted on."""

    def __init__(self, bar_store: DirectoryBarStore) -> None:
        super().__init__(bar_store)
        self.fits: list[dict[str, IntArray]] = []

    def refit_fuzzy_sets(
        self,
        indicator_values: IndicatorValues,
        price_data: PriceData,
        strategy: StrategyConfig,
        fit_rows: Mapping[str, IntArray],
    ) -> StrategyConfig:
        self.fits.append(dict(fit_rows))
        return super().refit_fuzzy_sets(indicator_values, price_data, strategy, fit_rows)


def changed_from(bars: Bars, bar: int) -> Bars:
    """Return bars whose prices double, bar by bar, from `bar` on."""
    factor = np.where(np.arange(len(bars)) >= bar, 2.0 ** (np.arange(len(bars)) % 2), 1.0)
    return replace(bars, **{name: getattr(bars, name) * factor for name in ("open", "high", "low", "close")})


def fit(store: DirectoryBarStore, bars: Bars, config: StrategyConfig) -> tuple[dict[str, Any], DataSplit]:
    """Return the fitted sets, and the split that is scaled by its training part."""
    pipeline, price_data = TrainingPipeline(store), {"EURUSD": SymbolBars(bars)}
    shares = config.training.data_split
    assert shares is not None
    values = pipeline.calculate_indicators(price_data, config)
    fitted, _ = pipeline.fit_fuzzy_sets(values, price_data, config, shares)
    memberships = pipeline.generate_fuzzy_memberships(values, price_data, fitted)
    features = pipeline.engineer_features(memberships, values, price_data)
    labels = pipeline.generate_labels(price_data, config)
    rows = pipeline.combine_multi_symbol_data(features, labels, price_data)
    split = pipeline.split_data(rows, config, shares, columns=features["EURUSD"].columns)
    return fitted.to_dict()["fuzzy_sets"], split


@pytest.mark.parametrize("scaling", ["standard", "robust", "min_max"])
def test_fits_of_a_training_do_not_change_with_what_follows_its_training_part(
    bar_store: DirectoryBarStore, scaling: str
) -> None:
    config = strategy(**{"fuzzy_sets.rsi": QUANTILES, "model.features.scaling": scaling})
    bars = make_bars(NUM_BARS)
    sets, split = fit(bar_store, bars, config)
    validation_bar = int(np.searchsorted(bars.times, split.validation.times[0]))
    other_sets, other_split = fit(bar_store, changed_from(bars, validation_bar), config)
    assert other_sets == sets
    assert other_split.scaler.to_dict() == split.scaler.to_dict()
    np.testing.assert_array_equal(other_split.train.X, split.train.X)
    last_bar = int(np.searchsorted(bars.times, split.train.times[-1]))
    changed_sets, _ = fit(bar_store, changed_from(bars, last_bar - 100), config)
    assert changed_sets != sets, "a change within the training part must show, or this test shows nothing"


@pytest.mark.parametrize("method", ["walk_forward", "purged_k_fold"])
def test_sets_of_a_fold_are_fitted_on_its_own_training_rows(bar_store: DirectoryBarStore, method: str) -> None:
    config = strategy(**{"fuzzy_sets.rsi": QUANTILES, "validation": {"method": method, "folds": 3}})
    shares, validation = config.training.data_split, config.validation
    assert shares is not None
    assert validation is not None
    pipeline = Recorder(bar_store)
    price_data = {name: SymbolBars(make_bars(n, seed, symbol=name)) for name, n, seed in (("A", 800, 1), ("B", 700, 2))}
    values = pipeline.calculate_indicators(price_data, config)
    fitted, _ = pipeline.fit_fuzzy_sets(values, price_data, config, shares)
    memberships = pipeline.generate_fuzzy_memberships(values, price_data, fitted)
    features = pipeline.engineer_features(memberships, values, price_data)
    labels = pipeline.generate_labels(price_data, config)
    rows = pipeline.combine_multi_symbol_data(features, labels, price_data)
    main = pipeline.split_data(rows, config, shares, columns=features["A"].columns)
    pipeline.fits.clear()
    folds = build_fold_splits(
        pipeline,
        rows=rows,
        main=main,
        labels=labels,
        price_data=price_data,
        indicator_values=values,
        strategy=config,
        shares=shares,
        validation=validation,
        check=lambda: None,
    )
    assert len(pipeline.fits) == len(folds) == 3
    for fit_rows, fold in zip(pipeline.fits, folds, strict=True):
        for symbol_id, symbol in enumerate(fold.symbols):
            own = fold.train.times[fold.train.symbol_ids == symbol_id]
            np.testing.assert_array_equal(price_data[symbol].base.times[fit_rows[symbol]], own)
    assert len({fold.train.X.tobytes() for fold in folds}) == 3
