"""`ktrdr models list` and `show`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.evaluation_report import tell_evaluation
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.report import baseline_sentence, metrics_table
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_fields, say_table
from ktrdr_client.cli.train_command import parse_day
from ktrdr_client.model_types import Model
from ktrdr_core.storage.model_query import ModelQuery
from ktrdr_core.storage.stored_model import Lineage


def published_between(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Return the first time of the day `since` and the one after the day `until`, UTC; None where none was given.

    Raises:
        InvalidInputError: A day is none.
    """
    first, last = parse_day(since, "--since"), parse_day(until, "--until")
    return (
        None if first is None else datetime.combine(first, time(), UTC),
        None if last is None else datetime.combine(last, time(), UTC) + timedelta(days=1),
    )


async def list_models(session: CliSession, query: ModelQuery, *, limit: int) -> int:
    """List stored models, or what is kept aside."""
    async with session.client() as client:
        models = await client.list_models(query, limit=limit)
    if session.is_json:
        for model in models:
            session.write_json(json_lines.line("model", model))
    elif query.kept_aside:
        _say_kept_aside(session, models)
    elif models or query == ModelQuery(order=query.order):
        _say_models(session, models)
    else:
        session.say("no stored model is like that; without filters `ktrdr models list` shows all")
    return ExitCode.OK


def _say_models(session: CliSession, models: Sequence[Model]) -> None:
    rows = [
        (
            model.name,
            formats.percent(model.test_metrics["accuracy"]),
            formats.percent(model.test_metrics["majority_baseline_accuracy"]),
            formats.percent(model.test_metrics["f1_score"]),
            formats.loss(model.training_metrics["val_loss"]),
            formats.size(model.size_bytes),
            formats.moment(model.create_time),
            ", ".join(model.aliases),
        )
        for model in models
    ]
    say_table(
        session,
        ("name", "test accuracy", "baseline", "F1", "validation loss", "size", "created (UTC)", "aliases"),
        rows,
        empty=f"no models stored yet; train one with: {session.command('train STRATEGY.yaml')}",
    )


def _say_kept_aside(session: CliSession, models: Sequence[Model]) -> None:
    say_table(
        session,
        ("name", "strategy", "training", "attempt", "size", "arrived (UTC)"),
        [
            (
                model.name,
                model.strategy_name,
                model.training_id,
                str(model.attempt),
                formats.size(model.size_bytes),
                formats.moment(model.create_time),
            )
            for model in models
        ],
        empty="nothing is kept aside",
    )


async def show(session: CliSession, name: str) -> int:
    """Show one stored model."""
    async with session.client() as client:
        model = await client.get_model(name)
    if session.is_json:
        session.write_json(json_lines.line("model", model))
        return ExitCode.OK
    say_fields(
        session,
        {
            "model": model.name,
            "kept aside": "the artifact of an attempt that was given up; never published"
            if model.is_kept_aside
            else "",
            "id": model.model_id,
            "symbols": ", ".join(model.symbols),
            "timeframes": ", ".join(model.timeframes),
            "aliases": ", ".join(model.aliases),
            "created": formats.moment(model.create_time),
            "training": _origin(model),
            **_lineage_fields(model.lineage),
            "digest": model.artifact_digest,
            "path": model.path,
            "size": formats.size(model.size_bytes),
        },
    )
    session.say("")
    say_table(
        session,
        ("file", "size", "SHA-256"),
        [(file.name, formats.size(file.size_bytes), file.sha256) for file in model.files],
        empty="",
    )
    session.say("")
    session.out.print(metrics_table(model.training_metrics, model.test_metrics))
    session.say("")
    session.say(baseline_sentence(model.test_metrics))
    if model.evaluation is not None:
        session.say("")
        tell_evaluation(session, model.evaluation)
    return ExitCode.OK


def _origin(model: Model) -> str:
    if not model.training_id:
        return "imported"
    return f"{model.training_id}, attempt {model.attempt}"


def _lineage_fields(lineage: Lineage) -> dict[str, str]:
    parent = lineage.parent_checkpoint
    return {
        "strategy digest": lineage.strategy_digest,
        "bars": "; ".join(
            f"{each.symbol} {each.timeframe}, {each.num_bars:,} bars, {each.digest}" for each in lineage.series
        ),
        "days": f"{lineage.start_date} to {lineage.end_date}" if lineage.start_date else "",
        "bars from": lineage.data_mode,
        "seed": "" if lineage.seed is None else str(lineage.seed),
        "trained by": f"ktrdr {lineage.code_version}" if lineage.code_version else "",
        "went on from": "" if parent is None else f"the checkpoint of epoch {parent.epoch}, {parent.sha256}",
    }
