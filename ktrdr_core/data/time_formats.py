"""How files write times, and the times they mean. What can be read in two ways is refused, not guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from ktrdr_core.errors import InvalidBarsError, InvalidInputError

EPOCH_UNITS_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DIRECTIVES = {"%Y": r"(\d{4})", "%m": r"(\d{1,2})", "%d": r"(\d{1,2})", "%H": r"(\d{1,2})", "%M": r"(\d{2})"}
_DIRECTIVES |= {"%S": r"(\d{2}(?:\.\d{1,9})?)"}
_COMPACT = {"%m": r"(\d{2})", "%d": r"(\d{2})", "%H": r"(\d{2})"}
_ISO = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d(?::?\d\d(?::?\d\d(?:\.\d{1,9})?)?)?(\s*(?:Z|UTC|GMT|[+-]\d\d(?::?\d\d)?))?)?", re.ASCII
)
_NUMBER = re.compile(r"-?\d{1,19}(?:\.\d{0,9})?", re.ASCII)
_YEAR_FIRST = (
    *("%Y%m%d", "%Y%m%d%H%M%S", "%Y%m%d%H%M"),
    *(f"%Y%m%d{between}{clock}" for between in " T" for clock in ("%H%M%S", "%H%M", "%H:%M:%S", "%H:%M")),
    *(f"%Y{sep}%m{sep}%d{clock}" for sep in "./" for clock in ("", " %H:%M", " %H:%M:%S")),
)
_YEAR_LAST = tuple((sep, clock) for sep in "./-" for clock in ("", " %H:%M", " %H:%M:%S"))


@dataclass(frozen=True, slots=True)
class TimeFormat:
    """One way to write times.

    Attributes:
        text: For people and for `--time-format`: "iso", an epoch unit, or directives such as "%Y.%m.%d %H:%M".
        has_zone: Whether each time carries its own zone; times without are local to a zone that is given beside.
    """

    text: str
    has_zone: bool = False

    @property
    def unit_ns(self) -> int:
        """Length of the unit of an epoch format, 0 for others."""
        return EPOCH_UNITS_NS.get(self.text, 0)

    @property
    def is_absolute(self) -> bool:
        """Whether times need no zone beside them."""
        return self.has_zone or self.unit_ns > 0

    def __str__(self) -> str:
        if self.unit_ns:
            return f"{self.text} since 1970"
        return "ISO 8601" + (" with a zone" if self.has_zone else "") if self.text == "iso" else self.text


@dataclass(frozen=True, slots=True)
class _Rewrite:
    """A regular expression and its rewriting as ISO 8601."""

    pattern: str
    replacement: str


def parse_time_format(text: str) -> TimeFormat:
    """Return the format that `--time-format` names.

    Raises:
        InvalidInputError: It is none.
    """
    if text == "iso" or text in EPOCH_UNITS_NS:
        return TimeFormat(text)
    _rewrite_of(text)
    return TimeFormat(text)


def detect_time_format(samples: Sequence[str], *, source: str) -> TimeFormat:
    """Return the one format that every sample is written in.

    Args:
        samples: Some of a file's times, at least one.
        source: The file, for messages.

    Raises:
        InvalidBarsError: None fits all, or two do (day and month cannot be told apart).
    """
    texts = list(dict.fromkeys(sample.strip() for sample in samples))
    iso = [_ISO.fullmatch(text) for text in texts]
    if all(iso):
        zoned = [match[1] is not None for match in iso if match]
        if any(zoned) and not all(zoned):
            example = texts[zoned.index(False)]
            raise _refuse(source, f"some times have a zone and some have none, such as {example!r}; write all alike")
        return TimeFormat("iso", has_zone=all(zoned))
    for text in _YEAR_FIRST:
        if all(_is_written_as(text, sample) for sample in texts):
            return TimeFormat(text)
    if all(_NUMBER.fullmatch(text) for text in texts):
        return TimeFormat(_epoch_unit(texts))
    for sep, clock in _YEAR_LAST:
        fitting = [
            order
            for order in (f"%d{sep}%m{sep}%Y{clock}", f"%m{sep}%d{sep}%Y{clock}")
            if all(_is_written_as(order, sample) for sample in texts)
        ]
        if len(fitting) == 2:
            raise _refuse(
                source,
                f"{texts[0]!r} can be read with the day or with the month first; say which with "
                f"--time-format {fitting[0]!r} or --time-format {fitting[1]!r}",
            )
        if fitting:
            return TimeFormat(fitting[0])
    raise _refuse(
        source,
        f"no known way of writing times fits {texts[0][:40]!r} and the others; give it with --time-format, such as "
        "'%d.%m.%Y %H:%M', iso, s or ms",
    )


def parse_times(texts: Any, time_format: TimeFormat) -> Any:
    """Return times as an Arrow array of int64: ns since 1970 UTC, or of the local clock where there is no zone.

    Args:
        texts: Arrow array of strings.
        time_format: How they are written.

    Raises:
        pyarrow.ArrowInvalid: One of them is not written so, does not exist, or is outside 1677 to 2262.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if time_format.unit_ns:
        return _parse_epoch(pc.utf8_trim_whitespace(texts), time_format.unit_ns)
    kind = pa.timestamp("ns", tz="UTC") if time_format.has_zone else pa.timestamp("ns")
    if time_format.text == "iso":
        try:
            return pc.cast(pc.cast(texts, kind), pa.int64())
        except pa.ArrowInvalid:
            texts = pc.utf8_trim_whitespace(texts)
            texts = pc.replace_substring_regex(texts, r"\s*(?:UTC|GMT)$", "Z")
            texts = pc.replace_substring_regex(texts, r"\s+([+-]\d\d(?::?\d\d)?)$", r"\1")
            return pc.cast(pc.cast(texts, kind), pa.int64())
    rewrite = _rewrite_of(time_format.text)
    texts = pc.utf8_trim_whitespace(texts)
    is_written_so = pc.match_substring_regex(texts, f"^{rewrite.pattern}$")
    if not pc.all(is_written_so).as_py():
        first = texts.filter(pc.invert(is_written_so))[0].as_py()
        raise pa.ArrowInvalid(f"{first!r} is not written as {time_format}")
    texts = pc.replace_substring_regex(texts, f"^{rewrite.pattern}$", rewrite.replacement)
    num_passes = 0 if "(\\d{1,2})" not in rewrite.pattern else 2  # neighbouring one-digit parts share a separator
    for _ in range(num_passes):
        texts = pc.replace_substring_regex(texts, r"([- ])(\d)([- :]|$)", r"\10\2\3")
    return pc.cast(pc.cast(texts, kind), pa.int64())


def _parse_epoch(texts: Any, unit_ns: int) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = pc.cast(texts, pa.int64())
    except pa.ArrowInvalid:  # 1483308000.0, or no number
        values = pc.cast(texts, pa.float64())
        if not pc.all(pc.less(pc.abs(values), 2.0**53)).as_py():
            raise pa.ArrowInvalid("not all times are finite numbers that a float holds exactly") from None
        return pc.cast(pc.round(pc.multiply(values, float(unit_ns))), pa.int64())
    return pc.multiply_checked(numbers, pa.scalar(unit_ns, pa.int64()))


def _epoch_unit(texts: Sequence[str]) -> str:
    largest = max(abs(float(text)) for text in texts)
    for unit, limit in (("s", 1e11), ("ms", 1e14), ("us", 1e17)):
        if largest < limit:
            return unit
    return "ns"


@lru_cache(maxsize=128)
def _rewrite_of(text: str) -> _Rewrite:
    """Return how times written in directives become ISO 8601."""
    pieces = re.findall(r"%.?|[^%]+", text)
    is_compact = "%Y%m" in text or "%H%M" in text
    pattern = ""
    groups: dict[str, int] = {}
    for piece in pieces:
        if piece in _DIRECTIVES and piece not in groups:
            groups[piece] = len(groups) + 1
            pattern += (_COMPACT if is_compact else {}).get(piece, _DIRECTIVES[piece])
        elif piece.startswith("%"):
            raise _bad_format(text)
        else:
            pattern += re.escape(piece)
    has_clock = [each in groups for each in ("%H", "%M", "%S")]
    if (
        not {"%Y", "%m", "%d"} <= groups.keys()
        or has_clock != sorted(has_clock, reverse=True)
        or has_clock == [1, 0, 0]
    ):
        raise _bad_format(text)
    replacement = rf"\{groups['%Y']}-\{groups['%m']}-\{groups['%d']}"
    if "%H" in groups:
        replacement += rf" \{groups['%H']}:\{groups['%M']}" + (rf":\{groups['%S']}" if "%S" in groups else "")
    return _Rewrite(pattern, replacement)


def _is_written_as(text: str, sample: str) -> bool:
    rewrite = _rewrite_of(text)
    match = re.fullmatch(rewrite.pattern, sample, re.ASCII)
    if match is None:
        return False
    parts = re.split(r"[- :.]", match.expand(rewrite.replacement))
    try:
        year = datetime(*map(int, parts[:6])).year  # type: ignore[arg-type]  # noqa: DTZ001 only whether it exists
    except ValueError:
        return False
    return 1900 <= year < 2200


def _bad_format(text: str) -> InvalidInputError:
    return InvalidInputError(
        f"--time-format must be iso, one of {', '.join(EPOCH_UNITS_NS)}, or %Y, %m and %d with or without %H, %M and "
        f"%S, each once, such as '%d.%m.%Y %H:%M'; was {text[:60]!r}",
        field="--time-format",
    )


def _refuse(source: str, text: str) -> InvalidBarsError:
    return InvalidBarsError(f"{source}: {text}", field="time", metadata={"source": source})
