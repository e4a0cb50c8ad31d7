"""A model store behind a real server that breaks its downloads as it is told. For tests of the client alone."""
# ruff: noqa: N802  the methods have the names of the RPCs

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from ktrdr.models.v1 import model_pb2, model_service_pb2_grpc
from ktrdr.models.v1 import model_service_pb2 as pb
from ktrdr.models.v1.codec_pb2 import CODEC_NONE, CODEC_UNSPECIFIED

from ktrdr_core.errors import KtrdrError, ModelNotFoundError, UnavailableError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, encode_chunk

Responses = Sequence[pb.DownloadModelResponse]
Break = Callable[[Responses], AsyncIterator[pb.DownloadModelResponse]]


async def whole(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
    for response in responses:
        yield response


def cut_after(num: int, error: KtrdrError | None = None) -> Break:
    """Send so many messages, the header among them, then fail."""

    async def send(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
        for response in responses[:num]:
            yield response
        raise error or UnavailableError("cut")

    return send


def end_after(num: int) -> Break:
    """Send so many messages and end as if that were all."""

    async def send(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
        for response in responses[:num]:
            yield response

    return send


def hang_after(num: int) -> Break:
    """Send so many messages, then nothing."""

    async def send(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
        for response in responses[:num]:
            yield response
        await asyncio.Event().wait()

    return send


def damage(num: int) -> Break:
    """Send everything, message `num` with a bit flipped on the way."""

    async def send(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
        for index, response in enumerate(responses):
            if index == num:
                response.chunk.crc32c ^= 1
            yield response

    return send


def swap(content: bytes) -> Break:
    """Send other bytes than were said, each chunk sound."""

    async def send(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
        yield responses[0]
        for chunk in _chunks(content, responses[1].chunk.offset):
            yield chunk

    return send


async def another_header(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
    """Say that it is another file."""
    responses[0].file.sha256 = bytes(32)
    for response in responses:
        yield response


async def headers_only(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
    """Say what it is for ever."""
    while True:
        yield responses[0]


async def no_header(responses: Responses) -> AsyncIterator[pb.DownloadModelResponse]:
    """Begin with the chunks."""
    for response in responses[1:]:
        yield response


@dataclass
class FakeModels:
    """One model with these files; `breaks` has one for each download to come, then all goes well.

    Attributes:
        calls: File, read_offset and codec of each download.
    """

    files: dict[str, bytes]
    breaks: list[Break] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)
    codecs: set[int] = field(default_factory=set)
    name: str = "fake/EURUSD_1h_v1"

    def add_to(self, server: grpc.aio.Server) -> None:
        servicer: Any = self
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)

    def __getattr__(self, name: str) -> Any:
        if not name[:1].isupper():
            raise AttributeError(name)

        async def refuse(request: Any, context: Any) -> Any:
            raise AssertionError(f"no test asks for {name}")

        return refuse

    def model(self) -> model_pb2.Model:
        return model_pb2.Model(
            name=self.name,
            version=1,
            files=[self._file(name) for name in self.files],
            size_bytes=sum(map(len, self.files.values())),
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        if not self.name.startswith(request.name):
            raise ModelNotFoundError(f"there is no model {request.name!r}")
        return pb.GetModelResponse(model=self.model())

    async def DownloadModel(
        self, request: pb.DownloadModelRequest, context: Any
    ) -> AsyncIterator[pb.DownloadModelResponse]:
        assert request.name == self.name, "a pull asks for the version it was told, not for what the name means now"
        self.calls.append((request.file, request.read_offset))
        self.codecs.add(request.codec or CODEC_UNSPECIFIED)
        responses = [
            pb.DownloadModelResponse(file=self._file(request.file)),
            *_chunks(self.files[request.file], request.read_offset),
        ]
        send = self.breaks.pop(0) if self.breaks else whole
        async for response in send(responses):
            yield response

    def _file(self, name: str) -> model_pb2.ModelFile:
        content = self.files[name]
        return model_pb2.ModelFile(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).digest())


def _chunks(content: bytes, offset: int) -> list[pb.DownloadModelResponse]:
    return [
        pb.DownloadModelResponse(chunk=encode_chunk(at, content[at : at + CHUNK_SIZE_BYTES], CODEC_NONE))
        for at in range(offset, len(content), CHUNK_SIZE_BYTES)
    ]
