"""The codec of each chunk follows its bytes and the link."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from ktrdr.models.v1 import codec_pb2

from ktrdr_core.errors import InvalidUploadError
from ktrdr_core.rpc.chunks import CHUNK_SIZE_BYTES, decode_chunk
from ktrdr_core.rpc.codec_choice import CodecChooser, Compression, codec_of, compression_of

RANDOM = os.urandom(CHUNK_SIZE_BYTES)
JSON = b'{"epochs": 10}' * 10_000
WEIGHTS = np.random.default_rng(1).normal(0, 0.05, CHUNK_SIZE_BYTES // 4).astype(np.float32).tobytes()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def codecs_over(chooser: CodecChooser, clock: Clock, raw: bytes, *, count: int, bytes_per_s: float) -> list[str]:
    """Return the codec of each chunk where the link takes them at this rate."""
    codecs = []
    for number in range(count):
        chunk = chooser.encode(number * len(raw), raw)
        assert decode_chunk(chunk, number * len(raw)) == raw
        clock.now += len(chunk.data) / bytes_per_s
        codecs.append(codec_pb2.Codec.Name(chunk.codec))
    return codecs


def test_bytes_that_pack_well_are_packed_on_any_link() -> None:
    clock = Clock()
    chooser = CodecChooser(clock=clock)
    assert codecs_over(chooser, clock, JSON, count=3, bytes_per_s=5e9) == ["CODEC_ZSTD"] * 3
    assert codecs_over(chooser, clock, WEIGHTS, count=3, bytes_per_s=5e9) == ["CODEC_NONE"] * 3


def test_weights_are_packed_where_the_link_is_slow() -> None:
    clock = Clock()
    chooser = CodecChooser(clock=clock)
    codecs = codecs_over(chooser, clock, WEIGHTS, count=20, bytes_per_s=90e6)
    assert codecs == ["CODEC_NONE"] + ["CODEC_ZSTD"] * 19  # nothing is known of the link before the first chunk
    assert codecs_over(chooser, clock, RANDOM, count=3, bytes_per_s=90e6) == ["CODEC_NONE"] * 3


def test_a_link_that_becomes_fast_is_noticed_within_32_chunks() -> None:
    clock = Clock()
    chooser = CodecChooser(clock=clock)
    codecs_over(chooser, clock, WEIGHTS, count=50, bytes_per_s=20e6)
    assert codecs_over(chooser, clock, WEIGHTS, count=33, bytes_per_s=1e9)[-1] == "CODEC_NONE"


def test_time_spent_on_encoding_is_not_the_links() -> None:
    steps = itertools.chain([1.0], itertools.cycle([1e-3, 1.0]))  # a second to encode, a millisecond on the link
    now = itertools.accumulate(steps)
    chooser = CodecChooser(clock=lambda: next(now))
    assert {chooser.encode(number, WEIGHTS).codec for number in range(10)} == {codec_pb2.CODEC_NONE}


def test_a_sample_that_misleads_does_not_pack_a_chunk_for_nothing() -> None:
    misleading = JSON[: 20 * 1024] + RANDOM[: CHUNK_SIZE_BYTES - 20 * 1024]
    assert CodecChooser().encode(0, misleading).codec == codec_pb2.CODEC_NONE


@pytest.mark.parametrize("raw", [JSON, RANDOM], ids=["json", "random"])
@pytest.mark.parametrize(
    ("compression", "codec"),
    [
        (Compression.NONE, codec_pb2.CODEC_NONE),
        (Compression.ZSTD, codec_pb2.CODEC_ZSTD),
        (Compression.GZIP, codec_pb2.CODEC_GZIP),
    ],
)
def test_a_forced_codec_is_that_of_every_chunk(
    compression: Compression, codec: codec_pb2.Codec.ValueType, raw: bytes
) -> None:
    chunk = CodecChooser(compression).encode(7, raw)
    assert (chunk.codec, decode_chunk(chunk, 7)) == (codec, raw)


def test_codecs_and_compressions_are_two_names_of_one_thing() -> None:
    assert [compression_of(codec_of(compression)) for compression in Compression] == list(Compression)
    assert codec_of(Compression.AUTO) == codec_pb2.CODEC_UNSPECIFIED
    with pytest.raises(InvalidUploadError, match="codec 77 is unknown"):
        compression_of(77)
