"""`ktrdr models list` and `show`."""

from __future__ import annotations

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.evaluation_report import tell_evaluation
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.report import baseline_sentence, metrics_table
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_fields, say_table


async def list_models(session: CliSession, strategy: str, limit: int) -> int:
    """List stored models, newest first."""
    async with session.client() as client:
        models = await client.list_models(strategy_name=strategy, limit=limit)
    if session.is_json:
        for model in models:
            session.write_json(json_lines.line("model", model))
        return ExitCode.OK
    rows = [
        (
            model.name,
            formats.percent(model.test_metrics["accuracy"]),
            formats.percent(model.test_metrics["majority_baseline_accuracy"]),
            formats.size(sum(file.size_bytes for file in model.files)),
            formats.moment(model.create_time),
            ", ".join(model.aliases),
        )
        for model in models
    ]
    say_table(
        session,
        ("name", "test accuracy", "baseline", "size", "created (UTC)", "aliases"),
        rows,
        empty=f"no models stored yet; train one with: {session.command('train STRATEGY.yaml')}",
    )
    return ExitCode.OK


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
            "id": model.model_id,
            "symbols": ", ".join(model.symbols),
            "timeframes": ", ".join(model.timeframes),
            "aliases": ", ".join(model.aliases),
            "created": formats.moment(model.create_time),
            "training": model.training_id or "imported",
            "digest": model.artifact_digest,
            "path": model.path,
            "files": ", ".join(f"{file.name} ({formats.size(file.size_bytes)})" for file in model.files),
        },
    )
    session.say("")
    session.out.print(metrics_table(model.training_metrics, model.test_metrics))
    session.say("")
    session.say(baseline_sentence(model.test_metrics))
    if model.evaluation is not None:
        session.say("")
        tell_evaluation(session, model.evaluation)
    return ExitCode.OK
