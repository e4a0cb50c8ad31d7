"""Checks of stored series: each defect, planted, is found where it is, and a clean series has no finding."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import BAR_COLUMNS, FloatArray, IntArray
from ktrdr_core.data.closures import duration_text
from ktrdr_core.data.quality import Finding, Severity, check_bars, check_stored_series
from ktrdr_core.domain.timeframe import Timeframe
from tests.kit.builders import REPOSITORY, bars_csv, make_bars, write_bars_csv

HOUR = Timeframe.parse("1h")
HOUR_NS = 3600 * 10**9


def ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def market_times(num_weeks: int = 30, zone: str = "America/New_York", step: timedelta = timedelta(hours=1)) -> IntArray:
    """Return bars from Sunday 17:00 to Friday 17:00 of a clock, from January 2017 on."""
    info = ZoneInfo(zone)
    times: list[int] = []
    for week in range(num_weeks):
        opening = datetime(2017, 1, 1, 17, tzinfo=info) + timedelta(weeks=week)
        closing = ns(opening + timedelta(days=5))
        time = ns(opening)
        while time < closing:
            times.append(time)
            time += int(step.total_seconds()) * 10**9
    return np.array(times, dtype=np.int64)


def columns_for(times: IntArray, seed: int = 1) -> dict[str, FloatArray]:
    bars = make_bars(len(times), seed)
    return {name: getattr(bars, name).copy() for name in BAR_COLUMNS}


def found(times: IntArray, columns: dict[str, FloatArray], timeframe: Timeframe = HOUR) -> dict[str, Finding]:
    return {finding.kind: finding for finding in check_bars(times, columns, timeframe).findings}


def test_market_that_closes_on_weekends_has_no_finding_across_daylight_saving() -> None:
    times = market_times()
    report = check_bars(times, columns_for(times), HOUR)
    assert report.findings == ()
    assert report.num_usual_closures == 29
    assert report.clock == "America/New_York"


def test_market_that_closes_every_night_has_no_finding() -> None:
    info = ZoneInfo("America/New_York")
    days = [datetime(2017, 1, 2, tzinfo=info) + timedelta(days=day) for day in range(200)]
    sessions = [day.replace(hour=9 + hour, minute=30) for day in days if day.weekday() < 5 for hour in range(7)]
    times = np.array([ns(moment) for moment in sessions], dtype=np.int64)
    report = check_bars(times, columns_for(times), HOUR)
    assert report.findings == ()
    assert report.num_usual_closures == sum(day.weekday() < 5 for day in days) - 1


def test_missing_bars_are_a_gap_with_its_place_and_length() -> None:
    times = market_times()
    times = np.delete(times, [50, 51, 52, 700])
    gap = found(times, columns_for(times))["gap"]
    assert (gap.count, gap.severity) == (2, Severity.WARNING)
    moment = datetime.fromtimestamp(times[50] // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert gap.examples[0] == f"row 51 ({moment}): nothing for 3h"


def test_holiday_after_a_weekend_is_a_gap() -> None:
    times = market_times()
    monday = np.flatnonzero(np.diff(times) > 24 * HOUR_NS)[5] + 1
    times = np.delete(times, np.arange(monday, monday + 24))
    report = check_bars(times, columns_for(times), HOUR)
    (gap,) = report.findings
    assert (gap.kind, gap.count, report.num_usual_closures) == ("gap", 1, 28)
    assert gap.examples[0].endswith("nothing for 3d")


def test_few_weeks_have_weekends_by_the_calendar() -> None:
    times = market_times(2)
    times = np.delete(times, [30])
    report = check_bars(times, columns_for(times), HOUR)
    assert report.num_usual_closures == 1
    assert [(finding.kind, finding.count) for finding in report.findings] == [("gap", 1)]


def test_always_open_market_has_no_usual_closure() -> None:
    times = market_times(1)[0] + np.arange(5000, dtype=np.int64) * HOUR_NS
    assert check_bars(times, columns_for(times), HOUR).findings == ()
    report = check_bars(np.delete(times, np.arange(100, 140)), columns_for(times[40:]), HOUR)
    assert [(finding.kind, finding.count) for finding in report.findings] == [("gap", 1)]


@pytest.mark.parametrize("hours", [1, -2])
def test_clock_that_jumps_is_found_at_the_week_it_jumps(hours: int) -> None:
    times = market_times()
    week = np.flatnonzero(np.diff(times) > 24 * HOUR_NS)[14] + 1
    times[week:] += hours * HOUR_NS
    jump = found(times, columns_for(times))["clock_jump"]
    assert jump.count == 1
    assert jump.examples[0].startswith(f"row {week + 1} (")
    assert jump.examples[0].endswith(f"{abs(hours)}h {'later' if hours > 0 else 'earlier'}")


def test_single_late_opening_is_no_clock_jump() -> None:
    times = market_times()
    week = np.flatnonzero(np.diff(times) > 24 * HOUR_NS)[14] + 1
    times = np.delete(times, [week, week + 1])
    assert "clock_jump" not in found(times, columns_for(times))


def test_impossible_bars_are_counted_once_and_shown_with_their_reason() -> None:
    times = market_times(4)
    columns = columns_for(times)
    columns["high"][10] = 0.5
    columns["close"][20] = np.nan
    columns["open"][30:34] = -1.0
    finding = found(times, columns)["impossible_bar"]
    assert (finding.count, finding.severity) == (6, Severity.ERROR)
    assert [example.split(" ")[1] for example in finding.examples] == ["11", "21", "31"]
    assert "high is below low (high 0.5" in finding.examples[0]


def test_duplicates_disorder_and_overlaps_are_errors() -> None:
    times = market_times(4)
    times[11] = times[10]
    times[30], times[31] = times[31], times[30]
    times[50] -= HOUR_NS // 2
    findings = found(times, columns_for(times))
    assert findings["duplicate_time"].count == 1
    assert findings["time_order"].examples[0].startswith("row 32 ")
    assert findings["overlap"].examples[0].startswith("row 51 ")
    assert {findings[kind].severity for kind in ("duplicate_time", "time_order", "overlap")} == {Severity.ERROR}


@pytest.mark.parametrize(("length", "count"), [(23, 0), (24, 1), (60, 1)])
def test_equal_closes_are_a_constant_run(length: int, count: int) -> None:
    times = market_times(4)
    columns = columns_for(times)
    columns["close"][100 : 100 + length] = columns["close"][100]
    for name in ("high", "low"):
        columns[name][100 : 100 + length] = columns["close"][100]
    columns["open"][100 : 100 + length] = columns["close"][100]
    findings = found(times, columns)
    assert ("constant_run" in findings) == bool(count)
    if count:
        assert findings["constant_run"].examples[0].startswith("row 101 (")
        assert findings["constant_run"].examples[0].endswith(f"{length} bars")


def test_volume_of_zero_is_told_as_a_run_or_as_a_whole() -> None:
    times = market_times(4)
    columns = columns_for(times)
    columns["volume"][100:130] = 0
    assert found(times, columns)["zero_volume"].examples == (
        f"row 101 ({np.datetime64(int(times[100]), 'ns').astype('datetime64[s]')}Z): 30 bars",
    )
    columns["volume"][:] = 0
    assert found(times, columns)["zero_volume"].examples == (f"all {len(times)} bars",)


def test_extreme_move_is_told_with_its_size() -> None:
    times = market_times(10)
    columns = columns_for(times)
    for name in ("open", "high", "low", "close"):
        columns[name][300:] *= 1.1
    finding = found(times, columns)["extreme_move"]
    assert finding.count == 1
    assert finding.examples[0].startswith("row 301 (")


def test_daily_bars_of_a_stock_have_weekends() -> None:
    days = [datetime(2017, 1, 2, tzinfo=UTC) + timedelta(days=day) for day in range(300)]
    times = np.array([ns(day) for day in days if day.weekday() < 5], dtype=np.int64)
    report = check_bars(times, columns_for(times), Timeframe.parse("1d"))
    assert report.findings == ()
    assert report.num_usual_closures == 42


def test_single_bar_is_checked() -> None:
    assert check_bars(np.array([0]), {name: np.array([1.0]) for name in BAR_COLUMNS}, HOUR).findings == ()


def test_shipped_bars_miss_only_christmas() -> None:
    report = check_stored_series(DirectoryBarStore(REPOSITORY / "data"), "EURUSD", "1h")
    assert (report.num_bars, report.num_errors, report.num_warnings) == (6225, 0, 1)
    assert report.findings[0].examples == ("row 6130 (2017-12-25T22:00:00Z): nothing for 14h",)


def test_file_that_breaks_rules_is_reported_whole_and_not_only_its_first_row(tmp_path: Path) -> None:
    lines = bars_csv(make_bars(300)).splitlines()
    for row in (10, 20, 30, 40):
        lines[row] = lines[row].replace(",1.", ",-1.", 1)
    (tmp_path / "EURUSD_1h.csv").write_text("\n".join(lines))
    report = check_stored_series(DirectoryBarStore(tmp_path), "EURUSD", "1h")
    assert {finding.kind: finding.count for finding in report.findings} == {"impossible_bar": 4}


def test_file_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    path = write_bars_csv(tmp_path, make_bars(30))
    path.write_text(path.read_text().replace("T01", "X01", 1))
    (finding,) = check_stored_series(DirectoryBarStore(tmp_path), "EURUSD", "1h").findings
    assert (finding.kind, finding.severity) == ("unreadable", Severity.ERROR)
    assert "EURUSD_1h.csv, row 4: timestamp must be" in finding.examples[0]


@pytest.mark.parametrize(
    ("hours", "text"), [(1, "1h"), (36, "36h"), (24, "1d"), (336, "2w"), (0.5, "30m"), (0.0125, "45s")]
)
def test_lengths_of_time_are_written_like_timeframes(hours: float, text: str) -> None:
    assert duration_text(int(hours * HOUR_NS)) == text
