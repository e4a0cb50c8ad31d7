"""ModelService of a real backend, but for uploads: every line of its contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from ktrdr.models.v1 import codec_pb2, model_order_pb2, model_pb2
from ktrdr.models.v1 import model_service_pb2 as pb
from ktrdr.models.v1.model_service_pb2_grpc import ModelServiceStub, add_ModelServiceServicer_to_server

from backend_service.servicers.models import ModelServicer
from ktrdr_core.errors import (
    CorruptDataError,
    InvalidInputError,
    ModelNotFoundError,
    ModelReferencedError,
    NotFoundError,
    UnavailableError,
    WriteConflictError,
)
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk
from ktrdr_core.storage.artifact import ModelArtifact, write_artifact
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.stored_model import StoredModel
from tests.kit.artifacts import make_artifact
from tests.kit.backend import Backend, a_spec, refusal, running_backend
from tests.kit.eventually import eventually
from tests.kit.grpc_server import channel_to

SET = "small/EURUSD_1h"


@dataclass
class Shop:
    """A backend and the storage it has."""

    backend: Backend
    storage: ModelStorage
    tmp_path: Path

    def publish(
        self, artifact: ModelArtifact | None = None, *, training_id: str = "", aside: bool = False
    ) -> StoredModel:
        directory = self.tmp_path / f"artifact-{len(list(self.tmp_path.iterdir()))}"
        write_artifact(directory, artifact or make_artifact())
        if aside:
            return self.storage.keep_aside(directory, training_id=training_id, attempt=1)
        return self.storage.publish(directory, training_id=training_id, attempt=1 if training_id else 0)

    async def get(self, name: str) -> model_pb2.Model:
        model: model_pb2.Model = (await self.backend.models.GetModel(pb.GetModelRequest(name=name))).model
        return model

    async def list(self, **request: Any) -> list[str]:
        response = await self.backend.models.ListModels(pb.ListModelsRequest(**request))
        return [model.name for model in response.models]

    async def download(self, **request: Any) -> tuple[model_pb2.ModelFile, bytes]:
        responses = aiter(self.backend.models.DownloadModel(pb.DownloadModelRequest(**request)))
        first, raw = await anext(responses), b""
        offset = request.get("read_offset", 0)
        async for response in responses:
            raw += decode_chunk(response.chunk, offset + len(raw))
        return first.file, raw


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    (tmp_path / "artifacts").mkdir()
    async with running_backend(tmp_path) as backend:
        yield Shop(backend, ModelStorage(backend.app.settings.models_dir), tmp_path / "artifacts")


def a_large_artifact(num_mib: int = 3) -> ModelArtifact:
    small = make_artifact()
    weights = np.random.default_rng(5).normal(size=(num_mib, 1 << 18)).astype(np.float32)
    return ModelArtifact(
        tensors={**small.tensors, "layers.1.weight": weights},
        config=small.config,
        metrics=small.metrics,
        features=small.features,
        metadata=small.metadata,
    )


# GetModel


async def test_model_is_got_by_each_of_its_names(shop: Shop) -> None:
    first, second = shop.publish(training_id="t1"), shop.publish(make_artifact(seed=2))
    shop.storage.set_alias(SET, "champion", 1)
    assert (await shop.get(first.name)).model_id == first.model_id
    assert (await shop.get(f"{SET}_champion")).name == first.name
    assert (await shop.get(first.model_id)).name == first.name
    for name in ("small", f"{SET}_latest", second.name):
        assert (await shop.get(name)).name == second.name
    assert list((await shop.get(first.name)).aliases) == ["champion"]


async def test_model_is_got_whole_with_its_lineage(shop: Shop) -> None:
    stored = shop.publish(make_artifact(seed=7), training_id="t1")
    model = await shop.get(stored.name)
    assert model.HasField("evaluation")
    assert model.lineage.seed == 7
    assert (model.training_id, model.attempt, model.version) == ("t1", 1, 1)
    assert model.size_bytes == sum(file.size_bytes for file in model.files) == stored.size_bytes
    assert [feature.name for feature in model.features] == list(stored.feature_importance)
    assert not model.is_kept_aside


async def test_damaged_weights_do_not_keep_a_model_from_being_got(shop: Shop) -> None:
    """Getting never reads the weights, which may be gigabytes."""
    stored = shop.publish()
    (stored.path / "model.safetensors").write_bytes(b"damaged")
    assert (await shop.get(stored.name)).name == stored.name


async def test_unknown_model_is_not_found(shop: Shop) -> None:
    for name in ("nothing", f"{SET}_v9", f"{SET}_champion", "aside/t1-1"):
        assert isinstance(await refusal(shop.get(name)), NotFoundError), name
    for name in ("", "../../etc", "small/../../x"):
        assert isinstance(await refusal(shop.get(name)), InvalidInputError), name


# ListModels


async def test_pages_go_on_where_they_ended_although_models_come(shop: Shop) -> None:
    names = [shop.publish(make_artifact(seed=seed)).name for seed in range(5)]
    found: list[str] = []
    token = ""
    while True:
        response = await shop.backend.models.ListModels(pb.ListModelsRequest(page_size=2, page_token=token))
        found.extend(model.name for model in response.models)
        assert len(response.models) <= 2
        assert not any(model.HasField("evaluation") for model in response.models)
        token = response.next_page_token
        if not token:
            break
        shop.publish(make_artifact(seed=100 + len(found)))
    assert found == names[::-1]


async def test_token_of_another_query_or_of_nobody_is_refused(shop: Shop) -> None:
    for seed in range(3):
        shop.publish(make_artifact(seed=seed))
    response = await shop.backend.models.ListModels(pb.ListModelsRequest(page_size=1))
    token = response.next_page_token
    for request in (
        pb.ListModelsRequest(page_token=token, symbol="EURUSD"),
        pb.ListModelsRequest(page_token=token, order=model_order_pb2.MODEL_ORDER_NAME),
        pb.ListModelsRequest(page_token="nonsense"),  # noqa: S106
        pb.ListModelsRequest(page_size=1001),
        pb.ListModelsRequest(page_size=-1),
        pb.ListModelsRequest(order=77),  # type: ignore[arg-type]
    ):
        assert isinstance(await refusal(shop.backend.models.ListModels(request)), InvalidInputError), request


async def test_filters_reach_the_store(shop: Shop) -> None:
    first = shop.publish(training_id="t1")
    second = shop.publish(make_artifact(name="other", symbols=("GBPUSD", "EURUSD")))
    shop.publish(training_id="t9", aside=True)
    shop.storage.set_alias(SET, "champion", 1)
    assert await shop.list() == [second.name, first.name]
    assert await shop.list(strategy_name="other") == [second.name]
    assert await shop.list(symbol="GBPUSD") == [second.name]
    assert await shop.list(symbol="EURUSD", timeframe="1h") == [second.name, first.name]
    assert await shop.list(timeframe="4h") == []
    assert await shop.list(training_id="t1") == [first.name]
    assert await shop.list(alias="champion") == [first.name]
    assert await shop.list(series_digest="ab" * 32) == []
    assert await shop.list(kept_aside=True) == ["aside/t9-1"]
    assert await shop.list(order=model_order_pb2.MODEL_ORDER_NAME) == [second.name, first.name]
    now = datetime.now(UTC)
    later, before = Timestamp(), Timestamp()
    later.FromDatetime(now + timedelta(hours=1))
    before.FromDatetime(now - timedelta(hours=1))
    assert await shop.list(start_time=later) == await shop.list(end_time=before) == []
    assert len(await shop.list(start_time=before, end_time=later)) == 2


async def test_page_that_is_too_large_for_a_message_has_fewer_models(shop: Shop) -> None:
    small = make_artifact()
    names = [f"feature_{index:05}_{'x' * 100}" for index in range(8_000)]
    features = {
        **small.features,
        "feature_names": names,
        "feature_importance": dict.fromkeys(names, 0.0),
    }
    for seed in range(4):
        own = make_artifact(seed=seed)
        shop.publish(
            ModelArtifact(
                tensors=own.tensors,
                config=own.config,
                metrics=own.metrics,
                features=features,
                metadata=own.metadata,
            )
        )
    found: list[int] = []
    sizes: list[int] = []
    token = ""
    while True:
        response = await shop.backend.models.ListModels(pb.ListModelsRequest(page_token=token))
        assert response.ByteSize() < 3 << 20
        sizes.append(len(response.models))
        found.extend(model.version for model in response.models)
        token = response.next_page_token
        if not token:
            break
    assert found == [4, 3, 2, 1]
    assert 1 < len(sizes) < 4


# DownloadModel


async def test_every_file_is_downloaded_as_it_is(shop: Shop) -> None:
    stored = shop.publish(a_large_artifact())
    for file in stored.files:
        told, raw = await shop.download(name=stored.name, file=file.name)
        assert raw == (stored.path / file.name).read_bytes()
        assert (told.name, told.size_bytes, told.sha256.hex()) == (file.name, file.size_bytes, file.sha256)


@pytest.mark.parametrize("skip", [1, CHUNK_SIZE_BYTES - 1, CHUNK_SIZE_BYTES, 2 * CHUNK_SIZE_BYTES + 7, -1, 0])
async def test_download_goes_on_from_an_offset(shop: Shop, skip: int) -> None:
    stored = shop.publish(a_large_artifact())
    whole = (stored.path / "model.safetensors").read_bytes()
    offset = skip if skip > 0 else len(whole) + skip
    _, raw = await shop.download(name="small", file="model.safetensors", read_offset=offset)
    assert raw == whole[offset:]


@pytest.mark.parametrize(
    ("codec", "kinds"),
    [
        (codec_pb2.CODEC_NONE, {codec_pb2.CODEC_NONE}),
        (codec_pb2.CODEC_GZIP, {codec_pb2.CODEC_GZIP}),
        (codec_pb2.CODEC_ZSTD, {codec_pb2.CODEC_ZSTD}),
        (codec_pb2.CODEC_UNSPECIFIED, {codec_pb2.CODEC_ZSTD}),
    ],
    ids=["none", "gzip", "zstd", "chosen"],
)
async def test_chunks_have_the_codec_that_is_asked_for(shop: Shop, codec: Any, kinds: set[int]) -> None:
    shop.publish()
    call = shop.backend.models.DownloadModel(pb.DownloadModelRequest(name="small", file="metrics.json", codec=codec))
    responses = [response async for response in call]
    assert {response.chunk.codec for response in responses[1:]} == kinds


async def test_what_cannot_be_downloaded_is_refused(shop: Shop) -> None:
    stored = shop.publish()
    size = stored.files[0].size_bytes
    for request, error in (
        ({"name": "small", "file": "nope.bin"}, NotFoundError),
        ({"name": "small", "file": ".publication.json"}, NotFoundError),
        ({"name": "small", "file": "../EURUSD_1h.versions"}, (NotFoundError, InvalidInputError)),
        ({"name": "nothing", "file": "config.json"}, ModelNotFoundError),
        ({"name": "small", "file": stored.files[0].name, "read_offset": size + 1}, InvalidInputError),
        ({"name": "small", "file": stored.files[0].name, "read_offset": -1}, InvalidInputError),
        ({"name": "small", "file": stored.files[0].name, "codec": 9}, InvalidInputError),
    ):
        call = shop.backend.models.DownloadModel(pb.DownloadModelRequest(**request))
        assert isinstance(await refusal(call.read()), error), request


async def test_file_of_another_size_than_published_is_data_loss(shop: Shop) -> None:
    stored = shop.publish()
    (stored.path / "config.json").write_bytes(b"{}")
    call = shop.backend.models.DownloadModel(pb.DownloadModelRequest(name="small", file="config.json"))
    error = await refusal(call.read())
    assert isinstance(error, CorruptDataError)
    assert "config.json" in error.message


async def test_file_that_ends_early_while_it_is_read_is_data_loss(shop: Shop) -> None:
    stored = shop.publish(a_large_artifact(16))
    responses = aiter(
        shop.backend.models.DownloadModel(
            pb.DownloadModelRequest(name="small", file="model.safetensors", codec=codec_pb2.CODEC_NONE)
        )
    )
    await anext(responses)
    with (stored.path / "model.safetensors").open("r+b") as file:
        file.truncate(12 << 20)

    async def read_on() -> None:
        async for _ in responses:
            pass

    error = await refusal(read_on())
    assert isinstance(error, CorruptDataError)
    assert "ends after 12582912" in error.message


async def test_download_goes_on_to_its_end_although_the_model_is_deleted(shop: Shop) -> None:
    stored = shop.publish(a_large_artifact(16))
    whole = (stored.path / "model.safetensors").read_bytes()
    responses = aiter(
        shop.backend.models.DownloadModel(
            pb.DownloadModelRequest(name=stored.name, file="model.safetensors", codec=codec_pb2.CODEC_NONE)
        )
    )
    await anext(responses)
    await shop.backend.models.DeleteModel(pb.DeleteModelRequest(name=stored.name))
    assert isinstance(await refusal(shop.get(stored.name)), ModelNotFoundError)
    raw = b"".join([response.chunk.data async for response in responses])
    assert raw == whole


async def test_download_that_is_broken_off_holds_nothing_open(shop: Shop) -> None:
    stored = shop.publish(a_large_artifact(16))
    call = shop.backend.models.DownloadModel(pb.DownloadModelRequest(name=stored.name, file="model.safetensors"))
    await call.read()
    assert _open_files(stored.path)
    call.cancel()
    await eventually(lambda: not _open_files(stored.path), what="the file to be closed")


async def test_client_that_takes_nothing_is_sent_away(shop: Shop) -> None:
    stored = shop.publish(a_large_artifact(32))
    unused: Any = None
    servicer = ModelServicer(storage=shop.storage, uploads=unused, trainings=unused, take_timeout_s=0.2)
    async with channel_to(lambda server: add_ModelServiceServicer_to_server(servicer, server)) as channel:
        stub: Any = ModelServiceStub(channel)
        responses = aiter(stub.DownloadModel(pb.DownloadModelRequest(name=stored.name, file="model.safetensors")))
        await anext(responses)
        assert _open_files(stored.path)
        await eventually(lambda: not _open_files(stored.path), what="the file to be closed")

        async def read_on() -> None:
            async for _ in responses:
                pass

        error = await refusal(read_on())
    assert isinstance(error, UnavailableError)
    assert "nothing of the file was taken for 0.2 s" in error.message


def _open_files(directory: Path) -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


# DeleteModel


async def test_deleted_model_is_gone_and_latest_moves(shop: Shop) -> None:
    first, second = shop.publish(), shop.publish(make_artifact(seed=2))
    await shop.backend.models.DeleteModel(pb.DeleteModelRequest(name=second.name))
    assert (await shop.get(f"{SET}_latest")).name == first.name
    assert await shop.list() == [first.name]
    error = await refusal(shop.backend.models.DeleteModel(pb.DeleteModelRequest(name=second.name)))
    assert isinstance(error, ModelNotFoundError)


async def test_model_that_an_alias_points_at_is_deleted_by_force_only(shop: Shop) -> None:
    stored = shop.publish()
    shop.storage.set_alias(SET, "champion", 1)
    error = await refusal(shop.backend.models.DeleteModel(pb.DeleteModelRequest(name=stored.name)))
    assert isinstance(error, ModelReferencedError)
    assert error.metadata["aliases"] == "champion"
    assert await shop.list() == [stored.name]
    await shop.backend.models.DeleteModel(pb.DeleteModelRequest(name=stored.name, force=True))
    assert await shop.list() == []
    assert isinstance(await refusal(shop.get(f"{SET}_champion")), ModelNotFoundError)


async def test_alias_strategy_or_identity_is_no_name_to_delete_by(shop: Shop) -> None:
    stored = shop.publish()
    for name in ("small", f"{SET}_latest", stored.model_id):
        error = await refusal(shop.backend.models.DeleteModel(pb.DeleteModelRequest(name=name)))
        assert isinstance(error, InvalidInputError), name
    assert await shop.list() == [stored.name]


async def test_what_is_kept_aside_is_shown_downloaded_and_deleted(shop: Shop) -> None:
    kept = shop.publish(training_id="t1", aside=True)
    model = await shop.get("aside/t1-1")
    assert (model.is_kept_aside, model.version) == (True, 0)
    _, raw = await shop.download(name=kept.name, file="config.json")
    assert raw == (kept.path / "config.json").read_bytes()
    await shop.backend.models.DeleteModel(pb.DeleteModelRequest(name="aside/t1-1"))
    assert await shop.list(kept_aside=True) == []


# SetModelAlias


async def test_alias_is_set_moved_and_removed(shop: Shop) -> None:
    for seed in range(2):
        shop.publish(make_artifact(seed=seed))

    async def point(version: int, **expected: int) -> pb.SetModelAliasResponse:
        request = pb.SetModelAliasRequest(parent=SET, alias="champion", version=version, **expected)
        answer: pb.SetModelAliasResponse = await shop.backend.models.SetModelAlias(request)
        return answer

    assert (await point(1, expected_version=0)).model.version == 1
    assert set((await point(2, expected_version=1)).model.aliases) == {"latest", "champion"}
    assert (await shop.get(f"{SET}_champion")).version == 2
    error = await refusal(point(1, expected_version=1))
    assert isinstance(error, WriteConflictError)
    assert error.metadata["version"] == "2"
    assert (await shop.get(f"{SET}_champion")).version == 2
    assert isinstance(await refusal(point(1, expected_version=0)), WriteConflictError)
    assert (await point(1)).model.version == 1
    assert not (await point(0)).HasField("model")
    assert isinstance(await refusal(shop.get(f"{SET}_champion")), ModelNotFoundError)


async def test_of_many_that_move_an_alias_at_once_one_succeeds(shop: Shop) -> None:
    for seed in range(8):
        shop.publish(make_artifact(seed=seed))
    requests = [
        pb.SetModelAliasRequest(parent=SET, alias="champion", version=version, expected_version=0)
        for version in range(1, 9)
    ]
    answers = await asyncio.gather(*map(shop.backend.models.SetModelAlias, requests), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1


@pytest.mark.parametrize("alias", ["latest", "v3", "", "../x", "Champion!", "a/b", "x" * 200])
async def test_alias_that_is_no_name_or_reserved_is_refused(shop: Shop, alias: str) -> None:
    shop.publish()
    request = pb.SetModelAliasRequest(parent=SET, alias=alias, version=1)
    assert isinstance(await refusal(shop.backend.models.SetModelAlias(request)), InvalidInputError)


async def test_alias_of_no_version_is_not_found(shop: Shop) -> None:
    shop.publish()
    for parent, version in ((SET, 9), ("nothing/EURUSD_1h", 1)):
        request = pb.SetModelAliasRequest(parent=parent, alias="champion", version=version)
        assert isinstance(await refusal(shop.backend.models.SetModelAlias(request)), ModelNotFoundError)


# VerifyModel


async def test_sound_model_is_verified_file_by_file(shop: Shop) -> None:
    stored = shop.publish()
    answer = await shop.backend.models.VerifyModel(pb.VerifyModelRequest(name="small"))
    assert answer.is_sound
    assert answer.model.name == stored.name
    assert [(check.name, check.is_sound, check.problem) for check in answer.checks] == [
        (file.name, True, "") for file in stored.files
    ]


async def test_changed_missing_and_added_files_are_named(shop: Shop) -> None:
    stored = shop.publish()
    weights = bytearray((stored.path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (stored.path / "model.safetensors").write_bytes(weights)
    (stored.path / "extra.bin").write_bytes(b"?")
    answer = await shop.backend.models.VerifyModel(pb.VerifyModelRequest(name="small"))
    assert not answer.is_sound
    assert {check.name for check in answer.checks if not check.is_sound} == {"model.safetensors", "extra.bin"}
    assert all(check.problem for check in answer.checks if not check.is_sound)
    assert answer.checks[-1].name == "extra.bin"


# CollectGarbage


async def test_garbage_is_told_first_and_then_removed(shop: Shop) -> None:
    for seed in range(4):
        shop.publish(make_artifact(seed=seed))
    shop.storage.set_alias(SET, "champion", 1)

    async def collect(**request: Any) -> list[str]:
        answer = await shop.backend.models.CollectGarbage(pb.CollectGarbageRequest(**request))
        assert all(each.size_bytes and each.cause for each in answer.removed)
        return [each.name for each in answer.removed]

    assert await collect() == []
    told = await collect(dry_run=True, keep_versions=1)
    assert sorted(told) == [f"{SET}_v2", f"{SET}_v3"]
    assert len(await shop.list()) == 4
    assert await collect(keep_versions=1) == told
    assert sorted(await shop.list()) == [f"{SET}_v1", f"{SET}_v4"]


async def test_models_of_trainings_under_way_are_never_garbage(shop: Shop) -> None:
    training_id = await shop.backend.train(a_spec())
    await shop.backend.until(training_id, "RUNNING")
    shop.publish(training_id=training_id)
    shop.publish(make_artifact(seed=2))
    request = pb.CollectGarbageRequest(keep_versions=1)
    assert not (await shop.backend.models.CollectGarbage(request)).removed
    await shop.backend.cancel(training_id)
    assert [each.name for each in (await shop.backend.models.CollectGarbage(request)).removed] == [f"{SET}_v1"]


async def test_model_that_is_downloaded_is_no_garbage(shop: Shop) -> None:
    stored = shop.publish(a_large_artifact(16))
    shop.publish()
    call = shop.backend.models.DownloadModel(pb.DownloadModelRequest(name=stored.name, file="model.safetensors"))
    await call.read()
    request = pb.CollectGarbageRequest(keep_versions=1)
    assert not (await shop.backend.models.CollectGarbage(request)).removed
    call.cancel()

    async def removed() -> list[str]:
        return [each.name for each in (await shop.backend.models.CollectGarbage(request)).removed]

    assert await eventually(removed) == [stored.name]


async def test_limits_below_one_are_refused(shop: Shop) -> None:
    for request in (
        pb.CollectGarbageRequest(keep_versions=0),
        pb.CollectGarbageRequest(kept_aside_days=0),
        pb.CollectGarbageRequest(kept_aside_days=-1),
    ):
        assert isinstance(await refusal(shop.backend.models.CollectGarbage(request)), InvalidInputError)
