"""How a training is shown while it runs: the port, plain lines, JSON lines. The terminal's view is in `live_view`."""

from __future__ import annotations

from typing import Protocol

from ktrdr_client.cli import formats, json_lines
from ktrdr_client.cli.session import CliSession
from ktrdr_client.types import QueueStatus, Training
from ktrdr_core.domain.progress import (
    NUM_STEPS,
    BatchDetail,
    EpochDetail,
    ProgressEvent,
    StateDetail,
    StepDetail,
    WarningDetail,
)
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import InvalidStrategyError


class View(Protocol):
    """What `follow` tells of a training."""

    def begin(self, training: Training) -> None: ...

    def event(self, event: ProgressEvent) -> None: ...

    def note(self, text: str) -> None: ...

    def pause(self) -> None:
        """Leave the terminal alone, for a question."""

    def resume(self) -> None: ...

    def end(self) -> None: ...


class JsonView:
    """One JSON object a line: the training, its events; notes go to stderr."""

    def __init__(self, session: CliSession) -> None:
        self._session = session

    def begin(self, training: Training) -> None:
        self._session.write_json(json_lines.line("training", training))

    def event(self, event: ProgressEvent) -> None:
        self._session.write_json(json_lines.event_line(event))

    def note(self, text: str) -> None:
        self._session.note(text)

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def end(self) -> None: ...


class PlainView:
    """One line for each change, for a log or a pipe; batches are left out."""

    def __init__(self, session: CliSession) -> None:
        self._session = session

    def begin(self, training: Training) -> None:
        self._session.say(headline(training))

    def event(self, event: ProgressEvent) -> None:
        text = describe(event)
        if text:
            self._session.say(f"{event.overall * 100:3.0f} %  {text}")

    def note(self, text: str) -> None:
        self._session.note(text)

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def end(self) -> None: ...


def headline(training: Training) -> str:
    """Return the line that names a training."""
    parts = (training.strategy_name, *series_of(training), f"training {training.training_id}")
    return "  ".join(part for part in parts if part)


def series_of(training: Training) -> tuple[str, str]:
    """Return the symbols and the timeframes, those of the strategy where the request names none; "" if unknown."""
    spec = training.spec
    if spec is None:
        return "", ""
    symbols, timeframes = spec.symbols, spec.timeframes
    if not (symbols and timeframes):
        from ktrdr_core.config.loader import parse_strategy

        try:
            strategy = parse_strategy(spec.strategy_yaml)
        except InvalidStrategyError:  # a placeholder, or a grammar newer than this client
            return ", ".join(symbols), ", ".join(timeframes)
        symbols, timeframes = symbols or strategy.symbols, timeframes or strategy.timeframes
    return ", ".join(symbols), ", ".join(timeframes)


def queue_sentence(queue: QueueStatus) -> str:
    """Return where a training was in the queue when it was asked."""
    wait = "" if queue.estimated_wait_s is None else f", about {formats.duration(queue.estimated_wait_s)} to wait"
    waiting_for = f"; {queue.waiting_for}" if queue.waiting_for else ""
    return f"{queue.position} of {queue.num_queued} in the queue{wait}{waiting_for}"


def is_queued_again(event: ProgressEvent) -> bool:
    """Return whether the event says that an attempt was lost and another will follow; a log begins with QUEUED."""
    return isinstance(event.detail, StateDetail) and event.detail.state is TrainingState.QUEUED and event.sequence > 1


def describe(event: ProgressEvent) -> str:
    """Return one line for a durable event; "" for a batch."""
    match event.detail:
        case StateDetail() as detail:
            state = detail.state.lower()
            if is_queued_again(event):
                state = f"queued again, attempt {event.attempt} is lost" if event.attempt else "queued again"
            elif detail.state is TrainingState.RUNNING and event.attempt > 1:
                state = f"running, attempt {event.attempt}"
            return f"{state}{': ' if detail.message else ''}{detail.message}"
        case StepDetail() as detail:
            return f"step {int(detail.step)}/{NUM_STEPS}  {detail.title}"
        case EpochDetail() as detail:
            remaining = "" if event.remaining_s is None else f"  remaining {formats.duration(event.remaining_s)}"
            return (
                f"epoch {detail.epoch}/{detail.total_epochs}  "
                f"train loss {formats.loss(detail.train_loss)} accuracy {formats.percent(detail.train_accuracy)}  "
                f"validation loss {formats.loss(detail.val_loss)} accuracy {formats.percent(detail.val_accuracy)}  "
                f"{formats.rate(detail.rows_per_second)}{remaining}"
            )
        case WarningDetail() as detail:
            return f"warning: {detail.message}"
        case BatchDetail():
            return ""
