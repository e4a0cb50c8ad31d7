from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_core.data.alignment import resample
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.symbol_series import load_symbol_bars
from ktrdr_core.errors import InvalidBarsError, SeriesNotFoundError, TooFewBarsError
from tests.kit.builders import make_bars, write_bars_csv

HOURS = make_bars(900)
FOURS = resample(HOURS, "4h")


def test_longer_bars_come_from_the_store_or_else_from_the_base_bars(tmp_path: Path) -> None:
    write_bars_csv(tmp_path, HOURS)
    store = DirectoryBarStore(tmp_path)
    assert load_symbol_bars(store, "EURUSD", "1h", ["4h"]).higher[0].digest() == FOURS.digest()
    own = FOURS.rows(slice(3, None))
    write_bars_csv(tmp_path, own)
    assert load_symbol_bars(store, "EURUSD", "1h", ["4h"]).higher[0].digest() == own.digest()


@pytest.mark.parametrize(("missing", "is_refused"), [(20, False), (40, True)])
def test_longer_bars_that_end_long_before_the_base_bars_are_refused(
    tmp_path: Path, missing: int, is_refused: bool
) -> None:
    """Four days and two longer bars are borne: 26 bars of four hours."""
    write_bars_csv(tmp_path, HOURS)
    write_bars_csv(tmp_path, FOURS.head(len(FOURS) - missing))
    store = DirectoryBarStore(tmp_path)
    if not is_refused:
        assert len(load_symbol_bars(store, "EURUSD", "1h", ["4h"]).higher[0]) == len(FOURS) - missing
        return
    with pytest.raises(InvalidBarsError, match=r"EURUSD 4h ends .*, 1h goes on to .*; import the missing 4h bars"):
        load_symbol_bars(store, "EURUSD", "1h", ["4h"])


def test_base_bars_must_exist_between_the_days(tmp_path: Path) -> None:
    write_bars_csv(tmp_path, HOURS)
    store = DirectoryBarStore(tmp_path)
    with pytest.raises(SeriesNotFoundError):
        load_symbol_bars(store, "GBPUSD", "1h")
    with pytest.raises(TooFewBarsError, match="EURUSD 1h has no bars from None to 2016-01-01"):
        load_symbol_bars(store, "EURUSD", "1h", end_date=HOURS.first_day.replace(year=2016))
