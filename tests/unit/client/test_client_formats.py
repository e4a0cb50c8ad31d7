import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from ktrdr_client.cli import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (725, "12:05"), (3723, "1:02:03"), (59.6, "1:00"), (None, "-"), (math.nan, "-")],
)
def test_duration_reads_as_a_clock(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.8123456, "0.8123"), (0.0, "0.0000"), (3.2e-7, "3.200e-07"), (1e30, "1.000e+30")]
)
def test_loss_keeps_digits_that_say_something(value: float, text: str) -> None:
    assert formats.loss(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_258_291, "1.2 MiB"), (5 * 1024**3, "5.0 GiB")],
)
def test_size_uses_the_nearest_unit(value: float, text: str) -> None:
    assert formats.size(value) == text


def test_moment_is_utc_whatever_zone_it_came_in() -> None:
    there = datetime(2026, 1, 1, 2, 0, tzinfo=timezone(timedelta(hours=2)))
    assert formats.moment(there) == formats.moment(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01 00:00:00"
    assert formats.moment(None) == "-"


def test_rates_percents_and_points() -> None:
    assert formats.rate(14_230.4) == "14,230 rows/s"
    assert formats.percent(0.6118) == "61.2 %"
    assert formats.points(0.047) == "+4.7 points"
    assert formats.points(-0.002) == "-0.2 points"
