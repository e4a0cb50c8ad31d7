"""An attempt that was lost, and whether another one follows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from backend_service.operations.records import LOCAL_TRAINER, LOST, Placement, SessionRow
from backend_service.operations.training_record import TrainingRecord
from ktrdr_core.clock import utc_now
from ktrdr_core.domain.scheduling import RetryMode
from ktrdr_core.errors import DrainingError, StorageError, TrainerLostError

LOST_REASONS = frozenset({TrainerLostError.reason, DrainingError.reason, StorageError.reason})
"""A session that ends FAILED with one of these was not at fault: its service was stopped or restarted, or its disk was
full when the model was to be written."""

FULL_DISK_DELAYS_S = (5.0, 30.0, 120.0, 600.0)
"""How long the next attempt waits after its disk was full, by how often that has happened; the last one repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostAttempt:
    """An attempt whose machine was lost under it.

    Attributes:
        session: The attempt, with its sequence as far as it was heard.
        error_reason: `KtrdrError.reason` of the loss.
        cause: What happened, one clause without its end: "trainer gpu-1:50052 was unreachable for 10 s".
        is_log_whole: Whether all that the attempt had to tell is in the training's log.
    """

    session: SessionRow
    error_reason: str
    cause: str
    is_log_whole: bool = False


def next_attempt(record: TrainingRecord) -> int:
    """Return the number of the next attempt; that of one that no trainer accepted is used again."""
    last = record.last_session
    return 1 if last is None else last.attempt + int(bool(last.trainer))


def next_session(record: TrainingRecord, placement: Placement, *, trainer_id: str = "") -> SessionRow:
    """Return the next attempt of a training."""
    attempt = next_attempt(record)
    return SessionRow(
        session_id=f"{record.training_id}-{attempt}",
        training_id=record.training_id,
        attempt=attempt,
        trainer=placement.trainer or LOCAL_TRAINER,
        trainer_id=trainer_id,
        reasons=placement.reasons,
        start_time=utc_now(),
    )


def refuse_retry(record: TrainingRecord, error_reason: str) -> str:
    """Return why an attempt that is lost now is the last one, "" if another may follow.

    An attempt that ended because its service was stopped on purpose is no failure, and is not counted.
    """
    scheduling = record.row.scheduling
    if scheduling.retry is RetryMode.NEVER:
        return "it was asked for without another attempt"
    if error_reason == DrainingError.reason:
        return ""
    num_lost = sum(
        session.outcome == LOST and session.error_reason != DrainingError.reason for session in record.sessions
    )
    if num_lost >= scheduling.max_retries:
        return f"that was attempt {num_lost + 1} of at most {scheduling.max_retries + 1}"
    return ""


def delay_before(record: TrainingRecord) -> float:
    """Return how many seconds the next attempt waits before it joins the line."""
    last = record.last_session
    if last is None or last.outcome != LOST or last.error_reason != StorageError.reason:
        return 0.0
    num_times = sum(each.outcome == LOST and each.error_reason == StorageError.reason for each in record.sessions)
    return FULL_DISK_DELAYS_S[min(num_times, len(FULL_DISK_DELAYS_S)) - 1]


def without_trainer(session: SessionRow) -> SessionRow:
    """Return a session that its trainer refused: it never began."""
    return replace(session, trainer="")
