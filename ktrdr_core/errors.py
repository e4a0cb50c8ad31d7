"""The one error tree of the system.

```
KtrdrError
├── InvalidInputError                 bad input, refused at the door; carries field violations
│   ├── InvalidStrategyError          the strategy file breaks the grammar
│   ├── InvalidSpecError              a field of a training request breaks a rule
│   ├── InvalidIndicatorError         an indicator's name or parameter breaks a rule
│   ├── InvalidBarsError              bars break a rule of the data (row and reason named)
│   ├── TooFewBarsError               too few rows are left after warm-up, horizon and purge
│   ├── InvalidUploadError            an upload's header, offset, order or size breaks its contract
│   ├── InvalidResultError            a TrainingResult misses a key or has a wrong one
│   └── UnsupportedError              the grammar allows it, this version does not build it yet
├── NotFoundError
│   ├── TrainingNotFoundError
│   ├── SessionNotFoundError
│   ├── StrategyNotFoundError
│   ├── SeriesNotFoundError           no bars for a symbol and timeframe
│   ├── ModelNotFoundError
│   ├── UploadNotFoundError
│   ├── CheckpointNotFoundError       put it there first
│   └── BarsMissingError              not in the trainer's cache, or damaged there: have them fetched first
├── AlreadyExistsError                same request_id, other content
├── IllegalStateError                 the state of the thing forbids it
│   ├── VersionSkewError              backend and trainer are of versions that do not work together
│   ├── SeriesChangedError            the bars that were named are not those that are stored now
│   └── ModelReferencedError          an alias points at the model
├── WriteConflictError                a second writer, or a fenced attempt
├── NoSlotError                       every slot is taken; retry later
├── QuotaExceededError                the store or an upload is at its limit
├── UnauthenticatedError              no token, or none that is known
├── PermissionDeniedError             the token's scopes do not allow this call
├── UnavailableError                  retry may help
│   ├── DrainingError
│   ├── TrainerLostError
│   ├── StorageError                  disk or database takes no writes now; nothing was changed
│   └── UnreachableError              no connection to the other side
├── ExecutionModeError                no place satisfies what the training requires
├── CorruptDataError                  bytes differ from their checksum
├── NotBuiltError                     an RPC that a later version fills
├── TrainingError                     a training failed while running
│   ├── NonFiniteLossError
│   ├── DegenerateLabelsError
│   ├── LeakageError                  a feature or label saw the future
│   ├── DeviceFailedError             the GPU or its driver failed under the worker
│   ├── OutOfMemoryError              the worker had no memory left, on the host or on the GPU
│   └── WorkerDiedError               the worker process ended without an outcome
├── CancellationError                 a training was cancelled or stopped
└── InternalError                     a defect of this program; details are in the log only
```

Every class has a stable `reason` (UPPER_SNAKE) that travels in `google.rpc.ErrorInfo`; the table from class to gRPC
status is in `ktrdr_core/rpc/status_table.py`, nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One broken rule of an input: where, and what to do about it."""

    field: str
    description: str


class KtrdrError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        message: One sentence that names the value, the rule and the way out.
        metadata: Machine-readable facts, for example `{"training_id": "..."}`.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})


class InvalidInputError(KtrdrError, ValueError):
    """Input that breaks a rule; nothing was changed."""

    reason = "INVALID_INPUT"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, metadata=metadata)
        if not violations and field is not None:
            violations = (FieldViolation(field, message),)
        self.violations: tuple[FieldViolation, ...] = tuple(violations)


class InvalidStrategyError(InvalidInputError):
    reason = "INVALID_STRATEGY"


class InvalidSpecError(InvalidInputError):
    reason = "INVALID_SPEC"


class InvalidIndicatorError(InvalidInputError):
    reason = "INVALID_INDICATOR"


class InvalidBarsError(InvalidInputError):
    reason = "INVALID_BARS"


class TooFewBarsError(InvalidInputError):
    reason = "TOO_FEW_BARS"


class InvalidUploadError(InvalidInputError):
    reason = "INVALID_UPLOAD"


class InvalidResultError(InvalidInputError):
    reason = "INVALID_RESULT"


class UnsupportedError(InvalidInputError):
    reason = "UNSUPPORTED"


class NotFoundError(KtrdrError):
    reason = "NOT_FOUND"


class TrainingNotFoundError(NotFoundError):
    reason = "TRAINING_NOT_FOUND"


class SessionNotFoundError(NotFoundError):
    reason = "SESSION_NOT_FOUND"


class StrategyNotFoundError(NotFoundError):
    reason = "STRATEGY_NOT_FOUND"


class SeriesNotFoundError(NotFoundError):
    reason = "SERIES_NOT_FOUND"


class ModelNotFoundError(NotFoundError):
    reason = "MODEL_NOT_FOUND"


class UploadNotFoundError(NotFoundError):
    reason = "UPLOAD_NOT_FOUND"


class CheckpointNotFoundError(NotFoundError):
    reason = "CHECKPOINT_NOT_FOUND"


class BarsMissingError(NotFoundError):
    reason = "BARS_MISSING"


class AlreadyExistsError(KtrdrError):
    reason = "ALREADY_EXISTS"


class IllegalStateError(KtrdrError):
    reason = "ILLEGAL_STATE"


class VersionSkewError(IllegalStateError):
    reason = "VERSION_SKEW"


class SeriesChangedError(IllegalStateError):
    reason = "SERIES_CHANGED"


class ModelReferencedError(IllegalStateError):
    reason = "MODEL_REFERENCED"


class WriteConflictError(KtrdrError):
    reason = "WRITE_CONFLICT"


class NoSlotError(KtrdrError):
    """Every slot is taken.

    Args:
        message: See KtrdrError.
        retry_after_s: When a retry is worth it, in seconds.
    """

    reason = "NO_SLOT"

    def __init__(self, message: str, *, retry_after_s: float = 5.0, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)
        self.retry_after_s = retry_after_s


class QuotaExceededError(KtrdrError):
    reason = "QUOTA_EXCEEDED"


class UnauthenticatedError(KtrdrError):
    reason = "UNAUTHENTICATED"


class PermissionDeniedError(KtrdrError):
    reason = "PERMISSION_DENIED"


class UnavailableError(KtrdrError):
    reason = "UNAVAILABLE"


class DrainingError(UnavailableError):
    reason = "DRAINING"


class TrainerLostError(UnavailableError):
    reason = "TRAINER_LOST"


class StorageError(UnavailableError):
    reason = "STORAGE_UNAVAILABLE"


class UnreachableError(UnavailableError):
    reason = "UNREACHABLE"


class ExecutionModeError(KtrdrError):
    reason = "NO_EXECUTION_PLACE"


class CorruptDataError(KtrdrError):
    reason = "CORRUPT_DATA"


class NotBuiltError(KtrdrError):
    reason = "NOT_BUILT"


class TrainingError(KtrdrError):
    reason = "TRAINING_FAILED"


class NonFiniteLossError(TrainingError):
    reason = "NON_FINITE_LOSS"


class DegenerateLabelsError(TrainingError):
    reason = "DEGENERATE_LABELS"


class LeakageError(TrainingError):
    reason = "LEAKAGE"


class DeviceFailedError(TrainingError):
    reason = "DEVICE_FAILED"


class OutOfMemoryError(TrainingError):
    reason = "OUT_OF_MEMORY"


class WorkerDiedError(TrainingError):
    reason = "WORKER_DIED"


class CancellationError(KtrdrError):
    """A training was cancelled, or stopped with a checkpoint.

    `reason_text` is what the canceller gave; `checkpoint_path` is where the checkpoint is, "" if none was asked for.
    """

    reason = "CANCELLED"

    def __init__(self, reason_text: str = "Operation cancelled") -> None:
        super().__init__(reason_text)
        self.reason_text = reason_text
        self.checkpoint_path = ""


class InternalError(KtrdrError):
    reason = "INTERNAL"


def error_classes() -> dict[str, type[KtrdrError]]:
    """Return every error class of the tree by its reason; the base class is left out."""
    found: dict[str, type[KtrdrError]] = {}
    pending: list[type[KtrdrError]] = list(KtrdrError.__subclasses__())
    while pending:
        cls = pending.pop()
        found[cls.reason] = cls
        pending.extend(cls.__subclasses__())
    return found
