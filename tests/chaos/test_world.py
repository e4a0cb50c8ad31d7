"""What the chaos suite looks for besides histories is found when it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.processes import SERVICE_MARK, WORLD_MARK, limit_file_size, processes_of, workers_under
from tests.chaos.schedule import NETWORKS
from tests.chaos.service import Service
from tests.chaos.world import World
from tests.kit.eventually import eventually
from tests.kit.tcp_proxy import TcpProxy

_PARENT_OF_TWO = """
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) for _ in range(2)]
print("ready", flush=True)
input()
"""
_WRITER = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    try:
        with open(sys.argv[1], "wb", buffering=0) as file:
            print("wrote", file.write(bytes(100_000)), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@contextmanager
def a_process(world: str, script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, WORLD_MARK: world, SERVICE_MARK: "a"}
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A world whose services have not been started."""
    networks = {name: TcpProxy() for name in NETWORKS}
    yield World(tmp_path, networks)
    for network in networks.values():
        await network.close()


async def test_processes_of_a_world_are_known_by_their_mark_whoever_their_parent_is() -> None:
    mark = "world-of-a-test"
    with a_process(mark, _PARENT_OF_TWO) as parent, a_process("another-world", "print('ready'); input()"):
        found = processes_of(mark)
        children = [process for process in found if process.parent == parent.pid]
        assert {process.service for process in found} == {"a"}
        assert len(children) == 2
        assert len(found) == 3
        assert workers_under(os.getpid(), found) == sorted(process.pid for process in children)
        children[0].kill()
        await eventually(lambda: len(processes_of(mark)) == 2)
        parent.kill()
        parent.wait()
        left = processes_of(mark)
        assert [process.pid for process in left] == [children[1].pid]
        left[0].kill()
    await eventually(lambda: processes_of(mark) == [])


def test_full_disk_is_full_until_it_is_emptied(tmp_path: Path) -> None:
    with a_process("full", _WRITER, str(tmp_path / "file")) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        answers = []
        for size_bytes in (None, 0, 4_096, None):
            limit_file_size([writer.pid], size_bytes)
            writer.stdin.write("\n")
            writer.stdin.flush()
            answers.append(writer.stdout.readline().strip())
        assert answers == ["wrote 100000", "OSError", "wrote 4096", "wrote 100000"]


@pytest.mark.parametrize(
    "path",
    [
        "backend/models/.staging/6f1e/model.safetensors",
        "backend/checkpoints/.x.safetensors.0123456789abcdef0123456789abcdef",
        "a/trainer/sessions/x/.artifact.0123456789abcdef0123456789abcdef/config.json",
        "b/trainer/checkpoints/x.tmp",
        "b/models/s/EURUSD_1h_v1/.model.pt.123",
    ],
)
async def test_half_made_file_is_found(world: World, path: str) -> None:
    whole = world.directory / "backend/models/s/EURUSD_1h_v1/.publication.json"
    for file in (whole, world.directory / "backend/operations.db-wal", world.directory / path):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (found,) = world.temporary_files()
    assert path.startswith(found)


async def test_defects_in_a_log_are_told_once(world: World) -> None:
    service: Service = world.services["backend"]
    service.note("start")
    lines = [
        "2026 INFO ktrdr-backend x All is well",
        "2026 ERROR ktrdr-backend asyncio Task exception was never retrieved",
        "2026 ERROR ktrdr-backend ktrdr_core.rpc.interceptors /ktrdr.X/Y raised ValueError",
        "2026 WARNING ktrdr-backend x A trainer is lost",
    ]
    with service.log_path.open("a") as log:
        log.write("\n".join(lines) + "\n")
    for other in ("a", "b"):
        world.services[other].note("start")
    assert world.defects() == [f"log of backend: {line}" for line in lines[1:3]]
    assert world.defects() == []
