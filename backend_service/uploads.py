"""Receives artifacts: resumable, verified to the last bit, published at most once, confirmed only then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr.models.v1 import model_service_pb2 as pb

from backend_service.operations.records import SessionRow
from backend_service.operations.trainings import Trainings
from backend_service.publisher import Publisher
from backend_service.upload_digests import digest_of
from backend_service.upload_files import PartialUpload, gone
from backend_service.upload_log import sound_size_bytes
from backend_service.upload_plan import UploadPlan, files_of_query, plan_from_proto, upload_key
from backend_service.upload_room import UploadLimits, check_room, remove_stale
from ktrdr_core.errors import (
    CorruptDataError,
    InvalidInputError,
    InvalidUploadError,
    NotFoundError,
    QuotaExceededError,
    StorageError,
    UnavailableError,
    UploadNotFoundError,
    WriteConflictError,
)
from ktrdr_core.logging import get_logger, log_context
from ktrdr_core.rpc.caller import require_scope
from ktrdr_core.security.scopes import Scope
from ktrdr_core.storage.artifact_files import TRAVELLING_FILES, ArtifactFile
from ktrdr_core.storage.stored_model import StoredModel
from ktrdr_core.undisturbed import undisturbed

_log = get_logger(__name__)

STALE_AFTER_S = 3 * 86_400.0
IDLE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStatus:
    """How much of an upload is safe; complete means published, or kept aside."""

    committed_size_bytes: int
    is_complete: bool
    reusable_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of an upload; a duplicate had been stored before."""

    model: StoredModel
    is_duplicate: bool


class UploadReceiver:
    """One writer per upload; an upload is a training, an attempt and a digest.

    Args:
        root: Directory of partial uploads.
        trainings: Whom artifacts belong to.
        publisher: The way into the model store.
        limits: Bounds of what waits on disk.
        idle_timeout_s: How long a sender may send nothing; there is no limit on the total.
    """

    def __init__(
        self,
        root: Path,
        *,
        trainings: Trainings,
        publisher: Publisher,
        limits: UploadLimits,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        self._root = root
        self._trainings = trainings
        self._publisher = publisher
        self._limits = limits
        self._idle_timeout_s = idle_timeout_s
        self._writing: set[str] = set()
        self._endings: set[asyncio.Task[Any]] = set()
        self._admission = asyncio.Lock()

    async def remove_stale(self, *, is_start: bool = False) -> None:
        """Remove uploads that were given up days ago; at the start also what a killed backend left half-made."""
        removed = await asyncio.to_thread(
            remove_stale, self._root, older_than_s=STALE_AFTER_S, keep=tuple(self._writing), is_start=is_start
        )
        if removed:
            _log.info("removed %d stale uploads", removed)

    async def receive(self, requests: AsyncIterator[pb.UploadModelRequest]) -> Receipt:
        """Take one upload; return what it became.

        Raises:
            InvalidUploadError: Header, offset, order or size breaks the contract, or the artifact is not valid.
            TrainingNotFoundError: There is no such training.
            IllegalStateError: The store no longer has a file that is not sent.
            WriteConflictError: Another stream writes this upload.
            QuotaExceededError: The store, or what is being uploaded, is at its limit.
            CorruptDataError: A checksum differs.
            UnavailableError: The sender sent nothing for too long.
            StorageError: The disk takes no writes; the trainer tries again.
        """
        try:
            return await self._receive(aiter(requests))
        except OSError as error:
            raise StorageError(
                f"the backend's disk takes no writes ({error}); what has arrived is kept, send the rest later"
            ) from error

    async def _receive(self, requests: AsyncIterator[pb.UploadModelRequest]) -> Receipt:
        first = await self._next(requests, writing=None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidUploadError("the first message of an upload must be its header", field="header")
        plan = plan_from_proto(first.header, max_size_bytes=self._limits.max_size_bytes)
        _check_scope(plan.training_id)
        with log_context(training_id=plan.training_id, attempt=plan.attempt):
            return await self._take(plan, requests)

    async def _take(self, plan: UploadPlan, requests: AsyncIterator[pb.UploadModelRequest]) -> Receipt:
        if plan.key in self._writing:
            raise WriteConflictError(
                f"another stream writes the upload of training {plan.training_id!r}, attempt {plan.attempt}; "
                "wait for it, then ask QueryUpload"
            )
        self._writing.add(plan.key)
        partial = PartialUpload(self._root / plan.key, plan)
        has_all = False
        try:
            known = await self._find_stored(plan.training_id, plan.attempt, plan.files)
            if known is not None:
                return Receipt(model=known, is_duplicate=True)
            await self._is_result(plan)  # asked again once all has come; what no training waits for is refused here
            await self._open(plan, partial)
            await self._take_chunks(requests, partial, plan)
            has_all = True
        finally:
            # A vanished sender cancels this call, at any await; what has arrived must be made safe all the same.
            if not has_all:
                await undisturbed(self._keep(plan, partial), self._endings)
        # Everything has arrived: stored even if the sender is gone before it hears of it.
        return await undisturbed(self._commit(plan, partial), self._endings)

    async def query(self, request: pb.QueryUploadRequest) -> UploadStatus:
        """Return how much of an upload is safe, and which of its files need not be sent.

        Raises:
            UploadNotFoundError: Nothing is, and none.
        """
        training_id, attempt, sha256 = request.training_id, request.attempt, request.sha256
        _check_scope(training_id)
        files = files_of_query(request)
        if size := await self._stored_size_bytes(training_id, attempt, sha256, files):
            return UploadStatus(committed_size_bytes=size, is_complete=True)
        directory = self._root / upload_key(training_id, attempt, sha256.hex())
        committed = await asyncio.to_thread(sound_size_bytes, directory, files)
        reusable = await self._reusable(files)
        if not committed and not reusable:
            raise UploadNotFoundError(
                f"nothing is stored of this upload of training {training_id!r}, attempt {attempt}; start from 0"
            )
        return UploadStatus(committed_size_bytes=committed, is_complete=False, reusable_files=reusable)

    async def close(self) -> None:
        """Finish what has arrived."""
        if self._endings:
            await asyncio.wait(set(self._endings))

    async def _open(self, plan: UploadPlan, partial: PartialUpload) -> None:
        """Begin to write, if there is room."""
        async with self._admission:
            await asyncio.to_thread(check_room, self._root, plan, self._limits)
            await self._publisher.check_room(plan.size_on_disk_bytes)
            await asyncio.to_thread(partial.open, await self._find_shared(plan))

    async def _take_chunks(
        self, requests: AsyncIterator[pb.UploadModelRequest], partial: PartialUpload, plan: UploadPlan
    ) -> None:
        writing: asyncio.Future[None] | None = None
        try:
            while (request := await self._next(requests, writing=writing)) is not None:
                if request.WhichOneof("part") != "chunk":
                    raise InvalidUploadError("only chunks may follow the header of an upload", field="chunk")
                writing = asyncio.ensure_future(asyncio.to_thread(partial.add, request.chunk))
        finally:
            if writing is not None:
                await asyncio.gather(writing, return_exceptions=True)
        if partial.size_bytes < plan.total_size_bytes:
            raise InvalidUploadError(
                f"the upload declares {plan.total_size_bytes} bytes and ended after {partial.size_bytes}; "
                "send the rest, from where QueryUpload says",
                field="header.total_size_bytes",
            )

    async def _next(
        self, requests: AsyncIterator[pb.UploadModelRequest], *, writing: asyncio.Future[None] | None
    ) -> pb.UploadModelRequest | None:
        """Return the next message, None at the end; `writing`, of the one before, is done by then."""
        reading = asyncio.ensure_future(_read(requests))
        try:
            both: set[asyncio.Future[Any]] = {reading} if writing is None else {reading, writing}
            await asyncio.wait(both, timeout=self._idle_timeout_s, return_when=asyncio.FIRST_EXCEPTION)
            if writing is not None and writing.done():
                writing.result()  # what is wrong with a chunk is said before the next one has come
            if not reading.done():
                raise UnavailableError(
                    f"nothing of the upload came for {self._idle_timeout_s:g} s; what has arrived is kept: send the "
                    "rest, from where QueryUpload says"
                )
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        if writing is not None:
            await writing
        return reading.result()

    async def _keep(self, plan: UploadPlan, partial: PartialUpload) -> None:
        """Make the part that has arrived safe, for a later stream to go on from."""
        try:
            await asyncio.to_thread(partial.close)
        finally:
            self._writing.discard(plan.key)

    async def _commit(self, plan: UploadPlan, partial: PartialUpload) -> Receipt:
        """Verify and store; the partial upload is gone afterwards, unless there is no room for it."""
        is_kept = False
        try:
            directory = await asyncio.to_thread(partial.verify)
            return Receipt(model=await self._store(plan, directory), is_duplicate=False)
        except (OSError, StorageError, QuotaExceededError):
            is_kept = True
            raise
        finally:
            try:
                await asyncio.to_thread(partial.abandon if is_kept else partial.remove)
            finally:
                self._writing.discard(plan.key)

    async def _store(self, plan: UploadPlan, directory: Path) -> StoredModel:
        record = self._trainings.find_active(plan.training_id)
        # A model and another end of its training never meet: who gives the attempt up waits, or has done so before.
        async with record.publication if record is not None else contextlib.nullcontext():
            store = self._publisher.publish if await self._is_result(plan) else self._publisher.keep_aside
            try:
                # The training is COMPLETED by who copies the session's log, once that has come to its end: an upload
                # may well arrive while the way to the trainer is cut.
                return await store(directory, training_id=plan.training_id, attempt=plan.attempt, files=plan.files)
            except (CorruptDataError, InvalidInputError, NotFoundError) as error:
                # Its digests are right, so sending it again would not help.
                raise InvalidUploadError(f"the uploaded artifact is refused: {error.message}") from error

    async def _is_result(self, plan: UploadPlan) -> bool:
        """Return whether the artifact becomes a version; that of an attempt that was given up is kept aside.

        Raises:
            TrainingNotFoundError: There is no such training.
            InvalidUploadError: No trainer was given this attempt.
        """
        if not plan.training_id:
            return True
        record = self._trainings.find_active(plan.training_id)
        known: Sequence[SessionRow]
        if record is not None:
            known = record.sessions
        else:
            known = (await self._trainings.snapshot(plan.training_id)).sessions
        given = [session for session in known if session.is_on_trainer and session.attempt == plan.attempt]
        if not given:
            raise InvalidUploadError(
                f"training {plan.training_id} has no attempt {plan.attempt} on a trainer; upload with the attempt it "
                "was given",
                field="header.attempt",
            )
        return record is not None and not record.is_ended and given[-1] is record.live_session

    async def _find_shared(self, plan: UploadPlan) -> dict[str, Path]:
        """Return where the files are that are not sent and not here yet.

        Raises:
            IllegalStateError: One is not in the store.
        """
        found = {}
        for span in plan.spans:
            if span.file.name not in plan.reused or span.end <= plan.write_offset:
                continue
            path = await self._publisher.find_file(span.file.sha256, span.file.size_bytes)
            if path is None:
                raise gone(span.file.name)
            found[span.file.name] = path
        return found

    async def _reusable(self, files: Sequence[ArtifactFile]) -> tuple[str, ...]:
        return tuple(
            [file.name for file in files if await self._publisher.find_file(file.sha256, file.size_bytes) is not None]
        )

    async def _find_stored(self, training_id: str, attempt: int, files: Sequence[ArtifactFile]) -> StoredModel | None:
        """Return the version, or what is kept aside, of an attempt that has these files."""
        published = await self._publisher.find_published(training_id, attempt, files)
        if published is not None or not training_id:
            return published
        aside = await self._publisher.find_kept_aside(training_id, attempt)
        return aside if aside is not None and {*files} <= {*aside.files} else None

    async def _stored_size_bytes(
        self, training_id: str, attempt: int, sha256: bytes, files: Sequence[ArtifactFile]
    ) -> int:
        """Return the size of an upload that is stored; 0 if it is not."""
        if files:
            return sum(file.size_bytes for file in files) if await self._find_stored(training_id, attempt, files) else 0
        if not training_id:
            return 0
        aside = await self._publisher.find_kept_aside(training_id, attempt)
        published = await self._publisher.list_by_training(training_id)
        for model in (*published, *([aside] if aside is not None else [])):
            travelled = tuple(file for file in model.files if file.name in TRAVELLING_FILES)
            if model.attempt == attempt and await asyncio.to_thread(digest_of, model.path, travelled) == sha256.hex():
                return sum(file.size_bytes for file in travelled)
        return 0


def _check_scope(training_id: str) -> None:
    if training_id:
        require_scope(Scope.TRAINER, "to upload the model of a training")
    else:
        require_scope(Scope.TRAIN, "to import a model")


async def _read(requests: AsyncIterator[pb.UploadModelRequest]) -> pb.UploadModelRequest | None:
    return await anext(requests, None)
