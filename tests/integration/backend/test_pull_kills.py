"""Pulling a large model: either side may be killed at any instant, and neither holds more than a few chunks of it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
from ktrdr_client import AsyncClient
from ktrdr_client.model_pull import PullPolicy

from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES
from ktrdr_core.storage.artifact import write_artifact
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.stored_model import StoredModel
from tests.kit.artifacts import make_artifact
from tests.kit.cli import Cli
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.processes import a_service, backend_flags
from tests.kit.tcp_proxy import TcpProxy

SLOW_BYTES_PER_S = 12e6
MIB = 1 << 20
SPARE_MIB = 64
WEIGHTS = "model.safetensors"


def publish(tmp_path: Path, num_mib: int) -> StoredModel:
    """Put a model with weights of that size into the store of `backend_flags`."""
    small = make_artifact()
    values = np.random.default_rng(3).normal(size=(num_mib, MIB // 4)).astype(np.float32)
    write_artifact(tmp_path / "artifact", dataclasses.replace(small, tensors={"layers.0.weight": values}))
    return ModelStorage(tmp_path / "backend" / "models").publish(tmp_path / "artifact")


def flags(tmp_path: Path) -> list[str]:
    return [*backend_flags(tmp_path), "--slots", "0"]


def arrived(directory: Path) -> int:
    part = directory / f".{WEIGHTS}.part"
    return part.stat().st_size // CHUNK_SIZE_BYTES if part.exists() else 0


async def until_arrived(directory: Path, num_chunks: int) -> None:
    await eventually(lambda: arrived(directory) >= num_chunks, what=f"{num_chunks} chunks")


def check_whole(directory: Path, stored: StoredModel) -> None:
    assert {path.name for path in directory.iterdir()} == {file.name for file in stored.files}
    for file in stored.files:
        assert (directory / file.name).read_bytes() == (stored.path / file.name).read_bytes(), file.name


async def test_a_backend_killed_again_and_again_costs_no_more_than_what_was_in_flight(tmp_path: Path) -> None:
    stored = publish(tmp_path, 24)
    target = tmp_path / "pulled"
    async with TcpProxy() as proxy, AsyncClient(proxy.address) as client:
        with a_service("backend_service", *flags(tmp_path)) as backend:
            proxy.target = backend.address
            await proxy.slow(bytes_per_s=SLOW_BYTES_PER_S)
            policy = PullPolicy(delays_s=(0.05,), give_up_after_s=PATIENCE_S)
            pulling = asyncio.create_task(client.pull_model(stored.name, target, policy=policy))
            await until_arrived(target, 3)
            backend.kill()
        for kill_at in (9, 17):
            with a_service("backend_service", *flags(tmp_path)) as backend:
                proxy.target = backend.address
                await until_arrived(target, kill_at)
                backend.kill()
        assert all(path.suffix == ".part" for path in target.iterdir())
        with a_service("backend_service", *flags(tmp_path)) as backend:
            num_before, left = proxy.num_bytes, 24 - arrived(target)
            proxy.target = backend.address
            await asyncio.wait_for(pulling, PATIENCE_S)
            assert proxy.num_bytes - num_before < (left + 2) * CHUNK_SIZE_BYTES
    check_whole(target, stored)


async def test_a_pull_that_is_killed_is_gone_on_with_by_the_same_command(tmp_path: Path) -> None:
    stored = publish(tmp_path, 16)
    target = tmp_path / "pulled"
    cli = Cli(tmp_path / "state")
    with a_service("backend_service", *flags(tmp_path)) as backend:
        async with TcpProxy(backend.address) as proxy:
            await proxy.slow(bytes_per_s=SLOW_BYTES_PER_S)
            words = ("--backend", proxy.address, "models", "pull", stored.name, "--to", str(target))
            with cli.start(*words) as killed:
                await until_arrived(target, 4)
                killed.kill()
                await asyncio.to_thread(killed.communicate)
            assert all(path.suffix == ".part" for path in target.iterdir())
            await proxy.restore()
            num_before, left = proxy.num_bytes, 16 - arrived(target)
            ran = await asyncio.to_thread(cli.run, *words)
            assert ran.code == 0, ran.err
            assert proxy.num_bytes - num_before < (left + 1) * CHUNK_SIZE_BYTES
    check_whole(target, stored)


_PULL = """
import asyncio, sys
from pathlib import Path
from ktrdr_client import AsyncClient

def peak_kib():
    # Of what has been since the last call.
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    Path("/proc/self/clear_refs").write_text("5")
    return peak

async def main(address, name, directory):
    async with AsyncClient(address) as client:
        await client.pull_model(name, Path(directory) / "first", files=["config.json"])
        peak_kib()
        before = peak_kib()
        await client.pull_model(name, Path(directory) / "whole")
        print(peak_kib() - before)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_memory_of_both_sides_stays_that_of_a_few_chunks(tmp_path: Path) -> None:
    stored = publish(tmp_path, 256)
    with a_service("backend_service", *flags(tmp_path)) as backend:
        async with AsyncClient(backend.address) as client:
            await client.pull_model(stored.name, tmp_path / "first", files=["config.json"])
        _peak_kib(backend.process.pid)
        before = _peak_kib(backend.process.pid)
        pull = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PULL,
            backend.address,
            stored.name,
            str(tmp_path),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )
        out, _ = await asyncio.wait_for(pull.communicate(), PATIENCE_S)
        assert pull.returncode == 0
        own, other = int(out) / 1024, (_peak_kib(backend.process.pid) - before) / 1024
    assert (tmp_path / "whole" / WEIGHTS).stat().st_size > 256 * MIB
    assert own < SPARE_MIB, f"the client took {own:.0f} MiB"
    assert other < SPARE_MIB, f"the backend took {other:.0f} MiB"


def _peak_kib(pid: int) -> int:
    """Return the largest resident memory since the last call."""
    peak = int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0])
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak
