"""Gives the newest checkpoint of a session away, as it was when it was asked for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from ktrdr.models.v1.model_service_pb2 import UploadChunk

from ktrdr_core.errors import CheckpointNotFoundError, StorageError
from ktrdr_core.execution.engine import SessionCheckpoint
from ktrdr_core.rpc.checkpoint_transfer import chunks_of
from trainer_service.session import Session

_OPEN_TRIES = 3


async def give_checkpoint(session: Session) -> tuple[SessionCheckpoint, AsyncIterator[UploadChunk]]:
    """Return the newest checkpoint of a session and the stream of its bytes.

    Raises:
        CheckpointNotFoundError: It has none.
        StorageError: It cannot be read.
    """
    for _ in range(_OPEN_TRIES):
        checkpoint = session.checkpoint
        if checkpoint is None:
            break
        chunks = chunks_of(checkpoint.path)
        try:
            first = await anext(chunks)  # from now on the file is open, and may be removed
        except FileNotFoundError:
            continue  # newer ones have taken its place
        except OSError as error:
            raise StorageError(f"checkpoint {checkpoint.path} cannot be read: {error}; try again") from error
        return checkpoint, _giving(session, checkpoint, first, chunks)
    raise CheckpointNotFoundError(
        f"session {session.session_id} has no checkpoint now; ask again once its progress names one",
        metadata={"session_id": session.session_id},
    )


async def _giving(
    session: Session, checkpoint: SessionCheckpoint, first: UploadChunk, rest: AsyncGenerator[UploadChunk]
) -> AsyncIterator[UploadChunk]:
    try:
        yield first
        async for chunk in rest:
            yield chunk
        session.note_given(checkpoint)
    finally:
        await rest.aclose()
