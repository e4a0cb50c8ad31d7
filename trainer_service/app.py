"""The composition root of the trainer: builds every object once, starts them, stops them in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2
from ktrdr.trainer.v1 import trainer_service_pb2_grpc

from ktrdr_core.clock import utc_now
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.directory_lock import DirectoryLock
from ktrdr_core.errors import IllegalStateError
from ktrdr_core.execution.devices import Device, probe_devices
from ktrdr_core.execution.engine import ExecutionEngine
from ktrdr_core.execution.fork_server import is_training_available
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.warm_up import warm_up_or_log
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.server import HealthServicer, add_health_and_reflection, bind, create_server
from ktrdr_core.rpc.service_main import run_service, say_listening, stop_on_signals
from trainer_service.orchestrator import HostTrainingOrchestrator
from trainer_service.recovery import load_sessions
from trainer_service.server_info import ServerInfo
from trainer_service.servicer import SERVICE_NAME, TrainerServicer
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
        self._hurry = asyncio.Event()

    async def start(self) -> int:
        """Serve, and return the port.

        Raises:
            IllegalStateError: Another trainer uses the directory.
            UnavailableError: The address is taken.
        """
        settings = self.settings
        self._lock.acquire()
        bars_dir = settings.bars_dir.expanduser().resolve()
        orchestrator = HostTrainingOrchestrator(
            engine=self._engine,
            bar_store=DirectoryBarStore(bars_dir),
            bars_dir=bars_dir,
            sessions_dir=settings.sessions_dir,
            sessions=await load_sessions(settings.sessions_dir),
        )
        unavailable_reason = is_training_available() or ""
        server_info = ServerInfo(
            self._engine, start_time=utc_now(), unavailable_reason=unavailable_reason, probe=self._probe
        )
        server = create_server()
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server(
            TrainerServicer(orchestrator, server_info), server
        )
        health = add_health_and_reflection(server, [SERVICE_NAME])
        if unavailable_reason:
            for name in ("", SERVICE_NAME):
                await health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        self.port = bind(server, f"{settings.host}:{settings.port}")
        orchestrator.resume()
        await server.start()
        server_info.start_probe()
        self._background = [asyncio.create_task(_sweep_for_ever(orchestrator, settings.keep_ended_s))]
        if not unavailable_reason:
            self._background.append(asyncio.create_task(warm_up_or_log(self._engine)))
        self._server, self._health = server, health
        self._orchestrator, self._server_info = orchestrator, server_info
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
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        if self._orchestrator is not None:
            limit_s = self.settings.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
            await self._orchestrator.drain(limit_s, self._hurry)
        if self._health is not None:
            self._health.end_watches()
        if self._server is not None:
            await self._server.stop(_GRACE_S)
        if self._server_info is not None:
            await self._server_info.close()
        self._lock.release()


async def serve(settings: TrainerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the sessions at once."""
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


async def _sweep_for_ever(orchestrator: HostTrainingOrchestrator, keep_s: float) -> None:
    while True:
        await orchestrator.sweep(keep_s)
        await asyncio.sleep(_SWEEP_EVERY_S)
