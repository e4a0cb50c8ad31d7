"""The real trainer service as a process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ktrdr.trainer.v1 import trainer_service_pb2 as pb
from ktrdr.trainer.v1 import trainer_service_pb2_grpc
from ktrdr.training.v1 import data_mode_pb2
from ktrdr.training.v1 import training_state_pb2 as states

from ktrdr_core.rpc.channel import open_channel
from tests.kit.eventually import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
STRATEGY = ROOT / "strategies" / "neuro_mean_reversion.yaml"


@dataclass
class TrainerProcess:
    """A running `python -m trainer_service`, and a stub to it."""

    process: asyncio.subprocess.Process
    address: str
    stub: trainer_service_pb2_grpc.TrainerServiceAsyncStub

    async def watch(self, session_id: str, after: int = 0) -> list[pb.StreamProgressResponse]:
        call = self.stub.StreamProgress(pb.StreamProgressRequest(session_id=session_id, after_sequence=after))
        return [answer async for answer in call]

    async def end(self, number: signal.Signals) -> int:
        """Send a signal and return the exit status once the process is gone."""
        self.process.send_signal(number)
        # Not wait(): that is for the end of the pipe as well, which a worker may hold.
        await eventually(lambda: self.process.returncode is not None, what="end of the trainer")
        return self.process.returncode or 0


def train_request(session_id: str, **fields: object) -> pb.TrainRequest:
    """Return a request to train the shipped strategy on the shipped bars, as the trainer's own."""
    request = pb.TrainRequest(session_id=session_id, training_id=f"training-{session_id}")
    request.spec.strategy.yaml = STRATEGY.read_text()
    request.spec.data_mode = data_mode_pb2.DATA_MODE_LOCAL
    for name, value in fields.items():
        setattr(request if name == "upload_target" else request.spec, name, value)
    return request


@asynccontextmanager
async def trainer_process(data_dir: Path, *flags: str) -> AsyncIterator[TrainerProcess]:
    """Start the trainer on a free port with its state in `data_dir`; it is killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "trainer_service", "--port", "0", "--data-dir", str(data_dir), "--bars-dir", str(ROOT / "data")),
        *flags,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode()
        assert line.startswith("ktrdr-trainer listening on 127.0.0.1:"), line
        address = line.split()[-1]
        async with open_channel(address) as channel:
            yield TrainerProcess(process, address, trainer_service_pb2_grpc.TrainerServiceStub(channel))
    finally:
        if process.returncode is None:
            process.kill()
            await eventually(lambda: process.returncode is not None)
        transport = getattr(process, "_transport", None)
        if transport is not None:
            transport.close()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


async def first_epoch(trainer: TrainerProcess, session_id: str) -> int:
    """Return the worker's pid once an epoch has ended."""

    async def has_epoch() -> bool:
        session = (await trainer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session
        assert session.state in (states.TRAINING_STATE_QUEUED, states.TRAINING_STATE_RUNNING), session.message
        return session.progress.HasField("epoch")

    await eventually(has_epoch, what="an epoch")
    return (await trainer.stub.GetSession(pb.GetSessionRequest(session_id=session_id))).session.worker_pid
