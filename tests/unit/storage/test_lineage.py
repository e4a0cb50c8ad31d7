from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ktrdr_core.errors import CorruptDataError
from ktrdr_core.storage.artifact import ModelArtifact, write_artifact
from ktrdr_core.storage.stored_model import Lineage, ParentCheckpoint, SeriesDigest
from tests.kit.artifacts import make_artifact
from tests.kit.model_shelf import Shelf

SERIES = {
    "EURUSD": [
        {"timeframe": "1h", "num_bars": 10, "sha256": "a" * 64},
        {"timeframe": "4h", "num_bars": 3, "sha256": "b"},
    ],
    "GBPUSD": [{"timeframe": "1h", "num_bars": 11, "sha256": "c" * 64}],
}  # fmt: skip


def traced(config: dict[str, Any] | None = None, **metadata: Any) -> ModelArtifact:
    artifact = make_artifact(**metadata)
    contents: Any = artifact.config
    for section, values in (config or {}).items():
        contents[section] = contents.get(section, {}) | values if isinstance(values, dict) else values
    return artifact


def test_everything_an_artifact_tells_of_its_origin_is_in_its_lineage(tmp_path: Path) -> None:
    artifact = traced(
        {
            "strategy_digest": "d" * 64,
            "data_config": {"bars": SERIES, "start_date": "2017-01-01", "end_date": "2017-12-29"},
            "training_config": {"seed": 2**63 - 1},
        },
        data_mode="backend",
        code_version="1.2.3",
        resumed_from={"epoch": 7, "sha256": "e" * 64},
    )
    shelf = Shelf(tmp_path)
    model = shelf.storage.save(artifact)
    assert model.lineage == Lineage(
        strategy_digest="d" * 64,
        series=(
            SeriesDigest(symbol="EURUSD", timeframe="1h", num_bars=10, digest="a" * 64),
            SeriesDigest(symbol="EURUSD", timeframe="4h", num_bars=3, digest="b"),
            SeriesDigest(symbol="GBPUSD", timeframe="1h", num_bars=11, digest="c" * 64),
        ),
        start_date="2017-01-01",
        end_date="2017-12-29",
        data_mode="backend",
        code_version="1.2.3",
        seed=2**63 - 1,
        parent_checkpoint=ParentCheckpoint(epoch=7, sha256="e" * 64),
    )
    assert shelf.storage.list()[0].lineage == shelf.storage.get(model.name).lineage == model.lineage


def test_what_is_not_told_is_empty(tmp_path: Path) -> None:
    assert Shelf(tmp_path).publish(seed=3).lineage == Lineage(seed=3)


@pytest.mark.parametrize(
    ("config", "metadata"),
    [
        ({"data_config": {"bars": {"EURUSD": [{"timeframe": "1h"}]}}}, {}),
        ({"data_config": {"bars": {"EURUSD": [{"timeframe": "1h", "num_bars": 2**70, "sha256": ""}]}}}, {}),
        ({"data_config": {"bars": [1]}}, {}),
        ({"training_config": {"seed": "42"}}, {}),
        ({"training_config": {"seed": 2**64}}, {}),
        ({"strategy_digest": 5}, {}),
        ({}, {"data_mode": ["local"]}),
        ({}, {"resumed_from": {"epoch": 1}}),
        ({}, {"resumed_from": {"epoch": 1.5, "sha256": ""}}),
    ],
)
def test_origin_in_another_form_is_refused(tmp_path: Path, config: dict[str, Any], metadata: dict[str, Any]) -> None:
    shelf = Shelf(tmp_path)
    directory = shelf.root / "staged"
    write_artifact(directory, traced(config, **metadata))
    with pytest.raises(CorruptDataError):
        shelf.storage.publish(directory)
    assert shelf.storage.list() == []
