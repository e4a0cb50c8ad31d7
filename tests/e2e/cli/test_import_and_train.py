"""From a broker's file to a decision, as it is typed: import, train, show, predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.bars import BAR_COLUMNS, Bars
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.training.run_job import run_training
from tests.kit.builders import REPOSITORY
from tests.kit.cli import STRATEGY, Cli, Ran, embedded_cli
from tests.kit.eventually import PATIENCE_S

SHIPPED = DirectoryBarStore(REPOSITORY / "data").load("EURUSD", "1h")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the shipped strategies, no bars, and a backend whose bars are in its `data`."""
    directory = tmp_path_factory.mktemp("researcher")
    (directory / "strategies").symlink_to(REPOSITORY / "strategies")
    return directory


@pytest.fixture(scope="module")
def cli(directory: Path) -> Iterator[Cli]:
    with embedded_cli(directory / "state") as cli:
        yield cli


@pytest.fixture
def typed(cli: Cli, directory: Path) -> Callable[..., Ran]:
    def call(*arguments: str, code: int = 0) -> Ran:
        with cli.start(*arguments, cwd=directory) as process:
            out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, f"{arguments}\n{out}{err}"
        return Ran(process.returncode, out, err)

    return call


def broker_csv(bars: Bars) -> str:
    """Return the bars as a terminal of a broker two hours east of Greenwich exports them."""
    lines = ["<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>"]
    columns = [getattr(bars, name).tolist() for name in BAR_COLUMNS]
    for time, *values in zip(bars.times.tolist(), *columns, strict=True):
        clock = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time // 10**9, hours=2)
        lines.append("\t".join([f"{clock:%Y.%m.%d}", f"{clock:%H:%M:%S}", *map(repr, values)]))
    return "\n".join(lines) + "\n"


def test_bars_of_a_brokers_file_train_the_model_that_the_shipped_ones_train(
    typed: Callable[..., Ran], directory: Path, tmp_path: Path
) -> None:
    (directory / "export.csv").write_text(broker_csv(SHIPPED))
    typed("data", "import", "export.csv", "--symbol", "EURUSD", "--timeframe", "1h", "--timezone", "Etc/GMT-2", "--yes")
    assert DirectoryBarStore(directory / "data").load("EURUSD", "1h").digest() == SHIPPED.digest()
    typed("data", "check", "EURUSD", "1h")

    trained = typed("train", STRATEGY, "--epochs", "2", "--json").lines[-1]
    assert trained["state"] == "COMPLETED"
    (model,) = typed("models", "show", "neuro_mean_reversion", "--json").lines
    assert model["symbols"] == ["EURUSD"]
    shipped = run_training(
        TrainingSpec(strategy_yaml=(REPOSITORY / STRATEGY).read_text(), epochs=2),
        bar_store=DirectoryBarStore(REPOSITORY / "data"),
        model_storage=ModelStorage(tmp_path),
    )
    assert model["artifact_digest"] == shipped["artifact_digest"]
    assert model["evaluation"]["leakage"]["passed"]
    assert len(model["evaluation"]["folds"]) == 4

    told = typed("models", "show", "neuro_mean_reversion").out
    for part in ("leakage check passed", "said HOLD", "no backtest of fills", "95 % interval", "validation by walk"):
        assert part in told
    predictions = typed("models", "predict", "neuro_mean_reversion", "--start", "2017-12-29", "--json").lines
    assert len(predictions) == 22
    assert abs(sum(predictions[0]["probabilities"].values()) - 1) < 1e-9


def test_a_parquet_file_of_two_symbols_trains_one_model_that_decides_on_both(
    typed: Callable[..., Ran], directory: Path
) -> None:
    columns = {name: getattr(SHIPPED, name)[:3_000] for name in BAR_COLUMNS}
    # The same market seen from the other side of the pair: other prices, other classes.
    inverse = {
        **columns,
        "open": 1 / columns["open"],
        "high": 1 / columns["low"],
        "low": 1 / columns["high"],
        "close": 1 / columns["close"],
    }
    times = np.tile(SHIPPED.times[:3_000], 2)
    table = {
        "time": pa.array(times, type=pa.timestamp("ns", tz="UTC")),
        "symbol": ["AAABBB"] * 3_000 + ["BBBAAA"] * 3_000,
        **{name: np.concatenate([columns[name], inverse[name]]) for name in BAR_COLUMNS},
    }
    pq.write_table(pa.table(table), directory / "pairs.parquet")
    typed("data", "import", "pairs.parquet", "--timeframe", "1h", "--yes")
    listed = [line for line in typed("data", "list", "--json").lines if line["symbol"] != "EURUSD"]
    assert [(line["symbol"], line["num_bars"]) for line in listed] == [("AAABBB", 3_000), ("BBBAAA", 3_000)]

    text = (REPOSITORY / STRATEGY).read_text()
    single = "    mode: single\n    symbol: EURUSD\n"
    assert single in text
    both = "    mode: multi_symbol\n    list: [AAABBB, BBBAAA]\n"
    text = text.replace(single, both).replace("name: neuro_mean_reversion", "name: both_sides")
    (directory / "both_sides.yaml").write_text(text)
    trained = typed("train", "both_sides.yaml", "--epochs", "2", "--json").lines[-1]
    assert trained["state"] == "COMPLETED"
    (model,) = typed("models", "show", "both_sides", "--json").lines
    assert model["symbols"] == ["AAABBB", "BBBAAA"]
    refused = typed("models", "predict", "both_sides", code=2)
    assert "trained on AAABBB, BBBAAA; name one with --symbol" in refused.err
    # The bars end in June: of both symbols, the same days are judged.
    for symbol in model["symbols"]:
        predictions = typed(
            "models",
            "predict",
            "both_sides",
            "--symbol",
            symbol,
            "--start",
            "2017-06-20",
            "--end",
            "2017-06-20",
            "--json",
        ).lines
        assert len(predictions) == 24
