"""What is told at the end of a training, and of a stored model."""

from __future__ import annotations

from pathlib import PurePosixPath

from rich.table import Table
from rich.text import Text

from ktrdr_client.cli import formats
from ktrdr_client.cli.evaluation_report import leakage_sentence, signals_sentence
from ktrdr_client.cli.session import CliSession
from ktrdr_client.types import Training
from ktrdr_core.domain.result import TestMetrics, TrainingMetrics
from ktrdr_core.domain.states import TrainingState


def tell_end(session: CliSession, training: Training) -> None:
    """Print how a training ended: metrics, where the model is, and what to type next."""
    match training.state:
        case TrainingState.COMPLETED:
            _tell_completed(session, training)
        case TrainingState.FAILED:
            error = training.error
            reason = f" ({error.reason})" if error else ""
            session.err.print(
                Text(f"training {training.training_id} failed{reason}: {error.message if error else training.message}")
            )
        case TrainingState.STOPPED:
            where = f"; checkpoint: {training.checkpoint_path}" if training.checkpoint_path else ""
            session.say(f"training {training.training_id} stopped{where}")
        case TrainingState.CANCELLED:
            session.say(f"training {training.training_id} cancelled")
        case state:
            session.say(f"training {training.training_id} is {state.lower()}")


def _tell_completed(session: CliSession, training: Training) -> None:
    result = training.result
    if result is None:
        session.say(f"training {training.training_id} completed")
        return
    place = training.placement
    where = "" if place is None else f" ({place.mode.value}{' on ' + place.trainer if place.trainer else ''})"
    session.say(f"{training.strategy_name} trained in {formats.duration(result.duration_s)} on {result.device}{where}")
    session.say("")
    session.out.print(metrics_table(result.training_metrics, result.test_metrics))
    session.say("")
    session.say(baseline_sentence(result.test_metrics))
    if result.training_metrics["best_epoch"]:  # 0: a backend older than the field
        session.say(best_epoch_sentence(result.training_metrics))
    if result.evaluation is not None:
        session.say(signals_sentence(result.evaluation["signals"]))
        session.say(leakage_sentence(result.evaluation["leakage"]))
    for warning in result.warnings:
        session.out.print(Text(f"warning: {warning}", style="yellow"))
    session.say("")
    session.say(f"model  {result.model_path}")
    name = store_name(result.model_path)
    session.say(f"next   {session.command(f'models predict {name}')}")


def metrics_table(training: TrainingMetrics, test: TestMetrics) -> Table:
    """Return the metrics of the three parts; the test part's accuracy stands beside its baseline."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for title in ("loss", "accuracy", "baseline", "precision", "recall", "F1"):
        table.add_column(title, justify="right")
    table.add_row("training", formats.loss(training["train_loss"]), formats.percent(training["train_accuracy"]))
    table.add_row("validation", formats.loss(training["val_loss"]), formats.percent(training["val_accuracy"]))
    table.add_row(
        Text("test", style="bold"),
        formats.loss(test["loss"]),
        Text(formats.percent(test["accuracy"]), style="bold"),
        formats.percent(test["majority_baseline_accuracy"]),
        formats.percent(test["precision"]),
        formats.percent(test["recall"]),
        formats.percent(test["f1_score"]),
    )
    return table


def baseline_sentence(test: TestMetrics) -> str:
    """Return test accuracy against the best constant answer."""
    difference = test["accuracy"] - test["majority_baseline_accuracy"]
    return (
        f"test accuracy {formats.percent(test['accuracy'])}, majority baseline "
        f"{formats.percent(test['majority_baseline_accuracy'])}: {formats.points(difference)}"
    )


def best_epoch_sentence(training: TrainingMetrics) -> str:
    """Return which epoch's weights the model has."""
    return f"weights of epoch {training['best_epoch']} of {training['epochs']}, the best on the validation part"


def store_name(model_path: str) -> str:
    """Return the name in the store of a model's directory: its last two parts."""
    path = PurePosixPath(model_path)
    return f"{path.parent.name}/{path.name}"
