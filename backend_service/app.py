"""The composition root of the backend: builds every object once, starts them, stops them in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
from ktrdr.data.v1 import market_data_service_pb2_grpc
from ktrdr.models.v1 import model_service_pb2_grpc
from ktrdr.trainer.v1 import trainer_registry_service_pb2_grpc
from ktrdr.training.v1 import training_service_pb2_grpc

from backend_service.activity import Activity
from backend_service.admission import Admission
from backend_service.bar_imports import BarImports
from backend_service.checkpoints import CheckpointStore
from backend_service.configuration import Configuration
from backend_service.market_data import MarketData
from backend_service.operations.sql_store import SqlOperationsStore
from backend_service.operations.trainings import Trainings
from backend_service.orchestration.attempt_bars import AttemptBars
from backend_service.orchestration.completion import Completion
from backend_service.orchestration.dispatcher import Dispatcher
from backend_service.orchestration.fences import Fences
from backend_service.orchestration.host import HostRunner
from backend_service.orchestration.local import LocalTrainingOrchestrator
from backend_service.orchestration.placer import Placer
from backend_service.orchestration.reconciler import Reconciler
from backend_service.orchestration.registry import TrainerRegistry
from backend_service.orchestration.selector import ExecutionModeSelector
from backend_service.orchestration.trainers import Trainers
from backend_service.progress_relay import ProgressRelay
from backend_service.publisher import Publisher
from backend_service.servicers.market_data import MarketDataServicer
from backend_service.servicers.models import ModelServicer
from backend_service.servicers.registry import TrainerRegistryServicer
from backend_service.servicers.training import TrainingServicer
from backend_service.settings import BackendSettings
from backend_service.strategies import Strategies
from backend_service.upload_room import UploadLimits
from backend_service.uploads import UploadReceiver
from ktrdr_core.data.bar_store import DirectoryBarStore
from ktrdr_core.data.directory_lock import DirectoryLock
from ktrdr_core.errors import DrainingError, IllegalStateError, KtrdrError
from ktrdr_core.execution.devices import probe_devices
from ktrdr_core.execution.engine import ExecutionEngine
from ktrdr_core.execution.fork_server import is_training_available
from ktrdr_core.execution.process_engine import ProcessEngine
from ktrdr_core.execution.warm_up import warm_up_or_log
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.server import HealthServicer, add_health_and_reflection, bind, create_server
from ktrdr_core.rpc.server_security import ServerSecurity
from ktrdr_core.rpc.service_main import run_service, say_listening, stop_on_signals
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.versions import own_version

SERVICE_NAMES = (
    "ktrdr.training.v1.TrainingService",
    "ktrdr.models.v1.ModelService",
    "ktrdr.data.v1.MarketDataService",
    "ktrdr.trainer.v1.TrainerRegistryService",
)
SWEEP_EVERY_S = 3_600.0
STOP_GRACE_S = 1.5  # for the calls in flight; every stream is told to end
NAME = "ktrdr-backend"
_log = get_logger(__name__)


class BackendApp:
    """One backend: `start`, `stop`.

    Args:
        settings: What the environment and the flags say.
        engine: Executes local trainings; None is a process engine with the settings' slots.
        has_torch: Whether this machine can make the .pt files of a model; None looks.
    """

    def __init__(
        self, settings: BackendSettings, *, engine: ExecutionEngine | None = None, has_torch: bool | None = None
    ) -> None:
        self.settings = settings
        self._has_torch = is_training_available() is None if has_torch is None else has_torch
        self.port = 0
        self._given_engine = engine
        self._cleanup = AsyncExitStack()
        self._hurry = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._health: HealthServicer | None = None
        self._admission: Admission | None = None
        self._dispatcher: Dispatcher | None = None
        self._relay: ProgressRelay | None = None
        self._activity: Activity | None = None
        self._registry: TrainerRegistry | None = None
        self._trainings: Trainings | None = None

    async def start(self) -> int:
        """Bring back what an earlier run left, serve, and return the port.

        Raises:
            IllegalStateError: Another backend uses the data directory, or a newer one wrote it.
            UnavailableError: The address is taken.
        """
        try:
            return await self._start()
        except BaseException:  # also a signal in the middle of a start leaves nothing open
            await self._cleanup.aclose()
            raise

    async def wait_idle(self) -> None:
        """Return once nothing was wanted for `exit_when_idle_s`; never without that setting."""
        if self.settings.exit_when_idle_s is None or self._activity is None:
            await asyncio.Event().wait()
        else:
            await self._activity.wait_idle(self.settings.exit_when_idle_s)

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher of a started backend.

        Raises:
            IllegalStateError: It has not been started.
        """
        if self._dispatcher is None:
            raise IllegalStateError("the backend has not been started; call start() first")
        return self._dispatcher

    def hurry(self) -> None:
        """Make a `stop` that waits end local trainings now."""
        self._hurry.set()

    async def stop(self) -> None:
        """Take nothing new, let local trainings end for a while, then end everything.

        Queued trainings stay queued, those on trainers go on, those stopped here have a checkpoint; the next start
        picks all of them up.
        """
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        if self._admission is not None:
            self._admission.start_draining()
        if self._dispatcher is not None:
            await self._dispatcher.drain(self.settings.drain_s, self._hurry)
        if self._trainings is not None:
            self._trainings.give_up_waiting()
        if self._registry is not None:
            self._registry.interrupt(DrainingError("the backend is stopping; register again when it is back"))
        if self._relay is not None:
            self._relay.stop()
        if self._health is not None:
            self._health.end_watches()
        if self._server is not None:
            await self._server.stop(0 if self._hurry.is_set() else STOP_GRACE_S)
        await self._cleanup.aclose()

    async def _start(self) -> int:
        settings = self.settings
        lock = DirectoryLock(settings.data_dir / "backend.lock", owner="backend")
        lock.acquire()
        self._cleanup.callback(lock.release)
        server_security = await asyncio.to_thread(ServerSecurity, settings.security)
        peer_security = await asyncio.to_thread(ChannelSecurity.of_service, settings.security)
        server_security.warn()
        store = await SqlOperationsStore.open(settings.database)
        self._cleanup.push_async_callback(store.close)
        version = own_version()
        trainers = Trainers(
            settings.trainers,
            health_timeout_s=settings.health_timeout_s,
            lease_s=settings.trainer_lost_s,
            renew_s=settings.renew_s,
            version=version,
            config=store,
            security=peer_security,
        )
        self._cleanup.push_async_callback(trainers.close)
        engine = self._open_engine()
        if engine is not None:
            self._cleanup.push_async_callback(engine.close)
        local_slots = engine.num_slots if engine is not None else 0

        storage = ModelStorage(settings.models_dir, max_size_bytes=settings.max_store_bytes)
        self._cleanup.callback(storage.close)
        publisher = Publisher(storage, has_torch=self._has_torch)
        completion = Completion(publisher)
        checkpoints = CheckpointStore(settings.checkpoints_dir, max_size_bytes=settings.max_checkpoint_bytes)
        trainings = Trainings(
            store,
            max_queued=settings.max_queued,
            sessions_dir=settings.sessions_dir,
            on_delete=checkpoints.remove,
        )
        selector = ExecutionModeSelector(
            str(settings.initial_mode),
            trainers=trainers,
            can_train_locally=engine is not None,
            count_local_gpus=_count_gpus,
        )
        imports = BarImports(settings.bars_dir, settings.bar_imports_dir, max_size_bytes=settings.max_import_bytes)
        market_data = MarketData(settings.bars_dir, settings.bar_parts_dir, imports)
        self._cleanup.push_async_callback(market_data.close)
        attempt_bars = AttemptBars(market_data)
        local = (
            None
            if engine is None
            else LocalTrainingOrchestrator(
                engine,
                publisher,
                checkpoints,
                bars=attempt_bars,
                sessions_dir=settings.sessions_dir,
                bars_dir=settings.bars_dir,
                checkpoint_every_s=settings.checkpoint_every_s,
            )
        )
        host = HostRunner(
            trainers,
            completion,
            checkpoints,
            bars=attempt_bars,
            upload_target=self._upload_target,
            version=version,
            trainer_lost_s=settings.trainer_lost_s,
            history_wait_s=settings.history_wait_s,
        )
        placer = Placer(selector, trainers, local_slots=local_slots, retry_wait_s=settings.retry_wait_s)
        fences = Fences(trainings, trainers)
        registry = TrainerRegistry(trainers)
        registry.fenced_session_ids = fences.ids_for
        dispatcher = Dispatcher(
            trainings,
            placer,
            trainers,
            local=local,
            host=host,
            fences=fences,
            completion=completion,
            checkpoints=checkpoints,
            kill_limit_s=settings.kill_limit_s,
        )
        reconciler = Reconciler(trainings, dispatcher, completion, checkpoints, sessions_dir=settings.sessions_dir)
        admission = Admission(trainings, dispatcher, selector, DirectoryBarStore(settings.bars_dir), trainers)
        self._cleanup.callback(admission.close)
        relay = ProgressRelay(trainings)
        strategies = Strategies(settings.strategies_dir, store=store, storage=storage)
        uploads = UploadReceiver(
            settings.uploads_dir,
            trainings=trainings,
            publisher=publisher,
            limits=UploadLimits(
                max_size_bytes=settings.max_upload_bytes,
                max_num=settings.max_partial_uploads,
                max_total_bytes=settings.max_partial_upload_bytes,
            ),
        )
        self._cleanup.push_async_callback(uploads.close)
        configuration = Configuration(
            store=store,
            selector=selector,
            version=version,
            models_dir=settings.models_dir,
            bars_dir=settings.bars_dir,
            strategies_dir=settings.strategies_dir,
            trainers=settings.trainers,
            local_slots=local_slots,
        )

        activity = Activity(is_busy=lambda: bool(trainings.active))
        server = create_server(activity, security=server_security)
        training_service_pb2_grpc.add_TrainingServiceServicer_to_server(
            TrainingServicer(
                admission=admission,
                trainings=trainings,
                dispatcher=dispatcher,
                relay=relay,
                configuration=configuration,
                trainers=trainers,
                strategies=strategies,
            ),
            server,
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(storage=storage, uploads=uploads, trainings=trainings), server
        )
        market_data_service_pb2_grpc.add_MarketDataServiceServicer_to_server(MarketDataServicer(market_data), server)
        trainer_registry_service_pb2_grpc.add_TrainerRegistryServiceServicer_to_server(
            TrainerRegistryServicer(registry), server
        )
        health = add_health_and_reflection(server, SERVICE_NAMES)
        self.port = bind(server, f"{settings.host}:{settings.port}", server_security)

        await configuration.restore()
        await uploads.remove_stale(is_start=True)
        await market_data.remove_stale()
        await trainers.start()
        placer.start()
        await fences.restore()
        await reconciler.run()
        await server.start()
        if engine is not None:
            warming = asyncio.create_task(warm_up_or_log(engine))
            self._cleanup.callback(warming.cancel)
        sweeping = asyncio.create_task(_sweep_for_ever(trainings, uploads), name="sweep")
        self._cleanup.callback(sweeping.cancel)
        self._server, self._health = server, health
        self._admission, self._dispatcher, self._relay, self._activity = admission, dispatcher, relay, activity
        self._registry, self._trainings = registry, trainings
        for trainer in settings.unreachable_for:
            _log.warning(
                "Trainer %s is told to upload to %s, its own machine; unless a tunnel leads here, restart with "
                "--advertise-address HOST:PORT",
                trainer,
                self._upload_target(),
            )
        _log.info("serving on %s:%d, data in %s", settings.host, self.port, settings.data_dir)
        return self.port

    def _open_engine(self) -> ExecutionEngine | None:
        if self._given_engine is not None:
            return self._given_engine
        reason = is_training_available()
        if reason is not None or self.settings.slots == 0:
            _log.info("no local training: %s", reason or "it has no slots")
            return None
        return ProcessEngine(self.settings.slots, log_level=self.settings.log_level)

    def _upload_target(self) -> str:
        return self.settings.advertise_address or f"{self.settings.host}:{self.port}"


async def _sweep_for_ever(trainings: Trainings, uploads: UploadReceiver) -> None:
    """Forget, each hour, what was left to be forgotten."""
    while True:
        await asyncio.sleep(SWEEP_EVERY_S)
        try:
            await trainings.sweep()
            await uploads.remove_stale()
        except (OSError, KtrdrError) as error:
            _log.warning("Swept later: %s", error)


async def serve(settings: BackendSettings) -> None:
    """Serve until SIGTERM, SIGINT or idleness, then drain; a second signal ends local trainings at once."""
    app = BackendApp(settings)
    stopping = stop_on_signals(app.hurry)
    port = await app.start()
    say_listening(NAME, settings.host, port)
    endings = [asyncio.create_task(stopping.wait()), asyncio.create_task(app.wait_idle())]
    try:
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        stopping.set()
        _log.info("draining for up to %g s; a second signal ends local trainings at once", settings.drain_s)
    finally:
        for ending in endings:
            ending.cancel()
        await app.stop()


def run(flags: Mapping[str, Any]) -> int:
    """Run the backend with these flags; return the exit code."""
    return run_service(NAME, BackendSettings, flags, serve)


async def _count_gpus() -> int:
    return sum(device.is_gpu for device in await probe_devices())
