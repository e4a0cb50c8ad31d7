"""One session on this trainer: what was ordered, its log, and what runs for it now."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ktrdr_core.clock import utc_now
from ktrdr_core.domain.progress import CHECKPOINT_UNUSABLE, ProgressEvent, StateDetail, WarningDetail
from ktrdr_core.domain.result import TrainingResult
from ktrdr_core.domain.states import TrainingState, check_transition
from ktrdr_core.errors import DrainingError, IllegalStateError, TrainerLostError
from ktrdr_core.execution.engine import EngineSession, SessionCheckpoint
from ktrdr_core.execution.resources import ResourceUsage
from ktrdr_core.rpc.event_log import EventLog
from trainer_service.journal import Journal, JournalContent, SessionOrder

# A session that failed so goes on elsewhere, as the next attempt, from its last checkpoint.
RESUMABLE_REASONS = (TrainerLostError.reason, DrainingError.reason)


class Session:
    """A session and its log; only its run changes it.

    Attributes:
        order: What was accepted.
        directory: Directory of this session alone.
        log: Its events.
        worker: Its worker while one runs.
        left_checkpoint: Its newest checkpoint once no worker runs.
        num_watchers: Streams of its progress that are open.
        artifact_path: Directory of the complete artifact.
        result: What it produced, once the artifact is complete.
        is_stop: Whether it was last asked to end with a checkpoint.
        has_ended: Set once the terminal state is stored.
    """

    def __init__(self, directory: Path, journal: Journal, content: JournalContent) -> None:
        self.order: SessionOrder = content.order
        self.directory = directory
        self._journal = journal
        self.log = EventLog(self._store, content.events)
        self.artifact_path: Path | None = content.artifact_path
        self.result: TrainingResult | None = content.result
        self.is_stop = content.is_stop
        self.worker: EngineSession | None = None
        self.left_checkpoint: SessionCheckpoint | None = None
        self.num_watchers = 0
        self._given_checkpoint: SessionCheckpoint | None = None
        self._has_given = asyncio.Event()
        self._is_checkpoint_unusable = any(map(_says_unusable, content.events))
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

    @property
    def checkpoint(self) -> SessionCheckpoint | None:
        """Its newest checkpoint, from which another attempt can go on; None without one."""
        return self.left_checkpoint if self.worker is None else self.worker.checkpoint

    @property
    def resumed_from_epoch(self) -> int:
        """Last epoch of the checkpoint it went on from; 0 if it began at the beginning."""
        point = self.order.resume_from
        return 0 if point is None or self._is_checkpoint_unusable else point.epoch

    @property
    def is_delivering(self) -> bool:
        """Whether nothing is left but to bring its complete artifact to the backend."""
        return self.artifact_path is not None and self.state in (TrainingState.RUNNING, TrainingState.UPLOADING)

    @property
    def has_only_copy(self) -> bool:
        """Whether the directory of this session, which has ended, holds something no other place has."""
        match self.state:
            case TrainingState.COMPLETED:
                return not self.order.upload_target
            case TrainingState.FAILED:
                return self.artifact_path is not None
            case TrainingState.STOPPED:
                return True
            case _:
                return False

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether, of this session, which has ended, checkpoints are of use."""
        is_resumable = self.state is TrainingState.FAILED and self.log.summary.error_reason in RESUMABLE_REASONS
        return is_resumable or self.has_only_copy

    def note_given(self, checkpoint: SessionCheckpoint) -> None:
        """Note that somebody has fetched a checkpoint whole."""
        self._given_checkpoint = checkpoint
        self._has_given.set()

    async def wait_given(self) -> None:
        """Return once somebody has the newest checkpoint, if there is one."""
        while self._given_checkpoint != self.checkpoint:
            self._has_given.clear()
            await self._has_given.wait()

    def resource_usage(self) -> ResourceUsage | None:
        """Return what its worker uses now; blocking, it reads /proc and NVML."""
        worker = self.worker
        return None if worker is None else worker.resource_usage()

    async def record(self, event: ProgressEvent) -> None:
        """Add an event of the engine; its states are this session's to decide, so only the first RUNNING counts."""
        if not isinstance(event.detail, StateDetail):
            await self.log.append(event)
            self._is_checkpoint_unusable = self._is_checkpoint_unusable or _says_unusable(event)
            return
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

    async def begin_cancel(self, reason: str, *, save_checkpoint: bool) -> None:
        """Note how somebody wants it to end, for a restart meanwhile, and be CANCELLING; nothing if it has ended.

        Raises:
            OSError: The journal cannot be written; nothing has changed.
        """
        async with self._state_lock:
            if self.log.is_closed:
                return
            await asyncio.to_thread(self._journal.append_cancel, save_checkpoint=save_checkpoint)
            self.is_stop = save_checkpoint
            if self.state is not TrainingState.CANCELLING:
                await self.log.append(self._event(StateDetail(state=TrainingState.CANCELLING, message=reason)))

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


def _says_unusable(event: ProgressEvent) -> bool:
    return isinstance(event.detail, WarningDetail) and event.detail.reason == CHECKPOINT_UNUSABLE
