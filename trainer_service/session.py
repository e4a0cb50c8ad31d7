"""One session on this trainer: what was ordered, its log, and what runs for it now."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.states import TrainingState, check_transition
from ktrdr_core.errors import IllegalStateError
from ktrdr_core.execution.engine import EngineSession
from ktrdr_core.execution.resources import ResourceUsage
from ktrdr_core.rpc.event_log import EventLog
from trainer_service.journal import Journal, JournalContent, SessionOrder, WorkerProcess


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """How somebody wants a session to end."""

    save_checkpoint: bool
    reason: str


class Session:
    """A session and its log; the orchestrator is the only one that changes it.

    Attributes:
        order: What was accepted.
        directory: Directory of this session alone.
        log: Its events.
        worker: Its worker while one runs.
        upload_task: Its upload while one is on its way.
        cancel_request: Set once somebody wants it to end.
        artifact_path: Directory of the complete artifact.
        result: What it produced, once the artifact is complete.
        has_ended: Set once the terminal state is stored.
    """

    def __init__(self, directory: Path, journal: Journal, content: JournalContent) -> None:
        self.order: SessionOrder = content.order
        self.directory = directory
        self._journal = journal
        self.log = EventLog(self._store, content.events)
        self.left_worker: WorkerProcess | None = content.worker
        self.artifact_path: Path | None = content.artifact_path
        self.result: TrainingResult | None = content.result
        self.worker: EngineSession | None = None
        self.upload_task: asyncio.Task[object] | None = None
        self.cancel_request: CancelRequest | None = None
        self.has_ended = asyncio.Event()
        if self.log.is_closed:
            self.has_ended.set()
            journal.close()
        self._state_lock = asyncio.Lock()

    @property
    def session_id(self) -> str:
        return self.order.session_id

    @property
    def state(self) -> TrainingState:
        return self.log.summary.state

    @property
    def end_time(self) -> datetime | None:
        """When it reached its terminal state; None before."""
        return self.log.events[-1].create_time if self.log.is_closed else None

    def resource_usage(self) -> ResourceUsage | None:
        """Return what its worker uses now; blocking, it reads /proc and NVML."""
        worker = self.worker
        return None if worker is None else worker.resource_usage()

    async def record(self, event: ProgressEvent) -> None:
        """Add an event of the engine; its states are this session's to decide, so only the first RUNNING counts."""
        if not isinstance(event.detail, StateDetail):
            await self.log.append(event)
            return
        if self.worker is not None and (process := WorkerProcess.of(self.worker.pid)) is not None:
            await asyncio.to_thread(self._journal.append_worker, process)
        async with self._state_lock:
            if self.state is TrainingState.QUEUED and event.detail.state is TrainingState.RUNNING:
                await self.log.append(event)

    async def warn(self, reason: str, message: str) -> None:
        """Add a warning."""
        await self.log.append(self._event(WarningDetail(reason=reason, message=message)))

    async def set_state(self, detail: StateDetail) -> None:
        """Change the state.

        Raises:
            IllegalStateError: The table of transitions does not allow it.
            OSError: The journal cannot be written; nothing has changed.
        """
        async with self._state_lock:
            check_transition(self.state, detail.state, subject=f"session {self.session_id}")
            await self.log.append(self._event(detail))
        if detail.state.is_terminal:
            self.worker = None
            self.has_ended.set()
            self._journal.close()

    async def keep_artifact(self, path: Path, result: TrainingResult) -> None:
        """Note durably that the artifact is complete."""
        await asyncio.to_thread(self._journal.append_artifact, path, result)
        self.artifact_path, self.result = path, result

    async def redirect_upload(self, address: str) -> None:
        """Note durably that the artifact goes elsewhere: the backend has come back under another address."""
        if self.log.is_closed:
            return
        await asyncio.to_thread(self._journal.append_upload_target, address)
        self.order = replace(self.order, upload_target=address)

    def check_not_ended(self) -> None:
        """Raise IllegalStateError, naming the state, if the session has ended."""
        if self.log.is_closed:
            raise IllegalStateError(
                f"session {self.session_id} has already ended: it is {self.state}; nothing was changed",
                metadata={"session_id": self.session_id, "state": str(self.state)},
            )

    async def _store(self, event: ProgressEvent) -> None:
        await asyncio.to_thread(self._journal.append_event, event)

    def _event(self, detail: StateDetail | WarningDetail) -> ProgressEvent:
        now = utc_now()
        summary = self.log.summary
        is_completed = isinstance(detail, StateDetail) and detail.state is TrainingState.COMPLETED
        return ProgressEvent(
            create_time=now,
            attempt=self.order.attempt,
            overall=1.0 if is_completed else summary.overall,
            elapsed_s=max(summary.elapsed_s, (now - self.order.create_time).total_seconds()),
            remaining_s=0.0 if is_completed else None,
            detail=detail,
        )
