"""Rows of the operations store as columns of its tables, and back."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import Any

from sqlalchemy import Row

from backend_service.operations.records import (
    Fence,
    Placement,
    RequestCancel,
    SessionRow,
    TrainingRow,
    summary_from_json,
    summary_to_json,
)
from ktrdr_core.clock import from_iso, to_iso
from ktrdr_core.domain.scheduling import DEFAULT_SCHEDULING, Scheduling
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.domain.states import TrainingState

Values = tuple[str | int | None, ...]

REQUEST_COLUMNS = (
    "training_id",
    "request_id",
    "content_digest",
    "strategy_name",
    "spec",
    "create_time",
    "scheduling",
)
"""What was asked for: it never changes."""

STORY_COLUMNS = ("state", "start_time", "end_time", "placement", "result", "cancel_save_checkpoint", "cancel_reason")
"""What changes a few times in the life of a training; its summary changes with every event."""

SESSION_COLUMNS = (
    "session_id",
    "training_id",
    "attempt",
    "trainer",
    "last_sequence",
    "trainer_id",
    "reasons",
    "start_time",
    "end_time",
    "outcome",
    "error_reason",
    "message",
    "resumed_from_epoch",
    "fence",
    "bars",
)

story_of = attrgetter(*STORY_COLUMNS)
"""The fields of a training that go to STORY_COLUMNS: to see whether they changed, without turning them into text."""

attempt_of = attrgetter(*(name for name in SESSION_COLUMNS if name != "last_sequence"))
"""The same for a session: all but `last_sequence`, which changes with every event."""


def request_values(row: TrainingRow) -> Values:
    return (
        row.training_id,
        row.request_id or None,  # NULLs are distinct: only real keys are unique
        row.content_digest,
        row.strategy_name,
        row.spec.to_json(),
        to_iso(row.create_time),
        None if row.scheduling == DEFAULT_SCHEDULING else row.scheduling.to_json(),
    )


def story_values(row: TrainingRow) -> Values:
    return (
        str(row.state),
        to_iso(row.start_time) if row.start_time else None,
        to_iso(row.end_time) if row.end_time else None,
        row.placement.to_json() if row.placement else None,
        json.dumps(row.result) if row.result else None,
        None if row.cancel_save_checkpoint is None else int(row.cancel_save_checkpoint),
        _without_nul(row.cancel_reason),
    )


def summary_value(row: TrainingRow) -> str:
    return summary_to_json(row.summary)


def session_values(session: SessionRow) -> Values:
    return (
        session.session_id,
        session.training_id,
        session.attempt,
        session.trainer,
        session.last_sequence,
        session.trainer_id,
        json.dumps(session.reasons),
        to_iso(session.start_time) if session.start_time else None,
        to_iso(session.end_time) if session.end_time else None,
        session.outcome,
        session.error_reason,
        _without_nul(session.message),
        session.resumed_from_epoch,
        str(session.fence),
        json.dumps(session.bars),
    )


def training_from(row: Row[Any]) -> TrainingRow:
    save_checkpoint = row.cancel_save_checkpoint
    return TrainingRow(
        training_id=row.training_id,
        request_id=row.request_id or "",
        content_digest=row.content_digest,
        strategy_name=row.strategy_name,
        spec=TrainingSpec.from_json(row.spec),
        state=TrainingState(row.state),
        create_time=from_iso(row.create_time),
        start_time=from_iso(row.start_time) if row.start_time else None,
        end_time=from_iso(row.end_time) if row.end_time else None,
        placement=Placement.from_json(row.placement) if row.placement else None,
        result=json.loads(row.result) if row.result else None,
        cancel_save_checkpoint=None if save_checkpoint is None else bool(save_checkpoint),
        summary=summary_from_json(row.summary),
        scheduling=Scheduling.from_json(row.scheduling) if row.scheduling else DEFAULT_SCHEDULING,
        cancel_reason=row.cancel_reason,
    )


def session_from(row: Row[Any]) -> SessionRow:
    values = dict(row._mapping)
    values["reasons"] = tuple(json.loads(row.reasons))
    values["start_time"] = from_iso(row.start_time) if row.start_time else None
    values["end_time"] = from_iso(row.end_time) if row.end_time else None
    values["fence"] = Fence(row.fence)
    values["bars"] = tuple((name, digest) for name, digest in json.loads(row.bars))
    return SessionRow(**values)


def request_cancel_from(row: Row[Any]) -> RequestCancel:
    return RequestCancel(
        request_id=row.request_id,
        save_checkpoint=bool(row.save_checkpoint),
        reason=row.reason,
        create_time=from_iso(row.create_time),
    )


def _without_nul(text: str) -> str:
    """Return text that PostgreSQL takes: what people and stderr say may have NULs."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
