"""An upload whose backend or trainer is killed at any instant: the model arrives once, and what had arrived counts."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
from ktrdr.models.v1 import model_service_pb2 as models_pb
from ktrdr.models.v1 import model_service_pb2_grpc
from ktrdr.training.v1 import training_service_pb2_grpc
from ktrdr.training.v1 import training_state_pb2 as states

from backend_service.upload_log import sound_size_bytes
from ktrdr_core.rpc.channel import open_channel
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES
from ktrdr_core.storage.artifact import write_artifact
from tests.integration.backend.test_backend_processes import get, train, until_epoch
from tests.kit.artifacts import make_artifact
from tests.kit.backend import HOST, become
from tests.kit.eventually import PATIENCE_S, eventually
from tests.kit.processes import a_service, backend_flags, trainer_flags
from tests.kit.tcp_proxy import TcpProxy
from trainer_service.outbox import Upload, UploadOptions

NUM_CHUNKS = 24
SLOW_BYTES_PER_S = 12e6


def write_large_artifact(directory: Path) -> None:
    small = make_artifact()
    values = np.random.default_rng(3).normal(size=NUM_CHUNKS * CHUNK_SIZE_BYTES // 4).astype(np.float32)
    write_artifact(directory, dataclasses.replace(small, tensors={**small.tensors, "layers.1.weight": values}))


async def ignore(reason: str, message: str) -> None:
    """Nobody reads the warnings."""


async def published(address: str) -> list[models_pb.VerifyModelResponse]:
    """Return the check of every version in the store."""
    async with open_channel(address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        names = [model.name for model in (await stub.ListModels(models_pb.ListModelsRequest())).models]
        return [await stub.VerifyModel(models_pb.VerifyModelRequest(name=name)) for name in names]


async def test_a_backend_killed_again_and_again_loses_no_more_than_a_chunk(tmp_path: Path) -> None:
    write_large_artifact(tmp_path / "artifact")
    flags = [*backend_flags(tmp_path), "--slots", "0"]
    uploads = tmp_path / "backend" / "uploads"

    def num_sound() -> int:
        return max((sound_size_bytes(path) for path in uploads.glob("*")), default=0) // CHUNK_SIZE_BYTES

    async def until_sound(num_chunks: int) -> None:
        await eventually(lambda: num_sound() >= num_chunks, what=f"{num_chunks} chunks")

    async with TcpProxy() as proxy:
        await proxy.slow(bytes_per_s=SLOW_BYTES_PER_S)
        upload = Upload(
            tmp_path / "artifact",
            training_id="",
            attempt=0,
            target=lambda: proxy.address,
            warn=ignore,
            options=UploadOptions(retry_delays_s=(0.05,)),
        )
        running = asyncio.create_task(upload.run())
        for kill_at in (3, 9, 17):
            with a_service("backend_service", *flags) as backend:
                proxy.target = backend.address
                await until_sound(kill_at)
                backend.kill()
            written = sum(path.stat().st_size for path in uploads.glob("*/files/*"))
            assert written - num_sound() * CHUNK_SIZE_BYTES < 2 * CHUNK_SIZE_BYTES  # one torn, one not whole
            assert num_sound() >= kill_at
        with a_service("backend_service", *flags) as backend:
            num_before = proxy.num_bytes
            left = NUM_CHUNKS - num_sound()
            proxy.target = backend.address
            stored = await asyncio.wait_for(running, PATIENCE_S)
            assert proxy.num_bytes - num_before < (left + 2) * CHUNK_SIZE_BYTES
            (check,) = await published(backend.address)
    assert (stored.model.version, check.is_sound) == (1, True)
    assert not list(uploads.iterdir())


async def test_a_trainer_killed_while_it_uploads_brings_its_model_once(tmp_path: Path) -> None:
    async with TcpProxy() as proxy:
        with a_service("trainer_service", *trainer_flags(tmp_path)) as trainer:
            flags = [*backend_flags(tmp_path, trainer.address), "--slots", "0", "--advertise-address", proxy.address]
            with a_service("backend_service", *flags) as backend:
                proxy.target = backend.address
                async with open_channel(backend.address) as channel:
                    stub = training_service_pb2_grpc.TrainingServiceStub(channel)
                    training_id = await train(stub, HOST, epochs=100)
                    await until_epoch(stub, training_id, 1)
                    await proxy.pause()  # the bars have come this way, too

                    async def is_in(state: states.TrainingState.ValueType) -> bool:
                        return (await get(stub, training_id)).state == state

                    await become(lambda: is_in(states.TRAINING_STATE_UPLOADING), what="UPLOADING")
                    num_before = proxy.num_bytes
                    await proxy.slow(bytes_per_s=30e3)
                    await eventually(lambda: proxy.num_bytes > num_before + 10_000, what="bytes of the model")
                    trainer.kill()
                    await proxy.restore()
                    with a_service("trainer_service", *trainer_flags(tmp_path), "--port", trainer.port):
                        await become(lambda: is_in(states.TRAINING_STATE_COMPLETED), what="COMPLETED")
                    (check,) = await published(backend.address)
                    assert (check.model.training_id, check.is_sound) == (training_id, True)
