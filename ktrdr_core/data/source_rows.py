"""Rows of the files of an import, block by block: values as numbers, times in UTC, what cannot be read with its row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from ktrdr_core.config.naming import NAME_RULE, is_name
from ktrdr_core.data.arrow_arrays import null_rows, to_numpy
from ktrdr_core.data.bars import BAR_COLUMNS, FloatArray, IntArray, day_start_ns, time_text
from ktrdr_core.data.local_time import to_utc
from ktrdr_core.data.sniffing import FileLayout, open_stream, refuse_file
from ktrdr_core.data.time_formats import parse_times
from ktrdr_core.errors import InvalidBarsError

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 65_536
MAX_UNREADABLE_ROWS = 1_000
UNREADABLE = "rows that cannot be read were dropped"
SKIPPED_HOUR = "rows in an hour that the clocks skipped were dropped"
REPEATED_HOUR = "rows in an hour that the clocks showed twice were told apart by their order"
YEARS = range(1900, 2200)


@dataclass(frozen=True, eq=False, slots=True)
class RowBlock:
    """Some rows of one file, in its order.

    Attributes:
        times: ns since 1970 UTC, shape (T,), int64.
        values: Open, high, low, close, volume, shape (T, 5), float64; rules of the data not checked.
        rows: Row of each in the file, from 1, the header not counted, shape (T,), int64; after rows that a repair
            dropped because they are no complete row, fewer by those.
        symbols: Symbol of each, shape (T,), objects; None where the file holds one series.
    """

    times: IntArray
    values: FloatArray
    rows: IntArray
    symbols: Any


class RowReader:
    """Reads the rows of one file.

    Args:
        layout: How the file is read.
        zone: Zone of times that have none of their own.
        scale: Factor of each column that has one.
        repairs: Where repairs are counted; None refuses the first row that needs one.
    """

    def __init__(
        self, layout: FileLayout, *, zone: ZoneInfo, scale: Mapping[str, float], repairs: Counter[str] | None
    ) -> None:
        self._layout = layout
        self._zone = zone
        self._factors = np.array([scale.get(name, 1.0) for name in BAR_COLUMNS])
        self._repairs = repairs
        self._num_unreadable = 0
        self._repeated: Counter[tuple[str, int]] = Counter()

    def blocks(self) -> Iterator[RowBlock]:
        """Yield the file's rows.

        Raises:
            InvalidBarsError: The file cannot be read, or a row of it cannot; with repairs, too many rows cannot.
        """
        import pyarrow as pa

        next_row = 1
        try:
            for batch in self._parquet() if self._layout.file_format == "parquet" else self._csv():
                if len(batch):
                    rows = np.arange(next_row, next_row + len(batch), dtype=np.int64)
                    next_row += len(batch)
                    yield self._block(batch, rows)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise refuse_file(
                self._layout.path, f"cannot be read ({' '.join(str(error).split())[:160]}); check the file"
            ) from error

    def _parquet(self) -> Iterator[Any]:
        from pyarrow import parquet

        with parquet.ParquetFile(self._layout.path, pre_buffer=False) as file:
            yield from file.iter_batches(BLOCK_ROWS, columns=list(self._layout.roles.names), use_threads=False)

    def _csv(self) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import csv

        layout = self._layout
        names = layout.roles.names
        refusal: list[InvalidBarsError] = []

        def on_ragged(row: Any) -> str:
            if self._repairs is None:
                number = row.number - layout.has_header if row.number is not None else None
                text = f"has {row.actual_columns} values, not {row.expected_columns}"
                refusal.append(refuse_file(layout.path, text, number))
                return "error"
            try:
                self._count(UNREADABLE)
            except InvalidBarsError as too_many:  # nothing may be raised through Arrow
                refusal.append(too_many)
                return "error"
            return "skip"

        # Without a header the columns' names are their numbers.
        generated = {} if layout.has_header else {"autogenerate_column_names": True}
        arrow_names = list(names) if layout.has_header else [f"f{int(name) - 1}" for name in names]
        try:
            with (
                open_stream(layout.path) as stream,
                csv.open_csv(
                    stream,
                    read_options=csv.ReadOptions(
                        use_threads=False,
                        block_size=BLOCK_BYTES,
                        encoding="utf-8" if layout.encoding == "utf-8-sig" else layout.encoding,
                        **generated,
                    ),
                    parse_options=csv.ParseOptions(delimiter=layout.delimiter, invalid_row_handler=on_ragged),
                    convert_options=csv.ConvertOptions(
                        column_types=dict.fromkeys(arrow_names, pa.string()),
                        include_columns=arrow_names,
                        strings_can_be_null=False,
                    ),
                ) as reader,
            ):
                for batch in reader:
                    yield batch.rename_columns(list(names))
        except pa.ArrowInvalid as error:
            raise (refusal[0] if refusal else error) from None

    def _block(self, batch: Any, rows: IntArray) -> RowBlock:
        bad: dict[int, tuple[str, str]] = {}
        times = self._times(batch, bad)
        symbols = self._symbols(batch, bad)
        values = np.zeros((len(batch), len(BAR_COLUMNS)))
        roles = self._layout.roles
        for index, (name, column) in enumerate(zip(BAR_COLUMNS, (*roles.prices, roles.volume), strict=True)):
            if column is not None:
                values[:, index] = self._numbers(batch.column(column), name, bad)
        values *= self._factors
        if not self._layout.has_zone:
            times = self._in_utc(times, symbols, bad)
        if bad:
            keep = self._without(bad, rows)
            times, values, rows = times[keep], values[keep], rows[keep]
            symbols = None if symbols is None else symbols[keep]
        return RowBlock(times, values, rows, symbols)

    def _without(self, bad: Mapping[int, tuple[str, str]], rows: IntArray) -> NDArray[np.bool_]:
        """Return which rows are kept; refuse the first bad one where nothing is to be repaired."""
        if self._repairs is None:
            first = min(bad)
            raise refuse_file(self._layout.path, bad[first][0], int(rows[first]))
        for _, repair in bad.values():
            self._count(repair)
        keep = np.ones(len(rows), dtype=bool)
        keep[list(bad)] = False
        return keep

    def _count(self, repair: str) -> None:
        if self._repairs is not None:
            self._repairs[repair] += 1
        self._num_unreadable += repair == UNREADABLE
        if self._num_unreadable > MAX_UNREADABLE_ROWS:
            raise self._too_many()

    def _too_many(self) -> InvalidBarsError:
        return refuse_file(
            self._layout.path,
            f"more than {MAX_UNREADABLE_ROWS} rows cannot be read, too many to repair; check the columns and the times "
            "that were understood",
        )

    def _times(self, batch: Any, bad: dict[int, tuple[str, str]]) -> IntArray:
        """Return each row's time as ns since 1970, of the local clock where there is no zone; 0 for bad ones."""
        import pyarrow as pa
        import pyarrow.compute as pc

        layout = self._layout
        columns = [batch.column(name) for name in layout.roles.time]
        if layout.time_format is None:
            ((column,), kind) = columns, pa.timestamp("ns", tz="UTC" if layout.has_zone else None)

            def parse(part: Any) -> Any:
                return pc.cast(pc.cast(part, kind), pa.int64())
        else:
            texts = [pc.cast(column, pa.string()) for column in columns]
            column = texts[0]
            if len(texts) == 2:
                day, clock = (pc.utf8_trim_whitespace(each) for each in texts)
                column = pc.binary_join_element_wise(day, clock, " ")
            time_format = layout.time_format

            def parse(part: Any) -> Any:
                return parse_times(part, time_format)

        rule = "a time as understood" if layout.time_format is None else f"a time written as {layout.time_format}"
        times = self._parse(column, parse, f"time must be {rule}", bad).astype(np.int64)
        low, high = (day_start_ns(date(year, 1, 1)) for year in (YEARS.start, YEARS.stop))
        for index in np.flatnonzero((times < low) | (times >= high)).tolist():
            shown = _text_of(column[index])
            bad.setdefault(index, (f"time must be in {YEARS.start} to {YEARS.stop - 1}, was {shown!r}", UNREADABLE))
            times[index] = 0
        return times

    def _numbers(self, column: Any, name: str, bad: dict[int, tuple[str, str]]) -> FloatArray:
        import pyarrow as pa
        import pyarrow.compute as pc

        def parse(part: Any) -> Any:
            if pa.types.is_boolean(part.type):
                raise pa.ArrowInvalid("no number")
            if not pa.types.is_string(part.type):
                return pc.cast(part, pa.float64(), safe=False)
            try:
                return pc.cast(part, pa.float64())
            except pa.ArrowInvalid:
                part = pc.utf8_trim_whitespace(part)
                part = pc.replace_substring(part, ",", ".") if self._layout.has_decimal_comma else part
                return pc.cast(part, pa.float64())

        if pa.types.is_large_string(column.type) or pa.types.is_dictionary(column.type):
            column = pc.cast(column, pa.string())
        return self._parse(column, parse, f"{name} must be a number", bad)

    def _parse(
        self, column: Any, parse: Callable[[Any], Any], rule: str, bad: dict[int, tuple[str, str]]
    ) -> NDArray[Any]:
        """Return a column parsed; what cannot be is 0 and bad."""
        missing = null_rows(column)
        for index in missing.tolist():
            bad.setdefault(index, (f"{rule}, is missing", UNREADABLE))
        values, failed = self._parsed_parts(column.drop_null(), parse)
        if not len(missing) and not failed:
            return values
        present = np.setdiff1d(np.arange(len(column)), missing)
        for position, text in failed.items():
            bad.setdefault(int(present[position]), (f"{rule}, was {text!r}", UNREADABLE))
        spread = np.zeros(len(column), dtype=values.dtype)
        spread[present] = values
        return spread

    def _parsed_parts(self, column: Any, parse: Callable[[Any], Any]) -> tuple[NDArray[Any], dict[int, str]]:
        """Return the values, and by position the text of those that cannot be parsed: halving finds them."""
        import pyarrow as pa

        failed: dict[int, str] = {}
        parts: list[NDArray[Any]] = []
        pending = [(0, len(column))]
        while pending:
            start, stop = pending.pop()
            try:
                parts.append(to_numpy(parse(column.slice(start, stop - start))))
            except pa.ArrowException:
                if stop - start > 1:
                    middle = (start + stop) // 2
                    pending += [(middle, stop), (start, middle)]
                    continue
                failed[start] = _text_of(column[start])
                parts.append(np.zeros(1, dtype=np.int64))
                if self._repairs is None or len(failed) > MAX_UNREADABLE_ROWS:
                    # The first one refuses the file, and so do too many.
                    parts.append(np.zeros(len(column) - stop, dtype=np.int64))
                    break
        return (np.concatenate(parts) if parts else np.zeros(0)), failed

    def _symbols(self, batch: Any, bad: dict[int, tuple[str, str]]) -> Any:
        """Return each row's symbol as objects, None where the file has no such column."""
        name = self._layout.roles.symbol
        if name is None:
            return None
        import pyarrow as pa

        try:
            encoded = batch.column(name).cast(pa.string()).dictionary_encode()
        except pa.ArrowException as error:
            raise refuse_file(self._layout.path, f"column {name} must be text, the symbol of each row") from error
        known = [each.strip() if each is not None else "" for each in encoded.dictionary.to_pylist()] + [""]
        codes = to_numpy(encoded.indices.fill_null(len(known) - 1))
        for code, symbol in enumerate(known):
            if not is_name(symbol):
                for index in np.flatnonzero(codes == code).tolist():
                    bad.setdefault(index, (f"symbol must be {NAME_RULE}, was {symbol[:40]!r}", UNREADABLE))
        return np.array(known, dtype=object)[codes]

    def _in_utc(self, clock: IntArray, symbols: Any, bad: dict[int, tuple[str, str]]) -> IntArray:
        """Return times of the zone's clock in UTC; those it skipped or showed twice are bad, or repaired."""
        if self._zone.key == "UTC":
            return clock
        utc = to_utc(clock, self._zone)
        times = utc.times
        for index in np.flatnonzero(utc.is_skipped).tolist():
            shown = time_text(int(clock[index])).rstrip("Z")
            text = f"{shown} does not exist in {self._zone.key}: its clocks skipped it; choose the right --timezone"
            bad.setdefault(index, (text, SKIPPED_HOUR))
        for index in np.flatnonzero(utc.is_repeated).tolist():
            if index in bad:
                continue
            if self._repairs is None:
                shown = time_text(int(clock[index])).rstrip("Z")
                text = f"{shown} is two instants in {self._zone.key}: its clocks showed it twice; choose the right "
                text += "--timezone, or --repair to take the first row of that time as the first instant"
                bad[index] = (text, REPEATED_HOUR)
                continue
            key = ("" if symbols is None else str(symbols[index]), int(clock[index]))
            self._repeated[key] += 1
            self._repairs[REPEATED_HOUR] += 1
            if self._repeated[key] > 1:
                times[index] = utc.second_times[index]
        return times


def _text_of(scalar: Any) -> str:
    """Return the beginning of a value of a file, for messages; of a time that Python has no word for, its number."""
    try:
        return str(scalar.as_py())[:40]
    except (OverflowError, ValueError):
        return str(getattr(scalar, "value", "?"))[:40]
