"""The one table from error class to gRPC status, and the way back for answers without an `ErrorInfo`."""

from __future__ import annotations

import grpc

from ktrdr_core import errors
from ktrdr_core.errors import KtrdrError

STATUS_BY_CLASS: dict[type[KtrdrError], grpc.StatusCode] = {
    errors.InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidStrategyError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidSpecError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidIndicatorError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidBarsError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooFewBarsError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidUploadError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidResultError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.TrainingNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.SessionNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.StrategyNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.SeriesNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.UploadNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.CheckpointNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.BarsMissingError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.IllegalStateError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.VersionSkewError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SeriesChangedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelReferencedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WriteConflictError: grpc.StatusCode.ABORTED,
    errors.NoSlotError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DrainingError: grpc.StatusCode.UNAVAILABLE,
    errors.TrainerLostError: grpc.StatusCode.UNAVAILABLE,
    errors.StorageError: grpc.StatusCode.UNAVAILABLE,
    errors.UnreachableError: grpc.StatusCode.UNAVAILABLE,
    errors.ExecutionModeError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.CorruptDataError: grpc.StatusCode.DATA_LOSS,
    errors.NotBuiltError: grpc.StatusCode.UNIMPLEMENTED,
    # A training that fails while it runs is a state, not a status; these are for an RPC that answers such a failure.
    errors.TrainingError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NonFiniteLossError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DegenerateLabelsError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.LeakageError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeviceFailedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfMemoryError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WorkerDiedError: grpc.StatusCode.INTERNAL,
    errors.CancellationError: grpc.StatusCode.CANCELLED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

# For a peer that sends no ErrorInfo: gRPC itself, or a service that is not ours.
CLASS_BY_STATUS: dict[grpc.StatusCode, type[KtrdrError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInputError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidInputError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.IllegalStateError,
    grpc.StatusCode.ABORTED: errors.WriteConflictError,
    # Without RetryInfo this is gRPC's own limit (message size, concurrent RPCs), not a slot.
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.UnavailableError,
    grpc.StatusCode.UNAVAILABLE: errors.UnreachableError,
    grpc.StatusCode.DATA_LOSS: errors.CorruptDataError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotBuiltError,
    grpc.StatusCode.CANCELLED: errors.CancellationError,
}


def status_of(error: KtrdrError) -> grpc.StatusCode:
    """Return the status code of an error; a class outside the table has that of its nearest listed ancestor."""
    for cls in type(error).__mro__:
        if cls in STATUS_BY_CLASS:
            return STATUS_BY_CLASS[cls]
    return grpc.StatusCode.INTERNAL
