"""ModelService: from proto, one call, to proto."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc.aio
from ktrdr.models.v1 import model_service_pb2 as pb
from ktrdr.models.v1 import model_service_pb2_grpc

from backend_service.model_files import ModelFiles
from backend_service.model_pages import model_page
from backend_service.operations.trainings import Trainings
from backend_service.uploads import UploadReceiver
from ktrdr_core.errors import UnavailableError
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.storage.stored_model import ModelSummary
from ktrdr_core.undisturbed import in_thread
from ktrdr_core.wire.models import model_to_proto

Context = grpc.aio.ServicerContext[Any, Any]

TAKE_TIMEOUT_S = 120.0
"""Of a download; a chunk takes 30 s on a link of 35 kB/s."""


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """The contract is in `model_service.proto`.

    Args:
        storage: The model store.
        uploads: What takes artifacts.
        trainings: Those whose models are no garbage yet.
        take_timeout_s: How long a client may take nothing of a download.
    """

    def __init__(
        self,
        *,
        storage: ModelStorage,
        uploads: UploadReceiver,
        trainings: Trainings,
        take_timeout_s: float = TAKE_TIMEOUT_S,
    ) -> None:
        self._storage = storage
        self._uploads = uploads
        self._trainings = trainings
        self._files = ModelFiles(storage)
        self._take_timeout_s = take_timeout_s
        self._reading_all = asyncio.Lock()  # one version at a time: each takes a thread and the disk for seconds

    async def UploadModel(
        self, request_iterator: AsyncIterator[pb.UploadModelRequest], context: Context
    ) -> pb.UploadModelResponse:
        receipt = await self._uploads.receive(request_iterator)
        return pb.UploadModelResponse(
            model=model_to_proto(receipt.model),
            is_duplicate=receipt.is_duplicate,
            is_kept_aside=receipt.model.is_kept_aside,
        )

    async def QueryUpload(self, request: pb.QueryUploadRequest, context: Context) -> pb.QueryUploadResponse:
        status = await self._uploads.query(request)
        return pb.QueryUploadResponse(
            committed_size_bytes=status.committed_size_bytes,
            is_complete=status.is_complete,
            reusable_files=status.reusable_files,
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        model = await asyncio.to_thread(self._storage.get, request.name)
        return pb.GetModelResponse(model=model_to_proto(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return await asyncio.to_thread(model_page, self._storage, request)

    async def DownloadModel(  # type: ignore[override]  # the form that writes to its context: each write has a limit
        self, request: pb.DownloadModelRequest, context: Context
    ) -> None:
        async with aclosing(self._files.download(request)) as responses:
            async for response in responses:
                await self._write(context, response)

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        await in_thread(self._storage.delete, request.name, force=request.force)
        return pb.DeleteModelResponse()

    async def SetModelAlias(self, request: pb.SetModelAliasRequest, context: Context) -> pb.SetModelAliasResponse:
        expected = request.expected_version if request.HasField("expected_version") else None
        model = await in_thread(
            self._storage.set_alias, request.parent, request.alias, request.version, expected=expected
        )
        return pb.SetModelAliasResponse(model=None if model is None else model_to_proto(model))

    async def VerifyModel(self, request: pb.VerifyModelRequest, context: Context) -> pb.VerifyModelResponse:
        async with self._reading_all:
            model, checks = await in_thread(self._storage.verify, request.name)
        return pb.VerifyModelResponse(
            model=model_to_proto(model),
            checks=[
                pb.FileCheck(name=check.name, is_sound=not check.problem, problem=check.problem) for check in checks
            ],
            is_sound=not any(check.problem for check in checks),
        )

    async def CollectGarbage(self, request: pb.CollectGarbageRequest, context: Context) -> pb.CollectGarbageResponse:
        training_ids = {record.training_id for record in self._trainings.active}

        def is_of_active_training(model: ModelSummary) -> bool:
            return model.training_id in training_ids

        collect = partial(
            self._storage.collect_garbage,
            keep_versions=request.keep_versions if request.HasField("keep_versions") else None,
            dry_run=request.dry_run,
            is_protected=is_of_active_training,
        )
        if request.HasField("kept_aside_days"):
            collect = partial(collect, kept_aside_days=request.kept_aside_days)
        removed = await in_thread(collect)
        return pb.CollectGarbageResponse(
            removed=[pb.Garbage(name=each.name, size_bytes=each.size_bytes, cause=each.cause) for each in removed]
        )

    async def _write(self, context: Context, response: pb.DownloadModelResponse) -> None:
        try:
            async with asyncio.timeout(self._take_timeout_s):
                await context.write(response)
        except TimeoutError:
            raise UnavailableError(
                f"nothing of the file was taken for {self._take_timeout_s:g} s; go on from the bytes that have arrived"
            ) from None
