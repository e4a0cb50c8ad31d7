"""What an upload says it is: its header, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ktrdr.models.v1.model_pb2 import ModelFile
from ktrdr.models.v1.model_service_pb2 import QueryUploadRequest, UploadHeader

from ktrdr_core.errors import InvalidUploadError
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES, ArtifactFile

SHA256_BYTES = 32


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A file and where its bytes begin and end in the run of all bytes."""

    file: ArtifactFile
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlan:
    """A header that keeps the contract.

    Attributes:
        sha256: SHA-256 of the whole artifact, hex.
        files: Files in the order their bytes follow: TRAVELLING_FILES.
        write_offset: Where the stream starts.
        reused: Names of the files whose bytes are not sent.
    """

    training_id: str
    attempt: int
    total_size_bytes: int
    sha256: str
    files: tuple[ArtifactFile, ...]
    write_offset: int
    reused: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        return upload_key(self.training_id, self.attempt, self.sha256)

    @property
    def spans(self) -> tuple[FileSpan, ...]:
        return tuple(spans_of(self.files))

    @property
    def size_on_disk_bytes(self) -> int:
        """Bytes the upload needs, apart from those it shares with the store."""
        return sum(file.size_bytes for file in self.files if file.name not in self.reused)


def upload_key(training_id: str, attempt: int, sha256: str) -> str:
    """Return the name of an upload's directory; a digest, so that nothing from outside becomes a path."""
    return hashlib.sha256(f"{training_id}\0{attempt}\0{sha256}".encode()).hexdigest()


def spans_of(files: Iterable[ArtifactFile]) -> Iterator[FileSpan]:
    """Yield the files with where their bytes are, one after the other."""
    start = 0
    for file in files:
        yield FileSpan(file, start, start + file.size_bytes)
        start += file.size_bytes


def plan_from_proto(header: UploadHeader, *, max_size_bytes: int) -> UploadPlan:
    """Return the plan of a header.

    Raises:
        InvalidUploadError: It breaks the contract.
    """

    def refuse(field: str, rule: str) -> InvalidUploadError:
        return InvalidUploadError(f"{field} of an upload {rule}", field=f"header.{field}")

    if not 0 < header.total_size_bytes <= max_size_bytes:
        raise refuse("total_size_bytes", f"must be 1 to {max_size_bytes}, was {header.total_size_bytes}")
    if len(header.sha256) != SHA256_BYTES:
        raise refuse("sha256", f"must have {SHA256_BYTES} bytes, had {len(header.sha256)}")
    names = [file.name for file in header.files[: len(TRAVELLING_FILES) + 1]]
    if names != list(TRAVELLING_FILES):
        raise refuse("files", f"must be {', '.join(TRAVELLING_FILES)} in this order, was {names}")
    if any(file.size_bytes < 1 or len(file.sha256) != SHA256_BYTES for file in header.files):
        raise refuse("files", f"must each have a size above 0 and a SHA-256 of {SHA256_BYTES} bytes")
    declared = sum(file.size_bytes for file in header.files)
    if declared != header.total_size_bytes:
        raise refuse("files", f"must add up to total_size_bytes {header.total_size_bytes}, gave {declared}")
    if not 0 <= header.write_offset <= header.total_size_bytes:
        raise refuse("write_offset", f"must be 0 to {header.total_size_bytes}, was {header.write_offset}")
    if header.attempt < (1 if header.training_id else 0) or (header.attempt and not header.training_id):
        raise refuse("attempt", f"must be at least 1 for a training and 0 for an import, was {header.attempt}")
    reused = frozenset(header.reused_files[: len(TRAVELLING_FILES) + 1])
    if len(reused) != len(header.reused_files) or not reused <= set(names):
        raise refuse("reused_files", f"must each be one of files, once, was {sorted(reused)}")
    return UploadPlan(
        training_id=header.training_id,
        attempt=header.attempt,
        total_size_bytes=header.total_size_bytes,
        sha256=header.sha256.hex(),
        files=tuple(map(_file_from_proto, header.files)),
        write_offset=header.write_offset,
        reused=reused,
    )


def files_of_query(request: QueryUploadRequest) -> tuple[ArtifactFile, ...]:
    """Return the files that are asked for; none unless they are those of an upload."""
    files = tuple(map(_file_from_proto, request.files[: len(TRAVELLING_FILES) + 1]))
    return files if [file.name for file in files] == list(TRAVELLING_FILES) else ()


def _file_from_proto(file: ModelFile) -> ArtifactFile:
    return ArtifactFile(file.name, file.size_bytes, file.sha256.hex())
