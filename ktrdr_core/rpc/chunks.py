"""Chunks of an upload: independent frames of at most 1 MiB raw, each with offset, raw size and CRC32C.

Independent frames with a declared size cannot be bombs: nothing is decompressed past the declared size, and that is
bounded.
"""

from __future__ import annotations

import gzip
import zlib

import google_crc32c
import zstandard
from ktrdr.models.v1 import codec_pb2
from ktrdr.models.v1.model_service_pb2 import UploadChunk

from ktrdr_core.errors import CorruptDataError, InvalidUploadError

CHUNK_SIZE_BYTES = 1 << 20
Codec = codec_pb2.Codec

COMPRESSION_LEVEL = 1
"""Measured: higher levels cost more time than they save bytes."""

_MAX_WINDOW_BYTES = 8 << 20
_GZIP_WBITS = 31


def encode_chunk(offset: int, raw: bytes, codec: codec_pb2.Codec.ValueType) -> UploadChunk:
    """Return the chunk of `raw`, 1 byte to 1 MiB, at `offset`.

    Raises:
        InvalidUploadError: `raw` is empty or too large, or the codec is unknown.
    """
    if not 0 < len(raw) <= CHUNK_SIZE_BYTES:
        raise InvalidUploadError(
            f"a chunk must have 1 to {CHUNK_SIZE_BYTES} raw bytes, had {len(raw)}; cut the file", field="chunk.data"
        )
    match codec:
        case codec_pb2.CODEC_NONE:
            data = raw
        case codec_pb2.CODEC_GZIP:
            data = gzip.compress(raw, compresslevel=COMPRESSION_LEVEL, mtime=0)
        case codec_pb2.CODEC_ZSTD:
            data = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(raw)
        case _:
            raise _unknown_codec(codec)
    return UploadChunk(offset=offset, raw_size_bytes=len(raw), codec=codec, data=data, crc32c=google_crc32c.value(raw))


def decode_chunk(chunk: UploadChunk, expected_offset: int) -> bytes:
    """Return the raw bytes of a chunk that is checked in every respect.

    Args:
        chunk: What arrived.
        expected_offset: Bytes already received.

    Raises:
        InvalidUploadError: Wrong offset, size or codec.
        CorruptDataError: The frame is broken, or the checksum of its raw bytes differs.
    """
    if chunk.offset != expected_offset:
        raise InvalidUploadError(
            f"chunk offset must be {expected_offset}, was {chunk.offset}; ask QueryUpload where to go on",
            field="chunk.offset",
        )
    size = chunk.raw_size_bytes
    if not 0 < size <= CHUNK_SIZE_BYTES:
        raise InvalidUploadError(
            f"raw_size_bytes of a chunk must be 1 to {CHUNK_SIZE_BYTES}, was {size}", field="chunk.raw_size_bytes"
        )
    match chunk.codec:
        case codec_pb2.CODEC_NONE:
            raw = chunk.data  # each access is a copy
        case codec_pb2.CODEC_GZIP:
            raw = _gunzip(chunk.data, size)
        case codec_pb2.CODEC_ZSTD:
            raw = _unzstd(chunk.data, size)
        case _:
            raise _unknown_codec(chunk.codec)
    if len(raw) != size:
        raise _wrong_size(size, f"{len(raw)}")
    found = google_crc32c.value(raw)
    if found != chunk.crc32c:
        raise CorruptDataError(
            f"CRC32C of the chunk at offset {chunk.offset} must be {chunk.crc32c:08x}, was {found:08x}; send it again"
        )
    return raw


def _gunzip(data: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj(wbits=_GZIP_WBITS)
    try:
        raw = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise CorruptDataError(f"a gzip chunk cannot be read ({error}); send it again") from error
    if len(raw) > size:
        raise _wrong_size(size, "more")
    if not inflater.eof or inflater.unused_data:
        raise CorruptDataError("a gzip chunk is not exactly one member; send it again")
    return raw


def _unzstd(data: bytes, size: int) -> bytes:
    try:
        # A content size in the frame overrides max_output_size, so it is checked before anything is allocated.
        declared = zstandard.frame_content_size(data)
        if declared not in (-1, size):
            raise _wrong_size(size, str(declared))
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        return decompressor.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptDataError(f"a zstd chunk cannot be read ({error}); send it again") from error


def _wrong_size(declared: int, found: str) -> InvalidUploadError:
    return InvalidUploadError(
        f"a chunk declares {declared} raw bytes and has {found}; declare its true size", field="chunk.raw_size_bytes"
    )


def _unknown_codec(codec: int) -> InvalidUploadError:
    return InvalidUploadError(
        f"codec {codec} is unknown; use CODEC_NONE, CODEC_GZIP or CODEC_ZSTD", field="chunk.codec"
    )
