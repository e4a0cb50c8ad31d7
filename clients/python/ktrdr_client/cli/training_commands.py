"""`ktrdr watch`, `list` and `config`."""

from __future__ import annotations

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.find import find_training
from ktrdr_client.cli.follow import follow
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_fields, say_table
from ktrdr_client.types import Training
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.errors import InvalidInputError


async def watch(session: CliSession, training_id: str) -> int:
    """Watch a training until it ends."""
    async with session.client() as client:
        return await follow(session, client, await find_training(client, training_id))


async def list_trainings(session: CliSession, limit: int) -> int:
    """List trainings, newest first."""
    async with session.client() as client:
        trainings = await client.list_trainings(limit=limit)
    if session.is_json:
        for training in trainings:
            session.write_json(json_lines.line("training", training))
        return ExitCode.OK
    rows = [
        (
            training.training_id,
            training.strategy_name,
            _state(training),
            training.scheduling.user or "-",
            formats.percent(training.progress.overall),
            formats.percent(training.result.test_metrics["accuracy"]) if training.result else "-",
            formats.percent(training.result.test_metrics["majority_baseline_accuracy"]) if training.result else "-",
            formats.moment(training.create_time),
        )
        for training in trainings
    ]
    say_table(
        session,
        ("id", "strategy", "state", "user", "progress", "test accuracy", "baseline", "created (UTC)"),
        rows,
        empty=f"no trainings yet; start one with: {session.command('train STRATEGY.yaml')}",
    )
    return ExitCode.OK


def _state(training: Training) -> str:
    """Return the state with the place in the queue and the attempt, where there is something to say."""
    text = training.state.lower()
    if training.queue is not None:
        text += f", {training.queue.position} of {training.queue.num_queued}"
    return f"{text}, attempt {training.attempt}" if training.attempt > 1 else text


async def config_get(session: CliSession) -> int:
    """Show the backend's configuration."""
    async with session.client() as client:
        config = await client.get_config()
    if session.is_json:
        session.write_json(json_lines.line("config", config))
        return ExitCode.OK
    say_fields(
        session,
        {
            "default_mode": config.default_mode.value,
            "version": config.version,
            "models": config.models_path,
            "bars": config.bars_path,
            "strategies": config.strategies_path,
            "trainers": ", ".join(config.trainers) or "none",
            "local slots": str(config.local_slots),
        },
    )
    return ExitCode.OK


async def config_set(session: CliSession, key: str, value: str) -> int:
    """Change the one key there is."""
    if key.replace("-", "_") != "default_mode":
        raise InvalidInputError(f"{key!r} cannot be set; the key is default_mode", field="key")
    modes = [mode.value for mode in ExecutionMode]
    if value not in modes:
        raise InvalidInputError(f"default_mode must be {', '.join(modes)}, was {value!r}", field="value")
    async with session.client() as client:
        change = await client.update_config(default_mode=ExecutionMode(value))
    if session.is_json:
        session.write_json(json_lines.line("config_change", change))
    else:
        session.say(f"default_mode: {change.previous.value} -> {change.current.value}")
    return ExitCode.OK
