"""Which column of a file is the time, which the open, and so on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ktrdr_core.data.bars import BAR_COLUMNS, PRICE_COLUMNS
from ktrdr_core.errors import InvalidBarsError, InvalidInputError

ROLES = ("time", *BAR_COLUMNS, "symbol")
_ALIASES: dict[str, tuple[str, ...]] = {
    "time": (
        *("timestamp", "datetime", "date_time", "time", "date", "open_time", "opentime", "bar_time", "gmt_time"),
        *(
            "time_utc",
            "utc",
            "utc_time",
            "timestamp_utc",
            "datetime_utc",
            "local_time",
            "index_level_0",
            "unix",
            "ts",
            "t",
        ),
    ),
    "open": ("open", "o", "open_price", "bidopen", "bid_open"),
    "high": ("high", "h", "high_price", "max", "bidhigh", "bid_high"),
    "low": ("low", "l", "low_price", "min", "bidlow", "bid_low"),
    "close": ("close", "c", "close_price", "last", "bidclose", "bid_close"),
    "volume": ("volume", "tick_volume", "tickvol", "tickqty", "vol", "v", "real_volume", "volume_usd", "qty"),
    "symbol": ("symbol", "ticker", "instrument", "pair", "sym"),
}
_SPLIT_TIME = (("date", "time"), ("day", "time"), ("yyyymmdd", "hhmmss"), ("date", "timestamp"))


@dataclass(frozen=True, slots=True)
class ColumnRoles:
    """The columns that are read.

    Attributes:
        time: One column, or a date and a time of day.
        prices: Columns of open, high, low and close.
        volume: None where the file has none: volume is 0 then.
        symbol: None where the file holds one series.
        notes: What a person should know of the choice.
    """

    time: tuple[str, ...]
    prices: tuple[str, str, str, str]
    volume: str | None
    symbol: str | None
    notes: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read."""
        return tuple(dict.fromkeys([*self.time, *self.prices, *filter(None, (self.volume, self.symbol))]))

    def to_dict(self) -> dict[str, str | None]:
        """Return the column of each role; two columns of a time are joined by `+`."""
        prices = dict(zip(PRICE_COLUMNS, self.prices, strict=True))
        return {"time": "+".join(self.time), **prices, "volume": self.volume, "symbol": self.symbol}


def parse_columns(text: str) -> dict[str, str]:
    """Return the columns by role that `--columns time=Date+Time,open=O` names.

    Raises:
        InvalidInputError: A part is no ROLE=COLUMN, or a role is given twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        role, equals, column = part.partition("=")
        role = role.strip().lower()
        if not equals or not column.strip() or role not in ROLES or role in found:
            raise InvalidInputError(
                f"--columns must be ROLE=COLUMN parts joined by commas, each role once, roles {', '.join(ROLES)}; "
                f"was {part!r}",
                field="--columns",
            )
        found[role] = column.strip()
    return found


def assign_columns(names: Sequence[str], given: Mapping[str, str], *, source: str) -> ColumnRoles:
    """Return which column plays which role.

    Args:
        names: Names of the file's columns; in a file without a header their numbers from 1.
        given: Columns the user named, by role.
        source: The file, for messages.

    Raises:
        InvalidBarsError: A role has no column, a named column does not exist, or a name stands twice.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise _refuse(source, f"has two columns {repeated[0][:40]!r}; rename one")
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(_normal(name), name)
    chosen: dict[str, tuple[str, ...]] = {}
    for role, text in given.items():
        parts = tuple(part.strip() for part in text.split("+")) if role == "time" and text not in names else (text,)
        missing = [part for part in parts if part not in names]
        if missing or len(parts) > 2:
            wanted = ", ".join(map(repr, missing)) or repr(text)
            raise _refuse(source, f"has no column {wanted}; its columns are {_list(names)}")
        chosen[role] = parts
    notes: list[str] = []
    if "time" not in chosen:
        pair = next((pair for pair in _SPLIT_TIME if set(pair) <= by_name.keys()), None)
        if pair is not None and not {"timestamp", "datetime"} & (by_name.keys() - set(pair)):
            chosen["time"] = (by_name[pair[0]], by_name[pair[1]])
    for role, aliases in _ALIASES.items():
        candidates = [by_name[alias] for alias in aliases if alias in by_name]
        if role in chosen or not candidates:
            continue
        chosen[role] = (candidates[0],)
        if len(candidates) > 1:
            notes.append(
                f"{role} is taken from {candidates[0]}, not from {', '.join(candidates[1:])} (--columns chooses)"
            )
    missing = [role for role in ("time", *PRICE_COLUMNS) if role not in chosen]
    if missing:
        raise _refuse(
            source,
            f"has no column for {', '.join(missing)}; its columns are {_list(names)}; name them with --columns "
            f"{','.join(f'{role}=COLUMN' for role in missing)}",
        )
    taken = [column for columns in chosen.values() for column in columns]
    twice = sorted({column for column in taken if taken.count(column) > 1})
    if twice:
        raise _refuse(source, f"column {twice[0]!r} plays two roles; give each role a column of its own with --columns")
    ignored = [name for name in names if name not in taken]
    if ignored:
        notes.append(f"not read: {_list(ignored)}")
    if "volume" not in chosen:
        notes.append("there is no volume: it is 0 in every bar, and indicators of volume mean nothing")
    open_, high, low, close = (chosen[role][0] for role in PRICE_COLUMNS)
    return ColumnRoles(
        time=chosen["time"],
        prices=(open_, high, low, close),
        volume=chosen["volume"][0] if "volume" in chosen else None,
        symbol=chosen["symbol"][0] if "symbol" in chosen else None,
        notes=tuple(notes),
    )


def parse_scale(text: str) -> dict[str, float]:
    """Return the factor of each column that `--scale price=0.00001,volume=1000` names.

    Raises:
        InvalidInputError: A part is no COLUMN=FACTOR, or a factor is no finite number above 0.
    """
    factors: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        name = name.strip().lower()
        try:
            factor = float(number)
        except ValueError:
            factor = 0.0
        columns = PRICE_COLUMNS if name == "price" else (name,)
        if name not in ("price", *BAR_COLUMNS) or not 0 < factor < float("inf") or factors.keys() & set(columns):
            raise InvalidInputError(
                f"--scale must be COLUMN=FACTOR parts joined by commas, with columns price, {', '.join(BAR_COLUMNS)}, "
                f"each once, and factors above 0; was {part!r}",
                field="--scale",
            )
        factors |= dict.fromkeys(columns, factor)
    return factors


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().strip("<>").lower()).strip("_")


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] or "(empty)" for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def _refuse(source: str, text: str) -> InvalidBarsError:
    return InvalidBarsError(f"{source}: {text}", field="columns", metadata={"source": source})
