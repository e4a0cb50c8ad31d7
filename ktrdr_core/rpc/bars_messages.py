"""The messages that carry a file of bars, both ways.

A Parquet file is compressed already, so its bytes travel as they are.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c
from ktrdr.data.v1.import_mode_pb2 import ImportMode
from ktrdr.data.v1.market_data_service_pb2 import GetBarsRequest, GetBarsResponse, ImportBarsRequest
from ktrdr.data.v1.series_pb2 import Series, SeriesPart

from ktrdr_core.errors import (
    InvalidUploadError,
    UnavailableError,
)
from ktrdr_core.rpc.bars_file import CHUNK_SIZE_BYTES
from ktrdr_core.undisturbed import in_thread

IDLE_TIMEOUT_S = 30.0


def part_request(symbol: str, timeframe: str, part: SeriesPart) -> GetBarsRequest:
    """Return the request for exactly this part of a series."""
    return GetBarsRequest(
        symbol=symbol,
        timeframe=timeframe,
        start_time=part.start_time,
        end_time=part.end_time,
        sha256=part.sha256,
    )


async def send_file(
    write: Callable[[GetBarsResponse], Awaitable[None]],
    file: BinaryIO,
    first: GetBarsResponse,
    *,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
) -> None:
    """Send the bytes of a file from `first.offset` on: the server's side of GetBars.

    Args:
        write: The call's own.
        file: What is sent; read off the event loop.
        first: The first response, without data.
        idle_timeout_s: How long the other side may take nothing; there is no limit on the total.

    Raises:
        UnavailableError: It took nothing for too long.
    """
    response, offset = first, first.offset
    while True:
        data, crc32c = await in_thread(_read_at, file, offset)
        if not data and response is not first:
            return
        response.offset, response.data, response.crc32c = offset, data, crc32c
        try:
            async with asyncio.timeout(idle_timeout_s):
                await write(response)
        except TimeoutError as error:
            raise UnavailableError(
                f"the bars were not taken for {idle_timeout_s:g} s; ask again with read_offset"
            ) from error
        offset += len(data)
        if offset >= first.total_size_bytes:
            return
        response = GetBarsResponse()


def import_messages(
    path: Path, *, symbol: str, timeframe: str, mode: ImportMode.ValueType
) -> Iterator[ImportBarsRequest]:
    """Yield what ImportBars takes: what the bars are, and the bytes of their Parquet file.

    Raises:
        OSError: The file cannot be read.
        InvalidUploadError: It is empty.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        size = file.tell()
        if not size:
            raise InvalidUploadError(f"{path} is empty; give a Parquet file of bars", field="path")
        file.seek(0)
        message = ImportBarsRequest(
            series=Series(symbol=symbol, timeframe=timeframe), total_size_bytes=size, sha256=digest, mode=mode
        )
        offset = 0
        while data := file.read(CHUNK_SIZE_BYTES):
            message.offset, message.data, message.crc32c = offset, data, google_crc32c.value(data)
            yield message
            offset += len(data)
            message = ImportBarsRequest()


def _read_at(file: BinaryIO, offset: int) -> tuple[bytes, int]:
    data = os.pread(file.fileno(), CHUNK_SIZE_BYTES, offset)
    return data, google_crc32c.value(data)
