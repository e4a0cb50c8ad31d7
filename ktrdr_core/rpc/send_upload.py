"""Sends one artifact over one stream.

A grpc.aio client stream that the server refuses early often loses the server's status (grpc/grpc issue 36066), so the
stream runs on gRPC's own threads, which read, compress and write; the event loop only watches.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
from ktrdr.models.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc

from ktrdr_core.errors import KtrdrError, UnavailableError
from ktrdr_core.rpc.channel import open_sync_channel
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.upload import UploadPlan, upload_messages

IDLE_TIMEOUT_S = 30.0
COMMIT_TIMEOUT_S = 300.0


@dataclass
class SendProgress:
    """What a caller may want to know of a try that did not return.

    Attributes:
        has_sent_all: Every byte was handed over, so the backend may have published.
    """

    has_sent_all: bool = False


async def send_upload(
    target: str,
    plan: UploadPlan,
    write_offset: int,
    *,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    progress: SendProgress | None = None,
) -> model_pb2.Model:
    """Stream the artifact from `write_offset` on and return the published version.

    Args:
        target: Address (host:port) of the ModelService.
        plan: What is sent.
        write_offset: Raw bytes the backend already has, as QueryUpload answered.
        idle_timeout_s: How long the other side may take no bytes; there is no limit on the total.
        progress: Updated also when the try fails or is cancelled.

    Raises:
        KtrdrError: The other side refused, broke off, or took no bytes.
        OSError: A file of the artifact cannot be read.
    """
    loop = asyncio.get_running_loop()
    stream = _Stream(upload_messages(plan, write_offset=write_offset), loop.time)
    is_over = asyncio.Event()
    with open_sync_channel(target) as channel:
        call = model_service_pb2_grpc.ModelServiceStub(channel).UploadModel.future(stream)

        def announce_end(_: object) -> None:
            loop.call_soon_threadsafe(is_over.set)

        call.add_done_callback(announce_end)
        try:
            await _watch(stream, is_over, idle_timeout_s)
        finally:
            if progress is not None:
                progress.has_sent_all = progress.has_sent_all or stream.is_exhausted
            stream.is_stopped = True
            call.cancel()  # nothing, if it has ended
            await is_over.wait()
        if stream.error is not None:
            raise stream.error
        try:
            response: model_service_pb2.UploadModelResponse = call.result()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return response.model


async def _watch(stream: _Stream, is_over: asyncio.Event, idle_timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    while not is_over.is_set():
        limit_s = COMMIT_TIMEOUT_S if stream.is_exhausted else idle_timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(stream.taken_at + limit_s):
                await is_over.wait()
        if not is_over.is_set() and loop.time() >= stream.taken_at + limit_s:
            what = "did not confirm the upload" if stream.is_exhausted else "took no bytes"
            raise UnavailableError(f"the other side {what} for {limit_s:g} s")


class _Stream(Iterator[model_service_pb2.UploadModelRequest]):
    """The messages of one try, with what its watcher wants to know of them."""

    def __init__(self, messages: Iterator[model_service_pb2.UploadModelRequest], clock: Callable[[], float]) -> None:
        self._messages = messages
        self._clock = clock
        self.taken_at = clock()
        self.is_exhausted = False
        self.is_stopped = False
        self.error: OSError | KtrdrError | None = None

    def __next__(self) -> model_service_pb2.UploadModelRequest:
        self.taken_at = self._clock()
        if self.is_stopped:
            raise StopIteration
        try:
            return next(self._messages)
        except StopIteration:
            self.is_exhausted = True
            raise
        except (OSError, KtrdrError) as error:
            self.error = error
            raise
