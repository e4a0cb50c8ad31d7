"""A ModelService that keeps uploads in memory and breaks where a test says."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from ktrdr.models.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc

from ktrdr_core.errors import (
    CorruptDataError,
    IllegalStateError,
    InvalidUploadError,
    KtrdrError,
    NotBuiltError,
    UploadNotFoundError,
)
from ktrdr_core.rpc.chunks import decode_chunk


class ModelSink(model_service_pb2_grpc.ModelServiceServicer):
    """Accepts artifacts by the contract of `UploadModel`.

    Attributes:
        published: Artifacts that were published, by SHA-256.
        headers: The header of each stream.
        break_after_chunks: Streams break with `error` after so many chunks; None never.
        error: What a broken stream, or one that `refuses`, answers.
        refusals_left: How many streams are refused with `error` at the header.
        stored: Content of files that need not be sent, by name; those in `gone` are offered and refused.
        keeps_aside: What arrives is kept aside.
        codecs: Codecs of all chunks that came.
        hold: When set, a complete upload waits for it before it is published, and again (`hold_answer`) after.
    """

    def __init__(self) -> None:
        self.parts: dict[bytes, bytearray] = {}
        self.published: dict[bytes, bytes] = {}
        self.headers: list[model_service_pb2.UploadHeader] = []
        self.break_after_chunks: int | None = None
        self.error: KtrdrError = CorruptDataError("broken on purpose")
        self.refusals_left = 0
        self.stored: dict[str, bytes] = {}
        self.gone: set[str] = set()
        self.keeps_aside = False
        self.codecs: set[int] = set()
        self.hold: asyncio.Event | None = None
        self.hold_answer: asyncio.Event | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, server)

    async def QueryUpload(
        self, request: model_service_pb2.QueryUploadRequest, context: Any
    ) -> model_service_pb2.QueryUploadResponse:
        if request.sha256 in self.published:
            size = len(self.published[request.sha256])
            return model_service_pb2.QueryUploadResponse(committed_size_bytes=size, is_complete=True)
        reusable = [
            file.name
            for file in request.files
            if file.name in self.gone or _sha256(self.stored.get(file.name, b"")) == file.sha256
        ]
        if request.sha256 not in self.parts and not reusable:
            raise UploadNotFoundError("no such upload")
        size = len(self.parts.get(request.sha256, b""))
        return model_service_pb2.QueryUploadResponse(committed_size_bytes=size, reusable_files=reusable)

    async def UploadModel(
        self, request_iterator: AsyncIterator[model_service_pb2.UploadModelRequest], context: Any
    ) -> model_service_pb2.UploadModelResponse:
        header = (await anext(request_iterator)).header
        self.headers.append(header)
        if self.refusals_left > 0:
            self.refusals_left -= 1
            raise self.error
        if self.gone & set(header.reused_files):
            raise IllegalStateError(f"{self.gone} are not there any more")
        if header.sha256 in self.published:
            return model_service_pb2.UploadModelResponse(
                model=self._model(header), is_duplicate=True, is_kept_aside=self.keeps_aside
            )
        part = self.parts.setdefault(header.sha256, bytearray())
        if header.write_offset != len(part):
            raise InvalidUploadError(f"write_offset must be {len(part)}, was {header.write_offset}")
        num_chunks = 0
        self._add_stored(part, header)
        async for request in request_iterator:
            if num_chunks == self.break_after_chunks:
                raise self.error
            part += decode_chunk(request.chunk, len(part))
            self.codecs.add(request.chunk.codec)
            num_chunks += 1
            self._add_stored(part, header)
        if hashlib.sha256(part).digest() != header.sha256 or len(part) != header.total_size_bytes:
            raise CorruptDataError("digest or size differs")
        if self.hold is not None:
            await self.hold.wait()
        self.published[header.sha256] = bytes(part)
        if self.hold_answer is not None:
            await self.hold_answer.wait()
        return model_service_pb2.UploadModelResponse(model=self._model(header), is_kept_aside=self.keeps_aside)

    async def DownloadModel(
        self, request: model_service_pb2.DownloadModelRequest, context: Any
    ) -> AsyncIterator[model_service_pb2.DownloadModelResponse]:
        raise NotBuiltError("a sink gives nothing back")
        yield

    async def GetModel(self, request: Any, context: Any) -> model_service_pb2.GetModelResponse:
        raise NotBuiltError("a sink gives nothing back")

    async def ListModels(self, request: Any, context: Any) -> model_service_pb2.ListModelsResponse:
        raise NotBuiltError("a sink gives nothing back")

    async def DeleteModel(self, request: Any, context: Any) -> model_service_pb2.DeleteModelResponse:
        raise NotBuiltError("a sink gives nothing back")

    async def SetModelAlias(self, request: Any, context: Any) -> model_service_pb2.SetModelAliasResponse:
        raise NotBuiltError("a sink gives nothing back")

    async def VerifyModel(self, request: Any, context: Any) -> model_service_pb2.VerifyModelResponse:
        raise NotBuiltError("a sink gives nothing back")

    async def CollectGarbage(self, request: Any, context: Any) -> model_service_pb2.CollectGarbageResponse:
        raise NotBuiltError("a sink gives nothing back")

    def _add_stored(self, part: bytearray, header: model_service_pb2.UploadHeader) -> None:
        """Add the files that come next and are not sent."""
        start = 0
        for file in header.files:
            if start == len(part) and file.name in header.reused_files:
                part += self.stored[file.name]
            start += file.size_bytes

    def _model(self, header: model_service_pb2.UploadHeader) -> model_pb2.Model:
        return model_pb2.Model(name="small/EURUSD_1h_v1", path="/models/small/EURUSD_1h_v1", version=1)


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
