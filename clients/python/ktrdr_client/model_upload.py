"""Uploads a model directory and goes on after broken streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from ktrdr.models.v1 import model_pb2

from ktrdr_core.errors import CorruptDataError, UnavailableError, WriteConflictError
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.rpc.send_upload import ArtifactSender
from ktrdr_core.rpc.upload import UploadPlan
from ktrdr_core.rpc.upload_retries import UploadRetries

UPLOAD_DELAYS_S = (1.0, 2.0, 4.0, 8.0)
UploadProgress = Callable[[int, int], None]
"""(bytes that are there or were sent, bytes in all)."""


async def upload_directory(
    address: str,
    directory: Path,
    *,
    training_id: str,
    attempt: int,
    compression: Compression,
    progress: UploadProgress,
    security: ChannelSecurity | None,
    delays_s: Sequence[float] = UPLOAD_DELAYS_S,
) -> model_pb2.Model:
    """Upload the artifact in `directory`; see `AsyncClient.upload_model`."""
    plan = await asyncio.to_thread(UploadPlan.of, directory, training_id=training_id, attempt=attempt)
    loop = asyncio.get_running_loop()

    def tell(size_bytes: int) -> None:  # called on a thread of gRPC
        loop.call_soon_threadsafe(progress, size_bytes, plan.total_size_bytes)

    sender = ArtifactSender(plan, lambda: address, compression=compression, on_sent=tell, security=security)
    retries = UploadRetries(delays_s)
    while True:
        try:
            return (await sender.send()).model
        except (UnavailableError, CorruptDataError, WriteConflictError) as error:
            if isinstance(error, WriteConflictError) and not retries.is_own_stream(error):
                raise
            delay_s = retries.delay_after(error, has_moved=sender.has_moved)
            if retries.failures > len(delays_s):
                raise
        await asyncio.sleep(delay_s)
