from __future__ import annotations

import itertools
import math
from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.data.bars import Bars
from ktrdr_core.evaluation.signals import (
    MOST_CAPITAL,
    SymbolPositions,
    evaluate_signals,
    max_drawdown,
    sharpe_ratio,
)
from tests.kit.builders import bars_of_closes, make_bars

HOURS_PER_YEAR = 365.25 * 24


def held(bars: Bars, indices: list[int], positions: list[int]) -> SymbolPositions:
    return SymbolPositions(bars, np.array(indices, dtype=np.int64), np.array(positions, dtype=np.int8))


def slow_evaluation(symbols: list[SymbolPositions], cost_bps: float) -> dict[str, float]:
    """The account of each symbol, bar by bar, and the portfolio of them, moment by moment."""
    cost = cost_bps / 10_000
    moments: dict[int, list[tuple[int, float, float]]] = {}
    gross, trades, turnovers, exposures, ends = [], 0, [], [], []
    for number, one in enumerate(symbols):
        wanted = {
            int(bar): int(position)
            for bar, position in zip(one.bar_indices, one.positions, strict=True)
            if bar + 1 < len(one.bars)
        }
        bars = list(range(min(wanted), max(wanted) + 1))
        before, turnover, in_market, capital = 0, 0, 0, 1.0
        for bar in bars:
            position = wanted.get(bar, 0)
            change = one.bars.close[bar + 1] / one.bars.close[bar] - 1
            growth = max(1 + position * change, 0.0)
            capital *= growth
            growth *= 1 - cost * abs(position - before)
            hold_growth = (1 + change) * (1 - cost if bar == bars[0] else 1)
            turnover += abs(position - before)
            trades += position not in (0, before)
            in_market += position != 0
            if bar == bars[-1]:
                turnover += abs(position)
                growth *= 1 - cost * abs(position)
                hold_growth *= 1 - cost
            before = position
            moments.setdefault(int(one.bars.times[bar]), []).append((number, growth, hold_growth))
        gross.append(capital - 1)
        turnovers.append(turnover)
        exposures.append(in_market / len(bars))
        ends.append(int(one.bars.times[bars[-1] + 1]))
    net_of, hold_of = [1.0] * len(symbols), [1.0] * len(symbols)
    net, hold = [1.0], [1.0]
    for time in sorted(moments):
        for number, growth, hold_growth in moments[time]:
            net_of[number] *= growth
            hold_of[number] *= hold_growth
        net.append(mean(net_of))
        hold.append(mean(hold_of))
    years = (max(ends) - min(moments)) / (365.25 * 86_400 * 1e9)
    per_year = len(moments) / years

    def sharpe(capital: list[float]) -> float:
        returns = [b / a - 1 for a, b in itertools.pairwise(capital)]
        if len(returns) < 2 or stdev(returns) < 1e-11:
            return 0.0
        return mean(returns) / stdev(returns) * math.sqrt(per_year)

    ratio = sharpe(net)
    return {
        "cost_bps": cost_bps,
        "num_bars": len(moments),
        "num_trades": trades,
        "turnover": mean(turnovers),
        "exposure": mean(exposures),
        "gross_return": mean(gross),
        "net_return": net[-1] - 1,
        "buy_and_hold_return": hold[-1] - 1,
        "sharpe": ratio,
        "sharpe_standard_error": (
            math.sqrt((1 + ratio**2 / per_year / 2) / len(moments) * per_year) if len(moments) > 1 else 0.0
        ),
        "buy_and_hold_sharpe": sharpe(hold),
        "max_drawdown": max(1 - now / max(net[: i + 1]) for i, now in enumerate(net)),
        "bars_per_year": per_year,
    }


@st.composite
def some_positions(draw: st.DrawFn, symbol: str) -> SymbolPositions:
    bars = make_bars(30, draw(st.integers(0, 50)), symbol=symbol)
    bars = bars.rows(slice(draw(st.integers(0, 5)), draw(st.integers(15, 30))))
    indices = sorted(draw(st.sets(st.integers(0, len(bars) - 1), min_size=2)))
    return held(bars, indices, [draw(st.integers(-1, 1)) for _ in indices])


@given(
    symbols=st.tuples(some_positions("A"), some_positions("B"), some_positions("C")),
    count=st.integers(1, 3),
    cost_bps=st.sampled_from([0.0, 1.0, 250.0]),
)
def test_evaluation_equals_accounts_kept_bar_by_bar(
    symbols: tuple[SymbolPositions, ...], count: int, cost_bps: float
) -> None:
    found = evaluate_signals(symbols[:count], cost_bps=cost_bps)
    assert dict(found) == pytest.approx(slow_evaluation(list(symbols[:count]), cost_bps), rel=1e-6, abs=1e-9)


def test_evaluation_of_an_example_worked_by_hand() -> None:
    """Long over +10 %, short over +10 %, short over -50 %, flat; closes at the end; 1 % a unit of change."""
    bars = bars_of_closes([100.0, 110.0, 121.0, 60.5, 60.5])
    found = evaluate_signals([held(bars, [0, 1, 2, 3], [1, -1, -1, 0])], cost_bps=100)
    curve = [0.99 * 1.1, 0.98 * 0.9, 1.5, 0.99]  # open; reverse; hold; close
    capital = np.cumprod(curve)
    assert found["gross_return"] == pytest.approx(1.1 * 0.9 * 1.5 - 1)
    assert found["net_return"] == pytest.approx(0.99 * 1.1 * 0.98 * 0.9 * 1.5 * 0.99 - 1)
    assert found["buy_and_hold_return"] == pytest.approx(0.605 * 0.99**2 - 1)
    assert (found["num_trades"], found["turnover"], found["exposure"]) == (2, 4.0, 0.75)
    assert found["max_drawdown"] == pytest.approx(1 - capital[1] / capital[0])
    assert found["num_bars"] == 4
    assert found["bars_per_year"] == pytest.approx(HOURS_PER_YEAR)


def test_position_on_the_last_bar_of_the_series_earns_nothing() -> None:
    bars = bars_of_closes([100.0, 110.0])
    found = evaluate_signals([held(bars, [0, 1], [1, -1])], cost_bps=0)
    assert (found["num_bars"], found["num_trades"]) == (1, 1)
    assert found["net_return"] == pytest.approx(0.1)


def test_position_open_at_the_end_pays_for_its_close() -> None:
    bars = bars_of_closes([100.0, 100.0, 100.0])
    found = evaluate_signals([held(bars, [0, 1], [1, 1])], cost_bps=100)
    assert found["net_return"] == pytest.approx(0.99**2 - 1)
    assert found["turnover"] == 2.0


def test_bars_without_a_row_are_flat() -> None:
    bars = bars_of_closes([100.0, 200.0, 400.0, 800.0])
    found = evaluate_signals([held(bars, [0, 2], [1, 1])], cost_bps=0)
    assert found["net_return"] == pytest.approx(3.0)
    assert (found["num_trades"], found["turnover"]) == (2, 4.0)
    assert found["exposure"] == pytest.approx(2 / 3)


def test_symbols_have_equal_shares_of_the_capital() -> None:
    up = held(bars_of_closes([100.0, 150.0, 300.0], symbol="A"), [0, 1], [1, 1])
    down = held(bars_of_closes([100.0, 50.0, 50.0], symbol="B"), [0, 1], [1, 1])
    found = evaluate_signals([up, down], cost_bps=0)
    assert found["net_return"] == found["buy_and_hold_return"] == pytest.approx((2.0 - 0.5) / 2)


def test_short_that_loses_everything_stays_at_nothing() -> None:
    bars = bars_of_closes([100.0, 250.0, 100.0])
    found = evaluate_signals([held(bars, [0, 1], [-1, -1])], cost_bps=1)
    assert found["net_return"] == -1.0
    assert found["max_drawdown"] == 1.0
    assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))


@pytest.mark.parametrize("low", [1e-12, 1e-300])
@pytest.mark.parametrize("cycle", [[1, -1], [1, 0], [1, 1], [-1, -1]])
def test_prices_that_are_broken_give_finite_figures(low: float, cycle: list[int]) -> None:
    bars = bars_of_closes([low, 1 / low] * 40)
    evaluation = evaluate_signals([held(bars, list(range(79)), (cycle * 40)[:79])], cost_bps=1)
    assert np.isfinite(np.array(list(evaluation.values()), dtype=np.float64)).all()
    if cycle == [1, -1]:  # a reversal at each extreme: up without end, then the short
        assert evaluation["net_return"] == pytest.approx(MOST_CAPITAL)


@given(symbol=some_positions("A"), cost_bps=st.floats(0, 1_000))
def test_costs_never_help(symbol: SymbolPositions, cost_bps: float) -> None:
    found = evaluate_signals([symbol], cost_bps=cost_bps)
    assert found["net_return"] <= found["gross_return"] + 1e-12
    assert 0 <= found["exposure"] <= 1
    assert 0 <= found["max_drawdown"] <= 1


def test_always_long_earns_what_buy_and_hold_earns() -> None:
    bars = make_bars(200)
    found = evaluate_signals([held(bars, list(range(20, 190)), [1] * 170)], cost_bps=2)
    assert found["net_return"] == pytest.approx(found["buy_and_hold_return"])
    assert found["sharpe"] == pytest.approx(found["buy_and_hold_sharpe"])


def test_bars_per_year_are_measured_from_the_bars_weekends_left_out() -> None:
    """Five of seven days: about 261 daily bars a year, whatever the timeframe's name would give."""
    day_ns = 86_400 * 10**9
    times = np.array([day * day_ns for day in range(3 * 364 + 1) if day % 7 < 5], dtype=np.int64)
    close = make_bars(len(times)).close
    bars = Bars("X", "1d", times, close, close, close, close, np.ones(len(times)))
    found = evaluate_signals([held(bars, list(range(len(times))), [1] * len(times))], cost_bps=0)
    assert found["bars_per_year"] == pytest.approx(365.25 * 5 / 7, rel=0.003)


def test_flat_all_the_time_is_zero_everywhere_but_the_standard_error() -> None:
    found = evaluate_signals([held(make_bars(50), list(range(40)), [0] * 40)], cost_bps=5)
    for key in ("net_return", "sharpe", "turnover", "exposure", "max_drawdown", "num_trades"):
        assert found[key] == 0
    assert found["sharpe_standard_error"] == pytest.approx(math.sqrt(HOURS_PER_YEAR / 40))


@pytest.mark.parametrize("symbols", [[], [held(make_bars(5), [4], [1])]])
def test_nothing_to_judge_is_zero_everywhere(symbols: list[SymbolPositions]) -> None:
    found = evaluate_signals(symbols, cost_bps=3)
    assert found["cost_bps"] == 3
    assert all(value == 0 for key, value in found.items() if key != "cost_bps")


@pytest.mark.parametrize(
    ("ratio", "num_bars", "published"), [(0.5, 60, 0.137), (1.0, 60, 0.158), (3.0, 12, 0.677), (2.0, 250, 0.110)]
)
def test_standard_error_equals_that_of_lo(ratio: float, num_bars: int, published: float) -> None:
    """A. W. Lo, 2002, table 1: independent returns, ratio per period."""
    spread = np.where(np.arange(num_bars) % 2 == 0, 1.0, -1.0)
    returns = spread + ratio * spread.std(ddof=1)
    found, error = sharpe_ratio(returns, 1.0)
    assert found == pytest.approx(ratio)
    assert error == pytest.approx(published, abs=6e-4)


def test_standard_error_is_the_spread_of_ratios_over_many_samples() -> None:
    returns = np.random.default_rng(2).normal(0.05, 1.0, size=(4_000, 250))
    ratios = [sharpe_ratio(sample, 252.0) for sample in returns]
    assert stdev(ratio for ratio, _ in ratios) == pytest.approx(mean(error for _, error in ratios), rel=0.05)


def test_drawdown_counts_from_the_start() -> None:
    assert max_drawdown(np.array([0.8, 0.9, 1.2, 0.9])) == pytest.approx(0.25)
    assert max_drawdown(np.array([0.5, 2.0])) == 0.5
    assert max_drawdown(np.array([1.1, 1.2])) == 0.0
