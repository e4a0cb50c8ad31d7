"""The view of a running training on a terminal: step, epoch and batch bars, metrics, rate, remaining time."""

from __future__ import annotations

import time

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ktrdr_client.cli import formats
from ktrdr_client.cli.session import CliSession
from ktrdr_client.cli.views import describe, is_queued_again, series_of
from ktrdr_client.types import Training
from ktrdr_core.domain.progress import (
    NUM_STEPS,
    STEP_TITLES,
    ProgressEvent,
    ProgressSummary,
    StateDetail,
    TrainingStep,
    WarningDetail,
)
from ktrdr_core.domain.states import TrainingState

_MIN_BAR_WIDTH, _MAX_BAR_WIDTH = 4, 36
# Beside a bar: its name, its count, the gaps, and `elapsed 1:02:03  remaining 1:02:03`.
_BESIDE_BAR_WIDTH = 56
_REFRESH_PER_S = 8
_RUNNING = (TrainingState.RUNNING, TrainingState.UPLOADING, TrainingState.CANCELLING)


class LiveView:
    """Redraws a few lines in place; what is noted scrolls above them."""

    def __init__(self, session: CliSession) -> None:
        self._session = session
        self._summary = ProgressSummary()
        self._training: Training | None = None
        self._series = ("", "")
        self._heard_at = time.monotonic()
        self._live: Live | None = None

    def begin(self, training: Training) -> None:
        self._training = training
        self._series = series_of(training)
        self._summary.state = training.state
        self._summary.message = training.message
        self.resume()

    def event(self, event: ProgressEvent) -> None:
        is_lost = is_queued_again(event)
        if is_lost or (event.attempt > self._summary.attempt and self._summary.step is not None):
            self._summary = ProgressSummary(warnings=self._summary.warnings)  # the next attempt begins anew
        self._summary.apply(event)
        if is_lost:
            self.note(describe(event))
        self._heard_at = time.monotonic()
        if isinstance(event.detail, WarningDetail):
            self.note(f"warning: {event.detail.message}")
        if isinstance(event.detail, StateDetail) and self._live is not None:
            self._live.refresh()

    def note(self, text: str) -> None:
        self._session.out.print(Text(text, style="yellow"))

    def pause(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def resume(self) -> None:
        self._live = Live(
            get_renderable=self.render,
            console=self._session.out,
            refresh_per_second=_REFRESH_PER_S,
            transient=True,
        )
        self._live.start(refresh=True)

    def end(self) -> None:
        self.pause()

    def render(self) -> RenderableType:
        """Return the lines as they are now."""
        summary = self._summary
        lines: list[RenderableType] = [self._headline(), Padding(self._bars(), (1, 0, 1, 0)), self._metrics()]
        if summary.step is None and summary.message:
            lines = [self._headline(), Text(summary.message, style="dim")]
        return Group(*lines)

    def _headline(self) -> Text:
        training = self._training
        text = Text()
        if training is not None:
            text.append(training.strategy_name, style="bold")
            for words in self._series:
                text.append(f"  {words}" if words else "")
            text.append(f"  {training.training_id}", style="dim")
        text.append(f"  {self._summary.state.lower()}", style=_state_style(self._summary.state))
        if self._summary.attempt > 1:
            text.append(f"  attempt {self._summary.attempt}", style="yellow")
        return text

    def _bars(self) -> Table:
        summary = self._summary
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", width=7)
        grid.add_column(justify="right", width=9)
        grid.add_column(width=min(max(self._session.out.width - _BESIDE_BAR_WIDTH, _MIN_BAR_WIDTH), _MAX_BAR_WIDTH))
        grid.add_column(no_wrap=True)
        step = int(summary.step or 0)
        title = STEP_TITLES[summary.step] if summary.step else ""
        grid.add_row("total", formats.percent(summary.overall), _bar(summary.overall), self._clock())
        grid.add_row("step", f"{step}/{NUM_STEPS}", _bar(step / NUM_STEPS), title)
        batch, epoch = summary.batch, summary.epoch
        done = epoch.epoch if epoch else 0
        total = epoch.total_epochs if epoch else batch.total_epochs if batch else 0
        in_epoch = 0.0
        if batch is not None and batch.epoch > done:
            in_epoch = batch.batch / max(batch.total_batches_per_epoch, 1)
        if summary.step is not None and summary.step > TrainingStep.TRAINING:
            in_epoch = 0.0
        rate = batch.rows_per_second if batch else epoch.rows_per_second if epoch else 0.0
        grid.add_row(
            "epoch",
            f"{done}/{total}" if total else "-",
            _bar((done + in_epoch) / total if total else 0.0),
            formats.rate(rate) if rate else "",
        )
        if batch is not None:
            # Between two epochs the last one's batches are all done.
            number = batch.batch if batch.epoch > done else batch.total_batches_per_epoch
            fraction = number / max(batch.total_batches_per_epoch, 1)
            grid.add_row("batch", f"{number}/{batch.total_batches_per_epoch}", _bar(fraction), "")
        else:
            grid.add_row("batch", "-", _bar(0.0), "")
        return grid

    def _clock(self) -> str:
        summary = self._summary
        passed = time.monotonic() - self._heard_at if summary.state in _RUNNING else 0.0
        text = f"elapsed {formats.duration(summary.elapsed_s + passed)}"
        if summary.remaining_s is not None and not summary.state.is_terminal:
            text += f"  remaining {formats.duration(max(summary.remaining_s - passed, 0.0))}"
        return text

    def _metrics(self) -> RenderableType:
        epoch, batch = self._summary.epoch, self._summary.batch
        grid = Table.grid(padding=(0, 3))
        grid.add_column(style="dim", width=10)
        for _ in range(3):
            grid.add_column(justify="right", min_width=9)
        grid.add_row("", Text("loss", "dim"), Text("accuracy", "dim"), Text("learning rate", "dim"))
        newest = batch if batch is not None and (epoch is None or batch.epoch > epoch.epoch) else epoch
        if newest is not None:
            grid.add_row(
                "training",
                formats.loss(newest.train_loss),
                formats.percent(newest.train_accuracy),
                f"{newest.learning_rate:g}",
            )
        else:
            grid.add_row("training", "-", "-", "-")
        if epoch is not None:
            grid.add_row("validation", formats.loss(epoch.val_loss), formats.percent(epoch.val_accuracy), "")
        else:
            grid.add_row("validation", "-", "-", "")
        return grid


def _bar(fraction: float) -> ProgressBar:
    return ProgressBar(
        total=1.0,
        completed=min(max(fraction, 0.0), 1.0),
        complete_style="cyan",
        finished_style="green",
    )


def _state_style(state: TrainingState) -> str:
    match state:
        case TrainingState.COMPLETED:
            return "green"
        case TrainingState.FAILED:
            return "red"
        case TrainingState.CANCELLED | TrainingState.STOPPED | TrainingState.CANCELLING:
            return "yellow"
        case _:
            return "cyan"
