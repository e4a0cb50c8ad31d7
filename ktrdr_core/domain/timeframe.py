"""Bar lengths such as `1h`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from ktrdr_core.errors import InvalidInputError

_UNIT_NS = {"m": 60 * 10**9, "h": 3_600 * 10**9, "d": 86_400 * 10**9, "w": 7 * 86_400 * 10**9}
_TIMEFRAME = re.compile(r"([1-9][0-9]{0,2})([mhdw])", re.ASCII)
DAY_NS = _UNIT_NS["d"]


@dataclass(frozen=True, slots=True)
class Timeframe:
    """A whole number of minutes, hours, days or weeks."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str, *, field: str = "timeframe") -> Self:
        """Return the timeframe that `text` names, for example `5m`, `1h`, `1d`.

        Raises:
            InvalidInputError: It is no number in [1, 999] followed by m, h, d or w.
        """
        match = _TIMEFRAME.fullmatch(text)
        if match is None:
            raise InvalidInputError(
                f"a timeframe must be a number and one of m, h, d, w, for example 1h; was {text!r}", field=field
            )
        return cls(int(match[1]), match[2])

    @property
    def duration_ns(self) -> int:
        return self.count * _UNIT_NS[self.unit]

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"
