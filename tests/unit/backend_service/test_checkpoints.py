"""The backend's checkpoints: the newest of each training, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ktrdr.models.v1 import codec_pb2
from ktrdr.models.v1.model_service_pb2 import UploadChunk
from ktrdr.trainer.v1.checkpoint_pb2 import CheckpointRef

from backend_service.checkpoints import CheckpointStore
from ktrdr_core.errors import CorruptDataError, InvalidUploadError
from ktrdr_core.rpc.chunks import encode_chunk
from tests.kit.backend import write_checkpoint


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", max_size_bytes=1_000)


def ref_of(epoch: int, content: bytes) -> CheckpointRef:
    return CheckpointRef(epoch=epoch, size_bytes=len(content), sha256=hashlib.sha256(content).digest())


async def chunks(content: bytes) -> AsyncIterator[UploadChunk]:
    yield encode_chunk(0, content, codec_pb2.CODEC_NONE)


async def test_newer_checkpoint_replaces_the_one_before(store: CheckpointStore, tmp_path: Path) -> None:
    for epoch, content in ((9, b"nine"), (10, b"ten")):
        await store.receive("t", ref_of(epoch, content), chunks(content))
    found = await store.find("t")
    assert found is not None
    assert (found.epoch, found.path.read_bytes(), found.sha256) == (10, b"ten", hashlib.sha256(b"ten").hexdigest())
    assert len(list((tmp_path / "checkpoints" / "t").iterdir())) == 1


async def test_corrupt_checkpoint_leaves_the_one_before(store: CheckpointStore, tmp_path: Path) -> None:
    await store.receive("t", ref_of(1, b"one"), chunks(b"one"))
    wrong = CheckpointRef(epoch=2, size_bytes=3, sha256=b"\0" * 32)
    with pytest.raises(CorruptDataError):
        await store.receive("t", wrong, chunks(b"two"))
    found = await store.find("t")
    assert found is not None
    assert found.path.read_bytes() == b"one"
    assert len(list((tmp_path / "checkpoints" / "t").iterdir())) == 1


async def test_checkpoint_above_the_bound_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(InvalidUploadError):
        await store.receive("t", ref_of(1, bytes(1_001)), chunks(bytes(1_001)))
    assert await store.find("t") is None


async def test_checkpoint_of_a_worker_here_is_adopted_unless_it_is_older(
    store: CheckpointStore, tmp_path: Path
) -> None:
    for epoch in (5, 3):
        checkpoint = write_checkpoint(tmp_path / f"{epoch}.safetensors", epoch, b"epoch %d" % epoch)
        await store.adopt("t", checkpoint)
        await store.adopt("t", checkpoint)
        checkpoint.path.unlink()
    found = await store.find("t")
    assert found is not None
    assert (found.epoch, found.path.read_bytes()) == (5, b"epoch 5")


async def test_sweep_removes_other_trainings_and_half_received_files(store: CheckpointStore, tmp_path: Path) -> None:
    for training_id in ("wanted", "other"):
        await store.receive(training_id, ref_of(1, b"one"), chunks(b"one"))
    half = tmp_path / "checkpoints" / "wanted" / ".1-ab.safetensors.c0ffee"
    half.write_bytes(b"on")
    await store.sweep(["wanted"])
    assert await store.training_ids() == ["wanted"]
    assert not half.exists()
    assert await store.find("wanted") is not None
