"""Receives artifacts: resumable, verified to the last bit, published at most once, confirmed only then."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ktrdr.models.v1 import model_service_pb2 as pb

from backend_service.operations.training_record import TrainingRecord
from backend_service.operations.trainings import Trainings
from backend_service.publisher import Publisher
from backend_service.upload_files import (
    STAGING_SUFFIX,
    PartialUpload,
    UploadPlan,
    committed_size_bytes,
    digest_whole,
    plan_from_proto,
    remove_stale,
    upload_key,
)
from ktrdr_core.errors import (
    CorruptDataError,
    IllegalStateError,
    InvalidInputError,
    InvalidUploadError,
    NotFoundError,
    StorageError,
    UploadNotFoundError,
    WriteConflictError,
)
from ktrdr_core.logging import get_logger, log_context
from ktrdr_core.storage.artifact import TRAVELLING_FILES
from ktrdr_core.storage.stored_model import StoredModel
from ktrdr_core.undisturbed import undisturbed

T = TypeVar("T")
_log = get_logger(__name__)

STALE_AFTER_S = 3 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStatus:
    """How much of an upload is safe; complete means published."""

    committed_size_bytes: int
    is_complete: bool


class UploadReceiver:
    """One writer per upload; an upload is a training, an attempt and a digest.

    Args:
        root: Directory of partial uploads.
        trainings: Whom artifacts belong to.
        publisher: The way into the model store.
        max_size_bytes: Largest artifact accepted.
    """

    def __init__(self, root: Path, *, trainings: Trainings, publisher: Publisher, max_size_bytes: int) -> None:
        self._root = root
        self._trainings = trainings
        self._publisher = publisher
        self._max_size_bytes = max_size_bytes
        self._writing: set[str] = set()
        self._endings: set[asyncio.Task[Any]] = set()

    async def remove_stale(self, *, is_start: bool = False) -> None:
        """Remove uploads that were given up days ago; at the start also what a killed backend left half-made."""
        removed = await asyncio.to_thread(remove_stale, self._root, older_than_s=STALE_AFTER_S, is_start=is_start)
        if removed:
            _log.info("removed %d stale uploads", removed)

    async def receive(self, requests: AsyncIterator[pb.UploadModelRequest]) -> tuple[StoredModel, bool]:
        """Take one upload; return the published version and whether it had been published before.

        Raises:
            InvalidUploadError: Header, offset, order or size breaks the contract, or the artifact is not valid.
            TrainingNotFoundError: There is no such training.
            IllegalStateError: The training has ended otherwise.
            WriteConflictError: Another stream writes this upload, or the attempt is fenced.
            CorruptDataError: A checksum differs.
            StorageError: The disk takes no writes; the trainer tries again.
        """
        try:
            return await self._receive(requests)
        except OSError as error:
            raise StorageError(
                f"the backend's disk takes no writes ({error}); what has arrived is kept, send the rest later"
            ) from error

    async def _receive(self, requests: AsyncIterator[pb.UploadModelRequest]) -> tuple[StoredModel, bool]:
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidUploadError("the first message of an upload must be its header", field="header")
        plan = plan_from_proto(first.header, max_size_bytes=self._max_size_bytes)
        with log_context(training_id=plan.training_id, attempt=plan.attempt):
            return await self._take(plan, requests)

    async def _take(self, plan: UploadPlan, requests: AsyncIterator[pb.UploadModelRequest]) -> tuple[StoredModel, bool]:
        known = await self._find_published(plan)
        if known is not None:
            return known, True
        record = await self._check_expected(plan)
        if plan.key in self._writing:
            raise WriteConflictError(
                f"another stream writes the upload of training {plan.training_id!r}, attempt {plan.attempt}; "
                "wait for it, then ask QueryUpload"
            )
        self._writing.add(plan.key)
        partial = PartialUpload(self._root / plan.key, plan)
        has_all = False
        try:
            await asyncio.to_thread(partial.open)
            await self._take_chunks(requests, partial, plan)
            has_all = True
        finally:
            # A vanished sender cancels this call, at any await; what has arrived must be made safe all the same.
            if not has_all:
                await undisturbed(self._keep(plan, partial), self._endings)
        # Everything has arrived: published even if the sender is gone before it hears of it.
        return await undisturbed(self._commit(plan, partial, record), self._endings), False

    async def query(self, training_id: str, attempt: int, sha256: bytes) -> UploadStatus:
        """Return how much of an upload is safe.

        Raises:
            UploadNotFoundError: Nothing is.
        """
        model = await self._publisher.find_by_training(training_id) if training_id else None
        is_attempt = model is not None and model.attempt == attempt
        if model and is_attempt and await asyncio.to_thread(digest_whole, model.path) == sha256.hex():
            size = sum(file.size_bytes for file in model.files if file.name in TRAVELLING_FILES)
            return UploadStatus(committed_size_bytes=size, is_complete=True)
        directory = self._root / upload_key(training_id, attempt, sha256.hex())
        committed = await asyncio.to_thread(committed_size_bytes, directory)
        if not committed:
            raise UploadNotFoundError(
                f"nothing is stored of this upload of training {training_id!r}, attempt {attempt}; start from 0"
            )
        return UploadStatus(committed_size_bytes=committed, is_complete=False)

    async def close(self) -> None:
        """Finish what has arrived."""
        if self._endings:
            await asyncio.wait(set(self._endings))

    async def _keep(self, plan: UploadPlan, partial: PartialUpload) -> None:
        """Make the part that has arrived safe, for a later stream to go on from."""
        try:
            await asyncio.to_thread(partial.close)
        finally:
            self._writing.discard(plan.key)

    async def _find_published(self, plan: UploadPlan) -> StoredModel | None:
        wanted = {(file.name, file.sha256) for file in plan.files}
        for model in await self._publisher.list_by_training(plan.training_id):
            if model.attempt == plan.attempt and wanted <= {(file.name, file.sha256) for file in model.files}:
                return model
        return None

    async def _check_expected(self, plan: UploadPlan) -> TrainingRecord | None:
        """Return the training that waits for this artifact; None for an import."""
        if not plan.training_id:
            return None
        record = await self._trainings.require_active(plan.training_id)
        _check_attempt(record, plan)
        return record

    async def _take_chunks(
        self, requests: AsyncIterator[pb.UploadModelRequest], partial: PartialUpload, plan: UploadPlan
    ) -> None:
        async for request in requests:
            if request.WhichOneof("part") != "chunk":
                raise InvalidUploadError("only chunks may follow the header of an upload", field="chunk")
            await asyncio.to_thread(partial.add, request.chunk)
        if partial.size_bytes < plan.total_size_bytes:
            raise InvalidUploadError(
                f"the upload declares {plan.total_size_bytes} bytes and ended after {partial.size_bytes}; "
                "send the rest, from where QueryUpload says",
                field="header.total_size_bytes",
            )

    async def _commit(self, plan: UploadPlan, partial: PartialUpload, record: TrainingRecord | None) -> StoredModel:
        """Verify and publish; the partial upload is gone afterwards, unless the disk took no writes."""
        staging = self._root / f"{plan.key}{STAGING_SUFFIX}"
        is_kept = False
        try:
            await asyncio.to_thread(partial.close)
            await asyncio.to_thread(partial.split, staging)
            if record is None:
                return await self._publish(plan, staging)
            async with record.publication:
                if record.is_ended:
                    raise IllegalStateError(
                        f"training {plan.training_id} has already ended: {record.state}",
                        metadata={"training_id": plan.training_id, "state": str(record.state)},
                    )
                _check_attempt(record, plan)  # again: it may have been given up while its bytes came
                # The training is COMPLETED by who copies the session's log, once that has come to its end: an upload
                # may well arrive while the way to the trainer is cut.
                return await self._publish(plan, staging)
        except (OSError, StorageError):
            is_kept = True
            raise
        finally:
            try:
                await asyncio.to_thread(partial.abandon if is_kept else partial.remove)
                await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
            finally:
                self._writing.discard(plan.key)

    async def _publish(self, plan: UploadPlan, staging: Path) -> StoredModel:
        try:
            return await self._publisher.publish(staging, training_id=plan.training_id, attempt=plan.attempt)
        except (CorruptDataError, InvalidInputError, NotFoundError) as error:
            # Its digests are right, so sending it again would not help.
            raise InvalidUploadError(f"the uploaded artifact is refused: {error.message}") from error


def _check_attempt(record: TrainingRecord, plan: UploadPlan) -> None:
    """Raise unless this attempt is the one that runs the training now."""
    last, live = record.last_session, record.live_session
    if last is None or plan.attempt > last.attempt:
        raise InvalidUploadError(
            f"training {plan.training_id} has no attempt {plan.attempt}; upload with the attempt it was given",
            field="header.attempt",
        )
    if live is None or not live.is_on_trainer or plan.attempt < live.attempt:
        raise WriteConflictError(
            f"attempt {plan.attempt} of training {plan.training_id} is fenced: it was given up, another one takes "
            "over; drop this artifact",
            metadata={"training_id": plan.training_id},
        )
