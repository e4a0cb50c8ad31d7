"""Exit codes of `ktrdr`, documented in docs/cli.md."""

from __future__ import annotations

from enum import IntEnum

from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    AlreadyExistsError,
    CancellationError,
    IllegalStateError,
    InvalidInputError,
    KtrdrError,
    NotFoundError,
    UnavailableError,
)


class ExitCode(IntEnum):
    OK = 0
    BAD_INPUT = 2
    FAILED = 3
    CANCELLED = 4
    UNREACHABLE = 5
    INTERRUPTED = 130


_BY_CLASS: tuple[tuple[type[KtrdrError], ExitCode], ...] = (
    (InvalidInputError, ExitCode.BAD_INPUT),
    (NotFoundError, ExitCode.BAD_INPUT),
    (AlreadyExistsError, ExitCode.BAD_INPUT),
    (IllegalStateError, ExitCode.BAD_INPUT),
    (UnavailableError, ExitCode.UNREACHABLE),
    (CancellationError, ExitCode.CANCELLED),
)


def of_error(error: KtrdrError) -> ExitCode:
    """Return the exit code of an error; what is in no row failed."""
    return next((code for cls, code in _BY_CLASS if isinstance(error, cls)), ExitCode.FAILED)


def of_state(state: TrainingState) -> ExitCode:
    """Return the exit code of a training that ended in `state`; one that has not ended is fine so far."""
    if state in (TrainingState.CANCELLED, TrainingState.STOPPED):
        return ExitCode.CANCELLED
    return ExitCode.FAILED if state is TrainingState.FAILED else ExitCode.OK
