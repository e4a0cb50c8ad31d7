"""ModelService: from proto, one call, to proto."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from ktrdr.models.v1 import model_pb2, model_service_pb2_grpc
from ktrdr.models.v1 import model_service_pb2 as pb

from backend_service.operations.pages import MAX_PAGE_BYTES, check_page_size, decode_page_token, encode_page_token
from backend_service.uploads import UploadReceiver
from ktrdr_core.errors import NotBuiltError
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.wire.to_proto import model_to_proto

Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """The contract is in `model_service.proto`."""

    def __init__(self, *, storage: ModelStorage, uploads: UploadReceiver) -> None:
        self._storage = storage
        self._uploads = uploads

    async def UploadModel(
        self, request_iterator: AsyncIterator[pb.UploadModelRequest], context: Context
    ) -> pb.UploadModelResponse:
        model, is_duplicate = await self._uploads.receive(request_iterator)
        return pb.UploadModelResponse(model=model_to_proto(model), is_duplicate=is_duplicate)

    async def QueryUpload(self, request: pb.QueryUploadRequest, context: Context) -> pb.QueryUploadResponse:
        status = await self._uploads.query(request.training_id, request.attempt, request.sha256)
        return pb.QueryUploadResponse(committed_size_bytes=status.committed_size_bytes, is_complete=status.is_complete)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        model = await asyncio.to_thread(self._storage.load, request.name)
        return pb.GetModelResponse(model=model_to_proto(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        size = check_page_size(request.page_size)
        skipped = decode_page_token(request.page_token) if request.page_token else 0
        models = await asyncio.to_thread(self._storage.list, request.strategy_name or None)
        page: list[model_pb2.Model] = []
        size_bytes = 0
        for model in models[skipped : skipped + size]:
            message = model_to_proto(model, with_evaluation=False)
            size_bytes += message.ByteSize()
            if page and size_bytes > MAX_PAGE_BYTES:
                break
            page.append(message)
        next_position = skipped + len(page)
        is_last = next_position >= len(models)
        return pb.ListModelsResponse(models=page, next_page_token="" if is_last else encode_page_token(next_position))

    async def DownloadModel(
        self, request: pb.DownloadModelRequest, context: Context
    ) -> AsyncIterator[pb.DownloadModelResponse]:
        raise NotBuiltError("DownloadModel is not built in this version; copy the model's directory, see GetModel")
        yield pb.DownloadModelResponse()  # makes this a generator, as the service wants

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        raise NotBuiltError("DeleteModel is not built in this version; models are kept")

    async def SetModelAlias(self, request: pb.SetModelAliasRequest, context: Context) -> pb.SetModelAliasResponse:
        raise NotBuiltError("SetModelAlias is not built in this version; the only alias is latest")
