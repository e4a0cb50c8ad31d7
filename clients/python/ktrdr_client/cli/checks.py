"""The checks of `ktrdr doctor`: what was found, whether it is well, and what to do if not."""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from ktrdr_client.async_client import AsyncClient
from ktrdr_client.cli import formats
from ktrdr_client.cli.trainer_commands import device
from ktrdr_client.keepalive_probe import HOLD_S, probe_keepalive
from ktrdr_client.trainer_client import AsyncTrainerClient
from ktrdr_client.types import BackendConfig, TrainerInfo, TrainerStatus
from ktrdr_core.addresses import is_loopback
from ktrdr_core.errors import KtrdrError, PermissionDeniedError, UnauthenticatedError, VersionSkewError
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.versions import check_versions, own_version

MAX_CLOCK_DIFFERENCE_S = 2.0
MIN_FREE_BYTES = 5 << 30
_TIMEOUT_S = 5.0
_TRAINER_TIMEOUT_S = 2.0
_INSTALL = "pip install 'ktrdr[train]'"


class Status(StrEnum):
    """OK and NOTE need nothing done, a WARNING may, a PROBLEM does."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; `advice` says what to do, "" if nothing."""

    name: str
    status: Status
    message: str
    advice: str = ""


def check_client() -> Check:
    """Say what this side is."""
    version = own_version() or "of unknown version"
    return Check(name="client", status=Status.OK, message=f"ktrdr {version}, Python {platform.python_version()}")


def check_torch() -> Check:
    """Check that an embedded trainer could train."""
    if importlib.util.find_spec("torch") is None:
        return Check(
            name="torch",
            status=Status.PROBLEM,
            message="torch is not installed here, so an embedded trainer cannot train",
            advice=f"{_INSTALL}, or talk to a backend elsewhere with --backend",
        )
    return Check(name="torch", status=Status.OK, message="installed here")


def check_version(backend: str) -> Check:
    """Check that this client and the backend are of versions that work together."""
    own = own_version()
    try:
        check_versions(backend=backend, trainer=own)
    except VersionSkewError:
        return Check(
            name="version",
            status=Status.PROBLEM,
            message=f"client {own or 'unknown'}, backend {backend or 'unknown'}: MAJOR.MINOR must be equal",
            advice="install the same version of ktrdr on both",
        )
    return Check(name="version", status=Status.OK, message=f"backend {backend}")


async def check_keepalive(address: str, security: ChannelSecurity | None = None) -> Check:
    """Check that an idle stream to the backend lives."""
    try:
        await probe_keepalive(address, security=security)
    except KtrdrError as error:
        return Check(
            name="keepalive",
            status=Status.PROBLEM,
            message=f"an idle stream to {address} was cut: {error.message}",
            advice="let the proxy or firewall between pass HTTP/2 pings and idle streams, or go round it",
        )
    return Check(name="keepalive", status=Status.OK, message=f"an idle stream with pings lived for {HOLD_S:g} s")


def check_disk(name: str, free_bytes: int, *, where: str) -> Check:
    """Check that there is room."""
    free = f"{formats.size(free_bytes)} free {where}"
    if free_bytes < MIN_FREE_BYTES:
        return Check(
            name=name,
            status=Status.WARNING,
            message=f"only {free}",
            advice=f"free some: below {formats.size(MIN_FREE_BYTES)} models and checkpoints may not fit",
        )
    return Check(name=name, status=Status.OK, message=free)


def check_local_disk(name: str, path: Path) -> Check:
    """Check the disk that a directory of this machine is on, or will be on."""
    existing = next((each for each in (path, *path.parents) if each.exists()), path)
    try:
        return check_disk(name, shutil.disk_usage(existing).free, where=f"for {path}")
    except OSError as error:
        return Check(
            name=name,
            status=Status.PROBLEM,
            message=f"{path} cannot be looked at: {error.strerror}",
            advice="check its permissions",
        )


def check_bars(directory: Path) -> Check:
    """Check that there are bars in a directory of this machine."""
    from ktrdr_core.data.bar_store import DirectoryBarStore

    name = "bars"
    try:
        series = DirectoryBarStore(directory).list_series()
    except (KtrdrError, OSError) as error:
        return Check(
            name=name,
            status=Status.PROBLEM,
            message=f"{directory} cannot be read: {error}",
            advice="run: ktrdr data check",
        )
    if not series:
        return Check(
            name=name,
            status=Status.WARNING,
            message=f"no bars in {directory}",
            advice="import some with: ktrdr data import FILE --symbol SYMBOL --timeframe 1h",
        )
    return Check(name=name, status=Status.OK, message=f"{len(series)} series in {directory}")


async def check_strategies(client: AsyncClient, config: BackendConfig) -> Check:
    """Check that the backend has strategies that are valid."""
    found = await client.list_strategies()
    refused = [each for each in found if each.error]
    if refused:
        return Check(
            name="strategies",
            status=Status.WARNING,
            message=f"{len(refused)} of {len(found)} are refused, such as {refused[0].name}: {refused[0].error}",
            advice="correct them; ktrdr strategies list names all",
        )
    if not found:
        return Check(name="strategies", status=Status.NOTE, message=f"none in {config.strategies_path}")
    return Check(name="strategies", status=Status.OK, message=f"{len(found)} in {config.strategies_path}")


def check_trainer(trainer: TrainerStatus, *, backend_version: str) -> Check:
    """Check a trainer as the backend sees it."""
    name = f"trainer {trainer.address}"
    try:
        if trainer.version:
            check_versions(backend=backend_version, trainer=trainer.version)
    except VersionSkewError as error:
        return Check(
            name=name,
            status=Status.PROBLEM,
            message=error.message,
            advice="install the same version of ktrdr on both machines; until then it gets no sessions",
        )
    if not trainer.is_healthy:
        silence = "never heard of" if trainer.silence_s is None else f"silent for {trainer.silence_s:.0f} s"
        return Check(
            name=name,
            status=Status.PROBLEM,
            message=f"not healthy: {trainer.message or silence}",
            advice="check that it runs and that the backend can reach it there; its log says more",
        )
    if trainer.version and not trainer.torch_version:
        return Check(
            name=name,
            status=Status.PROBLEM,
            message="torch is not installed there, so it cannot train",
            advice=f"on its machine: {_INSTALL}",
        )
    devices = ", ".join(map(device, trainer.device_details)) or ", ".join(trainer.devices) or "no devices told"
    text = f"ktrdr {trainer.version}, {devices}, {trainer.num_free_slots} of {trainer.num_slots} slots free"
    if trainer.is_draining:
        return Check(
            name=name,
            status=Status.NOTE,
            message=f"draining: it gets no new sessions; {text}",
            advice=f"to end that: ktrdr trainers undrain {trainer.address}",
        )
    return Check(name=name, status=Status.OK, message=text)


async def check_trainer_itself(trainer: TrainerStatus, security: ChannelSecurity | None = None) -> list[Check]:
    """Ask a trainer directly for its clock and disk; that it cannot be reached from here is no problem."""
    name = f"clock of {trainer.address}"
    asked_at = datetime.now(UTC)
    try:
        async with AsyncTrainerClient(trainer.address, timeout_s=_TRAINER_TIMEOUT_S, security=security) as client:
            info = await client.get_server_info()
    except KtrdrError:
        return [
            Check(name=name, status=Status.NOTE, message="not known: this machine cannot reach it, nor does it have to")
        ]
    if trainer.trainer_id and info.trainer_id != trainer.trainer_id:
        return [Check(name=name, status=Status.NOTE, message="not known: seen from here, another trainer is there")]
    return [
        check_clock(name, info, asked_at=asked_at, answered_at=datetime.now(UTC)),
        check_disk(f"disk of {trainer.address}", info.disk_free_bytes, where="there"),
    ]


def check_clock(name: str, info: TrainerInfo, *, asked_at: datetime, answered_at: datetime) -> Check:
    """Check that a clock agrees with ours; it was read at some time between the asking and the answer."""
    if info.current_time is None:
        return Check(name=name, status=Status.NOTE, message="not known: it does not tell its time")
    behind_s = (asked_at - info.current_time).total_seconds()
    ahead_s = (info.current_time - answered_at).total_seconds()
    difference_s = max(behind_s, ahead_s, 0.0)
    if difference_s > MAX_CLOCK_DIFFERENCE_S:
        return Check(
            name=name,
            status=Status.WARNING,
            message=f"{difference_s:.1f} s {'behind' if behind_s > 0 else 'ahead of'} this machine's",
            advice="set both by NTP: times in histories do not agree until then",
        )
    return Check(name=name, status=Status.OK, message="agrees with this machine's")


def check_places(config: BackendConfig, trainers: Sequence[TrainerStatus]) -> Check:
    """Check that there is a place to train at all, and say whether it has a GPU."""
    name = "places"
    usable = [each for each in trainers if each.is_healthy and not each.is_draining]
    if not usable and not config.local_slots:
        return Check(
            name=name,
            status=Status.PROBLEM,
            message="nothing can train: no trainer is ready, and the backend's machine has no slots",
            advice="start a trainer: ktrdr trainer serve",
        )
    text = f"{len(usable)} trainers ready, {config.local_slots} slots on the backend's machine"
    if not any(each.has_gpu for each in usable):
        return Check(name=name, status=Status.NOTE, message=f"{text}; no trainer has a GPU, trainings run on CPUs")
    return Check(name=name, status=Status.OK, message=text)


def is_here(address: str) -> bool:
    """Return whether an address is this machine's own, as far as it says so."""
    return is_loopback(address.rpartition(":")[0])


async def check_backend(address: str, security: ChannelSecurity | None = None) -> tuple[list[Check], bool]:
    """Check a backend and all it knows; False if it cannot be reached."""
    async with AsyncClient(address, timeout_s=_TIMEOUT_S, security=security) as client:
        try:
            config = await client.get_config()
        except (UnauthenticatedError, PermissionDeniedError) as error:
            return [
                Check(name="backend", status=Status.OK, message=f"{address} answers"),
                Check(
                    name="token",
                    status=Status.PROBLEM,
                    message=error.message,
                    advice="make one where the services' table is: ktrdr security token add NAME --scopes train",
                ),
            ], True
        except KtrdrError as error:
            return [
                Check(
                    name="backend",
                    status=Status.PROBLEM,
                    message=f"{address} does not answer: {error.message}",
                    advice="check the address and that it runs; start one with: ktrdr backend serve",
                )
            ], False
        checks = [
            Check(name="backend", status=Status.OK, message=f"{address} answers"),
            check_version(config.version),
            await check_keepalive(address, security),
        ]
        try:
            trainers = await client.list_trainers()
            checks += [check_trainer(each, backend_version=config.version) for each in trainers]
            for found in await asyncio.gather(*(check_trainer_itself(each, security) for each in trainers)):
                checks += found
            checks += [check_places(config, trainers), await check_strategies(client, config)]
        except KtrdrError as error:
            checks.append(
                Check(
                    name="backend",
                    status=Status.PROBLEM,
                    message=f"it refuses to answer: {error.message}",
                    advice="look into its log",
                )
            )
    if is_here(address) and Path(config.models_path).parent.is_dir():
        checks.append(await asyncio.to_thread(check_local_disk, "disk of the models", Path(config.models_path)))
        checks.append(await asyncio.to_thread(check_bars, Path(config.bars_path)))
    else:
        checks.append(
            Check(name="disk of the models", status=Status.NOTE, message="not known: the backend is on another machine")
        )
    return checks, True
