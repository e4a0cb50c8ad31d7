"""Series of bars as messages, and back. Times of bars are whole nanoseconds, so datetimes would not do."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from ktrdr.data.v1.import_mode_pb2 import ImportMode
from ktrdr.data.v1.series_pb2 import Series, SeriesPart

from ktrdr_core.data.bar_store import SeriesInfo
from ktrdr_core.data.importer import IfExists
from ktrdr_core.data.parquet_bars import BarsFile
from ktrdr_core.data.partitions import Part, part_file_name
from ktrdr_core.data.series_parts import SeriesSnapshot
from ktrdr_core.errors import InvalidInputError

SHA256_SIZE_BYTES = 32
_NS = 10**9
_MAX_NS = 2**63 - 1
_IF_EXISTS = {
    ImportMode.IMPORT_MODE_UNSPECIFIED: IfExists.REFUSE,
    ImportMode.IMPORT_MODE_CREATE: IfExists.REFUSE,
    ImportMode.IMPORT_MODE_APPEND: IfExists.MERGE,
    ImportMode.IMPORT_MODE_REPLACE: IfExists.REPLACE,
}


def time_of_ns(time_ns: int) -> Timestamp:
    """Return the message of a time in ns since 1970."""
    seconds, nanos = divmod(time_ns, _NS)
    return Timestamp(seconds=seconds, nanos=nanos)


def ns_of_time(message: Timestamp, *, field: str) -> int:
    """Return a time in ns since 1970.

    Raises:
        InvalidInputError: It is no time between 1677 and 2262.
    """
    time_ns = message.seconds * _NS + message.nanos
    if not (0 <= message.nanos < _NS and abs(time_ns) <= _MAX_NS):
        raise InvalidInputError(
            f"{field} must be a time between 1677 and 2262, was {message.seconds} s and {message.nanos} ns since 1970",
            field=field,
        )
    return time_ns


def info_to_proto(info: SeriesInfo) -> Series:
    """Return a series with what is known of it without reading its bars."""
    message = Series(symbol=info.symbol, timeframe=info.timeframe)
    if info.num_bars is not None and info.first_ns is not None and info.last_ns is not None:
        message.num_bars = info.num_bars
        message.start_time.CopyFrom(time_of_ns(info.first_ns))
        message.end_time.CopyFrom(time_of_ns(info.last_ns))
    return message


def series_to_proto(snapshot: SeriesSnapshot, sha256: str) -> Series:
    """Return a series with its parts and the digest of its values, hex."""
    return Series(
        symbol=snapshot.symbol,
        timeframe=snapshot.timeframe,
        num_bars=snapshot.num_bars,
        start_time=time_of_ns(snapshot.first_ns),
        end_time=time_of_ns(snapshot.last_ns),
        sha256=bytes.fromhex(sha256),
        parts=[part_to_proto(part) for part in snapshot.parts],
    )


def range_to_proto(symbol: str, timeframe: str, found: BarsFile | Part, sha256: str) -> Series:
    """Return what is in a file of bars, with the digest of its values, hex."""
    return Series(
        symbol=symbol,
        timeframe=timeframe,
        num_bars=found.num_bars,
        start_time=time_of_ns(found.first_ns),
        end_time=time_of_ns(found.last_ns),
        sha256=bytes.fromhex(sha256),
    )


def part_to_proto(part: Part) -> SeriesPart:
    """Return the message of a part."""
    return SeriesPart(
        start_time=time_of_ns(part.first_ns),
        end_time=time_of_ns(part.last_ns),
        num_bars=part.num_bars,
        size_bytes=part.size_bytes,
        sha256=bytes.fromhex(part.sha256),
    )


def part_from_proto(message: SeriesPart, *, field: str) -> Part:
    """Return a part; the name of its file is made of its year and its digest.

    Raises:
        InvalidInputError: It has no digest, no bars, no bytes, or times that are none.
    """
    if len(message.sha256) != SHA256_SIZE_BYTES:
        raise InvalidInputError(
            f"{field}.sha256 must be {SHA256_SIZE_BYTES} bytes, was {len(message.sha256)}", field=f"{field}.sha256"
        )
    if message.num_bars < 1 or message.size_bytes < 1:
        raise InvalidInputError(
            f"{field} must have at least 1 bar and 1 byte, had {message.num_bars} and {message.size_bytes}", field=field
        )
    first_ns = ns_of_time(message.start_time, field=f"{field}.start_time")
    last_ns = ns_of_time(message.end_time, field=f"{field}.end_time")
    if last_ns < first_ns:
        raise InvalidInputError(f"{field} must not end before it begins", field=f"{field}.end_time")
    sha256 = message.sha256.hex()
    return Part(
        file=part_file_name(first_ns, sha256),
        num_bars=message.num_bars,
        first_ns=first_ns,
        last_ns=last_ns,
        size_bytes=message.size_bytes,
        sha256=sha256,
    )


def if_exists_from_proto(mode: ImportMode.ValueType) -> IfExists:
    """Return what an import does with a stored series.

    Raises:
        InvalidInputError: There is no such mode.
    """
    if mode not in _IF_EXISTS:
        raise InvalidInputError(f"mode must be one of {', '.join(ImportMode.keys()[1:])}, was {mode}", field="mode")
    return _IF_EXISTS[mode]
