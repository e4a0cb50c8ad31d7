"""Refuses at the door what would take more memory than a training may: its matrices, its weights, one of its batches.

The limits are the same everywhere, so that a strategy which one trainer takes does not end another by its size. They
are far above what the bars of a few symbols need, and low enough for a machine of 16 GiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ktrdr_core.config.strategy import StrategyConfig, ValidationConfig
from ktrdr_core.errors import InvalidSpecError
from ktrdr_core.features.layout import build_layout
from ktrdr_core.models.network_spec import NetworkSpec

# float32 values: 8 GiB. Features as they are and scaled, and a scaled copy for each fold.
MAX_MATRIX_VALUES = 1 << 31
# Of all networks of a training; each has a gradient, two moments and its best state beside it: 2.5 GiB.
MAX_PARAMETERS = 1 << 27
# float32 values that the layers keep of a batch for its gradient: 4 GiB.
MAX_BATCH_VALUES = 1 << 30


def check_networks(strategy: StrategyConfig, model_config: Mapping[str, Any]) -> None:
    """Refuse networks that are too large, which is known without bars.

    Args:
        strategy: With the request's overrides.
        model_config: The executor's.

    Raises:
        InvalidSpecError: Together they have too many weights.
        InvalidStrategyError: There are too many features.
        InvalidInputError: The network breaks a rule.
    """
    num_columns = len(build_layout(strategy).columns)
    spec = NetworkSpec.from_model_config(model_config, num_columns)
    _, num_networks = _folds(strategy.validation)
    num_parameters = spec.num_parameters * num_networks
    if num_parameters > MAX_PARAMETERS:
        networks = f"{num_networks} networks have" if num_networks > 1 else "the network has"
        raise InvalidSpecError(
            f"{networks} {num_parameters:,} weights for {num_columns:,} features, and at most {MAX_PARAMETERS:,} are "
            f"allowed; use fewer or smaller hidden_layers{' or fewer folds' if num_networks > 1 else ''}",
            field="model.architecture.hidden_layers",
        )


def check_footprint(strategy: StrategyConfig, model_config: Mapping[str, Any], num_bars: int) -> None:
    """Refuse more rows than a training may have of this strategy.

    Args:
        strategy: With the request's overrides.
        model_config: The executor's.
        num_bars: Base bars of all symbols.

    Raises:
        InvalidSpecError: The matrices or a batch are too large; the key to change is named.
    """
    num_columns = len(build_layout(strategy).columns)
    spec = NetworkSpec.from_model_config(model_config, num_columns)
    num_folds, _ = _folds(strategy.validation)
    num_values = num_bars * num_columns * (2 + num_folds)
    if num_values > MAX_MATRIX_VALUES:
        copies = f" and {num_folds} folds" if num_folds else ""
        raise InvalidSpecError(
            f"{num_bars:,} bars with {num_columns:,} features{copies} take {_gibibytes(num_values)} GiB, and at most "
            f"{_gibibytes(MAX_MATRIX_VALUES)} are allowed; use fewer fuzzy sets, lookback_periods or folds, or a "
            "shorter range",
            field="model.features.lookback_periods",
        )
    batch_size = min(strategy.model.training.batch_size, num_bars)
    num_values = batch_size * spec.values_per_row
    if num_values > MAX_BATCH_VALUES:
        raise InvalidSpecError(
            f"a batch of {batch_size:,} rows takes {_gibibytes(num_values)} GiB in this {spec.type}, and at most "
            f"{_gibibytes(MAX_BATCH_VALUES)} are allowed; lower batch_size",
            field="model.training.batch_size",
        )


def _folds(validation: ValidationConfig | None) -> tuple[int, int]:
    """Return how many folds have rows of their own, and the networks of the training with those of its folds."""
    if validation is None:
        return 0, 1
    num_folds = 0 if validation.method == "repeated_seeds" else validation.folds
    return num_folds, 1 + validation.folds * validation.seeds


def _gibibytes(num_values: int) -> str:
    return f"{num_values * 4 / 2**30:,.1f}"
