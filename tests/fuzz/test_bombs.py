"""Little that says it is much: whatever a compressed chunk would become, memory is bounded by what a chunk may be."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import zstandard
from ktrdr.models.v1 import codec_pb2
from ktrdr.models.v1.model_service_pb2 import UploadChunk

from ktrdr_core.errors import CorruptDataError, InvalidUploadError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk

BOMB_BYTES = 256 << 20
_LIMIT_BYTES = 16 << 20
_PIECE = bytes(1 << 20)


def status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def gzip_bomb() -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    return b"".join(packer.compress(_PIECE) for _ in range(BOMB_BYTES >> 20)) + packer.flush()


def zstd_bomb(*, with_size: bool, window_log: int = 20) -> bytes:
    settings = zstandard.ZstdCompressionParameters(window_log=window_log, write_content_size=with_size)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj(size=BOMB_BYTES if with_size else -1)
    return b"".join(packer.compress(_PIECE) for _ in range(BOMB_BYTES >> 20)) + packer.flush()


@pytest.mark.parametrize("size", [1, CHUNK_SIZE_BYTES])
@pytest.mark.parametrize(
    ("codec", "build"),
    [
        (codec_pb2.CODEC_GZIP, gzip_bomb),
        (codec_pb2.CODEC_ZSTD, partial(zstd_bomb, with_size=True)),
        (codec_pb2.CODEC_ZSTD, partial(zstd_bomb, with_size=False)),
        (codec_pb2.CODEC_ZSTD, partial(zstd_bomb, with_size=False, window_log=27)),
        # A frame of a few bytes that wants a window of 2 GiB.
        (codec_pb2.CODEC_ZSTD, partial(bytes, b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00")),
    ],
    ids=["gzip", "zstd", "zstd of unknown size", "zstd of a large window", "zstd of a huge window"],
)
def test_bomb_stops_at_the_declared_size(
    codec: codec_pb2.Codec.ValueType, build: Callable[[], bytes], size: int
) -> None:
    chunk = UploadChunk(raw_size_bytes=size, codec=codec, data=build())
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
    before = status_bytes("VmRSS")
    with pytest.raises((InvalidUploadError, CorruptDataError)):
        decode_chunk(chunk, 0)
    assert status_bytes("VmHWM") - before < _LIMIT_BYTES
