"""What to do about a training that failed, by its reason; the error's own message says what happened."""

from __future__ import annotations

from ktrdr_core import errors

_RETRIES = "train again; with --retries N it goes on by itself N times. See also: ktrdr trainers, ktrdr doctor"
_WAYS_OUT: dict[str, str] = {
    errors.TrainerLostError.reason: f"look at the trainer's machine, then {_RETRIES}",
    errors.DrainingError.reason: f"the trainer was stopped: {_RETRIES}",
    errors.UnreachableError.reason: "check the trainer's address and network with: ktrdr doctor",
    errors.VersionSkewError.reason: "install one version of ktrdr on backend and trainer; ktrdr doctor names them",
    errors.StorageError.reason: "free space on the machine that the message names, then train again; see ktrdr doctor",
    errors.ExecutionModeError.reason: "add a trainer (ktrdr trainers), or choose another --mode",
    errors.NoSlotError.reason: "wait, or add a trainer: ktrdr trainers",
    errors.NonFiniteLossError.reason: "train with a lower --learning-rate, and look for bad bars: ktrdr data check",
    errors.DegenerateLabelsError.reason: "change the strategy's labels so that every class occurs",
    errors.LeakageError.reason: "look at the indicators and bars that the message names; nothing of this result counts",
    errors.OutOfMemoryError.reason: "train again with a smaller --batch-size or fewer features, or on a larger machine",
    errors.DeviceFailedError.reason: "check the GPU and its driver on the trainer's machine, then train again",
    errors.WorkerDiedError.reason: "look into the trainer's log for what the worker said last, then train again",
    errors.SeriesNotFoundError.reason: "import the bars where the training runs: ktrdr data import",
    errors.InternalError.reason: "this is a defect: look into the log of the service, and report it",
}


def way_out(reason: str) -> str:
    """Return what to do next; "" where the message says all there is to say."""
    return _WAYS_OUT.get(reason, "")
