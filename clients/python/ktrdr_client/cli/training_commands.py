"""`ktrdr watch`, `cancel`, `show`, `list`, `trainers` and `config`."""

from __future__ import annotations

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.cli import exit_codes, formats, json_lines
from ktrdr_client.cli.exit_codes import ExitCode
from ktrdr_client.cli.follow import follow
from ktrdr_client.cli.report import baseline_sentence, metrics_table, tell_end
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_fields, say_table
from ktrdr_client.cli.views import series_of
from ktrdr_client.types import Training
from ktrdr_core.domain.progress import STEP_TITLES
from ktrdr_core.domain.spec import ExecutionMode
from ktrdr_core.errors import InvalidInputError, TrainingNotFoundError

_FULL_ID_LENGTH = 32


async def watch(session: CliSession, training_id: str) -> int:
    """Watch a training until it ends."""
    async with session.client() as client:
        return await follow(session, client, await _find(client, training_id))


async def cancel(session: CliSession, training_id: str, *, save_checkpoint: bool) -> int:
    """End a training and say how; the exit code is 0 if it did as asked."""
    async with session.client() as client:
        found = await _find(client, training_id)
        ended = await client.cancel(found.training_id, save_checkpoint=save_checkpoint, reason="ktrdr cancel")
    if session.is_json:
        session.write_json(json_lines.line("training", ended))
    else:
        tell_end(session, ended)
    return ExitCode.OK


async def show(session: CliSession, training_id: str) -> int:
    """Show one training; the exit code tells its state, as that of `watch` would."""
    async with session.client() as client:
        training = await _find(client, training_id)
    if session.is_json:
        session.write_json(json_lines.line("training", training))
    else:
        _tell_training(session, training)
    return exit_codes.of_state(training.state)


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
            training.state.lower(),
            formats.percent(training.progress.overall),
            formats.percent(training.result.test_metrics["accuracy"]) if training.result else "-",
            formats.percent(training.result.test_metrics["majority_baseline_accuracy"]) if training.result else "-",
            formats.moment(training.create_time),
        )
        for training in trainings
    ]
    say_table(
        session,
        ("id", "strategy", "state", "progress", "test accuracy", "baseline", "created (UTC)"),
        rows,
        empty=f"no trainings yet; start one with: {session.command('train STRATEGY.yaml')}",
    )
    return ExitCode.OK


async def trainers(session: CliSession) -> int:
    """List the trainers the backend knows, with their health now."""
    async with session.client() as client:
        found = await client.list_trainers()
    if session.is_json:
        for trainer in found:
            session.write_json(json_lines.line("trainer", trainer))
        return ExitCode.OK
    rows = [
        (
            trainer.address,
            "healthy" if trainer.is_healthy else "not healthy",
            ", ".join(trainer.devices) or "-",
            f"{trainer.num_free_slots} of {trainer.num_slots} free" if trainer.is_healthy else "-",
            f"{trainer.latency_s * 1000:.1f} ms" if trainer.is_healthy else "-",
            trainer.version or "-",
            trainer.message,
        )
        for trainer in found
    ]
    say_table(
        session,
        ("address", "health", "devices", "slots", "latency", "version", ""),
        rows,
        empty="this backend knows no trainers; start it with --trainer HOST:PORT",
    )
    return ExitCode.OK


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


async def _find(client: AsyncClient, text: str) -> Training:
    """Return the training with this id, or the only one whose id begins so."""
    try:
        return await client.get_training(text)
    except TrainingNotFoundError:
        if not 3 <= len(text) < _FULL_ID_LENGTH:
            raise
        matches = [each for each in await client.list_trainings() if each.training_id.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InvalidInputError(f"{len(matches)} trainings begin with {text!r}; give more of the id", field="id")
    raise TrainingNotFoundError(f"no training {text}; `ktrdr list` shows those there are")


def _tell_training(session: CliSession, training: Training) -> None:
    progress, place = training.progress, training.placement
    symbols, timeframes = series_of(training)
    say_fields(
        session,
        {
            "training": training.training_id,
            "strategy": training.strategy_name,
            "symbols": symbols,
            "timeframes": timeframes,
            "state": training.state.lower(),
            "message": training.message,
            "progress": formats.percent(progress.overall),
            "step": f"{int(progress.step)} {STEP_TITLES[progress.step]}" if progress.step else "",
            "epoch": f"{progress.epoch.epoch} of {progress.epoch.total_epochs}" if progress.epoch else "",
            "elapsed": formats.duration(progress.elapsed_s),
            "remaining": "" if progress.remaining_s is None else formats.duration(progress.remaining_s),
            "created": formats.moment(training.create_time),
            "started": formats.moment(training.start_time),
            "ended": formats.moment(training.end_time),
            "runs on": "" if place is None else f"{place.mode.value} {place.trainer}".strip(),
            "because": "" if place is None else "; ".join(place.reasons),
            "sessions": ", ".join(f"{each.session_id} on {each.trainer}" for each in training.sessions),
            "memory": formats.size(training.resource_usage.resident_memory_bytes) if training.resource_usage else "",
            "gpu": training.resource_usage.gpu_name if training.resource_usage else "",
            "checkpoint": training.checkpoint_path,
            "error": f"{training.error.message} ({training.error.reason})" if training.error else "",
            "warnings": "; ".join(training.warnings),
            "model": training.result.model_path if training.result else "",
        },
    )
    if training.result is not None:
        session.say("")
        session.out.print(metrics_table(training.result.training_metrics, training.result.test_metrics))
        session.say("")
        session.say(baseline_sentence(training.result.test_metrics))
