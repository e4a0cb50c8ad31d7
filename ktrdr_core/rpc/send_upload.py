"""Brings an artifact to a ModelService: asks what is there already, sends the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import grpc
import grpc.aio
from ktrdr.models.v1 import model_service_pb2 as pb
from ktrdr.models.v1 import model_service_pb2_grpc

from ktrdr_core.errors import IllegalStateError, KtrdrError, NotFoundError
from ktrdr_core.rpc.channel import open_channel, open_sync_channel
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.client_stream import IDLE_TIMEOUT_S, SendProgress, send_stream
from ktrdr_core.rpc.codec_choice import CodecChooser, Compression
from ktrdr_core.rpc.errors import from_rpc_error
from ktrdr_core.rpc.upload import UploadPlan, upload_messages

QUERY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class StoredSoFar:
    """What the other side has of an upload.

    Attributes:
        size_bytes: How much of it, from the first byte on.
        reusable: Files that need not be sent.
        is_complete: It is stored; nothing is left to send.
    """

    size_bytes: int = 0
    reusable: tuple[str, ...] = ()
    is_complete: bool = False


class ArtifactSender:
    """One artifact on its way; each try goes on where the one before broke off.

    Args:
        plan: What is sent.
        target: Returns the address (host:port) of the ModelService now.
        compression: How chunks are compressed.
        idle_timeout_s: How long the other side may take no bytes; there is no limit on the total.
        on_sent: Told, on a thread of gRPC, up to which byte everything was handed over.
        security: How channels are secured; None not at all.

    Attributes:
        has_sent_all: In one of the tries every byte was handed over, so it may be stored.
        has_moved: The last try found more on the other side than any before: what it broke off by let bytes through.
    """

    def __init__(
        self,
        plan: UploadPlan,
        target: Callable[[], str],
        *,
        compression: Compression = Compression.AUTO,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        on_sent: Callable[[int], None] = lambda size_bytes: None,
        security: ChannelSecurity | None = None,
    ) -> None:
        self._plan = plan
        self._target = target
        self._compression = compression
        self._idle_timeout_s = idle_timeout_s
        self._on_sent = on_sent
        self._security = security
        self._progress = SendProgress()
        self._may_reuse = True
        self._num_bytes_there = 0
        self.has_moved = False

    @property
    def has_sent_all(self) -> bool:
        return self._progress.has_sent_all

    async def send(self) -> pb.UploadModelResponse:
        """Ask, send the rest, and return what became of it.

        Raises:
            KtrdrError: The other side refused, broke off, or took no bytes.
            OSError: A file of the artifact cannot be read.
        """
        self.has_moved = False
        stored = await self.ask()
        self.has_moved = stored.size_bytes > self._num_bytes_there
        self._num_bytes_there = max(stored.size_bytes, self._num_bytes_there)
        reused = stored.reusable if self._may_reuse else ()
        try:
            return await self._stream(stored.size_bytes, reused)
        except IllegalStateError:
            if not reused:
                raise
        # What was offered is gone, or damaged: it is sent like the rest, whatever may be offered next.
        self._may_reuse = False
        return await self._stream((await self.ask()).size_bytes, ())

    async def ask(self, *, timeout_s: float = QUERY_TIMEOUT_S) -> StoredSoFar:
        """Return what the other side has.

        Raises:
            KtrdrError: It does not say.
        """
        async with open_channel(self._target(), self._security) as channel:
            stub: model_service_pb2_grpc.ModelServiceAsyncStub = model_service_pb2_grpc.ModelServiceStub(channel)
            try:
                answer = await stub.QueryUpload(self._plan.query(), timeout=timeout_s)
            except grpc.aio.AioRpcError as rpc_error:
                error: KtrdrError = from_rpc_error(rpc_error)
                if isinstance(error, NotFoundError):
                    return StoredSoFar()
                raise error from rpc_error
        return StoredSoFar(answer.committed_size_bytes, tuple(answer.reusable_files), answer.is_complete)

    async def _stream(self, write_offset: int, reused: Collection[str]) -> pb.UploadModelResponse:
        with open_sync_channel(self._target(), self._security) as channel:
            return await send_stream(
                model_service_pb2_grpc.ModelServiceStub(channel).UploadModel,
                self._messages(write_offset, reused),
                what="upload",
                idle_timeout_s=self._idle_timeout_s,
                progress=self._progress,
            )

    def _messages(self, write_offset: int, reused: Collection[str]) -> Iterator[pb.UploadModelRequest]:
        """Yield the messages; what was yielded counts as sent once the next one is asked for."""
        self._on_sent(write_offset)
        chooser = CodecChooser(self._compression)
        for message in upload_messages(self._plan, write_offset=write_offset, reused=reused, chooser=chooser):
            yield message
            if message.WhichOneof("part") == "chunk":
                self._on_sent(message.chunk.offset + message.chunk.raw_size_bytes)
        self._on_sent(self._plan.total_size_bytes)
