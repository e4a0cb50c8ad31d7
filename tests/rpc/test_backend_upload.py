"""UploadModel and the model store's RPCs: every line of their contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ktrdr.models.v1 import model_service_pb2 as pb
from ktrdr.models.v1.codec_pb2 import CODEC_NONE
from ktrdr.models.v1.model_service_pb2_grpc import ModelServiceStub

from ktrdr_core.domain.progress import StateDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    CorruptDataError,
    IllegalStateError,
    InvalidInputError,
    InvalidUploadError,
    ModelNotFoundError,
    NotBuiltError,
    TrainingNotFoundError,
    UploadNotFoundError,
    WriteConflictError,
)
from ktrdr_core.rpc.channel import open_sync_channel
from ktrdr_core.rpc.chunks import encode_chunk
from ktrdr_core.rpc.upload import UploadPlan, upload_messages
from ktrdr_core.storage.artifact import ModelArtifact, write_artifact
from tests.kit.artifacts import make_artifact
from tests.kit.backend import (
    HOST,
    Backend,
    FakeTrainer,
    a_spec,
    become,
    event,
    refusal,
    running_backend,
    running_trainer,
)
from tests.kit.eventually import eventually


@dataclass
class Scene:
    """A backend, a trainer, and an artifact for the training that runs there."""

    backend: Backend
    trainer: FakeTrainer
    training_id: str
    plan: UploadPlan

    async def send(self, requests: Iterable[pb.UploadModelRequest]) -> pb.UploadModelResponse:
        """Upload as the product does: an asyncio stream that is refused early may lose the refusal."""

        def call() -> pb.UploadModelResponse:
            with open_sync_channel(f"127.0.0.1:{self.backend.app.port}") as channel:
                answer: pb.UploadModelResponse = ModelServiceStub(channel).UploadModel(iter(requests))
                return answer

        return await asyncio.to_thread(call)

    async def query(self) -> pb.QueryUploadResponse:
        request = pb.QueryUploadRequest(
            training_id=self.plan.training_id, attempt=self.plan.attempt, sha256=self.plan.sha256
        )
        answer: pb.QueryUploadResponse = await self.backend.models.QueryUpload(request)
        return answer

    def messages(self, write_offset: int = 0) -> list[pb.UploadModelRequest]:
        return list(upload_messages(self.plan, write_offset=write_offset))


def a_large_artifact() -> ModelArtifact:
    """Return an artifact of several chunks."""
    small = make_artifact()
    rng = np.random.default_rng(5)
    tensors = {**small.tensors, "layers.1.weight": rng.normal(size=(1000, 700)).astype(np.float32)}
    return ModelArtifact(
        tensors=tensors,
        config=small.config,
        metrics=small.metrics,
        features=small.features,
        metadata=small.metadata,
    )


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    trainer = FakeTrainer(tmp_path)
    async with running_trainer(trainer) as address, running_backend(tmp_path, trainers=(address,)) as backend:
        training_id = await backend.train(a_spec(HOST))
        await backend.until(training_id, "RUNNING")
        write_artifact(tmp_path / "artifact", a_large_artifact())
        plan = UploadPlan.of(tmp_path / "artifact", training_id=training_id, attempt=1)
        await trainer.only.log.append(event(StateDetail(state=TrainingState.UPLOADING)))
        await backend.until(training_id, "UPLOADING")
        yield Scene(backend, trainer, training_id, plan)


async def send_part(scene: Scene, num_chunks: int) -> None:
    """Send the header and some chunks, then break the stream off once the backend has had time to take them."""
    call = scene.backend.models.UploadModel()
    for message in scene.messages()[: 1 + num_chunks]:
        await call.write(message)
    uploads = scene.backend.app.settings.uploads_dir
    size = num_chunks * 2**20

    def has_arrived() -> bool:
        return any(path.stat().st_size >= size for path in uploads.glob("*/part"))

    await eventually(has_arrived, what="the chunks") if num_chunks else None
    call.cancel()


async def test_broken_upload_goes_on_where_it_stopped(scene: Scene) -> None:
    assert isinstance(await refusal(scene.query()), UploadNotFoundError)
    await send_part(scene, 2)

    async def committed() -> int:
        try:
            return (await scene.query()).committed_size_bytes
        except Exception:  # noqa: BLE001 - not there yet
            return 0

    assert await become(committed) == 2 * 2**20
    answer = await become(lambda: _try_send(scene, 2 * 2**20))
    assert answer.model.training_id == scene.training_id
    assert await scene.backend.state(scene.training_id) == "UPLOADING"  # until the session's log is copied to its end
    await scene.trainer.only.log.append(event(StateDetail(state=TrainingState.COMPLETED)))
    await scene.backend.until(scene.training_id, "COMPLETED")
    status = await scene.query()
    assert (status.is_complete, status.committed_size_bytes) == (True, scene.plan.total_size_bytes)


async def _try_send(scene: Scene, write_offset: int) -> Any:
    try:
        return await scene.send(scene.messages(write_offset))
    except Exception:  # noqa: BLE001 - the broken stream may still hold the upload for a moment
        return None


async def test_same_artifact_twice_is_success_and_stored_once(scene: Scene) -> None:
    first = await scene.send(scene.messages())
    again = await scene.send(scene.messages(scene.plan.total_size_bytes))
    assert (first.is_duplicate, again.is_duplicate) == (False, True)
    assert first.model == again.model
    assert len((await scene.backend.models.ListModels(pb.ListModelsRequest())).models) == 1


async def test_wrong_digest_is_data_loss_and_starts_from_zero(scene: Scene, tmp_path: Path) -> None:
    messages = scene.messages()
    messages[0].header.sha256 = bytes(32)
    assert isinstance(await refusal(scene.send(messages)), CorruptDataError)
    assert not list((tmp_path / "state" / "uploads").iterdir())
    assert not list((tmp_path / "state").glob("models/*/*_v1"))
    assert await scene.backend.state(scene.training_id) == "UPLOADING"


async def test_wrong_digest_of_a_file_is_refused(scene: Scene) -> None:
    messages = scene.messages()
    messages[0].header.files[1].sha256 = bytes(32)
    error = await refusal(scene.send(messages))
    assert isinstance(error, InvalidUploadError)
    assert "config.json" in error.message


async def test_chunk_with_a_wrong_checksum_is_data_loss_and_not_kept(scene: Scene) -> None:
    messages = scene.messages()
    messages[2].chunk.crc32c ^= 1
    assert isinstance(await refusal(scene.send(messages)), CorruptDataError)
    assert (await scene.query()).committed_size_bytes == 2**20


async def test_wrong_offset_names_the_right_one(scene: Scene) -> None:
    messages = scene.messages()
    del messages[1]
    error = await refusal(scene.send(messages))
    assert isinstance(error, InvalidUploadError)
    assert "must be 0, was 1048576" in error.message
    assert isinstance(await refusal(scene.send(scene.messages(77))), InvalidUploadError)


async def test_fewer_bytes_than_declared_are_refused_and_kept(scene: Scene) -> None:
    error = await refusal(scene.send(scene.messages()[:-1]))
    assert isinstance(error, InvalidUploadError)
    assert str(scene.plan.total_size_bytes) in error.message
    kept = (await scene.query()).committed_size_bytes
    assert kept > 0
    assert (await scene.send(scene.messages(kept))).model.version == 1


async def test_more_bytes_than_declared_are_refused(scene: Scene) -> None:
    extra = pb.UploadModelRequest(chunk=encode_chunk(scene.plan.total_size_bytes, b"more", CODEC_NONE))
    error = await refusal(scene.send([*scene.messages(), extra]))
    assert isinstance(error, InvalidUploadError)
    assert await scene.backend.state(scene.training_id) == "UPLOADING"


@pytest.mark.parametrize(
    "change",
    [
        {"total_size_bytes": 0},
        {"total_size_bytes": 2**50},
        {"sha256": b"short"},
        {"attempt": 0},
        {"attempt": 2},
        {"write_offset": -1},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_header_that_breaks_the_contract_is_refused(scene: Scene, change: dict[str, Any]) -> None:
    messages = scene.messages()
    messages[0].header.MergeFrom(pb.UploadHeader())
    for name, value in change.items():
        setattr(messages[0].header, name, value)
    assert isinstance(await refusal(scene.send(messages)), InvalidUploadError)


async def test_file_list_is_exact(scene: Scene) -> None:
    messages = scene.messages()
    messages[0].header.files[0].name = "../../evil"
    assert isinstance(await refusal(scene.send(messages)), InvalidUploadError)
    assert isinstance(await refusal(scene.send(scene.messages()[1:])), InvalidUploadError)
    assert isinstance(await refusal(scene.send([])), InvalidUploadError)


async def test_second_writer_is_aborted_and_the_first_goes_on(scene: Scene) -> None:
    messages = scene.messages()
    first = scene.backend.models.UploadModel()
    await first.write(messages[0])
    await eventually(lambda: list(scene.backend.app.settings.uploads_dir.glob("*/part")))
    assert isinstance(await refusal(scene.send(messages)), WriteConflictError)
    for message in messages[1:]:
        await first.write(message)
    await first.done_writing()
    assert (await first).model.version == 1


async def test_concurrent_uploads_publish_once(scene: Scene) -> None:
    answers = await asyncio.gather(*(scene.send(scene.messages()) for _ in range(4)), return_exceptions=True)
    done = [answer for answer in answers if isinstance(answer, pb.UploadModelResponse)]
    assert done
    assert {answer.model.name for answer in done} == {done[0].model.name}


async def test_uploads_nobody_waits_for_are_refused(scene: Scene) -> None:
    messages = scene.messages()
    messages[0].header.training_id = "unknown"
    assert isinstance(await refusal(scene.send(messages)), TrainingNotFoundError)
    await scene.backend.cancel(scene.training_id)
    error = await refusal(scene.send(scene.messages()))
    assert isinstance(error, IllegalStateError)
    assert error.metadata["state"] == "CANCELLED"


async def test_import_is_placed_by_its_own_metadata_and_a_damaged_one_is_refused(scene: Scene, tmp_path: Path) -> None:
    write_artifact(tmp_path / "import", make_artifact(name="imported"))
    plan = UploadPlan.of(tmp_path / "import")
    answer = await scene.send(upload_messages(plan))
    assert answer.model.name == "imported/EURUSD_1h_v1"
    assert (await scene.send(upload_messages(plan))).is_duplicate
    (tmp_path / "import" / "model.safetensors").write_bytes(b"no weights")
    damaged = await refusal(scene.send(upload_messages(UploadPlan.of(tmp_path / "import"))))
    assert isinstance(damaged, InvalidUploadError)
    write_artifact(tmp_path / "evil", make_artifact(name="../evil"))
    assert isinstance(await refusal(scene.send(upload_messages(UploadPlan.of(tmp_path / "evil")))), InvalidUploadError)


async def test_models_are_found_and_listed_in_pages(scene: Scene, tmp_path: Path) -> None:
    for number in range(3):
        write_artifact(tmp_path / f"{number}", make_artifact(seed=number))
        await scene.send(upload_messages(UploadPlan.of(tmp_path / f"{number}")))
    models = scene.backend.models
    page = await models.ListModels(pb.ListModelsRequest(page_size=2))
    rest = await models.ListModels(pb.ListModelsRequest(page_size=2, page_token=page.next_page_token))
    assert [model.version for model in (*page.models, *rest.models)] == [3, 2, 1]
    assert rest.next_page_token == ""
    latest = (await models.GetModel(pb.GetModelRequest(name="small/EURUSD_1h_latest"))).model
    assert (latest.version, list(latest.aliases)) == (3, ["latest"])
    assert isinstance(await refusal(models.GetModel(pb.GetModelRequest(name="small/x_v9"))), ModelNotFoundError)
    assert isinstance(await refusal(models.GetModel(pb.GetModelRequest(name="../x"))), InvalidInputError)
    assert isinstance(await refusal(models.ListModels(pb.ListModelsRequest(page_size=-1))), InvalidInputError)
    assert isinstance(await refusal(models.DeleteModel(pb.DeleteModelRequest(name="small"))), NotBuiltError)
