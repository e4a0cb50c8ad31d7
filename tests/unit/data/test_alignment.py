from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.data.alignment import MIN_COMPARED_BARS, close_times, early_by, last_closed, num_closed, resample
from ktrdr_core.data.bars import Bars, IntArray, validate_bars
from ktrdr_core.data.symbol_bars import SymbolBars
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidInputError
from tests.kit.builders import bars_of_closes, make_bars

HOUR_NS = 3_600 * 10**9
MIDNIGHT_NS = 1_483_315_200 * 10**9  # 2017-01-02T00:00:00Z, a Monday


def bars_at(times: IntArray | list[int], timeframe: str) -> Bars:
    rng = np.random.default_rng(len(times))
    close = 1 + 0.01 * rng.random(len(times))
    return validate_bars(
        symbol="EURUSD",
        timeframe=timeframe,
        times=times,
        open=close,
        high=close + 0.01 * rng.random(len(times)),
        low=close - 0.01 * rng.random(len(times)),
        close=close,
        volume=rng.integers(0, 100, len(times)).astype(np.float64),
    )


def hours(first: int, last: int) -> list[int]:
    return [MIDNIGHT_NS + hour * HOUR_NS for hour in range(first, last)]


def slow_last_closed(base: Bars, higher: Bars) -> list[int]:
    found = []
    for time in base.times.tolist():
        now = time + Timeframe.parse(base.timeframe).duration_ns
        seen = -1
        for index, opened in enumerate(higher.times.tolist()):
            if opened + Timeframe.parse(higher.timeframe).duration_ns <= now:
                seen = index
        found.append(seen)
    return found


def test_base_bar_sees_a_longer_bar_from_its_close_on_and_not_from_its_open_on() -> None:
    base = bars_at(hours(0, 9), "1h")
    higher = bars_at([MIDNIGHT_NS, MIDNIGHT_NS + 4 * HOUR_NS], "4h")
    # The hour from 03:00 closes together with the first four hours; the hours before know nothing of them.
    assert last_closed(base, higher).tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1]
    by_open = np.searchsorted(higher.times, base.times, side="right") - 1
    assert by_open.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_after_a_weekend_the_last_bar_of_friday_is_still_the_last() -> None:
    base = bars_at([*hours(0, 10), *hours(58, 64)], "1h")
    higher = bars_at([MIDNIGHT_NS + 4 * HOUR_NS * n for n in (0, 1, 2, 14, 15)], "4h")
    expected = [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 4]
    assert last_closed(base, higher).tolist() == expected


def test_days_that_open_in_the_evening_count_from_their_own_close() -> None:
    base = bars_at(hours(0, 48), "1h")
    higher = bars_at([MIDNIGHT_NS - 2 * HOUR_NS, MIDNIGHT_NS + 22 * HOUR_NS], "1d")
    assert last_closed(base, higher).tolist() == [-1] * 21 + [0] * 24 + [1] * 3


@given(
    base_gaps=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    higher_gaps=st.lists(st.integers(4, 40), max_size=20),
    offset=st.integers(-50, 50),
)
def test_alignment_is_that_of_a_slow_loop(base_gaps: list[int], higher_gaps: list[int], offset: int) -> None:
    minute = 60 * 10**9
    base = bars_at([MIDNIGHT_NS + 15 * minute * step for step in np.cumsum(base_gaps).tolist()], "15m")
    steps = [0, *np.cumsum(higher_gaps).tolist()]
    higher = bars_at([MIDNIGHT_NS + 15 * minute * (step + offset) for step in steps], "1h")
    index = last_closed(base, higher)
    assert index.dtype == np.int64
    assert index.tolist() == slow_last_closed(base, higher)
    assert [num_closed(higher, base, stop) for stop in range(1, len(base) + 1)] == (index + 1).tolist()


def test_alignment_with_no_longer_bar_sees_none() -> None:
    base = bars_at(hours(0, 3), "1h")
    assert last_closed(base, base.head(0)).tolist() == [-1, -1, -1]
    assert num_closed(base, base, 0) == 0


def slow_resample(bars: Bars, duration_ns: int, offset_ns: int = 0) -> list[tuple[float, ...]]:
    bins: dict[int, list[int]] = {}
    for index, closed in enumerate(close_times(bars).tolist()):
        bins.setdefault((closed - 1 - offset_ns) // duration_ns, []).append(index)
    return [
        (
            number * duration_ns + offset_ns,
            bars.open[members[0]],
            max(bars.high[members]),
            min(bars.low[members]),
            bars.close[members[-1]],
            sum(bars.volume[members]),
        )
        for number, members in sorted(bins.items())
    ]


@pytest.mark.parametrize(
    ("timeframe", "duration_h", "offset_h"), [("2h", 2, 0), ("4h", 4, 0), ("1d", 24, 0), ("1w", 168, 96)]
)
def test_resampled_bars_are_those_of_a_slow_loop(timeframe: str, duration_h: int, offset_h: int) -> None:
    kept = np.random.default_rng(3).random(600) < 0.8
    source = make_bars(600)
    bars = bars_at(source.times[kept], "1h")
    longer = resample(bars, timeframe)
    columns = (longer.times, longer.open, longer.high, longer.low, longer.close, longer.volume)
    rows = [tuple(column[index] for column in columns) for index in range(len(longer))]
    assert rows == slow_resample(bars, duration_h * HOUR_NS, offset_h * HOUR_NS)
    assert longer.timeframe == timeframe


def test_weeks_begin_on_monday_and_days_at_midnight_utc() -> None:
    bars = bars_at(hours(-30, 30), "1h")
    assert resample(bars, "1w").times.tolist() == [MIDNIGHT_NS - 7 * 24 * HOUR_NS, MIDNIGHT_NS]
    assert resample(bars, "1d").times.tolist() == [MIDNIGHT_NS + n * 24 * HOUR_NS for n in (-2, -1, 0, 1)]


def test_bar_that_straddles_two_longer_ones_belongs_to_the_one_it_closes_in() -> None:
    bars = bars_at([MIDNIGHT_NS + n * HOUR_NS + HOUR_NS // 2 for n in (-1, 0, 1, 2)], "1h")
    longer = resample(bars, "2h")
    assert longer.times.tolist() == [MIDNIGHT_NS, MIDNIGHT_NS + 2 * HOUR_NS]
    assert longer.close.tolist() == [bars.close[1], bars.close[3]]


@pytest.mark.parametrize("timeframe", ["1h", "30m", "90m", "1m"])
def test_resampling_to_anything_but_a_whole_multiple_is_refused(timeframe: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{timeframe} bars cannot be made of 1h bars; resample to a whole"):
        resample(make_bars(10), timeframe)


def test_no_base_bar_sees_into_its_own_resampled_bar_before_the_end() -> None:
    bars = make_bars(500)
    longer = resample(bars, "4h")
    for t, index in enumerate(last_closed(bars, longer).tolist()):
        if index >= 0:
            known = resample(bars.head(t + 1), "4h")
            assert longer.close[index] == known.close[index]
            assert longer.high[index] == known.high[index]


def test_head_keeps_the_longer_bars_that_have_closed_by_then() -> None:
    bars = make_bars(100)
    own = SymbolBars(bars, (resample(bars, "4h"), resample(bars, "1d")))
    for n in (0, 1, 5, 26, 100):
        head = own.head(n)
        assert len(head) == n
        for short, long in zip(head.higher, own.higher, strict=True):
            ends = close_times(long)
            now = close_times(bars)[n - 1] if n else 0
            assert len(short) == int((ends <= now).sum())
    assert own.at("4h") is own.higher[0]
    with pytest.raises(KeyError):
        own.at("5m")


def test_window_keeps_as_much_history_of_longer_bars_as_asked() -> None:
    bars = make_bars(200)
    own = SymbolBars(bars, (resample(bars, "4h"),))
    window = own.window(100, 150, [3])
    closed = num_closed(own.higher[0], bars, 100)
    np.testing.assert_array_equal(window.base.times, bars.times[100:150])
    assert window.higher[0].times[0] == own.higher[0].times[closed - 3]
    assert window.higher[0].times[-1] == own.higher[0].times[num_closed(own.higher[0], bars, 150) - 1]


@pytest.mark.parametrize(("timeframe", "hours_early"), [("4h", 1), ("4h", 3), ("1d", 2), ("1d", 22), ("1w", 60)])
def test_longer_bars_dated_too_early_are_found_to_know_the_future(timeframe: str, hours_early: int) -> None:
    base = make_bars(10_000)
    honest = resample(base, timeframe)
    early = replace(honest, times=honest.times - hours_early * HOUR_NS)
    assert early_by(base, honest) == 0
    assert early_by(base, early) == pytest.approx(hours_early, rel=0.1)


@pytest.mark.parametrize("hours_late", [1, 3, 22])
def test_longer_bars_dated_late_or_of_another_origin_know_no_future(hours_late: int) -> None:
    base = make_bars(4_000)
    honest = resample(base, "4h")
    rng = np.random.default_rng(hours_late)
    assert early_by(base, replace(honest, times=honest.times + hours_late * HOUR_NS)) == 0
    assert early_by(base, replace(honest, close=honest.close * rng.normal(1, 0.0002, len(honest)))) == 0
    assert early_by(base, resample(make_bars(4_000, hours_late), "4h")) == 0
    assert early_by(base, honest.head(MIN_COMPARED_BARS - 1)) == 0
    assert early_by(bars_of_closes(np.ones(4_000)), resample(bars_of_closes(np.ones(4_000)), "4h")) == 0
