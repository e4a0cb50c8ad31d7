"""The messages of an upload: header, then the artifact's bytes in chunks. Blocking: read files off the event loop."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ktrdr.models.v1 import model_pb2, model_service_pb2

from ktrdr_core.errors import InvalidUploadError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES
from ktrdr_core.rpc.codec_choice import CodecChooser
from ktrdr_core.storage.artifact_files import ArtifactFile
from ktrdr_core.storage.artifact_sums import ArtifactSums


@dataclass(frozen=True, kw_only=True)
class UploadPlan:
    """What is uploaded: the travelling files of an artifact, one after the other, as one run of bytes.

    Attributes:
        directory: Where the files are.
        training_id: Training the artifact belongs to; "" for an import.
        attempt: Session number within the training; 0 for an import.
        files: Files in the order their bytes follow.
        sha256: Digest of all bytes.
    """

    directory: Path
    training_id: str
    attempt: int
    files: tuple[ArtifactFile, ...]
    sha256: bytes

    @classmethod
    def of(cls, directory: Path, *, training_id: str = "", attempt: int = 0, sums: ArtifactSums | None = None) -> Self:
        """Return the plan.

        Args:
            directory: The artifact.
            training_id, attempt: As the attributes.
            sums: Of the files, where they are known; else every byte is read for them.

        Raises:
            InvalidUploadError: `directory` is not a model directory.
            NotFoundError: A file is missing.
        """
        if not directory.is_dir():
            raise InvalidUploadError(
                f"{directory} is not a directory; give a model directory such as models/STRATEGY/EURUSD_1h_v1",
                field="directory",
            )
        if sums is None:
            sums = ArtifactSums.of(directory)
        return cls(
            directory=directory,
            training_id=training_id,
            attempt=attempt,
            files=sums.files,
            sha256=bytes.fromhex(sums.sha256),
        )

    @property
    def total_size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def query(self) -> model_service_pb2.QueryUploadRequest:
        """Return the question how much of it the other side has."""
        return model_service_pb2.QueryUploadRequest(
            training_id=self.training_id,
            attempt=self.attempt,
            sha256=self.sha256,
            files=map(_file_to_proto, self.files),
        )


def upload_messages(
    source: UploadPlan | Path,
    *,
    write_offset: int = 0,
    reused: Collection[str] = (),
    chooser: CodecChooser | None = None,
) -> Iterator[model_service_pb2.UploadModelRequest]:
    """Yield the header, then the chunks from `write_offset` on.

    Args:
        source: A plan, or a model directory (an import).
        write_offset: Raw bytes the backend already has, as QueryUpload answered.
        reused: Files the backend takes from its store, as QueryUpload offered.
        chooser: Encodes the chunks; None is a new one that gives each the codec that suits it.
    """
    plan = source if isinstance(source, UploadPlan) else UploadPlan.of(source)
    chooser = chooser if chooser is not None else CodecChooser()
    header = model_service_pb2.UploadHeader(
        training_id=plan.training_id,
        attempt=plan.attempt,
        total_size_bytes=plan.total_size_bytes,
        sha256=plan.sha256,
        files=map(_file_to_proto, plan.files),
        write_offset=write_offset,
        reused_files=[file.name for file in plan.files if file.name in reused],
    )
    yield model_service_pb2.UploadModelRequest(header=header)
    for offset, raw in _read_chunks(plan, write_offset, reused):
        yield model_service_pb2.UploadModelRequest(chunk=chooser.encode(offset, raw))


def _file_to_proto(file: ArtifactFile) -> model_pb2.ModelFile:
    return model_pb2.ModelFile(name=file.name, size_bytes=file.size_bytes, sha256=bytes.fromhex(file.sha256))


def _read_chunks(plan: UploadPlan, write_offset: int, reused: Collection[str]) -> Iterator[tuple[int, bytes]]:
    """Yield the joined bytes of all files but `reused` from `write_offset` on, CHUNK_SIZE_BYTES at a time."""
    pending = b""
    offset = write_offset  # of what is pending
    start = 0
    for file in plan.files:
        end = start + file.size_bytes
        if file.name in reused or end <= write_offset:
            if pending:
                yield offset, pending
                pending = b""
            offset = max(offset, end)
        else:
            with (plan.directory / file.name).open("rb") as stream:
                stream.seek(max(write_offset - start, 0))
                while data := stream.read(CHUNK_SIZE_BYTES - len(pending)):
                    pending = pending + data if pending else data
                    if len(pending) == CHUNK_SIZE_BYTES:
                        yield offset, pending
                        offset += CHUNK_SIZE_BYTES
                        pending = b""
        start = end
    if pending:
        yield offset, pending
