"""The execution engine whose sessions are worker processes on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from ktrdr_core.errors import (
    DrainingError,
    ExecutionModeError,
    IllegalStateError,
    InternalError,
    NoSlotError,
)
from ktrdr_core.execution.child import run_in_child
from ktrdr_core.execution.devices import Device, probe_devices
from ktrdr_core.execution.engine import SessionJob
from ktrdr_core.execution.fork_server import is_training_available, read_warm_up_error
from ktrdr_core.execution.process_session import CLOSE_LIMIT_S, STOP_LIMIT_S, ProcessSession
from ktrdr_core.execution.resources import GpuSampler
from ktrdr_core.execution.worker import Runner, run_training_job

_WARM_UP_LIMIT_S = 120.0


class ProcessEngine:
    """See `ExecutionEngine`. Belongs to one event loop.

    Args:
        num_slots: Sessions at once; at least 1.
        devices: Devices of this machine, as `probe_devices` gave them; None asks when a job first wants a GPU.
        log_level: Of the workers' logs.
        stop_limit_s: How long a worker asked for a checkpoint may take.
        close_limit_s: How long `close` waits for killed workers; one that is not gone then is left to the kernel.
        runner: What a worker runs.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        devices: Sequence[Device] | None = None,
        log_level: str = "INFO",
        stop_limit_s: float = STOP_LIMIT_S,
        close_limit_s: float = CLOSE_LIMIT_S,
        runner: Runner = run_training_job,
    ) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, was {num_slots}")
        self._num_slots = num_slots
        self._devices = None if devices is None else tuple(devices)
        self._log_level = log_level
        self._stop_limit_s = stop_limit_s
        self._close_limit_s = close_limit_s
        self._runner = runner
        self._gpu = GpuSampler()
        self._sessions: dict[str, ProcessSession] = {}
        self._is_closed = False

    @property
    def num_slots(self) -> int:
        return self._num_slots

    @property
    def num_free_slots(self) -> int:
        return self._num_slots - len(self._sessions)

    def session(self, session_id: str) -> ProcessSession | None:
        """Return the running session of that name, from the moment `start` was called; None if there is none."""
        return self._sessions.get(session_id)

    async def warm_up(self) -> None:
        """Wait until the fork server is warm, so that the first session starts as fast as the others.

        Raises:
            InternalError: Its warm-up failed; sessions will fail too, or start slowly.
        """
        if error := await run_in_child(read_warm_up_error, timeout_s=_WARM_UP_LIMIT_S):
            raise InternalError(f"the fork server's warm-up failed ({error}); its traceback is in this service's log")

    async def start(self, job: SessionJob) -> ProcessSession:
        """Start a session; see `ExecutionEngine.start`.

        Cancelling this call ends the session. `session(job.session_id).cancel()` works while it is under way.
        """
        if (reason := is_training_available()) is not None and self._runner is run_training_job:
            raise ExecutionModeError(reason)
        await self._check_devices(job)
        # No await from here to the slot being taken: that is what makes the limit hold against any race.
        self._check_slot(job)
        job = replace(
            job,
            work_dir=job.work_dir.absolute(),
            bars_dir=job.bars_dir.absolute(),
            resume_from=job.resume_from and job.resume_from.absolute(),
        )
        session = ProcessSession(
            job,
            runner=self._runner,
            gpu=self._gpu,
            log_level=self._log_level,
            stop_limit_s=self._stop_limit_s,
            on_gone=self._free_slot,
        )
        self._sessions[job.session_id] = session
        launch = asyncio.create_task(session.launch(), name=f"launch-{job.session_id}")
        try:
            await asyncio.shield(launch)
        except asyncio.CancelledError:
            session.request_cancel(reason="The start of the session was given up")
            raise
        if session.launch_error is not None:
            raise session.launch_error
        return session

    async def close(self) -> None:
        self._is_closed = True
        sessions = list(self._sessions.values())
        for session in sessions:
            session.request_cancel(reason="The execution engine was closed")
        endings = [asyncio.create_task(session.wait()) for session in sessions]
        if endings:
            await asyncio.wait(endings, timeout=self._close_limit_s)
        for session in sessions:
            session.give_up(self._close_limit_s)
        await asyncio.gather(*endings, return_exceptions=True)

    async def _check_devices(self, job: SessionJob) -> None:
        if not (job.spec.num_gpus or job.spec.require_gpu):
            return
        if self._devices is None:
            self._devices = tuple(await probe_devices())
        num_gpus = sum(device.is_gpu for device in self._devices)
        if job.spec.num_gpus > num_gpus:
            raise NoSlotError(
                f"the training asks for {job.spec.num_gpus} GPUs and this machine has {num_gpus}; "
                "ask for fewer, or use a trainer with more",
                retry_after_s=60.0,
                metadata={"num_gpus": str(num_gpus)},
            )
        if job.spec.require_gpu and not num_gpus:
            raise ExecutionModeError(
                "the training requires a GPU and this machine has none; use a trainer with one, or drop require_gpu"
            )

    def _check_slot(self, job: SessionJob) -> None:
        if self._is_closed:
            raise DrainingError("this execution engine is closed and starts no more sessions; use another trainer")
        if job.session_id in self._sessions:
            raise IllegalStateError(f"session {job.session_id} is running already; give a new attempt a new session id")
        if not self.num_free_slots:
            raise NoSlotError(
                f"all {self._num_slots} slots are taken; try again when a session has ended, or add slots or trainers",
                metadata={"num_slots": str(self._num_slots)},
            )

    def _free_slot(self, session: ProcessSession) -> None:
        if self._sessions.get(session.job.session_id) is session:
            del self._sessions[session.job.session_id]
