"""Gives the files of stored models away, in chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import BinaryIO

from ktrdr.models.v1 import model_pb2
from ktrdr.models.v1 import model_service_pb2 as pb

from ktrdr_core.errors import CorruptDataError, InvalidInputError, StorageError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES
from ktrdr_core.rpc.codec_choice import CodecChooser, compression_of
from ktrdr_core.storage.artifact_files import ArtifactFile
from ktrdr_core.storage.model_storage import ModelStorage
from ktrdr_core.undisturbed import in_thread


class ModelFiles:
    """Reads and compresses off the event loop; of each stream one chunk is in memory, and what gRPC holds.

    Args:
        storage: The model store.
    """

    def __init__(self, storage: ModelStorage) -> None:
        self._storage = storage

    async def download(self, request: pb.DownloadModelRequest) -> AsyncGenerator[pb.DownloadModelResponse]:
        """Yield what the file is, then its chunks; a model that is deleted meanwhile is given to its end.

        Raises:
            InvalidInputError: The offset is outside the file, or the codec is unknown.
            NotFoundError: There is no such model or file.
            CorruptDataError: The file has another size than was published.
            StorageError: The disk cannot be read.
        """
        reading = _Reading(self._storage, request, CodecChooser(compression_of(request.codec)))
        try:
            yield pb.DownloadModelResponse(file=await in_thread(reading.open))
            while (chunk := await in_thread(reading.read_chunk)) is not None:
                yield pb.DownloadModelResponse(chunk=chunk)
        except OSError as error:
            raise StorageError(f"{request.file} of {request.name} cannot be read ({error}); try again later") from error
        finally:
            await in_thread(reading.close)


class _Reading:
    """One file of a version that is being read. Blocking."""

    def __init__(self, storage: ModelStorage, request: pb.DownloadModelRequest, chooser: CodecChooser) -> None:
        self._storage = storage
        self._request = request
        self._chooser = chooser
        self._opened = ExitStack()
        self._stream: BinaryIO | None = None
        self._file = ArtifactFile(request.file, 0, "")
        self._offset = request.read_offset

    def open(self) -> model_pb2.ModelFile:
        self._file, self._stream = self._opened.enter_context(
            self._storage.open_file(self._request.name, self._request.file)
        )
        size = self._file.size_bytes
        if not 0 <= self._offset <= size:
            raise InvalidInputError(
                f"read_offset must be 0 to {size}, the size of {self._file.name}, was {self._offset}",
                field="read_offset",
            )
        self._stream.seek(self._offset)
        return model_pb2.ModelFile(
            name=self._file.name, size_bytes=self._file.size_bytes, sha256=bytes.fromhex(self._file.sha256)
        )

    def read_chunk(self) -> pb.UploadChunk | None:
        """Return the next chunk, None at the end."""
        size = self._file.size_bytes
        if self._stream is None or self._offset == size:
            return None
        raw = self._stream.read(min(CHUNK_SIZE_BYTES, size - self._offset))
        if not raw:
            raise CorruptDataError(
                f"{self._file.name} of {self._request.name} was published with {size} bytes and ends after "
                f"{self._offset}; `ktrdr models verify` names what is damaged: restore it, or train again"
            )
        chunk = self._chooser.encode(self._offset, raw)
        self._offset += len(raw)
        return chunk

    def close(self) -> None:
        self._opened.close()
