from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktrdr_core.errors import InvalidInputError
from ktrdr_core.storage.artifact import ModelArtifact
from ktrdr_core.storage.model_query import MAX_PAGE_MODELS, ModelOrder, ModelQuery
from ktrdr_core.storage.stored_model import ModelSummary
from tests.kit.artifacts import make_artifact
from tests.kit.model_shelf import Shelf, names

NUM_MODELS = 17


def scored(seed: int) -> ModelArtifact:
    """Return an artifact whose scores repeat, so that orders have ties."""
    artifact = make_artifact(name=f"s{seed % 2}", symbols=("EURUSD",) if seed % 3 else ("GBPUSD", "USDJPY"), seed=seed)
    metrics: Any = artifact.metrics
    metrics["test_metrics"] |= {"accuracy": (seed % 4) / 8, "f1_score": (seed % 5) / 8}
    metrics["training_metrics"]["val_loss"] = 1 + (seed % 3)
    config: Any = artifact.config
    config["data_config"]["bars"] = {"EURUSD": [{"timeframe": "1h", "num_bars": 9, "sha256": f"{seed % 3:064x}"}]}
    config["training_config"]["padding"] = "x" * (seed % 7)
    return artifact


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = Shelf(tmp_path_factory.mktemp("query"))
    for seed in range(NUM_MODELS):
        shelf.storage.save(scored(seed))
    shelf.keep_aside("t9", 2, name="s1", seed=99)
    shelf.storage.set_alias("s1/EURUSD_1h", "champion", 2)
    return shelf


def all_pages(shelf: Shelf, query: ModelQuery, limit: int) -> list[ModelSummary]:
    found, after = [], ""
    while True:
        page = shelf.storage.query(query, limit=limit, after=after)
        found += page.models
        assert len(page.models) <= limit
        if not page.next:
            return found
        assert len(page.models) == limit
        after = page.next


KEYS: dict[ModelOrder, Callable[[ModelSummary], Any]] = {
    ModelOrder.NEWEST: lambda model: model.create_time,
    ModelOrder.TEST_ACCURACY: lambda model: (model.test_metrics["accuracy"], model.create_time),
    ModelOrder.TEST_F1: lambda model: (model.test_metrics["f1_score"], model.create_time),
    ModelOrder.VALIDATION_LOSS: lambda model: (-model.training_metrics["val_loss"], model.create_time),
    ModelOrder.SIZE: lambda model: (model.size_bytes, model.create_time),
}


@pytest.mark.parametrize("order", KEYS)
def test_best_come_first_and_equal_ones_newest_first(shelf: Shelf, order: ModelOrder) -> None:
    found = all_pages(shelf, ModelQuery(order=order), limit=NUM_MODELS)
    assert len(found) == NUM_MODELS
    assert names(found) == names(sorted(found, key=KEYS[order], reverse=True))


def test_by_name_versions_count_as_numbers(shelf: Shelf) -> None:
    found = names(all_pages(shelf, ModelQuery(order=ModelOrder.NAME), limit=NUM_MODELS))
    assert found == sorted(found, key=lambda name: (name.rpartition("_v")[0], int(name.rpartition("_v")[2])))


@pytest.mark.parametrize("order", ModelOrder)
@pytest.mark.parametrize("limit", [1, 2, 5, 16])
def test_pages_joined_are_the_whole(shelf: Shelf, order: ModelOrder, limit: int) -> None:
    query = ModelQuery(order=order)
    assert names(all_pages(shelf, query, limit)) == names(all_pages(shelf, query, NUM_MODELS))


FILTERS: dict[str, tuple[dict[str, Any], Callable[[ModelSummary], bool]]] = {
    "strategy": ({"strategy_name": "s1"}, lambda model: model.strategy_name == "s1"),
    "symbol": ({"symbol": "USDJPY"}, lambda model: "USDJPY" in model.symbols),
    "timeframe": ({"timeframe": "1h"}, lambda model: True),
    "other timeframe": ({"timeframe": "4h"}, lambda model: False),
    "alias": ({"alias": "champion"}, lambda model: model.name == "s1/EURUSD_1h_v2"),
    "latest": ({"alias": "latest"}, lambda model: "latest" in model.aliases),
    "series": (
        {"series_digest": f"{1:064x}"},
        lambda model: any(series.digest == f"{1:064x}" for series in model.lineage.series),
    ),
    "several": ({"strategy_name": "s0", "symbol": "GBPUSD"}, lambda model: model.name.startswith("s0/GBPUSD")),
    "training": ({"training_id": "t9"}, lambda model: False),
}


@pytest.mark.parametrize("case", FILTERS)
def test_filter_lets_through_what_it_names(shelf: Shelf, case: str) -> None:
    filters, is_wanted = FILTERS[case]
    everything = all_pages(shelf, ModelQuery(), limit=3)
    wanted = names(model for model in everything if is_wanted(model))
    assert names(all_pages(shelf, ModelQuery(**filters), limit=3)) == wanted
    assert bool(wanted) == (case not in ("other timeframe", "training"))


def test_times_bound_from_inclusive_to_exclusive(shelf: Shelf) -> None:
    newest_first = all_pages(shelf, ModelQuery(), limit=NUM_MODELS)
    start, end = newest_first[5].create_time, newest_first[2].create_time
    assert names(all_pages(shelf, ModelQuery(start_time=start, end_time=end), limit=2)) == names(newest_first[3:6])


def test_kept_aside_are_listed_apart(shelf: Shelf) -> None:
    (aside,) = all_pages(shelf, ModelQuery(kept_aside=True), limit=5)
    assert (aside.name, aside.is_kept_aside, aside.version, aside.strategy_name) == ("aside/t9-2", True, 0, "s1")
    assert names(all_pages(shelf, ModelQuery(kept_aside=True, training_id="t9", strategy_name="s1"), limit=5)) == [
        "aside/t9-2"
    ]


def test_page_begins_where_the_one_before_ended_although_models_came_and_went(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for seed in range(6):
        shelf.publish(seed=seed)
    first = shelf.storage.query(ModelQuery(), limit=3)
    shelf.publish(seed=7)
    shelf.storage.delete(first.models[-1].name)
    shelf.storage.delete("small/EURUSD_1h_v2")
    assert names(shelf.storage.query(ModelQuery(), limit=3, after=first.next).models) == [
        "small/EURUSD_1h_v3",
        "small/EURUSD_1h_v1",
    ]


def test_summary_from_the_index_is_what_the_directory_tells(shelf: Shelf) -> None:
    for summary in (*shelf.storage.list(), *all_pages(shelf, ModelQuery(kept_aside=True), limit=5)):
        model = shelf.storage.get(summary.name)
        for field in ModelSummary.__dataclass_fields__:
            assert getattr(summary, field) == getattr(model, field), field


@pytest.mark.parametrize(
    "other",
    [
        ModelQuery(order=ModelOrder.SIZE),
        ModelQuery(strategy_name="s1"),
        ModelQuery(kept_aside=True),
        ModelQuery(end_time=datetime.fromisoformat("2100-01-01T00:00:00Z")),
    ],
)
def test_token_of_another_query_is_refused(shelf: Shelf, other: ModelQuery) -> None:
    token = shelf.storage.query(ModelQuery(), limit=2).next
    with pytest.raises(InvalidInputError, match="page_token"):
        shelf.storage.query(other, limit=2, after=token)


def test_same_moment_in_another_time_zone_is_the_same_query(shelf: Shelf) -> None:
    here, there = (
        datetime.fromisoformat(f"2020-01-01T{hour}:00{zone}") for hour, zone in (("10", "Z"), ("12", "+02:00"))
    )
    token = shelf.storage.query(ModelQuery(start_time=here), limit=2).next
    assert shelf.storage.query(ModelQuery(start_time=there), limit=2, after=token).models


def token_with(shelf: Shelf, keys: list[Any]) -> str:
    fingerprint, *_ = json.loads(base64.urlsafe_b64decode(shelf.storage.query(ModelQuery(), limit=2).next))
    return base64.urlsafe_b64encode(json.dumps([fingerprint, *keys]).encode()).decode()


@pytest.mark.parametrize(
    "keys",
    [[], ["2026", 1], [1, 1, "a"], ["2026", "1", "a"], ["2026", 1, None], ["2026", True, "a"], ["2026", 10**30, "a"],
     ["2026", float("nan"), "a"], ["2026", float("inf"), "a"], ["\ud800", 1, "a"], ["2026", 1, ["a"]]],
)  # fmt: skip
def test_token_with_other_keys_is_refused(shelf: Shelf, keys: list[Any]) -> None:
    with pytest.raises(InvalidInputError, match="page_token"):
        shelf.storage.query(ModelQuery(), limit=2, after=token_with(shelf, keys))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token=st.text(min_size=1) | st.binary(min_size=1).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_token_nobody_made_is_refused(shelf: Shelf, token: str) -> None:
    with pytest.raises(InvalidInputError, match="page_token"):
        shelf.storage.query(ModelQuery(), limit=2, after=token)


@pytest.mark.parametrize(
    "filters",
    [{"strategy_name": "../x"}, {"symbol": "a/b"}, {"alias": "\ud800"}, {"training_id": "a b"}, {"series_digest": "."},
     {"start_time": datetime(2026, 1, 1)}],  # noqa: DTZ001  # the one that is refused
)  # fmt: skip
def test_filter_no_model_can_have_is_refused(shelf: Shelf, filters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(filters)).replace("_", "[_ ]")):
        shelf.storage.query(ModelQuery(**filters), limit=2)


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE_MODELS + 1])
def test_limit_out_of_bounds_is_refused(shelf: Shelf, limit: int) -> None:
    with pytest.raises(InvalidInputError, match=str(limit)):
        shelf.storage.query(ModelQuery(), limit=limit)


def test_store_that_is_not_there_is_empty_and_stays_away(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert shelf.storage.query(ModelQuery(), limit=5).models == shelf.storage.list() == []
    assert (shelf.storage.size_bytes(), shelf.storage.newest_versions()) == (0, {})
    assert shelf.storage.find_by_training("t1") is None
    assert shelf.storage.find_file("0" * 64, 1) is None
    assert shelf.storage.collect_garbage(keep_versions=1, dry_run=False) == []
    assert list(tmp_path.iterdir()) == []


def test_newest_version_of_each_strategy_goes_by_time(shelf: Shelf) -> None:
    newest = {}
    for model in sorted(shelf.storage.list(), key=lambda model: model.create_time + timedelta()):
        newest[model.strategy_name] = model.version
    assert shelf.storage.newest_versions() == newest
