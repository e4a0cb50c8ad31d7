"""Chunks joined equal the whole; a wrong or hostile chunk is refused before it costs anything."""

from __future__ import annotations

import contextlib
import gzip
import os
import tracemalloc
from collections.abc import Callable
from functools import partial

import google_crc32c
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from ktrdr.models.v1 import codec_pb2
from ktrdr.models.v1.model_service_pb2 import UploadChunk

from ktrdr_core.errors import CorruptDataError, InvalidUploadError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk, encode_chunk

CODECS = [codec_pb2.CODEC_NONE, codec_pb2.CODEC_GZIP, codec_pb2.CODEC_ZSTD]
BOMB_BYTES = 16 << 20


@given(whole=st.binary(max_size=5_000), cut=st.integers(1, 2_000), codec=st.sampled_from(CODECS))
def test_chunks_joined_equal_the_whole(whole: bytes, cut: int, codec: codec_pb2.Codec.ValueType) -> None:
    joined = b""
    for offset in range(0, len(whole), cut):
        joined += decode_chunk(encode_chunk(offset, whole[offset : offset + cut], codec), len(joined))

    assert joined == whole


@pytest.mark.parametrize("codec", CODECS)
def test_a_full_chunk_of_noise_survives_every_codec(codec: codec_pb2.Codec.ValueType) -> None:
    raw = os.urandom(CHUNK_SIZE_BYTES)

    assert decode_chunk(encode_chunk(7, raw, codec), 7) == raw


@pytest.mark.parametrize("size", [0, CHUNK_SIZE_BYTES + 1])
def test_a_chunk_has_1_byte_to_1_mib(size: int) -> None:
    with pytest.raises(InvalidUploadError, match="1 to 1048576"):
        encode_chunk(0, bytes(size), codec_pb2.CODEC_NONE)
    with pytest.raises(InvalidUploadError, match="1 to 1048576"):
        decode_chunk(UploadChunk(raw_size_bytes=size, codec=codec_pb2.CODEC_NONE, data=bytes(size)), 0)


def test_a_wrong_offset_says_where_to_go_on() -> None:
    with pytest.raises(InvalidUploadError, match="must be 5, was 9"):
        decode_chunk(encode_chunk(9, b"abc", codec_pb2.CODEC_NONE), 5)


@pytest.mark.parametrize("codec", [codec_pb2.CODEC_UNSPECIFIED, 17])
def test_an_unknown_codec_is_refused(codec: int) -> None:
    chunk = encode_chunk(0, b"abc", codec_pb2.CODEC_NONE)
    chunk.codec = codec  # type: ignore[assignment]  # an open enum: a newer peer may send it

    with pytest.raises(InvalidUploadError, match="codec"):
        decode_chunk(chunk, 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("position", [0, 7, -1])
def test_no_flipped_bit_passes(codec: codec_pb2.Codec.ValueType, position: int) -> None:
    raw = b"the bytes of a model " * 40
    chunk = encode_chunk(0, raw, codec)
    data = bytearray(chunk.data)
    data[position] ^= 0x10
    chunk.data = bytes(data)

    with contextlib.suppress(CorruptDataError, InvalidUploadError):
        assert decode_chunk(chunk, 0) == raw  # a bit that means nothing, as gzip's OS byte


def test_a_wrong_checksum_is_data_loss() -> None:
    chunk = encode_chunk(0, b"abc", codec_pb2.CODEC_NONE)
    chunk.crc32c ^= 1

    with pytest.raises(CorruptDataError, match="CRC32C"):
        decode_chunk(chunk, 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("declared", [3, 5])
def test_a_size_other_than_declared_is_refused(codec: codec_pb2.Codec.ValueType, declared: int) -> None:
    chunk = encode_chunk(0, b"abcd", codec)
    chunk.raw_size_bytes = declared

    with pytest.raises(InvalidUploadError, match="declare"):
        decode_chunk(chunk, 0)


def zstd_bomb(*, has_size: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=has_size).compress(bytes(BOMB_BYTES))


def gzip_bomb() -> bytes:
    return gzip.compress(bytes(BOMB_BYTES), 1)


@pytest.mark.parametrize(
    ("codec", "build"),
    [
        (codec_pb2.CODEC_ZSTD, partial(zstd_bomb, has_size=True)),
        (codec_pb2.CODEC_ZSTD, partial(zstd_bomb, has_size=False)),
        (codec_pb2.CODEC_GZIP, gzip_bomb),
    ],
    ids=["zstd", "zstd without size", "gzip"],
)
def test_a_bomb_is_refused_without_being_inflated(codec: codec_pb2.Codec.ValueType, build: Callable[[], bytes]) -> None:
    chunk = UploadChunk(raw_size_bytes=1_000, codec=codec, data=build(), crc32c=google_crc32c.value(b""))
    tracemalloc.start()
    try:
        with pytest.raises((InvalidUploadError, CorruptDataError)):
            decode_chunk(chunk, 0)
        assert tracemalloc.get_traced_memory()[1] < BOMB_BYTES / 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", [codec_pb2.CODEC_GZIP, codec_pb2.CODEC_ZSTD])
def test_a_second_frame_behind_the_first_is_refused(codec: codec_pb2.Codec.ValueType) -> None:
    chunk = encode_chunk(0, b"abcd", codec)
    chunk.data += encode_chunk(0, b"efgh", codec).data

    with pytest.raises((CorruptDataError, InvalidUploadError)):
        decode_chunk(chunk, 0)
