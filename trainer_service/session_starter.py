"""Begins a session: checks it at the door, makes it durable, starts its worker. It begins whole or leaves nothing."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from ktrdr_core.data.bar_store import BarStore
from ktrdr_core.domain.spec import TrainingSpec
from ktrdr_core.errors import AlreadyExistsError, KtrdrError, NoSlotError, StorageError
from ktrdr_core.execution.engine import EngineSession, ExecutionEngine, SessionJob
from ktrdr_core.training.preflight import preflight
from trainer_service.checkpoint_store import CheckpointStore
from trainer_service.journal import Journal, JournalContent, SessionOrder
from trainer_service.session import Session

CHECKPOINT_EVERY_S = 10.0


class SessionStarter:
    """Begins sessions.

    Args:
        engine: Executes them.
        bar_store: Bars of this machine, for the check at the door.
        bars_dir: Where the workers read them.
        sessions_dir: Directory with one folder per session.
        checkpoints: Checkpoints that sessions can go on from.
        checkpoint_every_s: How often a worker writes what another attempt can go on from.
    """

    def __init__(
        self,
        *,
        engine: ExecutionEngine,
        bar_store: BarStore,
        bars_dir: Path,
        sessions_dir: Path,
        checkpoints: CheckpointStore,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        self._engine = engine
        self._bar_store = bar_store
        self._bars_dir = bars_dir
        self._sessions_dir = sessions_dir
        self._checkpoints = checkpoints
        self._checkpoint_every_s = checkpoint_every_s

    async def check(self, spec: TrainingSpec) -> None:
        """Validate a spec against the bars of this machine; nothing is started.

        Raises:
            InvalidInputError: A rule is broken.
            SeriesNotFoundError: This trainer has no such bars.
        """
        await asyncio.to_thread(preflight, spec, self._bar_store)

    async def begin(self, order: SessionOrder) -> tuple[Session, EngineSession]:
        """Return the session of an order, and its worker.

        Raises:
            InvalidInputError: A rule is broken.
            SeriesNotFoundError: This trainer has no such bars.
            CheckpointNotFoundError: It is to go on from a checkpoint that is not here.
            AlreadyExistsError: An older session left its directory.
            NoSlotError: Every slot is taken.
            StorageError: The disk takes no writes.
        """
        if self._engine.num_free_slots < 1:
            raise NoSlotError(
                f"every slot of this trainer is taken ({self._engine.num_slots}); try again later, or start it with"
                " more --slots"
            )
        await self.check(order.spec)
        resume_from = None if order.resume_from is None else await self._checkpoints.use(order.resume_from)
        try:
            return await self._begin(order, resume_from)
        except BaseException:
            if order.resume_from is not None:
                await self._checkpoints.end_use(order.resume_from, is_removed=False)
            raise

    async def let_go(self, order: SessionOrder) -> None:
        """Let go of what a session needed while it ran."""
        if order.resume_from is not None:
            await self._checkpoints.end_use(order.resume_from, is_removed=True)

    async def _begin(self, order: SessionOrder, resume_from: Path | None) -> tuple[Session, EngineSession]:
        directory = self._sessions_dir / order.session_id
        journal = await self._create_journal(directory, order)
        job = SessionJob(
            session_id=order.session_id,
            training_id=order.training_id,
            attempt=order.attempt,
            spec=order.spec,
            work_dir=directory,
            bars_dir=self._bars_dir,
            resume_from=resume_from,
            checkpoint_every_s=self._checkpoint_every_s,
            last_epoch_told=order.resume_from.last_epoch_told if order.resume_from is not None else 0,
        )
        try:
            worker = await self._engine.start(job)
        except KtrdrError:
            journal.close()
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            raise
        session = Session(directory, journal, JournalContent(order=order))
        session.worker = worker
        return session, worker

    async def _create_journal(self, directory: Path, order: SessionOrder) -> Journal:
        try:
            return await asyncio.to_thread(Journal.create, directory, order)
        except FileExistsError:
            raise AlreadyExistsError(
                f"{directory} is left from an older session {order.session_id}; use another session_id",
                metadata={"session_id": order.session_id},
            ) from None
        except OSError as error:
            raise StorageError(
                f"session {order.session_id} cannot be kept in {self._sessions_dir}: {error}; nothing was started, free"
                " space there or use another trainer"
            ) from error
