"""`ktrdr models predict`: a stored model's decisions on bars of this machine."""

from __future__ import annotations

import importlib.util
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from ktrdr_client.cli import json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.model_source import model_directory
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_table
from ktrdr_client.cli.train_command import parse_day
from ktrdr_core.domain.labels import CLASS_NAMES
from ktrdr_core.errors import InvalidInputError, ModelNotFoundError, UnsupportedError

if TYPE_CHECKING:
    from ktrdr_core.training.trading_model import Predictions

DEFAULT_BARS = 24
_WEIGHTS = "model.safetensors"


async def predict(
    session: CliSession,
    model: str,
    *,
    symbol: str | None,
    start: str | None,
    end: str | None,
    bars_dir: Path | None,
) -> int:
    """Print the decision for each bar of the range.

    Bars before the range are the warm-up. They begin where those of the training began, so that its test part gets the
    very answers that the training saw; for a range before that, and for another symbol, with the first bar there is.
    """
    start_date, end_date = parse_day(start, "--start"), parse_day(end, "--end")
    if start_date and end_date and start_date > end_date:
        raise InvalidInputError(f"--start {start_date} is after --end {end_date}; swap them", field="--start")
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("predicting needs torch, which is not installed; run: pip install 'ktrdr[train]'")
    own_bars_dir = session.settings.bars_dir
    path = model_directory(model)
    if path is None:
        path, served_bars_dir = await _by_name(session, model)
        if not own_bars_dir.is_dir() and served_bars_dir.is_dir():
            own_bars_dir = served_bars_dir  # the backend runs here and reads others

    from ktrdr_core.data.bar_store import DirectoryBarStore
    from ktrdr_core.data.bars import time_text
    from ktrdr_core.data.symbol_series import load_symbol_bars
    from ktrdr_core.storage.artifact import load_result

    metadata = load_result(path)["metadata"]
    if symbol is None and len(metadata["symbols"]) > 1:
        raise InvalidInputError(
            f"the model was trained on {', '.join(metadata['symbols'])}; name one with --symbol", field="--symbol"
        )
    symbol = symbol or metadata["symbols"][0]
    timeframe, *higher = metadata["timeframes"]
    store = DirectoryBarStore(bars_dir or own_bars_dir)
    first_date = date.fromisoformat(metadata["start_date"]) if symbol in metadata["symbols"] else None
    if first_date is not None and start_date is not None and start_date < first_date:
        first_date = None
    symbol_bars = load_symbol_bars(store, symbol, timeframe, higher, first_date)
    bars = symbol_bars.base
    wanted = bars.between(start_date, end_date).times
    if not len(wanted):
        raise InvalidInputError(
            f"there are no bars from {start_date or 'the first'} to {end_date or 'the last'}: the {symbol} {timeframe} "
            f"bars go from {bars.first_day} to {bars.last_day}; choose days inside",
            field="--start",
        )

    from ktrdr_core.training.trading_model import TradingModel  # loads torch, so only when it is needed

    predictions = TradingModel.load(path).predict(symbol_bars)
    rows = [row for row, time in enumerate(predictions.times) if wanted[0] <= time <= wanted[-1]]
    if start_date is None and end_date is None:
        rows = rows[-DEFAULT_BARS:]
    if not rows:
        raise InvalidInputError(
            f"the first {len(bars) - len(predictions)} {symbol} {timeframe} bars are warm-up and have no decision; "
            f"choose days after {bars.first_day}",
            field="--start",
        )
    if session.is_json:
        _write_json(session, symbol, predictions, rows)
        return ExitCode.OK
    session.out.print(Text.assemble((path.name, "bold"), f"  {symbol}  {timeframe}  {len(rows)} bars"))
    titles = CLASS_NAMES if predictions.returns is None else ("predicted return",)
    say_table(
        session,
        ("bar (UTC)", "decision", *titles),
        [
            (
                time_text(int(predictions.times[row])),
                CLASS_NAMES[int(predictions.decisions[row])],
                *_answers(predictions, row),
            )
            for row in rows
        ],
        empty="",
    )
    return ExitCode.OK


def _answers(predictions: Predictions, row: int) -> tuple[str, ...]:
    if predictions.returns is not None:
        return (f"{float(predictions.returns[row]) * 100:+.4f} %",)
    return tuple(f"{float(each):.3f}" for each in predictions.probabilities[row])


def _write_json(session: CliSession, symbol: str, predictions: Predictions, rows: list[int]) -> None:
    from ktrdr_core.data.bars import time_text

    for row in rows:
        values = {
            "symbol": symbol,
            "time": time_text(int(predictions.times[row])),
            "decision": CLASS_NAMES[int(predictions.decisions[row])],
            "class": CLASS_NAMES[int(predictions.classes[row])],
            "probabilities": {
                name: float(each) for name, each in zip(CLASS_NAMES, predictions.probabilities[row], strict=True)
            },
            "predicted_return": None if predictions.returns is None else float(predictions.returns[row]),
        }
        session.write_json(json_lines.line("prediction", values))


async def _by_name(session: CliSession, model: str) -> tuple[Path, Path]:
    """Return the directory of a model in the backend's store, if it is on this machine, and that of its bars."""
    async with session.client() as client:
        stored = await client.get_model(model)
        config = await client.get_config()
    if not (Path(stored.path) / _WEIGHTS).is_file():
        raise ModelNotFoundError(
            f"model {stored.name} is at {stored.path} on the backend's machine and not on this one; bring it here with "
            f"`{session.command(f'models pull {stored.name}')}`, and give its directory"
        )
    return Path(stored.path), Path(config.bars_path)
