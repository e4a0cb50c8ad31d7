"""An execution engine whose sessions do what a test says, without processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from ktrdr_core.domain.progress import ProgressDetail, ProgressEvent, StateDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import NoSlotError
from ktrdr_core.execution.engine import DEFAULT_CANCEL_REASON, SessionCheckpoint, SessionJob, SessionOutcome
from ktrdr_core.execution.resources import ResourceUsage
from ktrdr_core.storage.artifact import load_result, write_artifact
from tests.kit.artifacts import make_artifact


class ScriptedSession:
    """A session a test drives: `emit`, then `finish`, `fail` or a cancel; with `hold_cancels`, that waits for it."""

    def __init__(self, job: SessionJob, engine: ScriptedEngine) -> None:
        self.job = job
        self.pid = 0
        self.is_running = True
        self.checkpoint: SessionCheckpoint | None = None
        self.cancels: list[bool] = []
        self.hold_cancels: asyncio.Event | None = None
        self._engine = engine
        self._events: asyncio.Queue[ProgressEvent | None] = asyncio.Queue()
        self._outcome: asyncio.Future[SessionOutcome] = asyncio.get_running_loop().create_future()
        self.emit(StateDetail(state=TrainingState.RUNNING))

    def emit(self, detail: ProgressDetail, overall: float = 0.0) -> None:
        self._events.put_nowait(
            ProgressEvent(create_time=datetime.now(UTC), attempt=self.job.attempt, overall=overall, detail=detail)
        )

    def finish(self, seed: int = 1) -> Path:
        """Write a small artifact and end well; returns its directory."""
        path = self.job.work_dir / "artifact"
        write_artifact(path, make_artifact(seed=seed))
        self.end(
            SessionOutcome(state=TrainingState.UPLOADING, message="done", artifact_path=path, result=load_result(path))
        )
        return path

    def fail(self, message: str, reason: str) -> None:
        self.end(SessionOutcome(state=TrainingState.FAILED, message=message, error_reason=reason))

    def end(self, outcome: SessionOutcome) -> None:
        if self._outcome.done():
            return
        self.is_running = False
        self._events.put_nowait(None)
        self._outcome.set_result(outcome)
        self._engine.running.remove(self)

    async def events(self) -> AsyncIterator[ProgressEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def wait(self) -> SessionOutcome:
        return await asyncio.shield(self._outcome)

    async def cancel(self, *, save_checkpoint: bool = False, reason: str = DEFAULT_CANCEL_REASON) -> SessionOutcome:
        self.cancels.append(save_checkpoint)
        if self.hold_cancels is not None:
            await self.hold_cancels.wait()
        if save_checkpoint:
            path = str(self.job.work_dir / "checkpoints" / "last")
            self.end(SessionOutcome(state=TrainingState.STOPPED, message=reason, checkpoint_path=path))
        else:
            self.end(SessionOutcome(state=TrainingState.CANCELLED, message=reason))
        return await self.wait()

    def resource_usage(self) -> ResourceUsage | None:
        return ResourceUsage(resident_memory_bytes=1_000, cpu_time_s=0.5) if self.is_running else None


class ScriptedEngine:
    """See `ExecutionEngine`; `sessions` are all it ever started, in order."""

    def __init__(self, num_slots: int = 2) -> None:
        self.num_slots = num_slots
        self.sessions: list[ScriptedSession] = []
        self.running: list[ScriptedSession] = []
        self.num_warm_ups = 0

    @property
    def num_free_slots(self) -> int:
        return self.num_slots - len(self.running)

    async def warm_up(self) -> None:
        self.num_warm_ups += 1

    async def start(self, job: SessionJob) -> ScriptedSession:
        if self.num_free_slots < 1:
            raise NoSlotError("every slot is taken")
        session = ScriptedSession(job, self)
        self.sessions.append(session)
        self.running.append(session)
        return session

    async def close(self) -> None:
        for session in list(self.running):
            await session.cancel(reason="the engine is closed")
