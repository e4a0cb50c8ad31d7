"""TrainingSpec: what is refused at construction, and its canonical form."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from ktrdr_core.domain.spec import DataMode, ExecutionMode, TrainingSpec
from ktrdr_core.errors import InvalidSpecError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strategy_yaml", "  "),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("validation_split", 1.0),
        ("memory_fraction", 1.5),
        ("num_gpus", -1),
        ("seed", -1),
        ("symbols", "EURUSD"),
        ("timeframes", "1h"),
        ("execution_mode", "moon"),
        ("data_mode", "ftp"),
    ],
)
def test_value_out_of_range_is_refused_with_its_field(field: str, value: Any) -> None:
    values: dict[str, Any] = {"strategy_yaml": "name: s", field: value}
    with pytest.raises(InvalidSpecError) as caught:
        TrainingSpec(**values)
    assert caught.value.violations[0].field in {f"spec.{field}", "spec.strategy"}


def test_reversed_dates_are_refused_with_both_named() -> None:
    with pytest.raises(InvalidSpecError, match=r"2017-02-01 is after end_date 2017-01-01"):
        TrainingSpec(strategy_yaml="s", start_date=date(2017, 2, 1), end_date=date(2017, 1, 1))


def test_spec_survives_json_and_its_digest_sees_each_change() -> None:
    spec = TrainingSpec(
        strategy_yaml="name: s",
        symbols=("EURUSD",),
        timeframes=("1h",),
        start_date=date(2017, 1, 2),
        data_mode=DataMode.CSV,
        execution_mode=ExecutionMode.HOST,
        learning_rate=0.001,
    )
    assert TrainingSpec.from_json(spec.to_json()) == spec
    assert spec.with_seed(7).digest() != spec.digest()
    assert TrainingSpec.from_json(spec.to_json()).digest() == spec.digest()


def test_bars_are_the_backends_by_default_and_were_this_machines_before_that_was_stored() -> None:
    assert TrainingSpec(strategy_yaml="s").data_mode is DataMode.BACKEND
    assert TrainingSpec.from_json('{"strategy_yaml": "s"}').data_mode is DataMode.LOCAL


def test_stored_spec_of_another_version_is_refused_by_key() -> None:
    with pytest.raises(InvalidSpecError, match="colour"):
        TrainingSpec.from_json('{"strategy_yaml": "s", "colour": 1}')
