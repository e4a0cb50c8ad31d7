"""One session of the process engine: a worker process, its event pipe, its cancel flag, its outcome."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import DeviceFailedError, KtrdrError, OutOfMemoryError, UnavailableError, WorkerDiedError
from ktrdr_core.execution.cancel_flag import CancelFlag, Want
from ktrdr_core.execution.child import ChildProcess, describe_exit
from ktrdr_core.execution.engine import DEFAULT_CANCEL_REASON, SessionCheckpoint, SessionJob, SessionOutcome
from ktrdr_core.execution.event_pipe import MessageKind, read_checkpoint, read_messages
from ktrdr_core.execution.fork_server import process_context
from ktrdr_core.execution.last_words import LastWords, read_last_words
from ktrdr_core.execution.left_workers import clear_up_after_worker, note_worker
from ktrdr_core.execution.oom_kills import OomKillWatch
from ktrdr_core.execution.resources import GpuSampler, ResourceUsage, read_process_usage
from ktrdr_core.execution.worker import LOG_NAME, Runner, read_outcome, worker_main
from ktrdr_core.logging import get_logger

KILL_AFTER_S = 0.040
"""A cancelled worker has this long to end by itself."""
STOP_LIMIT_S = 30.0
"""A worker asked for a checkpoint has this long to stop and write it."""
CLOSE_LIMIT_S = 10.0
"""A closing engine waits this long for killed workers to be gone."""
_MAX_PENDING_EVENTS = 10_000
_PIPE_BUFFER_BYTES = 64 * 1024
_PIPE_DRAIN_LIMIT_S = 10.0
# What C++ code says of an error that it cannot raise, before it aborts.
_DEADLY_MEMORY_WORDS = ("std::bad_alloc", "out of memory")
_DEADLY_DEVICE_WORDS = "CUDA error"
_LESS_MEMORY = "; train on fewer bars or features, fewer trainings at once, or on a larger machine"
_REASONS_WITH_LAST_WORDS = frozenset({DeviceFailedError.reason, OutOfMemoryError.reason})


class ProcessSession:
    """See `EngineSession`; made by `ProcessEngine.start`, on the event loop it lives on.

    Args:
        job: What to run.
        runner: What runs it in the worker.
        gpu: Samples the GPU's use.
        log_level: Of the worker's log.
        stop_limit_s: See STOP_LIMIT_S.
        on_gone: Called once when the worker is gone, before anyone sees the outcome.
    """

    def __init__(
        self,
        job: SessionJob,
        *,
        runner: Runner,
        gpu: GpuSampler,
        log_level: str,
        stop_limit_s: float,
        on_gone: Callable[[ProcessSession], None],
    ) -> None:
        self.job = job
        self._gpu = gpu
        self._stop_limit_s = stop_limit_s
        self._on_gone = on_gone
        self._flag = CancelFlag()
        self._cancel_reason = DEFAULT_CANCEL_REASON
        self._is_kill_due = False
        self._is_worker_gone = False
        self._outcome_payload: bytes | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        self._outcome: asyncio.Future[SessionOutcome] = loop.create_future()
        self._pending: deque[ProgressEvent] = deque()
        self._has_news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._are_events_complete = False
        self._reader, writer = process_context().Pipe(duplex=False)
        self._child = ChildProcess(
            worker_main,
            (job, runner, self._flag, writer, time.monotonic(), log_level),
            inherited=(writer,),
            name=f"worker-{job.session_id}",
        )
        self._log = get_logger(__name__, {"training_id": job.training_id, "session_id": job.session_id})
        self._supervision: asyncio.Task[None] | None = None
        self._oom_kills: OomKillWatch | None = None
        self.launch_error: KtrdrError | None = None
        self.checkpoint: SessionCheckpoint | None = None

    @property
    def pid(self) -> int:
        return self._child.pid

    async def launch(self) -> None:
        """Start the worker, unless the session was cancelled before; a failure becomes the outcome."""
        if self._flag.is_raised:
            self._finish_unstarted(TrainingState.CANCELLED, self._cancel_reason)
            return
        try:
            await asyncio.to_thread(self.job.work_dir.mkdir, parents=True, exist_ok=True)
            await self._child.start()
        except (OSError, KtrdrError) as error:
            if self._flag.is_raised:
                self._finish_unstarted(TrainingState.CANCELLED, self._cancel_reason)
                return
            self.launch_error = (
                error
                if isinstance(error, KtrdrError)
                else UnavailableError(f"the session's directory {self.job.work_dir} cannot be used: {error}")
            )
            self._finish_unstarted(TrainingState.FAILED, str(self.launch_error), self.launch_error.reason)
            return
        self._log.info("Worker %d started", self.pid)
        self._oom_kills = OomKillWatch(self.pid)
        noting = asyncio.create_task(self._note_worker(), name=f"note-{self.job.session_id}")
        self._supervision = asyncio.create_task(self._supervise(noting), name=f"supervise-{self.job.session_id}")
        await asyncio.wait([noting])

    async def events(self) -> AsyncIterator[ProgressEvent]:
        while True:
            while self._pending:
                yield self._pending.popleft()
            self._has_room.set()
            if self._are_events_complete:
                return
            self._has_news.clear()
            await self._has_news.wait()

    async def wait(self) -> SessionOutcome:
        return await asyncio.shield(self._outcome)

    async def cancel(self, *, save_checkpoint: bool = False, reason: str = DEFAULT_CANCEL_REASON) -> SessionOutcome:
        self.request_cancel(save_checkpoint=save_checkpoint, reason=reason)
        return await self.wait()

    def request_cancel(self, *, save_checkpoint: bool = False, reason: str = DEFAULT_CANCEL_REASON) -> None:
        """Raise the flag and set the kill timer, without waiting for the end."""
        if self._outcome.done():
            return
        if not save_checkpoint and self._flag.want is not Want.CANCEL:
            self._want(Want.CANCEL, reason, limit_s=KILL_AFTER_S)
        elif self._flag.want is Want.GO_ON:
            self._want(Want.STOP_WITH_CHECKPOINT, reason, limit_s=self._stop_limit_s)

    def give_up(self, waited_s: float) -> None:
        """Let go of a worker that does not end: who waits for the outcome gets an error, never a CANCELLED."""
        if self._outcome.done():
            return
        error = UnavailableError(
            f"worker {self.pid} was killed and is not gone after {waited_s:g} s; it is left behind"
        )
        self._log.error("%s", error.message)
        self._outcome.set_exception(error)
        self._outcome.exception()  # taken, in case nobody waits
        self._are_events_complete = True
        self._has_news.set()

    def resource_usage(self) -> ResourceUsage | None:
        if not self.pid or self._outcome.done():
            return None
        usage = read_process_usage(self.pid)
        return None if usage is None else self._gpu.add_to(usage, self.pid)

    def _want(self, want: Want, reason: str, *, limit_s: float) -> None:
        self._flag.want = want
        self._cancel_reason = reason
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = asyncio.get_running_loop().call_later(limit_s, self._kill)
        self._log.info("Worker %d is asked to end: %s", self.pid, want.name)

    def _kill(self) -> None:
        self._is_kill_due = True
        self._child.kill()

    async def _note_worker(self) -> None:
        """Leave on disk what a later process needs to end this worker."""
        try:
            await asyncio.to_thread(note_worker, self.job.work_dir, self.pid)
        except OSError as error:
            self._log.warning("Worker %d cannot be noted in %s: %s", self.pid, self.job.work_dir, error)

    async def _supervise(self, noting: asyncio.Task[None]) -> None:
        """Follow the worker to its end."""
        pump = asyncio.create_task(self._pump(), name=f"pump-{self.job.session_id}")
        exit_code = await self._child.wait_gone()
        # What the worker wrote is still in the pipe and is taken whether or not anyone reads events. A process that
        # left the group could hold the pipe open for ever, so its end is waited for with a limit.
        self._is_worker_gone = True
        self._has_room.set()
        done, _ = await asyncio.wait([pump], timeout=_PIPE_DRAIN_LIMIT_S)
        if not done:
            pump.cancel()
            await asyncio.wait([pump])
        await noting
        await asyncio.to_thread(clear_up_after_worker, self.job.work_dir)
        self._finish(await self._decide(exit_code))

    async def _pump(self) -> None:
        """Move messages from the pipe to the reader of events, keeping only the newest of batch events in a row."""
        reader = asyncio.StreamReader(limit=_PIPE_BUFFER_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._reader
        )
        try:
            async for kind, payload in read_messages(reader):
                if self._oom_kills is not None:
                    self._oom_kills.note_life()
                if kind is MessageKind.OUTCOME:
                    self._outcome_payload = payload
                    continue
                if kind is MessageKind.CHECKPOINT:
                    self.checkpoint = read_checkpoint(payload)
                    continue
                await self._has_room.wait()
                event = ProgressEvent.from_json(payload)
                if not event.is_durable and self._pending and not self._pending[-1].is_durable:
                    self._pending.pop()
                self._pending.append(event)
                self._has_news.set()
                if len(self._pending) >= _MAX_PENDING_EVENTS and not self._is_worker_gone:
                    self._has_room.clear()
        finally:
            transport.close()

    async def _decide(self, exit_code: int) -> SessionOutcome:
        told = None if self._outcome_payload is None else read_outcome(self._outcome_payload, self.job)
        if told is not None and told.state is TrainingState.UPLOADING:
            return told
        if self._flag.want is Want.CANCEL:
            return SessionOutcome(state=TrainingState.CANCELLED, message=self._cancel_reason)
        if told is not None and told.error_reason not in _REASONS_WITH_LAST_WORDS:
            return told
        if told is None and self._is_kill_due:
            kept = "no checkpoint" if self.checkpoint is None else f"none but that of epoch {self.checkpoint.epoch}"
            return SessionOutcome(
                state=TrainingState.CANCELLED,
                message=f"{self._cancel_reason}; the worker did not stop within {self._stop_limit_s:g} s and was "
                f"killed, so there is {kept}",
            )
        words = await asyncio.to_thread(read_last_words, self.job.work_dir / LOG_NAME)
        if told is not None:
            return replace(told, message=f"{told.message}; {words}")
        error = self._explain_death(exit_code, words)
        return SessionOutcome(
            state=TrainingState.FAILED, message=f"{error.message}; {words}", error_reason=error.reason
        )

    def _explain_death(self, exit_code: int, words: LastWords) -> KtrdrError:
        """Return what ended a worker that gave no outcome."""
        was_out_of_memory = any(phrase in words.text for phrase in _DEADLY_MEMORY_WORDS)
        if exit_code == -signal.SIGKILL and self._oom_kills is not None and self._oom_kills.has_struck():
            return OutOfMemoryError(f"the kernel killed the worker process because memory ran out{_LESS_MEMORY}")
        if exit_code == -signal.SIGABRT and was_out_of_memory:
            return OutOfMemoryError(f"the worker process died because memory ran out{_LESS_MEMORY}")
        if exit_code == -signal.SIGABRT and _DEADLY_DEVICE_WORDS in words.text:
            return DeviceFailedError("the worker process died of a failure of the GPU; train again or on another one")
        return WorkerDiedError(f"the worker process died ({describe_exit(exit_code)}) before it gave a result")

    def _finish_unstarted(self, state: TrainingState, message: str, error_reason: str = "") -> None:
        self._child.abandon()
        self._reader.close()
        self._finish(SessionOutcome(state=state, message=message, error_reason=error_reason))

    def _finish(self, outcome: SessionOutcome) -> None:
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._log.info("Session ended %s: %s", outcome.state, outcome.message)
        self._on_gone(self)
        if not self._outcome.done():
            self._outcome.set_result(outcome)
        self._are_events_complete = True
        self._has_news.set()
