"""What is wrong, or looks wrong, with a stored series. It reports; it changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.data.bar_store import PARTITIONED, DirectoryBarStore, SeriesInfo
from ktrdr_core.data.bars import BAR_COLUMNS, FloatArray, IntArray, RuleKind, broken_rules, time_text
from ktrdr_core.data.closures import duration_text, find_clock_jumps, is_usual_closure, long_steps
from ktrdr_core.data.files import read_columns
from ktrdr_core.data.partitions import damaged_parts, load_partitions, read_manifest
from ktrdr_core.domain.timeframe import Timeframe
from ktrdr_core.errors import InvalidBarsError

NUM_EXAMPLES = 3
CONSTANT_RUN_BARS = 24
ZERO_VOLUME_RUN_BARS = 24
EXTREME_MOVE_SIGMAS = 30.0
# Of a normal distribution, the median of absolute values is 0.6745 standard deviations.
_SIGMA_OF_MEDIAN = 1 / 0.6745


class Severity(StrEnum):
    """An error breaks a rule of the data: training refuses the series. A warning may be the market itself."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of finding.

    Attributes:
        kind: Stable name: unreadable, damaged, impossible_bar, duplicate_time, time_order, overlap, gap, clock_jump,
            constant_run, zero_volume, extreme_move.
        severity: Whether training refuses the series for it.
        count: How often.
        rule: The rule, for people.
        examples: The first ones, with row and time.
    """

    kind: str
    severity: Severity
    count: int
    rule: str
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeriesReport:
    """What a check of a series found.

    Attributes:
        symbol, timeframe, file_format: Which series.
        num_bars: Bars it has; 0 where it cannot be read.
        first_time, last_time: ISO 8601, UTC; "" where it cannot be read.
        num_usual_closures: Steps longer than a bar that are the market's nights and weekends.
        clock: Clock by which the market opens its week, "" where that cannot be told.
        findings: Errors first.
    """

    symbol: str
    timeframe: str
    file_format: str
    num_bars: int
    first_time: str
    last_time: str
    num_usual_closures: int
    clock: str
    findings: tuple[Finding, ...]

    @property
    def num_errors(self) -> int:
        return sum(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def num_warnings(self) -> int:
        return len(self.findings) - self.num_errors


def check_stored_series(store: DirectoryBarStore, symbol: str, timeframe: str) -> SeriesReport:
    """Return the report on a series of a store.

    Raises:
        SeriesNotFoundError: There is no such series.
    """
    info, path = store.find(symbol, timeframe)
    try:
        times, columns, damaged = _read(info, path)
    except InvalidBarsError as error:
        finding = Finding("unreadable", Severity.ERROR, 1, "the series can be read", (error.message,))
        return SeriesReport(symbol, timeframe, info.file_format, 0, "", "", 0, "", (finding,))
    report = check_bars(times, columns, Timeframe.parse(timeframe))
    findings = report.findings
    if damaged:
        rule = "each file has the digest it was written with"
        findings = (Finding("damaged", Severity.ERROR, len(damaged), rule, tuple(damaged[:NUM_EXAMPLES])), *findings)
    return SeriesReport(
        symbol,
        timeframe,
        info.file_format,
        len(times),
        time_text(int(times[0])),
        time_text(int(times[-1])),
        report.num_usual_closures,
        report.clock,
        findings,
    )


@dataclass(frozen=True, slots=True)
class BarsReport:
    """What was found in bars; fields as of `SeriesReport`."""

    num_usual_closures: int
    clock: str
    findings: tuple[Finding, ...]


def check_bars(times_T: IntArray, columns: dict[str, FloatArray], timeframe: Timeframe) -> BarsReport:
    """Return what is wrong, or looks wrong, with bars.

    Args:
        times_T: Open times, ns since 1970 UTC, shape (T,), T at least 1, in any order.
        columns: The `BAR_COLUMNS`, float64, shape (T,) each, any values.
        timeframe: Bar length.
    """
    findings = _broken(times_T, columns, timeframe)
    # What follows speaks of bars in order and of possible values; findings above have named the others.
    order = np.unique(times_T, return_index=True)[1]
    good = order[_is_possible(columns)[order]]
    times = times_T[good]
    close, volume = columns["close"][good], columns["volume"][good]
    rows = good + 1
    closures, clock = 0, ""
    if len(times) > 1:
        steps = long_steps(times, timeframe)
        is_usual = is_usual_closure(times, steps, timeframe)
        closures = int(is_usual.sum())
        clock, jumps = find_clock_jumps(times, steps)
        findings += _gaps(times, rows, steps[~is_usual], timeframe)
        if jumps:
            findings.append(
                Finding(
                    "clock_jump",
                    Severity.WARNING,
                    len(jumps),
                    f"the week opens at one time of the {clock} clock; weeks on end do not move it",
                    tuple(
                        f"row {rows[jump.row]} ({time_text(int(times[jump.row]))}): "
                        f"{duration_text(abs(jump.shift_ns))} {'later' if jump.shift_ns > 0 else 'earlier'}"
                        for jump in jumps[:NUM_EXAMPLES]
                    ),
                )
            )
        findings += _runs(
            "constant_run",
            np.diff(close) == 0,
            times,
            rows,
            CONSTANT_RUN_BARS,
            "closes are not equal in {n} bars on end",
        )
        findings += _volume(volume, times, rows)
        findings += _extreme_moves(close, times, rows)
    findings.sort(key=lambda finding: finding.severity is not Severity.ERROR)
    return BarsReport(closures, clock, tuple(findings))


def _read(info: SeriesInfo, path: Path) -> tuple[IntArray, dict[str, FloatArray], list[str]]:
    if info.file_format != PARTITIONED:
        times, columns = read_columns(path)
        if not len(times):
            raise InvalidBarsError(f"{path.name}: has no bars; a series needs at least one", field="bars")
        return times, columns, []
    damaged = damaged_parts(path, read_manifest(path))
    bars = load_partitions(path, symbol=info.symbol, timeframe=info.timeframe, start=None, end=None)
    return bars.times, {name: getattr(bars, name) for name in BAR_COLUMNS}, damaged


_KINDS = {
    RuleKind.VALUE: (
        "impossible_bar",
        "prices are finite and above 0, volume is not negative, low <= open, close <= high",
    ),
    RuleKind.DUPLICATE: ("duplicate_time", "no two bars have the same time"),
    RuleKind.ORDER: ("time_order", "times increase"),
    RuleKind.OVERLAP: ("overlap", "a bar opens after the bar before has closed"),
}


def _broken(times_T: IntArray, columns: dict[str, FloatArray], timeframe: Timeframe) -> list[Finding]:
    rules = broken_rules(times_T, columns, timeframe)
    findings = []
    for kind, (name, text) in _KINDS.items():
        reasons: dict[int, str] = {}
        for rule in (rule for rule in rules if rule.kind is kind):
            for row in rule.rows[:NUM_EXAMPLES].tolist():
                reasons.setdefault(row, rule.reason(columns, row))
        if reasons:
            count = len(np.unique(np.concatenate([rule.rows for rule in rules if rule.kind is kind])))
            examples = tuple(
                f"row {row + 1} ({time_text(int(times_T[row]))}): {reasons[row]}"
                for row in sorted(reasons)[:NUM_EXAMPLES]
            )
            findings.append(Finding(name, Severity.ERROR, count, text, examples))
    return findings


def _is_possible(columns: dict[str, FloatArray]) -> NDArray[np.bool_]:
    close, volume = columns["close"], columns["volume"]
    return np.asarray(np.isfinite(close) & (close > 0) & np.isfinite(volume))


def _gaps(times: IntArray, rows: IntArray, steps: IntArray, timeframe: Timeframe) -> list[Finding]:
    if not len(steps):
        return []
    lengths = times[steps] - times[steps - 1] - timeframe.duration_ns
    longest = steps[np.argsort(-lengths, kind="stable")[:NUM_EXAMPLES]]
    examples = tuple(
        f"row {rows[row]} ({time_text(int(times[row]))}): nothing for "
        f"{duration_text(int(times[row] - times[row - 1] - timeframe.duration_ns))}"
        for row in sorted(longest.tolist())
    )
    rule = "a bar follows when the bar before has closed, but for the market's usual closures (the longest are shown)"
    return [Finding("gap", Severity.WARNING, len(steps), rule, examples)]


def _runs(
    kind: str, is_same: NDArray[np.bool_], times: IntArray, rows: IntArray, num_bars: int, rule: str
) -> list[Finding]:
    """Return the finding of runs: `is_same[i]` says that bar i + 1 continues the run of bar i."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_same, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    lengths = stops - starts + 1
    is_long = lengths >= num_bars
    if not is_long.any():
        return []
    examples = tuple(
        f"row {rows[start]} ({time_text(int(times[start]))}): {length} bars"
        for start, length in zip(
            starts[is_long][:NUM_EXAMPLES].tolist(), lengths[is_long][:NUM_EXAMPLES].tolist(), strict=True
        )
    )
    return [Finding(kind, Severity.WARNING, int(is_long.sum()), rule.format(n=num_bars), examples)]


def _volume(volume: FloatArray, times: IntArray, rows: IntArray) -> list[Finding]:
    is_zero = volume == 0
    if is_zero.all():
        rule = "bars have a volume; without one, indicators of volume mean nothing"
        return [Finding("zero_volume", Severity.WARNING, 1, rule, (f"all {len(volume)} bars",))]
    rule = "volume is not 0 in {n} bars on end"
    return _runs("zero_volume", is_zero[1:] & is_zero[:-1], times, rows, ZERO_VOLUME_RUN_BARS, rule)


def _extreme_moves(close: FloatArray, times: IntArray, rows: IntArray) -> list[Finding]:
    moves = np.diff(np.log(close))
    typical = np.abs(moves[moves != 0])
    if not len(typical):
        return []
    sigma = float(np.median(typical)) * _SIGMA_OF_MEDIAN
    found = np.flatnonzero(np.abs(moves) > EXTREME_MOVE_SIGMAS * sigma)
    if not len(found):
        return []
    examples = tuple(
        f"row {rows[index + 1]} ({time_text(int(times[index + 1]))}): {np.expm1(moves[index]) * 100:+.2f} %, "
        f"{abs(moves[index]) / sigma:.0f} times the usual"
        for index in found[:NUM_EXAMPLES].tolist()
    )
    rule = f"no close moves by more than {EXTREME_MOVE_SIGMAS:g} times the usual (1.48 medians of the size of moves)"
    return [Finding("extreme_move", Severity.WARNING, len(found), rule, examples)]
