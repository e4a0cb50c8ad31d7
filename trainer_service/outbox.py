"""Brings one artifact to the model store and does not give up while the session lives.

A broken upload goes on where the backend's copy ends. Only what a retry cannot change ends it: then the refusal is
raised, and the artifact stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktrdr.models.v1 import model_service_pb2

from ktrdr_core.errors import (
    AlreadyExistsError,
    CorruptDataError,
    IllegalStateError,
    InvalidInputError,
    KtrdrError,
    NotBuiltError,
    NotFoundError,
    WriteConflictError,
)
from ktrdr_core.logging import get_logger
from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.rpc.client_stream import IDLE_TIMEOUT_S
from ktrdr_core.rpc.codec_choice import Compression
from ktrdr_core.rpc.send_upload import ArtifactSender
from ktrdr_core.rpc.upload import UploadPlan
from ktrdr_core.rpc.upload_retries import UploadRetries
from ktrdr_core.storage.artifact_sums import ArtifactSums, forget_sums, read_sums

RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0)
WARN_AFTER_FAILURES = 3
UPLOAD_RETRY = "UPLOAD_RETRY"

_LAST_QUERY_TIMEOUT_S = 2.0
_PERMANENT = (
    InvalidInputError,
    NotFoundError,
    WriteConflictError,
    IllegalStateError,
    AlreadyExistsError,
    NotBuiltError,
)
_log = get_logger(__name__)
WarningCallback = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """How artifacts are sent.

    Attributes:
        retry_delays_s: Waits between tries; the last one repeats.
        idle_timeout_s: How long the other side may take no bytes.
        compression: How chunks are compressed.
        security: TLS and the token of the way to backends; None is plain text.
    """

    retry_delays_s: Sequence[float] = RETRY_DELAYS_S
    idle_timeout_s: float = IDLE_TIMEOUT_S
    compression: Compression = Compression.AUTO
    security: ChannelSecurity | None = None


class Upload:
    """One artifact on its way.

    Args:
        directory: Directory of the complete artifact.
        training_id: Training it belongs to.
        attempt: Session number within the training.
        target: Returns the address of the ModelService now; asked before each try.
        warn: Called with a reason and a sentence after the third failure in a row.
        options: How it is sent.
        digest: `artifact_digest` of what was made; "" if it is not known.
        is_resumed: A stream of an earlier process may still be open on the other side.
    """

    def __init__(
        self,
        directory: Path,
        *,
        training_id: str,
        attempt: int,
        target: Callable[[], str],
        warn: WarningCallback,
        options: UploadOptions,
        digest: str = "",
        is_resumed: bool = False,
    ) -> None:
        self._directory = directory
        self._training_id = training_id
        self._attempt = attempt
        self._target = target
        self._warn = warn
        self._options = options
        self._digest = digest
        self._sender: ArtifactSender | None = None
        self._retries = UploadRetries(options.retry_delays_s, is_resumed=is_resumed)

    async def run(self) -> model_service_pb2.UploadModelResponse:
        """Return what the backend has made of the artifact once it has confirmed that.

        Raises:
            KtrdrError: A refusal that no retry changes.
        """
        retries = self._retries
        while True:
            try:
                return await self._try_once()
            except KtrdrError as error:
                if self._is_permanent(error):
                    raise
                if isinstance(error, CorruptDataError) and await asyncio.to_thread(forget_sums, self._directory):
                    # What went over differs from what was announced: the disk may have changed it since it was made.
                    self._sender = None
                before = retries.failures
                delay_s = retries.delay_after(error, has_moved=self._sender is not None and self._sender.has_moved)
                _log.warning("Upload to %s failed %d times: %s", self._target(), retries.failures, error.message)
                if before < retries.failures == WARN_AFTER_FAILURES:
                    await self._warn(
                        UPLOAD_RETRY,
                        f"the model could not be uploaded to {self._target()} {retries.failures} times "
                        f"({error.message}); it is safe on the trainer, which goes on trying",
                    )
            await asyncio.sleep(delay_s)

    async def was_stored(self) -> bool:
        """Return whether the backend has stored the artifact, as far as it answers within 2 s.

        Asked after `run` was cancelled: only an upload that had sent everything can have been stored.
        """
        if self._sender is None or not self._sender.has_sent_all:
            return False
        try:
            return (await self._sender.ask(timeout_s=_LAST_QUERY_TIMEOUT_S)).is_complete
        except KtrdrError:
            return False

    def _is_permanent(self, error: KtrdrError) -> bool:
        return isinstance(error, _PERMANENT) and not self._retries.is_own_stream(error)

    async def _try_once(self) -> model_service_pb2.UploadModelResponse:
        try:
            if self._sender is None:
                self._sender = await self._begin()
            return await self._sender.send()
        except OSError as error:
            raise IllegalStateError(
                f"the artifact in {self._directory} cannot be read: {error}; train again"
            ) from error

    async def _begin(self) -> ArtifactSender:
        return ArtifactSender(
            await asyncio.to_thread(self._plan),
            self._target,
            compression=self._options.compression,
            idle_timeout_s=self._options.idle_timeout_s,
            security=self._options.security,
        )

    def _plan(self) -> UploadPlan:
        """Return what is sent; an artifact that is not what was made is no result."""
        sums = read_sums(self._directory)
        if sums is None or (self._digest and sums.artifact_digest != self._digest):
            # It may be they that are damaged.
            sums = ArtifactSums.of(self._directory)
        if self._digest and sums.artifact_digest != self._digest:
            raise IllegalStateError(
                f"the artifact in {self._directory} is damaged: its digest must be {self._digest}, was "
                f"{sums.artifact_digest}; look at the trainer's disk, then train again"
            )
        return UploadPlan.of(self._directory, training_id=self._training_id, attempt=self._attempt, sums=sums)
