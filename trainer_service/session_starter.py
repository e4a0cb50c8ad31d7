"""Begins a session: checks it at the door, makes it durable, starts its worker. It begins whole or leaves nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.partitions import Manifest
from ktrdr_core.domain.spec import DataMode, TrainingSpec
from ktrdr_core.errors import AlreadyExistsError, InvalidSpecError, KtrdrError, NoSlotError, StorageError
from ktrdr_core.execution.engine import EngineSession, ExecutionEngine, SessionJob
from ktrdr_core.training.preflight import preflight, prepare_strategy
from trainer_service.bar_cache import BarCache
from trainer_service.checkpoint_store import CheckpointStore
from trainer_service.journal import Journal, JournalContent, SessionOrder
from trainer_service.session import Session

CHECKPOINT_EVERY_S = 10.0
BARS_NAME = "bars"
"""Bars of a session, in its directory, while it runs."""


class SessionStarter:
    """Begins sessions.

    Args:
        engine: Executes them.
        bars_dir: Bars of this machine, for sessions that read those.
        sessions_dir: Directory with one folder per session.
        checkpoints: Checkpoints that sessions can go on from.
        bars: Bars of backends, for all other sessions.
        checkpoint_every_s: How often a worker writes what another attempt can go on from.
    """

    def __init__(
        self,
        *,
        engine: ExecutionEngine,
        bars_dir: Path,
        sessions_dir: Path,
        checkpoints: CheckpointStore,
        bars: BarCache,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        self._engine = engine
        self._bars = bars
        self._bars_dir = bars_dir
        self._sessions_dir = sessions_dir
        self._checkpoints = checkpoints
        self._checkpoint_every_s = checkpoint_every_s

    async def check(self, spec: TrainingSpec) -> None:
        """Validate a spec, against the bars of this machine if it reads them; nothing is started.

        Raises:
            InvalidInputError: A rule is broken.
            SeriesNotFoundError: This trainer has no such bars.
        """
        if spec.data_mode is DataMode.BACKEND:  # the backend has checked it against its bars
            await asyncio.to_thread(prepare_strategy, spec)
        else:
            await asyncio.to_thread(preflight, spec, DirectoryBarStore(self._bars_dir))

    async def begin(self, order: SessionOrder, series: Sequence[Manifest] = ()) -> tuple[Session, EngineSession]:
        """Return the session of an order, and its worker.

        Args:
            order: What to do.
            series: The bars to train on, for data mode backend.

        Raises:
            InvalidInputError: A rule is broken.
            SeriesNotFoundError: This trainer has no such bars.
            BarsMissingError: A part of `series` is not in the cache.
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
        async with self._bars_for(order, series) as taken:
            await asyncio.to_thread(preflight, order.spec, DirectoryBarStore(taken or self._bars_dir))
            resume_from = None if order.resume_from is None else await self._checkpoints.use(order.resume_from)
            try:
                return await self._begin(order, resume_from, taken)
            except BaseException:
                if order.resume_from is not None:
                    await self._checkpoints.end_use(order.resume_from, is_removed=False)
                raise

    async def let_go(self, order: SessionOrder) -> None:
        """Let go of what a session needed while it ran."""
        bars_dir = self._sessions_dir / order.session_id / BARS_NAME
        await asyncio.to_thread(shutil.rmtree, bars_dir, ignore_errors=True)
        if order.resume_from is not None:
            await self._checkpoints.end_use(order.resume_from, is_removed=True)

    @asynccontextmanager
    async def _bars_for(self, order: SessionOrder, series: Sequence[Manifest]) -> AsyncIterator[Path | None]:
        """Have the bars of a session beside its place for the time of the block; None if it reads this machine's."""
        if order.spec.data_mode is not DataMode.BACKEND:
            yield None
            return
        if not series:
            raise InvalidSpecError(
                "data mode backend needs the series that the backend names; a session started by hand takes data mode"
                " local, and reads the bars of this machine",
                field="spec.data_mode",
            )
        # A directory without a journal: what a killed process leaves, the next start removes.
        taken = self._sessions_dir / f".{order.session_id}.{uuid4().hex}"
        await self._bars.take(series, taken)
        try:
            yield taken
        finally:
            await asyncio.to_thread(shutil.rmtree, taken, ignore_errors=True)

    async def _begin(
        self, order: SessionOrder, resume_from: Path | None, taken: Path | None
    ) -> tuple[Session, EngineSession]:
        directory = self._sessions_dir / order.session_id
        journal = await self._create_journal(directory, order)
        job = SessionJob(
            session_id=order.session_id,
            training_id=order.training_id,
            attempt=order.attempt,
            spec=order.spec,
            work_dir=directory,
            bars_dir=self._bars_dir if taken is None else directory / BARS_NAME,
            resume_from=resume_from,
            checkpoint_every_s=self._checkpoint_every_s,
            last_epoch_told=order.resume_from.last_epoch_told if order.resume_from is not None else 0,
        )
        try:
            if taken is not None:
                await self._move(taken, job.bars_dir)
            worker = await self._engine.start(job)
        except KtrdrError:
            journal.close()
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            raise
        session = Session(directory, journal, JournalContent(order=order))
        session.worker = worker
        return session, worker

    async def _move(self, taken: Path, bars_dir: Path) -> None:
        try:
            await asyncio.to_thread(taken.rename, bars_dir)
        except OSError as error:
            raise StorageError(f"the bars cannot be put into {bars_dir}: {error}; nothing was started") from error

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
