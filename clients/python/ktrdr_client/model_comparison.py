"""What differs between two models, by what their files say. Pure: values in, values out.

Metrics stand side by side; of configuration, data and lineage only what differs is told, by flattened path. What a
training copies from its strategy (the epochs are in both) is told once, where the strategy says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ktrdr_core.domain.result import TrainingResult

_TEST_METRICS = ("accuracy", "majority_baseline_accuracy", "precision", "recall", "f1_score", "loss")
_EVALUATION_METRICS = {
    "test": ("balanced_accuracy", "mcc"),
    "calibration": ("expected_calibration_error", "brier_score"),
    "signals": ("net_return", "sharpe", "max_drawdown", "num_trades"),
    "regression": ("mean_absolute_error", "r_squared", "information_coefficient", "directional_accuracy"),
}
# Told in `series` and `lineage`, or for each symbol what `rows` tells of all.
_DATA_TOLD_ELSEWHERE = ("bars", "data_mode", "row_counts")
_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class ReadModel:
    """What was read of a model: its name, what its JSON files tell, and the SHA-256 of its weights, hex."""

    name: str
    result: TrainingResult
    weights_sha256: str

    @property
    def digest(self) -> str:
        """SHA-256, hex, of all that depends on the job alone."""
        return self.result["artifact_digest"]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.result["config"]

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.result["metadata"]


@dataclass(frozen=True, kw_only=True)
class MetricDifference:
    """A metric of both models; None where a model has none. `difference` is the second less the first."""

    part: str
    name: str
    first: float | None
    second: float | None

    @property
    def difference(self) -> float | None:
        return None if self.first is None or self.second is None else self.second - self.first


@dataclass(frozen=True, kw_only=True)
class ValueDifference:
    """A value that differs, by its path; None where a model has none."""

    path: str
    first: Any
    second: Any


class SeriesVerdict(StrEnum):
    """How the bars of one series compare."""

    SAME = "same bars"
    OTHER_BARS = "same range, other bars"
    OTHER_RANGE = "other range"
    ONLY_FIRST = "only in the first"
    ONLY_SECOND = "only in the second"


@dataclass(frozen=True, kw_only=True)
class SeriesDifference:
    """The bars of one series in both models; None where a model was not trained on it."""

    symbol: str
    timeframe: str
    verdict: SeriesVerdict
    first_num_bars: int | None
    second_num_bars: int | None
    first_digest: str | None
    second_digest: str | None


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """The second model against the first.

    Attributes:
        first, second: Their names.
        is_identical: Equal jobs on equal hardware: weights, configuration, metrics and features are the same bits.
        has_same_weights: The weights files are the same bits.
        metrics: Side by side, also where they are equal.
        config: `strategy.`, `training.` and `model.` paths that differ.
        series: Every series of either.
        data: Dates, shares and row counts that differ.
        lineage: Seed, versions, device and the like that differ.
        features_added, features_removed: Of the second against the first, in model order.
        has_other_order: The same features in another order.
        has_same_rows: Both were judged on the same rows, so that their metrics may be compared.
    """

    first: str
    second: str
    is_identical: bool
    has_same_weights: bool
    metrics: tuple[MetricDifference, ...]
    config: tuple[ValueDifference, ...]
    series: tuple[SeriesDifference, ...]
    data: tuple[ValueDifference, ...]
    lineage: tuple[ValueDifference, ...]
    features_added: tuple[str, ...]
    features_removed: tuple[str, ...]
    has_other_order: bool
    has_same_rows: bool

    @property
    def has_same_bars(self) -> bool:
        return all(own.verdict is SeriesVerdict.SAME for own in self.series)


def compare_models(first: ReadModel, second: ReadModel) -> ModelComparison:
    """Return what differs between two models."""
    strategy = _differences(_strategy(first), _strategy(second), "strategy.")
    told = _contents(strategy)
    config = [*strategy, *(own for own in _settings_differences(first, second) if _content(own) not in told)]
    series = tuple(_series_differences(first, second))
    data = _differences(_data(first), _data(second), "")
    first_names, second_names = _feature_names(first), _feature_names(second)
    return ModelComparison(
        first=first.name,
        second=second.name,
        is_identical=first.digest == second.digest,
        has_same_weights=first.weights_sha256 == second.weights_sha256,
        metrics=tuple(_metric_differences(first.result, second.result)),
        config=tuple(config),
        series=series,
        data=tuple(own for own in data if _content(own) not in _contents(config)),
        lineage=tuple(_differences(_lineage(first), _lineage(second), "")),
        features_added=tuple(name for name in second_names if name not in first_names),
        features_removed=tuple(name for name in first_names if name not in second_names),
        has_other_order=first_names != second_names and sorted(first_names) == sorted(second_names),
        has_same_rows=all(own.verdict is SeriesVerdict.SAME for own in series) and not data,
    )


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by path, such as `indicators[0].period`; {} and [] are leaves."""
    if isinstance(value, Mapping) and value:
        parts = {f"{path}.{key}" if path else str(key): each for key, each in value.items()}
    elif isinstance(value, list) and value:
        parts = {f"{path}[{index}]": each for index, each in enumerate(value)}
    else:
        return {path: value}
    return {name: leaf for part, each in parts.items() for name, leaf in flatten(each, part).items()}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str) -> list[ValueDifference]:
    """Return the leaves that differ, in the order of the first, those of the second alone last."""
    left, right = flatten(first) if first else {}, flatten(second) if second else {}
    return [
        ValueDifference(path=f"{prefix}{path}", first=left.get(path), second=right.get(path))
        for path in dict.fromkeys((*left, *right))
        if not _is_equal(left.get(path, _ABSENT), right.get(path, _ABSENT))
    ]


def _is_equal(first: Any, second: Any) -> bool:
    """Return whether two leaves are; one that is None is as good as absent."""
    left, right = (None if value is _ABSENT else value for value in (first, second))
    return bool(left == right and isinstance(left, bool) == isinstance(right, bool))


def _content(difference: ValueDifference) -> tuple[str, str, str]:
    """Return what two differences share that tell the same: the key's own name and the values."""
    return difference.path.rpartition(".")[2], repr(difference.first), repr(difference.second)


def _contents(differences: Sequence[ValueDifference]) -> set[tuple[str, str, str]]:
    return {_content(difference) for difference in differences}


def _strategy(model: ReadModel) -> Mapping[str, Any]:
    return _section(model.config, "strategy_config")


def _settings_differences(first: ReadModel, second: ReadModel) -> Iterator[ValueDifference]:
    """Yield the differences of the settings that a training resolved, each told once."""
    told: set[tuple[str, str, str]] = set()
    for name, prefix in (("training_config", "training."), ("model_config", "model.")):
        left, right = (
            {key: value for key, value in _section(model.config, name).items() if key not in ("seed", "data_mode")}
            for model in (first, second)
        )
        for difference in _differences(left, right, prefix):
            if _content(difference) not in told:
                told.add(_content(difference))
                yield difference


def _metric_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[MetricDifference]:
    def row(part: str, name: str, *sections: Mapping[str, Any]) -> MetricDifference:
        left, right = (_number(section.get(name)) for section in sections)
        return MetricDifference(part=part, name=name, first=left, second=right)

    tests = [_section(metrics, "test_metrics") for metrics in (first, second)]
    own = [_section(metrics, "training_metrics") for metrics in (first, second)]
    evaluations = [_section(metrics, "evaluation") for metrics in (first, second)]
    found = [row("test", name, *tests) for name in _TEST_METRICS]
    for part, names in _EVALUATION_METRICS.items():
        sections = evaluations if part == "test" else [_section(evaluation, part) for evaluation in evaluations]
        found += [row(part, name, *sections) for name in names]
    for part, names in (
        ("validation", ("val_accuracy", "val_loss")),
        ("training", ("train_accuracy", "train_loss", "best_epoch", "epochs")),
    ):
        found += [row(part, name, *own) for name in names]
    return (metric for metric in found if metric.first is not None or metric.second is not None)


def _series_differences(first: ReadModel, second: ReadModel) -> Iterator[SeriesDifference]:
    left, right = _bars(first), _bars(second)
    is_same_range = _dates(first) == _dates(second)
    for key in dict.fromkeys((*left, *right)):
        (first_bars, first_digest), (second_bars, second_digest) = left.get(key, _NO_BARS), right.get(key, _NO_BARS)
        if first_digest is None or second_digest is None:
            verdict = SeriesVerdict.ONLY_SECOND if first_digest is None else SeriesVerdict.ONLY_FIRST
        elif first_digest == second_digest:
            verdict = SeriesVerdict.SAME
        else:
            verdict = SeriesVerdict.OTHER_BARS if is_same_range else SeriesVerdict.OTHER_RANGE
        yield SeriesDifference(
            symbol=key[0],
            timeframe=key[1],
            verdict=verdict,
            first_num_bars=first_bars,
            second_num_bars=second_bars,
            first_digest=first_digest,
            second_digest=second_digest,
        )


_NO_BARS: tuple[int | None, str | None] = (None, None)


def _bars(model: ReadModel) -> dict[tuple[str, str], tuple[int | None, str | None]]:
    """Return number of bars and digest by symbol and timeframe."""
    return {
        (symbol, str(own["timeframe"])): (int(own["num_bars"]), str(own["sha256"]))
        for symbol, series in _section(_data_config(model), "bars").items()
        for own in series
    }


def _dates(model: ReadModel) -> tuple[Any, Any]:
    data = _data_config(model)
    return data.get("start_date"), data.get("end_date")


def _data(model: ReadModel) -> dict[str, Any]:
    return {key: value for key, value in _data_config(model).items() if key not in _DATA_TOLD_ELSEWHERE}


def _data_config(model: ReadModel) -> Mapping[str, Any]:
    return _section(model.config, "data_config")


def _lineage(model: ReadModel) -> dict[str, Any]:
    """Return what would have to be the same to make the model again, beside its configuration and its bars."""
    environment = dict(_section(model.metadata, "environment"))
    versions = dict(_section(environment, "versions"))
    own_version = versions.pop("ktrdr", None)
    return {
        "seed": _section(model.config, "training_config").get("seed"),
        "code_version": model.metadata.get("code_version", own_version),
        "data_mode": data_mode_of(model),
        "strategy_digest": model.config.get("strategy_digest"),
        "resumed_from": model.metadata.get("resumed_from"),
        "device": model.metadata.get("device"),
        "environment": {key: value for key, value in environment.items() if key != "device"} | {"versions": versions},
    }


def data_mode_of(model: ReadModel) -> str | None:
    """Return where the model's bars came from; models of earlier versions tell it with their data."""
    mode = model.metadata.get("data_mode", _data_config(model).get("data_mode"))
    return None if mode is None else str(mode)


def _feature_names(model: ReadModel) -> tuple[str, ...]:
    return tuple(model.result["feature_names"])


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
