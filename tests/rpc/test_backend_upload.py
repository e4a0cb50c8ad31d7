"""UploadModel and QueryUpload: every line of their contract."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ktrdr.models.v1 import model_service_pb2 as pb
from ktrdr.models.v1.codec_pb2 import CODEC_NONE
from ktrdr.models.v1.model_service_pb2_grpc import ModelServiceStub

from backend_service.upload_log import sound_size_bytes
from ktrdr_core.domain.progress import StateDetail
from ktrdr_core.domain.states import TrainingState
from ktrdr_core.errors import (
    CorruptDataError,
    IllegalStateError,
    InvalidInputError,
    InvalidUploadError,
    ModelNotFoundError,
    QuotaExceededError,
    TrainingNotFoundError,
    UploadNotFoundError,
    WriteConflictError,
)
from ktrdr_core.rpc.channel import open_sync_channel
from ktrdr_core.rpc.chunks import encode_chunk
from ktrdr_core.rpc.send_upload import ArtifactSender
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
        answer: pb.QueryUploadResponse = await self.backend.models.QueryUpload(self.plan.query())
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
        return any(sound_size_bytes(path) >= size for path in uploads.glob("*"))

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
    complete = pb.QueryUploadResponse(committed_size_bytes=scene.plan.total_size_bytes, is_complete=True)
    assert await scene.query() == complete
    without_files = scene.plan.query()
    del without_files.files[:]
    assert await scene.backend.models.QueryUpload(without_files) == complete
    without_files.sha256 = bytes(32)
    assert isinstance(await refusal(scene.backend.models.QueryUpload(without_files)), UploadNotFoundError)


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
    await eventually(lambda: list(scene.backend.app.settings.uploads_dir.glob("*/mark")))
    assert isinstance(await refusal(scene.send(messages)), WriteConflictError)
    for message in messages[1:]:
        await first.write(message)
    await first.done_writing()
    assert (await first).model.version == 1


async def test_uploads_that_are_not_whole_are_bounded(tmp_path: Path) -> None:
    for number in range(3):
        write_artifact(tmp_path / f"{number}", make_artifact(seed=number))
    plans = [UploadPlan.of(tmp_path / f"{number}") for number in range(3)]
    size = plans[0].total_size_bytes
    async with running_backend(tmp_path, max_partial_uploads=1, max_upload_bytes=size + 100) as backend:
        scene = Scene(backend, FakeTrainer(tmp_path), "", plans[0])
        await refusal(scene.send(scene.messages()[:-1]))  # a chunk is missing
        refused = await refusal(scene.send(upload_messages(plans[1])))
        assert isinstance(refused, QuotaExceededError)
        assert "1 uploads of imports are not whole yet and the limit is 1" in refused.message
        assert (await scene.send(scene.messages())).model.version == 1
        assert (await scene.send(upload_messages(plans[1]))).model.version == 2
        messages = list(upload_messages(plans[2]))
        messages[0].header.total_size_bytes += 1_000
        messages[0].header.files[0].size_bytes += 1_000
        assert isinstance(await refusal(scene.send(messages)), InvalidUploadError)


async def test_a_full_store_takes_no_models(tmp_path: Path) -> None:
    write_artifact(tmp_path / "0", make_artifact())
    plan = UploadPlan.of(tmp_path / "0")
    async with running_backend(tmp_path, max_store_bytes=plan.total_size_bytes - 1) as backend:
        scene = Scene(backend, FakeTrainer(tmp_path), "", plan)
        assert isinstance(await refusal(scene.send(scene.messages())), QuotaExceededError)
        assert not list(backend.app.settings.uploads_dir.glob("*"))


async def test_concurrent_uploads_publish_once(scene: Scene) -> None:
    answers = await asyncio.gather(*(scene.send(scene.messages()) for _ in range(4)), return_exceptions=True)
    done = [answer for answer in answers if isinstance(answer, pb.UploadModelResponse)]
    assert done
    assert {answer.model.name for answer in done} == {done[0].model.name}


async def test_uploads_of_no_training_are_refused(scene: Scene) -> None:
    messages = scene.messages()
    messages[0].header.training_id = "unknown"
    assert isinstance(await refusal(scene.send(messages)), TrainingNotFoundError)


async def until_kept_aside(scene: Scene, answer: pb.UploadModelResponse) -> None:
    """Check that an artifact is kept aside, and that the training, which was cancelled, is as it was."""
    name = f"aside/{scene.training_id}-1"
    assert (answer.is_kept_aside, answer.model.name, answer.model.version) == (True, name, 0)
    assert list((await scene.backend.models.ListModels(pb.ListModelsRequest())).models) == []
    aside = (await scene.backend.models.ListModels(pb.ListModelsRequest(kept_aside=True))).models
    assert [model.name for model in aside] == [name]
    training = await scene.backend.get(scene.training_id)
    assert (await scene.backend.state(scene.training_id), training.result.model_path) == ("CANCELLED", "")
    assert not list(scene.backend.app.settings.uploads_dir.iterdir())


async def test_artifact_of_a_training_that_ended_otherwise_is_kept_aside(scene: Scene) -> None:
    await scene.backend.cancel(scene.training_id)
    await until_kept_aside(scene, await scene.send(scene.messages()))
    again = await scene.send(scene.messages(scene.plan.total_size_bytes))
    assert (again.is_kept_aside, again.is_duplicate) == (True, True)
    assert (await scene.query()).is_complete


async def test_training_that_ends_while_the_bytes_come_has_its_artifact_kept_aside(scene: Scene) -> None:
    *first, last = scene.messages()
    upload = scene.backend.models.UploadModel()
    for message in first:
        await upload.write(message)
    await eventually(lambda: list(scene.backend.app.settings.uploads_dir.glob("*/mark")))
    await scene.backend.cancel(scene.training_id)
    await upload.write(last)
    await upload.done_writing()
    await until_kept_aside(scene, await upload)


async def test_files_the_store_has_are_shared_and_not_sent(scene: Scene, tmp_path: Path) -> None:
    first = (await scene.send(scene.messages())).model
    write_artifact(tmp_path / "again", dataclasses.replace(a_large_artifact(), metadata=make_artifact().metadata))
    plan = UploadPlan.of(tmp_path / "again")
    status = await scene.backend.models.QueryUpload(plan.query())
    reused = ["model.safetensors", "config.json", "metrics.json", "features.json"]
    assert (list(status.reusable_files), status.committed_size_bytes) == (reused, 0)
    messages = list(upload_messages(plan, reused=reused))
    assert sum(message.chunk.raw_size_bytes for message in messages) == plan.files[-1].size_bytes
    second = (await scene.send(messages)).model
    assert (second.version, second.artifact_digest) == (2, first.artifact_digest)
    paths = [Path(model.path) / "model.safetensors" for model in (first, second)]
    assert paths[0].samefile(paths[1])
    assert (await scene.backend.models.VerifyModel(pb.VerifyModelRequest(name=second.name))).is_sound


async def test_a_stream_that_announced_the_digest_for_other_files_is_not_in_the_way(scene: Scene) -> None:
    messages = scene.messages()
    first, second = messages[0].header.files[:2]
    first.size_bytes, second.size_bytes = first.size_bytes + 1, second.size_bytes - 1
    assert isinstance(await refusal(scene.send(messages[:-1])), InvalidUploadError)
    assert isinstance(await refusal(scene.query()), UploadNotFoundError)
    address = f"127.0.0.1:{scene.backend.app.port}"
    assert (await ArtifactSender(scene.plan, lambda: address).send()).model.version == 1


async def test_a_file_that_has_left_the_store_is_asked_for(scene: Scene) -> None:
    error = await refusal(scene.send(upload_messages(scene.plan, reused=["model.safetensors"])))
    assert isinstance(error, IllegalStateError)
    assert "model.safetensors" in error.message
    assert (await scene.send(scene.messages())).model.version == 1


async def test_a_damaged_file_of_the_store_is_not_taken(scene: Scene, tmp_path: Path) -> None:
    first = (await scene.send(scene.messages())).model
    with (Path(first.path) / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    write_artifact(tmp_path / "again", dataclasses.replace(a_large_artifact(), metadata=make_artifact().metadata))
    address = f"127.0.0.1:{scene.backend.app.port}"
    sender = ArtifactSender(UploadPlan.of(tmp_path / "again"), lambda: address)
    model = (await sender.send()).model
    assert model.version == 2
    assert (await scene.backend.models.VerifyModel(pb.VerifyModelRequest(name=model.name))).is_sound


async def test_names_of_files_that_are_not_sent_are_checked(scene: Scene) -> None:
    for names in (["../../evil"], ["config.json", "config.json"], ["model.pt"]):
        messages = scene.messages()
        messages[0].header.reused_files.extend(names)
        assert isinstance(await refusal(scene.send(messages)), InvalidUploadError)


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
