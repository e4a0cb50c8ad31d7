"""Which symbols and timeframes a strategy is trained on: those of its file, or others that were asked for."""

from __future__ import annotations

from collections.abc import Sequence

from ktrdr_core.config.loader import strategy_from_dict
from ktrdr_core.config.naming import check_name
from ktrdr_core.config.strategy import StrategyConfig
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidInputError, InvalidSpecError


def with_series(
    strategy: StrategyConfig,
    symbols: Sequence[str] = (),
    timeframes: Sequence[str] = (),
    *,
    multi_symbol: bool | None = None,
) -> StrategyConfig:
    """Return the strategy for other symbols or timeframes; empty means those of the file.

    Args:
        strategy: As in the file.
        symbols: Instruments.
        timeframes: Bar lengths; a base timeframe that the file names stays if it is among them.
        multi_symbol: False refuses several symbols.

    Raises:
        InvalidSpecError: A name breaks a rule, several symbols are asked for and `multi_symbol` is False, or a
            timeframe is no whole multiple of the base.
        InvalidStrategyError: A fuzzy set or an indicator names a timeframe that is no longer there.
    """
    raw = strategy.to_dict()
    for kind, names, multi in (("symbols", symbols, multi_symbol), ("timeframes", timeframes, None)):
        what = kind.removesuffix("s")
        for index, name in enumerate(names):
            check_name(name, field=f"spec.{kind}[{index}]", what=what, error_class=InvalidSpecError)
        section = raw["training_data"][kind]
        chosen = list(dict.fromkeys(names)) or section.get("list") or [section[what]]
        several = f"multi_{what}"
        wants_several = multi if multi is not None else (len(chosen) > 1 if names else section["mode"] == several)
        if len(chosen) > 1 and not wants_several:
            raise InvalidSpecError(
                f"multi_symbol is false but {len(chosen)} {kind} are asked for ({', '.join(chosen)}); name one",
                field=f"spec.{kind}",
            )
        if names or multi is not None:
            kept = {key: section[key] for key in ("sampling", "base_timeframe") if section.get(key)}
            if kept.get("base_timeframe") not in (None, *chosen):
                del kept["base_timeframe"]
            raw["training_data"][kind] = {"mode": several if wants_several else "single", "list": chosen, **kept}
    field = "spec.timeframes" if timeframes else "training_data.timeframes"
    for timeframe in timeframes or strategy.timeframes:
        _check_timeframe(timeframe, field)
    chosen_strategy = strategy_from_dict(raw)
    _check_multiples(chosen_strategy, field)
    return chosen_strategy


def _check_timeframe(text: str, field: str) -> None:
    try:
        Timeframe.parse(text)
    except InvalidInputError as error:
        raise InvalidSpecError(f"{error.message} ({field})", field=field) from error


def _check_multiples(strategy: StrategyConfig, field: str) -> None:
    base = Timeframe.parse(strategy.base_timeframe)
    for name in strategy.higher_timeframes:
        longer = Timeframe.parse(name).duration_ns
        if longer <= base.duration_ns or longer % base.duration_ns:
            raise InvalidSpecError(
                f"timeframe {name} is no whole multiple of the base timeframe {base}; name timeframes that are, such "
                f"as {base} and {Timeframe(4 * base.count, base.unit)}",
                field=field,
            )
