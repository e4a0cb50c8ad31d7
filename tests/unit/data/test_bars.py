from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest

from ktrdr_core.data.bars import BAR_COLUMNS, Bars, validate_bars
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidBarsError, InvalidInputError
from tests.kit.builders import bars_of_closes, make_bars


def columns_of(bars: Bars) -> dict[str, Any]:
    return {name: getattr(bars, name).copy() for name in ("times", *BAR_COLUMNS)}


def rebuilt(columns: dict[str, Any], timeframe: str = "1h") -> Bars:
    return validate_bars(symbol="EURUSD", timeframe=timeframe, source="x.csv", **columns)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("close", np.nan, "close must be a finite number (close nan)"),
        ("open", np.inf, "open must be a finite number"),
        ("volume", np.nan, "volume must be a finite number"),
        ("volume", -1.0, "volume must not be negative (volume -1)"),
        ("low", 0.0, "low must be above 0"),
        ("open", -1.0, "open must be above 0"),
        ("high", 0.5, "high is below low"),
        ("close", 1.4, "high is below open or close"),
        ("open", 0.7, "low is above open or close"),
    ],
)
def test_impossible_value_is_refused_with_its_row(column: str, value: float, reason: str) -> None:
    columns = columns_of(make_bars(50))
    columns[column][16] = value
    with pytest.raises(InvalidBarsError) as caught:
        rebuilt(columns)
    assert caught.value.message.startswith("x.csv, row 17 (2017-01-02T14:00:00Z): ")
    assert reason in caught.value.message
    assert caught.value.metadata["row"] == "17"


def test_first_broken_row_is_named() -> None:
    columns = columns_of(make_bars(50))
    columns["open"][40] = np.nan
    columns["high"][9] = 0.5
    with pytest.raises(InvalidBarsError, match=r"row 10 .*high is below low"):
        rebuilt(columns)


def test_shuffled_times_are_refused() -> None:
    columns = columns_of(make_bars(50))
    columns["times"][[20, 21]] = columns["times"][[21, 20]]
    with pytest.raises(
        InvalidBarsError, match=r"row 22 .*is before that of the row before; times must strictly increase"
    ):
        rebuilt(columns)


def test_duplicate_time_is_refused() -> None:
    columns = columns_of(make_bars(50))
    columns["times"][21] = columns["times"][20]
    with pytest.raises(InvalidBarsError, match=r"row 22 .*is that of the row before"):
        rebuilt(columns)


def test_bar_that_overlaps_the_one_before_is_refused() -> None:
    columns = columns_of(make_bars(50))
    with pytest.raises(InvalidBarsError, match=r"row 2 .*opens before the 4h bar before it has closed"):
        rebuilt(columns, timeframe="4h")


def test_gaps_are_allowed() -> None:
    columns = {name: np.delete(values, [10, 11]) for name, values in columns_of(make_bars(50)).items()}
    assert len(rebuilt(columns)) == 48


def test_no_bars_and_uneven_columns_are_refused() -> None:
    columns = columns_of(make_bars(50))
    with pytest.raises(InvalidBarsError, match="has no bars"):
        rebuilt({name: values[:0] for name, values in columns.items()})
    columns["volume"] = columns["volume"][:-1]
    with pytest.raises(InvalidBarsError, match="columns must be of one length"):
        rebuilt(columns)


def test_bars_cannot_be_written_to() -> None:
    bars = make_bars(50)
    with pytest.raises(ValueError, match="read-only"):
        bars.close[0] = 1.0


def test_between_includes_both_days() -> None:
    bars = make_bars(100)  # from Sunday 22:00
    assert (bars.first_day, bars.last_day) == (date(2017, 1, 1), date(2017, 1, 6))
    part = bars.between(date(2017, 1, 2), date(2017, 1, 3))
    assert len(part) == 48
    assert (part.first_day, part.last_day) == (date(2017, 1, 2), date(2017, 1, 3))
    assert len(bars.between(None, date(2017, 1, 1))) == 2
    assert len(bars.between(None, None)) == 100


def test_digest_tells_any_change() -> None:
    bars = make_bars(50)
    digests = {bars.digest(), bars.head(49).digest(), make_bars(50, symbol="GBPUSD").digest()}
    for name in ("times", *BAR_COLUMNS):
        columns = columns_of(bars)
        columns[name][-1] += 1 if name in ("times", "volume") else 0
        columns["high"] = columns["high"] + (1e-9 if name in BAR_COLUMNS and name != "volume" else 0)
        digests.add(rebuilt(columns).digest())
    assert make_bars(50).digest() == bars.digest()
    assert len(digests) == 6


def test_digest_does_not_change_between_versions() -> None:
    assert bars_of_closes([1.0, 1.5]).digest() == "8feab98bd8f2aafeb4ec4ef0640f2e4e4661e6da27ebe10eb393c0964ee0465b"


@pytest.mark.parametrize(("text", "seconds"), [("1m", 60), ("15m", 900), ("1h", 3600), ("1d", 86400), ("2w", 1209600)])
def test_timeframe_knows_its_length(text: str, seconds: int) -> None:
    timeframe = Timeframe.parse(text)
    assert timeframe.duration_ns == seconds * 10**9
    assert str(timeframe) == text


@pytest.mark.parametrize("text", ["", "h", "0h", "1x", "-1h", "1h ", "1H", "1000h", "1.5h", "١h"])
def test_other_text_is_no_timeframe(text: str) -> None:
    with pytest.raises(InvalidInputError, match="a number and one of m, h, d, w"):
        Timeframe.parse(text)
