"""Targets that take one piece of bytes: chunks, headers, weights, the store's and the bar store's small files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import safetensors
import zstandard
from google.protobuf.message import DecodeError
from ktrdr.models.v1 import codec_pb2, model_pb2
from ktrdr.models.v1.model_service_pb2 import UploadChunk, UploadHeader
from numpy.typing import NDArray
from safetensors.numpy import save as render_safetensors

from backend_service.operations.pages import decode_page_token, encode_page_token
from backend_service.upload_plan import plan_from_proto
from ktrdr_core.clock import utc_now
from ktrdr_core.config.naming import is_name
from ktrdr_core.data.partitions import MANIFEST, Manifest, Part, read_manifest, write_manifest
from ktrdr_core.errors import CorruptDataError, InvalidBarsError, InvalidInputError, InvalidUploadError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk, encode_chunk
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES, ArtifactFile
from ktrdr_core.storage.publication import PUBLICATION_FILE, Publication
from ktrdr_core.storage.weights_file import check_finite, check_weights
from tests.fuzz.target import Probe, Target

MAX_UPLOAD_BYTES = 8 << 30


def _build_chunk(_: Path) -> Probe:
    def probe(data: bytes) -> None:
        chunk = UploadChunk()
        try:
            chunk.ParseFromString(data)
        except DecodeError:
            return  # gRPC refuses it
        try:
            raw = decode_chunk(chunk, chunk.offset)
        except (InvalidUploadError, CorruptDataError):
            return
        assert 0 < len(raw) == chunk.raw_size_bytes <= CHUNK_SIZE_BYTES
        assert google_crc32c.value(bytes(raw)) == chunk.crc32c

    return probe


def _chunk_seeds() -> list[bytes]:
    seeds = []
    for raw in (b"x", b"weights " * 40, bytes(range(256)), bytes(4096)):
        seeds += [encode_chunk(7, raw, codec) for codec in codec_pb2.Codec.values() if codec]
    zeros = bytes(CHUNK_SIZE_BYTES)
    bomb = bytes(64 << 20)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bomb)
    for codec, data, size in (
        (codec_pb2.CODEC_ZSTD, zstandard.compress(bomb), 1),
        (codec_pb2.CODEC_ZSTD, zstandard.compress(bomb), CHUNK_SIZE_BYTES),
        (codec_pb2.CODEC_ZSTD, unsized, CHUNK_SIZE_BYTES),
        (codec_pb2.CODEC_ZSTD, zstandard.compress(b"a") * 2, 1),
        (codec_pb2.CODEC_ZSTD, b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + zstandard.compress(b"a"), 1),
        (codec_pb2.CODEC_ZSTD, b"", 1),
        (codec_pb2.CODEC_GZIP, gzip.compress(bomb), CHUNK_SIZE_BYTES),
        (codec_pb2.CODEC_GZIP, gzip.compress(b"a") * 2, 2),
        (codec_pb2.CODEC_GZIP, gzip.compress(b"a") + b"tail", 1),
        (codec_pb2.CODEC_GZIP, gzip.compress(b"a")[:-4], 1),
        (codec_pb2.CODEC_NONE, zeros[:100], 99),
        (9, b"a", 1),
    ):
        crc32c = google_crc32c.value(zeros[:size])
        seeds.append(UploadChunk(raw_size_bytes=size, codec=codec, data=data, crc32c=crc32c))  # type: ignore[arg-type]
    return [chunk.SerializeToString() for chunk in seeds]


def _build_header(_: Path) -> Probe:
    def probe(data: bytes) -> None:
        header = UploadHeader()
        try:
            header.ParseFromString(data)
        except DecodeError:
            return
        try:
            plan = plan_from_proto(header, max_size_bytes=MAX_UPLOAD_BYTES)
        except InvalidUploadError:
            return
        assert 0 <= plan.write_offset <= plan.total_size_bytes <= MAX_UPLOAD_BYTES
        assert [file.name for file in plan.files] == list(TRAVELLING_FILES)
        assert sum(file.size_bytes for file in plan.files) == plan.total_size_bytes
        assert len(plan.key) == 64
        assert all(letter in "0123456789abcdef" for letter in plan.key)

    return probe


def a_header(training_id: str = "", attempt: int = 0) -> UploadHeader:
    files = [model_pb2.ModelFile(name=name, size_bytes=10, sha256=bytes(32)) for name in TRAVELLING_FILES]
    return UploadHeader(
        training_id=training_id, attempt=attempt, total_size_bytes=10 * len(files), sha256=bytes(32), files=files
    )


def _header_seeds() -> list[bytes]:
    resumed, reusing, evil, wrapped = a_header("t1", 1), a_header(), a_header(), a_header()
    resumed.write_offset = 20
    reusing.reused_files.extend([TRAVELLING_FILES[1], TRAVELLING_FILES[1], "../x"])
    evil.files[0].name = "../../etc/passwd"
    wrapped.files[0].size_bytes = 2**63 - 1
    wrapped.files[1].size_bytes = 2**63 - 1
    return [each.SerializeToString() for each in (a_header(), resumed, reusing, evil, wrapped)]


def _build_weights(directory: Path) -> Probe:
    path = directory / "model.safetensors"

    def probe(data: bytes) -> None:
        path.write_bytes(data)
        try:
            table = check_weights(path, max_tensors=100)
            check_finite(path, table)
        except CorruptDataError:
            return
        found = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        assert {name: (each["dtype"], each["shape"], bytes(each["data"])) for name, each in found} == {
            tensor.name: (tensor.dtype, list(tensor.shape), data[tensor.offset : tensor.offset + tensor.size_bytes])
            for tensor in table.tensors
        }

    return probe


def _weights_seeds() -> list[bytes]:
    small: dict[str, NDArray[Any]] = {
        "layers.0.weight": np.ones((3, 2), np.float32),
        "b": np.arange(3),
        "half": np.ones(2, np.float16),
    }
    return [
        render_safetensors(small),
        render_safetensors(small, {"format": "pt", "größe": "\n"}),
        render_safetensors({"empty": np.zeros((0, 4), np.float32), "scalar": np.array(2.0)}),
        render_safetensors({"bad": np.array([np.nan], np.float32)}),
        b"\x02\0\0\0\0\0\0\0{}",
        b"\xff" * 8 + b"{}",
        (2000).to_bytes(8, "little") + b"[" * 2000,
        (13).to_bytes(8, "little") + b'{"\\ud800":{}}',
    ]


def _build_file(
    name: str, read: Callable[[Path], object], refusals: tuple[type[Exception], ...], check: Callable[[object], None]
) -> Callable[[Path], Probe]:
    """Return what builds a probe that writes a file `name` and reads it back through `read`."""

    def build(directory: Path) -> Probe:
        home = directory / "EURUSD_1h"
        home.mkdir()

        def probe(data: bytes) -> None:
            (home / name).write_bytes(data)
            try:
                found = read(home)
            except refusals:
                return
            check(found)

        return probe

    return build


def _check_publication(found: object) -> None:
    assert isinstance(found, Publication)
    assert isinstance(found.training_id, str)
    assert isinstance(found.attempt, int)
    assert isinstance(found.digest, str)
    assert found.create_time.tzinfo is not None
    for file in found.files:
        assert is_name(file.name)
        assert isinstance(file.size_bytes, int)
        assert isinstance(file.sha256, str)


def _publication_seeds() -> list[bytes]:
    files = tuple(ArtifactFile(name, 10, "ab" * 32) for name in TRAVELLING_FILES)
    publication = Publication(training_id="t1", attempt=1, digest="cd" * 32, create_time=utc_now(), files=files)
    text = publication.render()
    raw = json.loads(text)
    changes: list[dict[str, Any]] = [
        {"files": [["../../x", 1, "ab"]]},
        {"files": {"a": 1}},
        {"files": [[1, 2, 3]]},
        {"attempt": "1"},
        {"training_id": None},
        {"create_time": 5},
        {"create_time": "2026-01-01T00:00:00"},
        {"digest": []},
    ]
    changed = [json.dumps(raw | change).encode() for change in changes]
    return [text, b"[" * 100_000, b'{"files": 1e999}', b"\xff\xfe{}", *changed]


def _check_manifest(found: object) -> None:
    assert isinstance(found, Manifest)
    assert isinstance(found.num_bars, int)
    assert found.parts
    for part in found.parts:
        assert "/" not in part.file
        assert isinstance(part.year, int)
        assert isinstance(part.size_bytes, int)
        assert isinstance(part.sha256, str)


def _manifest_seeds() -> list[bytes]:
    import tempfile

    part = Part("2017-03a2f1c0d9e8.parquet", 10, 1_483_308_000_000_000_000, 1_483_408_000_000_000_000, 99, "ab" * 32)
    with tempfile.TemporaryDirectory() as name:
        write_manifest(Path(name), Manifest("EURUSD", "1h", (part,)))
        text = (Path(name) / MANIFEST).read_bytes()
    raw = json.loads(text)
    evil = [
        raw["parts"][0] | change
        for change in ({"file": "../2017-03a2f1c0d9e8.parquet"}, {"num_bars": True}, {"num_bars": -1}, {"more": 1})
    ]
    return [text, b"[" * 100_000, *(json.dumps(raw | {"parts": [part]}).encode() for part in evil)]


def _build_page_token(_: Path) -> Probe:
    def probe(data: bytes) -> None:
        token = data.decode("utf-8", "surrogateescape")
        try:
            position = decode_page_token(token)
        except InvalidInputError:
            return
        # It becomes a parameter of SQL.
        assert 0 <= position < 2**63

    return probe


def _page_token_seeds() -> list[bytes]:
    return [encode_page_token(position).encode() for position in (0, 7, 10**9, 2**63, 10**30)] + [b"cA==", b"cC0x"]


PARSERS = (
    Target(name="chunk", build=_build_chunk, seeds=_chunk_seeds),
    Target(name="upload_header", build=_build_header, seeds=_header_seeds),
    Target(name="weights", build=_build_weights, seeds=_weights_seeds),
    Target(
        name="publication",
        build=_build_file(PUBLICATION_FILE, Publication.read, (CorruptDataError,), _check_publication),
        seeds=_publication_seeds,
    ),
    Target(
        name="manifest",
        build=_build_file(MANIFEST, read_manifest, (InvalidBarsError,), _check_manifest),
        seeds=_manifest_seeds,
    ),
    Target(
        name="page_token",
        build=_build_page_token,
        seeds=_page_token_seeds,
    ),
)
