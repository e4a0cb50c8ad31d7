"""Which columns a strategy has, in which order; known before any bar is read."""

from __future__ import annotations

from dataclasses import dataclass

from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.errors import InvalidStrategyError
from ktrdr_core.features.price_context import PRICE_CONTEXT_NAMES
from ktrdr_core.fuzzy.timeframe_sets import NamedSet, timeframe_sets

PRICE = "price"
SYMBOL = "symbol"
# A result names each of them with its importance, and has to fit into one message of 4 MiB.
MAX_COLUMNS = 10_000


@dataclass(frozen=True, slots=True)
class FeatureColumn:
    """What a column of the matrix is.

    Attributes:
        name: `rsi_14.oversold`, with `@4h` for a higher timeframe, then `.lag_2` for the bar two before; `rsi_14` or
            `rsi_14@4h` for the indicator itself; `price.return_1`; `symbol.EURUSD`.
        indicator: The feature_id it comes from; "price" for price context, "symbol" for identity.
        timeframe: Bar length it is computed on.
        lag: Base bars before the current one.
    """

    name: str
    indicator: str
    timeframe: str
    lag: int = 0


@dataclass(frozen=True)
class FeatureLayout:
    """The columns in their order: memberships, lagged memberships, raw indicators, price context, identity.

    Attributes:
        sets: Fuzzy sets of each timeframe, the base one first, each in the order of its columns.
        raw: Timeframe and name of the values of each raw indicator column.
        num_lags: How often the memberships come again, 1, 2, ... bars before.
        has_price_context: Whether the columns of `price_context` follow.
        symbols: Symbols that have an identity column; none if the model is symbol-agnostic.
        columns: Every column.
    """

    sets: dict[str, tuple[NamedSet, ...]]
    raw: tuple[tuple[str, str], ...]
    num_lags: int
    has_price_context: bool
    symbols: tuple[str, ...]
    columns: tuple[FeatureColumn, ...]

    @property
    def num_memberships(self) -> int:
        return sum(len(own) for own in self.sets.values())

    @property
    def first_raw(self) -> int:
        return self.num_memberships * (self.num_lags + 1)

    @property
    def first_context(self) -> int:
        return self.first_raw + len(self.raw)

    @property
    def first_symbol(self) -> int:
        return len(self.columns) - len(self.symbols)


def build_layout(strategy: StrategyConfig) -> FeatureLayout:
    """Return the columns of a strategy.

    A recurrent model has no lagged columns: it sees the bars before through its window.

    Raises:
        InvalidStrategyError: There are more than MAX_COLUMNS.
    """
    base = strategy.base_timeframe
    config = strategy.model.features
    sets = {
        timeframe: timeframe_sets(strategy.indicators, strategy.fuzzy_sets, timeframe)
        for timeframe in (base, *strategy.higher_timeframes)
    }
    num_lags = config.lookback_periods if strategy.model.window_bars == 1 else 0
    raw = {
        (timeframe, named.values): FeatureColumn(
            f"{named.values}{_suffix(timeframe, base)}", named.indicator, timeframe
        )
        for timeframe, own in sets.items()
        for named in own
        if config.include_raw_indicators
    }
    symbols = strategy.symbols if strategy.model.symbol_embedding_dim > 0 else ()
    num_columns = sum(map(len, sets.values())) * (num_lags + 1) + len(raw) + len(symbols)
    if num_columns > MAX_COLUMNS:
        raise InvalidStrategyError(
            f"the strategy makes {num_columns:,} features with lookback_periods {num_lags}, and at most "
            f"{MAX_COLUMNS:,} are allowed; lower it, or use fewer fuzzy sets, or a recurrent model, whose window adds "
            "no features",
            field="model.features.lookback_periods",
        )
    columns = [
        FeatureColumn(
            f"{named.values}.{named.name}{_suffix(timeframe, base)}{f'.lag_{lag}' if lag else ''}",
            named.indicator,
            timeframe,
            lag,
        )
        for lag in range(num_lags + 1)
        for timeframe, own in sets.items()
        for named in own
    ]
    columns += raw.values()
    columns += [FeatureColumn(name, PRICE, base) for name in PRICE_CONTEXT_NAMES if config.include_price_context]
    columns += [FeatureColumn(f"{SYMBOL}.{symbol}", SYMBOL, base) for symbol in symbols]
    return FeatureLayout(
        sets=sets,
        raw=tuple(raw),
        num_lags=num_lags,
        has_price_context=config.include_price_context,
        symbols=tuple(symbols),
        columns=tuple(columns),
    )


def _suffix(timeframe: str, base: str) -> str:
    return "" if timeframe == base else f"@{timeframe}"
