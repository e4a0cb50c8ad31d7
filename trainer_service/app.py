"""The composition root of the trainer: builds every object once, starts them, stops them in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2
from ktrdr.trainer.v1 import trainer_registry_service_pb2, trainer_service_pb2_grpc

from ktrdr_core.clock import utc_now
from ktrdr_core.data.directory_lock import DirectoryLock
from ktrdr_core.errors import IllegalStateError, StorageError
from ktrdr_core.execution.devices import Device, probe_devices
from ktrdr_core.execution.engine import ExecutionEngine
from ktrdr_core.execution.fork_server import is_training_available
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.warm_up import warm_up_or_log
from ktrdr_core.logging import get_logger, log_context
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.server import HealthServicer, add_health_and_reflection, bind, create_server
from ktrdr_core.rpc.server_security import ServerSecurity
from ktrdr_core.rpc.service_main import run_service, say_listening, stop_on_signals
from trainer_service.bar_cache import BarCache
from trainer_service.bar_fetch import BarFetcher
from trainer_service.checkpoint_store import CheckpointStore
from trainer_service.identity import load_trainer_id
from trainer_service.messages import renewal_to_proto
from trainer_service.orchestrator import HostTrainingOrchestrator
from trainer_service.outbox import UploadOptions
from trainer_service.recovery import load_sessions
from trainer_service.registration import Registration
from trainer_service.server_info import ServerInfo
from trainer_service.servicer import SERVICE_NAME, TrainerServicer
from trainer_service.session_starter import SessionStarter
from trainer_service.settings import TrainerSettings

_SWEEP_EVERY_S = 3600.0
_GRACE_S = 1.0  # for the calls in flight; every stream is told to end
NAME = "ktrdr-trainer"
_log = get_logger(__name__)


class TrainerApp:
    """One trainer: `start`, `stop`.

    Args:
        settings: What the environment and the flags say.
        engine: Executes sessions; None is a process engine with the settings' slots.
        probe: Detects the devices.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        *,
        engine: ExecutionEngine | None = None,
        probe: Callable[[], Awaitable[Sequence[Device]]] = probe_devices,
    ) -> None:
        self.settings = settings
        self.port = 0
        self._probe = probe
        self._engine: ExecutionEngine = engine or ProcessEngine(settings.slots, log_level=settings.log_level)
        self._lock = DirectoryLock(settings.sessions_dir.with_name("sessions.lock"), owner="trainer")
        self._server: grpc.aio.Server | None = None
        self._health: HealthServicer | None = None
        self._orchestrator: HostTrainingOrchestrator | None = None
        self._server_info: ServerInfo | None = None
        self._background: list[asyncio.Task[None]] = []
        self._registrations: list[Registration] = []
        self._leases: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()

    async def start(self) -> int:
        """Serve, and return the port.

        Raises:
            IllegalStateError: Another trainer uses the directory.
            UnavailableError: The address is taken, or the disk takes no writes.
        """
        settings = self.settings
        bars_dir = settings.bars_dir.expanduser().resolve()
        unavailable_reason = is_training_available() or ""
        server_security = await asyncio.to_thread(ServerSecurity, settings.security)
        peer_security = await asyncio.to_thread(ChannelSecurity.of_service, settings.security)
        server_security.warn()
        try:
            self._lock.acquire()
            trainer_id = await asyncio.to_thread(load_trainer_id, settings.state_dir)
            checkpoints = CheckpointStore(settings.checkpoints_dir)
            await asyncio.to_thread(checkpoints.prepare)
            bars = BarCache(settings.bar_cache_dir, max_size_bytes=settings.bar_cache_bytes)
            await asyncio.to_thread(bars.prepare)
            sessions = await load_sessions(settings.sessions_dir)
        except OSError as error:
            raise StorageError(f"the trainer cannot use {settings.state_dir}: {error}; see to its disk") from error
        orchestrator = HostTrainingOrchestrator(
            engine=self._engine,
            starter=SessionStarter(
                engine=self._engine,
                bars_dir=bars_dir,
                sessions_dir=settings.sessions_dir,
                checkpoints=checkpoints,
                bars=bars,
                checkpoint_every_s=settings.checkpoint_every_s,
            ),
            checkpoints=checkpoints,
            bars=BarFetcher(bars, security=peer_security),
            sessions=sessions,
            uploads=UploadOptions(compression=settings.compression, security=peer_security),
        )
        server_info = ServerInfo(
            self._engine,
            trainer_id=trainer_id,
            state_dir=settings.state_dir,
            start_time=utc_now(),
            unavailable_reason=unavailable_reason,
            probe=self._probe,
        )
        server = create_server(security=server_security)
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(
            TrainerServicer(orchestrator, server_info), server
        )
        health = add_health_and_reflection(server, [SERVICE_NAME])
        if unavailable_reason:
            for name in ("", SERVICE_NAME):
                await health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        self.port = bind(server, f"{settings.host}:{settings.port}", server_security)
        orchestrator.resume()
        await server.start()
        server_info.start_probe()
        self._background = [_run_beside(_sweep_for_ever(orchestrator, settings.keep_ended_s))]
        if not unavailable_reason:
            self._background.append(_run_beside(warm_up_or_log(self._engine)))
        self._server, self._health = server, health
        self._orchestrator, self._server_info = orchestrator, server_info
        self._registrations = [
            Registration(backend, renewal=self._renewal, fence=orchestrator.fence, security=peer_security)
            for backend in settings.backends
        ]
        self._leases = [_run_beside(registration.run()) for registration in self._registrations]
        _log.info("Serving on %s:%d, %d slots, bars in %s", settings.host, self.port, settings.slots, bars_dir)
        return self.port

    @property
    def orchestrator(self) -> HostTrainingOrchestrator:
        """The orchestrator of a started app."""
        if self._orchestrator is None:
            raise IllegalStateError("the trainer has not been started; call start() first")
        return self._orchestrator

    def hurry(self) -> None:
        """Make a `stop` that waits end the sessions now."""
        self._hurry.set()

    async def stop(self, drain_timeout_s: float | None = None) -> None:
        """Take no new sessions, let the running ones end for a while, then end everything."""
        if self._orchestrator is not None:
            self._orchestrator.begin_draining()
        for registration in self._registrations:
            registration.renew_now()
        await _cancel(self._background)
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        if self._orchestrator is not None:
            limit_s = self.settings.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
            await self._orchestrator.drain(limit_s, self._hurry)
        await _cancel(self._leases)
        if self._health is not None:
            self._health.end_watches()
        if self._server is not None:
            await self._server.stop(_GRACE_S)
        if self._server_info is not None:
            await self._server_info.close()
        self._lock.release()

    async def _renewal(self) -> trainer_registry_service_pb2.RegisterRequest:
        if self._server_info is None:
            raise IllegalStateError("the trainer has not been started; call start() first")
        return renewal_to_proto(
            await self._server_info.to_proto(is_draining=self.orchestrator.is_draining),
            address=self.settings.advertise_address or f"{self.settings.host}:{self.port}",
            sessions=self.orchestrator.sessions(),
        )


async def serve(settings: TrainerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the sessions at once."""
    with log_context(trainer=settings.advertise_address or f"{settings.host}:{settings.port}"):
        app = TrainerApp(settings)
        stopping = stop_on_signals(app.hurry)
        try:
            port = await app.start()
            say_listening(NAME, settings.host, port)
            await stopping.wait()
            _log.info("Draining for up to %g s; a second signal ends the sessions at once", settings.drain_timeout_s)
        finally:
            await app.stop()


def run(flags: Mapping[str, Any]) -> int:
    """Run the trainer with these flags; returns the exit code."""
    return run_service(NAME, TrainerSettings, flags, serve)


def _run_beside(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start what goes on beside the serving; a defect that ends it is in the log at once."""

    def log_defect(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("A part of the trainer broke: %s", task.get_coro(), exc_info=error)

    task = asyncio.create_task(work)
    task.add_done_callback(log_defect)
    return task


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _sweep_for_ever(orchestrator: HostTrainingOrchestrator, keep_s: float) -> None:
    while True:
        try:
            await orchestrator.sweep(keep_s)
        except OSError as error:
            _log.warning("Old sessions are swept later: %s", error)
        await asyncio.sleep(_SWEEP_EVERY_S)
