"""The world of a schedule: a backend, two trainers, and a network in between that can be broken."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

from tests.chaos.processes import Process, processes_of
from tests.chaos.recipes import write_bars
from tests.chaos.schedule import NETWORKS, SERVICES
from tests.chaos.service import Service
from tests.kit.builders import REPOSITORY
from tests.kit.eventually import eventually
from tests.kit.tcp_proxy import TcpProxy

TRAINER_LOST_S = 3.0
DRAIN_S = 2.0
STOP_LIMIT_S = 40.0
_GONE_LIMIT_S = 20.0
_ENVIRONMENT = {
    "KTRDR_TRAINER_LOST_S": f"{TRAINER_LOST_S:g}",
    "KTRDR_TRAINER_CHECKPOINT_EVERY_S": "0.3",
    "KTRDR_CHECKPOINT_EVERY_S": "0.3",
    "KTRDR_LOG_LEVEL": "INFO",
}
NUM_SLOTS = {"backend": 1, "a": 1, "b": 2}
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{32}$|\.(tmp|part|partial)$|^\.model\w*\.pt\.\d+$")


class World:
    """Services and networks by name; use `open_world`.

    Trainer `a` is configured by address, trainer `b` registers itself. Nobody knows anybody's real address: everything
    goes through a network, so that a service may come back on another port.

    Attributes:
        directory: State of the services and their logs.
        networks: "clients" and "trainers" lead to the backend, "a" and "b" from the backend to that trainer.
        digests: Artifact digest of each recipe that completed; equal jobs give equal bits, wherever they ran.
    """

    def __init__(self, directory: Path, networks: dict[str, TcpProxy]) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.networks = networks
        self.network_locks = {name: asyncio.Lock() for name in networks}
        self.digests: dict[str, str] = {}
        self._mark = uuid4().hex
        bars = ["--bars-dir", str(directory / "bars")]
        no_bars = ["--bars-dir", str(directory / "no-bars")]  # trainers fetch what they train on
        self.services = {
            "backend": self._service(
                "backend",
                "backend_service",
                *(*bars, "--strategies-dir", str(REPOSITORY / "strategies"), "--drain-s", f"{DRAIN_S:g}"),
                *("--advertise-address", networks["trainers"].address, "--trainer", networks["a"].address),
            ),
            "a": self._trainer("a", *no_bars),
            "b": self._trainer(
                "b",
                *(*no_bars, "--backend", networks["trainers"].address),
                *("--advertise-address", networks["b"].address),
            ),
        }

    @property
    def client_address(self) -> str:
        """Where clients find the backend."""
        return self.networks["clients"].address

    async def start(self) -> None:
        """Write the bars and start every service."""
        write_bars(self.directory / "bars")
        await asyncio.gather(*(service.start() for service in self.services.values()))

    async def heal(self) -> list[str]:
        """Restore every network, and start what has ended; returns what ended by itself."""
        problems = []
        for network in self.networks.values():
            await network.restore()
        for service in self.services.values():
            if not service.is_running:
                problems.append(f"{service.name} ended by itself with exit code {service.exit_code}")
                await service.start()
        return problems

    async def stop(self) -> list[str]:
        """Stop every service by SIGTERM; returns what was left behind."""
        problems = []
        for service in self.services.values():
            try:
                if (code := await service.stop(limit_s=STOP_LIMIT_S)) != 0:
                    problems.append(f"{service.name} ended with exit code {code} after SIGTERM")
            except AssertionError as error:
                problems.append(str(error))
        try:
            await eventually(lambda: not self.processes(), timeout_s=_GONE_LIMIT_S, what="end of every process")
        except AssertionError:
            problems += [f"process {process} outlived the services" for process in self.processes()]
        return problems

    async def kill(self) -> None:
        """End every process of this world at once."""
        for service in self.services.values():
            if service.is_running:
                await service.kill()
        for process in self.processes():
            process.kill()
        await eventually(lambda: not self.processes(), what="end of every process")
        for service in self.services.values():
            await service.wait_for_log()

    def processes(self) -> list[Process]:
        return processes_of(self._mark)

    def strangers(self) -> list[Process]:
        """Return the workers that run, and whatever outlived its service; none once everything has ended."""
        processes = self.processes()
        services = {service.pid for service in self.services.values()}
        helpers = {process.pid for process in processes if process.parent in services}
        return [process for process in processes if process.pid not in services | helpers]

    def temporary_files(self) -> list[str]:
        """Return what is half made in the data directories."""
        return [
            str(path.relative_to(self.directory))
            for name in SERVICES
            for path in sorted((self.directory / name).rglob("*"))
            if (_TEMPORARY.search(path.name) and path.name != ".staging") or path.parent.name == ".staging"
        ]

    def defects(self) -> list[str]:
        """Return what the logs tell of defects, since this was asked before."""
        return [f"log of {name}: {line[:300]}" for name, each in self.services.items() for line in each.defects()]

    def _trainer(self, name: str, *flags: str) -> Service:
        return self._service(name, "trainer_service", *flags, "--drain-timeout-s", f"{DRAIN_S:g}")

    def _service(self, name: str, module: str, *flags: str) -> Service:
        leading = ("clients", "trainers") if name == "backend" else (name,)

        def lead_there(address: str) -> None:
            for network in leading:
                self.networks[network].target = address

        return Service(
            name,
            module,
            ["--data-dir", str(self.directory / name), "--slots", str(NUM_SLOTS[name]), *flags],
            environment=_ENVIRONMENT,
            directory=self.directory,
            world=self._mark,
            on_address=lead_there,
        )


@asynccontextmanager
async def open_world(directory: Path) -> AsyncIterator[World]:
    """Start a world with its state in `directory`; every process of it is gone afterwards."""
    async with AsyncExitStack() as stack:
        networks = {name: await stack.enter_async_context(TcpProxy()) for name in NETWORKS}
        world = World(directory, networks)
        stack.push_async_callback(world.kill)
        await world.start()
        yield world
