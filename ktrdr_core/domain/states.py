"""States of a training and of a session, and the one table of legal transitions."""

from __future__ import annotations

from enum import StrEnum

from ktrdr_core.errors import IllegalStateError


class TrainingState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    UPLOADING = "UPLOADING"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    STOPPED = "STOPPED"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL_STATES


TERMINAL_STATES = frozenset(
    {TrainingState.COMPLETED, TrainingState.FAILED, TrainingState.CANCELLED, TrainingState.STOPPED}
)

# CANCELLING may still end COMPLETED: the artifact was published before the cancel reached it.
# RUNNING and UPLOADING go back to QUEUED when the trainer is lost and another attempt is allowed; sessions never do.
TRANSITIONS: dict[TrainingState, frozenset[TrainingState]] = {
    TrainingState.QUEUED: frozenset(
        {
            TrainingState.RUNNING,
            TrainingState.CANCELLING,
            TrainingState.FAILED,
            TrainingState.CANCELLED,
            TrainingState.STOPPED,
        }
    ),
    TrainingState.RUNNING: frozenset(
        {
            TrainingState.QUEUED,
            TrainingState.UPLOADING,
            TrainingState.CANCELLING,
            TrainingState.FAILED,
            TrainingState.CANCELLED,
            TrainingState.STOPPED,
        }
    ),
    TrainingState.UPLOADING: frozenset(
        {
            TrainingState.QUEUED,
            TrainingState.COMPLETED,
            TrainingState.CANCELLING,
            TrainingState.FAILED,
            TrainingState.CANCELLED,
            TrainingState.STOPPED,
        }
    ),
    TrainingState.CANCELLING: frozenset(
        {TrainingState.COMPLETED, TrainingState.FAILED, TrainingState.CANCELLED, TrainingState.STOPPED}
    ),
    **{state: frozenset() for state in TERMINAL_STATES},
}


def check_transition(current: TrainingState, new: TrainingState, *, subject: str) -> None:
    """Raise unless `current -> new` is in the table.

    Args:
        current: State now.
        new: State wanted.
        subject: What is in that state, for the message: "training 4f..".

    Raises:
        IllegalStateError: The transition is not in TRANSITIONS.
    """
    if new not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(TRANSITIONS[current])) or "none, it has ended"
        raise IllegalStateError(
            f"{subject} is {current} and cannot become {new}; allowed from here: {allowed}",
            metadata={"state": str(current)},
        )
