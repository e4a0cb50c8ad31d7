"""The one way a training is run: by a worker, a library call and every test alike."""

from __future__ import annotations

from pathlib import Path

from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.domain.cancellation import CancellationToken, raise_if_cancelled
from ktrdr_core.domain.progress import ProgressCallback
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.storage.stored_model import SaveTarget
from ktrdr_core.training.checkpoint_keeper import SavedCallback
from ktrdr_core.training.executor import StepCallback, TrainingExecutor, WarningCallback
from ktrdr_core.training.preflight import preflight


def run_training(
    spec: TrainingSpec,
    *,
    bar_store: BarStore,
    model_storage: SaveTarget | None,
    progress_callback: ProgressCallback | None = None,
    step_callback: StepCallback | None = None,
    warning_callback: WarningCallback | None = None,
    cancellation_token: CancellationToken | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_every_s: float | None = None,
    checkpoint_callback: SavedCallback | None = None,
    resume_from: Path | None = None,
    must_resume: bool = True,
    tell_epochs_after: int | None = None,
) -> TrainingResult:
    """Check `spec`, train, store the model, and return the result.

    Args:
        spec: What to train.
        bar_store: Where bars come from.
        model_storage: Where the model goes; None stores nothing.
        progress_callback: See `ProgressCallback`.
        step_callback: Told each step as it begins.
        warning_callback: Told (reason, message) of each warning.
        cancellation_token: See TrainingExecutor.
        checkpoint_dir: Where a checkpoint goes if the token asks for one.
        checkpoint_every_s: Also keep one at most about this old, there; it changes nothing of the result.
        checkpoint_callback: Told of each such checkpoint and of the one of a stop.
        resume_from: A checkpoint of the same job to go on from, bit for bit.
        must_resume: False makes one that cannot be used a warning, and training begins at the beginning.
        tell_epochs_after: Report the epochs in `resume_from` after this one first; None reports none of them.

    Raises:
        InvalidInputError, NotFoundError: Bad input, refused before anything ran.
        CancellationError: The token was cancelled.
        TrainingError, ExecutionModeError: The training failed.
        StorageError: The model could not be stored.
        NotFoundError, CorruptDataError: `resume_from` cannot be gone on from.
    """
    raise_if_cancelled(cancellation_token)
    plan = preflight(spec, bar_store)
    executor = TrainingExecutor(
        plan.config,
        progress_callback,
        cancellation_token,
        model_storage,
        step_callback=step_callback,
        warning_callback=warning_callback,
        bar_store=bar_store,
        checkpoint_dir=checkpoint_dir,
        checkpoint_every_s=checkpoint_every_s,
        checkpoint_callback=checkpoint_callback,
        must_resume=must_resume,
        tell_epochs_after=tell_epochs_after,
    )
    return executor.execute(
        plan.symbols,
        plan.timeframes,
        plan.start_date,
        plan.end_date,
        validation_split=plan.config["training_config"]["validation_split"],
        data_mode=spec.data_mode,
        resume_from=resume_from,
    )
