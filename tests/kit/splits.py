"""The rows of a training, made again step by step."""

from __future__ import annotations

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.datasets.dataset import DataSplit
from ktrdr_core.training.pipeline import PriceData, TrainingPipeline
from ktrdr_core.training.preflight import preflight
from tests.kit.training import Trained


def make_split(trained: Trained) -> tuple[DataSplit, PriceData, StrategyConfig]:
    """Return the main split of a finished training, its bars, and its strategy as fitted."""
    plan = preflight(trained.spec, trained.bar_store)
    pipeline = TrainingPipeline(trained.bar_store)
    shares = plan.strategy.training.data_split
    assert shares is not None
    price_data = pipeline.load_price_data(plan.symbols, plan.timeframes, plan.start_date, plan.end_date)
    values = pipeline.calculate_indicators(price_data, plan.strategy)
    fitted, _ = pipeline.fit_fuzzy_sets(values, price_data, plan.strategy, shares)
    memberships = pipeline.generate_fuzzy_memberships(values, price_data, fitted)
    features = pipeline.engineer_features(memberships, values, price_data)
    labels = pipeline.generate_labels(price_data, plan.strategy)
    rows = pipeline.combine_multi_symbol_data(features, labels, price_data, plan.strategy.model.window_bars)
    columns = features[plan.symbols[0]].columns
    return pipeline.split_data(rows, plan.strategy, shares, columns=columns), price_data, fitted
