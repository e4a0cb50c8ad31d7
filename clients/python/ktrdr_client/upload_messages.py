"""The messages of an upload: header, then the artifact's bytes in chunks.

`python -m ktrdr_client.upload_messages DIR` prints them as JSON, one a line, for `grpcurl -d @`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ktrdr.models.v1 import model_pb2, model_service_pb2

from ktrdr_core.errors import InvalidUploadError, KtrdrError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, choose_codec, encode_chunk
from ktrdr_core.storage.artifact import TRAVELLING_FILES, ArtifactFile, artifact_files


@dataclass(frozen=True, kw_only=True)
class UploadPlan:
    """What is uploaded: the files of an artifact, one after the other, as one run of bytes.

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
    def of(cls, directory: Path, *, training_id: str = "", attempt: int = 0) -> Self:
        """Read the files of `directory` once and return the plan.

        Raises:
            InvalidUploadError: `directory` is not a directory.
            NotFoundError: It is no complete model artifact.
        """
        if not directory.is_dir():
            raise InvalidUploadError(
                f"{directory} is not a directory; give a model directory such as models/STRATEGY/EURUSD_1h_v1",
                field="directory",
            )
        # The .pt files are derived again where the artifact arrives; only the truth travels.
        files = tuple(file for file in artifact_files(directory) if file.name in TRAVELLING_FILES)
        digest = hashlib.sha256()
        for file in files:
            with (directory / file.name).open("rb") as stream:
                while data := stream.read(CHUNK_SIZE_BYTES):
                    digest.update(data)
        return cls(directory=directory, training_id=training_id, attempt=attempt, files=files, sha256=digest.digest())

    @property
    def total_size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def upload_messages(
    source: UploadPlan | Path, *, write_offset: int = 0
) -> Iterator[model_service_pb2.UploadModelRequest]:
    """Yield the header, then the chunks from `write_offset` on.

    Args:
        source: A plan, or a model directory (an import).
        write_offset: Raw bytes the backend already has, as QueryUpload answered.
    """
    plan = source if isinstance(source, UploadPlan) else UploadPlan.of(source)
    yield model_service_pb2.UploadModelRequest(
        header=model_service_pb2.UploadHeader(
            training_id=plan.training_id,
            attempt=plan.attempt,
            total_size_bytes=plan.total_size_bytes,
            sha256=plan.sha256,
            files=[
                model_pb2.ModelFile(name=file.name, size_bytes=file.size_bytes, sha256=bytes.fromhex(file.sha256))
                for file in plan.files
            ],
            write_offset=write_offset,
        )
    )
    offset = write_offset
    codec = None
    for raw in _read_chunks(plan, write_offset):
        codec = codec or choose_codec(raw)
        yield model_service_pb2.UploadModelRequest(chunk=encode_chunk(offset, raw, codec))
        offset += len(raw)


def _read_chunks(plan: UploadPlan, skip_bytes: int) -> Iterator[bytes]:
    """Yield the joined bytes of all files from `skip_bytes` on, CHUNK_SIZE_BYTES at a time."""
    pending = bytearray()
    for file in plan.files:
        if skip_bytes >= file.size_bytes:
            skip_bytes -= file.size_bytes
            continue
        with (plan.directory / file.name).open("rb") as stream:
            stream.seek(skip_bytes)
            skip_bytes = 0
            while data := stream.read(CHUNK_SIZE_BYTES - len(pending)):
                pending += data
                if len(pending) == CHUNK_SIZE_BYTES:
                    yield bytes(pending)
                    pending.clear()
    if pending:
        yield bytes(pending)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the messages of one directory as JSON lines; returns the exit code."""
    from google.protobuf.json_format import MessageToJson

    values = list(sys.argv[1:] if arguments is None else arguments)
    if len(values) not in (1, 3):
        sys.stderr.write("usage: python -m ktrdr_client.upload_messages MODEL_DIRECTORY [TRAINING_ID ATTEMPT]\n")
        return 2
    try:
        plan = UploadPlan.of(
            Path(values[0]),
            training_id=values[1] if len(values) == 3 else "",
            attempt=int(values[2]) if len(values) == 3 else 0,
        )
        for message in upload_messages(plan):
            sys.stdout.write(MessageToJson(message, indent=None) + "\n")
    except (KtrdrError, ValueError) as error:  # ValueError: an attempt that is no number
        sys.stderr.write(f"upload_messages: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
