"""`ktrdr models compare`: two models side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.model_source import model_directory
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_table
from ktrdr_client.model_comparison import (
    MetricDifference,
    ModelComparison,
    ReadModel,
    SeriesDifference,
    SeriesVerdict,
    ValueDifference,
    compare_models,
)
from ktrdr_client.retraining import sentence_of_series

if TYPE_CHECKING:
    from ktrdr_client.async_client import AsyncClient

_FRACTIONS = frozenset(
    {
        *("accuracy", "majority_baseline_accuracy", "precision", "recall", "f1_score", "balanced_accuracy"),
        *("val_accuracy", "train_accuracy", "directional_accuracy"),
        *("net_return", "max_drawdown", "expected_calibration_error"),
    }
)
_COUNTS = frozenset({"best_epoch", "epochs", "num_trades"})


async def compare(session: CliSession, first: str, second: str) -> int:
    """Tell what differs between two models."""
    comparison = compare_models(*await read_models(session, (first, second)))
    if session.is_json:
        session.write_json(json_lines.line("model_comparison", comparison_fields(comparison)))
    else:
        tell_comparison(session, comparison)
    return ExitCode.OK


async def read_models(session: CliSession, models: Sequence[str]) -> list[ReadModel]:
    """Return what each model says; a backend is asked only for names."""
    directories = [model_directory(model) for model in models]

    from ktrdr_client.read_model import read_directory, read_stored

    async with AsyncExitStack() as stack:
        client: AsyncClient | None = None
        found = []
        for model, directory in zip(models, directories, strict=True):
            if directory is not None:
                found.append(await asyncio.to_thread(read_directory, directory))
                continue
            if client is None:
                client = await stack.enter_async_context(session.client())
            found.append((await read_stored(client, model))[1])
    return found


def comparison_fields(comparison: ModelComparison) -> dict[str, Any]:
    """Return the comparison as `--json` prints it."""
    metrics = [{**asdict(metric), "difference": metric.difference} for metric in comparison.metrics]
    return {**asdict(comparison), "metrics": metrics}


def tell_comparison(session: CliSession, comparison: ModelComparison) -> None:
    """Print a comparison for people; what would mislead comes first."""
    session.out.print(Text.assemble("first   ", (comparison.first, "bold")))
    session.out.print(Text.assemble("second  ", (comparison.second, "bold")))
    session.say("")
    if comparison.is_identical:
        session.say("the same model: weights, configuration, metrics and features are equal, bit for bit")
    elif comparison.has_same_weights:
        session.say("the weights are equal, bit for bit")
    for series in comparison.series:
        _tell_series(session, series)
    if not comparison.has_same_rows:
        session.out.print(
            Text("the two were judged on different rows: a difference of their metrics may come from that", "yellow")
        )
    session.say("")
    say_table(
        session,
        ("metric", "first", "second", "difference"),
        [_metric_row(metric) for metric in comparison.metrics],
        empty="no metrics",
    )
    for title, differences in (
        ("data", comparison.data),
        ("configuration", comparison.config),
        ("lineage", comparison.lineage),
    ):
        _tell_values(session, title, differences)
    _tell_features(session, comparison)


def _tell_series(session: CliSession, series: SeriesDifference) -> None:
    is_same = series.verdict is SeriesVerdict.SAME
    style = "" if is_same else "bold red" if series.verdict is SeriesVerdict.OTHER_BARS else "yellow"
    session.out.print(Text(sentence_of_series(series), style=style))


def _metric_row(metric: MetricDifference) -> tuple[str, ...]:
    name = metric.name.removeprefix("val_").removeprefix("train_").replace("_", " ")
    return (
        f"{metric.part} {name}",
        _amount(metric.name, metric.first),
        _amount(metric.name, metric.second),
        _change(metric.name, metric.difference),
    )


def _amount(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in _COUNTS:
        return f"{value:,.0f}"
    return formats.percent(value) if name in _FRACTIONS else formats.loss(value)


def _change(name: str, difference: float | None) -> str:
    if difference is None:
        return "-"
    if difference == 0:
        return "="
    if name in _COUNTS:
        return f"{difference:+,.0f}"
    return formats.points(difference) if name in _FRACTIONS else f"{difference:+.4g}"


def _tell_values(session: CliSession, title: str, differences: Sequence[ValueDifference]) -> None:
    session.say("")
    rows = [(own.path, _value(own.first), _value(own.second)) for own in differences]
    say_table(session, (title, "first", "second"), rows, empty=f"{title}: no difference")


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _tell_features(session: CliSession, comparison: ModelComparison) -> None:
    session.say("")
    if comparison.has_other_order:
        session.say("features: the same ones in another order")
    elif not comparison.features_added and not comparison.features_removed:
        session.say("features: no difference")
    for sign, names in (("+", comparison.features_added), ("-", comparison.features_removed)):
        for name in names:
            session.say(f"feature {sign} {name}")
