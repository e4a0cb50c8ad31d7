"""`ktrdr show`: the whole story of a training, from what was asked to how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from ktrdr_client.cli import exit_codes, formats, json_lines
from ktrdr_client.cli.find import find_training
from ktrdr_client.cli.report import baseline_sentence, metrics_table
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.tables import say_fields, say_table
from ktrdr_client.cli.views import describe, queue_sentence, series_of
from ktrdr_client.cli.ways_out import way_out
from ktrdr_client.types import SessionRef, Training
from ktrdr_core.domain.progress import STEP_TITLES, ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.scheduling import Scheduling
from ktrdr_core.domain.spec import TrainingSpec

_SHORT_ID_LENGTH = 8


async def show(session: CliSession, training_id: str, *, with_events: bool) -> int:
    """Tell the story of one training; the exit code tells its state, as that of `watch` would."""
    async with session.client() as client:
        training = await find_training(client, training_id)
        if session.is_json:
            session.write_json(json_lines.line("training", training))
            if with_events:
                async for event in client.list_training_events(training.training_id):
                    session.write_json(json_lines.event_line(event))
            return exit_codes.of_state(training.state)
        told = [
            event
            async for event in client.list_training_events(training.training_id)
            if with_events or isinstance(event.detail, StateDetail | WarningDetail)
        ]
        # Asked again after its events, so that the two agree if it has ended meanwhile.
        training = await client.get_training(training.training_id)
    tell_story(session, training, told, with_events=with_events, now=datetime.now(UTC))
    return exit_codes.of_state(training.state)


def tell_story(
    session: CliSession, training: Training, events: Sequence[ProgressEvent], *, with_events: bool, now: datetime
) -> None:
    """Print the story.

    Args:
        session: Where to.
        training: The training as it is.
        events: Its state changes and warnings, oldest first, or all of its events.
        with_events: Print every event of `events` with its number.
        now: For what is still going on.
    """
    say_fields(session, _now(training))
    _heading(session, "asked for")
    say_fields(session, _asked(training))
    if training.sessions:
        _heading(session, "attempts")
        for each in training.sessions:
            _tell_attempt(session, each, now)
    _heading(session, "history (UTC)")
    _tell_history(session, [each for each in events if isinstance(each.detail, StateDetail)], now)
    warnings = [each for each in events if isinstance(each.detail, WarningDetail)]
    if warnings:
        _heading(session, "warnings (UTC)")
        for event in warnings:
            if isinstance(event.detail, WarningDetail):
                text = f"{formats.moment(event.create_time)}  {event.detail.message} ({event.detail.reason})"
                session.out.print(Text(text, style="yellow"))
    if with_events:
        _heading(session, "events (UTC)")
        _tell_events(session, events)
    if training.error is not None:
        _heading(session, "error")
        session.out.print(Text(f"{training.error.message} ({training.error.reason})", style="red"))
        if advice := way_out(training.error.reason):
            session.say(f"next: {advice}")
    if training.result is not None:
        _heading(session, "result")
        say_fields(
            session,
            {
                "model": training.result.model_path,
                "trained in": f"{formats.duration(training.result.duration_s)} on {training.result.device}",
            },
        )
        session.say("")
        session.out.print(metrics_table(training.result.training_metrics, training.result.test_metrics))
        session.say("")
        session.say(baseline_sentence(training.result.test_metrics))


def _heading(session: CliSession, text: str) -> None:
    session.say("")
    session.out.print(Text(text, style="bold"))


def _now(training: Training) -> dict[str, str]:
    progress, place, usage = training.progress, training.placement, training.resource_usage
    is_over = training.state.is_terminal
    return {
        "training": training.training_id,
        "state": training.state.lower() + (f", attempt {training.attempt}" if training.attempt > 1 else ""),
        "message": training.message,
        "queue": "" if training.queue is None else queue_sentence(training.queue),
        "progress": formats.percent(progress.overall),
        "step": f"{int(progress.step)} {STEP_TITLES[progress.step]}" if progress.step else "",
        "epoch": f"{progress.epoch.epoch} of {progress.epoch.total_epochs}" if progress.epoch else "",
        "elapsed": formats.duration(progress.elapsed_s),
        "remaining": "" if progress.remaining_s is None or is_over else formats.duration(progress.remaining_s),
        "created": formats.moment(training.create_time),
        "started": formats.moment(training.start_time),
        "ended": formats.moment(training.end_time),
        "ran on" if is_over else "runs on": "" if place is None else f"{place.mode.value} {place.trainer}".strip(),
        "because": "" if place is None else "; ".join(place.reasons),
        "memory": formats.size(usage.resident_memory_bytes) if usage else "",
        "gpu": usage.gpu_name if usage else "",
        "checkpoint": training.checkpoint_path,
    }


def _asked(training: Training) -> dict[str, str]:
    symbols, timeframes = series_of(training)
    return {
        "strategy": training.strategy_name + (" (the backend's)" if training.strategy_source else ""),
        "symbols": symbols,
        "timeframes": timeframes,
        **({} if training.spec is None else _spec(training.spec)),
        **_scheduling(training.scheduling),
        "request id": training.request_id,
    }


def _spec(spec: TrainingSpec) -> dict[str, str]:
    return {
        "from": "" if spec.start_date is None else str(spec.start_date),
        "to": "" if spec.end_date is None else str(spec.end_date),
        "epochs": "" if spec.epochs is None else str(spec.epochs),
        "batch size": "" if spec.batch_size is None else str(spec.batch_size),
        "learning rate": "" if spec.learning_rate is None else f"{spec.learning_rate:g}",
        "seed": str(spec.seed),
        "mode": spec.execution_mode.value if spec.execution_mode else "as the backend is configured",
        "gpu": "required" if spec.require_gpu else "",
    }


def _scheduling(scheduling: Scheduling) -> dict[str, str]:
    retries = scheduling.num_retries_allowed
    return {
        "user": scheduling.user,
        "priority": str(scheduling.priority) if scheduling.priority else "",
        "retries": f"at most {retries}, after a lost trainer" if retries else "none",
    }


def _tell_attempt(session: CliSession, attempt: SessionRef, now: datetime) -> None:
    trainer_id = f" ({attempt.trainer_id[:_SHORT_ID_LENGTH]})" if attempt.trainer_id else ""
    begun = f", from epoch {attempt.resumed_from_epoch}" if attempt.resumed_from_epoch else ""
    until = "now" if attempt.end_time is None else formats.moment(attempt.end_time)
    times = f"{formats.moment(attempt.start_time)} to {until}"
    if attempt.start_time is not None:
        times += f", {formats.duration(((attempt.end_time or now) - attempt.start_time).total_seconds())}"
    outcome = attempt.outcome.lower() or "has not ended"
    if attempt.error_reason:
        outcome += f" ({attempt.error_reason})"
    if attempt.is_fenced:
        outcome += ", fenced: nothing it produces counts any more"
    session.say(f"{attempt.attempt}  on {attempt.trainer or 'no trainer'}{trainer_id}{begun}: {outcome}")
    details = {
        "time": times,
        "because": "; ".join(attempt.reasons),
        "message": attempt.message,
        "session": attempt.session_id,
    }
    say_fields(session, details, indent=3)


def _tell_history(session: CliSession, changes: Sequence[ProgressEvent], now: datetime) -> None:
    rows = []
    for number, event in enumerate(changes):
        is_last = number + 1 == len(changes)
        until = now if is_last else changes[number + 1].create_time
        lasted = "" if event.terminal_state else formats.duration((until - event.create_time).total_seconds())
        rows.append((formats.moment(event.create_time), lasted, describe(event)))
    say_table(session, ("time", "lasted", "state"), rows, empty="none")


def _tell_events(session: CliSession, events: Sequence[ProgressEvent]) -> None:
    rows = [
        (
            str(event.sequence),
            formats.moment(event.create_time),
            str(event.attempt or "-"),
            formats.percent(event.overall),
            describe(event),
        )
        for event in events
    ]
    say_table(session, ("number", "time", "attempt", "progress", "event"), rows, empty="none")
