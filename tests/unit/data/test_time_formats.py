"""Ways of writing times: what fits is found, what fits twice is asked for, what does not exist is refused."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_core.data.time_formats import TimeFormat, detect_time_format, parse_time_format, parse_times
from ktrdr_core.errors import InvalidBarsError, InvalidInputError


def parsed(texts: list[str], time_format: TimeFormat | None = None) -> list[str]:
    found = time_format or detect_time_format(texts, source="x.csv")
    times = parse_times(pa.array(texts), found).to_numpy()
    return [str(time) for time in times.astype("datetime64[ns]").astype("datetime64[ms]")]


@pytest.mark.parametrize(
    ("text", "name", "time"),
    [
        ("2017-01-31T22:05:00Z", "ISO 8601 with a zone", "2017-01-31T22:05:00.000"),
        ("2017-01-31 22:05:00+02:00", "ISO 8601 with a zone", "2017-01-31T20:05:00.000"),
        ("2017-01-31 22:05:00 +0200", "ISO 8601 with a zone", "2017-01-31T20:05:00.000"),
        ("2017-01-31 22:05:00 UTC", "ISO 8601 with a zone", "2017-01-31T22:05:00.000"),
        ("2017-01-31 22:05:00.250", "ISO 8601", "2017-01-31T22:05:00.250"),
        ("2017-01-31T22:05", "ISO 8601", "2017-01-31T22:05:00.000"),
        ("2017-01-31", "ISO 8601", "2017-01-31T00:00:00.000"),
        ("20170131", "%Y%m%d", "2017-01-31T00:00:00.000"),
        ("20170131 220500", "%Y%m%d %H%M%S", "2017-01-31T22:05:00.000"),
        ("201701312205", "%Y%m%d%H%M", "2017-01-31T22:05:00.000"),
        ("2017.01.31 22:05", "%Y.%m.%d %H:%M", "2017-01-31T22:05:00.000"),
        ("2017/1/31 2:05", "%Y/%m/%d %H:%M", "2017-01-31T02:05:00.000"),
        ("31.1.2017 22:05:00.000", "%d.%m.%Y %H:%M:%S", "2017-01-31T22:05:00.000"),
        ("1/31/2017 2:05", "%m/%d/%Y %H:%M", "2017-01-31T02:05:00.000"),
        ("1485900300", "s since 1970", "2017-01-31T22:05:00.000"),
        ("1485900300.0", "s since 1970", "2017-01-31T22:05:00.000"),
        ("1485900300250", "ms since 1970", "2017-01-31T22:05:00.250"),
        ("1485900300250000", "us since 1970", "2017-01-31T22:05:00.250"),
        ("1485900300250000000", "ns since 1970", "2017-01-31T22:05:00.250"),
    ],
)
def test_usual_ways_of_writing_are_found(text: str, name: str, time: str) -> None:
    assert str(detect_time_format([text], source="x.csv")) == name
    assert parsed([text]) == [time]


@pytest.mark.parametrize("text", ["03/04/2017", "1.2.2017 10:00", "12-12-2017 00:00:00"])
def test_day_and_month_are_never_guessed(text: str) -> None:
    with pytest.raises(InvalidBarsError, match=r"x\.csv: .* with the day or with the month first; .*--time-format '%d"):
        detect_time_format([text], source="x.csv")
    assert detect_time_format([text, text.replace(re.split("[./-]", text)[1], "13", 1)], source="x.csv")


@pytest.mark.parametrize(
    "text", ["", "noon", "2017-1-1", "31/31/2017", "29.02.2017", "2017-01-01Tx", "٢٠١٧-٠١-٠١", "1e9"]
)
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(InvalidBarsError, match="no known way of writing times fits"):
        detect_time_format([text], source="x.csv")


def test_times_with_and_without_a_zone_are_refused() -> None:
    with pytest.raises(InvalidBarsError, match="some times have a zone and some have none, such as '2017-01-01T01:00'"):
        detect_time_format(["2017-01-01T00:00Z", "2017-01-01T01:00"], source="x.csv")


@pytest.mark.parametrize(
    "text", ["31.02.2017", "00.01.2017", "1.13.2017", "1.1.17", "2017.01.01", "", "x", "1.1.2017 "]
)
def test_day_that_does_not_exist_is_not_rolled_over(text: str) -> None:
    time_format = parse_time_format("%d.%m.%Y")
    if text.strip() == "1.1.2017":
        assert parsed([text], time_format) == ["2017-01-01T00:00:00.000"]
        return
    with pytest.raises(pa.ArrowInvalid):
        parsed([text], time_format)


@pytest.mark.parametrize(
    "text", ["", "%Q", "%Y", "%Y-%m", "%Y%m%d%Y", "%Y-%m-%d %M", "%Y-%m-%d %H", "isoo", "%", "%Y%m%d%"]
)
def test_other_formats_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--time-format must be iso, one of s, ms, us, ns, or %Y"):
        parse_time_format(text)


@given(
    st.lists(st.integers(0, 4_000_000_000), min_size=1, max_size=30),
    st.sampled_from(["%d.%m.%Y %H:%M:%S", "%Y%m%d %H%M%S", "%m/%d/%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y%m%d%H%M%S"]),
)
def test_what_is_written_is_read(seconds: list[int], text: str) -> None:
    moments = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=each) for each in seconds]
    times = parse_times(pa.array([each.strftime(text) for each in moments]), parse_time_format(text)).to_numpy()
    assert np.array_equal(times, np.array(seconds, dtype=np.int64) * 10**9)
